"""The values that the interpreter carries: fixed arrays, pairs, and lazy activations.

A value that does not depend on the attributed input is a plain array. One that does
is `Varying`: a `Pair` (at the input, at the reference), or a `Piece`, an elementwise
function of one pair that nobody has needed as an array yet.

Multipliers travel as JAX tangents of the *input* side alone. A linear step is applied
to both sides and JAX differentiates the input side. A non-linear step computes its
value from arrays whose tangents are stopped and `attach`es the tangent that its rule
prescribes: a linear map of the operands' tangents, which JAX transposes. The
reference side never carries a tangent, so it is evaluated once however many inputs
are explained against it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.tree_util import Partial

Array = Any
Slope = Any  # an array, a Python number where constant, None where discrete


@jax.custom_jvp
def attach(value: Array, tangent_map: Partial, sources: Sequence[Array]) -> Array:
    """`value`, whose tangent is `tangent_map(*tangents of sources)`, nothing else."""
    del tangent_map, sources
    return value


@functools.partial(attach.defjvp, symbolic_zeros=True)
def _attach_jvp(primals, tangents):
    value, tangent_map, sources = primals
    # A value and its weights move in nothing: no zeros are made for them.
    moving = [
        jnp.zeros_like(source) if isinstance(tangent, SymbolicZero) else tangent
        for source, tangent in zip(sources, tangents[2], strict=True)
    ]
    tangent = tangent_map(*moving)
    return value, jax.tree.map(lambda t, v: t.astype(v.dtype), tangent, value)


def after(slope: Slope, value: Array) -> Array:
    """`value`, made after `slope`, so that the slope is what is kept for the way back.

    If it is an array, a slope for each element of the value.

    The slope's one use is on the way back. A compiler would move it there, and keep
    what it is made of: the activation at both points, two arrays for one. So the value
    waits for it, in a test that never holds. (On CPUs a barrier around the slope itself
    changes nothing; one that hides the limit of the test does.) It ends in a division,
    by 1: what ends in a selection XLA would evaluate again in all that uses the value,
    the slope with it.
    """
    each = jnp.ndim(slope) > 0 and jnp.shape(slope) == jnp.shape(value)
    if not each or is_discrete(value):
        return value
    return _after(slope, value)


@functools.partial(jax.jit, inline=True)
def _after(slope, value):
    return _wait(*lax.stop_gradient((slope, value)))


@jax.custom_batching.custom_vmap
def _wait(slope, value):
    limit = lax.optimization_barrier(np.asarray(np.inf, slope.dtype))
    return value / jnp.where(slope > limit, 2, 1).astype(value.dtype)


@_wait.def_vmap
def _wait_vmap(size, batched, slope, value):
    # One value for many slopes (of one input and a set of references) does not wait: it
    # would be made for each of them.
    del size
    return (_wait(slope, value) if all(batched) else value), batched[1]


def is_discrete(value: Any) -> bool:
    """Whether a value is a boolean, an integer or a key: it carries no tangent."""
    return not jnp.issubdtype(jnp.result_type(value), jnp.inexact)


def is_key(value: Any) -> bool:
    """Whether a value is a key of random numbers."""
    return jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key)


class Varying:
    """A value that depends on the attributed input."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["x", "r", "carrier"],
    meta_fields=[],
)
class Pair(Varying):
    """A value at the input, `x`, beside the same value at the reference, `r`.

    A boolean or integer cannot carry a tangent: its `carrier` does, the same number
    as a float (None otherwise). So `x` is the value and `source` what moves with it.
    Carriers are of one dtype, the default float, whatever they came of: they meet each
    other and the numbers of fixed values, in branches and loops that want one type.
    """

    intervals = ((0, 1),)
    rank = 0

    def __init__(self, x: Array, r: Array, carrier: Array | None = None):
        self.x, self.r, self.carrier = x, r, carrier

    @property
    def source(self) -> Array:
        """The array that carries the tangent."""
        return self.x if self.carrier is None else self.carrier

    @property
    def value(self) -> Array:
        """The value at the input, its tangent stopped."""
        return lax.stop_gradient(self.x)

    @property
    def points(self) -> tuple[Array, ...]:
        """The points at which a function of this value has to be known."""
        return self.ends

    @property
    def ends(self) -> tuple[Array, Array]:
        """The value at the input, its tangent stopped, and at the reference."""
        return self.value, self.r

    @property
    def parts(self) -> tuple[Array, Array]:
        """What pushed the value up and what pushed it down, tangents stopped."""
        difference = number(self.value) - number(self.r)
        return jnp.maximum(difference, 0), jnp.minimum(difference, 0)

    def seeded(self, seeds: tuple[Array, Array]) -> Pair:
        """The same pair, which moves with a seed for each part as well."""
        up, down = seeds
        sources = (self.x, up, down)
        return Pair(attach(self.value, Partial(add), sources), self.r)

    @staticmethod
    def weights(piece: Any) -> Any:
        """What `close` has to know of the slopes of a function of such a pair."""
        return narrow(piece.best_slope(0), piece.values[0])

    def term(self, weights: Any) -> tuple[Callable, Any, Pair]:
        """What a function with these `weights` takes of this pair, for `secant`."""
        return scale, weights, self

    def close(self, piece: Any, value: Array, reference: Array, slope: Any) -> Pair:
        """A function of this pair as a pair, by its values and its `weights`."""
        return secant(after(slope, value), reference, self.term(slope))

    @classmethod
    def of(cls, pair: Pair) -> Pair:
        """A pair as one of this kind."""
        return pair

    @staticmethod
    def moving(pair: Pair) -> tuple[Array, ...]:
        """What of a pair carries tangents, or goes with it."""
        return pair.x, pair.carrier

    @classmethod
    def joined(cls, moving: Sequence[Array], r: Array) -> Pair:
        """A pair of what `moving` returned, and its reference."""
        x, carrier = moving
        return Pair(x, r, carrier)

    @classmethod
    def secant(cls, value: Array, reference: Array, terms: Sequence[tuple]) -> Pair:
        """The pair (value, reference) that moves with its terms; see `secant`."""
        maps, weights, operands = zip(*terms, strict=True)
        sources = [operand.source for operand in operands]
        tangent_map = Partial(functools.partial(_total, maps), list(weights))
        if is_discrete(value):
            carrier = attach(number(value), tangent_map, sources)
            return Pair(value, reference, carrier)
        return Pair(attach(value, tangent_map, sources), reference)

    @classmethod
    def linear(cls, step: Any, operands: Sequence, indices: Sequence[int]) -> Any:
        """A linear step at both points, JAX's own derivative of it."""
        xs = step.bind(*map(at_input, operands))
        rs = step.bind(*map(at_reference, operands))
        if not is_discrete(step.eqn.outvars[0].aval):
            carriers = None
        else:  # the same step on the floats that carry the tangents
            carriers = step.among_floats.bind(
                *(
                    o.source
                    if isinstance(o, Pair)
                    else o
                    if k in indices
                    else number(o)
                    for k, o in enumerate(operands)
                )
            )
        if not step.primitive.multiple_results:
            return Pair(xs, rs, carriers)
        carriers = carriers or [None] * len(xs)
        return [Pair(*sides) for sides in zip(xs, rs, carriers, strict=True)]


