"""Whether what a function returns depends on a shift of its exponents.

Hand-written softmaxes subtract a stopped maximum so that nothing overflows, and their
result does not depend on it. Equation by equation, this follows how a value depends on
such a shift `m`: as `v + c m`, a sum, or as `v e^(c m)`, a power, where `v` does not.
A result is independent if all shifts cancel on the way to it. An array of shifts (one
for each row, say) is followed axis by axis: what has other shifts is not added up. What
indices pick from it has shifts by these indices, which a sum over the same indices
(`jax.ops.segment_sum`) brings back.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core
from jax.extend.core import primitives as P

from jaxlift import _compat
from jaxlift._compat import existing
from jaxlift._values import is_discrete, is_key


@dataclasses.dataclass(frozen=True)
class _Shifted:
    """`v + c m`, or `v e^(c m)` if it is a `power`.

    `axes` has for each axis of the value the axis of `m` that goes along with it (or
    `_Picked` from it), or None where all have the same shift. `which` of several shifts
    it is: a maximum of a shift and of something else, like `m` itself, is `pure`
    (`v = 0`), and another one.
    """

    c: float
    axes: tuple
    which: object = None
    power: bool = False
    pure: bool = False

    def but(self, **changes: Any) -> _Shifted:
        """The same with some changes, and no longer pure."""
        return dataclasses.replace(self, **({"pure": False} | changes))

    def like(self, other: _Shifted) -> bool:
        """Whether another value has the same shift at every place."""
        return (self.axes, self.which) == (other.axes, other.which)


@dataclasses.dataclass(frozen=True)
class _Picked:
    """An axis of indices into an axis of `m`."""

    axis: Any
    indices: Any


_ZERO, _SMALL = "zero", "small"
_State = Any  # a _Shifted, _ZERO, _SMALL, or None: independent

GUARD = 1e-4
"""The most that is added to a sum of powers as a guard: their largest is 1."""


def is_guard(number: Any) -> bool:
    """Whether a number, known by its value, is a guard against division by 0."""
    value = np.asarray(number)
    real = jnp.issubdtype(value.dtype, jnp.floating)
    return bool(real and value.size and 0 < value.min() == value.max() <= GUARD)


class _Dependent(Exception):
    """A value depends on the shift in some other way."""


@dataclasses.dataclass(frozen=True)
class Fate:
    """What becomes of a shift, in what is computed with it.

    Whether that is independent of it, but for what guards against division by 0 (a
    power to which something small is added), and whether it shifts exponents.
    """

    independent: bool
    guarded: bool
    shifts_exponents: bool


def fate_of(frames: Sequence[tuple], twins: Sequence[core.JaxprEqn] = ()) -> Fate:
    """What becomes of a shift.

    `frames` are the jaxprs that are being walked, the outermost one first, each with
    its constants and the equation at hand; the last of these makes the shift, and its
    `twins` make the same one.
    """
    walk, outputs = _Walk(), [_Shifted(1, _all_axes(frames[-1][-1]), pure=True)]
    try:
        for jaxpr, consts, eqn in reversed(frames):
            named = map(_name_of_constant, consts)
            names: dict = dict(zip(jaxpr.constvars, named, strict=True))
            known = dict.fromkeys(map(id, (eqn, *twins)), outputs)
            outputs, twins = walk.through(jaxpr, {}, names, known), ()
        independent = not any(map(_depends, outputs))
    except _Dependent:
        independent = False
    return Fate(independent, walk.guarded, walk.shifts_exponents)


def _size(literal: core.Literal) -> _State:
    if not np.any(np.asarray(literal.val)):
        return _ZERO
    return _SMALL if is_guard(literal.val) else None


def _all_axes(eqn: Any) -> tuple:
    shape = eqn.outvars[0].aval.shape
    # Sizes may be symbolic, and `b > 1` is undecided then.
    return tuple(k if size != 1 else None for k, size in enumerate(shape))


@dataclasses.dataclass(frozen=True)
class _Constant:
    """The name of integers that are known: what they are."""

    content: bytes
    dtype: str
    shape: tuple[int, ...]


def _name_of_constant(value: Any) -> Any:
    if isinstance(value, Tracer) or not is_discrete(value) or is_key(value):
        return "constant", id(value)
    array = np.asarray(value)
    return _Constant(array.tobytes(), str(array.dtype), array.shape)


def _last_uses(jaxpr: core.Jaxpr) -> dict[Any, int]:
    """The place of the last equation that uses a variable."""
    uses = {atom: n for n, e in enumerate(jaxpr.eqns) for atom in _variables(e.invars)}
    return uses | dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))


def _variables(atoms: Sequence) -> list:
    return [atom for atom in atoms if isinstance(atom, core.Var)]


_NOTHING: Mapping = types.MappingProxyType({})


class _Walk:
    """Follows states through jaxprs; names indices, the same name for the same ones."""

    def __init__(self):
        self.shifts_exponents = self.guarded = False
        self.made: list[tuple] = []  # how a name came about
        self.names: dict[tuple, int] = {}

    def through(
        self,
        jaxpr: core.Jaxpr,
        states: dict[core.Var, _State],
        names: dict[core.Var, Any],
        known: Mapping[int, list] = _NOTHING,
    ) -> list:
        """The states of a jaxpr's outputs, those of some of its equations given."""
        call = object()  # a body that is called twice has other values each time

        def read(atom):
            return _size(atom) if isinstance(atom, core.Literal) else states.get(atom)

        def name(atom):
            if isinstance(atom, core.Literal):
                return _name_of_constant(atom.val)
            return names.get(atom, (call, atom))

        last_use = _last_uses(jaxpr)

        def horizon(pairs):
            return max(
                (last_use.get(v, -1) for v, s in pairs if _depends(s)), default=-1
            )

        # Programs are long, and a shift's way through them is short.
        waiting, end = set(known), horizon(states.items())
        for n, eqn in enumerate(jaxpr.eqns):
            if n > end and not waiting:
                break
            inputs = [read(atom) for atom in eqn.invars]
            called = [name(atom) for atom in eqn.invars]
            outputs = known.get(id(eqn)) or self.outputs(eqn, inputs, called)
            made = list(zip(eqn.outvars, outputs, strict=True))
            waiting.discard(id(eqn))
            end = max(end, horizon(made))
            states |= {v: o for v, o in made if o}
            if len(outputs) == 1 and is_discrete(eqn.outvars[0].aval):
                found = self.name(eqn, called)
                names |= {} if found is None else {eqn.outvars[0]: found}
        return [read(atom) for atom in jaxpr.outvars]

    def outputs(self, eqn: core.JaxprEqn, inputs: list, names: list) -> list:
        """The states of an equation's outputs."""
        if not any(map(_depends, inputs)):
            same = eqn.primitive in _MOVES and inputs[0]
            return [same or None] * len(eqn.outvars)
        bodies = list(core.jaxprs_in_params(eqn.params))
        if eqn.primitive in _CALLS and len(bodies) == 1:
            body, _ = _compat.open_jaxpr(bodies[0])
            pairs = zip(body.invars, inputs, strict=True)
            called = dict(zip(body.invars, names, strict=True))
            return self.through(body, {v: s for v, s in pairs if s}, called)
        self.shifts_exponents |= eqn.primitive is P.exp_p
        if _SMALL in inputs:
            power = any(_depends(state) and state.power for state in inputs)
            guards = power and eqn.primitive in (P.add_p, P.max_p)
            self.guarded |= guards
            small = _ZERO if guards else None
            inputs = [small if state is _SMALL else state for state in inputs]
        if eqn.primitive in _INDEXED:
            state = _INDEXED[eqn.primitive](eqn, names[1], *inputs)
        elif eqn.primitive in _MOVES:
            state = _MOVES[eqn.primitive](eqn, *inputs)
        else:
            fitted = [_at_every_place(eqn, state) for state in inputs]
            state = _RULES.get(eqn.primitive, _refuse)(eqn, *fitted)
        return [state if _depends(state) and state.c else None]

    def name(self, eqn: core.JaxprEqn, names: list) -> Any:
        """What is equal for equal integers: how they are made of others, if known."""
        if eqn.primitive is P.select_n_p and len(names) == 3:
            # x[i] counts negative indices from the end, segment_sum takes them as they
            # are: the same indices. The test for them may be a constant, False.
            predicate, index, _ = names
            made = self.made[predicate] if isinstance(predicate, int) else ()
            if made[:3:2] == (P.lt_p, index):
                return index
            if isinstance(predicate, _Constant) and not any(predicate.content):
                return index
        made = eqn.primitive, tuple(sorted(eqn.params.items())), *names
        try:
            found = self.names.setdefault(made, len(self.made))
        except TypeError:  # a parameter that cannot be compared
            return None
        if found == len(self.made):
            self.made.append(made)
        return found


