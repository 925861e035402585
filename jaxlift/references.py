"""References and sets of references: what to compare an input with.

Every function is pure, works under `jit` and `vmap` (`representatives` excepted, which
runs on the host) and takes its randomness as a key. A single reference is like the
input and goes to `deeplift`; a set has one more axis in front and goes to
`deeplift_shap`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxlift._arguments import broadcasts
from jaxlift._batches import at_least_one
from jaxlift._differences import wide

Tree = Any


# ---------------------------------------------------------------- any kind of input


def constant(x: Tree, value: Any = 0.0) -> Tree:
    """The same value everywhere; zeros by default.

    Args:
      x: the input, a tree of real floating arrays.
      value: a number, or an array that broadcasts to every leaf (one value for each
        channel, say), in units of the input.

    Returns:
      A tree like `x`.

    Raises:
      TypeError: a leaf that is not real floating.
      ValueError: a value that does not broadcast to a leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import references
      >>> references.constant(jnp.array([1.0, 2.0]), 0.5)
      Array([0.5, 0.5], dtype=float32)

    Source: Shrikumar et al. 2017 (arXiv 1704.02685), section 3.1.
    """

    def filled(leaf):
        leaf = _floating(leaf, "x")
        if not broadcasts(value, leaf.shape):
            raise ValueError(
                f"value of shape {np.shape(value)} does not broadcast to x of shape "
                f"{leaf.shape}"
            )
        return jnp.full_like(leaf, value)

    return jax.tree.map(filled, x)


def mean(data: Tree) -> Tree:
    """The mean of each feature over a data set.

    Args:
      data: a tree of arrays `(N, *leaf.shape)`: N examples along the leading axes.

    Returns:
      A tree of arrays of the shapes of one example, of the dtypes of `data` (integers
      give the default floating dtype).

    Raises:
      ValueError: no examples, or leaves with different numbers of them.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import references
      >>> references.mean(jnp.array([[0.0, 1.0], [2.0, 5.0]]))
      Array([1., 3.], dtype=float32)

    Source: Sturmfels, Lundberg, Lee, Distill 2020 (doi 10.23915/distill.00022).
    """
    _count(data)
    return jax.tree.map(lambda leaf: jnp.mean(leaf, 0), data)


def median(data: Tree) -> Tree:
    """The median of each feature over a data set.

    Unlike the mean it is not drawn by outliers. Of an even number of examples it is
    the middle of the two middle ones. Arguments, result and errors are those of `mean`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import references
      >>> references.median(jnp.array([[0.0, 1.0], [2.0, 5.0], [90.0, 2.0]]))
      Array([2., 2.], dtype=float32)
    """
    _count(data)

    def middle(leaf):
        # The middle of two may be beyond half precision on the way.
        return jnp.median(wide(leaf), 0).astype(jnp.result_type(leaf, float))

    return jax.tree.map(middle, data)


def sample(key: jax.Array, data: Tree, n: int) -> Tree:
    """Examples drawn from a data set without replacement, as a set of references.

    Every set of `n` different examples is equally probable.

    Args:
      key: a key of `jax.random`.
      data: a tree of arrays `(N, *leaf.shape)`.
      n: how many to draw, between 1 and N; static.

    Returns:
      A tree of arrays `(n, *leaf.shape)`, of the dtypes of `data`.

    Raises:
      ValueError: `n` that is not between 1 and N; no examples, or leaves with
        different numbers of them.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxlift import references
      >>> data = jnp.arange(6.0).reshape(3, 2)
      >>> references.sample(jax.random.key(0), data, 2).shape
      (2, 2)

    Source: Lundberg and Lee, NeurIPS 2017 (arXiv 1705.07874); Sturmfels et al. 2020.
    """
    total = _count(data)
    chosen = jax.random.choice(key, total, (_up_to(total, n, "n"),), replace=False)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], data)


def nearest(x: Tree, data: Tree, labels: Any, label: Any) -> Tree:
    """The nearest example of another class: what would have had to be different?

    Nearest in Euclidean distance over all leaves; of equally near ones the first.

    Args:
      x: the input, a tree of real floating arrays.
      data: a tree of arrays `(N, *leaf.shape)`.
      labels: `(N,)`, the class of each example, a number.
      label: the class of `x`, a scalar.

    Returns:
      A tree like one example of `data`: the one nearest to `x` among those whose
      label is not `label`, at a finite distance. All NaN if there is none, since the
      labels may be traced.

    Raises:
      ValueError: shapes of `data`, `labels` or `label` that do not fit.
      TypeError: a leaf of `x` or `data` that is not real floating, labels that are no
        numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import references
      >>> data = jnp.array([[0.0, 0.0], [2.0, 0.0], [5.0, 0.0]])
      >>> references.nearest(jnp.array([0.5, 0.0]), data, jnp.array([0, 1, 1]), 0)
      Array([2., 0.], dtype=float32)

    Source: the nearest unlike neighbour of Dasarathy, *Nearest unlike neighbor (NUN):
    an aid to decision confidence estimation*, Optical Engineering 34, 1995.
    """
    total = _count(data)
    labels, label = _number(labels, "labels"), _number(label, "label")
    if labels.shape != (total,) or label.ndim != 0:
        raise ValueError(
            f"labels must have the shape ({total},), one for each example of data, and "
            f"label must be a scalar; got {labels.shape} and {label.shape}"
        )

    def squares(x, data):
        x, data = _floating(x, "x"), _floating(data, "data")
        if data.shape[1:] != x.shape:
            raise ValueError(
                f"data must have the shape (N, *x.shape); got {data.shape} for x of "
                f"shape {x.shape}. Map over a batch of inputs by jax.vmap."
            )
        dtype = jnp.promote_types(jnp.result_type(x, data), jnp.float32)
        gap = data.astype(dtype) - x.astype(dtype)
        return jnp.sum(gap.reshape(total, -1) ** 2, -1)

    distances = sum(jax.tree.leaves(jax.tree.map(squares, x, data)))
    # Not those of NaN, which a minimum is made of before all others.
    other = (labels != label) & jnp.isfinite(distances)
    chosen = jnp.argmin(jnp.where(other, distances, jnp.inf))
    found = other[chosen]
    return jax.tree.map(
        lambda leaf: jnp.where(found, jnp.asarray(leaf)[chosen], jnp.nan), data
    )


def representatives(data: Tree, k: int) -> tuple[Tree, np.ndarray]:
    """A few examples that stand for a whole data set, and their weights.

    The medoids of `k` clusters: the examples that make the sum of the Euclidean
    distances of all examples to the nearest of them small. The weight of each is the
    share of the examples that are nearest to it. With `k` examples instead of N, the
    weighted mean of contributions stands for the mean over the data set:
    `jnp.einsum("k,k...->...", weights, jax.vmap(explain, (None, 0))(x, medoids))`.

    It runs on the host, not under `jit`, and holds all N x N distances in memory, so
    draw a `sample` first where N is beyond some thousands. Deterministic. Needs
    `pip install jaxlift[references]`.

    Args:
      data: a tree of real arrays `(N, *leaf.shape)`.
      k: how many, between 1 and N.

    Returns:
      `(medoids, weights)`: a tree of arrays `(k, *leaf.shape)` of the dtypes of `data`,
      and a float32 array `(k,)` that sums to 1.

    Raises:
      ValueError: `k` that is not between 1 and N; no examples, or leaves with
        different numbers of them.
      ImportError: the optional library is missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import references
      >>> data = jnp.array([[0.0], [0.1], [0.2], [9.0]])
      >>> medoids, weights = references.representatives(data, 2)  # doctest: +SKIP
      >>> medoids, weights  # doctest: +SKIP
      (Array([[0.1], [9. ]], dtype=float32), array([0.75, 0.25], dtype=float32))

    Source: Kaufman and Rousseeuw, *Clustering by means of medoids*, 1987 (BUILD);
    Schubert and Rousseeuw, Information Systems 101, 2021 (FasterPAM).
    """
    total = _count(data)
    k = _up_to(total, k, "k")
    try:
        import kmedoids  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError(
            "representatives needs the library kmedoids: "
            "pip install 'jaxlift[references]'"
        ) from error
    rows = [np.asarray(leaf).reshape(total, -1) for leaf in jax.tree.leaves(data)]
    points = np.concatenate(rows, 1).astype(np.float64)
    distances = _distances(points - points.mean(0))
    first = kmedoids.pam_build(distances, k).medoids
    chosen = kmedoids.fasterpam(distances, first, n_cpu=1).medoids.astype(int)
    sizes = np.bincount(distances[:, chosen].argmin(1), minlength=k)
    weights = (sizes / total).astype(np.float32)
    return jax.tree.map(lambda leaf: leaf[chosen], data), weights


def _distances(points: np.ndarray) -> np.ndarray:
    """All Euclidean distances, `|a - b|² = |a|² + |b|² - 2 a.b`."""
    squares = (points**2).sum(1)
    gaps = squares[:, None] + squares - 2 * points @ points.T
    np.fill_diagonal(gaps, 0)
    return np.sqrt(np.maximum(gaps, 0))


# ------------------------------------------------------------------------- images


def blur(image: Any, sigma: Any) -> jax.Array:
    """A blurred image: its large shapes and colours without the detail.

    Each pixel becomes a mean of the image's own pixels, weighted by a Gaussian of the
    distance. The weights sum to one at the border too: nothing from outside enters, and
    a constant image stays as it is. Costs `H W (H + W)` products for each channel,
    whatever `sigma`, which may be traced.

    Args:
      image: real floating, `(H, W)` or `(H, W, C)`; channels are blurred apart.
      sigma: standard deviation of the Gaussian in pixels, a positive scalar.

    Returns:
      An array like `image`.

    Raises:
      ValueError: an image of another number of axes, a `sigma` that is not a positive
        scalar (a traced one cannot be seen to be positive).
      TypeError: an image that is not real floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import references
      >>> image = jnp.array([[0.0, 0.0, 1000.0, 0.0, 0.0]])
      >>> references.blur(image, 1.0).astype(int)
      Array([[ 77, 257, 402, 257,  77]], dtype=int32)

    Source: Fong and Vedaldi, ICCV 2017 (arXiv 1704.03296); Sturmfels et al. 2020.
    """
    image = _floating(image, "image")
    if image.ndim not in (2, 3):
        raise ValueError(
            f"image must have the shape (H, W) or (H, W, C), not {image.shape}; map "
            "over a batch by jax.vmap"
        )
    known = not isinstance(sigma, Tracer)
    if jnp.ndim(sigma) != 0 or (known and not sigma > 0):
        raise ValueError(f"sigma must be a positive scalar, in pixels, not {sigma}")
    dtype = jnp.promote_types(image.dtype, jnp.float32)

    def weights(size):
        places = jnp.arange(size, dtype=dtype)
        steps = (places[:, None] - places) / jnp.asarray(sigma, dtype)
        return jax.nn.softmax(-(steps**2) / 2, -1)

    height, width = image.shape[:2]
    blurred = jnp.einsum(
        "hi,wj,ij...->hw...",
        weights(height),
        weights(width),
        image.astype(dtype),
        precision=lax.Precision.HIGHEST,
    )
    return blurred.astype(image.dtype)


# ------------------------------------------------------------------ sequences of DNA
#
# A sequence is `(length, 4)`: in each row a one for the letter, in the order of the
# model's alphabet, or all zeros for an unknown letter, N.


def uniform_bases(x: Any) -> jax.Array:
    """A quarter of each letter at every position.

    Args:
      x: one-hot DNA, `(length, 4)`, floating.

    Returns:
      An array like `x`.

    Raises:
      ValueError: `x` of another shape.
      TypeError: `x` that is not real floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import references
      >>> references.uniform_bases(jnp.eye(4)[:2])
      Array([[0.25, 0.25, 0.25, 0.25],
             [0.25, 0.25, 0.25, 0.25]], dtype=float32)
    """
    return constant(_sequence(x), 0.25)


def base_frequencies(x: Any) -> jax.Array:
    """The sequence's own frequencies of the letters, at every position.

    Args:
      x: one-hot DNA, `(length, 4)`, floating. Unknown letters (rows of zeros) are not
        counted; a sequence of nothing else has zeros as its frequencies.

    Returns:
      An array like `x`.

    Raises:
      ValueError: `x` of another shape.
      TypeError: `x` that is not real floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import references
      >>> x = jnp.eye(4)[jnp.array([0, 0, 0, 2])]
      >>> references.base_frequencies(x)[0]
      Array([0.75, 0.  , 0.25, 0.  ], dtype=float32)
    """
    x = _floating(_sequence(x), "x")
    counts = jnp.sum(x, 0, dtype=jnp.promote_types(x.dtype, jnp.float32))
    return constant(x, counts / jnp.maximum(counts.sum(), 1))


def background_frequencies(x: Any, frequencies: Any) -> jax.Array:
    """Given frequencies of the letters, those of a genome say, at every position.

    Args:
      x: one-hot DNA, `(length, 4)`, floating.
      frequencies: four numbers that sum to 1, in the order of the letters of `x`.

    Returns:
      An array like `x`.

    Raises:
      ValueError: `x` of another shape, or another number of frequencies.
      TypeError: `x` that is not real floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import references
      >>> x = jnp.eye(4)[:1]
      >>> references.background_frequencies(x, [0.3, 0.2, 0.2, 0.3])
      Array([[0.3, 0.2, 0.2, 0.3]], dtype=float32)

    Source: Shrikumar et al. 2017, section 4.2 (expected frequencies as the reference).
    """
    frequencies = jnp.asarray(frequencies)
    if frequencies.shape != (4,):
        raise ValueError(
            f"frequencies must be four numbers, not of shape {frequencies.shape}"
        )
    return constant(_sequence(x), frequencies)


def shuffle_positions(key: jax.Array, x: Any, n: int) -> jax.Array:
    """The positions of a sequence in random order: keeps the letters' frequencies.

    Args:
      key: a key of `jax.random`.
      x: `(length, channels)`, a sequence of any alphabet and dtype. Rows move whole,
        those of unknown letters too.
      n: how many shuffles; static.

    Returns:
      `(n, length, channels)`, of the dtype of `x`: independent shuffles, all orders
      equally probable.

    Raises:
      ValueError: `x` of another number of axes, or `n` below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxlift import references
      >>> shuffles = references.shuffle_positions(jax.random.key(0), jnp.eye(4), 20)
      >>> shuffles.shape
      (20, 4, 4)
    """
    x = jnp.asarray(x)
    if x.ndim != 2:
        raise ValueError(
            f"x must have the shape (length, channels), not {x.shape}; map over a "
            "batch by jax.vmap"
        )
    keys = jax.random.split(key, at_least_one(n, "n"))
    return x[jax.vmap(functools.partial(_permutation, len(x)))(keys)]


def _permutation(length: int, key: jax.Array) -> jax.Array:
    """As `jax.random.permutation`, by sorts that are several times as fast on CPUs.

    Every place gets a random word with the place in its lower bits, where JAX sorts
    pairs of a word and a place. Words that are otherwise equal keep their order, hence
    several rounds, each of which permutes the order of the last: as many as JAX takes
    for words of so many random bits.
    """
    places = jnp.arange(length, dtype=jnp.uint32)
    low = np.uint32(2 ** max(length - 1, 0).bit_length() - 1)
    words = 2**32 // (int(low) + 1)
    rounds = max(1, math.ceil(3 * math.log(max(length, 1)) / math.log(words)))

    def permuted(key):
        random = jax.random.bits(key, (length,), jnp.uint32)
        return lax.sort((random & ~low) | places, is_stable=False) & low

    orders = map(permuted, jax.random.split(key, rounds))
    return functools.reduce(lambda order, following: order[following], orders)


def shuffle_dinucleotides(key: jax.Array, x: Any, n: int) -> jax.Array:
    """Random sequences with the same counts of all pairs of neighbouring letters.

    Each shuffle is drawn, independently, from all sequences with the dinucleotide
    counts and the first letter of `x` (the last one is then given as well), every one
    equally probable.

    Args:
      key: a key of `jax.random`.
      x: one-hot DNA, `(length, 4)`, of any dtype, at most 2²⁴ letters. An unknown
        letter (a row of zeros) counts as a fifth letter N: pairs with it are kept too,
        so that a single run of N stays one run of its length. Rows of anything else
        cannot be refused under `jit`; they are taken for their largest entry.
      n: how many shuffles; static.

    Returns:
      `(n, length, 4)`, of the dtype of `x`.

    Raises:
      ValueError: `x` of another shape, no letters, or `n` below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxlift import references
      >>> x = jnp.eye(4)[jnp.array([0, 1, 0, 2, 0])]  # ACAGA: itself or AGACA
      >>> shuffles = references.shuffle_dinucleotides(jax.random.key(0), x, 20)
      >>> jnp.unique(shuffles.argmax(-1), axis=0)
      Array([[0, 1, 0, 2, 0],
             [0, 2, 0, 1, 0]], dtype=int32)

    Source: Altschul and Erickson, Molecular Biology and Evolution 2(6), 1985; Kandel,
    Matias, Unger, Winkler, Discrete Applied Mathematics 71, 1996 (a random tree).
    """
    x = _sequence(x)
    if len(x) == 0:
        raise ValueError("x has no letters to shuffle: its shape is (0, 4)")
    n = at_least_one(n, "n")
    letters = jnp.where(jnp.any(x != 0, -1), jnp.argmax(x, -1), _N).astype(jnp.int32)
    counts = jnp.zeros((_LETTERS, _LETTERS), jnp.float32)
    counts = counts.at[letters[:-1], letters[1:]].add(1)

    def shuffled(key):
        key_tree, key_orders = jax.random.split(key)
        tree = _random_tree(key_tree, counts, letters[-1])
        orders, ends = _random_orders(key_orders, counts, letters[-1], tree, len(x) - 1)
        walk = _walk(letters[0], orders, ends, len(x) - 1)
        walk = jnp.concatenate([letters[:1].astype(walk.dtype), walk])
        return jax.nn.one_hot(walk, 4, dtype=x.dtype)

    return jax.vmap(shuffled)(jax.random.split(key, n))


# Why the shuffles are uniform. Take the letters as vertices and every pair of
# neighbours in the sequence as an edge from the first to the second. A sequence with
# the same pairs that begins with the same letter s is a walk from s that uses every
# edge once; it ends where the sequence does, at t. Let the *last exit* from a letter be
# the last of its edges out that the walk takes.
#
# * The last exits from all letters but t are a tree that leads to t: following them
#   goes forward in time, so never in a circle, and only the walk's end has no exit.
# * Conversely, choose any tree of edges that leads to t, and for each letter any order
#   of its edges out in which the tree's edge is the last. The walk from s that takes
#   each letter's edges in that order can stop at t only, since every other letter is
#   left as often as it is entered. It has then used every edge: were one out of u
#   unused, then so were u's last exit, hence an edge into the next letter of the tree,
#   hence one out of that, and so on up to an edge into t; but t was entered as often
#   as it can be.
#
# So the walks correspond one to one to the choices of a tree and of orders of the other
# edges (the BEST theorem: de Bruijn, van Aardenne-Ehrenfest, Smith, Tutte), and uniform
# choices make a uniform walk. A sequence stands for as many walks as its equal pairs
# can be permuted in, the product of the factorials of the counts, which is the same for
# all of them: a uniform walk is a uniform sequence. Which of equal edges is
# taken is never asked:
#
# * A tree of letters stands for as many trees of edges as the product of its counts.
#   Five letters have 5³ trees to each root (Cayley), so all are listed below, weighed,
#   and one is drawn: exactly, and without a random walk of unbounded length.
# * The order of the other edges out of a letter is drawn edge by edge: the next is any
#   of those left with equal probability, so a letter in proportion to its edges left.
#
# The orders of all five letters lie one after another, one place for each edge, and are
# drawn in one pass that holds the counts of a single letter; the walk then holds how
# many edges of each order are left. Each order is laid out from its end, so that it
# begins with the tree's edge and the walk comes to its places from the right.
#
# In float32 the counts are exact up to 2²⁴, the probabilities of letters to 2⁻²³.

_LETTERS = 5
_N = 4  # the unknown letter
_CHUNK = 256  # places whose random numbers are drawn at once, to stay in a CPU's cache


def _trees_to_each_root() -> np.ndarray:
    """Which letter follows each on its way to the root, `(root, tree, letter)`.

    A tree is a map under which every letter comes to the root, in four steps at most.
    The root itself stays.
    """
    maps = np.indices((_LETTERS,) * _LETTERS, np.int32).reshape(_LETTERS, -1).T
    two_steps = np.take_along_axis(maps, maps, 1)
    four_steps = np.take_along_axis(two_steps, two_steps, 1)
    leads_to = [(four_steps == root).all(1) for root in range(_LETTERS)]
    return np.stack([maps[chosen] for chosen in leads_to])


_TREES = _trees_to_each_root()


def _left(counts: jax.Array, root: jax.Array) -> jax.Array:
    """Whether a letter has a last exit: it occurs, and the walk does not end there."""
    return counts.any(1) & (jnp.arange(_LETTERS) != root)


def _random_tree(key: jax.Array, counts: jax.Array, root: jax.Array) -> jax.Array:
    """A tree with probability in proportion to the product of its counts, `(5,)`."""
    letters = jnp.arange(_LETTERS)
    # A letter without a last exit has one way in the tree that means nothing.
    ways = jnp.where(_left(counts, root)[:, None], counts, letters == root)
    trees = jnp.asarray(_TREES)[root]
    weights = ways[letters, trees].prod(-1)  # at most 2⁹⁶

    # Added one after another, so that a tree of weight 0 adds exactly nothing.
    def add(total, weight):
        return (total + weight,) * 2

    total, up_to = lax.scan(add, jnp.float32(0), weights)
    drawn = jax.random.uniform(key, (), jnp.float32) * total
    return trees[jnp.sum(drawn >= up_to)]


def _random_orders(
    key: jax.Array, counts: jax.Array, root: jax.Array, tree: jax.Array, length: int
) -> tuple[jax.Array, jax.Array]:
    """The letters that follow each letter: the tree's, then the others in any order.

    Returns:
      `(orders, ends)`: `(length,)` letters or more, and the place at which the order
      of each letter ends, `(5,)`.
    """
    chunks = max(1, -(-length // _CHUNK))
    size = max(1, -(-length // chunks))
    places = jnp.arange(chunks * size)
    ends = jnp.cumsum(counts.sum(1).astype(jnp.int32))
    begins = jnp.pad(ends, (1, 0))[:-1]
    # Of the edges not yet drawn, how many go to the first 1, 2, 3, 4 letters? None are
    # left at the end of an order, so that the next one's are added to zeros.
    up_to = jnp.cumsum(counts, 1)[:, :-1]
    added = jnp.zeros((len(places), _LETTERS - 1), jnp.float32).at[begins].add(up_to)
    left = ends[jnp.sum(places[:, None] >= ends[:-1], 1)] - places
    # At the beginning of an order not any edge is taken, but the tree's.
    tree_edges = jnp.take_along_axis(jnp.pad(up_to, ((0, 0), (1, 0))), tree[:, None], 1)
    tree_places = jnp.where(_left(counts, root), begins, -1)

    def draw(up_to, now):
        edge, added = now
        up_to = up_to + added
        behind = edge >= up_to
        return up_to - ~behind, jnp.sum(behind, dtype=jnp.uint8)

    def draw_chunk(up_to, now):
        key, left, added, chunk = now
        # uniform <= 1 - 2⁻²³, so that an edge stays below the number of those left
        edges = jax.random.uniform(key, (size,), jnp.float32) * left
        here = jnp.where(tree_places // size == chunk, tree_places % size, size)
        edges = edges.at[here].set(tree_edges[:, 0], mode="drop")
        return lax.scan(draw, up_to, (edges, added))

    _, orders = lax.scan(
        draw_chunk,
        jnp.zeros(_LETTERS - 1, jnp.float32),
        (
            jax.random.split(key, chunks),
            left.reshape(chunks, size),
            added.reshape(chunks, size, -1),
            jnp.arange(chunks),
        ),
    )
    return orders.ravel(), ends


def _walk(
    first: jax.Array, orders: jax.Array, ends: jax.Array, length: int
) -> jax.Array:
    """The letters after the first on the walk that takes these orders."""

    def step(state, _):
        ends, letter = state
        following = orders[ends[letter] - 1]
        ends = ends - (jnp.arange(_LETTERS) == letter)
        return (ends, following.astype(jnp.int32)), following

    return lax.scan(step, (ends, first), length=length)[1]


# ------------------------------------------------------------------------- arguments


def _floating(x: Any, name: str) -> jax.Array:
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name} has dtype {dtype}, and only real floating inputs can be "
            "attributed to: cast it, x.astype('float32')"
        )
    return jnp.asarray(x)


def _number(value: Any, name: str) -> jax.Array:
    try:
        return jnp.asarray(value)
    except TypeError:
        raise TypeError(
            f"{name} must be numbers, not of dtype {np.asarray(value).dtype}: "
            "np.unique(labels, return_inverse=True) numbers classes that have names"
        ) from None


def _sequence(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    if x.ndim != 2 or x.shape[1] != 4:
        raise ValueError(
            f"x must be one sequence of one-hot DNA, of shape (length, 4), not "
            f"{x.shape}; map over a batch by jax.vmap, transpose (4, length): x.T"
        )
    return x


def _count(data: Tree) -> int:
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(counts) != 1 or counts <= {(), (0,)}:
        raise ValueError(
            "every leaf of data needs the same leading axis of N >= 1 examples, shape "
            f"(N, *leaf.shape); got leading axes {sorted(counts)}"
        )
    ((count,),) = counts
    return count


def _up_to(total: int, n: int, name: str) -> int:
    n = at_least_one(n, name)
    if n > total:
        raise ValueError(f"{name} is {n}, but data has {total} examples only")
    return n
