"""Gradient-type rules: the methods with which the paper compares DeepLIFT.

Their tables are edits of GRADIENT, the ordinary derivative at the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives as P
from jax.tree_util import Partial

from jaxlift import _compat
from jaxlift._interpret import Step, lazy
from jaxlift._pieces import settle, shape_of
from jaxlift._powers import is_zero
from jaxlift._rules import AFFINE, extend, gradient, one_root, select
from jaxlift._values import (
    Array,
    Pair,
    Slope,
    Varying,
    attach,
    is_discrete,
    number,
    scale,
    secant,
    still,
)


@jax.custom_vjp
def _positive_only(value: Array) -> Array:
    """`value`; of what comes back only the positive passes."""
    return value


_positive_only.defvjp(lambda value: (value, None), lambda _, ct: (jnp.maximum(ct, 0),))


def relu_backward(derivative: bool) -> Callable:
    """A relu that passes back only what is positive.

    `derivative` says whether its own derivative applies as well: guided
    backpropagation (Springenberg et al. 2014, 1412.6806); without it, the DeconvNet
    (Zeiler and Fergus 2014, 1311.2901). A relu is `max` with a fixed 0, bare or as the
    body of a custom_jvp; the gate is on its own output, whatever comes before it.
    """

    def rule(step: Step, *operands: Any) -> Any:
        several = step.primitive.multiple_results
        zeros = (is_zero(step.context, operand) for operand in operands)
        if not (_is_relu(step.eqn) if several else any(zeros)):
            return gradient(step, *operands)
        outputs = gradient(step, *operands)
        output = outputs[0] if several else outputs
        x = output.x
        if not derivative:
            (operand,) = (o for o in operands if isinstance(o, Pair))
            x = attach(output.value, Partial(scale, 1.0), (operand.x,))
        gated = Pair(_positive_only(x), output.r)
        return [gated] if several else gated

    return rule


def _is_relu(eqn: core.JaxprEqn) -> bool:
    """Whether a call consists of one `max` with 0."""
    if eqn.primitive is P.max_p:
        literals = (a.val for a in eqn.invars if isinstance(a, core.Literal))
        return any(not np.any(value) for value in literals)
    bodies = [_compat.open_jaxpr(b)[0] for b in core.jaxprs_in_params(eqn.params)]
    return len(bodies) == 1 and len(bodies[0].eqns) == 1 and _is_relu(bodies[0].eqns[0])


class _Ratio(Pair):
    """A pair of whose functions the slope is `F(z) / z`, at the input alone."""

    intervals = ((0, 0),)

    @staticmethod
    def weights(piece: Any) -> Slope:
        """`F(z) / z`; the derivative where z is 0 or infinite (masked)."""
        value = number(piece.values[0])
        return _ratio(value, piece.points[0], piece.best_slope(0))

    def close(self, piece: Any, value: Array, reference: Array, slope: Slope) -> Pair:
        """What passes back `F(z) / z`."""
        if is_discrete(value):
            return still(value, reference)
        return secant(value, reference, (scale, slope, Pair(self.x, self.r)))


def _ratio(value: Array, z: Array, derivative: Slope) -> Array:
    odd = (z == 0) | jnp.isinf(z)
    return jnp.where(odd, derivative, value / jnp.where(odd, 1, z))


@lazy
def relevance(step: Step, *operands: Any) -> Varying:
    """A step of an activation `F` of one pair `z`, which passes back `F(z) / z`.

    Affine steps (a bias, a batch norm, a mask) belong to `z`.
    """
    varying = [o for o in operands if isinstance(o, Varying)]
    affine = step.primitive in AFFINE and len(varying) == 1
    affine |= step.primitive is P.select_n_p and not isinstance(operands[0], Varying)
    ratios = [_as_ratio(operand) for operand in operands]
    shapes = {shape_of(o) for o in varying}
    if affine or not one_root(ratios) or shapes != {step.out_shape}:
        return gradient(step, *map(settle, operands))
    if step.primitive is P.select_n_p:
        return select(step, *ratios)
    return extend(step, ratios)


def relevance_of_call(step: Step, *operands: Any) -> list:
    """A custom_jvp function of one pair, elementwise: an activation as a whole."""
    players = [k for k, o in enumerate(operands) if isinstance(o, Pair)]
    outputs = gradient(step, *operands)
    if len(players) != 1 or len(outputs) != 1:
        return outputs
    z, (output,) = operands[players[0]], outputs
    if is_discrete(output.r) or output.r.shape != z.r.shape:
        return outputs

    def function(x):
        filled = (*operands[: players[0]], x, *operands[players[0] + 1 :])
        return step.bind(*filled)[0]

    # Where z is 0 or infinite, the derivative that the author gave.
    value, own = jax.jvp(function, (z.value,), (jnp.ones_like(z.value),))
    return [secant(value, output.r, (scale, _ratio(value, z.value, own), z))]


def _as_ratio(operand: Any) -> Any:
    """A pair as the root of activations that pass `F(z) / z`: one and the same root."""
    if not isinstance(operand, Pair):
        return operand
    made = _Ratio(operand.x, operand.r, operand.carrier)
    return vars(operand).setdefault("ratio", made)
