"""Attribution by evaluating a function at perturbed inputs: no gradients.

Called like `jaxlift.deeplift`: `method(f, argnums, target=...)` returns
`g(*args, reference)`. Every array of the argument is perturbed on its own, with the
others as they are.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.lib.array_utils import normalize_axis_index

from jaxlift._arguments import (
    Target,
    Tree,
    attributed,
    called_with_reference,
    check_callable,
    numbers_of,
    output_array,
    replaced,
    scalar_output,
    split_reference,
    with_target,
)
from jaxlift._batches import map_over


def occlusion(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    target: Target = None,
    batch_size: int | None = None,
) -> Callable:
    """How far the output falls when a window of the input becomes the reference.

    Each window scores `f(x) - f(x with the window from the reference)`; an element gets
    the mean score of the windows that cover it. Windows begin at the first element, a
    stride apart; one that reaches over the edge is cut off there.

    Args:
      f: any function that JAX can map, differentiable or not; as in
        `jaxlift.deeplift` otherwise.
      argnums: as in `jaxlift.deeplift`.
      window: its length along the leading axes. Axes that are not named are covered
        whole: 8 is a window of eight rows, (8, 8) one of 8 x 8 pixels with all their
        channels.
      strides: from one window to the next, along the same axes; one int stands for
        all. 1 by default. At most the window's length, so that nothing is left
        uncovered.
      target: as in `jaxlift.deeplift`.
      batch_size: how many windows are in flight at once; all of them by default.

    Returns:
      A function `g(*args, reference)` with a result like the argument, in units of the
      output. It costs one evaluation of `f` for each window, and one more.

    Raises:
      ValueError: a window with more axes than the argument, longer than one or below
        1, strides that do not fit the window, a `batch_size` below 1. Otherwise as
        `jaxlift.deeplift`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import perturbation
      >>> explain = perturbation.occlusion(jnp.sum, window=2)
      >>> explain(jnp.array([1.0, 3.0, 5.0]), 0.0)
      Array([4., 6., 8.], dtype=float32)

    Source: Zeiler, Fergus 2014 (arXiv 1311.2901), section 4.2; the mean over windows
    is that of Captum.
    """
    lengths = _integers(window, "window")
    if min(lengths, default=1) < 1:
        raise ValueError(f"window {lengths} has to be at least 1 along each axis")
    steps = _integers(1 if strides is None else strides, "strides")
    if not isinstance(strides, tuple | list):
        steps *= len(lengths)
    if len(steps) != len(lengths) or any(
        not 1 <= s <= w for s, w in zip(steps, lengths, strict=False)
    ):
        raise ValueError(
            f"strides {steps} do not fit the window {lengths}: along each of its axes "
            "a stride is at least 1 and at most the window's length"
        )

    def score(value: Callable, x: jax.Array, reference: jax.Array) -> jax.Array:
        covers = _covers(x.shape, lengths, steps)
        y = value(x)

        def fall(window):
            rows = (jnp.asarray(c)[k] for c, k in zip(covers, window, strict=True))
            mask = functools.reduce(lambda a, b: a[..., None] & b, rows)
            return y - value(jnp.where(mask, reference, x))

        grid = tuple(map(len, covers))
        windows = np.indices(grid).reshape(len(grid), -1).T
        falls = map_over(fall, windows, batch_size).reshape(grid)
        return _mean_of_covering(falls, covers)

    return _each_array(f, argnums, target, score)


def in_silico_mutagenesis(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    target: Target = None,
    channel_axis: int = -1,
    batch_size: int | None = None,
) -> Callable:
    """What every single substitution in a one-hot sequence does to the output.

    Element (position, letter) is `f(x with that letter there) - f(x)`: exactly 0 for
    the letter that is there. A row that is no one-hot (the zeros or quarters of an
    unknown letter N) is replaced like any other, so that its scores say what knowing
    the letter would change.

    Args:
      f: any function that JAX can map, differentiable or not; as in
        `jaxlift.deeplift` otherwise.
      argnums: as in `jaxlift.deeplift`; arrays such as `(length, 4)`, floating.
      target: as in `jaxlift.deeplift`.
      channel_axis: the axis of the letters; 0 for `(4, length)`.
      batch_size: how many mutated sequences are in flight at once; all of them by
        default.

    Returns:
      A function `g(*args, reference)` with a result like the argument, in units of the
      output. The values of the reference play no part. It costs one evaluation of `f`
      for each element of the argument, and one more.

    Raises:
      ValueError: an argument without such an axis, a `batch_size` below 1. Otherwise as
        `jaxlift.deeplift`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import perturbation
      >>> weights = jnp.array([[1.0, 2.0, 4.0, 8.0]])
      >>> explain = perturbation.in_silico_mutagenesis(lambda x: (weights * x).sum())
      >>> explain(jnp.array([[0.0, 0.0, 1.0, 0.0]]), 0.0)
      Array([[-3., -2.,  0.,  4.]], dtype=float32)

    Source: Zhou, Troyanskaya, Nature Methods 2015, "in silico saturated mutagenesis".
    """

    def score(value: Callable, x: jax.Array, _: jax.Array) -> jax.Array:
        channel = normalize_axis_index(channel_axis, x.ndim, "channel_axis")
        rows = jnp.moveaxis(x, channel, -1)
        letters = jnp.eye(rows.shape[-1], dtype=x.dtype)
        sequence = rows.reshape(-1, len(letters))
        y = value(x)

        def change(substitution):
            position, letter = substitution
            mutated = sequence.at[position].set(letters[letter]).reshape(rows.shape)
            return value(jnp.moveaxis(mutated, -1, channel)) - y

        substitutions = np.indices(sequence.shape).reshape(2, -1).T
        changes = map_over(change, substitutions, batch_size).reshape(sequence.shape)
        present = (sequence[:, None] == letters).all(-1)
        changes = jnp.where(present, 0, changes).reshape(rows.shape)
        return jnp.moveaxis(changes, -1, channel)

    return _each_array(f, argnums, target, score)


# ------------------------------------------------------------------------- helpers


def _each_array(f: Callable, argnums: Any, target: Target, score: Callable) -> Callable:
    """`g(*args, reference)` from `score(value, x, reference)` of one array `x`.

    `value` is `f` as a function of that array, everything else at the input.
    """
    check_callable(f)
    numbers = numbers_of(argnums)
    explained = with_target(f, target, has_aux=False)

    @called_with_reference(f)
    def explain(*args_and_reference: Any, **kwargs: Any) -> Tree:
        args, reference = split_reference(args_and_reference)
        xs, references = attributed(args, argnums, reference)
        leaves, tree = jax.tree.flatten(xs)

        def scored(k, x, reference):
            def value(x):
                points = jax.tree.unflatten(tree, [*leaves[:k], x, *leaves[k + 1 :]])
                return _scalar(explained(*replaced(args, numbers, points), **kwargs))

            return score(value, x, reference).astype(x.dtype)

        scores = map(scored, range(len(leaves)), leaves, jax.tree.leaves(references))
        result = jax.tree.unflatten(tree, scores)
        return result[0] if isinstance(argnums, int | np.integer) else result

    return explain


def _scalar(output: Any) -> jax.Array:
    output = output_array(output)
    scalar_output(output)
    return output


def _integers(value: Any, name: str) -> tuple[int, ...]:
    try:
        values = value if isinstance(value, tuple | list) else (value,)
        return tuple(map(operator.index, values))
    except TypeError:
        raise TypeError(
            f"{name} must be an int or a tuple of ints, not {value!r}"
        ) from None


def _covers(shape: tuple, lengths: tuple, steps: tuple) -> list[np.ndarray]:
    """For each axis a boolean array (windows, places): which covers which.

    A window is the product of one row of each.
    """
    if len(lengths) > len(shape):
        raise ValueError(
            f"the window {lengths} has more axes than the argument of shape {shape}"
        )
    for axis, (length, size) in enumerate(zip(lengths, shape, strict=False)):
        if length > size:
            raise ValueError(
                f"a window of length {length} does not fit axis {axis} of the argument "
                f"of shape {shape}: it must be at most {size}"
            )
    whole = shape[len(lengths) :]
    steps = (*steps, *(1,) * len(whole))
    return list(map(_cover, shape, (*lengths, *whole), steps))


def _cover(size: int, length: int, step: int) -> np.ndarray:
    windows = -(-(size - length) // step) + 1
    begin, place = step * np.arange(windows)[:, None], np.arange(size)
    return (begin <= place) & (place < begin + length)


def _mean_of_covering(falls: jax.Array, covers: Sequence[np.ndarray]) -> jax.Array:
    """At each place the mean over the windows that cover it.

    Both the sum over windows and their number are products over the axes; each
    contraction takes the first axis of what is left and appends it at the end.
    """
    for cover in covers:
        share = jnp.asarray(cover / cover.sum(0), falls.dtype)
        falls = jnp.tensordot(
            falls, share, axes=(0, 0), precision=lax.Precision.HIGHEST
        )
    return falls
