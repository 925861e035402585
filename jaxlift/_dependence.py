"""What varies: which outputs depend on which operands, by the jaxpr alone.

A loop and a branch have to know beforehand which of their values are pairs. A value
that does not vary stays an array: evaluated once, and a key can be used as one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from jax.extend import core
from jax.extend.core import primitives as P

from jaxlift import _compat
from jaxlift._compat import existing

CALLS = existing("jit", "closed_call", "call", "composite", "custom_vjp_call")
"""What does what its body does."""

ONE_FOR_ONE = existing("device_put", "optimization_barrier")
"""What hands on each of its operands."""

_ONCE = {*CALLS, P.custom_jvp_call_p, P.remat_p, *_compat.SHARD_MAP}


def depends(
    jaxpr: core.Jaxpr, varies: Sequence[bool], seeds: Collection[str] = ()
) -> list[bool]:
    """Which outputs of a jaxpr may vary when these inputs do, and those seeds move.

    Through a `stop_gradient` as well: steps may pass it (see `freeze`).
    """
    moving = {v for v, varying in zip(jaxpr.invars, varies, strict=True) if varying}

    def moves(atom):
        return not isinstance(atom, core.Literal) and atom in moving

    for eqn in jaxpr.eqns:
        outputs = outputs_that_vary(eqn, [*map(moves, eqn.invars)], seeds)
        moving |= {v for v, m in zip(eqn.outvars, outputs, strict=True) if m}
    return [*map(moves, jaxpr.outvars)]


def outputs_that_vary(
    eqn: core.JaxprEqn, varies: Sequence[bool], seeds: Collection[str] = ()
) -> list[bool]:
    """The same of an equation; of one that is not known all of them or none."""
    primitive, params = eqn.primitive, eqn.params
    if primitive is P.name_p:
        return [params["name"] in seeds or any(varies)]
    if primitive in ONE_FOR_ONE:
        return [*varies]
    if not (seeds or any(varies)):
        return [False] * len(eqn.outvars)
    bodies = [_compat.open_jaxpr(body)[0] for body in core.jaxprs_in_params(params)]
    if primitive in _ONCE:
        return depends(bodies[0], varies, seeds)
    if primitive is P.cond_p:
        index, *operands = varies
        rows = [depends(branch, operands, seeds) for branch in bodies]
        return [index or any(row) for row in zip(*rows, strict=True)]
    if primitive is P.scan_p:
        return _of_scan(eqn, bodies[0], varies, seeds)
    return [any(varies)] * len(eqn.outvars)


def _of_scan(
    eqn: core.JaxprEqn, body: core.Jaxpr, varies: Sequence[bool], seeds: Collection[str]
) -> list[bool]:
    """What varies from some iteration on: the least fixed point."""
    n_consts, n_carry = _compat.scan_sizes(eqn)
    varies, carried = [*varies], slice(n_consts, n_consts + n_carry)
    while True:
        outputs, before = depends(body, varies, seeds), varies[carried]
        after = [a or b for a, b in zip(before, outputs[:n_carry], strict=True)]
        if after == before:
            return [*after, *outputs[n_carry:]]
        varies[carried] = after
