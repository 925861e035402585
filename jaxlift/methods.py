"""Methods to compare DeepLIFT with: gradients, their averages, and Grad-CAM.

Each is called like `jaxlift.deeplift`: `method(f, argnums, target=...)` returns
`g(*args, reference)`, so that one can be put in another's place. A method that samples
takes a `jax.random` key in front, `g(key, *args, reference)`. A method that makes no
use of the reference checks it all the same. Those that evaluate perturbed inputs
instead of gradients are in `jaxlift.perturbation`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.lib.array_utils import normalize_axis_index

from jaxlift._arguments import (
    Target,
    Tree,
    attributed,
    broadcasts,
    called_with_reference,
    check_callable,
    count_references,
    numbers_of,
    replaced,
    split_reference,
    with_target,
)
from jaxlift._batches import at_least_one, mean_over, resharded
from jaxlift._differences import wide
from jaxlift._tables import DECONVNET, GRADIENT, GUIDED_BACKPROP, LRP
from jaxlift._transforms import deeplift, intermediate, multipliers
from jaxlift.metrics import completeness_gap

Quadrature = Callable[[int], tuple[np.ndarray, np.ndarray]]
Path = Callable[[Any, Any, Any], Any]


# ------------------------------------------------------- one backward pass: tables


def gradient(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    target: Target = None,
    at: str | tuple[str, ...] | None = None,
) -> Callable:
    """The gradient of `f`: `df/dx_i`.

    What `jax.grad` computes, with a target and tags, called like the other methods.

    Args:
      f: as in `jaxlift.deeplift`.
      argnums: as in `jaxlift.deeplift`.
      target: as in `jaxlift.deeplift`.
      at: as in `jaxlift.deeplift`.

    Returns:
      A function `g(*args, reference)` with a result like the argument, in units of the
      output per unit of the input. The values of the reference play no part.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import methods
      >>> methods.gradient(jnp.prod)(jnp.array([2.0, 3.0]), 0.0)
      Array([3., 2.], dtype=float32)

    Source: Simonyan, Vedaldi, Zisserman 2014 (arXiv 1312.6034), section 3, there with
    the absolute value taken.
    """
    return multipliers(f, argnums, rules=GRADIENT, target=target, at=at)


def gradient_times_input(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    target: Target = None,
    at: str | tuple[str, ...] | None = None,
) -> Callable:
    """Gradient times the difference from the reference: `(x_i - r_i) df/dx_i`.

    With the zero reference, gradient times input. Complete for linear functions only.

    Arguments are those of `gradient`; the result is in units of the output.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import methods
      >>> methods.gradient_times_input(jnp.prod)(jnp.array([2.0, 3.0]), 0.0)
      Array([6., 6.], dtype=float32)

    Source: Shrikumar et al. 2016 (arXiv 1605.01713); Ancona et al. 2018 (arXiv
    1711.06104), table 1, both for the zero reference.
    """
    return deeplift(f, argnums, rules=GRADIENT, target=target, at=at)


def guided_backprop(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    target: Target = None,
    at: str | tuple[str, ...] | None = None,
) -> Callable:
    """The gradient, of which every relu passes back only what is positive.

    Arguments and result are those of `gradient`: multipliers, not times the input.
    Those are `jaxlift.deeplift(f, rules=jaxlift.GUIDED_BACKPROP)`, what Shrikumar et
    al. 2017 compare with.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxlift import methods
      >>> f = lambda x: (jnp.array([1.0, -1.0]) * jax.nn.relu(x)).sum()
      >>> methods.guided_backprop(f)(jnp.array([2.0, 3.0]), 0.0)
      Array([1., 0.], dtype=float32)

    Source: Springenberg et al. 2015 (arXiv 1412.6806).
    """
    return multipliers(f, argnums, rules=GUIDED_BACKPROP, target=target, at=at)


def deconvnet(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    target: Target = None,
    at: str | tuple[str, ...] | None = None,
) -> Callable:
    """The gradient with every relu applied to what comes back instead of its slope.

    Arguments and result are those of `gradient`: multipliers, not times the input.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxlift import methods
      >>> f = lambda x: (jnp.array([1.0, -1.0]) * jax.nn.relu(x)).sum()
      >>> methods.deconvnet(f)(jnp.array([-2.0, 3.0]), 0.0)
      Array([1., 0.], dtype=float32)

    Source: Zeiler, Fergus 2014 (arXiv 1311.2901), section 2.1.
    """
    return multipliers(f, argnums, rules=DECONVNET, target=target, at=at)


def lrp(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    target: Target = None,
    at: str | tuple[str, ...] | None = None,
) -> Callable:
    """Layer-wise relevance propagation, epsilon rule in the limit of a small epsilon.

    The gradient in which an activation `F` of `z` multiplies by `F(z) / z` (where
    `z == 0`, by its derivative), times `x - r`. Complete for the zero reference, where
    no layer has a bias and `F(0) == 0`: what biases bring is left out.

    Arguments are those of `gradient`; the result is in units of the output.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import methods
      >>> f = lambda x: jnp.tanh(x.sum())
      >>> relevance = methods.lrp(f)(jnp.array([2.0, 1.0]), 0.0)
      >>> bool(jnp.allclose(relevance.sum(), jnp.tanh(3.0)))
      True

    Source: Bach et al., PLOS ONE 2015, equation 58; in the form of Ancona et al. 2018
    (arXiv 1711.06104), proposition 1.
    """
    return deeplift(f, argnums, rules=LRP, target=target, at=at)


# ---------------------------------------------------------- averages along a path


def straight_path(x: Tree, reference: Tree, t: jax.Array) -> Tree:
    """The point `reference + t (x - reference)`."""
    return jax.tree.map(lambda x, r: r + t.astype(r.dtype) * (x - r), x, reference)


def _gauss_legendre(steps: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return (nodes + 1) / 2, weights / 2


def _trapezoid(steps: int) -> tuple[np.ndarray, np.ndarray]:
    weights = np.full(steps + 1, 1 / steps)
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, steps + 1), weights


def _riemann(shift: float) -> Quadrature:
    """The rule with a point at `shift` of each of `steps` equal intervals."""
    return lambda n: ((np.arange(n) + shift) / n, np.full(n, 1 / n))


QUADRATURES: dict[str, Quadrature] = {
    "left": _riemann(0),
    "right": _riemann(1),
    "midpoint": _riemann(0.5),
    "trapezoid": _trapezoid,
    "gauss_legendre": _gauss_legendre,
}
"""From a number of steps to the nodes and weights of a quadrature on [0, 1]."""


def integrated_gradients(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    target: Target = None,
    steps: int = 32,
    quadrature: str | Quadrature = "gauss_legendre",
    path: Path = straight_path,
    tolerance: float | None = None,
    max_steps: int = 4096,
) -> Callable:
    """Contributions as the gradient integrated along a path from the reference.

    `∫ df/dx_i(γ(t)) γ_i'(t) dt` for t from 0 to 1; on the straight path this is
    `(x_i - r_i)` times the mean gradient. Complete in the limit of many steps, if `f`
    is continuous on the path. Gauss-Legendre with n steps is exact for polynomials of
    degree up to 2n.

    Args:
      f: as in `jaxlift.deeplift`.
      argnums: as in `jaxlift.deeplift`.
      target: as in `jaxlift.deeplift`.
      steps: the number of gradients; "trapezoid" takes one more.
      quadrature: a name in `QUADRATURES`, or a function from `steps` to the arrays of
        nodes in [0, 1] and of weights.
      path: `path(x, reference, t)` is the point at the scalar t, like `x`: the
        reference at 0 and `x` at 1 (trees like the argument, or tuples of them for a
        tuple of argnums). JAX differentiates it in t.
      tolerance: halve the intervals, each with `steps` points, until the relative
        completeness gap `|sum(c) - (f(x) - f(r))| / max(|f(x)|, |f(r)|, 1)` is at
        most this, or `max_steps` would be exceeded: what is reached then is returned
        as it is. The loop is a `lax.while_loop`: forward-mode differentiation only.
      max_steps: the most steps of one such attempt.

    Returns:
      A function `g(*args, reference)` with a result like the argument, in units of the
      output.

    Raises:
      ValueError: an unknown quadrature, or one without a weight for each node, `steps`
        below 1, `max_steps` below `steps`, a `tolerance` below 0, a path whose points
        are not like the argument. Otherwise as `jaxlift.deeplift`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> ig = jaxlift.integrated_gradients(jnp.prod, steps=2)
      >>> ig(jnp.array([2.0, 3.0]), 0.0)
      Array([3., 3.], dtype=float32)

    Source: Sundararajan, Taly, Yan, ICML 2017 (arXiv 1703.01365), equation 1; other
    paths: section 4.
    """
    steps = at_least_one(steps, "steps")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, not {tolerance}")
    if tolerance is not None and max_steps < steps:
        raise ValueError(f"max_steps {max_steps} is less than steps {steps}")
    nodes, weights = _rule(quadrature, steps)
    bind = _bound(f, argnums, target)

    @called_with_reference(f)
    def integrated(*args_and_reference: Any, **kwargs: Any) -> Tree:
        x, reference, value, slopes = bind(args_and_reference, kwargs)
        term = _path_term(slopes, path, x, reference)
        zeros = jax.tree.map(jnp.zeros_like, x)
        integral = functools.partial(_weighted_sum, term, zeros)
        if tolerance is None:
            return integral(nodes, weights)
        outputs = value(x), value(reference)
        return _refined(
            integral, zeros, nodes, weights,
            gap=lambda c: completeness_gap(c, *outputs),
            tolerance=tolerance, most=max_steps // steps,
        )  # fmt: skip

    return integrated


def expected_gradients(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    target: Target = None,
    samples: int = 200,
    batch_size: int | None = None,
) -> Callable:
    """Integrated gradients averaged over a set of references, by sampling.

    The mean over samples of `(x_i - r_i) df/dx_i(r + t (x - r))`, each with a
    reference r drawn from the set and t uniform in [0, 1]. Its expectation is the mean
    of `integrated_gradients` over the references, at a cost that does not grow with
    their number.

    Args:
      f: as in `jaxlift.deeplift`.
      argnums: as in `jaxlift.deeplift`.
      target: as in `jaxlift.deeplift`.
      samples: the number of gradients. The error falls with its square root.
      batch_size: how many samples are in flight at once; all of them by default.

    Returns:
      A function `g(key, *args, references)`; `key` is a `jax.random` key, every leaf
      of `references` has the shape `(R, *leaf.shape)`. The result is like the argument.

    Raises:
      ValueError: no references, leaves with different numbers of them, `samples` or
        `batch_size` below 1. Otherwise as `jaxlift.deeplift`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxlift import methods
      >>> references = jnp.array([[1.0, 1.0], [1.0, 1.0]])
      >>> explain = methods.expected_gradients(jnp.sum, samples=4)
      >>> explain(jax.random.key(0), jnp.array([2.0, 3.0]), references)
      Array([1., 2.], dtype=float32)

    Source: Erion et al., Nature Machine Intelligence 2021 (arXiv 1906.10670).
    Captum and SHAP name it GradientShap and GradientExplainer.
    """
    samples = at_least_one(samples, "samples")
    bind = _bound(f, argnums, target)

    @called_with_reference(f)
    def expected(key: jax.Array, /, *args_and_references: Any, **kwargs: Any) -> Tree:
        keys = jax.random.split(key, samples)
        args, references = split_reference(args_and_references)
        count = count_references(references, args, argnums)
        # Any of them may be drawn: on an explicit mesh every device gets all.
        references = jax.tree.map(resharded, jax.tree.map(jnp.asarray, references))

        def sample(key):
            which, where = jax.random.split(key)
            k = jax.random.randint(which, (), 0, count)
            reference = jax.tree.map(lambda leaf: leaf[k], references)
            x, reference, _, slopes = bind((*args, reference), kwargs)
            term = _path_term(slopes, straight_path, x, reference)
            return term(jax.random.uniform(where))

        return mean_over(sample, keys, batch_size)

    return expected


def smoothgrad(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    target: Target = None,
    samples: int = 50,
    noise: Any = 0.1,
    method: Callable = gradient,
    batch_size: int | None = None,
) -> Callable:
    """The gradient, or another method, averaged over noisy copies of the input.

    Args:
      f: as in `jaxlift.deeplift`.
      argnums: as in `jaxlift.deeplift`.
      target: as in `jaxlift.deeplift`.
      samples: the number of noisy copies.
      noise: the standard deviation of the normal noise in units of the input, a scalar
        or an array that broadcasts to it. The paper's is 0.1 to 0.2 times
        `x.max() - x.min()`.
      method: what is averaged, called as `method(f, argnums, target=target)`: another
        function of this module, or `jaxlift.deeplift`.
      batch_size: how many copies are in flight at once; all of them by default.

    Returns:
      A function `g(key, *args, reference)`; `key` is a `jax.random` key. The result is
      the method's.

    Raises:
      ValueError: `samples` or `batch_size` below 1, `noise` that does not broadcast to
        the input. Otherwise as the method.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxlift import methods
      >>> smooth = methods.smoothgrad(lambda x: 3 * x.sum(), samples=4)
      >>> smooth(jax.random.key(0), jnp.array([2.0, 3.0]), 0.0)
      Array([3., 3.], dtype=float32)

    Source: Smilkov et al. 2017 (arXiv 1706.03825).
    """
    samples = at_least_one(samples, "samples")
    numbers = numbers_of(argnums)
    explain = method(f, argnums, target=target)

    @called_with_reference(f)
    def smooth(key: jax.Array, /, *args_and_reference: Any, **kwargs: Any) -> Tree:
        keys = jax.random.split(key, samples)
        args, reference = split_reference(args_and_reference)
        xs, _ = attributed(args, argnums, reference)

        def sample(key):
            moved = replaced(args, numbers, _noisy(key, xs, noise))
            return explain(*moved, reference, **kwargs)

        return mean_over(sample, keys, batch_size)

    return smooth


# ------------------------------------------------------------------------ Grad-CAM


def grad_cam(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    layer: str,
    target: Target = None,
    channel_axis: int = -1,
) -> Callable:
    """Where a layer of feature maps speaks for the output.

    `relu(sum_k a_k A_k)`, with the maps `A_k`, one per channel, each weighted by its
    mean gradient over all places, `a_k = mean(df/dA_k)`.

    Args:
      f: as in `jaxlift.deeplift`, of one example, with the feature maps tagged by
        `jax.ad_checkpoint.checkpoint_name(value, layer)`.
      argnums: the argument(s) on which the layer depends.
      layer: the tag: as a rule of the last convolution, after its activation.
      target: as in `jaxlift.deeplift`.
      channel_axis: the axis of the channels in the tagged value.

    Returns:
      A function `g(*args, reference)` with a result of the layer's shape without the
      channel axis, at least 0. The values of the reference play no part.

    Raises:
      ValueError: no value is tagged so, or it has no such axis. Otherwise as
        `jaxlift.deeplift`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax.ad_checkpoint import checkpoint_name
      >>> from jaxlift import methods
      >>> f = lambda x: checkpoint_name(2 * x, "maps").sum()
      >>> methods.grad_cam(f, layer="maps")(jnp.array([[1.0], [-1.0], [3.0]]), 0.0)
      Array([2., 0., 6.], dtype=float32)

    Source: Selvaraju et al., ICCV 2017 (arXiv 1610.02391), equations 1 and 2.
    """
    maps_of = intermediate(f, layer)
    slopes_of = gradient(f, argnums, target=target, at=layer)

    @called_with_reference(f)
    def localised(*args_and_reference: Any, **kwargs: Any) -> jax.Array:
        args, _ = split_reference(args_and_reference)
        maps = maps_of(*args, **kwargs)
        slopes = slopes_of(*args_and_reference, **kwargs)
        channel = normalize_axis_index(channel_axis, maps.ndim, "channel_axis")
        places = tuple(k for k in range(maps.ndim) if k != channel)
        weights = slopes.mean(places, keepdims=True)
        return jnp.maximum((weights * maps).sum(channel), 0)

    return localised


def guided_grad_cam(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    layer: str,
    target: Target = None,
    channel_axis: int = -1,
) -> Callable:
    """Guided backpropagation times Grad-CAM, interpolated linearly to the input.

    Args:
      f: as in `grad_cam`.
      argnums: as in `jaxlift.deeplift`.
      layer: as in `grad_cam`.
      target: as in `jaxlift.deeplift`.
      channel_axis: the axis of the channels in the tagged value, and in the input if
        it has one axis more than the map of `grad_cam`; of as many, it has no channels.

    Returns:
      A function `g(*args, reference)` with a result like the argument. The values of
      the reference play no part.

    Raises:
      ValueError: as `grad_cam`, and an input that has not as many axes as the map.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax.ad_checkpoint import checkpoint_name
      >>> from jaxlift import methods
      >>> f = lambda x: checkpoint_name(2 * x, "maps").sum()
      >>> explain = methods.guided_grad_cam(f, layer="maps")
      >>> explain(jnp.array([[1.0], [-1.0], [3.0]]), 0.0).ravel()
      Array([ 4.,  0., 12.], dtype=float32)

    Source: Selvaraju et al., ICCV 2017 (arXiv 1610.02391).
    """
    localise = grad_cam(
        f, argnums, layer=layer, target=target, channel_axis=channel_axis
    )
    guide = guided_backprop(f, argnums, target=target)

    @called_with_reference(f)
    def guided(*args_and_reference: Any, **kwargs: Any) -> Tree:
        places = localise(*args_and_reference, **kwargs)
        multipliers = guide(*args_and_reference, **kwargs)
        return jax.tree.map(
            lambda m: m * _enlarged(places, m.shape, channel_axis).astype(m.dtype),
            multipliers,
        )

    return guided


# ------------------------------------------------------------------------- helpers


def _rule(quadrature: str | Quadrature, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The nodes and weights of a quadrature."""
    if not callable(quadrature) and quadrature not in QUADRATURES:
        raise ValueError(
            f"unknown quadrature {quadrature!r}: choose one of "
            f"{', '.join(QUADRATURES)}, or a function from steps to (nodes, weights)"
        )
    make = quadrature if callable(quadrature) else QUADRATURES[quadrature]
    nodes, weights = make(steps)
    if np.shape(nodes) != np.shape(weights) or np.ndim(nodes) != 1:
        raise ValueError(
            "quadrature must return as many weights as nodes, two arrays (n,), not of "
            f"shapes {np.shape(nodes)} and {np.shape(weights)}"
        )
    return nodes, weights


