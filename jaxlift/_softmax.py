"""softmax, log_softmax and logsumexp, each as one step.

JAX has no primitive for them, but divisions by sums of `exp(a - c)`, `c` a stopped
maximum, and logarithms of these. Taken apart, the sums over- or underflow when the two
points are far from each other, since they share one `c`. So the last of the equations
looks back at how its operands came about (see `_powers.py`), and is replaced by

    log_softmax(a) = a - logsumexp(a),    softmax = exp ∘ log_softmax,

which holds whatever `c` was, as long as it is constant along the axes.

logsumexp is one step. With `L, L0` its values, `S = e^L`, `S0 = e^L0`:

    L - L0 = D_log(S, S0) (S - S0) = D_log(S, S0) sum_j D_exp(x_j, r_j) (x_j - r_j)
    D_log(S, S0) = (L - L0) / (e^L - e^L0) = 1 / D_exp(L, L0)
    D_exp(a, b)  = e^max(a, b) decay(a - b),    decay(d) = (1 - e^-|d|) / |d|
    M_j = e^(max(x_j, r_j) - max(L, L0)) decay(x_j - r_j) / decay(L - L0)

where `D_exp` is computed as `(e^x_j + e^r_j) / 2 tanh(d/2) / (d/2)` up close and as the
quotient further apart, so that exponentials are of one point each. No exponent is
positive, since `x_j <= L` and `r_j <= L0`; nothing over- or underflows, and at `x = r`
this is the softmax, the derivative.

What is added to the sum, so that nothing is divided by 0, is one more exponential:
`S + eps` has the operand `log(eps) + c` beside the `x_j`, each point with its own `c`.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.core import primitives as P

from jaxlift._differences import decay, gap, of_exp, wide
from jaxlift._interpret import Origins, Producers, Step, lazy, structural
from jaxlift._pieces import pair_of, piece_of, root_of, settle
from jaxlift._powers import (
    RESHAPES,
    Powers,
    back,
    equal,
    log_softmax_of,
    logsumexp_of,
    origin_of,
    softmax_of,
    sum_of_powers,
)
from jaxlift._rules import elementwise
from jaxlift._shifts import fate_of
from jaxlift._values import (
    Pair,
    Varying,
    after,
    at_input,
    at_reference,
    is_discrete,
    number,
    scale,
    secant,
    stopped,
)


class _Point:
    """One of the two points: `terms = factors e^(x - own)`, `own` its largest x.

    A guard, where there is one, is in the sum alone.
    """

    def __init__(self, x: Any, axes: Any, factors: Any, guard: Any):
        present = x if factors is None else jnp.where(factors != 0, x, -jnp.inf)
        top = present.max(axes, keepdims=True)
        top = top if guard is None else jnp.maximum(top, guard)
        self.own = jnp.where(jnp.isfinite(top), top, 0)
        # The largest is 0 exactly: a compiler may contract the product that made a
        # logit with this subtraction, and leave the rounding of the logit there.
        shifted = jnp.where(x == self.own, 0, x - self.own)
        self.powers = self.terms = jnp.exp(shifted)
        if factors is not None:
            self.terms = jnp.where(factors != 0, factors * self.powers, 0)
        self.sum = self.terms.sum(axes, keepdims=True)
        if guard is not None:
            self.guard = jnp.exp(guard - self.own)
            self.sum += self.guard
        self.log_sum = jnp.log(abs(self.sum))
        self.log_p = shifted - self.log_sum


class _LogSumExp:
    """`log |sum(factors * exp(operand))|` at both points, and its multipliers `M`."""

    def __init__(self, ends: Sequence, guards: Sequence, factors: Any, axes: Any):
        (self.x, self.r), self.axes = ends, axes
        # Values and probabilities are each point's own ...
        rows = zip(ends, guards, strict=True)
        points = [_Point(v, axes, factors, guard) for v, guard in rows]
        self.point, self.point0 = points
        # ... multipliers those of both points shifted by their common maximum: a
        # large logit would leave its rounding in the exponents.
        shift = jnp.maximum(self.point.own, self.point0.own)
        own, own0 = (p.own - shift for p in points)
        log_s, log_s0 = self.point.log_sum + own, self.point0.log_sum + own0
        top = jnp.maximum(log_s, log_s0)
        top = jnp.where(top == -jnp.inf, 0, top)
        density = 1 / decay(gap(log_s, log_s0))
        self.scales = [jnp.exp(v - top) for v in (own, own0)]
        self.signed = factors is not None and not is_discrete(factors)
        if self.signed:  # factors of any sign, and so are the sums
            s, s0 = (p.sum * u for p, u in zip(points, self.scales, strict=True))
            self.turned, self.rise = jnp.sign(s) != jnp.sign(s0), s - s0
            slope = (log_s - log_s0) / jnp.where(self.turned, self.rise, 1)
            density = jnp.where(self.turned, slope, jnp.sign(s) * density)
        self.unit, self.unit0 = (density * u for u in self.scales)
        self.weights = self._differences(self.unit, self.unit0)
        self.guard = None  # the multiplier of what guards
        if guards[0] is not None:
            values = self.unit * self.point.guard, self.unit0 * self.point0.guard
            self.guard = of_exp(*values, *guards)

    def _differences(self, unit: Any, unit0: Any) -> Any:
        """`D_exp` of the terms in these units, of exponentials of one point each."""
        return of_exp(
            unit * self.point.terms, unit0 * self.point0.terms, self.x, self.r
        )

    def left_over(self) -> Any:
        """`1 - M_i` without cancellation.

        Where one logit dominates, `M_i` is close to 1 and what is left of 1 is
        multiplied by a large difference. With `l = x - L`, `l0 = r - L0`, `p = e^l`:
        `(1 - M_i) (x_i - r_i) = l_i - l0_i + (L - L0) - M_i (x_i - r_i)`, and the
        last two terms are `(S (1 - p_i) - S0 (1 - p0_i)) D_log(S, S0)`.
        """
        point, point0, difference = self.point, self.point0, self.x - self.r
        close = (self.weights > 0.5) & (abs(difference) >= 1)
        rest = self.unit * (point.sum - point.terms)
        rest -= self.unit0 * (point0.sum - point0.terms)
        total = rest + point.log_p - point0.log_p
        # The division last: XLA keeps it, and what it is made of can go.
        return jnp.where(close, total, 1 - self.weights) / jnp.where(
            close, difference, 1
        )

    def logsumexp(self) -> tuple:
        """Its values, and the multipliers; the axes kept with size 1."""
        values = (p.log_sum + p.own for p in (self.point, self.point0))
        return *values, self.weights, self.guard

    def log_softmax(self) -> tuple:
        """The values of `operand - logsumexp(operand)`, and the weights of `_step`."""
        left, value = self.left_over(), self.point.log_p
        shared = (-self.weights,), self._shared_guard(())
        return after(left, value), self.point0.log_p, left, *shared

    def _shared_guard(self, slope: tuple) -> tuple | None:
        return None if self.guard is None else (-self.guard, *slope)

    def softmax(self) -> tuple:
        """The values of `exp(log_softmax(operand))`, and the weights of `_step`."""
        return self._softmax(self.point.powers, self.point0.powers)

    def masked_softmax(self) -> tuple:
        """The same times the factors."""
        return self._softmax(self.point.terms, self.point0.terms)

    def _softmax(self, powers: Any, powers0: Any) -> tuple:
        value, reference = powers / self.point.sum, powers0 / self.point0.sum
        slope = of_exp(value, reference, self.point.log_p, self.point0.log_p)
        left, weights = self.left_over(), self.weights
        if self.signed:
            # No logarithm reaches over a sum of 0: there all that changes is put down
            # to the sum, `dp_i / dS` for each unit of it.
            of_sum = self._differences(*self.scales)
            per_unit = (value - reference) / jnp.where(self.turned, self.rise, 1)
            slope = jnp.where(self.turned, -per_unit, slope)
            left = jnp.where(self.turned, -of_sum, left)
            weights = jnp.where(self.turned, of_sum, weights)
        value = after(left, after(slope, value))
        guard = self._shared_guard((slope,))
        return value, reference, slope * left, (-weights, slope), guard


@functools.partial(jax.jit, static_argnames=("method", "axes"))
def _traced(method: Callable, ends: Any, guards: Any, factors: Any, axes: Any):
    ends, guards = jax.tree.map(wide, (ends, guards))
    return method(_LogSumExp(ends, guards, factors, axes))


def _explained(method: Callable, powers: Powers) -> tuple[Pair, Any]:
    """The operand of a sum of powers, and what a method says of them."""
    pair, guards = pair_of(powers.operand), (None, None)
    if powers.guard is not None:
        shift = 0.0 if powers.shift is None else settle(powers.shift)
        ends = stopped(shift), at_reference(shift)
        log = math.log(powers.guard)
        guards = [log + _once(end, powers.axes) for end in ends]
    return pair, _traced(method, pair.ends, guards, powers.factors, powers.axes)


def _once(array: Any, axes: Sequence[int]) -> Any:
    """What is constant along the axes of a sum, only once along them."""
    for axis in axes if jnp.ndim(array) else ():
        array = lax.slice_in_dim(array, 0, 1, axis=axis)
    return jnp.asarray(array)


def _of_guard(powers: Powers, weights: tuple | None) -> list[tuple]:
    """The term of what guards: it moves with the shift, unless that is fixed."""
    shift, axes = settle(powers.shift), powers.axes
    if weights is None or not isinstance(shift, Pair):
        return []

    def moved(weights, tangent):
        return functools.reduce(operator.mul, weights) * _once(tangent, axes)

    return [(moved, weights, shift)]


def _step(method: Callable, powers: Powers, dtype: Any) -> Pair:
    """`slope_i ((1 - M_i) t_i - sum over the others of M_j t_j)`."""
    pair, (value, reference, left, shared, guard) = _explained(method, powers)
    axes = powers.axes  # all of it would be kept, and its values with it

    # All together the weights `M` are at most 1 (the logarithmic mean is concave, and
    # homogeneous), unless factors make a sum of both signs.
    of_one_sign = powers.factors is None or is_discrete(powers.factors)

    def others(weights, tangent):
        weight, *slope = weights
        own = weight * tangent
        # What dominates would take the digits of the others along when it is taken off
        # their sum, and so would its slope on the way back: it is kept apart, the one
        # that is more than half, by more than rounding.
        top = of_one_sign & (abs(weight) > 0.51)
        largest, rest = jnp.where(top, own, 0), jnp.where(top, 0, own)
        largest, total = (v.sum(axes, keepdims=True) for v in (largest, rest))
        rest = total + jnp.where(top, 0, largest - rest)
        return slope[0] * rest if slope else rest

    terms = (scale, left, pair), (others, shared, pair), *_of_guard(powers, guard)
    return secant(value.astype(dtype), reference.astype(dtype), *terms)


def _logsumexp(powers: Powers) -> Pair:
    """logsumexp, the axes kept with size 1."""
    found = _explained(_LogSumExp.logsumexp, powers)
    pair, (value, reference, weights, guard) = found
    guard = _of_guard(powers, None if guard is None else (guard,))
    axes = powers.axes

    def total(weights, tangent):
        return (weights * tangent).sum(axes, keepdims=True)

    dtype = pair.r.dtype
    term = total, weights, pair
    return secant(value.astype(dtype), reference.astype(dtype), term, *guard)


def cumulative(step: Step, operand: Pair) -> Pair:
    """cumlogsumexp: `M_kj = D_exp(x_j, r_j) / D_exp(L_k, L0_k)` for `j <= k`.

    As `M_kj = e^(w_j - n_k)`, where `n` increases with `k`, so that the sums follow a
    recurrence, `y_k = e^(n_(k-1) - n_k) y_(k-1) + e^(w_k - n_k) t_k`, without overflow.
    """
    axis, reverse = step.params["axis"], step.params["reverse"]
    value, reference = step.bind(operand.value), step.bind(operand.r)
    w, n = (_log_slope(wide(a), wide(b)) for a, b in (operand.ends, (value, reference)))
    before = jnp.roll(n, -1 if reverse else 1, axis)  # the first one is not used
    weights = [jnp.where(n == -jnp.inf, 0, jnp.exp(v - n)) for v in (before, w)]

    def total(weights, tangent):
        def composed(u, v):
            return u[0] * v[0], u[1] * v[0] + v[1]

        fade, share = weights
        terms = fade, share * tangent
        return lax.associative_scan(composed, terms, reverse=reverse, axis=axis)[1]

    return secant(value, reference, (total, weights, operand))


def _log_slope(a: Any, b: Any) -> Any:
    return jnp.maximum(a, b) + jnp.log(decay(gap(a, b)))


@lazy
def softmax_or_divide(step: Step, numerator: Any, denominator: Any) -> Varying:
    """`exp(s) / sum(exp(s))`, or any other division."""
    powers = softmax_of(step.context, numerator, denominator)
    if powers is None:
        return elementwise(step, numerator, denominator)
    above = back(step.context, numerator)
    bare = powers.factors is None or equal(step.context, above, powers.exponentials)
    method = _LogSumExp.softmax if bare else _LogSumExp.masked_softmax
    return _step(method, powers, step.out_dtype)


@lazy
def softmax_or_exp(step: Step, operand: Any) -> Varying:
    """`exp(log_softmax(s))` of what has two parts, or any other exponential.

    The parts of a log-probability cancel, and there is none beyond 0.
    """
    difference = origin_of(step.context, operand, P.sub_p, (P.convert_element_type_p,))
    powers = None
    if difference is not None and root_of(operand).rank:
        powers = log_softmax_of(step.context, *difference.operands)
    if powers is None:
        return elementwise(step, operand)
    return _step(_LogSumExp.softmax, powers, step.out_dtype)


@lazy
def log_softmax_or_subtract(step: Step, left: Any, right: Any) -> Varying:
    """`s - log(sum(exp(s)))`, or any other difference."""
    powers = log_softmax_of(step.context, left, right)
    if powers is None:
        return elementwise(step, left, right)
    return _step(_LogSumExp.log_softmax, powers, step.out_dtype)


@lazy
def logsumexp_or_log(step: Step, operand: Any) -> Varying:
    """`log(sum(exp(s)))`, or any other logarithm."""
    powers = sum_of_powers(step.context, operand)
    if powers is None or math.prod(step.out_shape) != powers.size:
        return elementwise(step, operand)
    total = _logsumexp(powers)
    if powers.shift is not None:
        total = _difference(total, settle(powers.shift))
    return Pair(*(v.reshape(step.out_shape) for v in (total.x, total.r)))


@lazy
def logsumexp_or_add(step: Step, left: Any, right: Any) -> Varying:
    """`log(sum(exp(s - m))) + m`, or any other sum.

    It does not depend on `m`: what the logarithm and the sum pass back to it cancels,
    but a compiler would make the multipliers of a maximum for that.
    """
    for total, shift in ((left, right), (right, left)):
        powers = logsumexp_of(step.context, total, shift)
        if powers is not None and math.prod(step.out_shape) == powers.size:
            whole = _logsumexp(powers)
            return Pair(*(v.reshape(step.out_shape) for v in (whole.x, whole.r)))
    return elementwise(step, left, right)


@lazy
@structural
def freeze(step: Step, operand: Varying) -> Any:
    """stop_gradient: the value at the input, in both evaluations.

    A shift that what the function returns does not depend on (the stopped maximum of a
    softmax) is each point's own, and not stopped: the larger points are apart, the more
    that matters to what the softmax is made of. Where it depends on it by a guard
    against division by 0 alone, it is stopped where it does not move. In the body of a
    loop, where that is not to be seen, a maximum that shifts exponents is the larger of
    its two values, so that neither evaluation overflows. A step function (round) has no
    gradient to stop: it stays what it is, and range reduction by it is right at both
    points.
    """
    piece = piece_of(operand)
    if piece.jumps:
        return operand
    context = step.context
    jaxpr, _, eqn = context.frames[-1]
    fate = fate_of(context.frames, _twins(jaxpr, eqn))
    if fate.independent:
        return _where_it_moves(settle(operand)) if fate.guarded else operand
    x, r = piece.values[:2]
    larger = (
        context.is_inner and fate.shifts_exponents and _is_maximum(context, operand)
    )
    return lax.stop_gradient(jnp.maximum(x, r) if larger else x)


def _twins(jaxpr: core.Jaxpr, eqn: core.JaxprEqn) -> list[core.JaxprEqn]:
    """The other equations that stop the same, written out again."""
    others = [e for e in jaxpr.eqns if e.primitive is eqn.primitive and e is not eqn]
    if not others:
        return []
    producers = Producers(jaxpr)
    return [e for e in others if equal(producers, e.invars[0], eqn.invars[0])]


def _where_it_moves(pair: Pair) -> Pair:
    """A pair that passes nothing back where both points are the same."""
    moves = (number(pair.value) != number(pair.r)).astype(pair.source.dtype)
    return secant(pair.value, pair.r, (scale, moves, pair))


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


def _difference(left: Pair, right: Any) -> Pair:
    """`left - right`, `right` of a broadcastable shape, or with its axes squeezed."""

    def side(array):
        small = jnp.size(array) == jnp.size(left.r)
        return jnp.reshape(array, left.r.shape) if small else array

    return Pair(left.x - side(at_input(right)), left.r - side(at_reference(right)))
