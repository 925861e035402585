"""The paper's DNA experiment: does every motif that counts get a high score?

    python benchmarks/paper_genomics.py [--plot PNG] [--quick]

Sequences of 200 random bases carry none to three instances each of a GATA1 and of a
TAL1 motif. A convolutional network learns three tasks: 0, GATA1 is there; 1, TAL1 is
there; 2, both are. Each method scores the positions of test sequences that are
positive; the score of a window of a motif's length is the sum over its positions.

* precision: the average precision with which the window's score tells strong matches
  of the task's motifs (planted ones and chance ones) from the windows that do not
  overlap any.
* correlation: of the window's score with the log-odds strength, among all matches.
* missed: the share of strong matches that score no more than a window without a match
  may (the 95th percentile of those).

The motifs are simplified consensus matrices, not copies of measured ones, after
GATA_disc1 and TAL1_known1 of the ENCODE motif collection (Kheradpour, Kellis, Nucleic
Acids Research 2014): AGATAAG[AG], and the E-box [AC]CAGATG[GT]. They are planted on the
forward strand.

The references are the background frequencies at every position and, for the methods
that are tables, shuffles of the bases of each sequence (`deeplift_shap`).

Gradients are multiplied by the one-hot input as in the paper ("x input") and by the
difference from the reference ("x difference"), which removes what is common to the
four bases of a position.

Source: Shrikumar, Greenside, Kundaje, ICML 2017 (arXiv 1704.02685), section 4.2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.metrics import average_precision_score, roc_auc_score

import jaxlift

LENGTH = 200
BACKGROUND = np.array([0.3, 0.2, 0.2, 0.3])  # A C G T
TASKS = {"GATA1": ("GATA1",), "TAL1": ("TAL1",), "both": ("GATA1", "TAL1")}
MOTIFS = {  # probabilities of A C G T, a row per position
    "GATA1": np.array(
        [
            [0.70, 0.15, 0.05, 0.10],
            [0.01, 0.01, 0.97, 0.01],
            [0.97, 0.01, 0.01, 0.01],
            [0.02, 0.01, 0.01, 0.96],
            [0.93, 0.01, 0.02, 0.04],
            [0.88, 0.03, 0.05, 0.04],
            [0.12, 0.05, 0.79, 0.04],
            [0.47, 0.10, 0.38, 0.05],
        ]
    ),
    "TAL1": np.array(
        [
            [0.60, 0.28, 0.08, 0.04],
            [0.01, 0.97, 0.01, 0.01],
            [0.97, 0.01, 0.01, 0.01],
            [0.03, 0.05, 0.87, 0.05],
            [0.86, 0.06, 0.05, 0.03],
            [0.01, 0.01, 0.01, 0.97],
            [0.01, 0.01, 0.97, 0.01],
            [0.06, 0.09, 0.45, 0.40],
        ]
    ),
}
WIDTH = 8  # of either motif
MATCH, STRONG = 5.0, 9.0  # bits of log-odds; the consensus has 13 to 14
MARGIN = 0.01  # of precision: less is not a difference


def by_table(rules):
    """Contributions by a table, for one reference and for a set."""
    return (
        lambda f: jaxlift.deeplift(f, rules=rules),
        lambda f: jaxlift.deeplift_shap(f, rules=rules),
    )


def times_input(rules):
    """Multipliers times the input itself: the reference is zero."""
    return lambda f: lambda x, reference: jaxlift.deeplift(f, rules=rules)(x, 0.0), None


METHODS = {
    "RevealCancel": by_table(jaxlift.REVEAL_CANCEL),
    "GenomicsDefault": by_table(jaxlift.GENOMICS_DEFAULT),
    "Rescale": by_table(jaxlift.RESCALE),
    "integrated gradients, 10": (
        lambda f: jaxlift.integrated_gradients(f, steps=10),
        None,
    ),
    "gradient x input": times_input(jaxlift.GRADIENT),
    "gradient x difference": by_table(jaxlift.GRADIENT),
    "guided backprop x input": times_input(jaxlift.GUIDED_BACKPROP),
    "guided backprop x difference": by_table(jaxlift.GUIDED_BACKPROP),
}


def simulate(rng, count):
    """Sequences (count, 200) of bases 0 to 3, and labels (count, 3) of the tasks."""
    bases = rng.choice(4, (count, LENGTH), p=BACKGROUND)
    # Half of the sequences have a motif, once to three times.
    times = rng.integers(1, 4, (count, 2)) * rng.integers(0, 2, (count, 2))
    slots = LENGTH - (WIDTH - 1) * times.sum(1)
    for row, (starts, numbers) in enumerate(zip(slots, times, strict=True)):
        total = numbers.sum()
        places = np.sort(rng.choice(starts, total, replace=False))
        places += (WIDTH - 1) * np.arange(total)  # no two overlap
        names = rng.permutation(np.repeat(list(MOTIFS), numbers))
        for place, name in zip(places, names, strict=True):
            steps = MOTIFS[name].cumsum(1)[:, :-1]
            drawn = (rng.random((WIDTH, 1)) > steps).sum(1)
            bases[row, place : place + WIDTH] = drawn
    labels = times > 0
    return bases, np.c_[labels, labels.all(1)]


def one_hot(bases):
    return np.eye(4, dtype=np.float32)[bases]


def strengths(bases, name):
    """Log-odds in bits of each window: (count, 193)."""
    odds = np.log2(MOTIFS[name] / BACKGROUND)
    windows = np.lib.stride_tricks.sliding_window_view(bases, WIDTH, axis=1)
    return odds[np.arange(WIDTH), windows].sum(-1)


def trained_network(steps):
    """Logits of the three tasks, as a function of one or more sequences."""
    model = nn.Sequential(
        [
            nn.Conv(32, (11,), padding="VALID"), nn.relu,
            nn.Conv(32, (11,), padding="VALID"), nn.relu,
            lambda x: nn.avg_pool(x, (20,), strides=(20,)).reshape(*x.shape[:-2], -1),
            nn.Dense(32), nn.relu, nn.Dense(3),
        ]
    )  # fmt: skip
    rng = np.random.default_rng(0)
    bases, labels = simulate(rng, 20_000)
    params = model.init(jax.random.key(0), one_hot(bases[:1]))
    optimiser = optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=1e-3)
    state = optimiser.init(params)

    @jax.jit
    def update(params, state, x, y):
        def loss(params):
            losses = optax.sigmoid_binary_cross_entropy
            return losses(model.apply(params, x), y).mean()

        updates, state = optimiser.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        rows = rng.integers(0, len(bases), 64)
        params, state = update(params, state, one_hot(bases[rows]), labels[rows])
    return lambda x: model.apply(params, x)


def scores(logits, method, x, references):
    """Scores of positions (3, count, 200); `references` is one, or a set per row."""
    one, several = METHODS[method]
    explain = one if references.ndim == 2 else several

    def score(x, reference):
        # All tasks share one compilation: the task is data.
        by_task = lambda task: explain(lambda x: logits(x) @ task)(x, reference)
        return jax.lax.map(by_task, jnp.eye(3)).sum(-1)

    if references.ndim == 2:
        mapped = lambda x: jax.lax.map(lambda x: score(x, references), x, batch_size=20)
        found = jax.jit(mapped)(x)
    else:
        mapped = lambda *both: jax.lax.map(lambda b: score(*b), both, batch_size=4)
        found = jax.jit(mapped)(x, references)
    return np.asarray(found).swapaxes(0, 1)


def judged(positions, strength, positive):
    """Per task: precision, correlation, share missed, and the matches themselves."""
    rows = []
    for task, motifs in enumerate(TASKS.values()):
        chosen = positive[:, task]
        windows = np.lib.stride_tricks.sliding_window_view(
            positions[task][chosen], WIDTH, axis=1
        ).sum(-1)
        found = {name: strength[name][chosen] for name in motifs}
        best = np.max(list(found.values()), axis=0)
        strong = best > STRONG
        near = np.pad(strong, ((0, 0), (WIDTH - 1, WIDTH - 1)))
        near = np.lib.stride_tricks.sliding_window_view(near, 2 * WIDTH - 1, axis=1)
        kept = strong | ~near.any(-1)
        usual = np.quantile(windows[kept & (best <= MATCH)], 0.95)
        match = best > MATCH
        matches = {
            name: (bits[bits > MATCH], windows[bits > MATCH])
            for name, bits in found.items()
        }
        rows.append(
            (
                average_precision_score(strong[kept], windows[kept]),
                np.corrcoef(best[match], windows[match])[0, 1],
                (windows[strong] <= usual).mean(),
                matches,
            )
        )
    return rows


def plot(results, path):
    """Score against log-odds strength: a row per task, a column per method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (2.3 * len(results), 6.5)
    figure, axes = plt.subplots(len(TASKS), len(results), figsize=size, sharex=True)
    for column, (method, rows) in zip(axes.T, results.items(), strict=True):
        for axis, row in zip(column, rows, strict=True):
            for name, (bits, score) in row[3].items():
                colour = "C0" if name == "GATA1" else "C1"
                axis.scatter(bits, score, 3, colour, alpha=0.5, label=name)
            axis.axhline(0, color="grey", linewidth=0.6)
            axis.tick_params(labelsize=7)
        column[0].set_title(method, fontsize=9)
        column[-1].set_xlabel("log-odds, bits")
    for axis, task in zip(axes[:, 0], TASKS, strict=True):
        axis.set_ylabel(f"task {task}\nscore of the window")
    axes[-1, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def verdict(results):
    """A sentence on the paper's claims, from the numbers."""
    ours = ("RevealCancel", "GenomicsDefault")
    slopes = [m for m in results if "gradient x" in m or "guided" in m]
    parts = []
    for number, task in enumerate(TASKS):
        value = {method: rows[number][0] for method, rows in results.items()}
        worst = min(value[method] for method in ours)
        ahead = [m for m in value if m not in ours and value[m] > worst + MARGIN]
        weak = [m for m in slopes if value[m] < worst - MARGIN]
        agrees = not ahead and len(weak) == len(slopes)
        parts.append(
            f"task {task}: {'agrees' if agrees else 'in part' if weak else 'disagrees'}"
            f" (the worse of the two has {worst:.3f}; "
            f"better: {' and '.join(ahead) or 'none'}; gradient methods worse: "
            f"{', '.join(f'{m} {value[m]:.3f}' for m in weak) or 'none'})"
        )
    return (
        "The paper has RevealCancel and GenomicsDefault score the motifs high in all "
        "tasks and the gradient methods below them; this run, judged by precision "
        f"against the background, differences under {MARGIN} ignored: "
        + "; ".join(parts)
        + "."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="sequences scored")
    parser.add_argument("--shuffles", type=int, default=10)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--quick", action="store_true", help="a run for a test")
    options = parser.parse_args()
    steps = 2000
    if options.quick:
        options.count, options.shuffles, steps = 24, 2, 100
    logits = trained_network(steps)

    rng = np.random.default_rng(1)
    bases, labels = simulate(rng, 4 * options.count)
    quality = roc_auc_score(labels, np.asarray(logits(one_hot(bases))), average=None)
    print("area under ROC of the network:", *quality.round(3), flush=True)
    # A quarter of the sequences has both motifs: they are half of those scored, so
    # that each task has many positives.
    order = np.argsort(~labels[:, 2], kind="stable")
    both = labels[:, 2].sum()
    half = min(both, options.count // 2)
    rows = np.r_[order[:half], order[both : both + options.count - half]]
    bases, labels = bases[rows], labels[rows]
    strength = {name: strengths(bases, name) for name in MOTIFS}
    x = one_hot(bases)
    shuffled = rng.permuted(
        np.repeat(bases[:, None], options.shuffles, axis=1), axis=-1
    )
    references = {
        "background": np.broadcast_to(BACKGROUND, (LENGTH, 4)).astype(np.float32),
        f"{options.shuffles} shuffles": one_hot(shuffled),
    }
    results = {}
    for kind, reference in references.items():
        results[kind] = {}
        print(f"\n{options.count} sequences, reference: {kind}")
        print(" " * 30 + "".join(f"task {task:21s}" for task in TASKS))
        print(f"  {'method':28s}" + "precision  corr.  missed  " * len(TASKS))
        for method, (_, several) in METHODS.items():
            if kind != "background" and several is None:
                continue  # no reference, or one only
            found = scores(logits, method, x, jnp.asarray(reference))
            results[kind][method] = judged(found, strength, labels)
            numbers = (
                f"{precision:9.3f} {correlation:6.2f}  {missed:6.1%}  "
                for precision, correlation, missed, _ in results[kind][method]
            )
            print(f"  {method:28s}" + "".join(numbers), flush=True)
    print("\n" + verdict(results["background"]))
    if options.plot:
        plot(results["background"], options.plot)


if __name__ == "__main__":
    main()
