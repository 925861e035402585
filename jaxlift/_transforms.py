"""The transforms: `deeplift` and its relatives, built on `vjp`."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlift import _compat
from jaxlift._interpret import Context, Rules, interpret, tags_of
from jaxlift._softmax import without_last_activation
from jaxlift._tables import GRADIENT, RESCALE
from jaxlift._values import Pair, pair_of, settle

Tree = Any
Target = int | tuple[int, ...] | Callable | None


class ReferenceMismatchError(ValueError):
    """A reference whose tree, shape or dtype is not that of the attributed argument."""


def deeplift(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    rules: Rules = RESCALE,
    target: Target = None,
    at: str | tuple[str, ...] | None = None,
    has_aux: bool = False,
) -> Callable:
    """Contributions of the inputs of `f` to its difference from a reference.

    For `c = deeplift(f)(x, reference)`: `sum(c) == f(x) - f(reference)` up to
    rounding, whatever `f` is made of and however far the two points lie apart.

    Args:
      f: any JAX function. Its output is a scalar, or `target` makes it one.
      argnums: the positional argument(s) to attribute to, as in `jax.grad`.
      rules: what each primitive passes back: `RESCALE` or another table, or an
        extension of one, `RESCALE | {primitive: rule}`.
      target: an `int` or tuple indexes the output (a logit, say). A callable is
        applied to it and becomes part of the explained function; `jnp.sum` explains
        a batch of examples at once, each on its own.
      at: the name(s) of intermediate values, tagged in `f` by
        `jax.ad_checkpoint.checkpoint_name(value, name)`, to attribute to instead.
      has_aux: `f` returns `(output, aux)`.

    Returns:
      A function `g(*args, reference)`. `reference` has the tree, shapes and dtypes of
      `args[argnums]` (a tuple of trees for a tuple of argnums); a Python scalar, or an
      array that broadcasts to the leaf, will do. The result is like the argument, in
      units of the output; with `at` an array, or a dict by name; with `has_aux`
      `(result, aux)`. Keyword arguments are passed on to `f`.

    Raises:
      ReferenceMismatchError: tree, shape or dtype of the reference is not the
        argument's.
      UnsupportedPrimitiveError: a primitive without a rule depends on the argument.
      TypeError: an attributed argument that is not real floating, an output that is
        not one real floating array, `f` that is no function.
      ValueError: `argnums`, `target` or `at` that does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> saturated = lambda x: 1 - jnp.maximum(1 - x.sum(), 0)
      >>> x = jnp.array([1.0, 1.0])
      >>> jaxlift.deeplift(saturated)(x, 0.0)  # the gradient is zero here
      Array([0.5, 0.5], dtype=float32)

    Source: Shrikumar, Greenside, Kundaje, ICML 2017 (arXiv 1704.02685), equation 1
    and section 3.5; extended to every primitive.
    """
    return _explain(f, argnums, rules, target, at, has_aux, contributions=True)


def multipliers(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    rules: Rules = RESCALE,
    target: Target = None,
    at: str | tuple[str, ...] | None = None,
    has_aux: bool = False,
) -> Callable:
    """Multipliers of `f` between an input and a reference.

    For `m = multipliers(f)(x, reference)`:
    `sum(m * (x - reference)) == f(x) - f(reference)` up to rounding, and
    `multipliers(f)(x, x) == jax.grad(f)(x)`.

    Arguments and errors are those of `deeplift`. The result is in units of the
    output per unit of the input.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> float(jaxlift.multipliers(jnp.square)(3.0, 1.0))
      4.0

    Source: Shrikumar et al. 2017, sections 3.2 and 3.3.
    """
    return _explain(f, argnums, rules, target, at, has_aux, contributions=False)


def vjp(
    f: Callable,
    x: Tree,
    reference: Tree,
    *,
    rules: Rules = RESCALE,
    has_aux: bool = False,
) -> tuple:
    """The two outputs of `f`, and the map from cotangents to multipliers.

    What `jax.vjp` is to `jax.grad`. One evaluation serves many outputs:
    `jax.vmap(pullback)(jnp.eye(n))` are the multipliers of each of n outputs.

    Args:
      f: a JAX function of one argument whose output is one real floating array.
      x: the input, a tree of real floating arrays.
      reference: like `x`, or broadcasting to it (see `deeplift`).
      rules: the rule table.
      has_aux: `f` returns `(output, aux)`.

    Returns:
      `(y, y_reference, pullback)`, and `aux` (at the input) with `has_aux`.
      `y_reference` is `f(reference)` with everything under `stop_gradient` frozen at
      its value at the input. `pullback(ct)`, `ct` of the shape of `y`, returns
      multipliers like `x`: `sum(m * (x - reference)) == sum(ct * (y - y_reference))`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> y, y0, pullback = jaxlift.vjp(jnp.tanh, jnp.float32(1.0), 0.0)
      >>> float(pullback(jnp.float32(1.0))) == float(y - y0)
      True

    Source: Shrikumar et al. 2017, equation 3 (the chain rule for multipliers).
    """
    _check_callable(f)
    reference = _like(reference, x, "x")
    walk = _Walk(f, (x,), {}, has_aux, rules, ())
    y, y_reference, aux, _, pullback = walk((0,), (reference,), {})

    def to_multipliers(ct):
        (multiplier,), _ = pullback(jnp.broadcast_to(jnp.asarray(ct, y.dtype), y.shape))
        return multiplier

    outputs = y, y_reference, jax.tree_util.Partial(to_multipliers)
    return (*outputs, aux) if has_aux else outputs


def deeplift_shap(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    rules: Rules = RESCALE,
    target: Target = None,
    batch_size: int | None = None,
) -> Callable:
    """Contributions averaged over a set of references.

    Their sum is `f(x) - mean(f(reference) over the references)`: DeepLIFT as an
    estimate of SHAP values.

    Args:
      f, argnums, rules, target: as in `deeplift`.
      batch_size: how many references are in flight at once; all of them by default.
        The mean is accumulated, so that memory does not grow with their number.

    Returns:
      A function `g(*args, references)`; every leaf of `references` has the shape
      `(R, *leaf.shape)`, R >= 1. The result is like the argument.

    Raises:
      ValueError: no references, leaves with different numbers of them, or a
        `batch_size` below 1. Otherwise as `deeplift`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> references = jnp.array([[0.0, 0.0], [2.0, 0.0]])
      >>> jaxlift.deeplift_shap(jnp.prod)(jnp.array([1.0, 3.0]), references)
      Array([0. , 3. ], dtype=float32)

    Source: Lundberg and Lee, NeurIPS 2017 (arXiv 1705.07874), section 4.2.
    """
    explain = deeplift(f, argnums, rules=rules, target=target)

    @functools.wraps(f, updated=())
    def averaged(*args_and_references: Any, **kwargs: Any) -> Tree:
        args, references = _split_reference(args_and_references)
        count = _count_references(references)
        size = count if batch_size is None else operator.index(batch_size)
        if size < 1:
            raise ValueError(f"batch_size must be at least 1, not {size}")

        def one(reference):
            return explain(*args, reference, **kwargs)

        def total(batch):
            return jax.tree.map(lambda c: c.sum(0), jax.vmap(one)(batch))

        whole, rest = divmod(count, min(size, count))
        if whole == 1 and not rest:
            return jax.tree.map(lambda c: c / count, total(references))

        def chunk(start, stop):
            return jax.tree.map(lambda leaf: leaf[start:stop], references)

        steps = jax.tree.map(
            lambda leaf: leaf.reshape(whole, size, *leaf.shape[1:]),
            chunk(0, whole * size),
        )
        first = total(jax.tree.map(lambda leaf: leaf[0], steps))
        others = jax.tree.map(lambda leaf: leaf[1:], steps)
        result, _ = lax.scan(
            lambda sums, batch: (jax.tree.map(jnp.add, sums, total(batch)), None),
            first,
            others,
        )
        if rest:
            result = jax.tree.map(jnp.add, result, total(chunk(whole * size, count)))
        return jax.tree.map(lambda c: c / count, result)

    return averaged


def integrated_gradients(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    target: Target = None,
    steps: int = 32,
) -> Callable:
    """Contributions as the gradient averaged along the straight path.

    `(x - reference) * ∫ grad f(reference + t (x - reference)) dt`, by Gauss-Legendre
    quadrature: exact for polynomials of degree up to `2 steps`, complete in the limit.

    Args:
      f, argnums, target: as in `deeplift`.
      steps: the number of points of the quadrature, and of gradients.

    Returns:
      A function `g(*args, reference)` with a result like the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> ig = jaxlift.integrated_gradients(jnp.prod, steps=2)
      >>> ig(jnp.array([2.0, 3.0]), 0.0)
      Array([3., 3.], dtype=float32)

    Source: Sundararajan, Taly, Yan, ICML 2017 (arXiv 1703.01365), equation 1.
    """
    steps = operator.index(steps)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    slope = multipliers(f, argnums, rules=GRADIENT, target=target)
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(f, updated=())
    def path_average(*args_and_reference: Any, **kwargs: Any) -> Tree:
        args, reference = _split_reference(args_and_reference)
        x, reference = _attributed(args, argnums, reference)
        difference = jax.tree.map(jnp.subtract, x, reference)

        def gradient(t):
            point = jax.tree.map(
                lambda r, d: r + t.astype(d.dtype) * d, reference, difference
            )
            moved = _replaced(args, numbers, point)
            at = point if not isinstance(argnums, int) else point[0]
            return slope(*moved, at, **kwargs)

        def add(total, node):
            t, weight = node
            grads = gradient(t)
            return jax.tree.map(
                lambda a, g: a + weight.astype(g.dtype) * g, total, grads
            ), None

        start = difference if not isinstance(argnums, int) else difference[0]
        nodes_and_weights = (jnp.asarray((nodes + 1) / 2), jnp.asarray(weights / 2))
        zero = jax.tree.map(jnp.zeros_like, start)
        mean, _ = lax.scan(add, zero, nodes_and_weights)
        return jax.tree.map(jnp.multiply, mean, start)

    return path_average


def intermediate(f: Callable, name: str) -> Callable:
    """The function that returns the value which `f` tags with a name.

    Args:
      f: a JAX function that calls `jax.ad_checkpoint.checkpoint_name(value, name)`.
      name: the tag. Inside a scan the values of all iterations come stacked.

    Returns:
      A function of the same arguments. With a target it gives neuron attribution:
      `deeplift(intermediate(f, "hidden"), target=3)(x, reference)`.

    Raises:
      ValueError: `f` has no such tag (the message lists those it has), or several.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> from jax.ad_checkpoint import checkpoint_name
      >>> f = lambda x: checkpoint_name(jnp.tanh(x), "hidden").sum()
      >>> jaxlift.intermediate(f, "hidden")(jnp.zeros(2))
      Array([0., 0.], dtype=float32)
    """
    _check_callable(f)

    @functools.wraps(f, updated=())
    def tagged(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        closed = jax.make_jaxpr(lambda leaves: _call(f, tree, leaves))(leaves)
        _check_tags(closed, (name,))
        jaxpr, consts = _compat.open_jaxpr(closed)
        context = Context(RESCALE, frozenset((name,)))
        interpret(context, jaxpr, consts, leaves)
        return context.found[name]

    return tagged


def pre_activation(f: Callable) -> Callable:
    """`f` without its final softmax, log_softmax, sigmoid or tanh.

    Explaining a probability mixes in how saturated it is; the field explains the
    value before it (Shrikumar et al. 2017, section 3.6).

    Args:
      f: a JAX function that ends in one of these, perhaps followed by a reshape.

    Returns:
      A function of the same arguments with the value before as its output.

    Raises:
      ValueError: while tracing, if `f` ends in none of them.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> jaxlift.pre_activation(lambda x: jax.nn.softmax(2 * x))(jnp.ones(2))
      Array([2., 2.], dtype=float32)
    """
    _check_callable(f)

    @functools.wraps(f, updated=())
    def before(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        closed, shape = jax.make_jaxpr(
            lambda leaves: _call(f, tree, leaves), return_shape=True
        )(leaves)
        outputs = without_last_activation(*_compat.open_jaxpr(closed), leaves)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return before


def _call(f: Callable, tree: Any, leaves: Sequence) -> Any:
    args, kwargs = jax.tree.unflatten(tree, leaves)
    return f(*args, **kwargs)


# --------------------------------------------------------------- one evaluation


class _Walk:
    """`f` traced at these arguments, to be evaluated at an input and a reference."""

    def __init__(self, f, args, kwargs, has_aux, rules, names):
        leaves, self.tree = jax.tree.flatten((args, kwargs))
        self.args, self.kwargs, self.rules, self.names = args, kwargs, rules, names

        def flat(leaves):
            output = _call(f, self.tree, leaves)
            output, aux = _split_aux(output) if has_aux else (output, None)
            self.scalar = _output_array(output)
            aux_leaves, self.aux_tree = jax.tree.flatten(aux)
            return self.scalar, aux_leaves

        self.jaxpr = jax.make_jaxpr(flat)(leaves)
        self.seeds = _seeds(self.jaxpr, names)

    def __call__(self, numbers, references, _):
        """(y, y_reference, aux, tagged values, pullback) for attributed arguments."""
        jaxpr, consts = _compat.open_jaxpr(self.jaxpr)
        xs = tuple(self.args[k] for k in numbers)

        def evaluate(xs, seeds):
            pairs = jax.tree.map(Pair, xs, references)
            args = _replaced(self.args, numbers, pairs)
            operands = jax.tree.leaves(
                (args, self.kwargs), is_leaf=lambda leaf: isinstance(leaf, Pair)
            )
            context = Context(self.rules, frozenset(self.names), seeds)
            y, *aux = map(settle, interpret(context, jaxpr, consts, operands))
            y = pair_of(y)
            aux = [a.x if isinstance(a, Pair) else a for a in aux]
            found = {name: pair_of(value) for name, value in context.found.items()}
            points = {name: (pair.value, pair.r) for name, pair in found.items()}
            return y.x, (y.r, aux, points)

        y, pullback, (y_reference, aux, points) = jax.vjp(
            evaluate, xs, self.seeds, has_aux=True
        )
        aux = jax.tree.unflatten(self.aux_tree, aux)
        return y, y_reference, aux, points, pullback


def _explain(f, argnums, rules, target, at, has_aux, *, contributions) -> Callable:
    _check_callable(f)
    numbers = _numbers(argnums)
    names = () if at is None else (at,) if isinstance(at, str) else tuple(at)
    explained = _with_target(f, target, has_aux)

    @functools.wraps(f, updated=())
    def explain(*args_and_reference: Any, **kwargs: Any) -> Any:
        args, reference = _split_reference(args_and_reference)
        xs, references = _attributed(args, argnums, reference)
        walk = _Walk(explained, args, kwargs, has_aux, rules, names)
        y, _, aux, points, pullback = walk(_positions(numbers, args), references, {})
        if y.shape != ():
            raise ValueError(
                f"the explained function must have a scalar output, not one of shape "
                f"{y.shape}: choose one with target= (an index, or a function such as "
                "jnp.sum)"
            )
        by_input, by_tag = pullback(jnp.ones_like(y))
        if names:
            result = by_tag
            if contributions:
                result = {
                    k: m * (points[k][0] - points[k][1]) for k, m in by_tag.items()
                }
            result = result[at] if isinstance(at, str) else result
        else:
            result = by_input
            if contributions:
                result = jax.tree.map(
                    lambda m, x, r: m * (x - r), result, xs, references
                )
            result = result[0] if isinstance(argnums, int) else result
        return (result, aux) if has_aux else result

    return explain


def _seeds(closed, names: Sequence[str]) -> dict[str, Any]:
    """Zeros like each tagged value: what it is differentiated by."""
    if not names:
        return {}
    _check_tags(closed, names)
    jaxpr, consts = _compat.open_jaxpr(closed)

    def found(leaves):
        context = Context(RESCALE, frozenset(names))
        interpret(context, jaxpr, consts, leaves)
        return context.found

    shapes = jax.eval_shape(found, [v.aval for v in jaxpr.invars])
    return {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}


# -------------------------------------------------------------- argument checks


def _check_callable(f: Any) -> None:
    if not callable(f):
        raise TypeError(f"expected a function, got {type(f).__name__}: {f!r}")


def _numbers(argnums: int | Sequence[int]) -> tuple[int, ...]:
    try:
        single = isinstance(argnums, (int, np.integer))
        numbers = (argnums,) if single else tuple(argnums)  # type: ignore[arg-type]
        return tuple(operator.index(n) for n in numbers)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"argnums must be an int or a tuple of ints, not {argnums!r}"
        ) from None


def _positions(numbers: Sequence[int], args: Sequence) -> tuple[int, ...]:
    for n in numbers:
        if not -len(args) <= n < len(args):
            raise ValueError(
                f"argnums {n} is out of range: the function was called with "
                f"{len(args)} positional argument(s) before the reference"
            )
    positions = tuple(n % len(args) for n in numbers)
    if len(set(positions)) < len(positions):
        raise ValueError(f"argnums {tuple(numbers)} names an argument twice")
    return positions


def _split_reference(values: Sequence) -> tuple[tuple, Any]:
    if len(values) < 2:
        raise TypeError(
            "call the explained function with its arguments and then the reference, "
            f"g(*args, reference); got {len(values)} positional argument(s)"
        )
    return tuple(values[:-1]), values[-1]


def _attributed(args: Sequence, argnums, reference) -> tuple[tuple, tuple]:
    """The attributed arguments, and their references brought to the same form."""
    numbers = _positions(_numbers(argnums), args)
    xs = tuple(args[n] for n in numbers)
    if isinstance(argnums, (int, np.integer)):
        reference = (reference,)
    elif not isinstance(reference, (tuple, list)) or len(reference) != len(xs):
        raise ReferenceMismatchError(
            f"argnums is a tuple of {len(xs)}, so the reference must be a tuple of "
            f"{len(xs)} references, not {reference!r}"
        )
    names = [f"argument {n}" for n in numbers]
    references = tuple(map(_like, reference, xs, names))
    return jax.tree.map(jnp.asarray, xs), references


def _like(reference: Tree, x: Tree, name: str) -> Tree:
    """The reference with the tree, shapes and dtypes of `x`."""
    paths, tree = jax.tree_util.tree_flatten_with_path(x)
    if tree != jax.tree.structure(reference):
        if not (jnp.ndim(reference) == 0 if _is_leaf(reference) else False):
            raise ReferenceMismatchError(
                f"the reference has the tree {jax.tree.structure(reference)}, but "
                f"{name} has {tree}"
            )
        reference = jax.tree.unflatten(tree, [reference] * len(paths))
    leaves = jax.tree.leaves(reference)
    checked = [
        _leaf_like(leaf, x, name + jax.tree_util.keystr(path))
        for leaf, (path, x) in zip(leaves, paths, strict=True)
    ]
    return jax.tree.unflatten(tree, checked)


def _is_leaf(value: Any) -> bool:
    return jax.tree.structure(value) == jax.tree.structure(0)


def _leaf_like(reference: Any, x: Any, name: str) -> Any:
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name} has dtype {dtype}, and only real floating inputs can be "
            "attributed to. Cast it, or attribute to a floating value computed from it "
            "(an embedding): at=, intermediate, or split the function there."
        )
    if not isinstance(reference, (bool, int, float)):
        given = jnp.result_type(reference)
        if given != dtype:
            raise ReferenceMismatchError(
                f"the reference of {name} has dtype {given}, but {name} has {dtype}: "
                f"cast it, reference.astype('{dtype}')"
            )
    shape = jnp.shape(x)
    try:
        fits = np.broadcast_shapes(jnp.shape(reference), shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ReferenceMismatchError(
            f"the reference of {name} has shape {jnp.shape(reference)}, which does not "
            f"broadcast to the shape {shape} of {name}"
        )
    return jnp.broadcast_to(jnp.asarray(reference, dtype), shape)


def _count_references(references: Tree) -> int:
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(references)}
    if len(counts) != 1 or counts == {()}:
        raise ReferenceMismatchError(
            "every leaf of references needs the same leading axis of R references, "
            f"shape (R, *leaf.shape); got leading axes {sorted(counts)}"
        )
    ((count,),) = counts
    if count == 0:
        raise ValueError("references is empty: at least one reference is needed")
    return count


def _replaced(args: Sequence, numbers: Sequence[int], values: Sequence) -> tuple:
    replaced = list(args)
    for n, value in zip(numbers, values, strict=True):
        replaced[n] = value
    return tuple(replaced)


def _split_aux(output: Any) -> tuple[Any, Any]:
    if not isinstance(output, (tuple, list)) or len(output) != 2:
        raise TypeError(
            "with has_aux=True the function must return a pair (output, aux), not "
            f"{type(output).__name__}"
        )
    return tuple(output)  # type: ignore[return-value]


def _output_array(output: Any) -> Any:
    if not _is_leaf(output):
        raise TypeError(
            "the explained function must return one array, not the tree "
            f"{jax.tree.structure(output)}; wrap it to return the part to explain "
            "(has_aux=True passes the rest through)"
        )
    dtype = jnp.result_type(output)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"the explained function must return a real floating array, not {dtype}"
        )
    return jnp.asarray(output)


def _with_target(f: Callable, target: Target, has_aux: bool) -> Callable:
    """`f` followed by the choice of what to explain."""
    if target is None:
        return f
    if callable(target):
        choose = target
    else:
        try:
            index = tuple(target) if isinstance(target, (tuple, list)) else (target,)
            index = tuple(operator.index(k) for k in index)
        except TypeError:
            raise TypeError(
                f"target must be an int, a tuple of ints or a function, not {target!r}"
            ) from None
        choose = functools.partial(_pick, index)

    def with_target(*args, **kwargs):
        output = f(*args, **kwargs)
        if not has_aux:
            return choose(output)
        output, aux = _split_aux(output)
        return choose(output), aux

    return with_target


def _pick(index: tuple[int, ...], output: Any) -> Any:
    shape = jnp.shape(_output_array(output))
    if len(index) > len(shape) or any(
        not -n <= k < n for k, n in zip(index, shape, strict=False)
    ):
        raise ValueError(
            f"target {index} is out of range for an output of shape {shape}"
        )
    return output[index]


def _check_tags(closed: Any, names: Sequence[str]) -> None:
    jaxpr, _ = _compat.open_jaxpr(closed)
    present = {name for eqn in jaxpr.eqns for name, _ in tags_of(eqn)}
    for name in names:
        if name not in present:
            raise ValueError(
                f"no value is tagged '{name}'; tags present: {sorted(present) or 'none'}."
                " Tag one with jax.ad_checkpoint.checkpoint_name(value, name)."
            )
