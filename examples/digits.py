"""Which pixels made the network read this digit as a 3, and not as a 5?

Trains a small convolutional network on handwritten digits, explains what it read with
`jaxlift.deeplift`, draws the answer and checks that it adds up:

    python examples/digits.py                    # 8x8 digits that scikit-learn ships
    python examples/digits.py --mnist DIRECTORY  # the four MNIST files, plain or .gz

The exit status is 1 if the contributions of any explained digit fail to add up.
"""

import argparse
import functools
import gzip
import pathlib
import sys
import time
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jaxlift

CLASSES = 10
BATCH = 64
LARGEST_GAP = 1e-5  # float32; relative, see `completeness_gap`

# ---------------------------------------------------------------------------- the data


class Data(NamedTuple):
    """Images `(n, height, width, 1)` in 0..1 as float32, labels `(n,)` in 0..9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def bundled_digits(seed):
    """The 1797 8x8 digits that scikit-learn ships; a fifth is kept for testing."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    split = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=seed
    )
    train_images, test_images, train_labels, test_labels = split
    return Data(train_images, train_labels, test_images, test_labels)


def read_idx(path):
    """The array of unsigned bytes in an IDX file, gzipped or not.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions,
    each dimension as a big-endian uint32, the values in C order.
    """
    content = pathlib.Path(path).read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of unsigned bytes")
    start = 4 + 4 * content[3]
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], ">u4"))
    values = np.frombuffer(content[start:], np.uint8)
    if len(shape) != content[3] or values.size != np.prod(shape, dtype=int):
        raise ValueError(f"{path} holds {values.size} values; its header says {shape}")
    return values.reshape(shape)


def mnist(directory):
    """MNIST from `{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]` in `directory`."""
    directory = pathlib.Path(directory)

    def read(name):
        candidates = [directory / name, directory / f"{name}.gz"]
        found = [path for path in candidates if path.is_file()]
        if not found:
            raise FileNotFoundError(f"neither {candidates[0]} nor {candidates[1]}")
        return read_idx(found[0])

    def images_and_labels(part):
        images = read(f"{part}-images-idx3-ubyte")
        labels = read(f"{part}-labels-idx1-ubyte")
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{part}: images {images.shape} and labels {labels.shape} do not match"
            )
        return images[..., None].astype(np.float32) / 255, labels.astype(int)

    return Data(*images_and_labels("train"), *images_and_labels("t10k"))


# ------------------------------------------------------------------------- the network


class CNN(nn.Module):
    """Images `(n, height, width, 1)` to logits `(n, 10)`."""

    @nn.compact
    def __call__(self, x):
        for features in (16, 32):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES)(x)


