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

where `e^max decay(d)` is computed as `(e^x_j + e^r_j) / 2 tanh(d/2) / (d/2)`, so that
exponentials are of one point each. No exponent is positive, since `x_j <= L` and
`r_j <= L0`; nothing over- or underflows,
and at `x = r` this is the softmax, the derivative.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core import primitives as P

from jaxlift._differences import DIFFERENCES, wide
from jaxlift._interpret import Origins, Step, lazy
from jaxlift._rules import elementwise
from jaxlift._values import (
    Pair,
    Varying,
    at_input,
    at_reference,
    is_discrete,
    pair_of,
    piece_of,
    scale,
    secant,
    settle,
    shape_of,
)

RESHAPES = (P.broadcast_in_dim_p, P.reshape_p, P.squeeze_p, P.convert_element_type_p)


def _mean_exp(a, b):
    """`2 D_exp(a, b) / (e^a + e^b) = tanh(h) / h`, `h = (a - b) / 2`."""
    h = jnp.where(a == b, 0, (a - b) / 2)
    return jnp.where(h == 0, 1, jnp.tanh(h) / jnp.where(h == 0, 1, h))


def _decay(a, b):
    """`(1 - e^-|a-b|) / |a-b|`, the divided difference of exp from there to 0."""
    return DIFFERENCES[P.exp_p][0](jnp.where(a == b, 0, -abs(a - b)), jnp.zeros_like(a))


class _LogSumExp:
    """`log |sum(factors * exp(operand))|` at both points, and its multipliers `M`."""

    def __init__(self, powers: Powers):
        pair, self.axes, factors = pair_of(powers.operand), powers.axes, powers.factors

        def finite_max(v):
            top = v.max(self.axes, keepdims=True)
            return jnp.where(jnp.isfinite(top), top, 0)

        def total(v):
            """`log |sum|` and the sign of the sum."""
            return jax.nn.logsumexp(
                v, self.axes, b=factors, keepdims=True, return_sign=True
            )

        self.pair = pair
        self.x, self.r = (wide(v) for v in pair.ends)
        # Values and probabilities are each point's own ...
        own, own0 = finite_max(self.x), finite_max(self.r)
        # The largest is 0 exactly: a compiler may contract the product that made a
        # logit with this subtraction, and leave the rounding of the logit there.
        x = jnp.where(self.x == own, 0, self.x - own)
        r = jnp.where(self.r == own0, 0, self.r - own0)
        (log_s, self.sign), (log_s0, _) = total(x), total(r)
        self.value, self.reference = log_s + own, log_s0 + own0
        self.log_p, self.log_p0 = x - log_s, r - log_s0
        # ... multipliers those of both points shifted by their common maximum: a
        # large logit would leave its rounding in the exponents.
        shift = finite_max(jnp.maximum(self.x, self.r))
        own, own0 = own - shift, own0 - shift
        self.log_s, self.log_s0 = log_s + own, log_s0 + own0
        top = jnp.maximum(self.log_s, self.log_s0)
        self.top = jnp.where(top == -jnp.inf, 0, top)
        self.factors = 1.0 if factors is None else factors * self.sign
        self.spread = _decay(self.log_s, self.log_s0)
        # D_exp, of exponentials of one point each.
        power = jnp.exp(x) * (0.5 * jnp.exp(own - self.top))
        power += jnp.exp(r) * (0.5 * jnp.exp(own0 - self.top))
        power *= _mean_exp(self.x, self.r)
        self.weights = self.factors * power / self.spread

    def alone(self) -> Pair:
        """logsumexp, the axes kept with size 1."""
        dtype, axes = self.pair.r.dtype, self.axes
        return secant(
            self.value.astype(dtype),
            self.reference.astype(dtype),
            (lambda w, t: (w * t).sum(axes, keepdims=True), self.weights, self.pair),
        )

    def left_over(self) -> Any:
        """`1 - M_i` without cancellation.

        Where one logit dominates, `M_i` is close to 1 and what is left of 1 is
        multiplied by a large difference. With `l = x - L`, `l0 = r - L0`, `p = e^l`:
        `(1 - M_i) (x_i - r_i) = l_i - l0_i + (L - L0) - M_i (x_i - r_i)`, and the
        last two terms are `(S (1 - p_i) - S0 (1 - p0_i)) D_log(S, S0)`.
        """
        difference = self.x - self.r
        close = (self.weights > 0.5) & (abs(difference) >= 1)

        def others(log_s, l):
            """S without the power of each element itself, over e^top."""
            plain = isinstance(self.factors, float)
            return jnp.exp(log_s - self.top) * (
                -jnp.expm1(l) if plain else 1 - self.factors * jnp.exp(l)
            )

        l, l0 = self.log_p, self.log_p0
        rest = others(self.log_s, l) - others(self.log_s0, l0)
        total = rest / self.spread + l - l0
        exact = total / jnp.where(close, difference, 1)
        return jnp.where(close, exact, 1 - self.weights)

    def log_softmax(self) -> Pair:
        """`operand - logsumexp(operand)`."""
        return self._step(self.log_p, self.log_p0, 1.0, self.pair.r.dtype)

    def softmax(self, dtype: Any) -> Pair:
        """`exp(log_softmax(operand))`."""
        slope = DIFFERENCES[P.exp_p][0](self.log_p, self.log_p0)
        return self._step(jnp.exp(self.log_p), jnp.exp(self.log_p0), slope, dtype)

    def _step(self, value: Any, reference: Any, slope: Any, dtype: Any) -> Pair:
        """`slope_i ((1 - M_i) t_i - sum over the others of M_j t_j)`."""
        axes = self.axes

        def others(weights, tangent):
            weight, slope = weights
            own = weight * tangent
            return scale(slope, own.sum(axes, keepdims=True) - own)

        return secant(
            value.astype(dtype),
            reference.astype(dtype),
            (scale, scale(slope, self.left_over()), self.pair),
            (others, (-self.weights, slope), self.pair),
        )