def _at_every_place(eqn: core.JaxprEqn, state: _State) -> _State:
    """A scalar among arrays goes with every place of them."""
    if not _depends(state) or state.axes:
        return state
    return dataclasses.replace(state, axes=(None,) * len(_all_axes(eqn)))


def _depends(state: _State) -> bool:
    return isinstance(state, _Shifted)


def _refuse(*_: Any) -> Any:
    raise _Dependent


# ------------------------------------------------------------- steps that only move


def _same(eqn: Any, state: _State) -> _State:
    return state


def _stopped(eqn: Any, state: _State) -> _State:
    """What is made of a shift is stopped at one point, the shift then is not."""
    return state if state.pure else _refuse()


def _broadcast(eqn: Any, state: _State, *_: Any) -> _State:
    places = dict(zip(eqn.params["broadcast_dimensions"], state.axes, strict=True))
    rank = len(eqn.outvars[0].aval.shape)
    return dataclasses.replace(state, axes=tuple(places.get(k) for k in range(rank)))


def _reshape(eqn: Any, state: _State, *_: Any) -> _State:
    """Axes of size 1 come and go; a reshape of others mixes them up."""
    before, sizes = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if any(axis is not None for axis in state.axes) and (
        [n for n in before if n != 1] != [n for n in sizes if n != 1]
    ):
        return _refuse()
    left = iter(a for a, n in zip(state.axes, before, strict=True) if n != 1)
    axes = tuple(next(left, None) if n != 1 else None for n in sizes)
    return dataclasses.replace(state, axes=axes)


