"""The benchmark networks again, in PyTorch, with the weights of the flax ones.

Written as the tools demand: an nn module for every non-linear step, each used once.
The input has its channels first where PyTorch wants that; the output is (rows, 1).
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Layers:
    """PyTorch layers out of flax weights, in the order in which flax made them."""

    def __init__(self, weights: dict):
        self.weights, self.taken = weights, Counter()

    def next(self, kind: str, collection: str = "params") -> dict:
        number = self.taken[collection, kind]
        self.taken[collection, kind] += 1
        return self.weights[collection][f"{kind}_{number}"]

    def dense(
        self, outputs: int | None = None, channels: int | None = None
    ) -> nn.Linear:
        """A dense layer: the first `outputs` only, and after `channels` of a sequence.

        flax flattens (positions, channels), PyTorch (channels, positions).
        """
        w = self.next("Dense")
        kernel, bias = w["kernel"][:, :outputs], w["bias"][:outputs]
        if channels:
            blocks = kernel.reshape(-1, channels, kernel.shape[-1])
            kernel = blocks.swapaxes(0, 1).reshape(kernel.shape)
        return filled(nn.Linear(*kernel.shape), weight=kernel.T, bias=bias)

    def conv(self, **options: Any) -> nn.Module:
        w = self.next("Conv")
        *size, inputs, outputs = w["kernel"].shape
        make = (nn.Conv1d, nn.Conv2d)[len(size) - 1]
        conv = make(inputs, outputs, tuple(size), bias="bias" in w, **options)
        return filled(
            conv, **w | {"weight": np.moveaxis(w["kernel"], (-1, -2), (0, 1))}
        )

    def batch_norm(self) -> nn.BatchNorm2d:
        w = self.next("BatchNorm")
        moments = self.next("BatchNorm", "batch_stats")
        norm = filled(nn.BatchNorm2d(len(w["bias"])), weight=w["scale"], bias=w["bias"])
        return filled(norm, running_mean=moments["mean"], running_var=moments["var"])

    def layer_norm(self) -> nn.LayerNorm:
        w = self.next("LayerNorm")
        norm = nn.LayerNorm(len(w["bias"]), eps=1e-6)
        return filled(norm, weight=w["scale"], bias=w["bias"])

    def heads(self) -> dict[str, nn.Linear]:
        """The projections of an attention: query, key and value to heads, and out."""
        w = self.next("MultiHeadDotProductAttention")
        width = w["out"]["bias"].size
        return {
            name: filled(
                nn.Linear(width, width),
                weight=w[name]["kernel"].reshape(width, width).T,
                bias=w[name]["bias"].reshape(width),
            )
            for name in ("query", "key", "value", "out")
        }


def filled(module: nn.Module, **values: np.ndarray) -> nn.Module:
    """A module with the given values in its parameters and buffers."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name in values:
                tensor.copy_(torch.from_numpy(np.array(values[name])))
    return module


class Product(nn.Module):
    """The product of two matrices that both depend on the input."""

    def forward(self, left, right):
        return left @ right


def mlp(layers: Layers, product: Callable) -> nn.Module:
    hidden = (layers.dense(), nn.ReLU(), layers.dense(), nn.ReLU())
    return nn.Sequential(*hidden, layers.dense(outputs=1))


def dna_cnn(layers: Layers, product: Callable) -> nn.Module:
    steps = []
    for _ in range(2):
        steps += [layers.conv(padding="same"), nn.ReLU(), nn.MaxPool1d(4)]
    steps += [nn.Flatten(), layers.dense(channels=64), nn.ReLU(), layers.dense()]
    return nn.Sequential(*steps)


class BpNet(nn.Module):
    def __init__(self, layers: Layers, product: Callable):
        super().__init__()
        self.first = nn.Sequential(layers.conv(padding="same"), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(layers.conv(padding="same", dilation=2**k), nn.ReLU())
            for k in range(1, 9)
        )
        self.head = layers.dense()

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(-1))


class Normalised(nn.Module):
    """A convolution, padded as in flax, and batch normalisation."""

    def __init__(self, layers: Layers, stride: int = 1):
        super().__init__()
        options = {"padding": "same"} if stride == 1 else {"stride": stride}
        self.conv, self.norm = layers.conv(**options), layers.batch_norm()
        extra = max(self.conv.kernel_size[0] - stride, 0) if stride > 1 else 0
        self.padding = (0, extra) * 2 if extra else None  # PyTorch pads both sides

    def forward(self, x):
        return self.norm(self.conv(F.pad(x, self.padding) if self.padding else x))


class Block(nn.Module):
    def __init__(self, layers: Layers, stride: int):
        super().__init__()
        first = Normalised(layers, stride)
        self.body = nn.Sequential(first, nn.ReLU(), Normalised(layers))
        self.shortcut = Normalised(layers, stride) if stride > 1 else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.shortcut(x) + self.body(x))


