"""References: each against a slow independent way to make it, and what it promises."""

from __future__ import annotations

import collections
import functools
import importlib.util
import itertools
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxlift
from jaxlift import references

KEY = jax.random.key(7)
LETTERS = "ACGTN"


def one_hot(sequence, dtype=np.float32):
    """`(length, 4)`; N is a row of zeros."""
    return np.eye(5, dtype=dtype)[[LETTERS.index(letter) for letter in sequence], :4]


def decoded(x):
    """The text of each sequence of `(..., length, 4)`, flattened."""
    x = np.asarray(x, float)
    assert set(np.unique(x)) <= {0, 1} and x.sum(-1).max() <= 1
    indices = np.where(x.any(-1), x.argmax(-1), 4)
    rows = indices.reshape(-1, indices.shape[-1])
    return ["".join(LETTERS[i] for i in row) for row in rows]


def pairs(sequence):
    return collections.Counter(zip(sequence, sequence[1:], strict=False))


def all_rearrangements(sequence):
    """Every text with the same pairs and first letter, by trying all ways."""

    def extend(text, left):
        if not left:
            yield text
        for _, letter in [pair for pair in left if pair[0] == text[-1]]:
            used = collections.Counter([(text[-1], letter)])
            yield from extend(text + letter, left - used)

    return list(extend(sequence[0], pairs(sequence)))


def random_sequence(length, seed, letters="ACGT"):
    return "".join(np.random.default_rng(seed).choice(list(letters), length))


@functools.cache
def jitted(name, n):
    return jax.jit(lambda key, x: getattr(references, name)(key, x, n))


# ------------------------------------------------------------------------- shuffles


TEXTS = (
    "ACAGATACAGAT",  # ends on another letter than it begins with
    "AACAAGACAGAA",  # on the same, with repeats of it
    "ACACGCGCGAGA",  # last exits from C and G that are not equally probable
    "CCCCACCCCCAC",  # two letters
    "GGATCCAAGTCT",
    "ANNACNAGCANA",  # unknown letters
    "NACGTTGCANTG",  # one of them first
)


@pytest.mark.parametrize("text", TEXTS)
def test_dinucleotide_shuffles_are_uniform(text):
    possible = all_rearrangements(text)
    assert len(possible) == len(set(possible)) >= 16
    shuffles = jitted("shuffle_dinucleotides", 20_000)(KEY, one_hot(text))
    drawn = collections.Counter(decoded(shuffles))
    assert drawn.keys() <= set(possible)
    assert scipy.stats.chisquare([drawn[p] for p in possible]).pvalue > 1e-3


@pytest.mark.parametrize("size", [1, 3])
def test_dinucleotide_shuffles_drawn_in_chunks_are_uniform(size, monkeypatch):
    monkeypatch.setattr(references, "_CHUNK", size)
    # What other tests compiled has chunks of the ordinary size.
    monkeypatch.setattr(sys.modules[__name__], "jitted", jitted.__wrapped__)
    test_dinucleotide_shuffles_are_uniform(TEXTS[-1])


def test_position_shuffles_are_uniform():
    orders = ["".join(order) for order in itertools.permutations("ACGN")]
    shuffles = jitted("shuffle_positions", 20_000)(KEY, one_hot("ACGN"))
    drawn = collections.Counter(decoded(shuffles))
    assert drawn.keys() <= set(orders)
    assert scipy.stats.chisquare([drawn[order] for order in orders]).pvalue > 1e-3


@pytest.mark.parametrize(
    "text",
    [
        random_sequence(300, 0),
        random_sequence(290, 1) + "N" * 10,
        "N" * 5 + random_sequence(285, 2) + "N" * 10,
        random_sequence(300, 3, "ACGTN"),
        random_sequence(300, 4, "AT"),
        "A" * 300,
        "N" * 300,
        "ACGT" * 75,
        "C" * 299 + "T",
    ],
    ids=lambda text: text[:8],
)
def test_dinucleotide_counts_and_ends_are_kept(text):
    x = one_hot(text)
    for shuffle in decoded(jitted("shuffle_dinucleotides", 9)(KEY, x)):
        assert pairs(shuffle) == pairs(text)
        assert (shuffle[0], shuffle[-1]) == (text[0], text[-1])
    shuffles = decoded(jitted("shuffle_positions", 9)(KEY, x))
    assert {"".join(sorted(s)) for s in shuffles} == {"".join(sorted(text))}


