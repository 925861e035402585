"""Lazy activations: elementwise functions of one pair, evaluated when they are needed.

The slope of an activation is found over the whole chain of its equations (Reps and Rall
2003, computational divided differencing: values and differences are carried together,
as duals are). So an equation of it is only noted down, as a `Piece`, until something
that is not elementwise asks for the pair.

Networks repeat their layers: what an activation computes is traced once for every form
that it has, by `once`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxlift import _compat
from jaxlift._differences import accounts, quotient, wide
from jaxlift._values import Array, Pair, Slope, Varying, is_discrete, number, still


class Piece(Varying):
    """An elementwise function of one pair, its `root`: an activation, or a part of one.

    It is a `step` of `operands`, pieces and fixed arrays. `difference(k)` is its
    divided difference over the root's interval `k`. `order` is 0 for an affine
    function, 1 for one non-linear primitive of such or a step of anything, 2 for what
    is composed of several.
    `traits` is what is known of it: `"total"`, finite with its slopes at every number
    that is not huge, `"increasing"`. If it `jumps` (a comparison, a rounding; what is
    discrete does) its slope is the quotient of its values, which are exact.
    """

    static: tuple = ()  # what its class is called with after step and operands
    _values: Sequence[Array]

    def __init__(
        self,
        step: Any,
        operands: Sequence,
        order: int,
        traits: frozenset[str] = frozenset(),
        jumps: bool = False,
    ):
        self.step, self.operands = step, operands
        self.jumps = jumps or is_discrete(self.aval)
        self.order, self.traits = order, frozenset() if self.jumps else traits
        self.slopes: dict[int, Slope] = {}
        self.derivatives: dict[int, Slope] = {}
        for piece in self.pieces[:1]:
            self.root: Any = piece.root  # the pair that it is a function of
            self.points: Sequence[Array] = piece.points  # where the function is known

    @property
    def pieces(self) -> list[Piece]:
        """The operands that vary."""
        return [operand for operand in self.operands if isinstance(operand, Piece)]

    def pending(self, known: Callable[[Piece], bool]) -> Iterator[Piece]:
        """What it is made of and is not known, and itself, operands first.

        Without recursion: there are activations of a thousand steps.
        """
        waiting = [self]
        while waiting:
            piece = waiting[-1]
            missing = [operand for operand in piece.pieces if not known(operand)]
            if missing and not known(piece):
                waiting += missing
                continue
            waiting.pop()
            if not known(piece):
                yield piece

    @property
    def values(self) -> Sequence[Array]:
        """The function at each of the points."""
        for piece in self.pending(lambda piece: "_values" in vars(piece)):
            piece._values = [piece.value(piece.at(n)) for n in range(len(piece.points))]
        return self._values

    def at(self, n: int) -> list:
        """The operands at one of the points."""
        return [o.values[n] if isinstance(o, Piece) else o for o in self.operands]

    def value(self, operands: Sequence) -> Array:
        """The function of its operands."""
        return self.step.bind(*operands)

    @property
    def aval(self) -> Any:
        """Its shape and dtype."""
        return self.step.eqn.outvars[0].aval

    def difference(self, k: int) -> Slope:
        """Its divided difference over the root's interval `k`, unless it jumps."""
        raise NotImplementedError

    def slope(self, k: int) -> Slope:
        """Its divided difference over the root's interval `k`."""
        for piece in self.pending(lambda piece: piece.jumps or k in piece.slopes):
            piece.slopes[k] = piece.difference(k)
        if self.jumps and k not in self.slopes:
            self.slopes[k] = self.quotient(k)
        return self.slopes[k]

    def quotient(self, k: int, otherwise: Slope = 0.0) -> Slope:
        """The quotient of its values over the root's interval `k`, if it is one."""
        i, j = self.root.intervals[k]
        a, b = (wide(number(self.points[n])) for n in (i, j))
        fa, fb = (number(self.values[n]) for n in (i, j))
        return quotient(fa, fb, a, b, otherwise)

    def best_slope(self, k: int) -> Slope:
        """The slope for good, at times the quotient of the values.

        A difference composed by the chain and product rules can cancel between points
        that are far apart (hard_swish between 1 and -776). There neither the points
        nor the values are close to each other and their quotient has no cancellation.

        A function that is not total may blow up the rounding of what it is applied to,
        as log does in `log(1 - logistic(x))`, or leave the slopes of what is infinite
        at one point. Where the slope does not account for the difference of the values,
        to rounding of what they are measured by, it is their quotient; and the
        derivative where the points coincide is that of JAX, which rounds the same way.
        """
        slope = self.slope(k)
        if self.order < 2 or is_discrete(self.aval):
            return slope
        i, j = self.root.intervals[k]
        a, b, fa, fb = (wide(v[n]) for v in (self.points, self.values) for n in (i, j))

        # By halves: the difference of huge opposite values is finite.
        run, rise = 0.5 * a - 0.5 * b, 0.5 * fa - 0.5 * fb

        def apart(u, v, half):
            return abs(half) >= 0.25 * jnp.maximum(abs(u), abs(v))

        chosen = apart(a, b, run) & apart(fa, fb, rise)
        if "total" not in self.traits:
            within = 32 * jnp.finfo(self.aval.dtype).eps
            explained = accounts(slope, fa, fb, a, b, within, least=1)
            chosen |= (abs(rise) < jnp.inf) & ~explained
            derivative = self.derivative(i)
            own = (a == b) & (abs(derivative) < jnp.inf)
            slope = jnp.where(own, derivative, slope)
        chosen &= (run != 0) & (abs(run) < jnp.inf)
        return jnp.where(chosen, rise / jnp.where(chosen, run, 1), slope)

    def derivative(self, n: int) -> Slope:
        """JAX's own derivative at one of the points of the root."""
        for piece in self.pending(lambda piece: n in piece.derivatives):
            piece.derivatives[n] = piece.tangent(n)
        return self.derivatives[n]

    def tangent(self, n: int) -> Slope:
        """The same, of the derivatives of its operands."""
        moving = {
            k: like(operand.derivative(n), operand.values[n]).astype(operand.aval.dtype)
            for k, operand in enumerate(self.operands)
            if isinstance(operand, Piece) and not is_discrete(operand.aval)
        }
        if self.jumps or not moving:
            return 0.0
        at = self.at(n)

        def function(*values):
            found = dict(zip(moving, values, strict=True))
            return self.value([found.get(k, o) for k, o in enumerate(at)])

        return jax.jvp(function, [at[k] for k in moving], [*moving.values()])[1]

    @functools.cached_property
    def pair(self) -> Pair:
        """This function as a pair."""
        found = once(_closing, None, [self]) if self.order else _closing(None, self)
        value, reference, weights = found
        return self.root.close(self, value, reference, weights)