def train(data, epochs, seed):
    """The parameters of a CNN after `epochs` passes over the training images."""
    model = CNN()
    params = model.init(jax.random.key(seed), data.train_images[:1])
    count = len(data.train_labels)
    batch_size = min(BATCH, count)
    per_epoch = count // batch_size
    schedule = optax.cosine_decay_schedule(6e-3, max(epochs * per_epoch, 1))
    optimiser = optax.adamw(schedule, weight_decay=0.3)

    def loss(params, images, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels
        return losses(model.apply(params, images), labels).mean()

    @jax.jit
    def step(params, state, images, labels):
        value, gradient = jax.value_and_grad(loss)(params, images, labels)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimiser.init(params)
    shuffle = np.random.default_rng(seed).permutation
    with tqdm(total=epochs * per_epoch, desc="training", unit="step") as bar:
        for _ in range(epochs):
            order = shuffle(count)[: per_epoch * batch_size]
            for rows in order.reshape(per_epoch, batch_size):
                batch = data.train_images[rows], data.train_labels[rows]
                params, state, value = step(params, state, *batch)
                bar.update()
            bar.set_postfix(loss=f"{value:.4f}")
    return params


# --------------------------------------------------------------------- the explanation


def explain(logits, image, digit, reference):
    """What each pixel contributes to the logit of `digit`, from reference to image.

    `logits` maps one image to ten numbers. `reference` is one image or a stack of them;
    against a stack, the contributions are the mean of those against each of its images.
    """

    def logit(values):
        return values[digit]

    if reference.ndim == image.ndim:
        return jaxlift.deeplift(logits, target=logit)(image, reference)
    return jaxlift.deeplift_shap(logits, target=logit)(image, reference)


def completeness_gap(contributions, output, reference_output):
    """`|sum(contributions) - (f(x) - f(r))| / max(|f(x)|, |f(r)|, 1)`, per image."""
    output, reference_output = np.float64(output), np.float64(reference_output)
    total = np.float64(contributions).sum(axis=(-3, -2, -1))
    scale = np.maximum(np.maximum(abs(output), abs(reference_output)), 1)
    return abs(total - (output - reference_output)) / scale


class Explained(NamedTuple):
    """Every digit explained against one reference (or set of references)."""

    contributions: np.ndarray  # (digits, two classes, height, width, 1)
    gap: float  # the largest of `completeness_gap`
    per_second: float  # digits, without the time that compiling takes


def explain_all(logits, reference, images, classes):
    """Explains each image for its two `classes` `(images, 2)`."""
    reference = jnp.asarray(reference)
    stack = reference.reshape(-1, *images.shape[1:])

    def one(pair):
        image, digits = pair
        per_class = jax.vmap(functools.partial(explain, logits), (None, 0, None))
        # What the contributions should add up to; `vjp` returns both outputs.
        outputs = jax.vmap(lambda r: jaxlift.vjp(logits, image, r)[:2])(stack)
        output, reference_output = (values.mean(0)[digits] for values in outputs)
        return per_class(image, digits, reference), output, reference_output

    run = jax.jit(lambda *pairs: jax.lax.map(one, pairs, batch_size=16))
    with jax.default_matmul_precision("highest"):  # float32 on accelerators too
        run = run.lower(images, classes).compile()
    start = time.perf_counter()
    contributions, *outputs = jax.device_get(run(images, classes))
    seconds = time.perf_counter() - start
    gap = completeness_gap(contributions, *outputs)
    return Explained(contributions, float(gap.max()), len(images) / seconds)


# -------------------------------------------------------------------------- the figure


GREY = {"cmap": "gray", "vmin": 0, "vmax": 1}
GROUPS = (2, 3, 4), (6, 7, 8)  # columns of the two classes; 1 and 5 stay empty


def worth_showing(labels, digits, rows=4):
    """Indices: the first right reading of several classes, and the first mistake."""
    right = digits[:, 0] == labels
    order = 3, 4, 8, 9, 2, 5, 0, 7, 6, 1
    firsts = [np.flatnonzero(right & (labels == digit))[:1] for digit in order]
    mistakes = np.flatnonzero(~right)[:1]
    firsts = np.concatenate(firsts)[: rows - len(mistakes)]
    return np.concatenate([firsts, mistakes])


def montage(reference):
    """One picture of a reference: itself, or the first 9 (4, 1) of a stack as tiles."""
    if reference.ndim == 3:
        return reference[..., 0]
    tiles = np.pad(reference[..., 0], ((0, 0), (1, 1), (1, 1)), constant_values=0.5)
    side = min(3, int(len(tiles) ** 0.5))
    return np.block([list(tiles[side * i :][:side]) for i in range(side)])


def panel(axes, values, **kwargs):
    """Shows an image without ticks, in a thin frame."""
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="0.7", linewidth=0.6)
    axes.imshow(values, **kwargs)


def draw_digit(cells, image, label, digits, explanations, signed):
    """One row: the image, then a panel per class and reference, with its sum."""
    predicted, runner_up = digits
    mistake = "" if predicted == label else f", is {label}"
    panel(cells[0], image, **GREY, interpolation="bicubic")
    cells[0].set_title(f"reads {predicted}{mistake}", fontsize=12, weight="bold")
    questions = f"why {predicted}? (predicted)", f"why not {runner_up}? (runner-up)"
    for question, columns, contributions in zip(
        questions, GROUPS, explanations, strict=True
    ):
        for column, values in zip(columns, contributions, strict=True):
            panel(cells[column], values, **signed)
            cells[column].contour(image, [0.5], colors="0.35", linewidths=0.7)
            cells[column].set_xlabel(f"sum {values.sum():+.1f}", fontsize=9, labelpad=2)
        cells[columns[1]].set_title(question, fontsize=12)