@pytest.mark.parametrize("text", ["A", "N", "GT"])
def test_short_sequences_stay_as_they_are(text):
    shuffles = jitted("shuffle_dinucleotides", 2)(KEY, one_hot(text))
    assert decoded(shuffles) == [text] * 2


SHUFFLES = ("shuffle_dinucleotides", "shuffle_positions")
BATCH = np.stack([one_hot(random_sequence(12, seed, "ACGTN")) for seed in range(3)])


@pytest.mark.parametrize("name", SHUFFLES)
def test_shuffles_follow_their_key_and_transforms(name):
    shuffle = jitted(name, 4)
    keys = jax.random.split(KEY, 3)
    one_by_one = np.stack([shuffle(key, x) for key, x in zip(keys, BATCH, strict=True)])
    np.testing.assert_array_equal(jax.vmap(shuffle)(keys, BATCH), one_by_one)
    eager = getattr(references, name)(keys[0], BATCH[0], 4)
    np.testing.assert_array_equal(eager, one_by_one[0])
    np.testing.assert_array_equal(shuffle(keys[0], BATCH[0]), one_by_one[0])
    assert np.any(shuffle(keys[1], BATCH[0]) != one_by_one[0])
    assert len(set(decoded(one_by_one[0]))) > 1


@pytest.mark.parametrize("name", SHUFFLES)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "float64"])
def test_shuffles_keep_the_dtype(name, dtype):
    expected = jitted(name, 4)(KEY, BATCH[0])
    with jax.enable_x64(dtype == "float64"):
        shuffles = jitted(name, 4)(KEY, jnp.asarray(BATCH[0], dtype))
        assert shuffles.dtype == dtype
    np.testing.assert_array_equal(shuffles.astype(np.float32), expected)


# ------------------------------------------------------------- frequencies of letters


def test_frequencies_of_letters():
    x = one_hot("ACANGGGNAA")
    np.testing.assert_array_equal(references.uniform_bases(x), np.full((10, 4), 0.25))
    own = np.tile([4 / 8, 1 / 8, 3 / 8, 0], (10, 1))
    np.testing.assert_allclose(references.base_frequencies(x), own)
    np.testing.assert_array_equal(references.base_frequencies(one_hot("NN")), 0)
    given = np.float32([0.3, 0.2, 0.2, 0.3])
    found = references.background_frequencies(x, given)
    np.testing.assert_array_equal(found, np.tile(given, (10, 1)))


def test_frequencies_count_beyond_what_half_precision_holds():
    x = jnp.asarray(one_hot("A" * 1500 + "C" * 500), jnp.bfloat16)
    found = references.base_frequencies(x)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found[0].astype(float), [0.75, 0.25, 0, 0])


# --------------------------------------------------------------------- of a data set

rng = np.random.default_rng(0)
DATA = {"a": rng.normal(size=(10, 3)), "b": (rng.normal(size=(10, 2, 2)),)}
DATA = jax.tree.map(np.float32, DATA)
FIRST = jax.tree.map(lambda leaf: leaf[0], DATA)


def assert_trees_close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5), found, expected
    )
    assert jax.tree.map(jnp.result_type, found) == jax.tree.map(
        jnp.result_type, expected
    )


@pytest.mark.parametrize("name", ["mean", "median"])
def test_mean_and_median(name):
    found = jax.jit(getattr(references, name))(DATA)
    oracle = functools.partial(getattr(np, name), axis=0)
    assert_trees_close(found, jax.tree.map(oracle, DATA))
    halves = jnp.asarray(DATA["a"], jnp.bfloat16)
    assert getattr(references, name)(halves).dtype == halves.dtype
    large = jnp.full((2, 3), 4e4, jnp.float16)  # whose sum is beyond float16
    np.testing.assert_array_equal(getattr(references, name)(large), large[0])
    assert getattr(references, name)(np.arange(4)).dtype == jnp.float32


