"""The rules: one function per family of primitives.

A rule gives linear maps `M_i` with `sum_i M_i (a_i - a0_i) == p(a) - p(a0)`, where
`a_i` are the operands at the input and `a0_i` at the reference. The tables in
`_tables.py` assign a rule to each primitive.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as P
from jax.tree_util import Partial

from jaxlift import _compat
from jaxlift._compat import existing
from jaxlift._differences import DIFFERENCES, STEPS, accounts, quotient, wide
from jaxlift._interpret import Step, lazy, structural, unsupported
from jaxlift._pieces import (
    Given,
    Piece,
    as_pieces,
    like,
    once,
    piece_of,
    root_of,
    settle,
    shape_of,
)
from jaxlift._values import (
    Array,
    Pair,
    Slope,
    Varying,
    add,
    after,
    at_input,
    at_reference,
    attach,
    is_discrete,
    kind_of,
    number,
    scale,
    secant,
    still,
    stopped,
)

# ---------------------------------------------------------------- linear steps


def linear(step: Step, *operands: Any, indices: Sequence[int] = ()) -> Any:
    """Linear in the operands that vary: evaluate at both points.

    JAX's own derivative of the step is the rule.
    """
    return kind_of(operands).linear(step, operands, indices)


@structural
def one_for_one(step: Step, *operands: Any) -> list:
    """Hands on each operand, whatever it is: a fixed one stays fixed.

    All that a varying one consists of goes the same way. Operands go together, as they
    came: one may be there for the others to wait for. Their tangents go apart, or JAX
    would make zeros for what has none.
    """
    rows, trees = zip(*map(jax.tree.flatten, operands), strict=True)
    handed = []
    for n in range(max(map(len, rows))):
        leaves = [row[min(n, len(row) - 1)] for row in rows]
        outputs = step.bind(*map(lax.stop_gradient, leaves))
        handed.append([*map(_with_tangent, outputs, leaves)])
    columns = zip(trees, zip(*handed, strict=True), strict=True)
    return [tree.unflatten(column[: tree.num_leaves]) for tree, column in columns]


def _with_tangent(value: Array, source: Array) -> Array:
    return value if is_discrete(value) else attach(value, Partial(add), (source,))


def gradient(step: Step, *operands: Any) -> Any:
    """The ordinary derivative at the input, of any step."""
    xs = step.bind(*map(at_input, operands))
    rs = step.bind(*map(at_reference, operands))
    if not step.primitive.multiple_results:
        return still(xs, rs)
    return [still(x, r) for x, r in zip(xs, rs, strict=True)]


def on_floats(*numbers: int) -> Callable[[Callable], Callable]:
    """A rule that takes booleans and integers as floats, these of its operands.

    What carries their tangents is the same number as a float.
    """

    def decorate(rule: Callable) -> Callable:
        @functools.wraps(rule)
        def with_floats(step: Step, *operands: Any) -> Any:
            given = [o for k, o in enumerate(operands) if k in numbers]
            if not any(isinstance(o, Pair) and is_discrete(o.r) for o in given):
                return rule(step, *operands)
            floats = [
                _as_float(o) if k in numbers else o for k, o in enumerate(operands)
            ]
            if not is_discrete(step.eqn.outvars[0].aval):
                return rule(step, *floats)
            found = rule(step.among_floats, *floats)
            x, r = (step.bind(*map(side, operands)) for side in (stopped, at_reference))
            return Pair(x, r, found.x)

        return with_floats

    return decorate


def _as_float(operand: Any) -> Any:
    if isinstance(operand, Pair):
        return Pair(operand.source, number(operand.r))
    return number(operand)


@on_floats(0, 1)
def bilinear(step: Step, *operands: Any) -> Any:
    """A product: `d(uv) = du mid(v) + mid(u) dv`; linear where one factor is fixed.

    Operands after the two factors are fixed (the group sizes of a ragged product).
    """
    u, v, *rest = operands
    if kind_of(operands) is Pair and not (isinstance(u, Pair) and isinstance(v, Pair)):
        return linear(step, *operands)
    terms = (
        (lambda w, t: step.bind(t, *w), (middle(v), *rest), u),
        (lambda w, t: step.bind(w[0], t, *w[1:]), (middle(u), *rest), v),
    )
    return secant(
        step.bind(stopped(u), stopped(v), *rest),
        step.bind(at_reference(u), at_reference(v), *rest),
        *(term for term in terms if isinstance(term[2], Pair)),
    )


def middle(operand: Any) -> Any:
    """The mean of a value over the two points."""
    if not isinstance(operand, Pair):
        return operand
    return 0.5 * stopped(operand) + 0.5 * at_reference(operand)


def indexed(first: int, last: int | None = None) -> Callable:
    """Linear in its arrays; the operands from `first` up to `last` are indices.

    An index that differs between the two points has no number line to put the jump
    on: the arrays get the mean over the two indices, and what the change of the index
    itself brought shows in the completeness gap.
    """

    def rule(step: Step, *operands: Any) -> Any:
        indices = range(len(operands))[first:last]
        if not any(isinstance(operands[k], Pair) for k in indices):
            return linear(step, *operands, indices=indices)
        zeros = {k: jnp.zeros_like(stopped(o)) for k, o in enumerate(operands)}
        sides = [
            {k: side(operands[k]) for k in indices} for side in (stopped, at_reference)
        ]

        def term(k):
            def mean_over_indices(sides, tangent):
                at = [zeros | side | {k: tangent} for side in sides]
                return 0.5 * sum(step.bind(*(a[j] for j in sorted(a))) for a in at)

            return mean_over_indices, sides, operands[k]

        arrays = [k for k, o in enumerate(operands) if isinstance(o, Pair)]
        return secant(
            step.bind(*map(stopped, operands)),
            step.bind(*map(at_reference, operands)),
            *(term(k) for k in arrays if k not in indices),
        )

    return rule


# --------------------------------------------------------------- the path rule


def path(step: Step, *operands: Any, binder: Callable | None = None) -> Any:
    """Any differentiable step: `M = ∫ J(a0 + t (a - a0)) dt` along the straight path.

    By Gauss-Legendre quadrature with `NODES` points over the primitive's own
    derivative: exact for polynomials up to degree `2 NODES`, spectrally accurate for
    what is smooth between the two points. `binder`, given the operands at the input,
    returns the function to use in place of the step (an eigenvector in one gauge).
    """
    binder = binder or (lambda _: step.bind)
    players = [k for k, o in enumerate(operands) if _has_tangent(o)]
    bind = binder([stopped(o) for o in operands])
    xs = bind(*map(stopped, operands))
    rs = bind(*map(at_reference, operands))
    several = step.primitive.multiple_results
    xs, rs = (xs, rs) if several else ([xs], [rs])
    floats = [k for k, x in enumerate(xs) if not is_discrete(x)]

    def derivative(ends, *tangents):
        bind = binder(ends[0])  # as above, but of what JAX hands to the tangent map

        def at(node):
            t, weight = node

            def outputs(*values):
                at_node = dict(zip(players, values, strict=True))
                filled = [at_node.get(k, o) for k, o in enumerate(ends[0])]
                outs = bind(*filled)
                return [(outs if several else [outs])[k] for k in floats]

            points = [
                # What is infinite at both points stays so.
                r + t.astype(x.dtype) * jnp.where(x == r, 0, x - r)
                for x, r in ((ends[0][k], ends[1][k]) for k in players)
            ]
            _, slopes = jax.jvp(outputs, points, list(tangents))
            return [weight.astype(s.dtype) * s for s in slopes]

        return [s.sum(0) for s in jax.vmap(at)(tuple(map(jnp.asarray, _PATH)))]

    if players and floats:
        ends = [[f(o) for o in operands] for f in (stopped, at_reference)]
        attached = attach(
            [xs[k] for k in floats],
            Partial(derivative, ends),
            [operands[k].source for k in players],
        )
        xs = list(xs)
        for k, x in zip(floats, attached, strict=True):
            xs[k] = x
    pairs = [still(x, r) for x, r in zip(xs, rs, strict=True)]
    return pairs if several else pairs[0]


NODES = 16
_PATH = tuple(np.polynomial.legendre.leggauss(NODES) * np.array([[0.5], [0.5]]))
_PATH = (_PATH[0] + 0.5, _PATH[1])


def _has_tangent(operand: Any) -> bool:
    return isinstance(operand, Pair) and not is_discrete(operand.r)


# ----------------------------------------------------------- elementwise steps

COMPARISONS = frozenset((P.eq_p, P.ne_p, P.lt_p, P.le_p, P.gt_p, P.ge_p))
LINEAR = frozenset((P.add_p, P.sub_p, P.add_jaxvals_p, P.convert_element_type_p))
SUMS = frozenset(existing("polynomial"))
AFFINE = LINEAR | {P.neg_p, P.mul_p, P.div_p, P.copy_p, P.reduce_precision_p}
_BOTH = {P.add_p, P.add_jaxvals_p, P.convert_element_type_p, P.copy_p, P.max_p, P.min_p}
_BOTH |= {P.clamp_p, P.tanh_p, P.logistic_p, P.erf_p, P.atan_p, P.asinh_p}
_TOTAL = {P.sub_p, P.neg_p, P.abs_p, P.erfc_p, P.sin_p, P.cos_p, P.mul_p, P.square_p}
TRAITS = {  # what is known of a primitive, in each of its operands
    "total": _BOTH | _TOTAL,
    "increasing": _BOTH | {P.exp_p, P.expm1_p, P.log_p, P.log1p_p, P.sqrt_p},
}


@lazy
def elementwise(step: Step, *operands: Any) -> Varying:
    """A step of an activation while all that varies in it is one pair.

    Of several pairs it is a step of its own: by the two-player Shapley average
    `M_u = ½ [D_u(u, u0; v) + D_u(u, u0; v0)]`, the same for v (three players alike).
    """
    if any(_is_complex(o) for o in operands if isinstance(o, Varying)):
        return _complex(step, *map(settle, operands))
    players = _one_shape(step, operands)
    if one_root(players):
        return extend(step, players)
    if step.primitive in COMPARISONS:
        return _compare(step, *map(settle, players))
    if (
        step.primitive in LINEAR
        and step.primitive not in STEPS
        and not is_discrete(step.eqn.outvars[0].aval)
    ):
        return linear(step, *map(settle, players))
    return _players(step, players, any(_is_broadcast(step, o) for o in operands))


def _is_complex(operand: Any) -> bool:
    return jnp.iscomplexobj(
        operand.values[0] if isinstance(operand, Piece) else operand.r
    )


def _complex(step: Step, *operands: Any) -> Pair:
    """A step of complex numbers: as of real ones, a modulus, or by the path rule.

    `|a| - |b| = Re((a - b) conj(a + b)) / (|a| + |b|)`.
    """
    varying = [isinstance(o, Pair) for o in operands]
    if step.primitive is P.abs_p:
        (z,) = operands
        value, reference = step.bind(z.value), step.bind(z.r)
        size = value + reference
        unit = jnp.conj(z.value + z.r) / jnp.where(size == 0, 1, size)
        return secant(value, reference, (lambda w, t: (w * t).real, unit, z))
    if (
        step.primitive in LINEAR | {P.neg_p, P.copy_p}
        or step.primitive is P.div_p
        and (not varying[1])
    ):
        return linear(step, *operands)
    if step.primitive is P.mul_p:
        return bilinear(step, *operands)
    if step.primitive is P.div_p:
        return _complex_quotient(step, *operands)
    return path(step, *operands)


def _complex_quotient(step: Step, *operands: Any) -> Pair:
    """`d(u/v) = du (1/v + 1/v0)/2 - dv (u + u0)/2 / (v v0)`."""
    (u, v), (u0, v0) = (map(side, operands) for side in (stopped, at_reference))
    weights = 0.5 / v + 0.5 / v0, -(0.5 * u + 0.5 * u0) / v / v0
    rows = zip(weights, operands, strict=True)
    terms = ((scale, w, o) for w, o in rows if isinstance(o, Pair))
    return secant(step.bind(u, v), step.bind(u0, v0), *terms)


def one_root(operands: Sequence) -> bool:
    """Whether all that varies is a function of one and the same pair."""
    roots = {id(root_of(o)) for o in operands if isinstance(o, Varying)}
    return len(roots) == 1


def _one_shape(step: Step, operands: Sequence) -> list:
    """Broadcast what varies to the shape of the output, where it has another."""
    return [
        broadcast(settle(operand), step.eqn.outvars[0].aval)
        if isinstance(operand, Varying) and shape_of(operand) != step.out_shape
        else operand
        for operand in operands
    ]


def broadcast(pair: Pair, aval: Any) -> Pair:
    """A pair in a larger shape, and where what has it is."""

    def larger(array):
        return _compat.placed_like(jnp.broadcast_to(array, aval.shape), aval)

    return jax.tree.map(larger, pair)


def extend(step: Step, operands: Sequence) -> Piece:
    """One more step of an activation."""
    return Extension(step, as_pieces(operands))


class Extension(Piece):
    """One more step of an activation: `d F = sum_i D_i dF_i` over its operands."""

    def __init__(self, step: Step, operands: Sequence):
        self.players = [k for k, o in enumerate(operands) if isinstance(o, Piece)]
        pieces = [operands[k] for k in self.players]
        order = max(piece.order for piece in pieces)
        affine = step.primitive in AFFINE and len(pieces) == 1
        affine = affine and not (step.primitive is P.div_p and self.players[0] > 0)
        if not affine:
            order = 2 if order or len(pieces) > 1 else 1
        jumps = step.primitive in STEPS
        known = {trait for trait, those in TRAITS.items() if step.primitive in those}
        power = step.primitive is P.integer_pow_p and step.params["y"] >= 0
        known |= {"total"} if affine or power else set()
        traits = frozenset(known).intersection(*(piece.traits for piece in pieces))
        super().__init__(step, operands, 1 if jumps else order, traits, jumps)

    def difference(self, k: int) -> Slope:
        """The chain rule."""
        a, b = ([_wide(v) for v in self.at(n)] for n in self.root.intervals[k])
        rows = zip(in_turn(self.step, a, b, self.players), self.pieces, strict=True)
        return add(*(scale(d, piece.slope(k)) for d, piece in rows))


def _wide(value: Any) -> Any:
    return value if is_discrete(value) else wide(value)


def in_turn(step: Step, a: Sequence, b: Sequence, players: Sequence[int]) -> list:
    """The divided differences in operands that are all functions of one pair.

    In whatever order they move from `b` to `a`, the sum is exact. Of two it is the
    order whose value halfway is the smaller one: of a product or a quotient it is at
    most the larger of the values at the ends, so nothing cancels but what cancels in
    the function. (The mean over both orders of `e^x / (1 + e^x)` has terms like `e^x`.)
    """
    if len(players) != 2 or step.primitive in LINEAR | SUMS:
        return [shapley(step, k, a, b, players) for k in players]

    def halfway(moved):
        return [a[k] if k == moved else v for k, v in enumerate(b)]

    one, other = map(halfway, players)
    smaller = abs(step.bind(*one)) <= abs(step.bind(*other))
    # While either operand moves, the other one is where it is halfway.
    held = [jnp.where(smaller, u, v) for u, v in zip(one, other, strict=True)]
    return [
        _partial(step, k, a[k], b[k], [v for n, v in enumerate(held) if n != k])
        for k in players
    ]


def shapley(step: Step, player: int, a: Sequence, b: Sequence, players: Sequence[int]):
    """The divided difference in one operand, averaged over where the others are.

    Over every subset of the other players that is at `a` already, weighted as in
    Shapley (1953); for one player it is D itself, for two the mean over the other's
    two values.
    """
    if step.primitive in SUMS and len(players) > 1:
        return _of_a_sum(step, player, a, b)
    others = [k for k in players if k != player]
    rows = [k for k in range(len(a)) if k != player]
    total = 0.0
    for arrived in itertools.product((False, True), repeat=len(others)):
        moved = dict(zip(others, arrived, strict=True))
        rest = [a[k] if moved.get(k, True) else b[k] for k in rows]
        weight = 1 / (math.comb(len(others), sum(arrived)) * len(players))
        d = _partial(step, player, a[player], b[player], rest)
        total = d if weight == 1 else total + weight * d
    return total


def _of_a_sum(step: Step, player: int, a: Sequence, b: Sequence) -> Any:
    """Shapley values of `sum_k c_k x^k`, a sum of games of two players each."""
    halfway = [0.5 * u + 0.5 * v for u, v in zip(a, b, strict=True)]
    if player == 0:
        return _partial(step, 0, a[0], b[0], halfway[1:])
    powers = (
        _partial(step, player, a[player], b[player], [x, *halfway[2:]])
        for x in (a[0], b[0])
    )
    return 0.5 * sum(powers)


def _partial(step: Step, player: int, a: Any, b: Any, rest: list) -> Any:
    rows = DIFFERENCES.get(step.primitive)
    if rows is not None and not is_discrete(a):
        if rows[player] is None:
            raise unsupported(step.eqn, f"operand {player} of ")
        return rows[player](a, b, *rest, **step.params)

    def value(point):
        return step.bind(*rest[:player], point, *rest[player:])

    # Integers and booleans: values are exact and so is their quotient.
    return quotient(number(value(a)), number(value(b)), number(a), number(b), 0.0)


def _compare(step: Step, u: Any, v: Any) -> Piece:
    """A comparison of two varying values: a step function of their difference."""
    du, dv = (
        Pair(o.source, jnp.asarray(o.r, o.source.dtype)) if isinstance(o, Pair) else o
        for o in (u, v)
    )
    root = Pair(at_input(du) - at_input(dv), at_reference(du) - at_reference(dv))
    values = step.bind(stopped(u), stopped(v)), step.bind(u.r, v.r)
    return Given(None, [piece_of(root), *values])


def _players(step: Step, operands: Sequence, broadcast: bool) -> Pair:
    """A step of several pairs; an activation passes its multipliers on to its root.

    Its weights are made before its value, to be kept for the way back, unless what one
    of them consists of is smaller: an operand that came by a broadcast.
    """
    operands = [_to_root(operand) for operand in operands]
    value, reference, weights = once(_shares, step, operands)
    for weight in weights:
        if not broadcast and not isinstance(weight, tuple):
            value = after(weight, value)
    roots = [operand.root for operand in operands if isinstance(operand, Piece)]
    terms = (root.term(w) for root, w in zip(roots, weights, strict=True))
    return secant(value, reference, *terms)


def _is_broadcast(step: Step, operand: Any) -> bool:
    if not isinstance(operand, Varying):
        return False
    origin = step.context.origin(operand)
    made_larger = origin is not None and origin.eqn.primitive is P.broadcast_in_dim_p
    return made_larger or shape_of(operand) != step.out_shape


def _shares(step: Step, *operands: Any) -> tuple:
    """The values of a step of several pairs, and the multipliers of each."""
    players = [k for k, o in enumerate(operands) if isinstance(o, Piece)]
    xs, rs = (
        [o.values[n] if isinstance(o, Piece) else o for o in operands] for n in (0, 1)
    )
    a, b = ([_wide(v) for v in side] for side in (xs, rs))

    def share(k):
        slope, piece = shapley(step, k, a, b, players), operands[k]
        return jax.tree.map(functools.partial(scale, slope), piece.root.weights(piece))

    return step.bind(*xs), step.bind(*rs), [share(k) for k in players]


def hypot(step: Step, *operands: Any) -> Pair:
    """`h = sqrt(u^2 + v^2)`: `dh = ((u + u0) du + (v + v0) dv) / (h + h0)`.

    JAX scales both operands by a power of two that depends on them, or divides by the
    larger one: by way of these, parts of any size would have to cancel.
    """
    settled = [settle(operand) for operand in operands]
    h, h0 = (step.bind(*map(side, settled))[0] for side in (stopped, at_reference))

    def share(pair):
        u, u0 = (v.astype(h.dtype) for v in (number(pair.value), number(pair.r)))
        return (0.5 * u + 0.5 * u0) / (0.5 * h + 0.5 * h0)

    pairs = [o for o in _one_shape(step, settled) if isinstance(o, Pair)]
    return secant(h, h0, *((scale, share(pair), pair) for pair in pairs))


def _to_root(operand: Any) -> Any:
    """An activation as it is, a pair as the function that returns it.

    A discrete one of several parts is a value without parts, whose carrier moves.
    """
    if isinstance(operand, Piece):
        if not is_discrete(operand.aval) or type(operand.root) is Pair:
            return operand
        operand = operand.pair
    return piece_of(operand) if isinstance(operand, Pair) else operand


# ------------------------------------------------------- switches on the input


@lazy
def select(step: Step, predicate: Any, *cases: Any) -> Varying:
    """`select_n`: linear in its cases; a varying predicate is a switch.

    Inside an activation, where the two points take different cases, the slope is the
    quotient of the selected values, unless the one slope says the same. Elsewhere see
    `choose`.
    """
    shapes = {shape_of(o) for o in (predicate, *cases) if isinstance(o, Varying)}
    if one_root((predicate, *cases)) and shapes == {step.out_shape}:
        return Selection(step, as_pieces((predicate, *cases)))
    if _is_of_a_branch(step, predicate, cases):
        taken = settle(predicate)
        return given_to_branch(taken.value | taken.r, settle(cases[1]))
    predicate, settled = settle(predicate), [settle(case) for case in cases]
    if not isinstance(predicate, Pair):
        return linear(step, predicate, *settled, indices=(0,))
    return choose(predicate, settled, step.bind)


def _is_of_a_branch(step: Step, predicate: Any, cases: Sequence) -> bool:
    """Whether this is what vmap gives to a branch: `select(index == k, stop(v), v)`.

    Of a `cond` it makes branches that are all evaluated and a selection among them;
    what is given to a branch it stops where the branch is not selected.
    """
    stopped_case, made = (step.context.origin(o) for o in (cases[0], predicate))
    if made is not None and made.eqn.primitive is P.broadcast_in_dim_p:
        made = step.context.origin(made.operands[0])
    return (
        isinstance(predicate, Varying)
        and isinstance(cases[-1], Varying)
        and stopped_case is not None
        and stopped_case.eqn.primitive is P.stop_gradient_p
        and stopped_case.operands[0] is cases[-1]
        and made is not None
        and made.eqn.primitive is P.eq_p
        and is_discrete(made.eqn.invars[0].aval)
    )


def given_to_branch(taken: Array, operand: Pair) -> Pair:
    """What a branch works on, which is taken at one of the points, or is not.

    Where it is not, nothing comes back of it, whatever its slopes are there.
    """

    def tangent(taken, tangent):
        return jnp.where(taken, tangent, 0)

    return secant(operand.value, operand.r, (tangent, taken, operand))


class Selection(Piece):
    """`select_n` inside an activation: a switch, and the functions that it takes."""

    def __init__(self, step: Step, operands: Sequence):
        pieces = [o for o in operands if isinstance(o, Piece)]
        order = max(1, *(piece.order for piece in pieces))
        traits = frozenset(["total"]).intersection(*(p.traits for p in pieces))
        super().__init__(step, operands, order, traits)

    def difference(self, k: int) -> Slope:
        """Of the function that both points take; where they differ the quotient."""
        i, j = self.root.intervals[k]
        switch, *cases = self.operands
        slopes = [case.slope(k) if isinstance(case, Piece) else 0.0 for case in cases]
        which, before = self.at(i)[0], self.at(j)[0]
        chosen = self.step.bind(which, *(like(d, self.values[i]) for d in slopes))
        if not isinstance(switch, Piece):
            return chosen
        a, b, fa, fb = (wide(v[n]) for v in (self.points, self.values) for n in (i, j))
        # Next to a switch at which the function is continuous their quotient is noise.
        one = accounts(chosen, fa, fb, a, b, within=4 * jnp.finfo(fa.dtype).eps)
        return jnp.where((which == before) | one, chosen, self.quotient(k, chosen))


def choose(index: Pair, cases: Sequence, bind: Callable) -> Pair:
    """One of several varying cases by an index that varies too.

    A boolean is a number, 0 or 1: `p*b + (1-p)*a` with the rule for products, so
    `M_p = mid(b) - mid(a)` where it flips, and the cases get the mean over the two
    indices. An integer among more cases likewise, per unit of the index.
    """
    which, before = index.value, index.r
    numbers, rs = (
        [number(side(case)) for case in cases] for side in (stopped, at_reference)
    )
    dtype = jnp.result_type(numbers[0])

    def share(k):
        hits = (which == k).astype(dtype) + (before == k).astype(dtype)
        return 0.5 * hits

    halfway = [0.5 * x + 0.5 * r for x, r in zip(numbers, rs, strict=True)]
    steps = number(which) - number(before)
    jump = bind(which, *halfway) - bind(before, *halfway)
    jump = jnp.where(steps == 0, 0.0, jump / jnp.where(steps == 0, 1, steps))
    terms = [(scale, share(k), c) for k, c in enumerate(cases) if isinstance(c, Pair)]
    return secant(
        bind(which, *map(stopped, cases)),
        bind(before, *map(at_reference, cases)),
        (scale, jump, index),
        *terms,
    )
