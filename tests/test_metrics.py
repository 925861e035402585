"""Measures of attributions against numpy, by their definitions."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlift
from jaxlift import metrics

KEYS = jax.random.split(jax.random.key(3), 5)
W = np.asarray(jax.random.normal(KEYS[0], (6, 4)))
V = np.asarray(jax.random.normal(KEYS[1], (4, 3)))
XS = jax.random.normal(KEYS[2], (3, 3, 2))  # three examples
REFERENCE = jax.random.normal(KEYS[3], (3, 2))
CONTRIBUTIONS = {
    "elements": jax.random.normal(KEYS[4], (3, 3, 2)).round(),  # with ties
    "columns": jnp.array([[[0.5, -1.0]], [[1.0, 2.0]], [[-3.0, -2.0]]]),
}
KEY = jax.random.key(7)


def network(x):
    return jnp.tanh(x.reshape(-1) @ W) @ V


def output(x):
    """What is explained, in numpy."""
    return (np.tanh(np.asarray(x).reshape(-1) @ W) @ V)[1]


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


# ---------------------------------------------------------------- by definition


def ranked(contributions):
    """Indices of the features, the largest first, equal ones in their order."""
    flat = np.asarray(contributions).reshape(-1)
    return sorted(range(flat.size), key=lambda k: -flat[k])


def exchange(contributions, x, y, features):
    """`x` with the values of `y` at these features, one by one."""
    x = np.array(x)
    for index in np.ndindex(x.shape):
        one = tuple(np.minimum(index, np.array(contributions.shape) - 1))
        if np.ravel_multi_index(one, contributions.shape) in features:
            x[index] = y[index]
    return x


def numpy_masking(c, x, r, most):
    flat = np.asarray(c).reshape(-1)
    top = [k for k in ranked(c)[:most] if flat[k] > 0]
    return output(x) - output(exchange(c, x, r, top))


def numpy_deletion(c, x, r, steps):
    counts = [round(c.size * k / steps) for k in range(steps + 1)]
    values = [output(exchange(c, x, r, ranked(c)[:n])) for n in counts]
    strips = [
        (values[k] + values[k + 1]) / 2 * (counts[k + 1] - counts[k]) / c.size
        for k in range(steps)
    ]
    return sum(strips), np.array(values), np.array(counts) / c.size


def numpy_insertion(c, x, r, steps):
    return numpy_deletion(c, r, x, steps)


def keyed_infidelity(**options):
    judge = metrics.infidelity(network, target=1, samples=5, **options)
    return lambda *args: judge(KEY, *args)


def numpy_infidelity(c, x, r, scaled=False):
    masks = [
        np.asarray(jax.random.bernoulli(k, 0.5, c.shape))
        for k in jax.random.split(KEY, 5)
    ]
    falls = [
        output(x) - output(exchange(c, x, r, np.flatnonzero(mask))) for mask in masks
    ]
    sums = np.array([np.asarray(c)[mask].sum() for mask in masks])
    scale = np.linalg.lstsq(sums[:, None], np.array(falls))[0][0] if scaled else 1
    return ((scale * sums - falls) ** 2).mean()


OF_CONTRIBUTIONS = {
    "masking, a number": (
        metrics.masking(network, 2, target=1),
        lambda *args: numpy_masking(*args, 2),
    ),
    "masking, a fraction": (
        metrics.masking(network, 0.5, target=lambda y: y[1]),
        lambda c, *args: numpy_masking(c, *args, round(c.size / 2)),
    ),
    "deletion, each": (
        metrics.deletion(network, target=1),
        lambda c, *args: numpy_deletion(c, *args, c.size),
    ),
    "deletion, steps": (
        metrics.deletion(network, target=1, steps=2),
        lambda *args: numpy_deletion(*args, 2),
    ),
    "insertion, steps": (
        metrics.insertion(network, target=1, steps=2),
        lambda *args: numpy_insertion(*args, 2),
    ),
    "infidelity": (keyed_infidelity(), numpy_infidelity),
    "infidelity, scaled": (
        keyed_infidelity(scaled=True),
        lambda *args: numpy_infidelity(*args, scaled=True),
    ),
}


@pytest.mark.parametrize("features", CONTRIBUTIONS)
@pytest.mark.parametrize("name", OF_CONTRIBUTIONS)
def test_measures_of_contributions(name, features):
    judge, by_definition = OF_CONTRIBUTIONS[name]
    contributions = CONTRIBUTIONS[features]
    mapped = jax.jit(jax.vmap(judge, (0, 0, None)))(contributions, XS, REFERENCE)
    for k, (c, x) in enumerate(zip(contributions, XS, strict=True)):
        expected = by_definition(c, x, REFERENCE)
        one = jax.tree.map(lambda leaf, k=k: leaf[k], mapped)
        jax.tree.map(close, jax.tree.leaves(one), jax.tree.leaves(expected))


@pytest.mark.parametrize("name", ["masking, a number", "deletion, steps", "infidelity"])
def test_without_jit(name):
    judge, by_definition = OF_CONTRIBUTIONS[name]
    case = CONTRIBUTIONS["elements"][0], XS[0], REFERENCE
    results = jax.tree.leaves(judge(*case)), jax.tree.leaves(by_definition(*case))
    jax.tree.map(close, *results)


def test_exact_contributions_of_a_linear_function_are_beyond_reproach():
    weights = CONTRIBUTIONS["elements"][0]
    linear = lambda x: (weights * x).sum()
    x, c = XS[0], weights * (XS[0] - REFERENCE)
    error = jax.jit(metrics.infidelity(linear))
    close(error(KEY, c, x, REFERENCE), 0)
    assert error(KEY, 3 * c, x, REFERENCE) > 1e-2
    scaled = jax.jit(metrics.infidelity(linear, scaled=True))
    close(scaled(KEY, 3 * c, x, REFERENCE), 0)
    # No order of features deletes faster, or inserts faster.
    shuffle = np.random.default_rng(0).permutation
    orders = np.stack([*(shuffle(np.ravel(c)) for _ in range(5)), np.ravel(c)])
    area = lambda metric: jax.jit(
        jax.vmap(lambda c: metric(linear)(c.reshape(3, 2), x, REFERENCE).area)
    )(orders)
    assert (area(metrics.deletion)[-1] <= area(metrics.deletion)).all()
    assert (area(metrics.insertion)[-1] >= area(metrics.insertion)).all()


# -------------------------------------------------------------------- of arrays


INTEGERS = np.random.default_rng(1).integers(-3, 4, (2, 5, 3, 4))


def numpy_ranks(values):
    """The mean place of equal values, by counting."""
    flat = np.asarray(values).reshape(-1)
    return np.array([(flat < v).sum() + ((flat == v).sum() - 1) / 2 for v in flat])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32])
def test_rank_agreement(dtype):
    a, b = jnp.asarray(INTEGERS, dtype)
    compare = jax.jit(jax.vmap(metrics.rank_agreement))
    expected = [
        np.corrcoef(numpy_ranks(u), numpy_ranks(v))[0, 1]
        for u, v in zip(a, b, strict=True)
    ]
    close(compare(a, b), expected)
    close(compare(a, a), 1)
    close(compare(a, -a), -1)
    assert jnp.isnan(compare(a, jnp.ones_like(a))).all()


def test_top_agreement():
    a, b = INTEGERS
    for features, count in ((5, 5), (0.25, 3), (1.0, 12)):
        compare = jax.jit(
            jax.vmap(lambda a, b, n=features: metrics.top_agreement(a, b, n))
        )
        expected = [
            len({*ranked(u)[:count]} & {*ranked(v)[:count]}) / count
            for u, v in zip(a, b, strict=True)
        ]
        close(compare(a, b), expected)


def test_completeness_gap(x64):
    tree = {"a": np.array([1.0, 2.0]), "b": [np.array(4.0)]}
    for y, y_reference in itertools.product((-20.0, 0.3, 7.0), (0.0, -30.0)):
        expected = abs(7 - (y - y_reference)) / max(abs(y), abs(y_reference), 1)
        close(metrics.completeness_gap(tree, y, y_reference), expected)
    half = jnp.ones(1001, jnp.bfloat16)  # 1001 is no bfloat16
    assert metrics.completeness_gap(half, np.float32(1001), 0.0) == 0
    explain, r = jaxlift.deeplift(network, target=1), REFERENCE.astype(float)
    gaps = jax.jit(
        jax.vmap(
            lambda x: metrics.completeness_gap(
                explain(x, r), network(x)[1], network(r)[1]
            )
        )
    )(XS.astype(float))
    assert (gaps < 1e-12).all() and gaps.shape == (3,)
    assert jnp.isnan(metrics.completeness_gap(jnp.array([jnp.nan]), 1.0, 0.0))


# -------------------------------------------------------------- of explanations


def test_max_sensitivity():
    explain = jax.jit(jaxlift.deeplift(network, target=1))
    judge = metrics.max_sensitivity(explain, radius=0.3, samples=6)
    shifts = [
        jax.random.uniform(k, (3, 2), minval=-0.3, maxval=0.3)
        for k in jax.random.split(KEY, 6)
    ]
    expected = [
        max(
            np.linalg.norm(explain(x + e, REFERENCE) - explain(x, REFERENCE))
            for e in shifts
        )
        for x in XS
    ]
    mapped = jax.jit(jax.vmap(judge, (None, 0, None)))(KEY, XS, REFERENCE)
    close(mapped, expected)
    close(judge(KEY, XS[0], REFERENCE), expected[0])


PARAMS = {
    "params": {
        "Dense_10": {"kernel": V},
        "Dense_2": {"kernel": W, "bias": np.arange(4.0)},
    },
    "scale": np.float32(2.0),
}


def explanation(params):
    hidden, head = params["params"]["Dense_2"], params["params"]["Dense_10"]
    f = lambda x: (
        params["scale"]
        * jnp.tanh(x.reshape(-1) @ hidden["kernel"] + hidden["bias"])
        @ head["kernel"]
    )
    return jaxlift.deeplift(f, target=1)


LAYERS = ["params/Dense_2", "params/Dense_10"]


@pytest.mark.parametrize("cascade", [True, False])
def test_randomisation_from_the_last_layer_to_the_first(cascade):
    judge = metrics.randomisation_check(
        explanation,
        PARAMS,
        LAYERS,
        cascade=cascade,
        draw=lambda key, leaf: jax.random.normal(key, leaf.shape),
        agreement=lambda a, b: jnp.stack([a, b]),  # shows what is compared
    )
    compared = jax.jit(judge)(KEY, XS[0], REFERENCE)
    keys = dict(zip(["head", "bias", "kernel", "scale"], jax.random.split(KEY, 4)))  # noqa: B905
    random = lambda name, leaf: jax.random.normal(keys[name], leaf.shape)
    old, hidden = PARAMS["params"], PARAMS["params"]["Dense_2"]
    head = {"Dense_10": {"kernel": random("head", V)}}
    first = {"Dense_2": {k: random(k, leaf) for k, leaf in hidden.items()}}
    changed = [old | head, old | first | (head if cascade else {})]
    explain = jax.jit(lambda params: explanation(params)(XS[0], REFERENCE))
    for k, params in enumerate(changed):
        close(compared[k, 0], explain(PARAMS))
        close(compared[k, 1], explain(PARAMS | {"params": params}))
    if cascade:
        mapped = jax.jit(jax.vmap(judge, (None, 0, None)))(KEY, XS, REFERENCE)
        close(mapped[0], compared)


def test_randomisation_tells_what_reads_the_parameters():
    judge = metrics.randomisation_check(explanation, PARAMS, LAYERS)
    agreements = jax.jit(judge)(KEY, XS[0], REFERENCE)
    assert agreements.shape == (2,) and (abs(agreements) < 0.99).all()
    blind = metrics.randomisation_check(lambda _: jnp.subtract, PARAMS, LAYERS)
    close(blind(KEY, XS[0], REFERENCE), 1)
    leaf = jnp.arange(12.0).reshape(3, 4)
    shuffled = metrics.shuffled(KEY, leaf)
    assert shuffled.shape == leaf.shape and (shuffled != leaf).any()
    close(jnp.sort(shuffled.reshape(-1)), leaf.reshape(-1))


# ---------------------------------------------------------- the range of the numbers

HALF = jnp.ones(4, jnp.float16)
STEEP = lambda x: 60000 * x.mean()
IN_HALF_PRECISION = {
    "masking": (lambda: metrics.masking(STEEP, 4)(HALF, HALF, -1.0), 120000),
    "deletion": (lambda: metrics.deletion(STEEP)(HALF, HALF, 0.0).area, 30000),
    "insertion": (lambda: metrics.insertion(STEEP)(HALF, HALF, 0.0).area, 30000),
    "infidelity": (
        lambda: metrics.infidelity(STEEP)(KEY, 30000 * HALF, HALF, -1.0),
        0,
    ),
    "scaled": (
        lambda: metrics.infidelity(STEEP, scaled=True)(KEY, 1e-4 * HALF, HALF, -1.0),
        0,
    ),
}


@pytest.mark.parametrize("name", IN_HALF_PRECISION)
def test_sums_and_squares_are_not_of_half_precision(name):
    judge, expected = IN_HALF_PRECISION[name]
    np.testing.assert_allclose(judge(), expected, rtol=1e-3, atol=1)


@pytest.mark.parametrize("slope", [1e-4, 600.0])
@pytest.mark.parametrize("power", [1, 1e-25, 1e25])
def test_the_sensitivity_is_in_proportion_to_the_slope(slope, power):
    dtype = jnp.float16 if power == 1 else jnp.float32
    x = HALF.astype(dtype)
    judge = lambda k: metrics.max_sensitivity(lambda x, _: k * x, radius=0.5)(KEY, x, 0)
    np.testing.assert_allclose(judge(slope * power), slope * power * judge(1), 1e-2)


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15, 1e30])
def test_scaled_infidelity_does_not_see_the_unit_of_the_contributions(size):
    judge = jax.jit(metrics.infidelity(network, target=1, scaled=True))
    c = CONTRIBUTIONS["elements"][0]
    error = judge(KEY, c, XS[0], REFERENCE)
    np.testing.assert_allclose(judge(KEY, size * c, XS[0], REFERENCE), error, 1e-4)
    assert error < judge(KEY, 0 * c, XS[0], REFERENCE)


# ------------------------------------------------------------------ broken numbers

LINEAR = lambda x: x.sum()
NOT_FINITE = {
    "rank_agreement": lambda c, x: metrics.rank_agreement(c, x),
    "rank_agreement, the other": lambda c, x: metrics.rank_agreement(x, c),
    "top_agreement": lambda c, x: metrics.top_agreement(c, x, 2),
    "top_agreement, the other": lambda c, x: metrics.top_agreement(x, c, 2),
    "masking": lambda c, x: metrics.masking(LINEAR, 2)(c, x, 0.0),
    "deletion": lambda c, x: metrics.deletion(LINEAR)(c, x, 0.0).area,
    "insertion": lambda c, x: metrics.insertion(LINEAR, steps=2)(c, x, 0.0).values,
    "infidelity": lambda c, x: metrics.infidelity(LINEAR, samples=1, fraction=0.01)(
        KEY, c, x, 0.0
    ),
    "completeness_gap": lambda c, x: metrics.completeness_gap(c, x.sum(), 0.0),
    "max_sensitivity": lambda c, x: metrics.max_sensitivity(
        lambda x, r: x * c, radius=0.1
    )(KEY, x, 0.0),
    "randomisation_check": lambda c, x: metrics.randomisation_check(
        lambda w: lambda x, _: jnp.where(w["w"][0] == 0, x, c * w["w"]),
        {"w": jnp.arange(4.0)},
        ["w"],
    )(KEY, x, 0.0),
}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NOT_FINITE)
def test_what_is_not_finite_has_no_score(name, bad):
    x = jnp.array([2.0, -1.0, 3.0, 1.0])
    judge = NOT_FINITE[name]
    assert jnp.isfinite(judge(x, x)).all()
    assert not jnp.isfinite(judge(x.at[1].set(bad), x)).any()


# ----------------------------------------------------------------------- errors

C, X, R = CONTRIBUTIONS["elements"][0], XS[0], REFERENCE
REFUSED = {
    "x of shape": lambda: metrics.masking(network, 1, target=1)(C[0], X, R),
    r"\(2, 2\) do not fit": lambda: metrics.masking(network, 1, target=1)(C[:2], X, R),
    "keepdims": lambda: metrics.deletion(network, target=1)(C.sum(-1), X, R),
    "scalar output": lambda: metrics.insertion(network)(C, X, R),
    "target": lambda: metrics.masking(network, 1, target=3)(C, X, R),
    "features": lambda: metrics.masking(network, 7, target=1)(C, X, R),
    "0.01": lambda: metrics.masking(network, 0.01, target=1)(C, X, R),
    "1.5": lambda: metrics.top_agreement(C, C, 1.5),
    "steps": lambda: metrics.deletion(network, target=1, steps=7)(C, X, R),
    "steps.*not 0": lambda: metrics.deletion(network, target=1, steps=0),
    "reference": lambda: metrics.masking(network, 1, target=1)(C, X, R[0, 0:0]),
    "same shape": lambda: metrics.rank_agreement(C, X[0]),
    "two elements": lambda: metrics.rank_agreement(C[0, 0], C[0, 0]),
    "y_reference": lambda: metrics.completeness_gap(C, 1.0, network(R)),
    "fraction": lambda: metrics.infidelity(network, fraction=1.0),
    "samples": lambda: metrics.infidelity(network, samples=0),
    "radius": lambda: metrics.max_sensitivity(network, radius=0.0),
    "no layer 'Dense_2'.*params/Dense_2": lambda: metrics.randomisation_check(
        explanation, PARAMS, ["Dense_2"]
    ),
    "no layer 'params/Dense_1'": lambda: metrics.randomisation_check(
        explanation, PARAMS, ["params/Dense_1"]
    ),
    "two of the layers": lambda: metrics.randomisation_check(
        explanation, PARAMS, ["params", "params/Dense_2"]
    ),
    "layers is empty": lambda: metrics.randomisation_check(explanation, PARAMS, []),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


OF_ANOTHER_TYPE = {
    "function, got int: 3": lambda: metrics.masking(3, 1),
    "function, got None": lambda: metrics.max_sensitivity(None, radius=1.0),
    "int: 0": lambda: metrics.randomisation_check(0, PARAMS, LAYERS),
    r"layers.*\['scale'\]": lambda: metrics.randomisation_check(
        explanation, PARAMS, "scale"
    ),
    "features.*'a'": lambda: metrics.masking(network, "a"),
    "features.*None": lambda: metrics.top_agreement(C, C, None),
    "steps.*2.5": lambda: metrics.deletion(network, steps=2.5),
    "int32": lambda: metrics.masking(jnp.argmax, 1)(C, X, R),
}


@pytest.mark.parametrize("message", OF_ANOTHER_TYPE)
def test_what_is_of_another_type_is_refused(message):
    with pytest.raises(TypeError, match=message):
        OF_ANOTHER_TYPE[message]()


def test_the_page_runs():
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    names = {}
    for block in blocks:
        exec(compile(block, "metrics.md", "exec"), names)
    public = {
        name
        for name, value in vars(metrics).items()
        if getattr(value, "__module__", None) == metrics.__name__ and name[0] != "_"
    }
    assert public - {"Curve"} <= {*re.findall(r"metrics\.(\w+)", page)}
