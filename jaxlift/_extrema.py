"""Maxima and minima, of axes and of windows: the cross-max rule."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlift._differences import wide
from jaxlift._interpret import Step
from jaxlift._values import Pair, number, secant


def _cross_max(x, r, y, y0, at_x, at_r):
    """The multipliers of the maximum `y` of `x`, `y0` of `r`, along the winners' axes.

    With `c = max(y, y0)` the change `y - y0` is `(c - y0) + (y - c)`: the first part
    goes to the winner at the input, the second to the winner at the reference, each
    divided by that element's own difference. Both lie in 0..1: the winner has moved
    at least as far as the maximum. One that did not move gets the gradient. `at_x`
    and `at_r` are the winners' shares. SHAP and Captum have this rule as well, with a
    threshold, and lose shares where windows overlap.
    """
    c = jnp.maximum(y, y0)
    moved = x != r
    dx = jnp.where(moved, x - r, 1)
    up = jnp.where(moved, (c - y0) / dx, 1)
    down = jnp.where(moved, (y - c) / dx, 0)
    # A masked cell (-inf at both points) has no part in it.
    return jnp.where(at_x > 0, at_x * up, 0) + jnp.where(at_r > 0, at_r * down, 0)


def _shares(hits):
    count = hits.sum(-1, keepdims=True)
    return hits / jnp.where(count == 0, 1, count)


@functools.partial(jax.jit, static_argnames="shares")
def _extremum_weights(x, r, shares: Callable) -> Any:
    """Multipliers of the maximum over the last axis."""
    y, y0 = x.max(-1, keepdims=True), r.max(-1, keepdims=True)
    at_x = shares(x == y).astype(x.dtype)
    # Among cells tied at the reference the input's winner is preferred.
    tied = r == y0
    both = tied & (at_x > 0)
    at_r = shares(jnp.where(both.any(-1, keepdims=True), both, tied)).astype(x.dtype)
    return _cross_max(x, r, y, y0, at_x, at_r)


def extremum(sign: int) -> Callable:
    """reduce_max (sign 1) or reduce_min (sign -1): the cross-max rule, equal shares."""

    def rule(step: Step, operand: Pair) -> Pair:
        axes = step.params["axes"]
        last = tuple(range(-len(axes), 0))
        size = math.prod(operand.r.shape[axis] for axis in axes)

        def flat(array):
            moved = jnp.moveaxis(array, axes, last)
            return moved.reshape(*step.out_shape, size)

        x, r = (sign * wide(flat(number(v))) for v in operand.ends)
        weights = _extremum_weights(x, r, _shares)
        return secant(
            step.bind(operand.value),
            step.bind(operand.r),
            (lambda w, t: (w * flat(t)).sum(-1), weights, operand),
        )

    return rule


def _first(hits):
    return (jnp.arange(hits.shape[-1]) == hits.argmax(-1)[..., None]) & hits


def window_extremum(sign: int) -> Callable:
    """Max-pooling (sign 1) or min-pooling (-1): cross-max, first winner in a window."""

    def rule(step: Step, operand: Pair) -> Pair:
        windows = _Windows.of(step.params)
        x, r = (windows.padded(sign * wide(v), -jnp.inf) for v in operand.ends)
        if windows.are_tiles:
            weights = _extremum_weights(windows.tiles(x), windows.tiles(r), _first)
            term = windows.weighted, weights, operand
        else:
            term = windows.routed, _routes(windows, x, r), operand
        return secant(step.bind(operand.value), step.bind(operand.r), term)

    return rule


@functools.partial(jax.jit, static_argnums=0)
def _routes(windows: _Windows, x, r) -> Any:
    """The winners at either point, and what each passes on: the cross-max rule.

    Where the input's winner is one of those at the reference it is preferred.
    """
    (y, at_x), (y0, at_r) = windows.winners(x), windows.winners(r)
    r_at_x, x_at_r = windows.picked(r, at_x), windows.picked(x, at_r)
    c, tied = jnp.maximum(y, y0), r_at_x == y0
    up, down = jnp.where(tied, y - y0, c - y0), jnp.where(tied, 0, y - c)
    moved, moved_at_r = y != r_at_x, x_at_r != y0
    up = jnp.where(moved, up, 1) / jnp.where(moved, y - r_at_x, 1)
    down = jnp.where(moved_at_r, down, 0) / jnp.where(moved_at_r, x_at_r - y0, 1)
    return (at_x, up), (at_r, down)


@dataclasses.dataclass(frozen=True)
class _Windows:
    """The windows of an array; `axes` are (axis, size, stride, dilation)."""

    padding: tuple
    axes: tuple

    @classmethod
    def of(cls, params: Mapping) -> _Windows:
        """From the parameters of a primitive."""
        names = "window_dimensions", "window_strides", "window_dilation"
        rows = zip(*(params[name] for name in names), strict=True)
        axes = ((axis, *row) for axis, row in enumerate(rows) if row[:2] != (1, 1))
        edges = zip(params["padding"], params["base_dilation"], strict=True)
        return cls(tuple((lo, hi, d - 1) for (lo, hi), d in edges), tuple(axes))

    def padded(self, array, fill):
        """The array as the windows see it."""
        if all(edge == (0, 0, 0) for edge in self.padding):
            return array
        return lax.pad(array, jnp.asarray(fill, array.dtype), self.padding)

    # Windows side by side: a reshape, and a weight for each element.

    @property
    def are_tiles(self) -> bool:
        """Whether windows touch, and do not overlap."""
        return all(row[1:] == (row[1], row[1], 1) for row in self.axes)

    def tiles(self, array):
        """All windows of an array, flattened in row-major order along a last axis."""
        rank = array.ndim
        for axis, size, *_ in self.axes:
            count = array.shape[axis] // size
            array = lax.slice_in_dim(array, 0, count * size, axis=axis)
            shape = array.shape
            array = array.reshape(*shape[:axis], count, size, *shape[axis + 1 :])
            array = jnp.moveaxis(array, axis + 1, -1)
        return array.reshape(*array.shape[:rank], math.prod(array.shape[rank:]))

    def weighted(self, weights, tangent):
        """The sum of each window's elements, times their weights."""
        return (weights * self.tiles(self.padded(tangent, 0))).sum(-1)

    # Windows that overlap, an axis at a time. The first winner in row-major order is in
    # the first of the rows whose own maxima are the largest, and the first one there:
    # so the last axis comes first. An element of a large window is in many others: two
    # winners for each window are less than a weight for each of its cells.

    def winners(self, array):
        """The maxima, and the number of the winner along each axis, the last first."""
        numbers = []
        for row in self.axes[::-1]:
            array, *others = self._cells(array, *row)
            which = jnp.zeros(array.shape, np.min_scalar_type(len(others)))
            for k, cell in enumerate(others, 1):
                larger = cell > array
                array = jnp.where(larger, cell, array)
                which = jnp.where(larger, jnp.asarray(k, which.dtype), which)
            numbers.append(which)
        return array, numbers

    def picked(self, array, numbers):
        """The elements of an array in the places of the winners."""
        for row, which in zip(self.axes[::-1], numbers, strict=True):
            cells = enumerate(self._cells(array, *row))
            array = sum(jnp.where(which == k, cell, 0) for k, cell in cells)
        return array

    def routed(self, routes, tangent):
        """The sum of each window's winners, times their weights."""
        tangent = self.padded(tangent, 0)
        return sum(weight * self.picked(tangent, at) for at, weight in routes)

    @staticmethod
    def _cells(array, axis, size, stride, dilation) -> list:
        """The first cells of all windows along an axis, the second ones, ...

        Shifted slices are cheap to transpose, which select-and-scatter on a CPU is not.
        """
        span = (size - 1) * dilation + 1
        stop = (array.shape[axis] - span) // stride * stride + 1
        starts = range(0, size * dilation, dilation)
        return [lax.slice_in_dim(array, s, s + stop, stride, axis) for s in starts]