def softmax_of(origins: Origins, numerator: Any, denominator: Any) -> Powers | None:
    """`exp(s) / sum(exp(s))`, recognised."""
    powers = sum_of_powers(origins, denominator)
    same = powers and powers.exponentials is back(origins, numerator)
    return powers if same else None


def log_softmax_of(origins: Origins, left: Any, right: Any) -> Powers | None:
    """`s - log(sum(exp(s)))`, recognised."""
    logarithm = _origin(origins, right, P.log_p)
    powers = logarithm and sum_of_powers(origins, logarithm.operands[0])
    return powers if powers and powers.shifted is left else None


@lazy
def softmax_or_divide(step: Step, numerator: Any, denominator: Any) -> Varying:
    """`exp(s) / sum(exp(s))`, or any other division."""
    powers = softmax_of(step.context, numerator, denominator)
    if powers is None:
        return elementwise(step, numerator, denominator)
    return _LogSumExp(powers).softmax(step.out_dtype)


@lazy
def log_softmax_or_subtract(step: Step, left: Any, right: Any) -> Varying:
    """`s - log(sum(exp(s)))`, or any other difference."""
    powers = log_softmax_of(step.context, left, right)
    if powers is None:
        return elementwise(step, left, right)
    return _LogSumExp(powers).log_softmax()


@lazy
def logsumexp_or_log(step: Step, operand: Any) -> Varying:
    """`log(sum(exp(s)))`, or any other logarithm."""
    powers = sum_of_powers(step.context, operand)
    if powers is None:
        return elementwise(step, operand)
    total = _LogSumExp(powers).alone()
    if powers.shift is not None:
        total = _difference(total, settle(powers.shift))
    return Pair(*(v.reshape(step.out_shape) for v in (total.x, total.r)))


@lazy
def freeze(step: Step, operand: Varying) -> Any:
    """stop_gradient: the value at the input, in both evaluations.

    A stopped maximum, as hand-written softmax has it, is the larger of its two values,
    so that neither evaluation overflows. A step function (round) has no gradient to
    stop: it stays what it is, and range reduction by it is right at both points.
    """
    piece = piece_of(operand)
    if all(slope is None for slope in piece.slopes):
        return operand
    x, r = piece.values[:2]
    larger = _is_maximum(step.context, operand)
    return lax.stop_gradient(jnp.maximum(x, r) if larger else x)