def kind_of(operands: Sequence) -> type[Pair]:
    """The kind of pair that comes of these operands: the richest among them."""
    pairs = (type(operand) for operand in operands if isinstance(operand, Pair))
    return max(pairs, key=lambda kind: kind.rank)


def still(x: Array, r: Array) -> Pair:
    """A pair that nothing flows through: its input side carries no tangent."""
    return Pair(x, r, number(x) if is_discrete(x) else None)


def number(value: Any) -> Array:
    """A value as a float: of a boolean or an integer the same number, no tangent.

    A key is no number: one that varies is handed on with zeros, up to the first step
    that makes random bits of it, which has no rule.
    """
    if is_key(value):
        return jnp.zeros(jnp.shape(value))
    return lax.stop_gradient(jnp.asarray(value, float)) if is_discrete(value) else value


def at_input(operand: Any) -> Array:
    """A fixed array, or the input side of a pair with its tangent."""
    return operand.x if isinstance(operand, Pair) else operand


def stopped(operand: Any) -> Array:
    """A fixed array, or the input side of a pair without its tangent."""
    return operand.value if isinstance(operand, Pair) else operand


def at_reference(operand: Any) -> Array:
    """A fixed array, or the reference side of a pair."""
    return operand.r if isinstance(operand, Pair) else operand


def add(*tangents: Array) -> Array:
    """The sum of some tangents."""
    return sum(tangents[1:], start=tangents[0])


def scale(slope: Slope, tangent: Array) -> Array:
    """`slope * tangent`, nothing at all where one of them is the number 1."""
    for one, other in ((slope, tangent), (tangent, slope)):
        if isinstance(one, float) and one == 1.0:
            return other
    return slope * tangent


def _total(maps: Sequence[Callable], weights: Sequence[Any], *tangents: Array) -> Array:
    return add(*(m(w, t) for m, w, t in zip(maps, weights, tangents, strict=True)))


def secant(value: Array, reference: Array, *terms: tuple[Callable, Any, Pair]) -> Pair:
    """The pair (value, reference) with tangent `sum(map(weight, tangent of operand))`.

    Each term is `(map, weight, operand)`, `map` linear in the tangent and in the
    weight. Completeness is the terms' business:
    `sum(map(weight, operand.x - operand.r)) == value - reference`.
    """
    if not terms:
        return still(value, reference)
    # An output narrower than float32 stores slopes of its own width.
    terms = tuple(
        (m, jax.tree.map(lambda w: narrow(w, value), weight), operand)
        for m, weight, operand in terms
    )
    return kind_of([operand for *_, operand in terms]).secant(value, reference, terms)


def narrow(weight: Any, value: Array) -> Any:
    """A slope in the dtype of the value whose slope it is."""
    if isinstance(weight, (int, float)) or is_discrete(value) or is_discrete(weight):
        return weight
    return weight if jnp.iscomplexobj(weight) else weight.astype(value.dtype)
