"""Models of the ecosystem's libraries, unmodified: complete, and exact in the limit."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from test_networks import evaluator, gaps

import jaxlift

KEY_X, KEY_R, KEY_P = jax.random.split(jax.random.key(11), 3)
IMAGE, SEQUENCE = (8, 8, 1), (6, 4)
# Further apart, attention over raw products has contributions to its logits that are
# thousands of times its output, and float32 keeps 1e-4 of it.
DISTANCES = [0.001, 1.0, 10.0]


def check(f, shape):
    """Completeness, both outputs, and the gradient where the points coincide."""
    evaluate = evaluator(f)
    x, noise = jax.random.normal(KEY_X, shape), jax.random.normal(KEY_R, shape)
    for r in [*(x + noise * distance for distance in DISTANCES), jnp.zeros(shape)]:
        y, y0, slopes, fx, fr, _ = evaluate(x, r)
        gap, allowed = gaps(x, r, y, y0, slopes)
        assert (gap <= allowed).all(), (gap, allowed)
        np.testing.assert_allclose(y, fx, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(y0, fr, rtol=1e-5, atol=1e-5)
    _, _, slopes, _, _, gradient = evaluate(x, x)
    assert np.abs(gradient).max() > 0
    assert abs(slopes - gradient).max() <= 1e-6 * max(1, abs(gradient).max())


# dm-haiku


def haiku_cnn(x):
    x = jax.nn.relu(hk.Conv2D(4, 3)(x[None]))
    x = hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), "VALID")(x)
    x = jax.nn.gelu(hk.Conv2D(4, 3, padding="VALID")(x))
    x = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
    return hk.Linear(3)(hk.Flatten()(x))[0]


def haiku_lstm(x):
    core = hk.LSTM(5)
    hidden, _ = hk.dynamic_unroll(core, x, core.initial_state(None))
    return hk.Linear(3)(hidden[-1])


def haiku_attention(x):
    attend = hk.MultiHeadAttention(2, 3, w_init=hk.initializers.VarianceScaling())
    x = hk.Linear(6)(x)
    return hk.Linear(3)((x + attend(x, x, x)).mean(0))


HAIKU = [
    (haiku_cnn, IMAGE),
    (haiku_lstm, SEQUENCE),
    (haiku_attention, SEQUENCE),
]


@pytest.mark.parametrize("net, shape", HAIKU, ids=[net.__name__ for net, _ in HAIKU])
def test_haiku(net, shape):
    net = hk.without_apply_rng(hk.transform(net))
    params = net.init(KEY_P, jnp.zeros(shape))
    check(lambda x: net.apply(params, x), shape)


# Keras 3 on the JAX backend


def keras_cnn():
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input(IMAGE),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Conv2D(4, 2, activation="elu"),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax"),
        ]
    )


def keras_lstm():
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input(SEQUENCE),
            layers.LSTM(5, return_sequences=True),
            layers.LSTM(4),
            layers.Dense(3),
        ]
    )


def keras_attention():
    layers = keras.layers
    inputs = x = layers.Input(SEQUENCE)
    x = layers.Dense(6)(x)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 3)(x, x))
    x = layers.GlobalAveragePooling1D()(layers.Dense(8, activation="gelu")(x))
    return keras.Model(inputs, layers.Dense(3)(x))


KERAS = [
    (keras_cnn, IMAGE),
    (keras_lstm, SEQUENCE),
    (keras_attention, SEQUENCE),
]


@pytest.mark.parametrize("make, shape", KERAS, ids=[make.__name__ for make, _ in KERAS])
def test_keras(make, shape):
    keras.utils.set_random_seed(0)
    model = make()
    trained = [v.value for v in model.trainable_variables]
    fixed = [v.value for v in model.non_trainable_variables]

    def f(x):
        y, _ = model.stateless_call(trained, fixed, x[None], training=False)
        return y[0]

    check(f, shape)


# flax.nnx modules that write state: split outside, merge a copy inside


class NnxRecurrent(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(4, 5, rngs=rngs))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(self.rnn(x[None])[0, -1]))


class NnxCounting(nnx.Module):
    """Writes two states at each call: its running averages and a count."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 6, (3,), rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(6, 3, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        x = nnx.silu(self.norm(self.conv(x)))
        return self.dense(self.dropout(x)).mean(0)


@pytest.mark.parametrize("make", [NnxRecurrent, NnxCounting])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_nnx_with_state(make, mode):
    model = make(nnx.Rngs(0))
    if mode == "eval":
        model.eval()  # otherwise one dropout mask, the same at both points
    graphdef, state = nnx.split(model)
    check(lambda x: nnx.merge(graphdef, state, copy=True)(x), SEQUENCE)


