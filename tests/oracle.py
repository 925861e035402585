"""Networks described by the sidecars of the oracles, as plain JAX functions.

The oracles are scores that other people's software computed on small networks. They lie
beside the repository, in `shared/`, and are not part of it: where they are absent the
lists of cases are empty, and the tests over them are skipped.
"""

from __future__ import annotations

import functools
import inspect
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SHARED = pathlib.Path(__file__).parents[2] / "shared"


def stems(folder: str, pattern: str = "*") -> list[str]:
    """The names of the cases in a folder of `shared/oracle`."""
    found = (SHARED / "oracle" / folder).glob(f"{pattern}.json")
    return sorted(path.stem for path in found)


def has_data(name: str) -> bool:
    """Whether a trained network is there."""
    return (SHARED / "data" / name / "case.json").exists()


class Case:
    """One stored case: its sidecar, its arrays, and its network as a function.

    Attributes:
      sidecar: the description, as loaded from json.
      arrays: by name; all numbers in one floating dtype.
      inputs: the names of the network's inputs.
      layers: those up to the explained one.
      functions: by layer, the function of its inputs.
    """

    def __init__(self, sidecar, arrays, dtype=np.float64):
        self.sidecar = sidecar
        self.arrays = {
            key: value.astype(dtype)
            for key, value in arrays.items()
            if value.dtype.kind in "fiu"
        }
        layers = sidecar["layers"]
        inputs = [layer["name"] for layer in layers if layer["type"] == "input"]
        self.inputs = sidecar.get("inputs", inputs or ["x"])
        target = sidecar["target"]
        last = target["layer"] if isinstance(target, dict) else layers[-1]["name"]
        end = [layer["name"] for layer in layers].index(last)
        self.layers = [layer for layer in layers[: end + 1] if layer["type"] != "input"]
        self.functions = functions(self.layers, self.stored("w"))

    def stored(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose name starts with `prefix.`, by what follows it."""
        start = prefix + "."
        return {
            key.removeprefix(start): value
            for key, value in self.arrays.items()
            if key.startswith(start)
        }

    def of_type(self, *kinds: str) -> list[dict]:
        """The layers of these types."""
        return [layer for layer in self.layers if layer["type"] in kinds]

    @property
    def targets(self) -> list[int]:
        """Which outputs are explained: the leading axis of the scores."""
        if "targets" in self.sidecar:
            return self.sidecar["targets"]
        outputs = len(self.arrays[f"w.{self.layers[-1]['name']}.bias"])
        return self.sidecar["target"].get("task_indices", list(range(outputs)))

    def values(self, *inputs, replaced=None) -> dict:
        """A batch of every input -> all inputs and layers, by name.

        Args:
          *inputs: arrays with a batch axis.
          replaced: layers to compute otherwise: functions by name, to which the
            layer's own function and its inputs are passed.
        """
        found = dict(zip(self.inputs, inputs, strict=True))
        for layer in self.layers:
            name = layer["name"]
            operands = [found[operand] for operand in layer["inputs"]]
            apply = self.functions[name]
            if replaced and name in replaced:
                found[name] = replaced[name](apply, *operands)
            else:
                found[name] = apply(*operands)
        return found

    def outputs(self, *inputs, replaced=None):
        """A batch of every input -> the explained layer."""
        return self.values(*inputs, replaced=replaced)[self.layers[-1]["name"]]


@functools.cache
def oracle(folder: str, stem: str) -> Case:
    """A case of `shared/oracle`, in float64."""
    path = SHARED / "oracle" / folder / stem
    sidecar = json.loads(path.with_suffix(".json").read_text())
    with np.load(path.with_suffix(".npz")) as arrays:
        return Case(sidecar, dict(arrays))


@functools.cache
def real(name: str, dtype=np.float32) -> Case:
    """A trained network of `shared/data` with its inputs."""
    folder = SHARED / "data" / name
    sidecar = json.loads((folder / "case.json").read_text())
    arrays = {}
    for part in ("weights", "inputs"):
        with np.load(folder / f"{part}.npz") as stored:
            arrays |= dict(stored)
    return Case(sidecar, arrays, dtype)


def functions(layers, weights) -> dict:
    """The function of every layer, by its name.

    The weights and parameters of a layer are keyword arguments of the function of its
    type (`LAYERS`, below), so that one it does not know is an error, never ignored.

    Args:
      layers: dicts with `name`, `type`, `inputs` and the parameters of the type.
      weights: arrays by `<layer>.<parameter>`.
    """
    found = {}
    for layer in layers:
        name, kind = layer["name"], layer["type"]
        if kind not in LAYERS:
            raise NotImplementedError(
                f"layer '{name}': unknown type '{kind}'; known are {sorted(LAYERS)}"
            )
        options = {k: v for k, v in layer.items() if k not in _DESCRIPTION}
        if "approximate='tanh'" in layer.get("repr", ""):
            options.setdefault("approximate", "tanh")
        for key, value in weights.items():
            owner, _, parameter = key.rpartition(".")
            if owner == name and parameter not in _TRAINING:
                options[parameter] = value
        known = inspect.signature(LAYERS[kind]).parameters.values()
        names = {p.name for p in known if p.kind is p.KEYWORD_ONLY}
        anything = any(p.kind is p.VAR_KEYWORD for p in known)
        if (unknown := set(options) - names) and not anything:
            raise NotImplementedError(
                f"layer '{name}' of type '{kind}': unknown {sorted(unknown)}"
            )
        found[name] = functools.partial(LAYERS[kind], **options)
    return found


_DESCRIPTION = {"name", "type", "inputs", "shape", "repr", "note"}
_TRAINING = {"num_batches_tracked"}  # stored beside the weights of a batch norm


# ------------------------------------------------------------------- shapes and windows


def _axes(layout: str, rank: int) -> tuple[int, ...]:
    """The spatial axes of an array with a batch axis and channels."""
    first = {"channels_last": 1, "channels_first": 2}[layout]
    return tuple(range(first, first + rank))


def _each(value, rank: int) -> tuple[int, ...]:
    """One number for all spatial axes, or one for each."""
    return (value,) * rank if np.ndim(value) == 0 else tuple(value)


def _along(value, x, axis: int):
    """A number, or a vector that lies along one axis of x."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return np.reshape(value, shape) if np.ndim(value) else value


def _conv(x, kernel, bias, layout, kernel_layout, stride, padding, dilation, groups=1):
    rank = x.ndim - 2
    spatial = "HW"[-rank:]
    layout = {"channels_last": f"N{spatial}C", "channels_first": f"NC{spatial}"}[layout]
    y = lax.conv_general_dilated(
        x,
        kernel,
        _each(stride, rank),
        padding,
        rhs_dilation=_each(dilation, rank),
        dimension_numbers=(layout, kernel_layout.replace("*", spatial), layout),
        feature_group_count=groups,
    )
    return y + _along(bias, y, layout.index("C"))


def _windows(x, layout, size, stride, padding):
    """Size, stride and padding of a pooling, for every axis of x."""
    rank = x.ndim - 2
    sizes, strides = [1] * x.ndim, [1] * x.ndim
    pads = [(0, 0)] * x.ndim
    for n, axis in enumerate(_axes(layout, rank)):
        sizes[axis] = _each(size, rank)[n]
        strides[axis] = _each(stride, rank)[n]
        if not isinstance(padding, str):
            pads[axis] = (_each(padding, rank)[n],) * 2
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(x.shape, sizes, strides, padding)
    return tuple(sizes), tuple(strides), tuple(pads)


def _max_windows(x, *windows):
    return lax.reduce_window(x, -jnp.inf, lax.max, *windows)


def _mean_windows(x, *windows, count_padding=False):
    total = lax.reduce_window(x, 0.0, lax.add, *windows)
    if count_padding:
        return total / np.prod(windows[0])
    ones = jnp.ones(x.shape, x.dtype)
    return total / lax.reduce_window(ones, 0.0, lax.add, *windows)


# ----------------------------------------------------------- the original's layer types


def _conv_original(
    x,
    *,
    kernel,
    bias=0.0,
    stride=None,
    strides=None,
    padding="VALID",
    dilation=1,
    data_format="channels_last",
):
    step = strides if stride is None else stride
    return _conv(x, kernel, bias, data_format, "*IO", step, padding, dilation)


def _pool_original(reduce):
    def pool(
        x,
        *,
        pool,
        stride=None,
        strides=None,
        padding="VALID",
        data_format="channels_last",
    ):
        step = strides if stride is None else stride
        return reduce(x, *_windows(x, data_format, pool, step, padding))

    return pool


def _global_pool(reduce):
    return lambda x, *, data_format="channels_last": reduce(
        x, axis=_axes(data_format, x.ndim - 2)
    )


def _batchnorm(x, *, gamma=1.0, beta=0.0, mean, var, axis=-1, epsilon):
    gamma, beta, mean, var = (_along(v, x, axis) for v in (gamma, beta, mean, var))
    return gamma * (x - mean) / np.sqrt(var + epsilon) + beta


# ------------------------------------------------------------------ torch's layer types


def _conv_torch(
    x,
    *,
    weight,
    bias=0.0,
    kernel_size,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
):
    if isinstance(padding, str):
        padding = padding.upper()
    else:
        padding = [(p, p) for p in _each(padding, x.ndim - 2)]
    return _conv(
        x, weight, bias, "channels_first", "OI*", stride, padding, dilation, groups
    )


def _max_pool_torch(x, *, kernel_size, stride, padding=0, dilation=1, ceil_mode=False):
    if ceil_mode or set(_each(dilation, 1)) != {1}:
        raise NotImplementedError("max pools with ceil_mode or dilation")
    return _max_windows(x, *_windows(x, "channels_first", kernel_size, stride, padding))


def _mean_pool_torch(
    x, *, kernel_size, stride, padding=0, ceil_mode=False, count_include_pad=True
):
    if ceil_mode:
        raise NotImplementedError("average pools with ceil_mode")
    windows = _windows(x, "channels_first", kernel_size, stride, padding)
    return _mean_windows(x, *windows, count_padding=count_include_pad)


def _batchnorm_torch(x, *, weight=1.0, bias=0.0, running_mean, running_var, eps=1e-5):
    return _batchnorm(
        x,
        gamma=weight,
        beta=bias,
        mean=running_mean,
        var=running_var,
        axis=1,
        epsilon=eps,
    )


def _softplus(x, *, beta=1.0, threshold=20.0):
    soft = jax.nn.softplus(beta * x) / beta
    return jnp.where(beta * x > threshold, x, soft)


def _flatten(x, *, start_dim=1, end_dim=-1):
    end = end_dim % x.ndim
    return x.reshape(*x.shape[:start_dim], -1, *x.shape[end + 1 :])


def _prelu_torch(x, *, weight):
    return jnp.where(x > 0, x, _along(weight, x, 1) * x)


LAYERS = {
    "dense": lambda x, *, kernel, bias=0.0: x @ kernel + bias,
    "conv1d": _conv_original,
    "conv2d": _conv_original,
    "batchnorm": _batchnorm,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "softmax": jax.nn.softmax,
    "linear": lambda x: x,
    "dropout": lambda x, **_: x,  # at inference
    "prelu": lambda x, *, alpha: jnp.where(x > 0, x, alpha * x),
    "maxpool1d": _pool_original(_max_windows),
    "maxpool2d": _pool_original(_max_windows),
    "avgpool1d": _pool_original(_mean_windows),
    "avgpool2d": _pool_original(_mean_windows),
    "globalmaxpool1d": _global_pool(jnp.max),
    "globalmaxpool2d": _global_pool(jnp.max),
    "globalavgpool1d": _global_pool(jnp.mean),
    "globalavgpool2d": _global_pool(jnp.mean),
    "flatten": _flatten,
    "concat": lambda *xs, axis: jnp.concatenate(xs, axis),
    "add": lambda *xs: sum(xs),
    "Linear": lambda x, *, weight, bias=0.0: x @ weight.T + bias,
    "Conv1d": _conv_torch,
    "Conv2d": _conv_torch,
    "BatchNorm1d": _batchnorm_torch,
    "BatchNorm2d": _batchnorm_torch,
    "ReLU": jax.nn.relu,
    "GELU": lambda x, *, approximate="none": jax.nn.gelu(
        x, approximate=approximate == "tanh"
    ),
    "ELU": lambda x, *, alpha=1.0: jax.nn.elu(x, alpha),
    "SELU": jax.nn.selu,
    "SiLU": jax.nn.silu,
    "Sigmoid": jax.nn.sigmoid,
    "Tanh": jnp.tanh,
    "Softplus": _softplus,
    "LeakyReLU": lambda x, *, negative_slope=0.01: jax.nn.leaky_relu(x, negative_slope),
    "PReLU": _prelu_torch,
    "MaxPool1d": _max_pool_torch,
    "MaxPool2d": _max_pool_torch,
    "AvgPool1d": _mean_pool_torch,
    "AvgPool2d": _mean_pool_torch,
    "Flatten": _flatten,
    "Identity": lambda x: x,
    "Dropout": lambda x, **_: x,
}
"""By type: functions of the layer's inputs, weights and parameters."""
