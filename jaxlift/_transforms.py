"""The transforms: `deeplift` and its relatives, on one evaluation of two points."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from jaxlift import _compat
from jaxlift._arguments import (
    Target,
    Tree,
    arrays_of,
    attributed,
    called_with_reference,
    check_callable,
    check_rules,
    check_tags,
    cotangent_like,
    count_references,
    is_array,
    like,
    numbers_of,
    output_array,
    positions_of,
    replaced,
    scalar_output,
    split_aux,
    split_reference,
    tag_names,
    traced,
    with_target,
)
from jaxlift._batches import mean_over
from jaxlift._interpret import Context, Rules, interpret
from jaxlift._pieces import pair_of, settle
from jaxlift._pre_activation import without_last_activation
from jaxlift._reveal_cancel import Split
from jaxlift._tables import GRADIENT, RESCALE, REVEAL_CANCEL
from jaxlift._values import Pair


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
      >>> abs(pullback(jnp.float32(1.0)) - (y - y0)) < 1e-6
      Array(True, dtype=bool)

    Source: Shrikumar et al. 2017, equation 3 (the chain rule for multipliers).
    """
    check_callable(f)
    reference = like(reference, x, "x")
    x = jax.tree.map(jnp.asarray, x)
    result = _evaluate(f, (x,), {}, (0,), (reference,), rules, has_aux=has_aux)
    y, pullback = result.y, result.pullback

    outputs = y, result.y_reference, Partial(_to_multipliers, pullback, y)
    return (*outputs, result.aux) if has_aux else outputs


def _to_multipliers(pullback: Callable, y: jax.Array, ct: Any) -> Tree:
    (multiplier,), _ = pullback(cotangent_like(ct, y))
    return multiplier


class Parts(NamedTuple):
    """Contributions of what moved up or down to what moved up or down.

    The paper's `C_{dx+ dy+}` and so on: all four add up to `f(x) - f(reference)`.
    """

    pos_to_pos: Any
    pos_to_neg: Any
    neg_to_pos: Any
    neg_to_neg: Any


