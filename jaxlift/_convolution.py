"""Convolutions in the form that compilers know best: channels last, kernels HWIO.

Whatever the axes of the program, XLA brings a convolution into this form on a CPU, but
not in the body of a loop: there any other one is 5 to 20 times as slow (jaxlib 0.10.2
to 0.12.0). References in batches are such a loop, `jax.lax.map` over sequences another.
And the way back through a convolution, as JAX transposes it, never has this form: input
and output of the kernel change places. So they are exchanged in its memory before.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import primitives as P

from jaxlift import _compat
from jaxlift._interpret import Rule, Step
from jaxlift._values import Array, add


def channels_last(rule: Rule) -> Rule:
    """A rule for products, for a convolution."""

    @functools.wraps(rule)
    def with_channels_last(step: Step, *operands: Any) -> Any:
        return rule(Convolution(step.eqn, step.context), *operands)

    return with_channels_last


class Convolution(Step):
    """A convolution, evaluated in one form whatever its axes."""

    def bind(self, *operands: Any) -> Array:
        """The equation evaluated at these arrays."""
        lhs, rhs = operands
        numbers = self.params["dimension_numbers"]
        batch, channels, *space = numbers.lhs_spec
        lhs = jnp.transpose(lhs, (batch, *space, channels))
        out, into, *space = numbers.rhs_spec
        rhs = jnp.transpose(rhs, (*space, into, out))
        batch, channels, *space = numbers.out_spec
        found = _convolve(tuple(self.params.items()), lhs, rhs)
        return jnp.transpose(found, tuple(np.argsort((batch, *space, channels))))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _convolve(params: tuple, lhs: Array, rhs: Array) -> Array:
    """Channels last, the kernel's axes its space, input, output."""
    last = lhs.ndim - 1
    return _bind(params, lhs, rhs, (last, last - 1))


@functools.partial(_convolve.defjvp, symbolic_zeros=True)
def _derivative(params, primals, tangents):
    (lhs, rhs), (d_lhs, d_rhs) = primals, tangents
    value, last, terms = _convolve(params, lhs, rhs), lhs.ndim - 1, []
    if not isinstance(d_lhs, SymbolicZero):
        # Its transpose has the kernel's input last, in memory the output of this one.
        terms.append(_bind(params, d_lhs, rhs.swapaxes(-1, -2), (last - 1, last)))
    if not isinstance(d_rhs, SymbolicZero):
        terms.append(_convolve(params, lhs, d_rhs))
    return value, add(*terms)


def _bind(params: tuple, lhs: Array, rhs: Array, out_and_into: tuple) -> Array:
    last = lhs.ndim - 1
    numbers = lax.ConvDimensionNumbers(
        lhs_spec=(0, last, *range(1, last)),
        rhs_spec=(*out_and_into, *range(last - 1)),
        out_spec=(0, last, *range(1, last)),
    )
    exchanged = dict(params) | {"dimension_numbers": numbers}
    (out,) = _compat.bind(P.conv_general_dilated_p, exchanged, lhs, rhs)
    return out
