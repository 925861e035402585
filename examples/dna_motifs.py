"""Which bases made the network see two motifs in a DNA sequence?

Simulates random sequences with planted GATA1 and TAL1 motifs. A convolutional network
of flax learns which sequences hold both, and `jaxlift.deeplift_shap` explains its logit
against shuffles of the sequence itself. The logos should spell the motifs.

    python examples/dna_motifs.py

The exit status is 1 if the contributions of any sequence fail to add up.
"""

import sys

import flax.linen as nn
import jax
import numpy as np
import optax
from common import completeness_gap, fit, options, verdict
from matplotlib.figure import Figure

import jaxlift
from jaxlift import plots

LENGTH, SHUFFLES = 80, 20
MOTIFS = {"GATA1": "AGATAAG", "TAL1": "CAGCTG"}


def simulate(count, seed):
    """Sequences `(count, LENGTH, 4)`, whether each holds both motifs, and where.

    Of four sequences, one holds both, two hold one of them twice, one holds none. A
    base of a planted motif is mutated with a probability of 0.04. `where[name]` is the
    start of the motif, of the last one if there are two.
    """
    draw = np.random.default_rng(seed)
    bases = draw.integers(0, 4, (count, LENGTH))
    kinds = np.arange(count) % 4
    where = {name: np.zeros(count, int) for name in MOTIFS}
    for row, kind in enumerate(kinds):
        names = ["GATA1", "TAL1"], ["GATA1"] * 2, ["TAL1"] * 2, []
        for half, name in enumerate(draw.permutation(names[kind])):
            motif = np.array(["ACGT".index(base) for base in MOTIFS[name]])
            start = half * LENGTH // 2 + draw.integers(2, LENGTH // 2 - 10)
            kept = draw.random(len(motif)) > 0.05  # a fourth is drawn again as it was
            place = bases[row, start : start + len(motif)]
            place[:] = np.where(kept, motif, place)
            where[name][row] = start
    return np.float32(np.eye(4)[bases]), np.float32(kinds == 0), where


class Net(nn.Module):
    """One-hot sequences `(n, length, 4)` to the logit `(n,)` of both motifs."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(24, (9,))(x)).max(-2)
        x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(1)(x)[..., 0]


def draw(path, contributions, where):
    """A logo for each sequence, with its planted motifs shaded."""
    figure = Figure(figsize=(11, 2 * len(contributions)), dpi=80, layout="constrained")
    panels = figure.subplots(len(contributions), 1, sharex=True)
    for row, ax in enumerate(panels):
        planted = [
            (starts[row], starts[row] + len(MOTIFS[name]), name)
            for name, starts in where.items()
        ]
        plots.logo(contributions[row], highlights=planted, label="", ax=ax)
        title = f"logit {contributions[row].sum():+.1f} against shuffles"
        ax.set_title(title, loc="left", size=10)
        ax.label_outer()
    figure.supylabel("contribution to the logit of both motifs", size=11)
    figure.savefig(path, pil_kwargs={"optimize": True})


def main(argv=None):
    """Trains, explains, draws and prints; the exit status says whether it adds up."""
    arguments = options(__doc__, "dna_motifs.png", argv)
    x, y, _ = simulate(400 if arguments.short else 8000, arguments.seed)
    test_x, test_y, where = simulate(400, arguments.seed + 1)
    model = Net()
    params = fit(
        lambda params, x, y: optax.sigmoid_binary_cross_entropy(
            model.apply(params, x), y
        ).mean(),
        jax.jit(model.init)(jax.random.key(arguments.seed), x[:1]),
        (x, y),
        steps=10 if arguments.short else 800,
        rate=5e-3,
        seed=arguments.seed,
    )

    @jax.jit
    def f(x):
        return model.apply(params, x)

    def logit(sequence):
        return f(sequence[None])[0]

    rows = np.flatnonzero(test_y)[: 8 if arguments.short else 100]
    keys = jax.random.split(jax.random.key(arguments.seed), len(rows))
    shuffle = lambda key, x: jaxlift.references.shuffle_positions(key, x, SHUFFLES)
    references = jax.jit(jax.vmap(shuffle))(keys, test_x[rows])
    with jax.default_matmul_precision("highest"):  # float32 on accelerators too
        outputs = np.asarray(f(test_x))
        expected = jax.vmap(f)(references).mean(-1)
        explain = jax.jit(jax.vmap(jaxlift.deeplift_shap(logit)))
        contributions = np.asarray(explain(test_x[rows], references))
    # To replace a base is to take one away and to put one in its place; both belong to
    # the position, and are drawn on the base that is there.
    by_position = contributions.sum(-1)

    accuracy = np.mean((outputs > 0) == test_y)
    print(f"test accuracy {accuracy:.1%} of {len(test_y)} sequences")
    elsewhere = np.ones(by_position.shape, bool)
    for name, motif in MOTIFS.items():
        since = np.arange(LENGTH) - where[name][rows, None]
        inside = (since >= 0) & (since < len(motif))
        elsewhere &= ~inside
        print(f"a base of {name:5} contributes {by_position[inside].mean():+.3f}")
    print(f"a base elsewhere contributes {by_position[elsewhere].mean():+.3f}")
    drawn = by_position[:3, :, None] * test_x[rows[:3]]
    draw(arguments.out, drawn, {name: w[rows[:3]] for name, w in where.items()})
    print(f"figure in {arguments.out}")
    return verdict(completeness_gap(contributions, outputs[rows], expected))


if __name__ == "__main__":
    sys.exit(main())
