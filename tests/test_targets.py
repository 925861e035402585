"""Targets: each is a known combination of outputs, and everything is complete."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import jaxlift
from jaxlift import targets

CLASSES = 5
W, V = jax.random.normal(jax.random.key(0), (2, CLASSES, CLASSES))
X, R, Z = jax.random.normal(jax.random.key(1), (3, CLASSES))
RULES = {"rescale": jaxlift.RESCALE, "reveal_cancel": jaxlift.REVEAL_CANCEL}


def f(x):
    return jnp.tanh(checkpoint_name(jax.nn.relu(x @ W), "hidden") @ V) * 3


def close(a, b, tolerance=2e-6):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@functools.cache
def by_class(name):
    """One row of contributions per class."""

    @jax.jit
    def rows(x, reference):
        *_, pullback = jaxlift.vjp(f, x, reference, rules=RULES[name])
        return jax.vmap(pullback)(jnp.eye(CLASSES)) * (x - reference)

    return np.asarray(rows(X, R))


def one(k):
    return np.eye(CLASSES)[k]


def softmax(y, axis=-1):
    e = np.exp(y - y.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


# The target, and its coefficients: target(y) is their dot product with y.
TARGETS = {
    "logit": (targets.logit(2), lambda y: one(2)),
    "logit, from the end": (targets.logit(-1), lambda y: one(4)),
    "log_odds": (targets.log_odds(3, 0), lambda y: one(3) - one(0)),
    "mean_normalised": (targets.mean_normalised(1), lambda y: one(1) - 1 / CLASSES),
    "profile": (targets.profile(), lambda y: softmax(y) - 1 / CLASSES),
}
each = pytest.mark.parametrize("target, coefficients", TARGETS.values(), ids=TARGETS)


@each
def test_a_target_is_a_combination_of_outputs(target, coefficients):
    y = np.asarray(f(X))
    close(target(y), coefficients(y) @ y)
    batch = np.stack([[y, 2 * y], [3 * y, y]])
    assert target(batch).shape == (2, 2)
    close(target(batch)[1, 0], target(3 * y))


RULES_AND_TARGETS = [("rescale", name) for name in TARGETS]
RULES_AND_TARGETS += [("reveal_cancel", "log_odds"), ("reveal_cancel", "profile")]


@pytest.mark.parametrize("rules, name", RULES_AND_TARGETS)
def test_contributions_are_complete_and_the_same_combination(rules, name):
    target, coefficients = TARGETS[name]
    c = jax.jit(jaxlift.deeplift(f, rules=RULES[rules], target=target))(X, R)
    # The coefficients at the input hold for the reference as well: they are frozen.
    frozen = coefficients(np.asarray(f(X)))
    close(c, frozen @ by_class(rules), 1e-5)
    close(c.sum(), frozen @ np.asarray(f(X) - f(R)), 1e-5)


def test_a_profile_is_frozen_in_both_outputs_and_has_its_gradient():
    g = lambda x: targets.profile()(f(x))

    @jax.jit
    def evaluate(x, reference):
        y, y_reference, pullback = jaxlift.vjp(g, x, reference)
        return y, y_reference, pullback(1.0), jax.grad(g)(x)

    y, y_reference, m, _ = evaluate(X, R)
    close(y, g(X))
    assert abs(y_reference - g(R)) > 0.1
    close(m @ (X - R), y - y_reference)
    *_, m, gradient = evaluate(X, X)
    close(m, gradient)


@pytest.mark.parametrize("name", ["log_odds", "profile"])
def test_summed_explains_each_example_on_its_own(name):
    target, _ = TARGETS[name]
    batch, references = jnp.stack([X, Z]), jnp.stack([R, X])
    together = jaxlift.deeplift(f, target=targets.summed(target))
    apart = jax.vmap(jaxlift.deeplift(f, target=target))
    close(jax.jit(together)(batch, references), jax.jit(apart)(batch, references))


SHIFTED = {k: v for k, v in TARGETS.items() if "logit" not in k}


@pytest.mark.parametrize("target, _", SHIFTED.values(), ids=SHIFTED)
def test_what_goes_to_all_outputs_alike_is_not_explained(target, _):
    y = np.asarray(f(X))
    close(target(y), target(y + 7), 1e-5)
    to_all = lambda x: jnp.full(CLASSES, jnp.tanh(x).sum())
    close(jax.jit(jaxlift.deeplift(to_all, target=target))(X, R), 0, 1e-5)


def test_log_odds_are_those_of_the_softmax():
    p = softmax(np.asarray(f(X)))
    close(targets.log_odds(4, 1)(f(X)), np.log(p[4] / p[1]), 1e-5)


def test_mean_normalised_targets_cancel_over_the_classes():
    close(sum(targets.mean_normalised(k)(f(X)) for k in range(CLASSES)), 0, 1e-5)


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 1), (-2, -1)])
def test_profile_over_any_axes(axis):
    # Joint over several axes: one multinomial for both strands.
    y = np.asarray(jnp.outer(f(X), jnp.arange(1.0, 4.0)))
    centred = y - y.mean(axis, keepdims=True)
    expected = (softmax(y, axis) * centred).sum(axis)
    close(targets.profile(axis)(jnp.asarray(y)), expected, 1e-5)


def test_the_weights_of_a_profile_are_not_explained():
    # One position far above the others: its weight is 1 at the input, and stays 1.
    peak = lambda x: jnp.zeros(CLASSES).at[0].set(50 + x.sum())
    c = jax.jit(jaxlift.deeplift(peak, target=targets.profile()))(X, R)
    close(c, (X - R) * (1 - 1 / CLASSES), 1e-5)


def test_several_outputs_from_one_evaluation():
    calls = []

    def counted(x):
        calls.append(1)
        return f(x)

    @jax.jit
    def explain(x, reference):
        y, y_reference, pullback = jaxlift.vjp(counted, x, reference)
        return jax.vmap(pullback)(jnp.eye(CLASSES)) * (x - reference), y - y_reference

    contributions, change = explain(X, R)
    assert len(calls) == 1
    close(contributions.sum(-1), change, 1e-5)
    alone = jax.jit(jaxlift.deeplift(f, target=3))(X, R)
    close(contributions[3], alone)


def test_neuron_attribution():
    neuron = jaxlift.intermediate(f, "hidden")
    c = jax.jit(
        jax.vmap(lambda unit: jaxlift.deeplift(neuron, target=lambda h: h[unit])(X, R))
    )
    # A unit relu(x @ w) is one step: its slope, shared out by x_i w_i.
    x, r, w = np.asarray(X), np.asarray(R), np.asarray(W)
    z, z0 = x @ w, r @ w
    slope = (np.maximum(z, 0) - np.maximum(z0, 0)) / (z - z0)
    close(c(jnp.arange(CLASSES)), (slope * w * (x - r)[:, None]).T, 1e-5)


ERRORS = {
    "class": (ValueError, r"class 5.*\(5,\)", lambda: targets.logit(5)(f(X))),
    "class from the end": (ValueError, "-6", lambda: targets.logit(-6)(f(X))),
    "either class": (ValueError, "class 9", lambda: targets.log_odds(0, 9)(f(X))),
    "mean": (ValueError, "class 7", lambda: targets.mean_normalised(7)(f(X))),
    "no classes": (ValueError, r"\(\)", lambda: targets.logit(0)(X.sum())),
    "no integer": (TypeError, "'dog'", lambda: targets.logit("dog")),
    "not integers": (TypeError, "1.5", lambda: targets.log_odds(0, 1.5)),
    "an axis twice": (
        ValueError, r"axis \(0, -1\).*\(5,\)", lambda: targets.profile((0, -1))(f(X))),
    "several outputs": (
        TypeError, r"tuple.*profile\(\)\(y\[0\]\)",
        lambda: targets.profile()((f(X), X))),
    "no such axis": (ValueError, "axis 3", lambda: targets.profile(3)(f(X))),
}  # fmt: skip


@pytest.mark.parametrize("kind, message, call", ERRORS.values(), ids=ERRORS)
def test_errors(kind, message, call):
    with pytest.raises(kind, match=message):
        jax.eval_shape(call)