class _Bound(NamedTuple):
    """One call of `g(*args, reference)`, in terms of the attributed argument alone."""

    x: Tree
    reference: Tree
    value: Callable
    """From a point like `x` to the output of `f` there."""
    slopes: Callable
    """From a point like `x` to the gradient there."""


def _bound(f: Callable, argnums: Any, target: Target) -> Callable:
    """From the arguments and the keyword arguments of a call to its `_Bound`."""
    check_callable(f)
    numbers = numbers_of(argnums)
    single = isinstance(argnums, int | np.integer)
    explained = with_target(f, target, has_aux=False)
    gradient_of = gradient(explained, argnums)

    def bind(args_and_reference: Sequence, kwargs: dict) -> _Bound:
        args, reference = split_reference(args_and_reference)
        xs, references = attributed(args, argnums, reference)

        def at(point):
            return replaced(args, numbers, (point,) if single else point)

        return _Bound(
            x=xs[0] if single else xs,
            reference=references[0] if single else references,
            value=lambda point: explained(*at(point), **kwargs),
            slopes=lambda point: gradient_of(*at(point), point, **kwargs),
        )

    return bind


def _path_term(slopes: Callable, path: Path, x: Tree, reference: Tree) -> Callable:
    """The integrand: gradient times velocity, at the point of the path at `t`."""
    dtype = jnp.result_type(float, *jax.tree.leaves(x))
    place = lambda t: _point_like(path(x, reference, t), x)

    def term(t):
        t = jnp.asarray(t, dtype)
        point, velocity = jax.jvp(place, (t,), (jnp.ones_like(t),))
        return jax.tree.map(
            lambda slope, v: jnp.where(v == 0, 0, slope * v), slopes(point), velocity
        )

    return term