def _closing(step: Any, piece: Piece) -> tuple:
    """The values of an activation, and what its root says of its slopes."""
    del step
    value, reference, *_ = piece.values
    return value, reference, piece.root.weights(piece)


class Identity(Piece):
    """The function that returns its root."""

    def __init__(self, step: Any, operands: Sequence, kind: type[Pair], root=None):
        traits = frozenset(("total", "increasing"))
        super().__init__(step, operands, 0, traits)
        self.jumps = False  # not even that of an integer: it has a carrier
        self.static, self.root = (kind,), root or _Root(operands, kind)
        self.points = self._values = operands

    @property
    def aval(self) -> Any:
        """The shape and dtype of the root."""
        return self.operands[0]

    def difference(self, k: int) -> Slope:
        """1, a number."""
        del k
        return 1.0

    def tangent(self, n: int) -> Slope:
        """1, a number."""
        del n
        return 1.0


class Given(Piece):
    """A step function known by its values, the operands after the root's identity."""

    def __init__(self, step: Any, operands: Sequence):
        super().__init__(step, operands, 1, jumps=True)
        self._values = operands[1:]

    @property
    def aval(self) -> Any:
        """The shape and dtype of the values."""
        return self.operands[1]


def like(slope: Slope, value: Array) -> Array:
    """A slope as an array for each element of a value, float32 at least."""
    array = jnp.broadcast_to(jnp.asarray(slope, wide(value).dtype), jnp.shape(value))
    return _compat.placed_like(array, value)


def settle(operand: Any) -> Any:
    """A fixed array or a pair: a lazy activation is made into one."""
    return operand.pair if isinstance(operand, Piece) else operand


def pair_of(value: Any) -> Pair:
    """A pair; a fixed value is the same at both points."""
    value = settle(value)
    return value if isinstance(value, Pair) else still(value, value)


