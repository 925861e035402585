"""Every family of networks is complete, and the gradient is its limit."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import NETWORKS
from sampling import alternating, every

import jaxlift

KEY_X, KEY_R = jax.random.split(jax.random.key(3))
DISTANCES = [0.001, 1.0, 30.0, 1000.0]


def gaps(x, r, y, y0, slopes):
    """Completeness gaps of each output, and what is allowed for each.

    The bound is 1e-5 or 1e-12 of the largest output. Where contributions cancel, no
    float can do better than a few roundings of their absolute sum: at a distance of
    1000 a normalised network's contributions are 1000 times its output.
    """
    c = np.asarray(slopes * (x - r), np.float64).reshape(y.size, -1)
    y, y0 = np.ravel(y).astype(np.float64), np.ravel(y0).astype(np.float64)
    scale = np.maximum(1, np.maximum(abs(y), abs(y0)))
    eps = float(jnp.finfo(x.dtype).eps)
    allowed = np.maximum(
        {4: 1e-5, 8: 1e-12}[x.dtype.itemsize] * scale, 8 * eps * abs(c).sum(1)
    )
    return abs(c.sum(1) - (y - y0)), allowed


def evaluator(f):
    """Outputs and multipliers of every output, in one compiled function."""

    def evaluate(x, r):
        y, y0, pullback = jaxlift.vjp(f, x, r)
        rows = jnp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape)
        return y, y0, jax.vmap(pullback)(rows), f(x), f(r), jax.jacrev(f)(x)

    return jax.jit(evaluate)


def references(x):
    """References at many distances, 1 ulp and zero included."""
    noise = jax.random.normal(KEY_R, x.shape).astype(x.dtype)
    return [
        *(x + noise * distance for distance in DISTANCES),
        jnp.nextafter(x, jnp.full_like(x, jnp.inf)),
        jnp.zeros_like(x),
    ]


# `test_coverage` has the activations one by one.
_MLPS = [name for name in NETWORKS if name.startswith("mlp_")]
_TAKEN = [*every(3, _MLPS), *(name for name in NETWORKS if name not in _MLPS)]


@pytest.mark.parametrize("name, dtype", alternating(_TAKEN))
def test_complete_and_gradient_limit(name, dtype, x64):
    make, shape = NETWORKS[name]
    f = make()
    x = jax.random.normal(KEY_X, shape).astype(dtype)
    evaluate = evaluator(f)
    tolerance = {"float32": 1e-6, "float64": 1e-13}[dtype]
    for r in references(x):
        y, y0, slopes, fx, fr, _ = evaluate(x, r)
        gap, allowed = gaps(x, r, y, y0, slopes)
        assert (gap <= allowed).all(), (gap, allowed)
        np.testing.assert_allclose(y, fx, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(y0, fr, rtol=10 * tolerance, atol=10 * tolerance)
    _, _, slopes, _, _, gradient = evaluate(x, x)
    error = abs(slopes - gradient).max() / max(1, abs(gradient).max())
    assert error <= tolerance


@pytest.mark.parametrize("name", ["mlp_relu", "mlp_relu6", "cnn_max", "mlp_leaky_relu"])
def test_gradient_limit_at_kinks(name):
    # A zero input lands on the kinks of a network without biases.
    make, shape = NETWORKS[name]
    f = make()
    g = lambda x: f(x).sum()
    x = jnp.zeros(shape)
    multipliers = jax.jit(jaxlift.multipliers(g))(x, x)
    np.testing.assert_array_equal(multipliers, jax.jit(jax.grad(g))(x))


@pytest.mark.parametrize("name", ["mlp_silu", "cnn_max_overlapping", "encoder", "gru"])
def test_jit_and_vmap_change_nothing(name):
    make, shape = NETWORKS[name]
    g = jaxlift.deeplift(make(), target=1)
    xs = jax.random.normal(KEY_X, (3, *shape))
    rs = jax.random.normal(KEY_R, (2, *shape))
    once = jax.jit(g)
    loop = np.stack([[once(x, r) for r in rs] for x in xs])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    if name == "mlp_silu":  # others are slow to compile, and to run
        close(g(xs[0], rs[0]), loop[0, 0])
        close(jax.jit(jax.vmap(g, (0, None)))(xs, rs[0]), loop[:, 0])
        close(jax.jit(jax.vmap(g, (None, 0)))(xs[0], rs), loop[0])
        close(jax.jit(jax.vmap(g))(xs[:2], rs), loop[[0, 1], [0, 1]])
    over_both = jax.vmap(jax.vmap(g, (None, 0)), (0, None))
    close(jax.jit(over_both)(xs, rs), loop)


@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.gelu, jax.nn.silu])
def test_memory_is_that_of_a_gradient(activation):
    """One slope is kept of an activation, not its values at both points."""
    x = jnp.ones((512, 64))

    def f(row):
        for _ in range(8):
            row = activation(row @ jnp.ones((64, 64)))
        return row.sum()

    def arrays(function, *args):
        compiled = jax.jit(jax.vmap(function)).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes / x.nbytes

    explained = arrays(jaxlift.deeplift(f), x, x)
    assert 8 <= explained <= 1.4 * arrays(jax.grad(f), x)


def test_compiled_size_is_linear_in_the_depth():
    """Cotangents are added up in the program's order, as those of a gradient are.

    In another one XLA does not store those of a residual stream: it makes them again
    for every layer.
    """

    def operations(depth):
        def f(x):
            for _ in range(depth):
                square, mean = jnp.square(x), x.mean(-1, keepdims=True)
                scale = jax.lax.rsqrt(square.mean(-1, keepdims=True) + 1)
                x = x + jnp.tanh(((x - mean) * scale) @ jnp.ones((8, 8)))
            return x.sum()

        x = jnp.ones((4, 16, 8))
        explain = jax.vmap(jaxlift.deeplift(f), (0, None))
        compiled = jax.jit(explain).lower(x, x[0]).compile()
        return compiled.as_text().count(" multiply(")

    assert operations(6) - operations(4) < 1.2 * (operations(4) - operations(2))


def test_sharded_jit_equals_one_device():
    make, shape = NETWORKS["mlp_gelu"]
    g = jax.vmap(jaxlift.deeplift(make(), target=0), (0, None))
    xs = jax.random.normal(KEY_X, (16, *shape))
    r = jnp.zeros(shape)
    mesh = jax.make_mesh((8,), ("batch",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    sharded = jax.jit(g)(jax.device_put(xs, sharding), r)
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_allclose(sharded, g(xs, r), rtol=1e-5, atol=1e-7)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.max_pool(x, (2, 2), (2, 2)).reshape(-1, 4)
        return self.dense(x + self.attention(x)).mean(0)


def equinox_net(x):
    keys = jax.random.split(jax.random.key(0), 4)
    conv = eqx.nn.Conv2d(1, 4, 3, key=keys[0])
    norm = eqx.nn.GroupNorm(2, 4)
    cell = eqx.nn.GRUCell(4, 5, key=keys[1])
    head = eqx.nn.MLP(5, 3, 8, 1, activation=jax.nn.gelu, key=keys[2])
    x = eqx.nn.MaxPool2d(2, 1)(jax.nn.silu(norm(conv(x))))
    rows = x.reshape(4, -1).T
    hidden, _ = jax.lax.scan(lambda h, row: (cell(row, h), None), jnp.zeros(5), rows)
    return head(hidden)


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: NnxNet(nnx.Rngs(0)), (6, 6, 1)),
        (lambda: equinox_net, (1, 6, 6)),
    ],
    ids=["nnx", "equinox"],
)
def test_other_libraries(make, shape):
    f = make()
    x, r = jax.random.normal(KEY_X, shape), jax.random.normal(KEY_R, shape)
    evaluate = evaluator(f)
    y, y0, slopes, fx, fr, _ = evaluate(x, r)
    gap, allowed = gaps(x, r, y, y0, slopes)
    assert (gap <= allowed).all()
    np.testing.assert_allclose(y, fx, atol=1e-6)
    np.testing.assert_allclose(y0, fr, atol=1e-6)
    *_, slopes, _, _, gradient = evaluate(x, x)
    np.testing.assert_allclose(slopes, gradient, atol=1e-6)
