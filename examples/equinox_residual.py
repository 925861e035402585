"""Which explanation finds the pixels that a residual network reads a digit by?

Trains a small residual network of equinox on the 8x8 digits that scikit-learn ships and
explains its readings by five methods, which are rule tables of `jaxlift.deeplift` but
for one. The methods are judged by deletion: the pixels that contribute most are put
back to the reference; the better they were found, the further the logit falls.

    python examples/equinox_residual.py

The exit status is 1 if the contributions by a DeepLIFT table fail to add up.
"""

import functools
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import completeness_gap, fit, options, verdict
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxlift
from jaxlift import plots

DELETED = 8  # of 64 pixels


class Block(eqx.Module):
    """`x + conv(gelu(conv(x)))`."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d

    def __init__(self, channels, key):
        conv = functools.partial(eqx.nn.Conv2d, channels, channels, 3, padding=1)
        self.first, self.second = (conv(key=k) for k in jax.random.split(key))

    def __call__(self, x):
        return x + self.second(jax.nn.gelu(self.first(x)))


class Net(eqx.Module):
    """An image `(8, 8)` to ten logits."""

    stem: eqx.nn.Conv2d
    blocks: list[Block]
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.stem = eqx.nn.Conv2d(1, 16, 3, padding=1, key=keys[0])
        self.blocks = [Block(16, k) for k in keys[1:3]]
        self.head = eqx.nn.Linear(16 * 4 * 4, 10, key=keys[3])

    def __call__(self, x):
        x = self.stem(x[None])
        for block in self.blocks:
            x = block(x)
        x = jax.nn.relu(x).reshape(16, 4, 2, 4, 2).max((2, 4))
        return self.head(x.ravel())


def methods(f, digit):
    """Explanations of the logit of a digit: `(image, reference) -> contributions`."""
    logit = lambda x: f(x)[digit]
    table = functools.partial(jaxlift.deeplift, logit)
    return {
        "Rescale": table(),
        "RevealCancel": table(rules=jaxlift.REVEAL_CANCEL),
        "integrated gradients": jaxlift.integrated_gradients(logit),
        "LRP": table(rules=jaxlift.LRP),
        "gradient": table(rules=jaxlift.GRADIENT),
    }


COMPLETE = "Rescale", "RevealCancel"


def explain_all(f, images, digits, reference):
    """Contributions by method, each `(n, 8, 8)`."""
    one = lambda x, digit: [g(x, reference) for g in methods(f, digit).values()]
    found = jax.jit(jax.vmap(one))(images, digits)
    return dict(zip(methods(f, 0), found, strict=True))


def without_the_strongest(image, contributions, reference):
    """The image with the pixels that contribute most replaced by the reference."""
    ranks = jnp.argsort(jnp.argsort(-contributions.ravel())).reshape(image.shape)
    return jnp.where(ranks < DELETED, reference, image)


def draw(path, image, digit, contributions):
    """A panel for each method, over the image."""
    figure = Figure(figsize=(13, 2.9), dpi=80, layout="constrained")
    label = f"contribution to the logit of {digit}"
    plots.compare(contributions, image=image, label=label, figure=figure)
    figure.savefig(path, pil_kwargs={"optimize": True})


def main(argv=None):
    """Trains, explains, draws and prints; the exit status says whether it adds up."""
    arguments = options(__doc__, "equinox_residual.png", argv)
    images, labels = load_digits(return_X_y=True)
    images = np.float32(images / 16).reshape(-1, 8, 8)
    x, test_x, y, test_y = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=arguments.seed
    )
    net = eqx.filter_jit(Net)(jax.random.key(arguments.seed))
    params, static = eqx.partition(net, eqx.is_array)

    def loss(params, x, y):
        logits = jax.vmap(eqx.combine(params, static))(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    steps = 10 if arguments.short else 400
    params = fit(loss, params, (x, y), steps=steps, rate=3e-3, seed=arguments.seed)
    net = eqx.combine(params, static)
    reference = jnp.asarray(x.mean(0))
    digits = np.asarray(jax.jit(jax.vmap(net))(test_x)).argmax(-1)
    print(f"test accuracy {np.mean(digits == test_y):.1%} of {len(test_y)} digits")

    some = slice(8 if arguments.short else 200)
    images, digits = test_x[some], digits[some]
    logit = jax.jit(jax.vmap(lambda x, digit: net(x)[digit]))
    with jax.default_matmul_precision("highest"):  # float32 on accelerators too
        found = explain_all(net, images, digits, reference)
        output = logit(images, digits)
        expected = logit(jnp.broadcast_to(reference, images.shape), digits)
        print(f"{'method':20} {'largest gap':>11}   logit without {DELETED} pixels")
        for name, contributions in found.items():
            delete = jax.vmap(without_the_strongest, (0, 0, None))
            left = logit(delete(images, contributions, reference), digits)
            gap = completeness_gap(contributions, output, expected).max()
            change = (left - output).mean()
            print(f"{name:20} {gap:11.1e}   {change:+.2f}")

    figure_of = {name: np.asarray(c[0]) for name, c in found.items()}
    draw(arguments.out, images[0], digits[0], figure_of)
    print(f"figure in {arguments.out}")
    return verdict(
        [completeness_gap(found[name], output, expected) for name in COMPLETE]
    )


if __name__ == "__main__":
    sys.exit(main())