def draw(path, images, labels, digits, references, explained):
    """A row per digit: the image, then its contributions per class and reference."""
    contributions = np.stack([e.contributions[..., 0] for e in explained.values()], 2)
    bound = np.percentile(np.abs(contributions), 99.5)
    signed = {"cmap": "RdBu_r", "norm": Normalize(-bound, bound)}

    figure = Figure(figsize=(11, 1.65 * len(images) + 2.3), dpi=72)
    cells = figure.subplots(
        1 + len(images),
        9,
        gridspec_kw={
            "width_ratios": [1, 0.12, 1, 1, 1, 0.12, 1, 1, 1],
            "height_ratios": [0.85] + [1] * len(images),
            **{"left": 0.01, "right": 0.9, "bottom": 0.03, "top": 0.87},
            **{"hspace": 0.4, "wspace": 0.08},
        },
    )
    for axes in cells.flat:
        axes.set_axis_off()
    cells[0, 0].text(0.5, 0.5, "against the\nreference", ha="center", va="center")
    for columns in GROUPS:
        for column, (name, reference) in zip(columns, references.items(), strict=True):
            panel(cells[0, column], montage(reference), **GREY)
            cells[0, column].set_title(name, fontsize=10)
    for row in range(len(images)):
        draw_digit(
            cells[row + 1],
            images[row, ..., 0],
            labels[row],
            digits[row],
            contributions[row],
            signed,
        )
    figure.text(0.47, 0.96, "Which pixels speak for a class?", ha="center", fontsize=15)
    formula = "sum = logit of the digit \N{MINUS SIGN} logit of the reference"
    figure.text(0.47, 0.93, formula, ha="center", fontsize=10)
    bar = figure.colorbar(
        ScalarMappable(signed["norm"], signed["cmap"]),
        cax=figure.add_axes((0.925, 0.2, 0.015, 0.5)),
        extend="both",
    )
    bar.set_label("contribution to the logit", fontsize=10)
    bar.ax.set_title("for the\nclass", fontsize=10, color="#67001f", pad=12)
    bar.ax.set_xlabel("against\nthe class", fontsize=10, color="#053061", labelpad=14)
    figure.savefig(path, pil_kwargs={"optimize": True})


# ----------------------------------------------------------------------------- the job


def arguments(argv):
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="digits.png", help="where the figure goes")
    parser.add_argument("--epochs", type=int, help="default: 30, with --mnist 3")
    parser.add_argument(
        "--fast", "--short", action="store_true", help="a short run for tests"
    )
    parser.add_argument("--mnist", metavar="DIRECTORY", help="of the four IDX files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.epochs is None:
        options.epochs = 2 if options.fast else 3 if options.mnist else 30
    return options


def main(argv=None):
    """Trains, explains, draws and prints; the exit status says whether it adds up."""
    options = arguments(argv)
    data = mnist(options.mnist) if options.mnist else bundled_digits(options.seed)
    start = time.perf_counter()
    params = train(data, options.epochs, options.seed)
    seconds = time.perf_counter() - start

    def logits(image):
        return CNN().apply(params, image[None])[0]

    outputs = np.asarray(jax.jit(jax.vmap(logits))(data.test_images))
    accuracy = np.mean(outputs.argmax(-1) == data.test_labels)
    print(f"trained {options.epochs} epochs in {seconds:.1f} s")
    print(f"test accuracy {accuracy:.2%} of {len(outputs)} digits")

    count = 32 if options.fast else 500
    images, labels = data.test_images[:count], data.test_labels[:count]
    digits = outputs[:count].argsort(-1)[:, :-3:-1]  # predicted, runner-up
    size = 9 if options.fast else 32
    references = {
        "a black image": np.zeros_like(images[0]),
        "the mean digit": data.train_images.mean(0),
        f"{size} digits, averaged": data.train_images[:size],
    }
    explained = {}
    print(f"{'reference':20} {'largest completeness gap':25} digits/s (2 classes each)")
    for name, reference in references.items():
        result = explain_all(logits, reference, images, digits)
        explained[name] = result
        print(f"{name:20} {result.gap:<25.1e} {result.per_second:,.0f}")

    rows = worth_showing(labels, digits)
    shown = {
        name: e._replace(contributions=e.contributions[rows])
        for name, e in explained.items()
    }
    draw(options.out, images[rows], labels[rows], digits[rows], references, shown)
    print(f"figure in {options.out}")
    largest = max(explanation.gap for explanation in explained.values())
    if not largest <= LARGEST_GAP:
        print(f"the contributions do not add up: {largest:.1e} > {LARGEST_GAP:.0e}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