def test_nnx_with_state_that_is_not_split_says_how_to():
    model = NnxCounting(nnx.Rngs(0))
    with pytest.raises(Exception, match="Cannot mutate") as raised:
        jaxlift.deeplift(model, target=0)(jnp.ones(SEQUENCE), 0.0)
    assert any("nnx.merge(graphdef" in note for note in raised.value.__notes__)


# A block of the genomics transformers


def enformer_block(dtype):
    """Pooled, attended and gated as in Enformer and AlphaGenome, ``dtype`` inside."""
    length, channels, heads, depth, features = 16, 8, 2, 4, 5
    keys = iter(jax.random.split(KEY_P, 20))
    weight = lambda *shape: jax.random.normal(next(keys), shape) / shape[0] ** 0.5
    gelu = lambda x: x * jax.nn.sigmoid(1.702 * x)
    product = lambda spec, *operands: jnp.einsum(
        spec,
        *(operand.astype(dtype) for operand in operands),
        preferred_element_type=jnp.float32,
    )
    kernel, pool_weight = weight(5, 4, channels), 2 * jnp.eye(channels)
    variance, scale = jnp.exp(weight(channels)), 1 + weight(channels) / 4
    wq, wk, wv = (weight(channels, heads, depth) for _ in range(3))
    wr, wo = weight(features, heads, depth), weight(heads * depth, channels)
    bias_content, bias_position = weight(heads, depth), weight(heads, depth)
    up, down, head = weight(channels, 16), weight(16, channels), weight(channels, 3)

    half = length // 2
    distance = jnp.arange(half)[None] - jnp.arange(half)[:, None]
    basis = jnp.exp(-jnp.abs(distance)[..., None] / 2.0 ** jnp.arange(features))
    basis = basis * jnp.where(distance < 0, -1.0, 1.0)[..., None]
    relative = jnp.einsum("qkf,fhd->qkhd", basis, wr)

    def norm(x):  # RMS batch norm in eval mode: no mean, a stored variance
        return x * jax.lax.rsqrt(variance + 1e-5) * scale

    def convolve(x):
        return jax.lax.conv_general_dilated(
            x.astype(dtype)[None],
            kernel.astype(dtype),
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
        )[0].astype(jnp.float32)

    def attention_pool(x):
        pairs = x.reshape(half, 2, channels)
        weights = jax.nn.softmax(product("lpc,cd->lpd", pairs, pool_weight), axis=1)
        return (pairs * weights).sum(1)

    @jax.checkpoint
    def attend(x):
        x = norm(x)
        q, k, v = (product("lc,chd->lhd", x, w) for w in (wq, wk, wv))
        content = product("qhd,khd->hqk", q + bias_content, k)
        position = product("qhd,qkhd->hqk", q + bias_position, relative)
        logits = (content + position) / depth**0.5
        weights = jax.nn.softmax(5.0 * jnp.tanh(logits / 5.0))
        return product("hqk,khd->qhd", weights, v).reshape(half, -1) @ wo

    @jax.checkpoint
    def feed_forward(x):
        hidden = jax.nn.relu(product("lc,cd->ld", norm(x), up))
        return product("ld,dc->lc", hidden, down)

    def f(x):
        x = attention_pool(gelu(norm(convolve(x))))
        x = x + attend(x)
        x = x + feed_forward(x)
        return jax.nn.softplus(product("lc,cd->ld", gelu(x), head)).mean(0)

    return f, (length, 4)


def test_genomics_block():
    check(*enformer_block(jnp.float32))


def test_genomics_block_in_bfloat16():
    f, shape = enformer_block(jnp.bfloat16)
    evaluate = evaluator(f)
    x, noise = jax.random.normal(KEY_X, shape), jax.random.normal(KEY_R, shape)
    for r in [x + noise, x + 30 * noise, jnp.zeros(shape)]:
        y, y0, slopes, fx, fr, _ = evaluate(x, r)
        gap = abs((slopes * (x - r)).sum((1, 2)) - (y - y0))
        assert (gap <= 2e-2 * np.maximum(1, np.maximum(abs(y), abs(y0)))).all(), gap
        np.testing.assert_allclose(y, fx, rtol=2e-2, atol=2e-2)
        np.testing.assert_allclose(y0, fr, rtol=2e-2, atol=2e-2)
    _, _, slopes, _, _, gradient = evaluate(x, x)
    assert abs(slopes - gradient).max() <= 2e-2 * abs(gradient).max()
