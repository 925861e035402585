"""softmax, log_softmax and logsumexp, recognised in the forms in which JAX emits them.

JAX has no primitive for them. It emits `exp(a - c)`, `c` a stopped maximum, then a sum
over the axes, then a division by the sum (softmax), its logarithm (logsumexp), or the
difference from its logarithm (log_softmax). Taken apart, the sums over- or underflow
when the two points are far from each other, since they share one `c`. So the last of
these equations looks back at how its operands came about, and is replaced by

    log_softmax(a) = a - logsumexp(a),    softmax = exp ∘ log_softmax,

which holds whatever `c` was, as long as it is constant along the axes.

logsumexp is one step. With `L, L0` its values, `S = e^L`, `S0 = e^L0`:

    L - L0 = D_log(S, S0) (S - S0) = D_log(S, S0) sum_j D_exp(x_j, r_j) (x_j - r_j)
    D_log(S, S0) = (L - L0) / (e^L - e^L0) = 1 / D_exp(L, L0)
    D_exp(a, b)  = e^max(a, b) decay(a - b),    decay(d) = (1 - e^-|d|) / |d|
    M_j = e^(max(x_j, r_j) - max(L, L0)) decay(x_j - r_j) / decay(L - L0)

No exponent is positive, since `x_j <= L` and `r_j <= L0`; nothing over- or underflows,
and at `x = r` this is the softmax, the derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.core import primitives as P

from jaxlift._differences import DIFFERENCES, wide
from jaxlift._interpret import Context, Step, lazy
from jaxlift._rules import elementwise
from jaxlift._values import (
    Pair,
    Piece,
    Varying,
    at_input,
    at_reference,
    pair_of,
    piece_of,
    secant,
    settle,
    shape_of,
)

_RESHAPES = (P.broadcast_in_dim_p, P.reshape_p, P.squeeze_p, P.convert_element_type_p)


def _decay(a, b):
    """`(1 - e^-|a-b|) / |a-b|`, the divided difference of exp from there to 0."""
    return DIFFERENCES[P.exp_p][0](jnp.where(a == b, 0, -abs(a - b)), jnp.zeros_like(a))


def logsumexp(pair: Pair, axes: tuple[int, ...]) -> Pair:
    """logsumexp over `axes`, which are kept with size 1."""
    x, r = (wide(v) for v in pair.points)
    value, reference = (
        jax.nn.logsumexp(v, axes, keepdims=True) for v in (x, r)
    )
    top = jnp.maximum(value, reference)
    exponent = jnp.maximum(x, r) - jnp.where(top == -jnp.inf, 0, top)
    ratio = _decay(x, r) / _decay(value, reference)
    weights = jnp.exp(exponent) * ratio
    dtype = pair.r.dtype
    return secant(
        value.astype(dtype),
        reference.astype(dtype),
        (lambda w, t: (w * t).sum(axes, keepdims=True), weights, pair),
    )


@lazy
def softmax_or_divide(step: Step, numerator: Any, denominator: Any) -> Varying:
    """`exp(s) / sum(exp(s))`, or any other division."""
    powers = _sum_of_powers(step.context, denominator)
    if powers is None or powers.exponentials is not _back(step.context, numerator):
        return elementwise(step, numerator, denominator)
    return _exp_of(step, _minus_logsumexp(powers))


@lazy
def log_softmax_or_subtract(step: Step, left: Any, right: Any) -> Varying:
    """`s - log(sum(exp(s)))`, or any other difference."""
    origin = _origin(step.context, right, P.log_p)
    powers = origin and _sum_of_powers(step.context, origin.operands[0])
    if not powers or powers.shifted is not left:
        return elementwise(step, left, right)
    return _minus_logsumexp(powers)


@lazy
def logsumexp_or_log(step: Step, operand: Any) -> Varying:
    """`log(sum(exp(s)))`, or any other logarithm."""
    powers = _sum_of_powers(step.context, operand)
    if powers is None:
        return elementwise(step, operand)
    total = logsumexp(pair_of(powers.operand), powers.axes)
    if powers.shift is not None:
        total = _difference(total, settle(powers.shift))
    return Pair(*(v.reshape(step.out_shape) for v in (total.x, total.r)))


@lazy
def freeze(step: Step, operand: Varying) -> Any:
    """stop_gradient: the value at the input, in both evaluations.

    A stopped maximum, as hand-written softmax has it, is the larger of its two values,
    so that neither evaluation overflows.
    """
    x, r = piece_of(operand).values[:2]
    larger = _is_maximum(step.context, operand)
    return lax.stop_gradient(jnp.maximum(x, r) if larger else x)


def _is_maximum(context: Context, value: Any) -> bool:
    origin = context.origin(value)
    if origin is None:
        return False
    if origin.eqn.primitive is P.reduce_max_p:
        return True
    through = (*_RESHAPES, P.max_p, P.select_n_p, P.stop_gradient_p)
    return origin.eqn.primitive in through and any(
        _is_maximum(context, operand) for operand in origin.operands
    )


def _minus_logsumexp(powers: _Powers) -> Pair:
    operand = pair_of(powers.operand)
    return _difference(operand, logsumexp(operand, powers.axes))


def _exp_of(step: Step, root: Pair) -> Piece:
    values = [lax.exp(point).astype(step.out_dtype) for point in root.points]
    ends = [[wide(root.points[k]) for k in interval] for interval in root.intervals]
    return Piece(root, values, [DIFFERENCES[P.exp_p][0](a, b) for a, b in ends], 1)


class _Powers:
    """`sum(exponentials, axes)`, `exponentials = exp(shifted)`, `shifted = operand - shift`."""

    def __init__(self, context: Context, exponentials: Any, axes: tuple[int, ...]):
        self.exponentials, self.axes = exponentials, axes
        self.shifted = context.origin(exponentials).operands[0]
        self.operand, self.shift = self.shifted, None
        difference = _origin(context, self.shifted, P.sub_p, through=())
        if difference and isinstance(difference.operands[0], Varying):
            operand, shift = difference.operands
            if shape_of(operand) == shape_of(self.shifted) and all(
                _constant_along(context, shift, axis, len(shape_of(operand)))
                for axis in axes
            ):
                self.operand, self.shift = operand, shift


def _constant_along(context: Context, value: Any, axis: int, rank: int) -> bool:
    shape = shape_of(value)
    if not shape or (len(shape) == rank and shape[axis] == 1):
        return True
    origin = context.origin(value)
    return (
        origin is not None
        and origin.eqn.primitive is P.broadcast_in_dim_p
        and axis not in origin.eqn.params["broadcast_dimensions"]
    )


def _sum_of_powers(context: Context, value: Any) -> _Powers | None:
    total = _origin(context, value, P.reduce_sum_p)
    if total is None:
        return None
    exponentials = _back(context, total.operands[0])
    origin = context.origin(exponentials)
    if origin is None or origin.eqn.primitive is not P.exp_p:
        return None
    axes = total.eqn.params["axes"]
    kept = tuple(
        1 if k in axes else n for k, n in enumerate(shape_of(exponentials))
    )
    squeezed = tuple(n for k, n in enumerate(kept) if k not in axes)
    if shape_of(value) not in (kept, squeezed, shape_of(exponentials)):
        return None
    return _Powers(context, exponentials, axes)


def _back(context: Context, value: Any, through=(P.convert_element_type_p,)) -> Any:
    """The value before the given kinds of equation."""
    while (origin := context.origin(value)) and origin.eqn.primitive in through:
        value = origin.operands[0]
    return value


def _origin(
    context: Context,
    value: Any,
    primitive: core.Primitive,
    through=(*_RESHAPES, P.abs_p),
):
    origin = context.origin(_back(context, value, through))
    return origin if origin and origin.eqn.primitive is primitive else None


def _difference(left: Pair, right: Any) -> Pair:
    """`left - right`, `right` of a broadcastable shape, or with its axes squeezed."""

    def side(array):
        small = jnp.size(array) == jnp.size(left.r)
        return jnp.reshape(array, left.r.shape) if small else array

    return Pair(left.x - side(at_input(right)), left.r - side(at_reference(right)))
