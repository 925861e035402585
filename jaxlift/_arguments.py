"""What the transforms are given: checked while tracing, and brought to one form."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxlift import _compat
from jaxlift._interpret import tags_of

Tree = Any
Target = int | tuple[int, ...] | Callable | None


class ReferenceMismatchError(ValueError):
    """A reference whose tree, shape or dtype is not that of the attributed argument."""


def check_callable(f: Any) -> None:
    if not callable(f):
        raise TypeError(f"expected a function, got {type(f).__name__}: {f!r}")


def check_rules(rules: Any) -> None:
    if not isinstance(rules, Mapping):
        raise TypeError(
            "rules must be a table of rules, such as jaxlift.RESCALE or "
            f"jaxlift.RESCALE | {{primitive: rule}}, not {rules!r}"
        )
    for primitive, rule in rules.items():
        if not isinstance(primitive, core.Primitive):
            raise TypeError(
                "a key of rules must be a primitive of JAX, such as jax.lax.tanh_p, "
                f"not {primitive!r}"
            )
        if not callable(rule):
            raise TypeError(
                f"the rule for '{primitive}' must be a function rule(step, *operands), "
                f"not {rule!r}"
            )


def numbers_of(argnums: int | Sequence[int]) -> tuple[int, ...]:
    try:
        single = isinstance(argnums, (int, np.integer))
        numbers = (argnums,) if single else tuple(argnums)  # type: ignore[arg-type]
        return tuple(map(_index, numbers))  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"argnums must be an int or a tuple of ints, not {argnums!r}"
        ) from None


def _index(number: Any) -> int:
    """An int; a boolean, which Python would take for one, is an error as others are."""
    if isinstance(number, bool):
        raise TypeError("a boolean is no index")
    return operator.index(number)


def positions_of(numbers: Sequence[int], args: Sequence) -> tuple[int, ...]:
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


def called_with_reference(f: Callable) -> Callable:
    """A decorator: the name and words of `f`, but not its signature."""

    def named(explain):
        explain = functools.wraps(f, updated=())(explain)
        del explain.__wrapped__  # jit reads the number of arguments off it
        return explain

    return named


def tag_names(at: Any) -> tuple[str, ...]:
    """The names that `at=` asks for."""
    names = () if at is None else (at,) if isinstance(at, str) else at
    if not isinstance(names, (tuple, list)) or not all(
        isinstance(name, str) for name in names
    ):
        raise TypeError(f"at must be a name or a tuple of names, not {at!r}")
    if at is not None and not names:
        raise ValueError("at is empty: name at least one tagged value")
    return tuple(names)


def split_reference(values: Sequence) -> tuple[tuple, Any]:
    if len(values) < 2:
        raise TypeError(
            "call the explained function with its arguments and then the reference, "
            "g(*args, reference), which is not given by name; got "
            f"{len(values)} positional argument(s)"
        )
    return tuple(values[:-1]), values[-1]


def attributed(args: Sequence, argnums, reference) -> tuple[tuple, tuple]:
    """The attributed arguments, and their references brought to the same form."""
    numbers = positions_of(numbers_of(argnums), args)
    xs = tuple(args[n] for n in numbers)
    if isinstance(argnums, (int, np.integer)):
        reference = (reference,)
    elif _is_leaf(reference) and jnp.ndim(reference) == 0:
        reference = (reference,) * len(xs)
    elif not isinstance(reference, (tuple, list)) or len(reference) != len(xs):
        raise ReferenceMismatchError(
            f"argnums is a tuple of {len(xs)}, so the reference must be a tuple of "
            f"{len(xs)} references, not {_kind(reference)}"
        )
    names = [f"argument {n}" for n in numbers]
    references = tuple(map(like, reference, xs, names))
    return jax.tree.map(jnp.asarray, xs), references


def like(reference: Tree, x: Tree, name: str) -> Tree:
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


def _dtype_or_none(value: Any) -> Any:
    """The dtype of an array or a number; None of anything else."""
    try:
        # A text or a type would be taken for the name of a dtype.
        named = isinstance(value, (str, bytes, type, np.dtype))
        return None if named else jnp.result_type(value)
    except TypeError:
        return None


def _dtype_of(value: Any, what: str) -> Any:
    dtype = _dtype_or_none(value)
    if dtype is None:
        raise TypeError(
            f"{what} has to be an array or a number, and is {value!r}. Of a module "
            "explain the arrays alone: split it (equinox.partition, flax.nnx.split) "
            "and merge it inside the function."
        )
    return dtype


def _kind(value: Any) -> str:
    """What a value is, in a message: the form of a tree, not the tracers in it."""
    tree = jax.tree.structure(value)
    one = "one array" if is_array(value) else f"{type(value).__name__} {value!r}"
    return one if _is_leaf(value) else f"the tree {tree}"


def _is_weak(value: Any) -> bool:
    return jnp.ndim(value) == 0 and getattr(value, "weak_type", False)


def _leaf_like(reference: Any, x: Any, name: str) -> Any:
    dtype = _dtype_of(x, name)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name} has dtype {dtype}, and only real floating inputs can be "
            "attributed to. Cast it, or attribute to a floating value computed from it "
            "(an embedding): at=, intermediate, or split the function there."
        )
    # A Python number, also as jit hands it on.
    if not isinstance(reference, (bool, int, float)) and not _is_weak(reference):
        given = _dtype_of(reference, f"the reference of {name}")
        if given != dtype:
            raise ReferenceMismatchError(
                f"the reference of {name} has dtype {given}, but {name} has {dtype}: "
                f"cast it, reference.astype('{dtype}')"
            )
    shape = jnp.shape(x)
    if not broadcasts(reference, shape):
        raise ReferenceMismatchError(
            f"the reference of {name} has shape {jnp.shape(reference)}, which does not "
            f"broadcast to the shape {shape} of {name}"
        )
    reference = jnp.broadcast_to(jnp.asarray(reference, dtype), shape)
    return _compat.placed_like(reference, x)


def broadcasts(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether a value can be broadcast to a shape."""
    try:
        return jnp.broadcast_shapes(np.shape(value), shape) == shape
    except ValueError:
        return False


