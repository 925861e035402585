"""The benchmark networks: each maps one example to a scalar logit.

Sized so that one jitted gradient of the batch takes 10 to 300 ms on two cores.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

SEED = 0


@dataclasses.dataclass(frozen=True)
class Network:
    """`apply(weights, x)` is the logit of one example `x` of the given shape."""

    name: str
    apply: Callable[[Any, jax.Array], jax.Array]
    weights: Any
    shape: tuple[int, ...]
    batch: int

    def rows(self, count: int, seed: int) -> jax.Array:
        """Random examples; those with four channels are one-hot DNA."""
        key = jax.random.key(seed)
        if self.shape[-1] == 4:
            bases = jax.random.randint(key, (count, *self.shape[:-1]), 0, 4)
            return jax.nn.one_hot(bases, 4)
        return jax.random.normal(key, (count, *self.shape))


class MLP(nn.Module):
    """784-512-512-10."""

    depth: int = 2
    width: int = 512

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(10)(x)[..., 0]


class DnaCnn(nn.Module):
    """Two convolutions with max-pooling, then a dense layer."""

    @nn.compact
    def __call__(self, x):
        for width in (15, 8):
            x = nn.relu(nn.Conv(64, (width,))(x))
            x = nn.max_pool(x, (4,), (4,))
        x = nn.relu(nn.Dense(64)(x.reshape(-1)))
        return nn.Dense(1)(x)[0]


class BpNet(nn.Module):
    """Dilated convolutions with residual connections; the head that counts reads."""

    depth: int = 8
    width: int = 64

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.width, (21,))(x))
        for k in range(self.depth):
            conv = nn.Conv(self.width, (3,), kernel_dilation=2 ** (k + 1))
            x = x + nn.relu(conv(x))
        return nn.Dense(1)(x.mean(0))[0]


class ResNet(nn.Module):
    """Three stages of two blocks, batch normalisation with stored statistics."""

    width: int = 16

    @nn.compact
    def __call__(self, x):
        def normalised(x, features, size, stride):
            x = nn.Conv(features, (size, size), stride, use_bias=False)(x)
            return nn.BatchNorm(use_running_average=True)(x)

        x = nn.relu(normalised(x, self.width, 3, 1))
        for features in (self.width, 2 * self.width, 4 * self.width):
            for _ in range(2):
                stride = features // x.shape[-1]
                y = nn.relu(normalised(x, features, 3, stride))
                y = normalised(y, features, 3, 1)
                if stride > 1:
                    x = normalised(x, features, 1, stride)
                x = nn.relu(x + y)
        return nn.Dense(1)(x.mean((0, 1)))[0]


class Lstm(nn.Module):
    """One layer; the logit is read from the last state."""

    width: int = 64

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.RNN(nn.OptimizedLSTMCell(self.width))(x)[-1])[0]


class Transformer(nn.Module):
    """Pre-norm encoder layers with gelu."""

    depth: int = 2
    width: int = 64
    heads: int = 4

    @nn.compact
    def __call__(self, x):
        x = x + self.param("position", nn.initializers.normal(0.1), x.shape)
        for _ in range(self.depth):
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
            y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(y)
        return nn.Dense(1)(nn.LayerNorm()(x).mean(0))[0]


def build(name: str, module: nn.Module, shape: tuple[int, ...], batch: int) -> Network:
    """A network with weights from a fixed seed, none of them just 0 or 1."""

    def drawn(path, weight, key):
        noise = 0.1 * jax.random.normal(key, weight.shape)
        variance = path[-1] == jax.tree_util.DictKey("var")
        return abs(weight + noise) if variance else weight + (weight.ndim < 2) * noise

    key = jax.random.key(SEED)
    weights = jax.jit(module.init)(key, jnp.zeros(shape))
    tree = jax.tree.structure(weights)
    keys = jax.tree.unflatten(tree, jax.random.split(key, tree.num_leaves))
    weights = jax.tree_util.tree_map_with_path(drawn, weights, keys)
    return Network(name, module.apply, weights, shape, batch)


_SPECIFICATIONS = {
    "mlp": (MLP(), (784,), 1024),
    "dna_cnn": (DnaCnn(), (1000, 4), 16),
    "bpnet": (BpNet(), (1000, 4), 8),
    "resnet": (ResNet(), (32, 32, 3), 16),
    "lstm": (Lstm(), (100, 64), 64),
    "transformer": (Transformer(), (64, 64), 32),
}
NAMES = tuple(_SPECIFICATIONS)


def network(name: str) -> Network:
    """One of the benchmark networks, `NAMES`."""
    return build(name, *_SPECIFICATIONS[name])