def test_constants():
    zeros = jax.tree.map(np.zeros_like, FIRST)
    assert_trees_close(references.constant(FIRST), zeros)
    by_channel = references.constant(jnp.ones((2, 3), jnp.bfloat16), jnp.arange(3))
    assert by_channel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(by_channel.astype(int), [[0, 1, 2]] * 2)


def test_a_sample_is_a_uniform_subset_with_its_leaves_together():
    tagged = {"i": np.arange(5), "square": np.arange(5.0) ** 2}
    draw = jax.jit(jax.vmap(lambda key: references.sample(key, tagged, 2)))
    drawn = draw(jax.random.split(KEY, 5000))
    np.testing.assert_array_equal(drawn["square"], drawn["i"] ** 2)
    orders = list(itertools.permutations(range(5), 2))
    counts = collections.Counter(map(tuple, np.asarray(drawn["i"]).tolist()))
    assert counts.keys() <= set(orders)
    assert scipy.stats.chisquare([counts[o] for o in orders]).pvalue > 1e-3
    everything = references.sample(KEY, tagged, 5)["i"]
    assert sorted(everything.tolist()) == [0, 1, 2, 3, 4]


def test_the_nearest_of_another_class():
    labels = np.arange(10) % 3
    find = jax.jit(jax.vmap(references.nearest, (0, None, None, 0)))
    found = find(DATA, DATA, labels, labels)
    flat = np.concatenate([DATA["a"], DATA["b"][0].reshape(10, -1)], 1)
    for i in range(10):
        others = [j for j in range(10) if labels[j] != labels[i]]
        best = min(others, key=lambda j: np.linalg.norm(flat[i] - flat[j]))
        one = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        assert_trees_close(one, jax.tree.map(lambda leaf, j=best: leaf[j], DATA))


def test_no_example_of_another_class_is_not_passed_over():
    found = references.nearest(FIRST, DATA, np.ones(10, int), 1)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_example_that_is_not_finite_is_not_near(bad):
    data = np.float32([[bad, 0], [5, 0], [2, 0], [bad, 0]])
    found = references.nearest(np.zeros(2, np.float32), data, np.arange(4), 4)
    np.testing.assert_array_equal(found, data[2])


@pytest.mark.parametrize("seed", range(5))
def test_representatives_are_medoids(seed):
    """No exchange of one of them for another example brings the examples nearer."""
    pytest.importorskip("kmedoids")
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(14, 2)) + 8 * rng.integers(0, 2, (14, 1))
    data = {"x": jnp.float32(points[:, :1]), "y": jnp.float32(points[:, 1:])}
    gaps = np.linalg.norm(points[:, None] - points, axis=-1)
    medoids, weights = references.representatives(data, 3)
    chosen = [int(np.argmin(abs(points[:, 0] - x))) for x in medoids["x"][:, 0]]
    np.testing.assert_array_equal(medoids["y"], data["y"][np.array(chosen)])
    total = gaps[:, chosen].min(1).sum()
    for out, other in itertools.product(range(3), range(14)):
        exchanged = [other if k == out else c for k, c in enumerate(chosen)]
        assert gaps[:, exchanged].min(1).sum() >= total - 1e-6
    shares = np.bincount(gaps[:, chosen].argmin(1), minlength=3) / 14
    np.testing.assert_allclose(weights, shares, rtol=1e-6)


def test_representatives_of_equal_examples():
    pytest.importorskip("kmedoids")
    data = np.float32([[0, 1]] * 5 + [[4, 4]] * 3)
    medoids, weights = references.representatives(data, 2)
    assert {
        (*m, w) for m, w in zip(medoids.tolist(), weights.tolist(), strict=True)
    } == {
        (0, 1, 0.625),
        (4, 4, 0.375),
    }
    assert references.representatives(data, 8)[1].sum() == 1


def test_representatives_name_the_missing_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "kmedoids", None)
    with pytest.raises(ImportError, match=r"jaxlift\[references\]"):
        references.representatives(DATA, 2)


# ------------------------------------------------------------------------- images


