"""Stopped shifts of exponents, which the result may or may not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlift

IDS = jnp.array([0, 0, 1, 2, 1, 2])
OTHERS = jnp.array([0, 1, 1, 2, 0, 2])
V = np.random.default_rng(0).normal(size=(6, 4))


def rows(x):
    return x.max(1, keepdims=True)


def largest(x):
    return x.max()


def segments(x):
    return jax.ops.segment_max(x, IDS, 3)


def over_segments(x, m, ids=IDS):
    e = jnp.exp(x - m[ids])
    return e / jax.ops.segment_sum(e, IDS, 3)[IDS]


@jax.jit
def powers(x, m):
    return jnp.exp((x - m) / 2)


# A function of an array and of a shift, and how the shift is found.
INDEPENDENT = {
    "softmax": (
        lambda x, m: jnp.exp(x - m) / jnp.exp(x - m).sum(1, keepdims=True), rows),
    "one shift": (lambda x, m: jnp.exp(x - m) / jnp.exp(x - m).sum(0), largest),
    "inverse": (lambda x, m: jnp.exp(x - m) * (1 / jnp.exp(x - m).sum()), largest),
    "squeezed": (
        lambda x, m: jnp.exp(x - m[:, None]) / jnp.exp(x - m[:, None]).sum(1)[:, None],
        lambda x: x.max(1),
    ),
    "logsumexp": (lambda x, m: jnp.log(jnp.exp(x - m).sum(1)) + m[:, 0], rows),
    "log_softmax": (
        lambda x, m: (x - m) - jnp.log(jnp.exp(x - m).sum(1, keepdims=True)), rows),
    "sink": (
        lambda x, m: (lambda n: jnp.exp(x - n) / (jnp.exp(x - n).sum() + jnp.exp(-n)))(
            jnp.maximum(m, 0)), largest),
    "attention": (
        lambda x, m: (powers(x, m) @ V.T) / powers(x, m).sum(1, keepdims=True), rows),
    "masked": (
        lambda x, m: (lambda e: e / e.sum(1, keepdims=True))(
            jnp.where(V > -1, jnp.exp(x - m), 0)), rows),
    "segments": (over_segments, segments),
    "squares": (
        lambda x, m: powers(x, m) ** 3 / (powers(x, m) ** 2).sum(1, keepdims=True)
        / powers(x, m), rows),
    "signs": (
        lambda x, m: jnp.where(powers(x, m).sum(1, keepdims=True) >= 0, x, 0)
        * jnp.sign(powers(x, m)), rows),
    "gradient": (
        lambda x, m: jax.grad(lambda x: jnp.log(jnp.exp(x - m).sum(1)).sum())(x), rows),
}  # fmt: skip
DEPENDENT = {
    "quotient": (lambda x, m: x / m, largest),
    "difference": (lambda x, m: x - m, rows),
    "tanh": (lambda x, m: jnp.tanh(x - m), rows),
    "powers": (lambda x, m: jnp.exp(x - m), rows),
    "logarithm": (lambda x, m: jnp.log(jnp.exp(x - m).sum(1)), rows),
    "columns": (lambda x, m: jnp.exp(x - m) / jnp.exp(x - m).sum(0), rows),
    "all": (lambda x, m: jnp.exp(x - m) / jnp.exp(x - m).sum(), rows),
    "reshaped": (
        lambda x, m: jnp.exp(x - m).reshape(4, 6)
        / jnp.exp(x - m).reshape(4, 6).sum(1, keepdims=True), rows),
    "product over rows": (
        lambda x, m: (powers(x, m).T @ V) / powers(x, m).sum(), rows),
    "two shifts": (
        lambda x, m: jnp.exp(x - jnp.maximum(m, 8)) / jnp.exp(x - m).sum(), largest),
    "one call, two shifts": (
        lambda x, m: jnp.exp(x - jnp.clip(m, 0)) / jnp.exp(x - jnp.clip(m, 8)).sum(),
        largest),
    "elementwise shift": (
        lambda x, m: jnp.exp(x - jnp.maximum(m, V))
        / jnp.exp(x - jnp.maximum(m, V)).sum(1, keepdims=True), rows),
    "other indices": (lambda x, m: over_segments(x, m, OTHERS), segments),
    "scaled": (lambda x, m: jnp.exp(x - m) / jnp.exp(x - 2 * m).sum(), largest),
    "other powers": (
        lambda x, m: powers(x, m) ** 3 / jnp.square(powers(x, m)).sum(), largest),
    "compared": (lambda x, m: jnp.where(powers(x, m) > 0.5, x, 0), rows),
}  # fmt: skip


def explained(function, shift):
    """The multipliers and both outputs, far apart; and the function unstopped."""
    rng = np.random.default_rng(1)
    shape = (6,) if shift is segments else (6, 4)
    x, r = 3 * rng.normal(size=(2, *shape)) + 1
    f = lambda x: function(x, lax.stop_gradient(shift(x)))
    y, y_reference, pullback = jaxlift.vjp(f, x, r)
    np.testing.assert_allclose(y, f(x), rtol=1e-12)
    ct = rng.normal(size=y.shape)
    limit = jaxlift.vjp(f, x, x)[2](ct)
    gradient = jax.grad(lambda x: (ct * f(x)).sum())(x)
    np.testing.assert_allclose(limit, gradient, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        (pullback(ct) * (x - r)).sum(), (ct * (y - y_reference)).sum(), rtol=1e-9
    )
    return f, x, r, y_reference


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_shift_that_cancels_is_each_points_own(name, x64):
    function, shift = INDEPENDENT[name]
    f, _, r, y_reference = explained(function, shift)
    np.testing.assert_allclose(y_reference, f(r), rtol=1e-12)


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_shift_that_does_not_cancel_is_that_of_the_input(name, x64):
    function, shift = DEPENDENT[name]
    f, x, r, y_reference = explained(function, shift)
    np.testing.assert_allclose(y_reference, function(r, shift(x)), rtol=1e-12)
    assert not np.allclose(y_reference, f(r))


def test_a_gradient_inside(x64):
    """A score of a mixture: at points far apart, too."""
    centres = jnp.linspace(-1, 1, 12).reshape(3, 4)
    energy = lambda x: jax.nn.logsumexp(-jnp.square(x - centres).sum(1) / 2)
    f = lambda x: jax.grad(energy)(x)[0]
    x, r = jnp.arange(4.0), 30 * jnp.ones(4)
    y, y_reference, pullback = jaxlift.vjp(f, x, r)
    np.testing.assert_allclose((y, y_reference), (f(x), f(r)), rtol=1e-12)
    np.testing.assert_allclose(pullback(1.0) @ (x - r), y - y_reference, rtol=1e-10)


@pytest.mark.parametrize("name", ["softmax", "sink", "attention", "segments"])
def test_far_apart(name, x64):
    """A quotient of powers keeps its digits and its size."""
    function, shift = INDEPENDENT[name]
    rng = np.random.default_rng(2)
    shape = (6,) if shift is segments else (6, 4)
    x, r = 300 * rng.normal(size=(2, *shape))
    f = lambda x: function(x, lax.stop_gradient(shift(x))).sum(0).ravel()[0]
    contributions = jaxlift.deeplift(f)(x, r)
    np.testing.assert_allclose(contributions.sum(), f(x) - f(r), rtol=1e-9, atol=1e-12)
    assert abs(contributions).sum() < 100


def test_what_is_stopped_after_a_shift_keeps_the_shift_of_the_input(x64):
    function = lambda x, m: (
        lax.stop_gradient(jnp.exp(x - m)) / jnp.exp(x - m).sum(1, keepdims=True)
    )
    _, x, r, y_reference = explained(function, rows)
    frozen = jnp.exp(x - rows(x)) / jnp.exp(r - rows(x)).sum(1, keepdims=True)
    np.testing.assert_allclose(y_reference, frozen, rtol=1e-12)
