"""Activations composed by hand: of one input the multiplier is one number, so that
completeness is all there is to it, near and far, in every float."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import nn
from sampling import ALL

import jaxlift

COMPOSED = {
    "sigmoid": lambda x: jnp.exp(x) / (1 + jnp.exp(x)),
    "tanh": lambda x: (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x)),
    "hill": lambda x: abs(x) ** 3 / (5 + abs(x) ** 3),
    "rational": lambda x: x**4 / (1 + x**4),
    "gamma density": lambda x: x**4 * jnp.exp(-x),
    "saturating": lambda x: (jnp.exp(x) - 1) / jnp.exp(x),
    "bump": lambda x: jnp.exp(-x * x) * x,
    "rsqrt": lambda x: x * jax.lax.rsqrt(1 + x * x),
    "sqrt": lambda x: x / jnp.sqrt(1 + x * x),
    "soft_sign": nn.soft_sign,
    "silu": nn.silu,
    "relu": nn.relu,
    "logistic": nn.sigmoid,
    "gelu": nn.gelu,
    "gelu exact": lambda x: nn.gelu(x, approximate=False),
    "mish": nn.mish,
    "hard_swish": nn.hard_swish,
    "relu by abs": lambda x: (x + abs(x)) / 2,
    "cubic": lambda x: x * x * x - 2 * x * x + x,
    "self power": lambda x: (x * x + 1) ** (x / (1 + abs(x))),
    "capped": lambda x: jnp.minimum(x * x, jnp.maximum(3 * x, 2 - x)),
    "angle": lambda x: jnp.arctan2(x - 1, x * x),
    # What rounding is blown up in,
    "complement": lambda x: jnp.log(1 - nn.sigmoid(x)),
    "cross entropy": lambda x: -0.3 * jnp.log(p := nn.sigmoid(x)) - jnp.log(1 - p),
    "there and back": lambda x: jnp.arctanh(jnp.tanh(x)),
    # and what is infinite at 0 inside, and finite again.
    "capped log": lambda x: jnp.maximum(jnp.log(abs(x)), -10),
    "rate": lambda x: jnp.tanh(jnp.log(abs(x))),
    "inverse": lambda x: jnp.arctan(1 / x),
    "power of two": lambda x: 2 ** jnp.maximum(jnp.floor(jnp.log2(abs(x))), -8),
}
POINTS = np.array([-776, -40.0, -7, -3, -1, -0.1, 0, 1e-3, 0.5, 1, 1.001, 4, 10, 20])
POINTS = np.array([*POINTS, 49.5, 60, 100])
PAIRS = np.stack(np.meshgrid(POINTS, POINTS)).reshape(2, -1)
FARTHEST = {"bfloat16": 1000, "float16": 100, "float32": 1000, "float64": 1000}
RULES = {  # and the power of eps to which rounding may grow
    "rescale": (jaxlift.RESCALE, 0.0),
    # What goes back is the sum and the difference of two multipliers; that of the part
    # which is not there may be the larger one.
    "reveal_cancel": (jaxlift.REVEAL_CANCEL, -0.2),
}


@pytest.mark.parametrize(
    "rules, dtype",
    [
        *(("rescale", dtype) for dtype in FARTHEST if ALL or dtype != "float16"),
        *(("reveal_cancel", dtype) for dtype in (FARTHEST if ALL else ["float32"])),
    ],
)
def test_complete_to_rounding(rules, dtype):
    table, power = RULES[rules]

    def explained(x, r):
        weights = jnp.ones((1, 1), x.dtype)  # the one that is there opens a split
        rows = []
        for activation in COMPOSED.values():
            f = lambda x, activation=activation: activation(x[None] @ weights)[0]
            y, y0, pullback = jaxlift.vjp(f, x, r, rules=table)
            rows.append((y, y0, pullback(jnp.ones_like(y))))
        return rows

    x, r = PAIRS[:, abs(PAIRS).max(0) <= FARTHEST[dtype]]
    with jax.enable_x64(dtype == "float64"):
        x, r = jnp.asarray(x, dtype), jnp.asarray(r, dtype)
        rows = jax.jit(jax.vmap(explained))(x, r)
        eps = float(jnp.finfo(dtype).eps)
    dx = np.float64(x) - np.float64(r)
    for name, row in zip(COMPOSED, rows, strict=True):
        y, y0, m = map(np.float64, row)
        finite = np.isfinite(y) & np.isfinite(y0)
        assert finite.sum() > 30, name
        y, y0, m = (np.where(finite, v, 0) for v in (y, y0, m))
        contribution = np.where(dx == 0, 0, m * dx)  # m is not finite, nor is f'
        gap = abs(contribution - (y - y0)) / np.maximum(np.maximum(abs(y), abs(y0)), 1)
        worst = np.argmax(gap)
        assert gap[worst] <= 6 * eps * eps**power, (
            name,
            x[worst],
            r[worst],
            gap[worst] / eps,
        )


@pytest.mark.parametrize("name", COMPOSED)
def test_the_limit_is_the_gradient_of_jax(name):
    x = jnp.asarray(POINTS[abs(POINTS) <= 20], "float32")
    f = lambda x: COMPOSED[name](x).sum()
    both = jax.jit(lambda x: (jaxlift.multipliers(f)(x, x), jax.grad(f)(x)))
    limit, gradient = both(x)
    finite = np.isfinite(gradient)
    scale = np.maximum(abs(gradient[finite]), 1)
    assert (abs(limit - gradient)[finite] <= 1e-6 * scale).all()


def test_next_to_a_switch_between_continuous_pieces():
    """Its values differ by rounding there: the slope is not their quotient."""
    x = jnp.array([-1.0, 1.0, 0.25, -0.25])
    r = jnp.nextafter(x, jnp.full(4, -jnp.inf))
    for f in (jax.scipy.special.ndtr, lambda x: jnp.where(x > 0.2, x**2, x - 0.16)):
        slopes = jaxlift.multipliers(lambda x, f=f: f(x).sum())(x, r)
        np.testing.assert_allclose(slopes, jax.grad(lambda x, f=f: f(x).sum())(x), 1e-5)
