"""Which measurements move the predicted course of a patient's diabetes?

Trains a small network on the 442 patients that scikit-learn ships and explains it with
`jaxlift.deeplift_shap`, against 100 other patients. With ten measurements the Shapley
values that DeepSHAP estimates can still be computed exactly, from all 1024 subsets of
them, and the two are compared:

    python examples/tabular_shap.py

The exit status is 1 if the contributions of any patient fail to add up.
"""

import itertools
import math
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from common import completeness_gap, fit, options, verdict
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import jaxlift
from jaxlift import plots

NAMES = {
    "age": "age",
    "sex": "sex",
    "bmi": "body mass index",
    "bp": "blood pressure",
    "s1": "total cholesterol",
    "s2": "LDL cholesterol",
    "s3": "HDL cholesterol",
    "s4": "total / HDL cholesterol",
    "s5": "log triglycerides",
    "s6": "blood sugar",
}


class Net(nn.Module):
    """Ten measurements `(n, 10)`, standardised, to the progression `(n,)`."""

    mean: float
    deviation: float

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.gelu(nn.Dense(32)(x))
        return self.mean + self.deviation * nn.Dense(1)(x)[..., 0]


def shapley_values(f, xs, references):
    """By definition: the mean over all orders in which measurements become known.

    A subset S of known measurements is worth the mean of `f` over the references, with
    S taken from the patient. A measurement gets what it adds to S, weighted by the
    share of orders in which exactly S is known before it: |S|! (n - |S| - 1)! / n!.
    """
    n = xs.shape[1]
    subsets = np.array(list(itertools.product([False, True], repeat=n)))
    worth = lambda x, known: f(jnp.where(known, x, references)).mean()
    of_patient = lambda x: jax.lax.map(lambda known: worth(x, known), subsets)
    worths = np.float64(jax.jit(jax.vmap(of_patient))(xs))  # (patients, 2 ** n)
    orders = np.array([math.factorial(s) * math.factorial(n - s - 1) for s in range(n)])
    share = np.append(orders / math.factorial(n), 0)
    size = subsets.sum(1, keepdims=True)
    return worths @ np.where(subsets, share[size - 1], -share[size])


def draw(path, contributions, names, example):
    """One patient, and the mean size over all."""
    figure = Figure(figsize=(11, 4), dpi=80, layout="constrained")
    left, right = figure.subplots(1, 2)
    one, unit = contributions[example], "predicted progression (points)"
    plots.bars(one, names, top=6, label=f"contribution to the {unit}", ax=left)
    left.set_title(f"one patient: {one.sum():+.0f} points against the mean of others")
    size = abs(contributions).mean(0)
    plots.bars(size, names, top=6, label=f"mean |contribution| to the {unit}", ax=right)
    right.set_title(f"{len(contributions)} patients")
    figure.savefig(path, pil_kwargs={"optimize": True})


def main(argv=None):
    """Trains, explains, draws and prints; the exit status says whether it adds up."""
    arguments = options(__doc__, "tabular_shap.png", argv)
    data = load_diabetes(scaled=False)
    names = [NAMES[name] for name in data.feature_names]
    x, test_x, y, test_y = train_test_split(
        data.data, data.target, test_size=0.25, random_state=arguments.seed
    )
    mean, deviation = x.mean(0), x.std(0)
    x, test_x = (np.float32((part - mean) / deviation) for part in (x, test_x))

    net = Net(float(y.mean()), float(y.std()))
    params = jax.jit(net.init)(jax.random.key(arguments.seed), x[:1])
    params = fit(
        lambda params, x, y: ((net.apply(params, x) - y) ** 2).mean() / y.var(),
        params,
        (x, np.float32(y)),
        steps=20 if arguments.short else 100,
        rate=3e-3,
        seed=arguments.seed,
    )

    @jax.jit
    def f(x):
        return net.apply(params, x)

    references = jnp.asarray(x[:100])
    explain = jax.jit(jax.vmap(jaxlift.deeplift_shap(f), in_axes=(0, None)))
    with jax.default_matmul_precision("highest"):  # float32 on accelerators too
        predicted, expected = f(test_x), f(references).mean()
        contributions = np.asarray(explain(test_x, references))
        some = test_x[: 2 if arguments.short else 20]
        exact = shapley_values(f, some, references)

    explained = 1 - np.var(test_y - predicted) / np.var(test_y)
    print(f"{explained:.0%} of the variance of {len(test_y)} test patients explained")
    for k in abs(contributions).mean(0).argsort()[:-4:-1]:
        size = abs(contributions[:, k]).mean()
        print(f"{names[k]:24} moves the prediction by {size:.0f} points on average")
    off = abs(contributions[: len(exact)] - exact).mean()
    size = abs(exact).mean()
    print(f"DeepSHAP is {off:.2f} points off exact Shapley values of {size:.1f} points")
    draw(arguments.out, contributions, names, int(np.argmax(predicted)))
    print(f"figure in {arguments.out}")
    return verdict(completeness_gap(contributions, predicted, expected))


if __name__ == "__main__":
    sys.exit(main())