class ResNet(nn.Module):
    def __init__(self, layers: Layers, product: Callable):
        super().__init__()
        strides = (1, 1, 2, 1, 2, 1)
        first = Normalised(layers), nn.ReLU()
        self.body = nn.Sequential(*first, *(Block(layers, s) for s in strides))
        self.head = layers.dense()

    def forward(self, x):
        return self.head(self.body(x).mean((-1, -2)))


GATES = "ifgo"  # PyTorch's order


def gate_weights(layers: Layers) -> dict[str, np.ndarray]:
    w = layers.next("OptimizedLSTMCell")
    stacked = {
        side: np.concatenate([w[side + gate]["kernel"].T for gate in GATES])
        for side in "ih"
    }
    bias = np.concatenate([w["h" + gate]["bias"] for gate in GATES])
    return {
        "weight_ih_l0": stacked["i"],
        "weight_hh_l0": stacked["h"],
        "bias_ih_l0": bias,
        "bias_hh_l0": np.zeros_like(bias),
    }


class Lstm(nn.Module):
    def __init__(self, layers: Layers, product: Callable):
        super().__init__()
        w = gate_weights(layers)
        outputs, inputs = w["weight_ih_l0"].shape
        self.lstm = filled(nn.LSTM(inputs, outputs // 4, batch_first=True), **w)
        self.head = layers.dense()

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class WrittenOutLstm(nn.Module):
    """The same, rewritten for a tool that has a module for products."""

    def __init__(self, layers: Layers, times: Callable):
        super().__init__()
        w = gate_weights(layers)
        size, inputs = w["weight_ih_l0"].shape
        self.inputs = nn.Linear(inputs, size)
        filled(self.inputs, weight=w["weight_ih_l0"], bias=w["bias_ih_l0"])
        self.state = nn.Linear(size // 4, size, bias=False)
        filled(self.state, weight=w["weight_hh_l0"])
        self.sigmoid, self.tanh, self.squash = nn.Sigmoid(), nn.Tanh(), nn.Tanh()
        self.keep, self.write, self.read = times(), times(), times()
        self.head = layers.dense()

    def forward(self, x):
        h = c = x.new_zeros(len(x), self.state.in_features)
        for at_step in self.inputs(x).unbind(1):
            i, f, g, o = (at_step + self.state(h)).chunk(4, -1)
            i, f, o = self.sigmoid(torch.cat((i, f, o), -1)).chunk(3, -1)
            c = self.keep(f, c) + self.write(i, self.tanh(g))
            h = self.read(o, self.squash(c))
        return self.head(h)


class Attention(nn.Module):
    heads = 4

    def __init__(self, layers: Layers, product: Callable):
        super().__init__()
        self.project = nn.ModuleDict(layers.heads())
        self.scores, self.mix, self.softmax = product(), product(), nn.Softmax(-1)

    def forward(self, x):
        def split(name):
            return self.project[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query, key, value = map(split, ("query", "key", "value"))
        scores = self.scores(query / query.shape[-1] ** 0.5, key.transpose(-1, -2))
        mixed = self.mix(self.softmax(scores), value)
        return self.project["out"](mixed.transpose(1, 2).flatten(-2))


class Encoder(nn.Module):
    def __init__(self, layers: Layers, product: Callable):
        super().__init__()
        self.attention = nn.Sequential(layers.layer_norm(), Attention(layers, product))
        norm, wide, narrow = layers.layer_norm(), layers.dense(), layers.dense()
        self.dense = nn.Sequential(norm, wide, nn.GELU("tanh"), narrow)

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.dense(x)


class Transformer(nn.Module):
    def __init__(self, layers: Layers, product: Callable):
        super().__init__()
        position = torch.from_numpy(np.array(layers.weights["params"]["position"]))
        self.register_buffer("position", position)
        self.body = nn.Sequential(*(Encoder(layers, product) for _ in range(2)))
        self.norm, self.head = layers.layer_norm(), layers.dense()

    def forward(self, x):
        return self.head(self.norm(self.body(x + self.position)).mean(1))


TWINS = {
    "mlp": mlp,
    "dna_cnn": dna_cnn,
    "bpnet": BpNet,
    "resnet": ResNet,
    "lstm": Lstm,
    "transformer": Transformer,
}
CHANNELS_FIRST = {"dna_cnn", "bpnet", "resnet"}


class Reshaped(nn.Module):
    """A network for a tool that takes its rows in another shape."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]):
        super().__init__()
        self.network, self.shape = network, shape

    def forward(self, x):
        return self.network(x.reshape(len(x), *self.shape))
