"""RevealCancel: what pushed a value up, kept apart from what pushed it down.

A `Split` carries `pos >= 0 >= neg` with `v = v0 + pos + neg`, and its two parts
receive two multipliers. Both are ordinary JAX values that carry their own tangents, so
every rule here is a forward formula, and the way back is JAX's transposition of it.

* A product with fixed weights opens a split (the Linear rule, `opening`).
* Steps that only add and move keep the parts apart; `M+` of any other step sends a
  part to the same side, `M-` to the other one (`Split.secant`).
* An activation gives each part its two-player Shapley value (`Split.close`).

Source: Shrikumar et al. 2017, sections 3.4, 3.5.1, 3.5.3 and appendix; for activations
that are not monotone the paper leaves open where an impact of the opposite sign goes:
here it crosses to the other part.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as P
from jax.tree_util import Partial

from jaxlift._compat import existing
from jaxlift._differences import wide
from jaxlift._interpret import Step
from jaxlift._pieces import Piece
from jaxlift._rules import bilinear, on_floats
from jaxlift._values import (
    Array,
    Pair,
    Slope,
    add,
    at_reference,
    attach,
    is_discrete,
    narrow,
    number,
    scale,
    secant,
    stopped,
)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["at", "r", "pos", "neg"],
    meta_fields=[],
)
class Split(Pair):
    """A pair whose difference is known in two parts, `pos >= 0 >= neg`.

    `at`, the value, has no tangent; `pos` and `neg` have one each. To a rule that knows
    nothing of parts it is a pair, whose parts both get the multiplier of the whole.
    """

    # Up from the reference and down to the input, down and up, and the whole way.
    intervals = ((2, 1), (0, 3), (3, 1), (0, 2), (0, 1))
    rank = 1
    carrier = None

    def __init__(self, at: Array, r: Array, pos: Array, neg: Array):
        self.at, self.r, self.pos, self.neg = at, r, pos, neg

    @classmethod
    def of(cls, pair: Pair) -> Split:
        """A pair by the sign of its difference.

        Its multiplier is that of the part which is there, at no difference the mean.
        """
        if isinstance(pair, Split):
            return pair
        source = pair.source  # of a boolean or an integer the float that carries it
        difference = lax.stop_gradient(source) - jnp.asarray(pair.r, source.dtype)

        def part(sign):
            # Where a branch that is not taken is infinite or NaN nothing has moved.
            there, absent = sign * difference > 0, sign * difference < 0
            share = jnp.where(there, 1.0, jnp.where(absent, 0.0, 0.5))
            share = share.astype(source.dtype)
            size = jnp.where(there, difference, 0)
            return attach(size, Partial(scale, share), (source,))

        return cls(pair.value, pair.r, part(1), part(-1))

    @property
    def value(self) -> Array:
        """The value at the input, its tangent stopped."""
        return self.at

    @property
    def x(self) -> Array:
        """The value at the input with the tangent of both parts."""
        return attach(self.at, Partial(add), (self.pos, self.neg))

    @property
    def parts(self) -> tuple[Array, Array]:
        """The two parts without their tangents."""
        return lax.stop_gradient((self.pos, self.neg))

    def seeded(self, seeds: tuple[Array, Array]) -> Split:
        """The same split, each part of which moves with its seed as well."""
        moved = [
            attach(size, Partial(add), (part, seed))
            for size, part, seed in zip(
                self.parts, (self.pos, self.neg), seeds, strict=True
            )
        ]
        return Split(self.at, self.r, *moved)

    @property
    def points(self) -> tuple[Array, ...]:
        """The input, the reference, and the reference moved by either part.

        The latter from the end that is nearer, where rounding is the smaller.
        """
        (pos, neg), x, r = self.parts, self.value, self.r
        rises = pos >= -neg
        return (
            x,
            r,
            jnp.where(rises, x - neg, r + pos),
            jnp.where(rises, r + neg, x - pos),
        )

    @staticmethod
    def weights(piece: Piece) -> Slope | tuple[Slope, Slope]:
        """The Shapley values of the two parts per unit of each (paper, section 3.5.3).

        `m_pos = ½ [D(r+p, r) + D(r+p+n, r+n)]`,
        `m_neg = ½ [D(r+n, r) + D(r+p+n, r+p)]`:

        means over the two orders in which the parts may move, `up` or `down` first. Of
        an affine function all four are one.
        """
        return _over_orders(piece) if piece.order else piece.slope(0)

    def term(self, weights: Slope | tuple[Slope, Slope]) -> tuple[Callable, Any, Split]:
        """What a function with these `weights` takes of this split, for `secant`."""
        return turned if isinstance(weights, tuple) else scale, weights, self

    def close(self, piece: Piece, value: Array, reference: Array, weights: Any) -> Pair:
        """An activation: each part with its Shapley value."""
        rises = {"increasing", "total"} <= piece.traits
        if is_discrete(value) or not (rises and isinstance(weights, tuple)):
            return secant(value, reference, self.term(weights))
        parts = zip(weights, (self.pos, self.neg), strict=True)
        parts = (scale(narrow(w, value), part) for w, part in parts)
        return Split(value, reference, *(part.astype(value.dtype) for part in parts))

    @staticmethod
    def moving(pair: Pair) -> tuple[Array, ...]:
        """The value, and both parts."""
        split = Split.of(pair)
        return split.at, split.pos, split.neg

    @classmethod
    def joined(cls, moving: Sequence[Array], r: Array) -> Pair:
        """A split of what `moving` returned, and its reference."""
        at, pos, neg = moving
        return Split(at, r, pos, neg)

    @classmethod
    def secant(cls, value: Array, reference: Array, terms: Sequence[tuple]) -> Pair:
        """`M+` of every term to the same part, `M-` to the other one."""
        if is_discrete(value) or any(
            jnp.iscomplexobj(leaf) for _, w, _ in terms for leaf in jax.tree.leaves(w)
        ):
            rows = [row for term in terms for row in _part_by_part(*term)]
            return Pair.secant(value, reference, rows)
        rows = [(m, w, cls.of(operand)) for m, w, operand in terms]
        if all(m in (scale, turned) or not _has_sign(w) for m, w, _ in rows):
            sides = zip(*(_both_sides(*row) for row in rows), strict=True)
            return cls(value, reference, *(add(*s).astype(value.dtype) for s in sides))
        y = Pair.secant(value, reference, rows).x
        sizes = (m(_size(w), split.pos - split.neg) for m, w, split in rows)
        return cls.opened(y, reference, add(*sizes))

    @classmethod
    def opened(cls, y: Array, reference: Array, size: Array) -> Split:
        """The parts of `y` by how far they are apart: `size = pos - neg >= 0`.

        `pos = (dy + size) / 2`, `neg = (dy - size) / 2`. `y` moves with the operands
        by the multipliers, `size` with their sizes by the multipliers' absolute
        values: two products for each operand, each way, where parts one by one with
        `M+` and `M-` would take four.
        """
        value, apart = lax.stop_gradient((y, size.astype(y.dtype)))
        dy = jnp.where(value == reference, 0, value - reference)
        # A part that should vanish is rounding noise: clamped to its sign.
        pos = attach(jnp.maximum(dy + apart, 0) / 2, Partial(_mean), (y, size))
        neg = attach(
            jnp.minimum(dy - apart, 0) / 2, Partial(_half_difference), (y, size)
        )
        return cls(value, reference, pos, neg)

    @classmethod
    def linear(cls, step: Step, operands: Sequence, indices: Sequence[int]) -> Any:
        """A step that adds and moves: each part on its own.

        What is subtracted comes with its parts swapped.
        """
        atoms = (*step.eqn.invars, *step.eqn.outvars)
        if any(jnp.iscomplexobj(atom.aval) for atom in atoms):
            return Pair.linear(step, operands, indices)

        subtracted = _SUBTRACTED.get(step.primitive)

        def part(own, other):
            chosen = [
                getattr(cls.of(o), other if k == subtracted else own)
                if isinstance(o, Pair)
                else o
                if k in indices or is_discrete(o)
                else jnp.zeros_like(o)
                for k, o in enumerate(operands)
            ]
            return step.bind(*chosen)

        sides = (
            step.bind(*map(stopped, operands)),
            step.bind(*map(at_reference, operands)),
            part("pos", "neg"),
            part("neg", "pos"),
        )
        if not step.primitive.multiple_results:
            return cls(*sides)
        return [cls(*rows) for rows in zip(*sides, strict=True)]


_SUBTRACTED = {P.sub_p: 1} | dict.fromkeys(existing("scatter_sub"), 2)
"""The operand that a linear step takes away from another."""


def _over_orders(piece: Piece) -> tuple[Slope, Slope]:
    """The slopes over either part, each the mean over the orders that are defined.

    The value halfway may not be finite (a variance may be negative there, an exponent
    too large) unless the function is total. Where neither order is defined, both parts
    get the slope of the whole way. The mean is a quotient on purpose: what ends in a
    division XLA keeps for the way back, what ends in a sum it would evaluate again,
    from all that it consists of.
    """
    up, up_last, down, down_last = map(piece.best_slope, range(4))
    if "total" in piece.traits:
        count = 2
        up, down = up + up_last, down + down_last
    else:
        ways = [(up, down_last), (up_last, down), (piece.best_slope(4),) * 2]
        defined = [jnp.isfinite(sum(way)) for way in ways[:2]]
        defined.append(~(defined[0] | defined[1]))
        count = sum(ok.astype(jnp.result_type(up)) for ok in defined)
        up, down = (
            sum(jnp.where(ok, slope, 0) for ok, slope in zip(defined, way, strict=True))
            for way in zip(*ways, strict=True)
        )
    risen, fallen = piece.points[2:]
    multiplier = functools.partial(_multiplier, piece, count)
    return multiplier(up, risen), multiplier(down, fallen)


def _multiplier(piece: Piece, count: Any, total: Array, moved: Array) -> Array:
    """The multiplier of a part, bounded where this part is not there but the other is.

    By a multiple of the slope of the whole way, which is the other part's own. The
    multiplier may be many times as large where a function saturates (from -800 to 1 a
    relu has a slope of 1/801 up, and of 1/2 down) or next to a singularity (the
    logarithm of counts and a pseudocount, at no counts). What it multiplies is nothing,
    but a sum and a difference of both multipliers is what goes back through a product
    (see `opening`): rounding would leave nothing of the smaller one.
    """
    x, r, moved = map(wide, (*piece.points[:2], moved))
    fx, fr = (wide(number(v)) for v in piece.values[:2])
    eps = jnp.finfo(fx.dtype).eps
    rise = abs(fx - fr) + eps * (abs(fx) + abs(fr))  # more than rounding may hide
    run, most = abs(x - r), eps**-0.2 * rise
    exceeds = (moved == r) & (abs(total) * run > most)
    total = jnp.where(exceeds, jnp.sign(total) * most, total)
    return total / (count * jnp.where(exceeds, run, 1))


def _part_by_part(linear_map: Callable, weight: Any, operand: Any) -> list[tuple]:
    """A term for a value without parts: each part of a split is one of its own."""
    if linear_map is not turned:
        return [(linear_map, weight, operand)]
    parts = (Pair(part, operand.r) for part in (operand.pos, operand.neg))
    return [(scale, w, part) for w, part in zip(weight, parts, strict=True)]


@functools.partial(jax.checkpoint, prevent_cse=False)
def turned(weights: tuple[Slope, Slope], pos: Array, neg: Array) -> tuple[Array, Array]:
    """Two parts, each times a weight of its own: what goes up and what goes down.

    A part stays what it is with a positive weight, with a negative one it is turned. Of
    the weights nothing but themselves is kept for the way back.
    """
    (up, down), (turn_up, turn_down) = (
        [sign(w, 0) for w in weights] for sign in (jnp.maximum, jnp.minimum)
    )
    return up * pos + turn_down * neg, down * neg + turn_up * pos


def _both_sides(linear_map: Callable, weight: Any, split: Split) -> tuple[Array, Array]:
    """What of a term goes up and what goes down: `M+` of a part stays, `M-` crosses.

    Of a factor nothing but its sign is made: the way back keeps what it is made of.
    """
    parts = split.pos, split.neg
    if linear_map is turned:
        # An infinite slope (sqrt at 0) of what did not move: no impact.
        sizes = split.parts
        there = (jnp.where(p == 0, 0, w) for w, p in zip(weight, sizes, strict=True))
        return attach(turned(tuple(there), *sizes), Partial(turned, weight), parts)
    if linear_map is scale:  # whose weight has the shape of the tangent
        if isinstance(weight, float) and weight >= 0:
            return scale(weight, split.pos), scale(weight, split.neg)
        stays = weight >= 0
        pos, neg = (jnp.where(stays, *those) for those in (parts, parts[::-1]))
        return scale(weight, pos), scale(weight, neg)
    # Indices alone, which only move and never turn.
    return linear_map(weight, split.pos), linear_map(weight, split.neg)


def _has_sign(weight: Any) -> bool:
    """Whether a weight is more than indices."""
    return not all(map(is_discrete, jax.tree.leaves(weight)))


def _size(weight: Any) -> Any:
    """The absolute value of a weight, or of all the weights that a map is linear in."""
    return jax.tree.map(lambda w: w if is_discrete(w) else abs(w), weight)


@on_floats(0, 1)
def opening(step: Step, *operands: Any) -> Pair:
    """The Linear rule: a product with fixed weights opens a split (section 3.5.1).

    With `q = |w| |dx|` the parts are `pos = (dy + q) / 2`, `neg = (dy - q) / 2`, the
    positive and the negative of the `w_i dx_i`, where `dx` is the net difference of
    each input neuron. The derivative of `|dx|` being `sign(dx)`, the way back is
    `m = w' (m_pos + m_neg) / 2 + sign(dx) |w|' (m_pos - m_neg) / 2`: for `dx > 0` what
    the paper calls `w+' m_pos + w-' m_neg`, mirrored for `dx < 0`, half of each at 0.
    """
    varying = [isinstance(operand, Pair) for operand in operands]
    if all(varying) or jnp.issubdtype(step.out_dtype, jnp.complexfloating):
        return bilinear(step, *operands)
    k = varying.index(True)
    pair, weights = operands[k], operands[1 - k]

    def product(factor, weights):
        return step.bind(*((factor, weights) if k == 0 else (weights, factor)))

    difference = pair.value - pair.r
    x = pair.x
    size = attach(abs(difference), Partial(scale, jnp.sign(difference)), (x,))
    y, q = product(x, weights), product(size, abs(weights))
    return Split.opened(y, product(pair.r, weights), q)


opening.opens_split = True  # pyright: ignore[reportFunctionMemberAccess]


def _mean(u: Array, v: Array) -> Array:
    return (u + v) / 2


def _half_difference(u: Array, v: Array) -> Array:
    return (u - v) / 2
