"""Gradient-type tables, each restated in matrix algebra."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlift

KEYS = jax.random.split(jax.random.key(5), 5)
W1 = np.asarray(jax.random.normal(KEYS[0], (5, 6)))
B1 = np.asarray(jax.random.normal(KEYS[1], (6,)))
W2 = np.asarray(jax.random.normal(KEYS[2], (6, 4)))
W3 = np.asarray(jax.random.normal(KEYS[3], (4,)))
X = jax.random.normal(KEYS[4], (5,))

RELUS = [
    jax.nn.relu,
    lambda z: jnp.maximum(z, 0),
    lambda z: jnp.maximum(0.0, z),
    lambda z: jnp.maximum(z, jnp.zeros_like(z)),
    lambda z: jnp.clip(z, 0),
    lambda z: jax.jit(jnp.maximum)(z, 0.0),
]
ACTIVATIONS = {
    "relu": (jax.nn.relu, lambda z: np.maximum(z, 0)),
    "tanh": (jnp.tanh, np.tanh),
    "sigmoid": (jax.nn.sigmoid, lambda z: 1 / (1 + np.exp(-z))),
    "silu": (jax.nn.silu, lambda z: z / (1 + np.exp(-z))),
    "softplus": (jax.nn.softplus, lambda z: np.log1p(np.exp(z))),
    "elu": (jax.nn.elu, lambda z: np.where(z > 0, z, np.expm1(z))),
    "leaky_relu": (jax.nn.leaky_relu, lambda z: np.where(z > 0, z, 0.01 * z)),
}


def network(activation):
    return lambda x: activation(activation(x @ W1 + B1) @ W2) @ W3


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("relu", RELUS)
def test_guided_backprop_and_deconvnet(relu):
    z1 = np.asarray(X) @ W1 + B1
    z2 = np.maximum(z1, 0) @ W2
    cut = lambda g: np.maximum(g, 0)
    guided = (cut(cut(W3) * (z2 > 0) @ W2.T) * (z1 > 0)) @ W1.T
    deconv = cut(cut(W3) @ W2.T) @ W1.T
    m = jaxlift.multipliers(network(relu), rules=jaxlift.GUIDED_BACKPROP)
    close(m(X, 0.0), guided)
    close(jax.jit(m)(X, 0.0), guided)
    close(jaxlift.multipliers(network(relu), rules=jaxlift.DECONVNET)(X, 0.0), deconv)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_lrp_multiplies_by_the_ratio(name):
    activation, numpy_activation = ACTIVATIONS[name]
    z1 = np.asarray(X, np.float64) @ W1 + B1
    a1 = numpy_activation(z1)
    z2 = a1 @ W2
    expected = ((W3 * numpy_activation(z2) / z2) @ W2.T * a1 / z1) @ W1.T
    m = jaxlift.multipliers(network(activation), rules=jaxlift.LRP)(X, 0.0)
    close(m, expected)


@pytest.mark.parametrize(
    "rules", [jaxlift.GUIDED_BACKPROP, jaxlift.DECONVNET, jaxlift.LRP, jaxlift.GRADIENT]
)
def test_what_is_not_a_relu_keeps_its_gradient(rules):
    f = lambda x: (jax.nn.softmax(x @ W1) @ jnp.sort(x @ W1)) + jnp.linalg.norm(x)
    close(jaxlift.multipliers(f, rules=rules)(X, 0.3), jax.grad(f)(X))


def test_winner_at_input_ignores_the_reference():
    f = lambda x: (
        jax.lax.reduce_window(
            x * x[::-1], -jnp.inf, jax.lax.max, (2,), (1,), "VALID"
        ).sum()
        + x.max()
    )
    rules = jaxlift.RESCALE | jaxlift.WINNER_AT_INPUT
    m = jaxlift.multipliers(f, rules=rules)
    pooled = lambda x: x.max()
    only = jaxlift.multipliers(pooled, rules=rules)
    close(only(X, 5.0), jax.grad(pooled)(X))
    close(m(X, X), jax.grad(f)(X))


def test_relevance_of_what_is_masked():
    """A mask is no activation: minus infinity is as good as a large number."""
    mask, x = jnp.array([True, True, False]), jnp.array([1.0, 2.0, 3.0])
    for f in (jax.nn.softmax, jax.nn.log_softmax, jax.nn.logsumexp):
        found, expected = (
            jaxlift.deeplift(
                lambda x, f=f, low=low: f(jnp.where(mask, x, low)).ravel()[0],
                rules=jaxlift.LRP,
            )(x, 0.0)
            for low in (-jnp.inf, -1e9)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)