def blurred_by_hand(image, sigma):
    """Pixel by pixel: the mean over the image, with Gaussian weights."""
    rows, columns = np.indices(image.shape[:2])
    result = np.empty_like(image)
    for i, j in np.ndindex(*image.shape[:2]):
        weights = np.exp(-((rows - i) ** 2 + (columns - j) ** 2) / (2 * sigma**2))
        result[i, j] = np.tensordot(weights / weights.sum(), image, 2)
    return result


@pytest.mark.parametrize("shape", [(6, 9), (7, 4, 3)])
@pytest.mark.parametrize("sigma", [0.4, 3.0])
def test_blur_is_a_gaussian_mean(shape, sigma):
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    expected = blurred_by_hand(image, sigma)
    np.testing.assert_allclose(references.blur(image, sigma), expected, atol=1e-6)
    traced = jax.jit(jax.vmap(references.blur, (None, 0)))
    by_sigma = traced(image, jnp.array([9.0, sigma]))
    np.testing.assert_allclose(by_sigma[1], expected, atol=1e-6)


def test_blur_limits():
    image = np.random.default_rng(2).normal(size=(6, 9)).astype(np.float32)
    np.testing.assert_array_equal(references.blur(image, 1e-3), image)
    np.testing.assert_allclose(references.blur(image, 1e4), image.mean(), atol=1e-6)
    flat = jnp.full((6, 9), 3, jnp.bfloat16)
    np.testing.assert_array_equal(references.blur(flat, 2), flat)
    assert references.blur(flat, 2).dtype == flat.dtype


# ------------------------------------------------------------------- in explanations

X = one_hot("ACGGTNACATCA")
SEQUENCES = np.stack([one_hot(random_sequence(12, seed)) for seed in range(4)])
SETS = {
    "constant": lambda: references.constant(X)[None],
    "uniform_bases": lambda: references.uniform_bases(X)[None],
    "base_frequencies": lambda: references.base_frequencies(X)[None],
    "background_frequencies": lambda: references.background_frequencies(
        X, [0.3, 0.2, 0.2, 0.3]
    )[None],
    "mean": lambda: references.mean(SEQUENCES)[None],
    "median": lambda: references.median(SEQUENCES)[None],
    "sample": lambda: references.sample(KEY, SEQUENCES, 4),
    "nearest": lambda: references.nearest(X, SEQUENCES, np.arange(4), 0)[None],
    "blur": lambda: references.blur(X, 2.0)[None],
    "shuffle_positions": lambda: jitted("shuffle_positions", 4)(KEY, X),
    "shuffle_dinucleotides": lambda: jitted("shuffle_dinucleotides", 4)(KEY, X),
}


def network(x):
    """A convolution of width 3, an activation, a dense unit."""
    w = jnp.asarray(np.random.default_rng(1).normal(size=(12, 4)), x.dtype)
    windows = jnp.stack([x[i : i + 3].reshape(-1) for i in range(10)])
    return jnp.tanh(jax.nn.gelu(windows @ w).sum())


@functools.cache
def explained():
    return jax.jit(jaxlift.deeplift_shap(network))


@pytest.mark.parametrize("name", SETS)
def test_every_reference_gives_a_complete_explanation(name):
    found = SETS[name]()
    contributions = explained()(X, found)
    gap = network(X) - jax.vmap(network)(found).mean()
    np.testing.assert_allclose(contributions.sum(), gap, atol=1e-5)


def test_weighted_representatives_stand_for_the_set():
    pytest.importorskip("kmedoids")
    doubled = np.concatenate([SEQUENCES, SEQUENCES[:2]])
    medoids, weights = references.representatives(doubled, 4)
    each = jax.jit(jax.vmap(jaxlift.deeplift(network), (None, 0)))(X, medoids)
    found = jnp.einsum("k,k...->...", weights, each)
    np.testing.assert_allclose(found, explained()(X, doubled), atol=1e-6)


PAGE = Path(__file__).parents[1] / "docs" / "references.md"


def test_the_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        if importlib.util.find_spec("kmedoids") or "representatives" not in block:
            exec(compile(block, PAGE.name, "exec"), names)
    results = [names[name] for name in names if name.startswith("from_")]
    assert all(r.shape == (5,) and np.isfinite(r).all() for r in results)
    assert names["contributions"].shape == names["xs"].shape


