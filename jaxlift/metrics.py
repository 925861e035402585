"""How good is an attribution? Measures of contributions and of explanations.

There are three kinds, and each has one way to be called:

* of contributions, with the function they explain:
  `metric(f, ...)(contributions, x, reference)`: `masking`, `deletion`, `insertion`,
  and, with a key before them, `infidelity`;
* of an explanation, a function `explain(x, reference) -> contributions`:
  `metric(explain, ...)(key, x, reference)`: `max_sensitivity`, `randomisation_check`;
* of arrays: `completeness_gap`, `rank_agreement`, `top_agreement`.

All are of one example, pure, and work under `jit` and `vmap`; a mean over examples is
`jax.vmap(metric, in_axes=(0, 0, None))(contributions, xs, reference).mean()`. As
everywhere in jaxlift, `f` maps one example to a scalar, or `target` makes it one, and
`reference` has the shape and dtype of `x`, or broadcasts to it.

A *feature* is one element of `contributions`. They have the shape of `x`, or a length
of 1 where `x` has more: then what lies along that axis is one feature, replaced as one
(`contributions.sum(-1, keepdims=True)`: a position of DNA, a pixel of three colours).

Attributions that are not finite score NaN: an explanation that broke down is not judged
by the order of what is left of it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlift._arguments import (
    Target,
    Tree,
    check_callable,
    like,
    output_array,
    scalar_output,
    with_target,
)
from jaxlift._batches import at_least_one

# --------------------------------------------------------------------- of arrays


def completeness_gap(
    contributions: Tree, y: jax.Array, y_reference: jax.Array
) -> jax.Array:
    """How far contributions are from adding up, relative to the outputs.

    `|sum(contributions) - (y - y_reference)| / max(|y|, |y_reference|, 1)`.

    Args:
      contributions: a tree of arrays, in units of the output.
      y: the output at the input, `()`.
      y_reference: the output at the reference, `()`.

    Returns:
      The gap, `()`: a pure number. 0 if the contributions are complete.

    Raises:
      ValueError: `y` or `y_reference` is not a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import metrics
      >>> metrics.completeness_gap(jnp.array([1.0, 2.0]), 4.0, 0.0)
      Array(0.25, dtype=float32)

    Source: Shrikumar et al. 2017, equation 1 ("summation-to-delta"); Sundararajan et
    al. 2017, section 3.1 ("completeness").
    """
    y, y_reference = map(jnp.asarray, (y, y_reference))
    for name, output in {"y": y, "y_reference": y_reference}.items():
        if output.shape != ():
            raise ValueError(
                f"{name} must be a scalar, not of shape {output.shape}: contributions "
                "explain one output (jax.vmap maps over examples)"
            )
    total = sum(_wide(leaf).sum() for leaf in jax.tree.leaves(contributions))
    scale = jnp.maximum(jnp.maximum(abs(y), abs(y_reference)), 1)
    return abs(total - (_wide(y) - _wide(y_reference))) / scale


def rank_agreement(a: jax.Array, b: jax.Array) -> jax.Array:
    """Spearman's rank correlation of all elements; the ranks of ties are averaged.

    Args:
      a: attributions, of any shape.
      b: attributions, of the same shape.

    Returns:
      A number from -1 to 1, `()`; nan where all elements of `a` or of `b` are equal:
      there is no order to agree with.

    Raises:
      ValueError: the shapes differ, or there are fewer than two elements.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import metrics
      >>> a = jnp.array([1.0, 2.0, 3.0])
      >>> round(float(metrics.rank_agreement(a, -jnp.exp(a))), 5)
      -1.0

    Source: Spearman, *The proof and measurement of association between two things*,
    American Journal of Psychology, 1904; of attributions: Adebayo et al. 2018.
    """
    ranks = [_ranks(v) for v in _alike(a, b)]
    if ranks[0].size < 2:
        raise ValueError("a and b have fewer than two elements: there is no order")
    u, v = ((r - r.mean()) / r.size for r in ranks)
    agreement = (u * v).sum() / jnp.sqrt((u * u).sum() * (v * v).sum())
    return _if_finite(agreement, a, b)


def top_agreement(a: jax.Array, b: jax.Array, features: int | float) -> jax.Array:
    """The share of the largest elements of `a` that are among the largest of `b`.

    Args:
      a: attributions, of any shape.
      b: attributions, of the same shape.
      features: how many are the largest: an `int` counts, a `float` is a fraction of
        all. Of equal elements the first are taken. Pass absolute values to compare
        importance without sign.

    Returns:
      A number from 0 to 1, `()`.

    Raises:
      ValueError: the shapes differ, or `features` is not from 1 to all of them.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import metrics
      >>> a, b = jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([3.0, 1.0, 2.0, 0.0])
      >>> metrics.top_agreement(a, b, 2)
      Array(0.5, dtype=float32)

    Source: Ghorbani, Abid, Zou, AAAI 2019 (arXiv 1710.10547): "top-k
    intersection".
    """
    a, b = _alike(a, b)
    count = _count(features, a.size)
    top_of_both = (_order(a) < count) & (_order(b) < count)
    return _if_finite(top_of_both.sum() / count, a, b)


# -------------------------------------------- of contributions and their function


def masking(f: Callable, features: int | float, *, target: Target = None) -> Callable:
    """How much the output falls when the features that speak for it are masked.

    The features with the largest contributions, as far as these are positive, are
    replaced by the reference: `f(x) - f(masked)`. The larger, the better the
    contributions found what the output rests on.

    In the paper the output is the log-odds of two classes, here
    `target=lambda y: y[8] - y[3]` of logits, with contributions to the same target;
    `features=0.2`, a fifth of the pixels.

    Args:
      f: a function of one example.
      features: how many are masked at most: an `int` counts, a `float` is a fraction of
        all (rounded to the nearest count).
      target: what makes the output a scalar, as in `jaxlift.deeplift`.

    Returns:
      A function `g(contributions, x, reference)` returning the fall of the output,
      `()`, in its units.

    Raises:
      ValueError: `features` is not from 1 to all of them; contributions whose features
        are not those of `x`; an output that is no scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import metrics
      >>> x = contributions = jnp.array([1.0, 3.0, -2.0])
      >>> metrics.masking(jnp.sum, 1)(contributions, x, 0.0)
      Array(3., dtype=float32)

    Source: Shrikumar et al. 2017, section 4.1.
    """
    output = _scalar(f, target)
    features = _number(features)

    def fall(contributions, x, reference):
        contributions, x, reference = _features(contributions, x, reference)
        count = _count(features, contributions.size)
        masked = (_order(contributions) < count) & (contributions > 0)
        change = output(x) - output(jnp.where(masked, reference, x))
        return _if_finite(change, contributions)

    return fall


class Curve(NamedTuple):
    """The output while features are replaced, the largest contributions first."""

    area: jax.Array
    """The area under `values` over `fractions`, by the trapezoidal rule: `()`."""
    values: jax.Array
    """The output after each step, and before the first: `(steps + 1,)`."""
    fractions: jax.Array
    """The fraction of the features that is replaced, 0 to 1: `(steps + 1,)`."""


def deletion(
    f: Callable, *, target: Target = None, steps: int | None = None
) -> Callable:
    """The output while the features of the input are replaced by the reference.

    The largest contribution first. The smaller the area, the better.

    Args:
      f: a function of one example.
      target: what makes the output a scalar, as in `jaxlift.deeplift`. The paper's is
        the probability of a class, `lambda y: jax.nn.softmax(y)[3]`.
      steps: in how many steps, of equally many features up to rounding; by default one
        feature at a time. There are `steps + 1` evaluations, one after another
        (together for the examples of an outer `vmap`).

    Returns:
      A function `g(contributions, x, reference)` returning a `Curve`.

    Raises:
      ValueError: `steps` is below 1 or above the number of features; contributions
        whose features are not those of `x`; an output that is no scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import metrics
      >>> x = contributions = jnp.array([1.0, 3.0])
      >>> metrics.deletion(jnp.sum)(contributions, x, 0.0).values
      Array([4., 1., 0.], dtype=float32)

    Source: Petsiuk, Das, Saenko, BMVC 2018 (arXiv 1806.07421).
    """
    return _curve(f, target, steps, lambda moved, x, r: jnp.where(moved, r, x))


def insertion(
    f: Callable, *, target: Target = None, steps: int | None = None
) -> Callable:
    """The output while the features of the reference are replaced by the input.

    The largest contribution first. The larger the area, the better. Arguments and
    errors are those of `deletion`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import metrics
      >>> x = contributions = jnp.array([1.0, 3.0])
      >>> metrics.insertion(jnp.sum)(contributions, x, 0.0).area
      Array(2.5, dtype=float32)

    Source: Petsiuk, Das, Saenko, BMVC 2018 (arXiv 1806.07421).
    """
    return _curve(f, target, steps, lambda moved, x, r: jnp.where(moved, x, r))


def _curve(f: Callable, target: Target, steps: int | None, replace: Callable):
    output = _scalar(f, target)
    given = None if steps is None else at_least_one(steps, "steps")

    def curve(contributions, x, reference):
        contributions, x, reference = _features(contributions, x, reference)
        size = contributions.size
        count = given or size
        if count > size:
            raise ValueError(
                f"steps must be at most the number of features, {size}, not {count}"
            )
        replaced = np.rint(np.linspace(0, size, count + 1)).astype(int)
        order = _order(contributions)
        values = lax.map(
            lambda k: output(replace(order < k, x, reference)), jnp.asarray(replaced)
        )
        values = _if_finite(values, contributions)
        fractions = jnp.asarray(replaced / size, values.dtype)
        return Curve(jnp.trapezoid(values, fractions), values, fractions)

    return curve


def infidelity(
    f: Callable,
    *,
    target: Target = None,
    samples: int = 64,
    fraction: float = 0.5,
    scaled: bool = False,
) -> Callable:
    """The mean squared error of contributions as predictions of what masking does.

    `E_S (sum of contributions in S - (f(x) - f(x with S at the reference)))²`, S a
    random subset of the features. This is the paper's
    `E (I . multipliers - (f(x) - f(x - I)))²` with `I = x - reference` on S and 0
    elsewhere.

    Args:
      f: a function of one example.
      target: what makes the output a scalar, as in `jaxlift.deeplift`.
      samples: the number of random subsets, one after another.
      fraction: the probability with which a feature is in a subset, each on its own.
      scaled: multiply the contributions by the number that makes the error smallest
        (for these subsets), so that attributions in other units compare.

    Returns:
      A function `g(key, contributions, x, reference)` returning the error, `()`, in
      units of the output squared.

    Raises:
      ValueError: `samples` below 1, or `fraction` not between 0 and 1; contributions
        whose features are not those of `x`; an output that is no scalar.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxlift import metrics
      >>> x = contributions = jnp.array([1.0, 3.0])
      >>> metrics.infidelity(jnp.sum)(jax.random.key(0), contributions, x, 0.0)
      Array(0., dtype=float32)

    Source: Yeh, Hsieh, Suggala, Inouye, Ravikumar, NeurIPS 2019 (arXiv 1901.09392),
    definition 2.1; the optimal scale as in the authors' implementation.
    """
    output = _scalar(f, target)
    samples = at_least_one(samples, "samples")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, not {fraction}")

    def error(key, contributions, x, reference):
        contributions, x, reference = _features(contributions, x, reference)
        y = output(x)

        def one(key):
            masked = jax.random.bernoulli(key, fraction, contributions.shape)
            predicted = jnp.where(masked, contributions, 0).sum()
            return predicted, y - output(jnp.where(masked, reference, x))

        predicted, fall = lax.map(one, jax.random.split(key, samples))
        if scaled:
            predicted, _ = _unit(predicted)
            # At least 1, but for predictions of nothing at all.
            square = jnp.maximum((predicted**2).sum(), 1)
            predicted *= (predicted * fall).sum() / square
        return _if_finite(((predicted - fall) ** 2).mean(), contributions)

    return error


# --------------------------------------------------------------- of an explanation


def max_sensitivity(explain: Callable, *, radius: float, samples: int = 16) -> Callable:
    """How far an explanation moves, at most, when the input moves a little.

    `max |explain(x + e, reference) - explain(x, reference)|`, Euclidean norm, over
    `samples` draws of `e`, uniform with `|e_i| <= radius`: a lower bound of the maximum
    over the cube.

    Args:
      explain: a function `(x, reference) -> contributions`, an array.
      radius: the largest change of an element of `x`, in its units.
      samples: the number of draws, one after another.

    Returns:
      A function `g(key, x, reference)` returning the largest change, `()`, in units of
      the contributions. Divide by their norm to compare attributions in other units.

    Raises:
      ValueError: `radius` is not positive, or `samples` is below 1.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> from jaxlift import metrics
      >>> explain = jaxlift.multipliers(jnp.sum)  # a constant
      >>> g = metrics.max_sensitivity(explain, radius=0.1)
      >>> g(jax.random.key(0), jnp.ones(3), 0.0)
      Array(0., dtype=float32)

    Source: Yeh et al., NeurIPS 2019 (arXiv 1901.09392), section 3, and its Monte Carlo
    estimate.
    """
    check_callable(explain)
    samples = at_least_one(samples, "samples")
    if not radius > 0:
        raise ValueError(f"radius must be positive, not {radius}")

    def sensitivity(key, x, reference):
        x = jnp.asarray(x)
        reference = like(reference, x, "x")
        before = _wide(explain(x, reference))

        def one(key):
            e = jax.random.uniform(key, x.shape, x.dtype, -radius, radius)
            moved, size = _unit(_wide(explain(x + e, reference)) - before)
            return size * jnp.sqrt((moved**2).sum())

        return lax.map(one, jax.random.split(key, samples)).max()

    return sensitivity


def shuffled(key: jax.Array, leaf: jax.Array) -> jax.Array:
    """The elements of a parameter in random order: its distribution is kept."""
    return jax.random.permutation(key, leaf.reshape(-1)).reshape(leaf.shape)


def randomisation_check(
    explain: Callable,
    params: Tree,
    layers: Sequence[str],
    *,
    cascade: bool = True,
    draw: Callable = shuffled,
    agreement: Callable = rank_agreement,
) -> Callable:
    """Whether an explanation changes when the model's parameters become random.

    The layers are randomised from the last to the first, and after each the explanation
    is compared with that of the trained model. An explanation that still agrees does
    not depend on what the model has learnt.

    Args:
      explain: a function of parameters that returns a function `(x, reference) ->
        contributions`, `lambda params: jaxlift.deeplift(lambda x: model(params, x))`.
      params: the trained parameters, a tree of arrays.
      layers: which parts of `params` are layers, from the first (next to the input) to
        the last. A layer is a path such as `"params/Dense_0"`: keys, indices or names
        of attributes with `/` between them. What is in none of them stays as it is.
      cascade: randomise a layer together with all after it; otherwise on its own.
      draw: a function `(key, leaf) -> leaf` that gives a random parameter of the same
        shape and dtype: by default the same elements in random order. Another is
        `lambda key, leaf: initialiser(key, leaf.shape, leaf.dtype)`.
      agreement: a function of two attributions.

    Returns:
      A function `g(key, x, reference)` returning the agreements, `(len(layers),)`: the
      first after the last layer is randomised, the last one after the first layer (is,
      too).

    Raises:
      ValueError: a layer that is not in `params` (the message lists what is), that is
        named twice, or that lies in another; or no layers.
      TypeError: `layers` that is one path, not a sequence of them.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> from jaxlift import metrics
      >>> params = {"w": jnp.arange(6.0).reshape(3, 2), "v": jnp.array([1.0, -1.0])}
      >>> f = lambda params: lambda x: jax.nn.relu(x @ params["w"]) @ params["v"]
      >>> explain = lambda params: jaxlift.deeplift(f(params))
      >>> g = metrics.randomisation_check(explain, params, ["w", "v"])
      >>> g(jax.random.key(0), jnp.ones(3), 0.0).shape
      (2,)

    Source: Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim, NeurIPS 2018 (arXiv
    1810.03292), section 3.
    """
    check_callable(explain)
    if isinstance(layers, str):
        raise TypeError(f"layers must be a list of paths, [{layers!r}], not {layers!r}")
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    depths = _depths([_name(path) for path, _ in paths], [str(k) for k in layers])
    leaves = [jnp.asarray(leaf) for _, leaf in paths]

    def agreements(key, x, reference):
        keys = jax.random.split(key, len(leaves))
        random = [
            leaf if depth is None else draw(k, leaf)
            for depth, k, leaf in zip(depths, keys, leaves, strict=True)
        ]
        reference = like(reference, x, "x")
        trained = explain(params)(x, reference)

        def after(step):
            chosen = [
                leaf if d is None
                else jnp.where(d <= step if cascade else d == step, new, leaf)
                for d, new, leaf in zip(depths, random, leaves, strict=True)
            ]  # fmt: skip
            changed = explain(jax.tree.unflatten(tree, chosen))(x, reference)
            return agreement(trained, changed)

        return lax.map(after, jnp.arange(len(layers)))

    return agreements


def _depths(names: Sequence[str], layers: Sequence[str]) -> list[int | None]:
    """How far from the output the layer of each leaf is; None if it is in none."""

    def within(layer: str) -> set[int]:
        return {
            k for k, n in enumerate(names) if n == layer or n.startswith(f"{layer}/")
        }

    if not layers:
        raise ValueError("layers is empty: name at least one part of params")
    depths: list[int | None] = [None] * len(names)
    for depth, layer in enumerate(reversed(layers)):
        found = within(layer)
        if not found:
            raise ValueError(f"params have no layer '{layer}'; their leaves: {names}")
        for k in found:
            if depths[k] is not None:
                raise ValueError(f"'{names[k]}' is in two of the layers {layers}")
            depths[k] = depth
    return depths


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


# ------------------------------------------------------------------- shared by all


def _wide(value: jax.Array) -> jax.Array:
    """In float32 at least: sums and squares of half precision are not."""
    value = jnp.asarray(value)
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))


def _unit(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values from -1 to 1, whose squares stay in range, and what they are times."""
    largest = jnp.abs(values).max(initial=0)
    size = jnp.where(largest > 0, largest, 1)
    return values / size, size