def _weighted_sum(term: Callable, zeros: Tree, nodes: Any, weights: Any) -> Tree:
    """`sum_k weights_k term(nodes_k)`, one term in memory at a time."""

    def add(total, node):
        t, weight = node
        return jax.tree.map(
            lambda a, c: a + weight.astype(a.dtype) * wide(c), total, term(t)
        ), None

    rule = jnp.asarray(nodes, float), jnp.asarray(weights, float)
    total, _ = lax.scan(add, jax.tree.map(wide, zeros), rule)
    return jax.tree.map(lambda t, zero: t.astype(zero.dtype), total, zeros)


def _refined(
    integral: Callable,
    zeros: Tree,
    nodes: np.ndarray,
    weights: np.ndarray,
    *,
    gap: Callable,
    tolerance: float,
    most: int,
) -> Tree:
    """A rule repeated on 1, 2, 4, ... equal intervals, while the gap is too large.

    Never on more than `most` intervals, and on one in any case.
    """

    def repeated(intervals):
        def add(k, total):
            part = integral((k + nodes) / intervals, weights / intervals)
            return jax.tree.map(jnp.add, total, part)

        return lax.fori_loop(0, intervals, add, zeros)

    def again(state):
        intervals, contributions = state
        first = intervals == 1
        return (first | (gap(contributions) > tolerance)) & (intervals <= most)

    def refine(state):
        intervals, _ = state
        return 2 * intervals, repeated(intervals)

    return lax.while_loop(again, refine, (jnp.int32(1), zeros))[1]


