"""Maxima and minima, of axes and of windows: the cross-max rule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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
        def windows(array, fill):
            return patches(array, fill, **step.params)

        x, r = (sign * windows(wide(v), -sign * jnp.inf) for v in operand.ends)
        weights = _extremum_weights(x, r, _first)
        return secant(
            step.bind(operand.value),
            step.bind(operand.r),
            (lambda w, t: (w * windows(t, 0)).sum(-1), weights, operand),
        )

    return rule


def patches(
    array,
    fill,
    *,
    window_dimensions,
    window_strides,
    padding,
    base_dilation,
    window_dilation,
    **_,
):
    """All windows of an array, flattened in row-major order along a last axis.

    Axis by axis. Windows that do not overlap are a reshape, others shifted slices:
    both are cheap to transpose, which select-and-scatter on a CPU is not.
    """
    config = [
        (lo, hi, d - 1) for (lo, hi), d in zip(padding, base_dilation, strict=True)
    ]
    if any(row != (0, 0, 0) for row in config):
        array = lax.pad(array, jnp.asarray(fill, array.dtype), config)
    rank = array.ndim
    for axis, (size, stride, dilation) in enumerate(
        zip(window_dimensions, window_strides, window_dilation, strict=True)
    ):
        if size == 1 and stride == 1:
            continue
        span = (size - 1) * dilation + 1
        count = (array.shape[axis] - span) // stride + 1
        if stride == size and dilation == 1:
            array = lax.slice_in_dim(array, 0, count * size, axis=axis)
            shape = array.shape
            array = array.reshape(*shape[:axis], count, size, *shape[axis + 1 :])
            array = jnp.moveaxis(array, axis + 1, -1)
            continue
        starts = range(0, size * dilation, dilation)
        stop = (count - 1) * stride + 1
        array = jnp.stack(
            [lax.slice_in_dim(array, s, s + stop, stride, axis) for s in starts], -1
        )
    return array.reshape(*array.shape[:rank], math.prod(array.shape[rank:]))
