"""A function over many items, a bounded number of them in flight at once."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxlift._differences import wide


def at_least_one(value: Any, name: str) -> int:
    """A count that a caller gives, as an int."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, not {value!r}")
    number = operator.index(value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, not {number}")
    return number


def map_over(function: Callable, items: Any, batch_size: int | None) -> Any:
    """The results along a new leading axis; all at once without a `batch_size`."""
    if batch_size is None:
        return jax.vmap(function)(items)
    return lax.map(function, items, batch_size=at_least_one(batch_size, "batch_size"))


def mean_over(function: Callable, items: Any, batch_size: int | None) -> Any:
    """The mean result; its sum is accumulated, so memory stays that of one batch.

    Sums of narrower floats are kept in float32: a thousand of bfloat16 stop growing.
    """
    count = len(jax.tree.leaves(items)[0])
    size = count if batch_size is None else at_least_one(batch_size, "batch_size")
    dtypes: Any = None

    def total(batch):
        nonlocal dtypes
        each = jax.vmap(function)(batch)
        dtypes = jax.tree.map(jnp.result_type, each)
        return jax.tree.map(lambda c: wide(c).sum(0), each)

    def total_of_batch(batch):
        return total(jax.tree.map(resharded, batch, axes))

    def add(sums, batch):
        return jax.tree.map(jnp.add, sums, total_of_batch(batch)), None

    if size >= count:
        sums = total(items)
    else:
        # On an explicit mesh every device gets all items, and its part of each batch.
        axes = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec[0], items)
        items = jax.tree.map(resharded, items)
        # The first batch is what is left over, or a whole one.
        first = count % size or size
        rest = jax.tree.map(
            lambda leaf: leaf[first:].reshape(-1, size, *leaf.shape[1:]), items
        )
        start = total_of_batch(jax.tree.map(lambda leaf: leaf[:first], items))
        sums, _ = lax.scan(add, start, rest)
    return jax.tree.map(lambda s, dtype: (s / count).astype(dtype), sums, dtypes)


def resharded(leaf: Any, axis: Any = None) -> Any:
    """`leaf` with its items along an axis of an explicit mesh, or along none.

    Along none as well where the devices do not divide their number.
    """
    sharding = jax.typeof(leaf).sharding
    names = (axis,) if isinstance(axis, str) else axis or ()
    if len(leaf) % math.prod(sharding.mesh.shape[name] for name in names):
        axis = None
    if axis == sharding.spec[0]:
        return leaf
    spec = PartitionSpec(axis, *sharding.spec[1:])
    return jax.sharding.reshard(leaf, NamedSharding(sharding.mesh, spec))
