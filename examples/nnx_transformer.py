"""Which words made the network call this sentence positive?

Sentences come from a small grammar in which "not" and "never" turn a judgement around.
A transformer of flax.nnx learns which ones are positive on the whole. A word has a
number, and numbers of words have no differences to explain; so the model is split at
its embedding, `jaxlift.deeplift` explains what follows, and a word is given the sum
over its embedding. The reference is a sentence of blanks; the network has learnt that
they say nothing.

    python examples/nnx_transformer.py

The exit status is 1 if the contributions of any sentence fail to add up.
"""

import sys

import jax
import numpy as np
import optax
from common import completeness_gap, fit, options, verdict
from flax import nnx
from matplotlib.figure import Figure

import jaxlift
from jaxlift import plots

SUBJECTS = "film plot music ending acting dialogue".split()
GOOD = "good moving funny clever lovely".split()
BAD = "bad boring clumsy flat awful".split()
VERBS = ["was", "felt", "was not", "never felt"]
WORDS = "_ the and not was never felt".split() + SUBJECTS + GOOD + BAD
NUMBERS = {word: number for number, word in enumerate(WORDS)}
LENGTH, WIDTH = 14, 32

SHOWN = [
    "the acting was good",
    "the acting was not good",
    "the plot was bad",
    "the plot was not bad",
    "the film never felt boring and the music was lovely",
    "the music was lovely and the ending was not clever",
]


def judgement(words):
    """The number of good words minus the number of bad ones, negations heeded."""
    total, sign = 0, 1
    for word in words:
        if word in ("not", "never"):
            sign = -1
        elif word in GOOD or word in BAD:
            total, sign = total + sign * (1 if word in GOOD else -1), 1
    return total


def sentence(draw):
    """The words of one or two clauses; in half of all sentences, some are blanks."""
    clauses = [
        f"the {draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(GOOD + BAD)}"
        for _ in range(draw.integers(1, 3))
    ]
    blanks = draw.integers(2) * draw.random()
    words = " and ".join(clauses).split()
    return ["_" if draw.random() < blanks else word for word in words]


def encode(words):
    """The number of each word, filled up with blanks, `(LENGTH,)`."""
    return np.array([NUMBERS[w] for w in words] + [0] * (LENGTH - len(words)))


def simulate(count, seed):
    """Numbers of words `(count, LENGTH)`; 1, 1/2 or 0 for good, even or bad."""
    draw = np.random.default_rng(seed)
    sentences = [sentence(draw) for _ in range(count)]
    sign = np.sign([judgement(words) for words in sentences])
    return np.stack([encode(words) for words in sentences]), np.float32((1 + sign) / 2)


class Block(nnx.Module):
    """Attention and a dense layer, each added to its input."""

    def __init__(self, rngs):
        self.attend = nnx.MultiHeadAttention(4, WIDTH, decode=False, rngs=rngs)
        self.before, self.between = (nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2))
        self.widen = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attend(self.before(x))
        return x + self.narrow(nnx.gelu(self.widen(self.between(x))))


class Transformer(nnx.Module):
    """Numbers of words to embeddings, `embed`; embeddings to a logit, the call."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(len(WORDS), WIDTH, rngs=rngs)
        self.places = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.block = Block(rngs)
        self.head = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, embedded):
        x = self.block(embedded + self.places.embedding[...])
        return self.head(x.mean(-2))[..., 0]


def draw(path, texts, contributions):
    """A row of words for each sentence, on one colour scale."""
    figure = Figure(figsize=(9, 0.55 * len(texts) + 1.3), dpi=80, layout="constrained")
    rows = figure.subplots(len(texts), 1)
    bound = abs(contributions).max()
    for ax, text, c in zip(rows, texts, contributions, strict=True):
        words = text.split()
        label = "contribution to the logit of positive" if ax is rows[-1] else ""
        plots.tokens(c[: len(words)], words, bound=bound, label=label, ax=ax)
        ax.text(1, 0.5, f"sum {c.sum():+.1f}", transform=ax.transAxes, ha="right")
    figure.savefig(path, pil_kwargs={"optimize": True})


def main(argv=None):
    """Trains, explains, draws and prints; the exit status says whether it adds up."""
    arguments = options(__doc__, "nnx_transformer.png", argv)
    x, y = simulate(200 if arguments.short else 8000, arguments.seed)
    test_x, test_y = simulate(500, arguments.seed + 1)
    create = nnx.jit(lambda: Transformer(nnx.Rngs(arguments.seed)))
    structure, params = nnx.split(create())

    def loss(params, x, y):
        model = nnx.merge(structure, params)
        return optax.sigmoid_binary_cross_entropy(model(model.embed(x)), y).mean()

    steps = 10 if arguments.short else 1000
    params = fit(loss, params, (x, y), steps=steps, rate=3e-3, seed=arguments.seed)
    model = nnx.merge(structure, params)
    f = jax.jit(lambda embedded: model(embedded))

    sided = test_y != 0.5
    outputs = f(model.embed(test_x))
    accuracy = np.mean((outputs > 0)[sided] == test_y[sided])
    print(f"test accuracy {accuracy:.1%} of {sided.sum()} sentences")

    shown = model.embed(np.stack([encode(text.split()) for text in SHOWN]))
    blank = model.embed(np.zeros(LENGTH, int))
    explain = jax.jit(jax.vmap(jaxlift.deeplift(f), in_axes=(0, None)))
    with jax.default_matmul_precision("highest"):  # float32 on accelerators too
        contributions = np.asarray(explain(shown, blank))
        outputs, expected = f(shown), f(blank)

    by_word = contributions.sum(-1)
    for text, values in zip(SHOWN, by_word, strict=True):
        words = zip(text.split(), values, strict=False)
        print("  ".join(f"{word} {value:+.1f}" for word, value in words))
    draw(arguments.out, SHOWN, by_word)
    print(f"figure in {arguments.out}")
    return verdict(completeness_gap(contributions, outputs, expected))


if __name__ == "__main__":
    sys.exit(main())