# ------------------------------------------------------------------------- errors

ROWS = np.ones((3, 2), np.float32)
INTS = np.ones((5, 4), int)
ERRORS = {
    "letters first": (
        lambda: references.shuffle_dinucleotides(KEY, X.T, 2),
        ValueError,
        r"\(length, 4\), not \(4, 12\).*x\.T",
    ),
    "batch of sequences": (
        lambda: references.base_frequencies(SEQUENCES),
        ValueError,
        r"not \(4, 12, 4\).*jax\.vmap",
    ),
    "batch of positions": (
        lambda: references.shuffle_positions(KEY, SEQUENCES, 2),
        ValueError,
        "length, channels.*vmap",
    ),
    "no letters": (
        lambda: references.shuffle_dinucleotides(KEY, X[:0], 2),
        ValueError,
        "no letters",
    ),
    "no shuffles": (
        lambda: references.shuffle_dinucleotides(KEY, X, 0),
        ValueError,
        "n must be at least 1, not 0",
    ),
    "half a shuffle": (
        lambda: references.shuffle_positions(KEY, X, 2.5),
        TypeError,
        "n must be an int",
    ),
    "integer letters": (
        lambda: references.uniform_bases(INTS),
        TypeError,
        r"x has dtype int.*astype",
    ),
    "three frequencies": (
        lambda: references.background_frequencies(X, [0.5, 0.25, 0.25]),
        ValueError,
        r"four numbers.*\(3,\)",
    ),
    "integer constant": (lambda: references.constant(INTS), TypeError, "dtype int"),
    "no data": (lambda: references.mean(X[:0]), ValueError, "N >= 1"),
    "a scalar as data": (lambda: references.median(2.0), ValueError, "leading axis"),
    "no leaves": (lambda: references.mean(()), ValueError, "leading axis"),
    "data of two lengths": (
        lambda: references.mean((ROWS, ROWS[:2])),
        ValueError,
        r"\[\(2,\), \(3,\)\]",
    ),
    "too large a sample": (
        lambda: references.sample(KEY, ROWS, 4),
        ValueError,
        "n is 4, but data has 3",
    ),
    "too many representatives": (
        lambda: references.representatives(ROWS, 4),
        ValueError,
        "k is 4, but data has 3",
    ),
    "labels of another number": (
        lambda: references.nearest(ROWS[0], ROWS, np.arange(2), 0),
        ValueError,
        r"shape \(3,\).*got \(2,\)",
    ),
    "many labels for one": (
        lambda: references.nearest(ROWS[0], ROWS, np.arange(3), np.arange(3)),
        ValueError,
        "label must be a scalar",
    ),
    "labels that are names": (
        lambda: references.nearest(ROWS[0], ROWS, np.array(["a", "b", "b"]), "a"),
        TypeError,
        "labels must.*<U1.*return_inverse",
    ),
    "a label that is a name": (
        lambda: references.nearest(ROWS[0], ROWS, np.arange(3), "cat"),
        TypeError,
        "label must.*<U3",
    ),
    "a constant of another shape": (
        lambda: references.constant(ROWS, np.ones(3)),
        ValueError,
        r"value of shape \(3,\).*\(3, 2\)",
    ),
    "nearest to a batch": (
        lambda: references.nearest(ROWS, ROWS, np.arange(3), 0),
        ValueError,
        r"\(N, \*x.shape\).*vmap",
    ),
    "nearest among integers": (
        lambda: references.nearest(ROWS[0], ROWS.astype(int), np.arange(3), 0),
        TypeError,
        "data has dtype int",
    ),
    "blurred vector": (
        lambda: references.blur(ROWS[0], 1.0),
        ValueError,
        r"\(H, W, C\), not \(2,\)",
    ),
    "no blur": (lambda: references.blur(ROWS, 0), ValueError, "positive.*not 0"),
    "sigma by axis": (
        lambda: references.blur(ROWS, np.ones(2)),
        ValueError,
        "positive scalar",
    ),
    "integer image": (lambda: references.blur(INTS, 1.0), TypeError, "image has dtype"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_is_wrong(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()
