"""Sums of exponentials, recognised in the equations that made them.

JAX has no primitive for softmax, log_softmax and logsumexp. It emits `exp(a - c)`, `c`
a stopped maximum, then a sum over the axes, then a division by the sum (softmax), its
logarithm (logsumexp), or the difference from its logarithm (log_softmax). People write
the same with masks, with guards against division by 0, and with parts twice.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core
from jax.extend.core import primitives as P

from jaxlift._interpret import Origin, Origins
from jaxlift._pieces import shape_of
from jaxlift._shifts import is_guard
from jaxlift._values import Varying, is_discrete

RESHAPES = (P.broadcast_in_dim_p, P.reshape_p, P.squeeze_p, P.convert_element_type_p)


def softmax_of(origins: Origins, numerator: Any, denominator: Any) -> Powers | None:
    """`exp(s) / sum(exp(s))`, recognised, also with factors in both or in the sum."""
    powers = sum_of_powers(origins, denominator, RESHAPES)
    if powers is None or not _aligned(origins, powers, denominator):
        return None
    summed = powers.exponentials, powers.terms
    above = back(origins, numerator)
    return powers if any(equal(origins, above, terms) for terms in summed) else None


def log_softmax_of(origins: Origins, left: Any, right: Any) -> Powers | None:
    """`s - log(sum(exp(s)))`, recognised."""
    logarithm = origin_of(origins, right, P.log_p, RESHAPES)
    powers = logarithm and sum_of_powers(origins, logarithm.operands[0])
    if powers is None or not _aligned(origins, powers, right):
        return None
    return powers if equal(origins, powers.shifted, left) else None


def logsumexp_of(origins: Origins, total: Any, shift: Any) -> Powers | None:
    """`log(sum(exp(s - shift))) + shift`, recognised."""
    logarithm = origin_of(origins, total, P.log_p, RESHAPES)
    powers = logarithm and sum_of_powers(origins, logarithm.operands[0])
    if powers is None or powers.shift is None:
        return None
    shifts = (back(origins, value, RESHAPES) for value in (shift, powers.shift))
    return powers if equal(origins, *shifts) else None


@dataclasses.dataclass(frozen=True)
class Powers:
    """`sum(terms, axes)`, `terms = factors * exponentials`, `exp(operand - shift)`.

    `factors` are fixed (logsumexp's `b`, the mask of a masked softmax), or None for 1.
    `guard`, if there is one, is the small number that is added to the sum.
    """

    total: Origin
    terms: Any
    exponentials: Any
    factors: Any | None
    shifted: Any
    operand: Any
    shift: Any | None
    guard: float | None = None

    @property
    def axes(self) -> tuple[int, ...]:
        """Those that are summed over."""
        return self.total.eqn.params["axes"]

    @property
    def size(self) -> int:
        """How many sums there are."""
        return math.prod(shape_of(self.total.value))

    def has_one(self, origins: Origins) -> bool:
        """Whether one of the terms is known to be 1: the shift is the largest."""
        through = (*RESHAPES, P.stop_gradient_p)
        largest = origin_of(origins, self.shift, P.reduce_max_p, through)
        return (
            largest is not None
            and self.factors is None
            and largest.eqn.params["axes"] == self.axes
            and equal(origins, largest.operands[0], self.operand)
        )


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


def sum_of_powers(
    origins: Origins, value: Any, through: Sequence = (*RESHAPES, P.abs_p)
) -> Powers | None:
    """`sum(factors * exp(s), axes)` in any shape, recognised, also with a guard."""
    value, guard = _guarded(origins, value, through)
    total = origin_of(origins, value, P.reduce_sum_p, through)
    if total is None:
        return None
    terms = back(origins, total.operands[0])
    exponentials, factors = _factors(origins, terms)
    origin = origins.origin(exponentials)
    if origin is None or origin.eqn.primitive is not P.exp_p:
        return None
    (shifted,) = origin.operands
    unshifted = _unshifted(origins, shifted, total.eqn.params["axes"])
    powers = Powers(total, terms, exponentials, factors, shifted, *unshifted)
    if guard is None:
        return powers
    if factors is not None and not is_discrete(factors):
        return None  # of any sign
    if guard.is_floor:  # a sum that has e^0 in it is not as small
        return powers if powers.has_one(origins) else None
    return dataclasses.replace(powers, guard=guard.size)


def _unshifted(origins: Origins, shifted: Any, axes: Sequence[int]) -> tuple:
    """A difference as (operand, shift), if the shift is constant along the axes."""
    difference = origin_of(origins, shifted, P.sub_p, through=())
    if difference is not None:
        operand, shift = difference.operands
        rank = len(shape_of(shifted))
        if shape_of(operand) == shape_of(shifted) and all(
            _constant_along(origins, shift, axis, rank) for axis in axes
        ):
            return operand, shift
    return shifted, None


@dataclasses.dataclass(frozen=True)
class _Guard:
    """What small number keeps a sum from being 0: as a floor, or added to it."""

    size: float
    is_floor: bool


def _guarded(
    origins: Origins, value: Any, through: Sequence
) -> tuple[Any, _Guard | None]:
    """A value, and its guard if it has one."""
    for primitive in (P.add_p, P.max_p):
        origin = origin_of(origins, value, primitive, through)
        for one, other in itertools.permutations(origin.operands) if origin else ():
            small = back(origins, other, RESHAPES)
            if _is_literal(small) and is_guard(small):
                return one, _Guard(float(np.max(small)), primitive is P.max_p)
    return value, None


def _aligned(origins: Origins, powers: Powers, value: Any) -> bool:
    """Whether a value made of the sum has been broadcast back along the summed axes.

    Sums over the rows of a square matrix may as well be broadcast along its columns.
    """
    axes, rank = _axes(origins, powers.total, value), len(shape_of(powers.exponentials))
    return not axes or (
        len(axes) == rank
        and all(
            axis == k or (axis is None and (k in powers.axes or size == 1))
            for k, (axis, size) in enumerate(zip(axes, shape_of(value), strict=True))
        )
    )


def _axes(origins: Origins, total: Origin, value: Any) -> list[int | None]:
    """For each axis of a value made of a sum the axis of what was summed.

    None for an axis of size 1, and for one that came by a broadcast.
    """
    sizes = shape_of(value)
    if value is total.value:
        summed, shape = total.eqn.params["axes"], shape_of(total.operands[0])
        kept = [k for k in range(len(shape)) if k not in summed]
        return [k if shape[k] != 1 else None for k in kept]
    origin = origins.origin(value)
    assert origin is not None  # the sum was found on this way
    varying = (
        o for o in origin.operands if not _is_literal(back(origins, o, RESHAPES))
    )
    axes = _axes(origins, total, next(varying))
    if origin.eqn.primitive is P.broadcast_in_dim_p:
        places = origin.eqn.params["broadcast_dimensions"]
        came_from = dict(zip(places, axes, strict=True))
        return [came_from.get(k) for k in range(len(sizes))]
    if origin.eqn.primitive in (P.reshape_p, P.squeeze_p):
        # Axes of size 1 come and go; a reshape of others mixes them up.
        before = shape_of(origin.operands[0])
        same = [n for n in before if n != 1] == [n for n in sizes if n != 1]
        left = (a if same else -1 for a, n in zip(axes, before, strict=True) if n != 1)
        return [next(left, -1) if n != 1 else None for n in sizes]
    return axes


def _factors(origins: Origins, value: Any) -> tuple[Any, Any]:
    """A value as (exponentials, fixed factors): a masked one, or a product."""
    origin = origins.origin(value)
    if origin is None or isinstance(value, core.Var):
        return value, None
    if origin.eqn.primitive is P.mul_p:
        u, v = origin.operands
        for factors, powers in ((u, v), (v, u)):
            if not isinstance(factors, Varying):
                return powers, _as_mask(origins, factors)
        return value, None
    if origin.eqn.primitive is P.select_n_p and len(origin.operands) == 3:
        predicate, first, second = origin.operands
        if not isinstance(predicate, Varying) and is_discrete(predicate):
            if is_zero(origins, first):
                return back(origins, second), predicate
            if is_zero(origins, second):
                return back(origins, first), jnp.logical_not(predicate)
    return value, None


def _as_mask(origins: Origins, factors: Any) -> Any:
    """Factors that are known to be a mask, 0 or 1, as booleans."""
    source = back(origins, factors, RESHAPES)
    boolean = jnp.issubdtype(jnp.result_type(source), bool)
    known = not isinstance(source, Tracer | core.Var)
    if boolean or (known and np.isin(source, (0, 1)).all()):
        return jnp.asarray(factors) != 0
    return factors


# ------------------------------------------------------------- how values came about


def back(origins: Origins, value: Any, through=(P.convert_element_type_p,)) -> Any:
    """The value before the given kinds of equation; a cast to integers is a step."""
    while (
        (origin := origins.origin(value))
        and origin.eqn.primitive in through
        and jnp.issubdtype(origin.eqn.outvars[0].aval.dtype, jnp.inexact)  # pyright: ignore
    ):
        value = origin.operands[0]
    return value


def origin_of(
    origins: Origins,
    value: Any,
    primitive: core.Primitive,
    through: Sequence,
) -> Origin | None:
    """The equation of a primitive that made a value, behind the given kinds."""
    origin = origins.origin(back(origins, value, through))
    return origin if origin and origin.eqn.primitive is primitive else None


def _is_literal(value: Any) -> bool:
    return not isinstance(value, jax.Array | Varying | core.Var)


def is_zero(origins: Origins, value: Any) -> bool:
    """Whether a value is a literal 0, in any shape and dtype."""
    value = back(origins, value, RESHAPES)
    return _is_literal(value) and not np.any(np.asarray(value))


def equal(origins: Origins, one: Any, other: Any) -> bool:
    """Whether two values are one, or were made alike of the same values.

    `exp(x - max(x)) / sum(exp(x - max(x)))` has all but the sum twice.
    """
    waiting, seen = [(one, other)], set()
    while waiting:
        pair = waiting.pop()
        names = tuple(map(id, pair))
        if pair[0] is pair[1] or names in seen:
            continue
        seen.add(names)
        made, made_again = map(origins.origin, pair)
        if made is None or made_again is None:
            if not (all(map(_is_literal, pair)) and np.array_equal(*pair)):
                return False
            continue
        if not _made_alike(made, made_again):
            return False
        waiting += zip(made.operands, made_again.operands, strict=True)
    return True


def _made_alike(one: Origin, other: Origin) -> bool:
    """Whether two values are the same output of the same equation."""
    first, second = one.eqn, other.eqn
    return (
        first.primitive is second.primitive
        and one.position == other.position
        and not first.effects
        and first.params.keys() == second.params.keys()
        and all(_is_same(v, second.params[k]) for k, v in first.params.items())
    )


def _is_same(one: Any, other: Any) -> bool:
    """Equality of parameters, some of which are arrays."""
    return one is other or bool(np.all(one == other))
