"""What differs between JAX versions, or is not public in JAX: all of it is here.

Written against JAX 0.10.2 to 0.12.0.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import ShapedArray, eval_jaxpr
from jax.experimental import checkify
from jax.extend import core, source_info_util
from jax.extend.core import primitives
from jax.interpreters import ad

# The line of code that errors name is the user's, not one of this package.
source_info_util.register_exclusion(os.path.dirname(__file__))

_DIFFERENTIABLE = {primitive.name: primitive for primitive in ad.primitive_jvps}


def existing(*names: str) -> list[core.Primitive]:
    """Those of the named primitives that this JAX has.

    By their public names; those without one by the name under which JAX has
    registered their derivative.
    """
    found = (
        getattr(primitives, f"{name}_p", None)
        or getattr(lax, f"{name}_p", None)
        or _DIFFERENTIABLE.get(name)
        for name in names
    )
    return [primitive for primitive in found if primitive is not None]


def bind(primitive: core.Primitive, params: dict, *operands: Any) -> list:
    """The outputs of one equation; custom rules get their functions from params."""
    outputs = primitive.bind(*operands, **primitive.get_bind_params(params))
    return list(outputs) if primitive.multiple_results else [outputs]


def among_floats(params: dict) -> dict:
    """The parameters of an equation of booleans or integers, for floats."""
    changed, number = {}, np.zeros((), jax.dtypes.canonicalize_dtype(float))
    if "preferred_element_type" in params:
        changed["preferred_element_type"] = number.dtype
    if params.get("update_jaxpr") is not None:  # how a scatter combines two numbers
        combine = functools.partial(eval_jaxpr, *open_jaxpr(params["update_jaxpr"]))
        changed["update_jaxpr"], _ = open_jaxpr(jax.make_jaxpr(combine)(number, number))
    return params | changed


def open_jaxpr(jaxpr: Any) -> tuple[core.Jaxpr, list]:
    """A jaxpr parameter as (jaxpr, constants).

    `remat2` and `shard_map` hold an open jaxpr up to 0.10; from 0.11 on there is one
    class, which holds its constants.
    """
    return getattr(jaxpr, "jaxpr", jaxpr), list(getattr(jaxpr, "consts", ()))


def scan_sizes(eqn: core.JaxprEqn) -> tuple[int, int]:
    """The numbers of constants and of carried values of a scan.

    Parameters `num_consts, num_carry` up to 0.10; a flat tree `ft_in` from 0.11 on.
    """
    if "ft_in" in eqn.params:
        consts, carry, _ = eqn.params["ft_in"].update(eqn.invars).unpack()
        return len(list(consts)), len(list(carry))
    return eqn.params["num_consts"], eqn.params["num_carry"]


# The equations that are being evaluated, the outermost first.
_AROUND: contextvars.ContextVar = contextvars.ContextVar("around", default=())


@contextlib.contextmanager
def context_of(eqn: core.JaxprEqn) -> Iterator[None]:
    """The user's source line, name scope and compute context of an equation."""
    stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
    traceback = eqn.source_info.traceback
    token = _AROUND.set((*_AROUND.get(), eqn))
    try:
        with source_info_util.user_context(traceback, name_stack=stack):
            with eqn.ctx.manager:
                yield
    finally:
        _AROUND.reset(token)


def name_scope() -> str:
    """The name scopes around the equation at hand, joined by slashes."""
    return str(source_info_util.current_name_stack())


def source_line(eqn: core.JaxprEqn) -> str:
    """`file:line (function)` of the user's code that emitted an equation.

    Of one inside a function of JAX's own it may be the line of the call.
    """
    lines = (
        source_info_util.summarize(e.source_info) for e in (eqn, *_AROUND.get()[::-1])
    )
    return next(filter(None, lines), "a line that JAX has no record of")


def placed_like(value: Any, example: Any) -> Any:
    """`value`, placed on the mesh as `example` is, an array of the same shape.

    Sharded over the same explicit axes, varying over the same manual ones (of a
    shard_map). The example is an array, or what is known of one (an abstract value, a
    `jax.ShapeDtypeStruct`).
    """
    known = isinstance(example, (ShapedArray, jax.ShapeDtypeStruct))
    wanted, given = example if known else jax.typeof(example), jax.typeof(value)

    def axes(aval):
        return getattr(aval.manual_axis_type, "varying", frozenset())

    sharding = wanted.sharding
    if sharding is not None and sharding.spec != given.sharding.spec:
        value = jax.sharding.reshard(value, sharding)
    missing = tuple(axes(wanted) - axes(given))
    return lax.pcast(value, missing, to="varying") if missing else value


def expansion(eqn: core.JaxprEqn) -> Any:
    """What a high-level primitive (searchsorted, from 0.11 on) consists of."""
    (high,) = (v for v in eqn.params.values() if hasattr(v, "expand"))

    def expand(*leaves):
        return jax.tree.leaves(high.expand(*jax.tree.unflatten(high.in_tree, leaves)))

    return jax.make_jaxpr(expand)(*(atom.aval for atom in eqn.invars))


def is_hypot(eqn: core.JaxprEqn) -> bool:
    """Whether a call is one of `jax.numpy.hypot`."""
    if eqn.params.get("name") != "hypot":
        return False
    info = open_jaxpr(eqn.params["jaxpr"])[0].debug_info
    return os.path.join("jax", "_src", "numpy") in str(info)


def is_foreign(jaxpr: Any) -> bool:
    """Whether a jaxpr runs what JAX does not see into: kernels, callbacks."""
    foreign = {"pallas_call", "pure_callback", "io_callback", "ffi_call"}
    return any(
        eqn.primitive.name in foreign
        or any(map(is_foreign, core.jaxprs_in_params(eqn.params)))
        for eqn in open_jaxpr(jaxpr)[0].eqns
    )


def _probe(function, *arguments) -> list[core.Primitive]:
    """The primitives that a one-line function binds, for those without a name."""
    eqns = jax.make_jaxpr(function)(*arguments).jaxpr.eqns
    return list({eqn.primitive: None for eqn in eqns})


def _shard_mapped(x):
    mesh = jax.sharding.AbstractMesh((1,), ("i",))
    spec = jax.sharding.PartitionSpec()
    return jax.shard_map(lambda y: y, mesh=mesh, in_specs=spec, out_specs=spec)(x)


SHARD_MAP = _probe(_shard_mapped, 1.0)
PIVOTS = _probe(
    lambda p: lax.linalg.lu_pivots_to_permutation(p, 1), np.zeros(1, "int32")
)
EFFECTS = [
    *_probe(lambda x: jax.debug.print("{}", x), 1.0),
    *_probe(lambda x: jax.debug.callback(lambda _: None, x), 1.0),
    *_probe(lambda x: checkify.check(x, "of what went wrong"), np.True_)[-1:],
]
