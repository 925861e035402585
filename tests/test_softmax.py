"""Softmax by hand: with a mask after the exponentials, with factors of any sign."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, nn

import jaxlift

SEEN = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 0]])
X = np.array([[0.0, 1, 10, 2], [3, -4, 0, 0], [-30, 2, 2, 60]], np.float32)
R = np.array([[1.0, 0, 0, 0], [0, 40, 0, 1], [0, 0, 0.5, 9]], np.float32)
WEIGHTS = np.arange(12.0).reshape(3, 4).astype("float32")


def by_sum(terms):
    return terms / terms.sum(-1, keepdims=True)


def shifted(x):
    return jnp.exp(x - x.max(-1, keepdims=True))


MASKED = {
    "product": lambda x, seen: by_sum(shifted(x) * seen),
    "product with floats": lambda x, seen: by_sum(seen.astype(x.dtype) * shifted(x)),
    "chosen": lambda x, seen: by_sum(jnp.where(seen > 0, shifted(x), 0)),
    "stopped": lambda x, seen: by_sum(
        jnp.exp(x - lax.stop_gradient(x.max(-1, keepdims=True))) * seen
    ),
    "no shift": lambda x, seen: by_sum(jnp.exp(x) * seen),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("form", MASKED)
def test_a_mask_after_the_exponentials_is_one_before(form, compiled):
    """What the mask hides dominates here, and plays no part."""
    explain = jax.jit if compiled else lambda f: f

    def contributions(softmax):
        f = lambda x, seen: (WEIGHTS * softmax(x, seen)).sum()
        return explain(jaxlift.deeplift(f))(X, jnp.asarray(SEEN), R)

    found = contributions(MASKED[form])
    expected = contributions(lambda x, seen: nn.softmax(x, where=seen > 0))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (found[SEEN == 0] == 0).all()


MIXED = {
    "mean": lambda x: nn.softmax(x) @ jnp.arange(6.0),
    "squares": lambda x: (nn.softmax(x) ** 2).sum(),
    "attended": lambda x: nn.softmax(x) @ jnp.tanh(x[::-1]),
    "twice": lambda x: nn.softmax(nn.softmax(x)) @ jnp.arange(6.0),
    "log": lambda x: jnp.tanh(nn.log_softmax(x)).sum(),
}


@pytest.mark.parametrize("table", ["RESCALE", "REVEAL_CANCEL"])
@pytest.mark.parametrize("form", MIXED)
def test_all_outputs_of_points_far_from_each_other(form, table):
    """One logit dominates: beside it the others keep their digits, each way."""
    rng = np.random.default_rng(3)
    opened = np.eye(6, dtype=np.float32)
    f = lambda x: MIXED[form](x @ opened)

    @jax.jit
    @jax.vmap
    def gap(x, r):
        y, y0, pullback = jaxlift.vjp(f, x, r, rules=getattr(jaxlift, table))
        contributions = pullback(jnp.ones_like(y)) * (x - r)
        return abs(contributions.sum() - (y - y0)), abs(contributions).sum()

    for scale in (100, 1e3, 1e4):
        x, r = rng.normal(size=(2, 40, 6)).astype(np.float32)
        gaps, sizes = gap(scale * x, r)
        # Contributions, or parts, as large as the distance leave a few roundings.
        parts = scale / 10 if table == "REVEAL_CANCEL" else 0
        assert (gaps <= 1e-5 + 5e-7 * np.maximum(sizes, parts)).all()


OF_LOGARITHMS = {
    "probabilities": lambda lp: jnp.exp(lp) @ jnp.arange(5.0),
    "entropy": lambda lp: -(jnp.exp(lp) * lp).sum(),
    "divergence": lambda lp: (jnp.exp(lp) * (lp - jnp.log(0.2))).sum(),
}


@pytest.mark.parametrize("table", ["RESCALE", "REVEAL_CANCEL"])
@pytest.mark.parametrize("form", OF_LOGARITHMS)
def test_exponentials_of_log_probabilities(form, table):
    """Whose parts cancel: as large as the logits, where they themselves are small."""
    rng = np.random.default_rng(0)
    weights, x = (rng.normal(size=s).astype(np.float32) for s in ((6, 5), 6))
    f = lambda x: OF_LOGARITHMS[form](nn.log_softmax(x @ weights))
    for scale in (1, 5, 30):
        r = np.zeros_like(x)
        y, y0, pullback = jaxlift.vjp(f, scale * x, r, rules=getattr(jaxlift, table))
        multipliers = pullback(jnp.ones_like(y))
        gap = (multipliers * scale * x).sum() - (y - y0)
        assert abs(gap) <= 1e-5 and abs(multipliers).max() <= 3


def test_two_logits_that_move_alike():
    """Half of the whole for each, and nothing kept apart twice."""
    f = lambda x: nn.softmax(x)[0]
    for shift in (1.0, 10, 100, 1000):
        for r in ([0.0, 0.0], [0.1, 0.1], [3.7, 3.7 + 1e-6]):
            r = jnp.array(r)
            m = jaxlift.multipliers(f)(r + shift, r)
            np.testing.assert_allclose(m, [0.25, -0.25], rtol=1e-4)


def centred(x, stop):
    return x - stop(x.max(-1, keepdims=True))


TWICE = {  # written out, no part of it given a name
    "softmax": lambda x, stop: (
        jnp.exp(centred(x, stop)) / jnp.exp(centred(x, stop)).sum(-1, keepdims=True)
    ),
    "cold": lambda x, stop: (
        jnp.exp(centred(x / 0.5, stop))
        / jnp.exp(centred(x / 0.5, stop)).sum(-1, keepdims=True)
    ),
    "no shift": lambda x, _: jnp.exp(abs(x)) / jnp.exp(abs(x)).sum(-1),
    "log_softmax": lambda x, stop: (
        centred(x, stop) - jnp.log(jnp.exp(centred(x, stop)).sum(-1, keepdims=True))
    ),
}


@pytest.mark.parametrize("stop", [lax.stop_gradient, lambda x: x])
@pytest.mark.parametrize("form", TWICE)
def test_forms_written_out_twice(form, stop):
    """Equal values count as one, other ones do not."""
    softmax = nn.log_softmax if form == "log_softmax" else nn.softmax
    inner = {"cold": lambda x: x / 0.5, "no shift": abs}.get(form, lambda x: x)
    rng = np.random.default_rng(5)
    for scale in (1, 30) if form == "no shift" else (1, 100, 3e3):
        x, r = scale * rng.normal(size=(2, 4)).astype(np.float32)
        found, expected = (
            jaxlift.deeplift(lambda x, f=f: f(x) @ WEIGHTS[0])(x, r)
            for f in (lambda x: TWICE[form](x, stop), lambda x: softmax(inner(x)))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * scale)
    logits = jaxlift.pre_activation(lambda x: TWICE[form](x, stop))(x)
    np.testing.assert_allclose(logits, inner(x), rtol=1e-6)


def exponentials(x):
    return jnp.exp(x - lax.stop_gradient(x.max()))


def guarded_by_segments(x):
    ids = np.array([0, 0, 1, 1])
    largest = lax.stop_gradient(jax.ops.segment_max(x, ids, 2))
    terms = jnp.exp(x - largest[ids])
    return terms / (jax.ops.segment_sum(terms, ids, 2)[ids] + 1e-9)


def guarded(guard, mask=None):
    def softmax(x):
        terms = exponentials(x) if mask is None else exponentials(x) * mask
        return terms / guard(terms.sum(keepdims=True))

    return softmax


GUARDED = {  # against division by 0, and the same without
    "added": (guarded(lambda total: total + 1e-9), nn.softmax),
    "at least": (guarded(lambda total: jnp.maximum(total, 1e-9)), nn.softmax),
    "clipped": (guarded(lambda total: jnp.clip(total, 1e-6)), nn.softmax),
    "masked": (
        guarded(lambda total: 1e-12 + total, SEEN[0]),
        lambda x: nn.softmax(x, where=SEEN[0] > 0),
    ),
    "segments": (guarded_by_segments, None),
    "summed before": (
        lambda x: exponentials(x) @ x / (exponentials(x).sum() + 1e-6),
        None,
    ),
    "logarithm": (
        lambda x: jnp.log(exponentials(x).sum() + 1e-9) + lax.stop_gradient(x.max()),
        lambda x: nn.logsumexp(x)[None],
    ),
    "nothing there": (
        guarded(lambda total: total + 1e-9, 0 * SEEN[0]),
        jnp.zeros_like,
    ),
}


@pytest.mark.parametrize("form", GUARDED)
def test_sums_guarded_against_being_0(form, x64):
    """Each point is shifted by its own maximum, stopped or not."""
    softmax, without = GUARDED[form]
    f, expected = (lambda x, g=g: (g(x) * WEIGHTS[1]).sum() for g in (softmax, without))
    rng = np.random.default_rng(6)

    @jax.jit
    def explained(x, r):
        y, y0, pullback = jaxlift.vjp(f, x, r)
        return y, y0, pullback(jnp.ones_like(y))

    for scale in (0.1, 3, 30, 300):
        x, r = scale * rng.normal(size=(2, 4))
        y, y0, multipliers = explained(x, r)
        np.testing.assert_allclose([y, y0], [f(x), f(r)], rtol=1e-12, atol=1e-14)
        contributions = multipliers * (x - r)
        assert abs(contributions.sum() - (y - y0)) <= 1e-12 * max(abs(y), abs(y0), 1)
        if without and scale < 10:  # beyond, a mask hides all that is not small
            other = jaxlift.deeplift(expected)(x, r)
            np.testing.assert_allclose(contributions, other, rtol=1e-5, atol=1e-6)
        limit = explained(x, x)[2]
        np.testing.assert_allclose(limit, jax.grad(f)(x), rtol=1e-12, atol=1e-13)


def test_what_is_large_is_no_guard():
    """A shift that the result depends on is stopped, as stop_gradient says."""
    f = lambda x: (exponentials(x) / (1 + exponentials(x).sum())) @ WEIGHTS[0]
    x, r = X[0] / 5, R[0]
    frozen = jnp.exp(r - x.max()) / (1 + jnp.exp(r - x.max()).sum())
    y, y0, _ = jaxlift.vjp(f, x, r)
    np.testing.assert_allclose([y, y0], [f(x), frozen @ WEIGHTS[0]], rtol=1e-6)


def test_what_is_not_written_twice():
    x, r = X[0] / 5, R[0]
    for f in (
        lambda x: jnp.exp(x) / jnp.exp(x / 2).sum(),
        lambda x: jnp.exp(x) / jnp.exp(x[::-1]).sum(),
        lambda x: jnp.exp(x * 2.0) / jnp.exp(x * 3.0).sum(),
        lambda x: x - jnp.log(jnp.exp(x + 1).sum()),
    ):
        y, y0, pullback = jaxlift.vjp(f, x, r)
        np.testing.assert_allclose([y, y0], [f(x), f(r)], rtol=1e-6)
        gap = (pullback(WEIGHTS[0]) * (x - r)).sum() - WEIGHTS[0] @ (y - y0)
        assert abs(gap) <= 1e-5 * abs(WEIGHTS[0] @ y)


def test_a_logsumexp_with_any_shift():
    """Its own shift, before and behind it, and one that is not."""
    log = lambda x, m: jnp.log(jnp.exp(x - m).sum())
    x, r = jnp.array([1.0, -2, 60]), jnp.array([3.0, 4, -1])
    expected = jaxlift.deeplift(nn.logsumexp)(x, r)
    for f in (
        lambda x: log(x, x.max()) + x.max(),
        lambda x: x.mean() + log(x, x.max()),
    ):
        contributions = jaxlift.deeplift(f)(x, r)
        np.testing.assert_allclose(contributions.sum(), f(x) - f(r), rtol=1e-5)

    def shifted(x, before, stop):
        m = stop(x.max())
        return m + log(x, m) if before else log(x, m) + m

    for stop in (lax.stop_gradient, lambda m: m):
        for before in (True, False):
            f = functools.partial(shifted, before=before, stop=stop)
            found = jaxlift.deeplift(f)(x, r)
            np.testing.assert_allclose(found, expected, rtol=1e-5)


FACTORS = np.array([1.0, -2.0, 0.5])
SIGNED = {
    "below": lambda e: e / (FACTORS * e).sum(),
    "in both": lambda e: by_sum(FACTORS * e),
    "size": lambda e: e / abs((FACTORS * e).sum()),
    "logarithm": lambda e: jnp.log(abs((FACTORS * e).sum())),
    "less a size": lambda e: jnp.log(e) - abs(jnp.log((abs(FACTORS) * e).sum())),
}


@pytest.mark.parametrize("form", SIGNED)
def test_factors_of_any_sign(form, x64):
    f = lambda x: (SIGNED[form](jnp.exp(x)) * np.array([1.0, 3, -2])).sum()
    for x, r in [
        ([2.0, 0, 0], [0.0, 0, 0]),  # the sum changes its sign
        ([0.0, 1, 0], [1.0, 0, -1]),  # and back
        ([2.0, 0, 0], [3.0, 1, 2]),
        ([0.0, 2, 0], [0.0, 3, -1]),  # both negative
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),
    ]:
        x, r = jnp.array(x), jnp.array(r)
        y, y_reference, pullback = jaxlift.vjp(f, x, r)
        np.testing.assert_allclose([y, y_reference], [f(x), f(r)], rtol=1e-12)
        m = pullback(jnp.ones_like(y))
        np.testing.assert_allclose((m * (x - r)).sum(), y - y_reference, atol=1e-12)
    np.testing.assert_allclose(m, jax.grad(f)(x), rtol=1e-10)