def _transpose(eqn: Any, state: _State) -> _State:
    axes = tuple(state.axes[k] for k in eqn.params["permutation"])
    return dataclasses.replace(state, axes=axes)


def _picked(eqn: Any, indices: Any, state: _State, *rest: _State) -> _State:
    """`m[i]`: whole rows by indices into the first axis."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape = eqn.invars[0].aval.shape
    rows = numbers.collapsed_slice_dims == numbers.start_index_map == (0,)
    if any(map(_depends, rest)) or not rows or sizes[1:] != shape[1:]:
        return _refuse()
    first, *others = state.axes
    rank = len(eqn.outvars[0].aval.shape)
    kept = dict(zip(numbers.offset_dims, others, strict=True))
    if first is not None and rank - len(kept) != 1:
        return _refuse()
    along = None if first is None else _Picked(first, indices)
    return dataclasses.replace(
        state, axes=tuple(kept.get(k, along) for k in range(rank))
    )


def _put_back(eqn: Any, indices: Any, operand: _State, *rest: _State) -> _State:
    """`zeros.at[i].add(v)`: sums of rows with the same index."""
    numbers, state = eqn.params["dimension_numbers"], rest[1]
    rows = numbers.inserted_window_dims == numbers.scatter_dims_to_operand_dims == (0,)
    if operand is not _ZERO or _depends(rest[0]) or not state.power or not rows:
        return _refuse()
    windows = numbers.update_window_dims
    along = [axis for k, axis in enumerate(state.axes) if k not in windows]
    first = None
    if any(axis is not None for axis in along):
        (picked,) = along if len(along) == 1 else (None,)
        if not isinstance(picked, _Picked) or picked.indices != indices:
            return _refuse()
        first = picked.axis
    return state.but(axes=(first, *(state.axes[k] for k in windows)))


# --------------------------------------------------------------------- arithmetic


def _common(eqn: Any, *states: _State) -> _State:
    """One of several values, or the sum of powers; zeros are in it."""
    del eqn
    found = set(states) - {_ZERO}
    return found.pop() if len(found) == 1 else _refuse()


def _selected(eqn: Any, predicate: _State, *cases: _State) -> _State:
    state = _refuse() if _depends(predicate) else _common(eqn, *cases)
    return state if state.power or _ZERO not in cases else _another(eqn, state)


def _another(eqn: Any, state: _Shifted) -> _Shifted:
    """Another shift, made of a pure one, of as many axes as it has."""
    if not state.pure or state.c != 1:
        return _refuse()
    return _Shifted(1, _all_axes(eqn), which=object(), pure=True)


def _larger(eqn: Any, u: _State, v: _State) -> _State:
    if _depends(u) and _depends(v):
        return _common(eqn, u, v)
    state = u if _depends(u) else v
    if state.power:
        return _common(eqn, u, v)
    return _another(eqn, state)


def _added(sign: int) -> Callable:
    def rule(eqn, u, v):
        if any(_depends(s) and s.power for s in (u, v)):
            return _common(eqn, *(s and (s if s is _ZERO else s.but()) for s in (u, v)))
        if _depends(u) and _depends(v):
            return u.but(c=u.c + sign * v.c) if u.like(v) else _refuse()
        return u.but() if _depends(u) else v.but(c=sign * v.c)

    return rule


def _scaled(sign: int) -> Callable:
    """A product (sign 1) or quotient (-1), of powers or by a number."""

    def rule(eqn, u, v):
        if _depends(u) and _depends(v):
            powers = u.power and v.power and u.like(v)
            return u.but(c=u.c + sign * v.c) if powers else _refuse()
        state, other = (u, eqn.invars[1]) if _depends(u) else (v, eqn.invars[0])
        if state.power:
            return state.but(c=state.c if state is u else sign * state.c)
        if not isinstance(other, core.Literal) or (state is v and sign < 0):
            return _refuse()
        return state.but(c=state.c * float(other.val) ** sign)

    return rule


def _product(eqn: Any, u: _State, v: _State) -> _State:
    """Of powers with what is independent; not summed over different shifts."""
    contracted, batched = eqn.params["dimension_numbers"]
    side = 0 if _depends(u) else 1
    state = (u, v)[side]
    if (_depends(u) and _depends(v)) or not state.power:
        return _refuse()
    if any(state.axes[k] is not None for k in contracted[side]):
        return _refuse()
    batch = [state.axes[k] for k in batched[side]]
    used = {*contracted[side], *batched[side]}
    free = [axis for k, axis in enumerate(state.axes) if k not in used]
    others = [None] * (len(eqn.outvars[0].aval.shape) - len(batch) - len(free))
    return state.but(axes=(*batch, *(free + others if side == 0 else others + free)))


def _summed(eqn: Any, state: _State) -> _State:
    axes = eqn.params["axes"]
    if not state.power or any(state.axes[k] is not None for k in axes):
        return _refuse()
    kept = (axis for k, axis in enumerate(state.axes) if k not in axes)
    return state.but(axes=tuple(kept))


def _exponential(eqn: Any, state: _State) -> _State:
    return _refuse() if state.power else state.but(power=True)


def _logarithm(eqn: Any, state: _State) -> _State:
    return state.but(power=False) if state.power else _refuse()


def _negated(eqn: Any, state: _State) -> _State:
    return state if state.power else state.but(c=-state.c)


def _absolute(eqn: Any, state: _State) -> _State:
    return state if state.power else _refuse()


def _raised(eqn: Any, state: _State) -> _State:
    exponent = eqn.params.get("y", 2)  # or it is a square
    return state.but(c=state.c * exponent) if state.power else _refuse()


def _sign(eqn: Any, u: _State, v: _State = _ZERO) -> _State:
    """Of a power, or a comparison of it with 0: the shift has no part in it."""
    state, other = (u, v) if _depends(u) else (v, u)
    return None if state.power and other is _ZERO else _refuse()


_CALLS = [P.custom_jvp_call_p, P.remat_p]
_CALLS += existing("jit", "closed_call", "custom_vjp_call")
_MOVES: dict[core.Primitive, Callable] = {
    P.broadcast_in_dim_p: _broadcast,
    P.reshape_p: _reshape,
    P.squeeze_p: _reshape,
    P.transpose_p: _transpose,
    **dict.fromkeys((P.copy_p, P.convert_element_type_p), _same),
    P.stop_gradient_p: _stopped,
}
_INDEXED: dict[core.Primitive, Callable] = {
    P.gather_p: _picked,
    P.scatter_add_p: _put_back,
}
_RULES: dict[core.Primitive, Callable] = {
    P.is_finite_p: lambda eqn, state: None,
    P.exp_p: _exponential,
    P.log_p: _logarithm,
    P.neg_p: _negated,
    P.abs_p: _absolute,
    **dict.fromkeys((P.integer_pow_p, P.square_p), _raised),
    **dict.fromkeys((P.sign_p, P.gt_p, P.ge_p, P.lt_p, P.le_p), _sign),
    **dict.fromkeys((P.add_p, P.add_jaxvals_p), _added(1)),
    P.sub_p: _added(-1),
    P.mul_p: _scaled(1),
    P.div_p: _scaled(-1),
    P.max_p: _larger,
    P.select_n_p: _selected,
    P.dot_general_p: _product,
    P.reduce_sum_p: _summed,
}