def _is_maximum(origins: Origins, value: Any) -> bool:
    origin = origins.origin(value)
    if origin is None:
        return False
    if origin.eqn.primitive is P.reduce_max_p:
        return True
    through = (*RESHAPES, P.max_p, P.select_n_p, P.stop_gradient_p)
    return origin.eqn.primitive in through and any(
        _is_maximum(origins, operand) for operand in origin.operands
    )


class Powers:
    """`sum(factors * exponentials, axes)`, `exponentials = exp(operand - shift)`.

    `factors` are fixed (logsumexp's `b`, the mask of a masked softmax), or None for 1.
    """

    def __init__(
        self, origins: Origins, exponentials: Any, shifted: Any, axes, factors
    ):
        self.exponentials, self.shifted = exponentials, shifted
        self.axes, self.factors = axes, factors
        self.operand, self.shift = self.shifted, None
        difference = _origin(origins, self.shifted, P.sub_p, through=())
        if difference:
            operand, shift = difference.operands
            if shape_of(operand) == shape_of(self.shifted) and all(
                _constant_along(origins, shift, axis, len(shape_of(operand)))
                for axis in axes
            ):
                self.operand, self.shift = operand, shift


def _constant_along(origins: Origins, value: Any, axis: int, rank: int) -> bool:
    shape = shape_of(value)
    if not shape or (len(shape) == rank and shape[axis] == 1):
        return True
    origin = origins.origin(value)
    return (
        origin is not None
        and origin.eqn.primitive is P.broadcast_in_dim_p
        and axis not in origin.eqn.params["broadcast_dimensions"]
    )


def sum_of_powers(origins: Origins, value: Any) -> Powers | None:
    total = _origin(origins, value, P.reduce_sum_p)
    if total is None:
        return None
    exponentials, factors = _factors(origins, back(origins, total.operands[0]))
    origin = origins.origin(exponentials)
    if origin is None or origin.eqn.primitive is not P.exp_p:
        return None
    axes = total.eqn.params["axes"]
    kept = tuple(1 if k in axes else n for k, n in enumerate(shape_of(exponentials)))
    squeezed = tuple(n for k, n in enumerate(kept) if k not in axes)
    if shape_of(value) not in (kept, squeezed, shape_of(exponentials)):
        return None
    return Powers(origins, exponentials, origin.operands[0], axes, factors)


def _factors(origins: Origins, value: Any) -> tuple[Any, Any]:
    """A value as (exponentials, fixed factors): a masked one, or a product."""
    origin = origins.origin(value)
    if origin is None or isinstance(value, core.Var):
        return value, None
    if origin.eqn.primitive is P.mul_p:
        u, v = origin.operands
        fixed = [not isinstance(o, Varying) for o in (u, v)]
        return (v, u) if fixed[0] else (u, v) if fixed[1] else (value, None)
    if origin.eqn.primitive is P.select_n_p and len(origin.operands) == 3:
        predicate, first, second = origin.operands
        if not isinstance(predicate, Varying) and is_discrete(predicate):
            if _is_zero(origins, first):
                return back(origins, second), predicate
            if _is_zero(origins, second):
                return back(origins, first), jnp.logical_not(predicate)
    return value, None


def _is_zero(origins: Origins, value: Any) -> bool:
    value = back(origins, value, RESHAPES)
    is_literal = not isinstance(value, jax.Array | Varying | core.Var)
    return is_literal and not np.any(np.asarray(value))


def back(origins: Origins, value: Any, through=(P.convert_element_type_p,)) -> Any:
    """The value before the given kinds of equation."""
    while (origin := origins.origin(value)) and origin.eqn.primitive in through:
        value = origin.operands[0]
    return value


def _origin(
    origins: Origins,
    value: Any,
    primitive: core.Primitive,
    through=(*RESHAPES, P.abs_p),
):
    origin = origins.origin(back(origins, value, through))
    return origin if origin and origin.eqn.primitive is primitive else None


def _difference(left: Pair, right: Any) -> Pair:
    """`left - right`, `right` of a broadcastable shape, or with its axes squeezed."""

    def side(array):
        small = jnp.size(array) == jnp.size(left.r)
        return jnp.reshape(array, left.r.shape) if small else array

    return Pair(left.x - side(at_input(right)), left.r - side(at_reference(right)))