def parts(
    f: Callable,
    argnums: int | Sequence[int] = 0,
    *,
    rules: Rules = REVEAL_CANCEL,
    target: Target = None,
    at: str | None = None,
) -> Callable:
    """The positive and negative parts of contributions, kept apart.

    Args:
      f: as in `deeplift`.
      argnums: as in `deeplift`.
      rules: a table that keeps parts apart; with another one an output or value is
        split by the sign of its difference.
      target: as in `deeplift`.
      at: the name of a tagged value to attribute to instead of the argument.

    Returns:
      A function `g(*args, reference)` returning `Parts`, each of its four fields like
      the argument (with `at`, an array like the tagged value).

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> w = jnp.array([[1.0], [-1.0]])
      >>> f = lambda x: (x @ w)[0]
      >>> jaxlift.parts(f)(jnp.array([3.0, 2.0]), 0.0).pos_to_neg
      Array([ 0., -2.], dtype=float32)

    Source: Shrikumar et al. 2017, section 3.4.
    """
    check_callable(f)
    numbers = numbers_of(argnums)
    tags = tag_names(at)
    explained = with_target(f, target, has_aux=False)

    def both(pair: Pair) -> tuple:
        split = Split.of(pair)
        return split.pos, split.neg

    @called_with_reference(f)
    def apart(*args_and_reference: Any, **kwargs: Any) -> Parts:
        args, reference = split_reference(args_and_reference)
        positions = positions_of(numbers, args)
        xs, references = attributed(args, argnums, reference)
        args = replaced(args, positions, xs)
        found = _evaluate(
            explained, args, kwargs, positions, references, rules,
            tags=tags, output=both,
        )  # fmt: skip
        scalar_output(found.y[0])
        one, zero = jnp.ones_like(found.y[0]), jnp.zeros_like(found.y[0])
        to_pos, to_neg = found.pullback((one, zero)), found.pullback((zero, one))

        def side(multipliers, k):
            by_input, by_tag = multipliers
            if at is not None:
                return _times(by_tag[at][k], found.tagged[at][k])
            result = jax.tree.map(
                lambda m, x, r: _times(m, Pair(x, r).parts[k]),
                by_input, xs, references,
            )  # fmt: skip
            return result[0] if isinstance(argnums, int | np.integer) else result

        return Parts(*(side(m, k) for k in (0, 1) for m in (to_pos, to_neg)))

    return apart


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
      f: as in `deeplift`.
      argnums: as in `deeplift`.
      rules: as in `deeplift`.
      target: as in `deeplift`.
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
      Array([0., 3.], dtype=float32)

    Source: Lundberg and Lee, NeurIPS 2017 (arXiv 1705.07874), section 4.2.
    """
    explain = deeplift(f, argnums, rules=rules, target=target)

    @called_with_reference(f)
    def averaged(*args_and_references: Any, **kwargs: Any) -> Tree:
        args, references = split_reference(args_and_references)
        count_references(references, args, argnums)
        return mean_over(
            lambda reference: explain(*args, reference, **kwargs),
            references,
            batch_size,
        )

    return averaged


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
    check_callable(f)

    @functools.wraps(f, updated=())
    def tagged(*args: Any, **kwargs: Any) -> Any:
        closed, _, leaves = traced(f, args, kwargs)
        check_tags(closed, (name,))
        return _tagged(closed, (name,), leaves)[name]

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
    check_callable(f)

    @functools.wraps(f, updated=())
    def before(*args: Any, **kwargs: Any) -> Any:
        closed, shape, leaves = traced(f, args, kwargs)
        outputs = without_last_activation(*_compat.open_jaxpr(closed), leaves)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return before


# --------------------------------------------------------------- one evaluation


class _Evaluation(NamedTuple):
    """`f` at the input and at the reference, and the way back."""

    y: Any
    y_reference: Any
    aux: Any
    tagged: Mapping[str, tuple]
    """The two parts by which each tagged value differs from its reference."""
    pullback: Callable
    """From a cotangent of `y` to multipliers of (arguments, tagged values)."""


def _evaluate(
    f: Callable,
    args: Sequence,
    kwargs: Mapping,
    positions: Sequence[int],
    references: Sequence[Tree],
    rules: Rules,
    *,
    has_aux: bool = False,
    tags: Sequence[str] = (),
    output: Callable[[Pair], Any] = operator.attrgetter("x"),
) -> _Evaluation:
    check_rules(rules)
    kept: Any = None  # what of aux is no array

    def checked(*args, **kwargs):
        nonlocal kept
        y = f(*args, **kwargs)
        y, aux = split_aux(y) if has_aux else (y, None)
        arrays, kept = arrays_of(aux)
        return output_array(y), arrays

    closed, _, leaves = traced(checked, args, kwargs)
    jaxpr, consts = _compat.open_jaxpr(closed)
    seeds = _seeds(closed, tags, leaves)
    xs = tuple(args[k] for k in positions)

    def outputs(xs, seeds):
        pairs = dict(zip(positions, map(_pairs, xs, references), strict=True))
        values = [pairs.get(n, arg) for n, arg in enumerate(args)]
        operands = [
            leaf
            for leaf in jax.tree.leaves(
                (values, kwargs), is_leaf=lambda leaf: isinstance(leaf, Pair)
            )
            if isinstance(leaf, Pair) or is_array(leaf)
        ]
        context = Context(rules, frozenset(tags), seeds)
        y, *aux = map(settle, interpret(context, jaxpr, consts, operands))
        y = pair_of(y)
        aux = [a.x if isinstance(a, Pair) else a for a in aux]
        tagged = {k: pair_of(value).parts for k, value in context.found.items()}
        return output(y), (y.r, aux, tagged)

    # Rules promote as JAX does by default: `f` has been traced as the user's flags say,
    # and what is left to the way back (a rule of `custom_rule`) will be.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        y, pullback, (y_reference, aux, tagged) = jax.vjp(
            outputs, xs, seeds, has_aux=True
        )
    if rules != GRADIENT:  # whose derivatives can be differentiated
        given = [v for v in (*leaves, *consts) if jnp.issubdtype(v.dtype, jnp.inexact)]
        # A custom_jvp inside jit refuses a NumPy array that vmap maps over: it gets
        # copies, and of what is given no elements, just the tangents.
        given = jax.tree.map(lambda v: lax.broadcast(v, (0,)), (given, references))
        made = jax.tree.map(jnp.copy, (y, y_reference, aux, tagged))
        y, y_reference, aux, tagged = _final(made, given)
        pullback = Partial(_final_pullback, pullback, given)
    return _Evaluation(y, y_reference, kept(aux), tagged, pullback)


def _pairs(x: Tree, reference: Tree) -> list[Pair]:
    leaves = jax.tree.leaves(x), jax.tree.leaves(reference)
    return [Pair(*sides) for sides in zip(*leaves, strict=True)]


def _final_pullback(pullback: Callable, given: Any, ct: Any) -> Any:
    return _final(pullback(ct), given)


@jax.custom_jvp
def _final(values: Any, given: Any) -> Any:
    """Values made of what is given, of which there is no derivative.

    Slopes are computed from values whose tangents are stopped, so that JAX would take
    them for constants.
    """
    del given
    return values


@_final.defjvp
def _final_jvp(primals, tangents):
    raise NotImplementedError(
        "multipliers and contributions have no derivatives of their own: explain "
        "jax.lax.stop_gradient of the arguments and parameters. Those of "
        "rules=GRADIENT, and integrated gradients, can be differentiated."
    )


def _explain(f, argnums, rules, target, at, has_aux, *, contributions) -> Callable:
    """`deeplift` and `multipliers`: the way back from a scalar output."""
    check_callable(f)
    numbers = numbers_of(argnums)
    tags = tag_names(at)
    explained = with_target(f, target, has_aux)

    @called_with_reference(f)
    def explain(*args_and_reference: Any, **kwargs: Any) -> Any:
        args, reference = split_reference(args_and_reference)
        positions = positions_of(numbers, args)
        xs, references = attributed(args, argnums, reference)
        args = replaced(args, positions, xs)
        found = _evaluate(
            explained, args, kwargs, positions, references, rules,
            has_aux=has_aux, tags=tags,
        )  # fmt: skip
        scalar_output(found.y)
        by_input, by_tag = found.pullback(jnp.ones_like(found.y))
        if tags:
            of_parts = _contributions if contributions else _multipliers
            result = {k: of_parts(m, found.tagged[k]) for k, m in by_tag.items()}
            single = at if isinstance(at, str) else None
        else:
            result = by_input
            if contributions:
                result = jax.tree.map(
                    lambda m, x, r: jnp.where(x == r, 0, m * (x - r)),
                    result, xs, references,
                )  # fmt: skip
            single = 0 if isinstance(argnums, int | np.integer) else None
        result = result if single is None else result[single]
        return (result, found.aux) if has_aux else result

    return explain


def _contributions(multipliers: tuple, parts: tuple) -> Any:
    """Both parts of a tagged value, each times its multiplier."""
    return _times(multipliers[0], parts[0]) + _times(multipliers[1], parts[1])


def _times(multiplier: Any, part: Any) -> Any:
    """What did not move contributes nothing, infinite slopes (sqrt at 0) included."""
    return jnp.where(part == 0, 0, multiplier * part)


def _multipliers(multipliers: tuple, parts: tuple) -> Any:
    """The multiplier of the whole: where nothing moved, the mean of the parts'."""
    difference = parts[0] + parts[1]
    moved = difference != 0
    whole = _contributions(multipliers, parts) / jnp.where(moved, difference, 1)
    same = (multipliers[0] == multipliers[1]) | ~moved
    return jnp.where(same, 0.5 * (multipliers[0] + multipliers[1]), whole)


def _seeds(closed: Any, tags: Sequence[str], leaves: Sequence) -> dict[str, Any]:
    """Zeros like both parts of each tagged value: what they are differentiated by."""
    if not tags:
        return {}
    check_tags(closed, tags)
    shapes = jax.eval_shape(lambda leaves: _tagged(closed, tags, leaves), leaves)
    for name, shape in shapes.items():
        if not jnp.issubdtype(shape.dtype, jnp.floating):
            raise TypeError(
                f"'{name}' tags a value of dtype {shape.dtype}, and only real floating "
                "values can be attributed to"
            )
    zeros = {
        k: _compat.placed_like(jnp.zeros(s.shape, s.dtype), s)
        for k, s in shapes.items()
    }
    return {k: (zero, zero) for k, zero in zeros.items()}


def _tagged(closed: Any, tags: Sequence[str], leaves: Sequence) -> dict[str, Any]:
    """The tagged values of a function at fixed arguments."""
    context = Context(RESCALE, frozenset(tags))
    interpret(context, *_compat.open_jaxpr(closed), leaves)
    return context.found