def count_references(references: Tree, args: Sequence, argnums: Any) -> int:
    """R, every leaf of the references having the shape `(R, *leaf.shape)`."""
    numbers = positions_of(numbers_of(argnums), args)
    xs = tuple(args[n] for n in numbers)
    xs = xs[0] if isinstance(argnums, (int, np.integer)) else xs
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(references)}
    if len(counts) != 1 or counts == {()}:
        raise ReferenceMismatchError(
            "every leaf of references needs the same leading axis of R references, "
            f"shape (R, *leaf.shape); got leading axes {sorted(counts)}"
        )
    if jax.tree.structure(references) == jax.tree.structure(xs):
        pairs = zip(jax.tree.leaves(references), jax.tree.leaves(xs), strict=True)
        for leaf, x in pairs:
            if jnp.ndim(leaf) != jnp.ndim(x) + 1:
                raise ReferenceMismatchError(
                    f"references of the shape {jnp.shape(leaf)} are no set for an "
                    f"argument of shape {jnp.shape(x)}: (R, *{jnp.shape(x)}) is "
                    "needed; reference[None] makes a set of one"
                )
    ((count,),) = counts
    if count == 0:
        raise ValueError("references is empty: at least one reference is needed")
    return count


def replaced(args: Sequence, numbers: Sequence[int], values: Sequence) -> tuple:
    replaced = list(args)
    for n, value in zip(numbers, values, strict=True):
        replaced[n] = value
    return tuple(replaced)


def split_aux(output: Any) -> tuple[Any, Any]:
    if not isinstance(output, (tuple, list)) or len(output) != 2:
        raise TypeError(
            "with has_aux=True the function must return a pair (output, aux), not "
            f"{_kind(output)}"
        )
    return tuple(output)  # type: ignore[return-value]


def output_array(output: Any) -> Any:
    if not _is_leaf(output):
        raise TypeError(
            f"the explained function must return one array, not {_kind(output)}; wrap "
            "it to return the part to explain (has_aux=True passes the rest through)"
        )
    dtype = _dtype_or_none(output)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            "the explained function must return a real floating array, not "
            f"{_kind(output) if dtype is None else dtype}"
        )
    return jnp.asarray(output)


def scalar_output(y: Any) -> None:
    if y.shape != ():
        raise ValueError(
            "the explained function must have a scalar output, not one of shape "
            f"{y.shape}: choose one with target= (an index, or a function such as "
            "jnp.sum)"
        )


