"""Reach the output of a layer without a change to the model.

JAX keeps, for each equation that it traces, the name scopes that were open at the time.
flax.linen, haiku and Keras open one for every layer, equinox one for every layer of
`equinox.nn`, and `jax.named_scope` opens one by hand. A layer's output is what leaves
its scope: the values computed inside that are used outside. `scopes` lists them, and
`tagged` puts the name of the scope on them, for `at=` and `intermediate` to ask for.

A scope is written as its path, "CNN/Block_1/Dense_0", or as an end of it that tells it
apart, "Dense_0". One entered several times is numbered in the order of the program,
"eqx.nn.Linear[1]" being the second; entries with nothing between them (a layer applied
to its own output) cannot be told apart, and count as one.

It works on jaxprs, and knows nothing of attribution.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core
from jax.extend.core import primitives as P

from jaxlift import _compat
from jaxlift._arguments import check_callable, traced

TRANSPARENT = {P.jit_p, P.closed_call_p, P.call_p, P.remat_p, P.scan_p}
"""Those with one body, whose tagged values the transforms hand out."""


def scopes(f: Callable) -> Callable:
    """The name scopes of a function, and what leaves them.

    Args:
      f: a JAX function, of a model of any library.

    Returns:
      A function of the same arguments that returns a dict from scope, in the order of
      the program, to the `jax.ShapeDtypeStruct` of each floating value that leaves it
      (inside a scan, that of one iteration). Nothing is computed.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxlift import layers
      >>> dense = jax.named_scope("dense")(lambda x: jnp.ones((3, 2)) @ x + 1)
      >>> layers.scopes(lambda x: jax.nn.relu(dense(x)))(jnp.ones(2))
      {'dense': (ShapeDtypeStruct(shape=(3,), dtype=float32),)}
    """
    check_callable(f)

    @functools.wraps(f, updated=())
    def listed(
        *args: Any, **kwargs: Any
    ) -> dict[str, tuple[jax.ShapeDtypeStruct, ...]]:
        jaxpr, _ = _compat.open_jaxpr(traced(f, args, kwargs)[0])
        found = _names([visit for visit in _visits(jaxpr) if visit.inside is None])
        return {k: tuple(map(_shape, visit.leaving)) for k, visit in found.items()}

    return listed


def tagged(f: Callable, *scopes: str) -> Callable:
    """A function whose layers can be asked for by the names of their scopes.

    What leaves each scope is tagged with the scope as it is written here, as
    `jax.ad_checkpoint.checkpoint_name(value, scope)` in the model would; where several
    values leave (the hidden and cell state of an LSTM), with `scope.0`, `scope.1`, in
    the order of their computation. The values are the same; `jit` and `vmap` apply.

    Args:
      f: a JAX function, of a model of any library that opens name scopes.
      scopes: the scopes, as `scopes(f)` lists them, or the ends of those names.

    Returns:
      A function like `f`. Inside a scan the tagged values of all iterations come
      stacked; inside vmap each example has its own.

    Raises:
      ValueError: while tracing, if a scope is not there, stands for several, or lies
        in the body of something that hands out no values (a while loop, a branch).

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> from jaxlift import layers
      >>> dense = jax.named_scope("dense")(lambda x: 2 * x)
      >>> f = lambda x: jax.nn.relu(dense(x)).sum()
      >>> g = layers.tagged(f, "dense")
      >>> jaxlift.deeplift(g, at="dense")(jnp.array([1.0, -1.0]), 0.0)
      Array([2., 0.], dtype=float32)

    Source: contributions of a layer's units, Shrikumar, Greenside, Kundaje, ICML 2017
    (arXiv 1704.02685), section 3.2 (the chain rule for multipliers).
    """
    check_callable(f)

    @functools.wraps(f, updated=())
    def with_tags(*args: Any, **kwargs: Any) -> Any:
        closed, shape, leaves = traced(f, args, kwargs)
        jaxpr, _ = _compat.open_jaxpr(closed)
        visits = list(_visits(jaxpr))
        tags = [(_find(visits, scope), scope) for scope in scopes]
        function = core.jaxpr_as_fun(_holding(closed, _insert(jaxpr, (), tags)))
        return jax.tree.unflatten(jax.tree.structure(shape), function(*leaves))

    return with_tags


def _shape(variable: core.Var) -> jax.ShapeDtypeStruct:
    aval: Any = variable.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


# ------------------------------------------------------------------- where it is


class Visit(NamedTuple):
    """One stay in a scope: a run of equations in one body."""

    path: tuple[str, ...]
    """The scope, outermost name first."""
    way: tuple[int, ...]
    """The equations whose bodies enclose the run, outermost first."""
    depth: int
    """How many names of the path were open around that body."""
    end: int
    """The last equation of the run."""
    leaving: tuple[core.Var, ...]
    """What is computed in the run and used after it."""
    inside: str | None
    """The primitive around it that hands out no values, if there is one."""

    @property
    def scope(self) -> str:
        """The path as it is written."""
        return "/".join(self.path)


def _visits(
    jaxpr: core.Jaxpr,
    path: tuple[str, ...] = (),
    way: tuple[int, ...] = (),
    inside: str | None = None,
) -> Iterator[Visit]:
    """All stays in scopes that something leaves, in order, outer ones first."""
    places = [path + _components(eqn) for eqn in jaxpr.eqns]
    last_use = _last_uses(jaxpr)
    before = path
    for n, (eqn, place) in enumerate(zip(jaxpr.eqns, places, strict=True)):
        for depth in range(len(path) + 1, len(place) + 1):
            scope = place[:depth]
            if before[:depth] == scope:
                continue
            end = n
            while end + 1 < len(places) and places[end + 1][:depth] == scope:
                end += 1
            made = [v for inner in jaxpr.eqns[n : end + 1] for v in inner.outvars]
            leaving = tuple(
                v for v in made if last_use.get(v, n) > end and _is_floating(v)
            )
            if leaving:
                yield Visit(scope, way, len(path), end, leaving, inside)
        shut = None if eqn.primitive in TRANSPARENT else eqn.primitive.name
        for body in core.jaxprs_in_params(eqn.params):
            inner, _ = _compat.open_jaxpr(body)
            yield from _visits(inner, place, (*way, n), inside or shut)
        before = place


def _components(eqn: core.JaxprEqn) -> tuple[str, ...]:
    """The names of an equation's scopes, without the transforms among them.

    `vmap(CNN)/Conv_0` is `CNN/Conv_0`, mapped over.
    """
    stack = re.sub(r"\w+\(|\)", "", str(eqn.source_info.name_stack))
    return tuple(name for name in stack.split("/") if name)


def _last_uses(jaxpr: core.Jaxpr) -> dict[core.Var, int]:
    """The last equation that reads each variable; the outputs count as one more."""
    readers = [*(eqn.invars for eqn in jaxpr.eqns), jaxpr.outvars]
    return {
        atom: n
        for n, atoms in enumerate(readers)
        for atom in atoms
        if isinstance(atom, core.Var)
    }


def _is_floating(variable: core.Var) -> bool:
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


# -------------------------------------------------------------- what it is called


def _names(visits: Sequence[Visit]) -> dict[str, Visit]:
    """The visits by their full paths, numbered where a scope is entered again."""
    entries, before = Counter(visit.scope for visit in visits), Counter()
    names = {}
    for visit in visits:
        number = f"[{before[visit.scope]}]" if entries[visit.scope] > 1 else ""
        names[visit.scope + number] = visit
        before[visit.scope] += 1
    return names


def _fitting(visits: Sequence[Visit], scope: str) -> list[Visit]:
    """The visits whose path is this one, or else ends so."""
    exact = [visit for visit in visits if visit.scope == scope]
    return exact or [visit for visit in visits if visit.scope.endswith(f"/{scope}")]


def _find(visits: Sequence[Visit], written: str) -> Visit:
    """The one visit that is meant by a scope, perhaps with a number."""
    reachable = [visit for visit in visits if visit.inside is None]
    numbered = re.fullmatch(r"(.+)\[(\d+)\]", written)
    scope, number = written, None
    if numbered and not _fitting(visits, written):  # a name may end so itself
        scope, number = numbered.groups()
    fitting = _fitting(reachable, scope)
    chosen = fitting if number is None else fitting[int(number) :][:1]
    if len(chosen) == 1:
        return chosen[0]
    if fitting:
        names = [name for name, visit in _names(reachable).items() if visit in fitting]
        raise ValueError(
            f"'{written}' stands for {len(chosen)} scopes: write one of {names}"
        )
    shut = sorted({str(visit.inside) for visit in _fitting(visits, scope)})
    if shut:
        raise ValueError(
            f"the scope '{written}' lies in the body of {', '.join(shut)}, which hands "
            "out no values: ask for a scope around it"
        )
    raise ValueError(
        f"nothing leaves a scope '{written}'; scopes present: "
        f"{list(_names(reachable)) or 'none'}. jax.named_scope opens one, as "
        "flax.linen, haiku, equinox and Keras do for their layers; flax.nnx does not."
    )


# --------------------------------------------------------------- how it is tagged


def _insert(
    jaxpr: core.Jaxpr, way: tuple[int, ...], tags: Sequence[tuple[Visit, str]]
) -> core.Jaxpr:
    """The jaxpr with a tag on what leaves each visit, at its end.

    What follows reads the tagged value. The visit itself does not, so that all that
    leaves it is told apart: an LSTM's hidden state is not counted in its cell state.
    """
    renamed: dict[core.Var, core.Var] = {}
    eqns = []

    def read(atoms):
        return [renamed.get(a, a) if isinstance(a, core.Var) else a for a in atoms]

    for n, eqn in enumerate(jaxpr.eqns):
        within = [tag for tag in tags if tag[0].way[: len(way) + 1] == (*way, n)]
        insert = functools.partial(_insert, way=(*way, n), tags=within)
        params = _on_body(insert, eqn.params) if within else eqn.params
        eqns.append(eqn.replace(invars=read(eqn.invars), params=params))
        for visit, scope in tags:
            if visit.way == way and visit.end == n:
                for k, variable in enumerate(visit.leaving):
                    name = f"{scope}.{k}" if len(visit.leaving) > 1 else scope
                    (value,) = read([variable])
                    eqns.append(_tag(visit, value, name))
                    renamed[variable] = eqns[-1].outvars[0]
    return jaxpr.replace(eqns=eqns, outvars=read(jaxpr.outvars))


def _on_body(change: Callable, params: dict) -> dict:
    """The parameters of an equation with its one body changed."""
    (body,) = core.jaxprs_in_params(params)
    return {
        key: _holding(value, change(body))
        if _compat.open_jaxpr(value)[0] is body
        else value
        for key, value in params.items()
    }


def _holding(held: Any, jaxpr: core.Jaxpr) -> Any:
    """A jaxpr in place of the one that is held, closed if that one is."""
    return jaxpr if type(held) is type(jaxpr) else held.replace(jaxpr=jaxpr)


def _tag(visit: Visit, variable: core.Var, name: str) -> core.JaxprEqn:
    """An equation, in the visit's scope, that names a variable and makes a new one."""
    scope = jax.named_scope("/".join(visit.path[visit.depth :]))
    named = scope(lambda value: checkpoint_name(value, name))
    traced, _ = _compat.open_jaxpr(jax.make_jaxpr(named)(variable.aval))
    (eqn,) = traced.eqns
    return eqn.replace(invars=[variable])
