"""The paper's MNIST experiment: erase the pixels that make an 8 an 8, and not a 3.

    python benchmarks/paper_mnist.py [--plot PNG]
    python benchmarks/paper_mnist.py --mnist DIRECTORY
    python benchmarks/paper_mnist.py --network DIRECTORY --images FILE

For each pair of digits, each method scores the pixels for the difference of the two
logits; the 157 pixels (a fifth) with the largest scores are erased, and the change of
the log-odds between the two classes is reported: the larger, the better the method
found what speaks for the one and against the other.

Without arguments a small network is trained on scikit-learn's digits, where 13 of the
64 pixels are erased; with `--mnist` on the four IDX files of MNIST (plain or gzipped)
in a folder. To use a network as it is, `--network` is a folder with `case.json`
(Keras-like layers) and `weights.npz`; `--images` an `.npz` with `images` and `labels`.

Source: Shrikumar, Greenside, Kundaje, ICML 2017 (arXiv 1704.02685), section 4.1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxlift

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
from digits import bundled_digits, mnist

PAIRS = [(8, 3), (8, 6), (9, 1), (4, 1)]


def multiplied(rules):
    """Contributions by a table."""
    return lambda f: lambda x: jaxlift.deeplift(f, rules=rules)(x, 0.0)


METHODS = {
    "RevealCancel": multiplied(jaxlift.REVEAL_CANCEL),
    "GenomicsDefault": multiplied(jaxlift.GENOMICS_DEFAULT),
    "Rescale": multiplied(jaxlift.RESCALE),
    "integrated gradients, 10": lambda f: (
        lambda x: jaxlift.integrated_gradients(f, steps=10)(x, 0.0)
    ),
    "integrated gradients, 100": lambda f: (
        lambda x: jaxlift.integrated_gradients(f, steps=100)(x, 0.0)
    ),
    "gradient x input": multiplied(jaxlift.GRADIENT),
    "guided backprop x input": multiplied(jaxlift.GUIDED_BACKPROP),
    "|gradient|": lambda f: lambda x: abs(jax.grad(f)(x)),
}


def stored_network(folder: Path):
    """Logits of a stored network of convolutions and dense layers."""
    layers = json.loads((folder / "case.json").read_text())["layers"]
    weights = {k: jnp.asarray(v) for k, v in np.load(folder / "weights.npz").items()}

    def logits(x):
        for layer in layers:
            name, kind = layer["name"], layer["type"]
            w, b = (weights.get(f"w.{name}.{part}") for part in ("kernel", "bias"))
            if kind == "conv2d":
                strides = layer.get("strides", layer.get("stride", 1))
                strides = (strides,) * 2 if isinstance(strides, int) else strides
                x = jax.lax.conv_general_dilated(
                    x[None], w, strides, layer.get("padding", "VALID").upper(),
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )[0] + b  # fmt: skip
            elif kind == "dense":
                x = x @ w + b
            elif kind == "relu":
                x = jax.nn.relu(x)
            elif kind == "flatten":
                x = x.reshape(-1)
            elif kind not in ("input", "softmax"):
                raise ValueError(f"layer {name} is of unknown type {kind}")
        return x

    return logits


def trained_network(data, steps):
    """A small network trained on images of digits."""
    images, labels = data.train_images, data.train_labels
    model = nn.Sequential(
        [
            nn.Conv(32, (3, 3), strides=2), nn.relu, nn.Conv(64, (3, 3)), nn.relu,
            lambda x: x.reshape(*x.shape[:-3], -1), nn.Dense(64), nn.relu, nn.Dense(10),
        ]
    )  # fmt: skip
    params = model.init(jax.random.key(0), images[:1])
    optimiser = optax.adamw(2e-3)
    state = optimiser.init(params)

    @jax.jit
    def update(params, state, x, y):
        def loss(params):
            losses = optax.softmax_cross_entropy_with_integer_labels
            return losses(model.apply(params, x), y).mean()

        updates, state = optimiser.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(0, len(images), 64)
        params, state = update(params, state, images[rows], labels[rows])
    right = model.apply(params, data.test_images).argmax(-1) == data.test_labels
    print(f"trained: {right.mean():.1%} of the test images right")
    return lambda x: model.apply(params, x)


def changes(logits, images, pair, method, erased):
    """Change of the log-odds of `pair` for each image, its best pixels erased."""
    odds = lambda x: logits(x)[pair[0]] - logits(x)[pair[1]]

    def change(x):
        scores = METHODS[method](odds)(x).sum(-1).ravel()
        order = jnp.argsort(-scores)[:erased]
        kept = jnp.ones_like(scores).at[order].set(0).reshape(*x.shape[:2], 1)
        return odds(x) - odds(x * kept)

    return np.asarray(jax.lax.map(jax.jit(change), images, batch_size=20))


def plot(results, path):
    """A box per method, a panel per pair."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(13, 4), sharey=True)
    for axis, (pair, rows) in zip(axes, results.items(), strict=True):
        axis.boxplot(list(rows.values()), orientation="horizontal", showfliers=False)
        axis.set_yticks(range(1, len(rows) + 1), list(rows))
        axis.invert_yaxis()
        axis.set_title(f"{pair[0]} to {pair[1]}")
        axis.set_xlabel("change of log-odds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", type=Path, help="folder of the four IDX files")
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    parser.add_argument("--network", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=200, help="images of each digit")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    if options.network:
        logits = stored_network(options.network)
        data = np.load(options.images)
        images = data["images"].reshape(-1, 28, 28, 1).astype(np.float32)
        labels = data["labels"]
    else:
        data = mnist(options.mnist) if options.mnist else bundled_digits(0)
        logits = trained_network(data, options.steps)
        images, labels = data.test_images, data.test_labels
    erased = round(images[0].size / 5)
    results = {}
    for pair in PAIRS:
        chosen = jnp.asarray(images[labels == pair[0]][: options.count])
        results[pair] = {
            method: changes(logits, chosen, pair, method, erased) for method in METHODS
        }
        print(f"{pair[0]} -> {pair[1]}, {len(chosen)} images, {erased} pixels erased")
        for method, values in results[pair].items():
            low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
            mean = values.mean()
            print(f"  {method:26s} mean {mean:7.2f}  quartiles {low:7.2f} "
                  f"{median:7.2f} {high:7.2f}", flush=True)  # fmt: skip
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