def root_of(operand: Any) -> Pair:
    """The pair that a varying value is a function of, which it may be itself."""
    return operand.root if isinstance(operand, Piece) else operand


def piece_of(operand: Any) -> Piece:
    """A varying value as a function of its root, which it may be itself."""
    if isinstance(operand, Piece):
        return operand
    return Identity(None, operand.points, type(operand), operand)


def as_pieces(operands: Sequence) -> list:
    """Operands, those that vary as functions of their roots."""
    return [piece_of(o) if isinstance(o, Varying) else o for o in operands]


def shape_of(operand: Any) -> tuple[int, ...]:
    """The shape of a fixed array, a varying value or a variable."""
    if isinstance(operand, Piece):
        return operand.aval.shape
    if isinstance(operand, core.Var):
        return operand.aval.shape  # pyright: ignore[reportAttributeAccessIssue]
    return jnp.shape(operand.x if isinstance(operand, Pair) else operand)


# ------------------------------------------------------------------ traced once


def once(function: Callable, step: Any, operands: Sequence) -> Any:
    """`function(step, *operands)`, traced once for every form of its operands.

    Operands are pieces and fixed arrays without tangents, and so are the outputs. The
    function must not depend on anything else.
    """
    form, arrays = _form(step, operands)
    if len(form.nodes) > LONGEST:
        return function(step, *operands)
    return _traced(function, form, arrays)


LONGEST = 64
"""Of what has more pieces than that, each use would repeat too much."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def _traced(function: Callable, form: _Form, arrays: Sequence[Array]) -> Any:
    return function(form.step, *form.operands(arrays))


@dataclasses.dataclass(frozen=True)
class _Form:
    """A step of operands, without the arrays: equal for equal layers.

    `nodes` are the pieces in an order in which they can be made, `top` refers to the
    operands. A reference is to a node, to an array, or holds a number.
    """

    key: Any
    step: Any = dataclasses.field(compare=False)
    nodes: Sequence[tuple] = dataclasses.field(compare=False)
    top: Sequence[tuple] = dataclasses.field(compare=False)

    def operands(self, arrays: Sequence[Array]) -> list:
        """The operands, made of these arrays."""
        made: list[Piece] = []

        def read(reference):
            kind, which = reference
            return {"piece": made, "array": arrays}[kind][which] if kind else which

        for make, static, step, references in self.nodes:
            made.append(make(step, [read(r) for r in references], *static))
        return [read(reference) for reference in self.top]


def _form(step: Any, operands: Sequence) -> tuple[_Form, list[Array]]:
    """The form of a step, and its arrays."""
    nodes, keys, arrays = [], [], []
    places: dict[int, int] = {}

    def identifier(piece):
        """Of one root there may be many identities."""
        return id(piece.root if isinstance(piece, Identity) else piece)

    def refer(operand):
        if isinstance(operand, Piece):
            for piece in operand.pending(lambda piece: identifier(piece) in places):
                references = [refer(o) for o in piece.operands]
                node = type(piece), piece.static
                keys.append((*node, _key(piece.step), *map(_named, references)))
                nodes.append((*node, _bare(piece.step), references))
                places[identifier(piece)] = len(nodes) - 1
            return "piece", places[identifier(operand)]
        if np.ndim(operand) == 0 and not isinstance(operand, jax.Array):
            return None, operand
        arrays.append(operand)
        return "array", len(arrays) - 1

    top = [refer(operand) for operand in operands]
    key = (_key(step), tuple(keys), *map(_named, top))
    return _Form(key, _bare(step), nodes, top), arrays


def _named(reference: tuple) -> tuple:
    """A reference as part of a key: 0, 0.0, -0.0 and False are not the same."""
    kind, which = reference
    if kind:
        return reference
    return type(which), getattr(which, "dtype", None), np.asarray(which).tobytes()


def _key(step: Any) -> Any:
    """What a step does, as part of a key."""
    if step is None:
        return None
    key = step.primitive, tuple(sorted(step.params.items()))
    try:
        hash(key)
    except TypeError:
        return id(step.eqn)  # which the form keeps alive
    return key


def _bare(step: Any) -> Any:
    """A step without its context, which holds on to all values."""
    return step and dataclasses.replace(step, context=None)


class _Root:
    """What pieces see of their root, where only its points are known."""

    def __init__(self, points: Sequence[Array], kind: type[Pair]):
        self.points, self.intervals, self.weights = points, kind.intervals, kind.weights
