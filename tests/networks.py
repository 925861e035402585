"""Small networks of every family, as (function, input shape): random weights, no data.

Weights are made in float32 and cast to the dtype that is asked for.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

KEY = jax.random.key(7)


def _linen(module, shape, *args, **kwargs):
    """A linen module as a function of its input, in the input's dtype."""

    @jax.jit
    def draw():
        variables = module.init(KEY, jnp.zeros(shape, jnp.float32), *args, **kwargs)
        leaves, tree = jax.tree.flatten(variables)
        keys = jax.random.split(KEY, len(leaves))
        # Biases, scales and statistics that are not 0 and 1.
        leaves = [
            abs(w + 0.1 * jax.random.normal(k, w.shape))
            if "var" in jax.tree_util.keystr(path)
            else w + 0.1 * jax.random.normal(k, w.shape)
            for (path, w), k in zip(
                jax.tree_util.tree_flatten_with_path(variables)[0], keys, strict=True
            )
        ]
        return jax.tree.unflatten(tree, leaves)

    def make():
        variables = draw()

        def f(x):
            cast = jax.tree.map(lambda w: w.astype(x.dtype), variables)
            return module.apply(cast, x, *args, **kwargs)

        return f

    return make, shape


class MLP(nn.Module):
    activation: object

    @nn.compact
    def __call__(self, x):
        x = self.activation(nn.Dense(9)(x))
        x = self.activation(nn.Dense(8)(x))
        return nn.Dense(3)(x)


class CNN(nn.Module):
    pool: object

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=True)(x)
        x = self.pool(nn.relu(x))
        x = nn.relu(nn.Conv(5, (3, 3), strides=2)(x))
        return nn.Dense(3)(x.reshape(-1))


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3))(x)
        for _ in range(2):
            y = nn.relu(nn.BatchNorm(use_running_average=True)(x))
            y = nn.Conv(6, (3, 3))(y)
            y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
            x = x + nn.Conv(6, (3, 3))(y)
        return nn.Dense(3)(nn.relu(x).mean((0, 1)))


class Normed(nn.Module):
    norm: object

    @nn.compact
    def __call__(self, x):
        x = self.norm()(nn.Dense(8)(x))
        return nn.Dense(3)(nn.relu(x)).sum(0)


class Recurrent(nn.Module):
    cell: object

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(self.cell(7, param_dtype=x.dtype))(x)[-1])


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            y = nn.LayerNorm()(x)
            mask = nn.make_causal_mask(jnp.ones(x.shape[0]))
            x = x + nn.MultiHeadDotProductAttention(num_heads=2)(y, mask=mask)
            y = nn.LayerNorm()(x)
            x = x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(12)(y)))
        return nn.Dense(3)(x.mean(0))


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return x + nn.silu(nn.Dense(x.shape[-1])(nn.RMSNorm()(x))), None

        layers = nn.scan(
            nn.remat(Layer),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = layers()(x, None)
        return nn.Dense(3)(x)


def max_pool(window, stride, padding):
    return lambda x: nn.max_pool(x, window, stride, padding)


ACTIVATIONS = (
    "relu relu6 sigmoid softplus silu gelu elu selu celu leaky_relu hard_tanh "
    "hard_silu hard_sigmoid mish log_sigmoid soft_sign squareplus sparse_plus "
    "sparse_sigmoid tanh "
    "log_softmax softmax standardize"
).split()

NETWORKS = {
    **{f"mlp_{a}": _linen(MLP(getattr(jax.nn, a)), (5,)) for a in ACTIVATIONS},
    "mlp_gelu_erf": _linen(MLP(lambda x: jax.nn.gelu(x, approximate=False)), (5,)),
    "mlp_where": _linen(
        MLP(
            lambda x: jnp.where(x > 0, jnp.log1p(jnp.where(x > 0, x, 0)), jnp.expm1(x))
        ),
        (5,),
    ),
    "cnn_max": _linen(CNN(max_pool((2, 2), (2, 2), "VALID")), (8, 8, 1)),
    "cnn_max_overlapping": _linen(CNN(max_pool((3, 3), (2, 2), "SAME")), (8, 8, 1)),
    "cnn_max_stride_1": _linen(CNN(max_pool((2, 3), (1, 1), "VALID")), (8, 8, 1)),
    "cnn_avg": _linen(CNN(lambda x: nn.avg_pool(x, (2, 2), (2, 2))), (8, 8, 1)),
    "cnn_global_max": _linen(
        CNN(lambda x: jnp.broadcast_to(x.max((0, 1)), (4, 4, 6))), (8, 8, 1)
    ),
    "resnet": _linen(ResNet(), (6, 6, 2)),
    "layer_norm": _linen(Normed(nn.LayerNorm), (4, 5)),
    "rms_norm": _linen(Normed(nn.RMSNorm), (4, 5)),
    "group_norm": _linen(Normed(lambda: nn.GroupNorm(2)), (4, 5)),
    "lstm": _linen(Recurrent(nn.LSTMCell), (6, 4)),
    "gru": _linen(Recurrent(nn.GRUCell), (6, 4)),
    "encoder": _linen(Encoder(), (5, 8)),
    "scanned_remat": _linen(Scanned(), (6,)),
}
"""Name to (a function that makes the network, the shape of its input)."""
