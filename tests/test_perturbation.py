"""Occlusion and mutagenesis, against loops."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlift
from jaxlift.perturbation import in_silico_mutagenesis, occlusion

RNG = np.random.default_rng(1)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def close(a, b, tolerance=1e-5):
    jax.tree.map(
        lambda u, v: np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance),
        a,
        b,
    )


def jitted(explain, *args):
    """One compilation is faster than one for each operation."""
    return jax.jit(explain)(*args)


def rough(x):
    """Neither linear nor symmetric in its elements."""
    flat = x.ravel()
    weights = np.sin(np.arange(flat.size) + 1.0, dtype=np.float32)
    return jnp.tanh(flat @ weights) + (flat[:-1] * flat[1:]).sum()


# ----------------------------------------------------------------------- occlusion


def by_loop(f, x, reference, window, strides):
    """Every window in turn: each of its elements receives its score."""
    total, count = np.zeros(x.shape), np.zeros(x.shape)
    starts = []
    for size, length, step in zip(x.shape, window, strides, strict=True):
        along = [0]
        while along[-1] + length < size:
            along.append(along[-1] + step)
        starts.append(along)
    for corner in itertools.product(*starts):
        place = tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))
        changed = x.copy()
        changed[place] = reference[place]
        total[place] += f(x) - f(changed)
        count[place] += 1
    return total / count


WINDOWS = {
    "one": ((7,), 1, None, (1,), (1,)),
    "row": ((7,), 3, None, (3,), (1,)),
    "cut at the edge": ((8,), (3,), 2, (3,), (2,)),
    "apart": ((6,), 2, 2, (2,), (2,)),
    "all": ((5,), 5, None, (5,), (1,)),
    "patch": ((5, 4), (2, 3), (2, 1), (2, 3), (2, 1)),
    "whole channels": ((4, 3, 2), [2, 2], None, (2, 2, 2), (1, 1, 1)),
    "letters": ((4, 3), 2, 1, (2, 3), (1, 1)),
    "one stride": ((4, 5), (2, 3), 2, (2, 3), (2, 2)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_occlusion_by_loop(name):
    shape, window, strides, full_window, full_strides = WINDOWS[name]
    x, reference = normal(*shape), normal(*shape)
    expected = by_loop(jax.jit(rough), x, reference, full_window, full_strides)
    explain = occlusion(rough, window=window, strides=strides)
    close(jitted(explain, x, reference), expected)


@pytest.mark.parametrize(
    "method", [functools.partial(occlusion, window=(2, 2)), in_silico_mutagenesis]
)
def test_batches_change_nothing(method):
    x, reference = normal(4, 3), normal(4, 3)
    by_size = [
        jitted(method(rough, batch_size=size), x, reference) for size in (None, 4, 100)
    ]
    for found in by_size[1:]:
        close(found, by_size[0])


def test_single_elements_of_a_linear_function():
    w, x, reference = normal(6), normal(6), normal(6)
    explain = occlusion(lambda x: x @ w, window=1)
    close(jitted(explain, x, reference), w * (x - reference))


# --------------------------------------------------------------------- mutagenesis


def mutated(f, x):
    result = np.zeros(x.shape)
    for position, letter in np.ndindex(x.shape):
        other = x.copy()
        other[position] = np.eye(x.shape[1])[letter]
        result[position, letter] = f(other) - f(x)
    return result


@pytest.mark.parametrize("alphabet", [4, 3])
def test_mutagenesis_by_loop(alphabet):
    letters = np.array([0, 2, 1, 0, 2])
    x = np.eye(alphabet, dtype=np.float32)[letters]
    x[1], x[3] = 0, 1 / alphabet  # two ways to write an unknown letter
    changes = jitted(in_silico_mutagenesis(rough), x, 0.0)
    close(changes, mutated(jax.jit(rough), x))
    known = np.array([0, 2, 4])
    assert (changes[known, letters[known]] == 0).all()
    # Of an unknown letter every substitution counts.
    assert (changes[1] != 0).all() and (changes[3] != 0).all()
    first = in_silico_mutagenesis(lambda x: rough(x.T), channel_axis=0)
    close(jitted(first, x.T, 0.0).T, changes)


def test_mutagenesis_of_a_batch():
    xs = np.eye(4, dtype=np.float32)[RNG.integers(4, size=(2, 3))]
    at_once = in_silico_mutagenesis(lambda xs: jax.vmap(rough)(xs).sum())
    one_by_one = jax.vmap(in_silico_mutagenesis(rough), (0, None))
    close(jitted(at_once, xs, 0.0), jitted(one_by_one, xs, 0.0))


# ------------------------------------------------------------------ both of them

METHODS = {
    "occlusion": functools.partial(occlusion, window=(2,), strides=2),
    "occlusion in batches": functools.partial(occlusion, window=(1,), batch_size=2),
    "mutagenesis": in_silico_mutagenesis,
    "mutagenesis in batches": functools.partial(in_silico_mutagenesis, batch_size=5),
}


@pytest.mark.parametrize("name", METHODS)
def test_vmap_is_a_loop(name):
    explain = METHODS[name](lambda x: jnp.stack([x.sum(), rough(x)]), target=1)
    xs, reference = normal(2, 3, 4), normal(3, 4)
    rows = [jitted(explain, x, reference) for x in xs]
    close(jax.jit(jax.vmap(explain, (0, None)))(xs, reference), np.stack(rows))


@pytest.mark.parametrize("name", ["occlusion", "mutagenesis"])
def test_each_array_of_a_tree_on_its_own(name):
    method = METHODS[name]
    a, a0, b, b0 = normal(3, 4), normal(3, 4), normal(2, 4), normal(2, 4)
    f = lambda a, k, b: rough(jnp.concatenate([k * a["u"], b]))
    found = jitted(method(f, (0, 2)), {"u": a}, 2.0, b, ({"u": a0}, b0))
    of_a = jitted(method(lambda a: f({"u": a}, 2.0, b)), a, a0)
    of_b = jitted(method(lambda b: f({"u": a}, 2.0, b)), b, b0)
    close(found, ({"u": of_a}, of_b))


@pytest.mark.parametrize("name", METHODS)
def test_what_has_no_derivative(name):
    def halvings(x):
        more = lambda state: state[0].sum() > 1e-2
        once = lambda state: (state[0] / 2, state[1] + 1)
        return jax.lax.while_loop(more, once, (x, 0.0))[1]

    with pytest.raises(jaxlift.UnsupportedPrimitiveError):
        jax.eval_shape(jaxlift.deeplift(halvings), X, 0.0)
    # Sizes from 1 to 1000: a window or letter more or less counts.
    x = np.float32(10) ** np.arange(4).reshape(2, 2)
    scores = jitted(METHODS[name](halvings), x, 0.0)
    assert scores.shape == x.shape and (scores != 0).any()


X = normal(3, 4)
ERRORS = {
    "longer": (ValueError, r"length 5.*axis 1.*\(3, 4\)",
               lambda: occlusion(rough, window=(1, 5))(X, 0.0)),
    "no length": (ValueError, r"^window \(2, 0\)",
                  lambda: occlusion(rough, window=(2, 0))),
    "axes": (ValueError, r"\(1, 1, 1\).*\(3, 4\)",
             lambda: occlusion(rough, window=(1, 1, 1))(X, 0.0)),
    "strides": (ValueError, r"strides \(3,\).*\(2,\)",
                lambda: occlusion(rough, window=2, strides=3)),
    "strides' axes": (ValueError, r"strides \(1,\).*\(2, 2\)",
                      lambda: occlusion(rough, window=(2, 2), strides=(1,))),
    "window": (TypeError, "window.*1.5", lambda: occlusion(rough, window=1.5)),
    "batch_size": (ValueError, "batch_size.*0",
                   lambda: occlusion(rough, window=1, batch_size=0)(X, 0.0)),
    "channel_axis": (ValueError, "channel_axis.*2",
                     lambda: in_silico_mutagenesis(rough, channel_axis=2)(X, 0.0)),
    "not a function": (TypeError, "int: 3", lambda: in_silico_mutagenesis(3)),
    "vector output": (ValueError, r"\(4,\).*target=",
                      lambda: in_silico_mutagenesis(lambda x: x.sum(0))(X, 0.0)),
    "integer input": (TypeError, "int32",
                      lambda: in_silico_mutagenesis(rough)(X.astype(np.int32), 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_offender_while_tracing(name):
    kind, message, call = ERRORS[name]
    with pytest.raises(kind, match=message):
        jax.eval_shape(lambda: call())
