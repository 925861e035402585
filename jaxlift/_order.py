"""Rules for order: extrema of any kind, sorting, the index of a maximum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import primitives as P
from jax.tree_util import Partial

from jaxlift import _compat
from jaxlift._compat import existing
from jaxlift._interpret import Step, lazy
from jaxlift._pieces import Piece, as_pieces, settle, shape_of
from jaxlift._rules import one_root, path
from jaxlift._values import (
    Array,
    Pair,
    Varying,
    at_reference,
    attach,
    is_discrete,
    number,
    secant,
    still,
    stopped,
)


def any_extremum(sign: int) -> Callable:
    """Maxima (1) or minima (-1) of any shape: cross-max by the primitive's derivative.

    With `c = max(y, y0)` and `J` the derivative, which picks the winners at a point,
    `M t = (c - y0) J_x (t / dx) + (y - c) J_r (t / dx)`, and `J_x t` of what does not
    move. Where the input's winner is one of those at the reference, where it is
    `y - J_x dx`, it is preferred: `J_x` in place of `J_r`.
    """

    def rule(step: Step, *operands: Any) -> Pair:
        players = [
            k for k, o in enumerate(operands)
            if isinstance(o, Pair) and not is_discrete(o.r)
        ]  # fmt: skip
        xs, rs = [stopped(o) for o in operands], [at_reference(o) for o in operands]
        value, reference = step.bind(*xs), step.bind(*rs)

        def derivative(at, tangents):
            def function(*values):
                moved = dict(zip(tangents, values, strict=True))
                return step.bind(*(moved.get(k, o) for k, o in enumerate(at)))

            points = [at[k] for k in tangents]
            return jax.jvp(function, points, [*tangents.values()])[1]

        def tangent(ends, *tangents):
            xs, rs, value, reference, tied = ends
            c = (jnp.maximum if sign > 0 else jnp.minimum)(value, reference)
            # By comparison: XLA may contract the product that made a value with the
            # difference, which is not 0 then.
            rests = {k: (xs[k] == rs[k]) | (xs[k] - rs[k] == 0) for k in players}
            moving, resting = {}, {}
            for (k, rest), t in zip(rests.items(), tangents, strict=True):
                difference = jnp.where(rest, 1, xs[k] - rs[k])
                moving[k] = jnp.where(rest, 0, t / difference)
                resting[k] = jnp.where(rest, t, 0)
            up, down = derivative(xs, moving), derivative(rs, moving)
            still_there = derivative(xs, resting)
            down = jnp.where(tied, up, down)
            return (c - reference) * up + (value - c) * down + still_there

        # Of several winners it is a mean; masked values are infinite.
        changes = {k: jnp.nan_to_num(rs[k] - xs[k]) for k in players}
        there, largest = value + derivative(xs, changes), abs(value) + abs(reference)
        rounding = 4 * jnp.finfo(reference.dtype).eps * largest
        tied = abs(there - reference) <= rounding
        ends = (xs, rs, value, reference, tied)
        sources = [operands[k].source for k in players]
        return Pair(attach(value, Partial(tangent, ends), sources), reference)

    return rule


def ranks(x: Array, r: Array) -> Array:
    """`M[k, i]`, the share of the straight path on which element `i` has rank `k`.

    The exact path integral of the sorting permutation, over the last axis. Two
    elements change places once at most, at `t = (r_j - r_i) / (dx_i - dx_j)`; for each
    element its crossings in order give its rank on every stretch. Rows and columns add
    up to 1; where the points coincide `M` is the permutation.
    """
    n, d = x.shape[-1], x - r
    i = jnp.arange(n)
    x_i, r_i, d_i = (v[..., :, None] for v in (x, r, d))
    x_j, r_j, d_j = (v[..., None, :] for v in (x, r, d))
    first = i[None, :] < i[:, None]
    tied = (d_j == d_i) & first
    before = (r_j < r_i) | ((r_j == r_i) & ((d_j < d_i) | tied))
    after = (x_j < x_i) | ((x_j == x_i) & ((d_j > d_i) | tied))
    crosses = before != after
    when = jnp.where(crosses, (r_j - r_i) / jnp.where(crosses, d_i - d_j, 1), 1)
    order = jnp.argsort(jnp.clip(when, 0, 1), -1)
    when = jnp.take_along_axis(jnp.clip(when, 0, 1), order, -1)
    change = jnp.take_along_axis(after.astype(int) - before.astype(int), order, -1)
    edge = jnp.ones_like(when[..., :1])
    stretch = jnp.diff(jnp.concatenate([0 * edge, when, edge], -1), axis=-1)
    rank = before.sum(-1, keepdims=True) + jnp.concatenate(
        [jnp.zeros_like(change[..., :1]), jnp.cumsum(change, -1)], -1
    )

    def shares(stretch, rank):
        return jnp.zeros(n, x.dtype).at[rank].add(stretch)

    each = jnp.vectorize(shares, signature="(s),(s)->(n)")(stretch, rank)
    return jnp.swapaxes(each, -1, -2)


def sort(step: Step, *operands: Any) -> Any:
    """Sorting by one key that varies: the key by `ranks`, what goes along likewise."""
    axis, key = step.params["dimension"], operands[0]
    if step.params["num_keys"] > 1 or not isinstance(key, Pair) or is_discrete(key.r):
        return path(step, *operands)
    weights = ranks(*(jnp.moveaxis(v, axis, -1) for v in key.ends))
    xs = step.bind(*map(stopped, operands))
    rs = step.bind(*map(at_reference, operands))
    return [
        secant(x, r, (_permute(axis), weights, o))
        if isinstance(o, Pair) and not is_discrete(r)
        else still(x, r)
        for x, r, o in zip(xs, rs, operands, strict=True)
    ]


def top_k(step: Step, operand: Pair) -> Any:
    """The largest k (or smallest) by `ranks`; their indices have no number line.

    Those that are found approximately are explained as if they were exact.
    """
    params = step.params
    k, axis = params["k"], params.get("reduction_dimension", params.get("axis"))
    axis = operand.r.ndim - 1 if axis is None else axis
    sign = -1 if params.get("is_max_k", True) else 1
    weights = ranks(*(sign * jnp.moveaxis(v, axis, -1) for v in operand.ends))
    (x, at_x), (r, at_r) = step.bind(operand.value), step.bind(operand.r)
    best = weights[..., :k, :]
    return [secant(x, r, (_permute(axis), best, operand)), still(at_x, at_r)]


def reduce(step: Step, *operands: Any) -> Any:
    """A reduction with any combiner: a maximum, a minimum, or by the path rule."""
    combiner, _ = _compat.open_jaxpr(step.params["jaxpr"])
    signs = {P.max_p: 1, P.min_p: -1}
    sign = signs.get(combiner.eqns[0].primitive) if len(combiner.eqns) == 1 else None
    if sign is None:
        return path(step, *operands)
    extremum = any_extremum(sign)(_Single(step.eqn, step.context), *operands)
    return [extremum]


class _Single(Step):
    """A step of which the first output alone counts."""

    def bind(self, *operands: Any) -> Any:
        """That output."""
        return super().bind(*operands)[0]


def _permute(axis: int) -> Callable:
    def permuted(weights, tangent):
        rows = jnp.einsum("...ki,...i->...k", weights, jnp.moveaxis(tangent, axis, -1))
        return jnp.moveaxis(rows, -1, axis)

    return permuted


class _First(Piece):
    """Which of some functions of one pair is the first to be the largest."""

    def __init__(self, step: Step, operands: Sequence):
        super().__init__(step, operands, 1)

    def value(self, operands: Sequence) -> Array:
        """Their index, among the functions side by side."""
        (axis,) = self.step.params["axes"]
        return self.step.bind(jnp.stack(jnp.broadcast_arrays(*operands), axis))


@lazy
def first_or_argmax(step: Step, operand: Any) -> Varying:
    """Which of some conditions on one pair holds (jnp.select), or any other index."""
    origin = step.context.origin(operand)
    if origin is not None and origin.eqn.primitive in existing("stack"):
        shapes = {shape_of(o) for o in origin.operands if isinstance(o, Varying)}
        in_turn = (origin.eqn.params["axis"],) == step.params["axes"]
        if in_turn and shapes == {step.out_shape} and one_root(origin.operands):
            return _First(step, as_pieces(origin.operands))
    return argmax(step, settle(operand))


def argmax(step: Step, operand: Pair) -> Pair:
    """The index of an extremum: a step of how far its two winners are apart.

    With `e` the difference of the winners' unit vectors, `i - i0` jumps where
    `e (a - a0)` is not 0. On a number line of indices this is complete; among
    categories it is a convention, which only a switch (`select_n`) makes use of.
    """
    (axis,) = step.params["axes"]
    value, reference = step.bind(operand.value), step.bind(operand.r)
    size, dtype = operand.r.shape[axis], operand.source.dtype
    x, r = number(operand.value), number(operand.r)

    def unit(index):
        return jax.nn.one_hot(index, size, axis=axis, dtype=dtype)

    e = unit(value) - unit(reference)
    apart = ((x - r) * e).sum(axis)
    jump = (value - reference) / jnp.where(apart == 0, 1, apart)

    def tangent(weights, tangent):
        slope, direction = weights
        return slope * (direction * tangent).sum(axis)

    return secant(value, reference, (tangent, (jump.astype(dtype), e), operand))
