"""What the examples have in common: options, training, and the check at the end."""

import argparse

import jax
import numpy as np
import optax
from tqdm import tqdm

LARGEST_GAP = 1e-5  # float32; relative, see `completeness_gap`


def options(doc, picture, argv):
    """The command line that every example has."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", default=picture, help="where the figure goes")
    parser.add_argument("--short", action="store_true", help="a short run for tests")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def fit(loss, params, data, *, steps, rate, seed, batch_size=64):
    """The parameters after some steps of AdamW on `loss(params, *batch)`.

    `params` is any tree of arrays. `data` are arrays with an example per row; every
    step takes a random batch of them.
    """
    optimiser = optax.adamw(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def step(params, state, *batch):
        value, gradient = jax.value_and_grad(loss)(params, *batch)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimiser.init(params)
    draw = np.random.default_rng(seed).integers
    with tqdm(range(steps), desc="training", unit="step") as bar:
        for _ in bar:
            rows = draw(0, len(data[0]), batch_size)
            params, state, value = step(params, state, *(part[rows] for part in data))
        bar.set_postfix(loss=f"{value:.4f}")
    return params


def completeness_gap(contributions, output, reference_output):
    """`|sum(contributions) - (f(x) - f(r))| / max(|f(x)|, |f(r)|, 1)`, per example."""
    output, reference_output = np.float64(output), np.float64(reference_output)
    total = np.float64(contributions).reshape(len(output), -1).sum(-1)
    scale = np.maximum(np.maximum(abs(output), abs(reference_output)), 1)
    return abs(total - (output - reference_output)) / scale


def verdict(gaps):
    """Prints the largest gap; the exit status is 1 if it is too large."""
    largest = float(np.max(gaps))
    print(f"largest completeness gap {largest:.1e} of {np.size(gaps)} explanations")
    if not largest <= LARGEST_GAP:  # nor is it if nan
        print(f"the contributions do not add up: {largest:.1e} > {LARGEST_GAP:.0e}")
        return 1
    return 0