def _alike(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = jnp.asarray(a), jnp.asarray(b)
    if a.shape != b.shape:
        raise ValueError(
            f"a and b must have the same shape; they have {a.shape} and {b.shape}"
        )
    return a, b


def _if_finite(score: jax.Array, *attributions: jax.Array) -> jax.Array:
    """The score, or NaN: what is not finite has no place in an order."""
    finite = jnp.stack([jnp.isfinite(a).all() for a in attributions]).all()
    return jnp.where(finite, score, jnp.nan)


def _ranks(values: jax.Array) -> jax.Array:
    """Ranks from 0, `(size,)`, those of ties averaged."""
    values = values.reshape(-1)
    ordered = jnp.sort(values)
    below = jnp.searchsorted(ordered, values, side="left")
    not_above = jnp.searchsorted(ordered, values, side="right")
    return (below + not_above - 1).astype(float) / 2


def _order(values: jax.Array) -> jax.Array:
    """The place of each element, 0 for the largest; of equal ones the first."""
    order = jnp.argsort(values.reshape(-1), descending=True, stable=True)
    return jnp.argsort(order).reshape(values.shape)


def _number(features: Any) -> int | float:
    if isinstance(features, (float, np.floating)):
        return float(features)
    try:
        return operator.index(features)
    except TypeError:
        raise TypeError(
            f"features must be an int, or a float for a fraction, not {features!r}"
        ) from None


def _count(features: int | float, size: int) -> int:
    """A number of features, given as such or as a fraction of all."""
    features = _number(features)
    if isinstance(features, float):
        count = round(features * size) if 0 < features <= 1 else 0
    else:
        count = features
    if not 1 <= count <= size:
        raise ValueError(
            f"features must be a number from 1 to {size} or a fraction above 0 and up "
            f"to 1 that is at least one of {size} features, not {features!r}"
        )
    return count


def _scalar(f: Callable, target: Target) -> Callable:
    """`f` with its target: one real floating number, in float32 at least."""
    check_callable(f)
    chosen = with_target(f, target, has_aux=False)

    def scalar(x):
        y = output_array(chosen(x))
        scalar_output(y)
        return _wide(y)

    return scalar


def _features(contributions, x, reference) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The three arrays; contributions have the axes of `x`, or length 1 there.

    Contributions in float32 at least: their sums are no half-precision floats.
    """
    reference = like(reference, x, "x")
    x, contributions = jnp.asarray(x), jnp.asarray(contributions)
    fits = contributions.ndim == x.ndim and all(
        c in (1, n) for c, n in zip(contributions.shape, x.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"contributions of shape {contributions.shape} do not fit x of shape "
            f"{x.shape}: give the shape of x, with 1 along axes whose elements are one "
            "feature (contributions.sum(-1, keepdims=True))"
        )
    return _wide(contributions), x, reference