def cotangent_like(ct: Any, y: jax.Array) -> jax.Array:
    """The cotangent with the shape and dtype of the output."""
    dtype = _dtype_or_none(ct)
    if dtype is None or jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"the cotangent of an output of dtype {y.dtype} must be real, not "
            f"{_kind(ct) if dtype is None else dtype}"
        )
    if jnp.shape(ct) not in ((), y.shape):
        raise ValueError(
            f"the cotangent has the shape {jnp.shape(ct)}, but the output has {y.shape}"
        )
    ct = jnp.broadcast_to(jnp.asarray(ct, y.dtype), y.shape)
    return _compat.placed_like(ct, y)


def with_target(f: Callable, target: Target, has_aux: bool) -> Callable:
    """`f` followed by the choice of what to explain."""
    if target is None:
        return f
    if callable(target):
        choose = target
    else:
        try:
            index = tuple(target) if isinstance(target, (tuple, list)) else (target,)
            index = tuple(map(_index, index))
        except TypeError:
            raise TypeError(
                f"target must be an int, a tuple of ints or a function, not {target!r}"
                " (an index that is traced: target=lambda y: y[k])"
            ) from None
        choose = functools.partial(_pick, index)

    def with_target(*args, **kwargs):
        output = f(*args, **kwargs)
        if not has_aux:
            return choose(output)
        output, aux = split_aux(output)
        return choose(output), aux

    return with_target


def _pick(index: tuple[int, ...], output: Any) -> Any:
    shape = jnp.shape(output_array(output))
    if len(index) > len(shape) or any(
        not -n <= k < n for k, n in zip(index, shape, strict=False)
    ):
        raise ValueError(
            f"target {index} is out of range for an output of shape {shape}"
        )
    return output[index]


def is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def arrays_of(tree: Tree) -> tuple[list, Callable]:
    """The arrays among the leaves, and what puts others in their place."""
    leaves, structure = jax.tree.flatten(tree)

    def filled(arrays):
        rest = iter(arrays)
        values = [next(rest) if is_array(leaf) else leaf for leaf in leaves]
        return jax.tree.unflatten(structure, values)

    return list(filter(is_array, leaves)), filled


def traced(f: Callable, args: Any, kwargs: Any) -> tuple[Any, Any, list]:
    """The jaxpr of `f`, the shapes of its output, and its arrays.

    Anything else among the arguments (a flag, a size, an activation) stays what it is.
    """
    arrays, filled = arrays_of((args, kwargs))

    def flat(arrays):
        args, kwargs = filled(arrays)
        return f(*args, **kwargs)

    try:
        return *jax.make_jaxpr(flat, return_shape=True)(arrays), arrays
    except Exception as error:
        if type(error).__name__ == "TraceContextError":  # flax's own words are short
            error.add_note(WRITES_STATE)
        raise


WRITES_STATE = """
The explained flax.nnx module writes state when it is called (running averages, a random
stream, a counter). Split it outside, and merge a copy inside:
    graphdef, state = nnx.split(model)
    f = lambda x: nnx.merge(graphdef, state, copy=True)(x)
and explain f."""


HIDING = {"cond", "while", "shard_map", "custom_jvp_call"}
"""Whose bodies hand out no tagged values: evaluated in part, or more than once."""


def check_tags(closed: Any, names: Sequence[str]) -> None:
    jaxpr, _ = _compat.open_jaxpr(closed)
    present = {name for eqn in jaxpr.eqns for name, _ in tags_of(eqn)}
    hidden = dict(_hidden_tags(jaxpr))
    for name in names:
        if name not in present:
            raise ValueError(
                f"no value is tagged '{name}'; tags present: "
                f"{sorted(present) or 'none'}. Tag one with "
                "jax.ad_checkpoint.checkpoint_name(value, name)."
            )
        if name in hidden:
            raise ValueError(
                f"'{name}' tags a value in the body of {hidden[name]}, which hands out "
                "no values: tag one outside of it"
            )


def _hidden_tags(jaxpr: Any) -> Iterator[tuple[str, str]]:
    """Each tag in a body that hands out no values, and the primitive around it."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in HIDING:
            yield from ((name, eqn.primitive.name) for name, _ in tags_of(eqn))
        else:
            for body in core.jaxprs_in_params(eqn.params):
                yield from _hidden_tags(_compat.open_jaxpr(body)[0])
