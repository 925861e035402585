"""Whether what a function returns depends on a shift of its exponentials.

Hand-written softmaxes subtract a stopped maximum so that nothing overflows, and their
result does not depend on it. Equation by equation, this follows how a value depends on
such a shift `m`: as `v + c m` (a `_Sum`) or as `v e^(k m)` (a `_Power`), where `v` does
not. A result is independent if all shifts cancel on the way to it.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend import core
from jax.extend.core import primitives as P

from jaxlift import _compat
from jaxlift._compat import existing


@dataclasses.dataclass(frozen=True)
class _Sum:
    """`v + c m`; `pure` if `v` is 0 and `m` might as well be any other shift."""

    c: float
    pure: bool = False


@dataclasses.dataclass(frozen=True)
class _Power:
    """`v e^(k m)`."""

    k: float


_ZERO = "zero"
_NOTHING: Mapping = types.MappingProxyType({})
_State = Any  # a _Sum, a _Power, _ZERO, or None: independent


class _Dependent(Exception):
    """A value depends on the shift in some other way."""


def is_independent(frames: Sequence[tuple]) -> tuple[bool, bool]:
    """Whether what is computed is independent of a shift, and if it shifts exponents.

    `frames` are the jaxprs that are being walked, the outermost one first, each with
    the equation at hand; the last of these makes the shift.
    """
    shifts, outputs = [False], [_Sum(1, pure=True)]
    try:
        for jaxpr, eqn in reversed(frames):
            outputs = _propagated(jaxpr, {}, shifts, {id(eqn): outputs})
    except _Dependent:
        return False, shifts[0]
    return all(state in (None, _ZERO) for state in outputs), shifts[0]


def _propagated(
    jaxpr: core.Jaxpr, states: dict, shifts: list, known: Mapping[int, list] = _NOTHING
) -> list:
    """The states of a jaxpr's outputs, those of some of its equations given."""

    def read(atom):
        if isinstance(atom, core.Literal):
            return None if np.any(np.asarray(atom.val)) else _ZERO
        return states.get(atom)

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        outputs = known.get(id(eqn)) or _outputs(eqn, inputs, shifts)
        states |= {v: o for v, o in zip(eqn.outvars, outputs, strict=True) if o}
    return [read(atom) for atom in jaxpr.outvars]


def _outputs(eqn: core.JaxprEqn, inputs: list, shifts: list) -> list:
    if eqn.primitive in _SAME:
        return [inputs[0]] if not any(map(_depends, inputs[1:])) else _refuse()
    if not any(map(_depends, inputs)):
        return [None] * len(eqn.outvars)
    bodies = list(core.jaxprs_in_params(eqn.params))
    if eqn.primitive in _CALLS and len(bodies) == 1:
        body, _ = _compat.open_jaxpr(bodies[0])
        pairs = zip(body.invars, inputs, strict=True)
        return _propagated(body, {v: s for v, s in pairs if s}, shifts)
    if eqn.primitive is P.exp_p and isinstance(inputs[0], _Sum):
        shifts[0] = True
    rule = _RULES.get(eqn.primitive, _refuse)
    state = rule(eqn, *inputs)
    cancelled = state in (_Sum(0), _Power(0))
    return [None if cancelled else state]


def _depends(state: _State) -> bool:
    return isinstance(state, _Sum | _Power)


def _refuse(*_: Any) -> Any:
    raise _Dependent


def _common(eqn: Any, *states: _State) -> _State:
    """One of several values, or their sum where they are powers."""
    del eqn
    found = set(states) - {_ZERO}
    return found.pop() if len(found) == 1 else _refuse()


def _selected(eqn: Any, predicate: _State, *cases: _State) -> _State:
    return _refuse() if _depends(predicate) else _common(eqn, *cases)


def _larger(eqn: Any, u: _State, v: _State) -> _State:
    """A shift and another value make another shift."""
    for one, other in ((u, v), (v, u)):
        if isinstance(one, _Sum) and one.pure and not _depends(other):
            return one
    return _common(eqn, u, v) if isinstance(u, _Power) else _refuse()


def _added(sign: int) -> Callable:
    def rule(eqn, u, v):
        if isinstance(u, _Power) or isinstance(v, _Power):
            return _common(eqn, u, v)
        c, d = (s.c if isinstance(s, _Sum) else 0 for s in (u, v))
        return _Sum(c + sign * d)

    return rule


def _scaled(sign: int) -> Callable:
    """A product (sign 1) or quotient (-1), of powers or by a number."""

    def rule(eqn, u, v, *rest):
        if any(map(_depends, rest)):
            return _refuse()
        if isinstance(u, _Sum) and isinstance(eqn.invars[1], core.Literal):
            return _Sum(u.c * float(eqn.invars[1].val) ** sign)
        if isinstance(v, _Sum) and isinstance(eqn.invars[0], core.Literal) and sign > 0:
            return _Sum(v.c * float(eqn.invars[0].val))
        if isinstance(u, _Sum) or isinstance(v, _Sum):
            return _refuse()
        k, n = (s.k if isinstance(s, _Power) else 0 for s in (u, v))
        return _Power(k + sign * n)

    return rule


def _scattered(eqn: Any, operand: _State, indices: _State, updates: _State) -> _State:
    return _refuse() if _depends(indices) else _added(1)(eqn, operand, updates)


def _of_powers(eqn: Any, state: _State) -> _State:
    return state if isinstance(state, _Power) else _refuse()


_CALLS = [P.custom_jvp_call_p, P.remat_p]
_CALLS += existing("jit", "closed_call", "custom_vjp_call")
_SAME = existing(
    *("broadcast_in_dim", "reshape", "squeeze", "transpose", "rev", "slice", "copy"),
    *("gather", "dynamic_slice", "convert_element_type", "stop_gradient", "name"),
)
_RULES: dict[core.Primitive, Callable] = {
    P.is_finite_p: lambda eqn, state: None,
    P.exp_p: lambda eqn, s: _Power(s.c) if isinstance(s, _Sum) else _refuse(),
    P.log_p: lambda eqn, s: _Sum(s.k) if isinstance(s, _Power) else _refuse(),
    P.neg_p: lambda eqn, s: _Sum(-s.c) if isinstance(s, _Sum) else s,
    P.add_p: _added(1),
    P.sub_p: _added(-1),
    P.mul_p: _scaled(1),
    P.dot_general_p: _scaled(1),
    P.div_p: _scaled(-1),
    P.select_n_p: _selected,
    P.max_p: _larger,
    P.concatenate_p: _common,
    P.scatter_add_p: _scattered,
    P.reduce_sum_p: _of_powers,
    P.cumsum_p: _of_powers,
    P.abs_p: _of_powers,
}
