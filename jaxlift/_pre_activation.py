"""A function without its last activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend import core
from jax.extend.core import primitives as P

from jaxlift import _compat
from jaxlift._compat import existing
from jaxlift._interpret import Origin, Producers
from jaxlift._powers import RESHAPES, back, log_softmax_of, softmax_of

_CALLS = (P.custom_jvp_call_p, P.remat_p)
_CALLS += tuple(existing("jit", "closed_call", "call", "composite", "custom_vjp_call"))


def without_last_activation(
    jaxpr: core.Jaxpr, consts: Sequence, operands: Sequence, n: int = 0
) -> list:
    """The outputs of a jaxpr, the activation before output `n` left out."""
    producers = Producers(jaxpr)
    after = (*RESHAPES, P.copy_p, P.transpose_p, P.slice_p, P.name_p)
    last = producers.origin(back(producers, jaxpr.outvars[n], after))
    before = None if last is None else _activated(producers, last)
    body = None if last is None else _body(last.eqn)
    if last is None or (before is None and body is None):
        raise ValueError(
            "the function ends in none of softmax, log_softmax, sigmoid and tanh, but "
            f"in {last.eqn.primitive.name if last else 'its input'}. If it returns "
            "logits, explain it as it is; otherwise have it return them"
        )

    env = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= zip(jaxpr.invars, operands, strict=True)

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        with _compat.context_of(eqn):
            values = [read(atom) for atom in eqn.invars]
            if eqn is not last.eqn:
                outputs = _compat.bind(eqn.primitive, eqn.params, *values)
            elif before is not None:
                outputs = [read(before)]
            else:
                within = last.eqn.outvars.index(last.value)
                opened = _compat.open_jaxpr(body)
                outputs = without_last_activation(*opened, values, within)
        env |= zip(eqn.outvars, outputs, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _activated(producers: Producers, last: Origin) -> Any:
    """What the last value is the sigmoid, tanh or (log) softmax of, or None."""
    primitive, operands = last.eqn.primitive, last.operands
    if primitive in (P.logistic_p, P.tanh_p):
        return operands[0]
    recognise = {P.div_p: softmax_of, P.sub_p: log_softmax_of}.get(primitive)
    powers = recognise(producers, *operands) if recognise else None
    return powers.operand if powers else None


def _body(eqn: core.JaxprEqn) -> Any:
    """The body of a call, which may end in the activation."""
    params = eqn.params if eqn.primitive in _CALLS else {}
    return next((params[k] for k in ("jaxpr", "call_jaxpr") if k in params), None)
