"""Convolutions of any axes: the same numbers, and one form for the compiler."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core

import jaxlift

# Shapes of input and kernel (batch, channels, space; out, in, space), and what else.
CASES = {
    "1d": ((2, 3, 11), (4, 3, 3), {}),
    "2d": ((2, 3, 7, 6), (4, 3, 3, 2), {"window_strides": (2, 1)}),
    "3d": ((1, 2, 4, 5, 3), (3, 2, 2, 2, 2), {}),
    "dilated": ((2, 3, 11), (4, 3, 3), {"rhs_dilation": (2,)}),
    "transposed": ((2, 3, 5), (4, 3, 3), {"lhs_dilation": (2,), "padding": [(1, 2)]}),
    "uneven padding": ((2, 3, 8), (4, 3, 3), {"padding": [(3, 0)]}),
    "grouped": ((2, 6, 7), (4, 3, 3), {"feature_group_count": 2}),
    "depthwise": ((2, 3, 7), (6, 1, 3), {"feature_group_count": 3}),
    "batch groups": ((4, 3, 7), (6, 3, 3), {"batch_group_count": 2}),
}
AXES = {  # of input, kernel and output, of how many dimensions they may be
    "channels first": lambda s: ("NC" + s, "OI" + s, "NC" + s),
    "channels last": lambda s: ("N" + s + "C", s + "IO", "N" + s + "C"),
    "mixed": lambda s: (s + "NC", "I" + s + "O", "C" + s + "N"),
}


def convolution(name, axes):
    """A convolution, an input, a kernel of these axes."""
    x_shape, k_shape, options = CASES[name]
    rank = len(x_shape) - 2
    numbers = AXES[axes]("DHW"[-rank:])
    letters = {c: k for k, c in enumerate("DHW"[-rank:], start=2)}
    x, k = (
        jax.random.normal(key, [shape[(letters | first)[c]] for c in order])
        for key, shape, order, first in zip(
            jax.random.split(jax.random.key(3)),
            (x_shape, k_shape),
            numbers,
            ({"N": 0, "C": 1}, {"O": 0, "I": 1}),
            strict=False,
        )
    )
    options = {"window_strides": (1,) * rank, "padding": "SAME"} | options

    def f(x, k):
        return lax.conv_general_dilated(x, k, dimension_numbers=numbers, **options)

    return f, x, k


BOTH = [(name, "mixed") for name in CASES] + [("2d", axes) for axes in AXES]


@pytest.mark.parametrize("name, axes", dict.fromkeys(BOTH))
def test_the_gradient_in_either_operand_and_complete_in_both(x64, name, axes):
    f, x, k = convolution(name, axes)
    weights = jax.random.normal(jax.random.key(4), f(x, k).shape)
    weighted = lambda x, k: (weights * f(x, k)).sum()
    squares = lambda x, k: (f(x, k) ** 2).sum()

    @jax.jit
    def found(x, k):
        reveal = jaxlift.multipliers(weighted, rules=jaxlift.REVEAL_CANCEL)
        return (
            (jaxlift.multipliers(weighted)(2 * x, k, x), reveal(2 * x, k, x)),
            jaxlift.multipliers(weighted, 1)(x, k, k - 1),
            jaxlift.deeplift(squares, (0, 1))(x, k, (x + 1, 2 * k)),
        )

    @jax.jit
    def expected(x, k):
        by_x, by_k = jax.grad(weighted, (0, 1))(x, k)
        return by_x, by_k, squares(x, k) - squares(x + 1, 2 * k)

    (of_x, revealed), of_k, contributions = found(x, k)
    by_x, by_k, total = expected(x, k)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
    close(of_x, by_x)
    close(revealed, by_x)
    close(of_k, by_k)
    close(sum(c.sum() for c in contributions), total)


def convolutions(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            yield eqn
        for body in core.jaxprs_in_params(eqn.params):
            yield from convolutions(getattr(body, "jaxpr", body))


@pytest.mark.parametrize("rules", [jaxlift.RESCALE, jaxlift.REVEAL_CANCEL])
@pytest.mark.parametrize("axes", AXES)
def test_one_form_there_and_back(axes, rules):
    """A compiler that only knows one form in loops meets no other: batch, space,
    channels; the kernel's space, input, output."""
    f, x, k = convolution("2d", axes)
    explain = jaxlift.deeplift_shap(f, rules=rules, target=jnp.sum, batch_size=2)
    references = jnp.stack([x, x + 1, x - 1, 2 * x])
    found = list(convolutions(jax.make_jaxpr(explain)(x, k, references).jaxpr))
    assert len(found) >= 4  # two batches, there and back
    for eqn in found:
        numbers = eqn.params["dimension_numbers"]
        assert numbers.lhs_spec == numbers.out_spec == (0, 3, 1, 2)
        assert numbers.rhs_spec == (3, 2, 0, 1)