def _point_like(point: Tree, x: Tree) -> Tree:
    """A point of a path in the dtypes of `x`."""
    if jax.tree.structure(point) != jax.tree.structure(x):
        raise ValueError(
            f"path returned a point with the tree {jax.tree.structure(point)}; it must "
            f"be like the argument: {jax.tree.structure(x)}"
        )

    def leaf_like(p, x):
        if jnp.shape(p) != x.shape:
            raise ValueError(
                f"path returned a point of shape {jnp.shape(p)}; it must be like the "
                f"argument, of shape {x.shape}"
            )
        return jnp.asarray(p, x.dtype)

    return jax.tree.map(leaf_like, point, x)


def _noisy(key: jax.Array, x: Tree, noise: Any) -> Tree:
    leaves, tree = jax.tree.flatten(x)
    keys = jax.random.split(key, len(leaves))

    def moved(key, leaf):
        if not broadcasts(noise, leaf.shape):
            raise ValueError(
                f"noise of shape {np.shape(noise)} does not broadcast to the argument "
                f"of shape {leaf.shape}"
            )
        normal = jax.random.normal(key, leaf.shape, leaf.dtype)
        return leaf + jnp.asarray(noise, leaf.dtype) * normal

    return jax.tree.unflatten(tree, map(moved, keys, leaves))


def _enlarged(
    places: jax.Array, shape: tuple[int, ...], channel_axis: int
) -> jax.Array:
    """A map of places, interpolated to an input of that shape."""
    if len(shape) == places.ndim:
        return jax.image.resize(places, shape, "linear")
    if len(shape) != places.ndim + 1:
        raise ValueError(
            f"the layer's map of places has the shape {places.shape}, which cannot be "
            f"enlarged to the input's shape {shape}: it needs as many axes, or one less"
        )
    channel = normalize_axis_index(channel_axis, len(shape), "channel_axis")
    spatial = shape[:channel] + shape[channel + 1 :]
    return jnp.expand_dims(jax.image.resize(places, spatial, "linear"), channel)
