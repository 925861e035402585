"""Calls and control flow: the interpreter walks into their bodies.

A scan stays a scan and a remat stays rematerialised, over pairs instead of arrays.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as P

from jaxlift import _compat
from jaxlift._dependence import outputs_that_vary
from jaxlift._differences import DIFFERENCES, STEPS
from jaxlift._interpret import (
    Context,
    Step,
    UnsupportedPrimitiveError,
    interpret,
    lazy,
    structural,
    tags_of,
)
from jaxlift._pieces import Piece, as_pieces, pair_of, settle
from jaxlift._rules import choose, given_to_branch, gradient, hypot, one_root, path
from jaxlift._values import (
    Array,
    Pair,
    Slope,
    Varying,
    add,
    at_input,
    at_reference,
    is_discrete,
    kind_of,
    scale,
    still,
    stopped,
)


def _walk(context: Context, body: Any, operands: Sequence) -> list:
    jaxpr, consts = _compat.open_jaxpr(body)
    return interpret(context, jaxpr, consts, operands)


def _walk_apart(context: Context, body: Any, operands: Sequence) -> list:
    """The outputs of a body that is traced on its own, no lazy ones among them."""
    with context.apart():
        return [settle(output) for output in _walk(context, body, operands)]


def _walk_inside(
    context: Context, seeds: Mapping, body: Any, operands: Sequence
) -> tuple[list, Mapping]:
    """The same with seeds of its own, and the tagged values; none of them is kept."""
    inner = context.inner(seeds)
    outputs, found = _walk_apart(inner, body, operands), inner.found
    inner.seeds, inner.found = {}, {}
    return outputs, found


@lazy
@structural
def call(step: Step, *operands: Any) -> list:
    """A call (jit, custom_vjp, ...): its body, on the same values.

    A custom_vjp's own backward rule is a gradient, and is not used.
    """
    params = step.params
    body = next(params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in params)
    return _walk(step.context, body, operands)


@lazy
@structural
def jitted(step: Step, *operands: Any) -> list:
    """A function that is jitted: its body, but for `jax.numpy.hypot`.

    `jax_debug_nans` looks at what it returns, not into it: `jnp.var` masks a NaN.
    """
    if _compat.is_hypot(step.eqn):
        return [hypot(step, *operands)]
    with jax.debug_nans(False):
        return call(step, *operands)


@lazy
@structural
def expanded(step: Step, *operands: Any) -> list:
    """A high-level primitive: what it consists of."""
    outputs = _walk(step.context, _compat.expansion(step.eqn), operands)
    return _own_slopes(step, operands, outputs) if _activation(outputs) else outputs


@lazy
@structural
def custom_jvp(step: Step, *operands: Any) -> list:
    """A custom_jvp function: its body, and its own derivative where nothing moved.

    Where the two points coincide at the function's own input, multipliers are the
    derivative that its author gave (relu'(0) = 0). A body that has no rule (that of
    jax.scipy.special.zeta, a determinant) gets the path rule over that derivative,
    unless it is a kernel or a callback: what those do nobody knows.
    """
    outermost = not step.context.in_custom_jvp
    step.context.in_custom_jvp = True
    try:
        outputs = _walk(step.context, step.params["call_jaxpr"], operands)
    except UnsupportedPrimitiveError:
        if not outermost or _compat.is_foreign(step.params["call_jaxpr"]):
            raise
        return path(step, *map(settle, operands))
    finally:
        step.context.in_custom_jvp = not outermost
    if not any(isinstance(operand, Varying) for operand in operands):
        return outputs
    inputs = [o for o in operands if isinstance(o, Varying)]
    if _activation(outputs) and one_root((*inputs, *outputs)):
        return _own_slopes(step, operands, outputs)
    return _own_derivative(step, [settle(operand) for operand in operands])


def _activation(outputs: Sequence) -> bool:
    """Whether all outputs are functions of one pair."""
    return all(isinstance(o, Piece) for o in outputs) and one_root(outputs)


def _own_slopes(step: Step, operands: Sequence, outputs: Sequence[Piece]) -> list:
    pieces = as_pieces(operands)
    players = [p for p, o in enumerate(pieces) if isinstance(o, Piece)]
    derivatives = [
        _derivatives(step, pieces, p, n)
        for n in _starts(outputs[0].root)
        for p in players
    ]
    rows = zip(outputs, zip(*derivatives, strict=True), strict=True)
    # What is discrete jumps, and has no derivative.
    return [
        output
        if is_discrete(output.aval)
        else OwnSlope(None, [*(pieces[p] for p in players), output, *own])
        for output, own in rows
    ]


def _derivatives(step: Step, operands: Sequence, player: int, n: int) -> Sequence:
    """The function's own derivatives in one operand, at a point of the root."""
    at = [o.values[n] if isinstance(o, Piece) else o for o in operands]
    if is_discrete(at[player]):
        return [0.0] * len(step.eqn.outvars)

    def function(value):
        return step.bind(*(value if p == player else o for p, o in enumerate(at)))

    return jax.jvp(function, [at[player]], [jnp.ones_like(at[player])])[1]


def _starts(root: Any) -> list[int]:
    """The points at which an interval of a root starts."""
    return sorted({start for start, _ in root.intervals})


class OwnSlope(Piece):
    """An elementwise function with a derivative of its own, beside its body.

    Its operands are the function's, those that vary, the output as its body explains
    it, and at each of `_starts` the derivative in each operand.
    """

    @property
    def output(self) -> Piece:
        """The output as its body explains it."""
        return self.pieces[-1]

    def __init__(self, step: None, operands: Sequence):
        self.operands = operands
        super().__init__(step, operands, self.output.order, self.output.traits)

    def value(self, operands: Sequence) -> Array:
        """The value of the body."""
        return operands[len(self.pieces) - 1]

    @property
    def aval(self) -> Any:
        """The shape and dtype of the output."""
        return self.output.aval

    def difference(self, k: int) -> Slope:
        """The body's; where the inputs coincide, the derivative along the root."""
        *players, output = self.pieces
        i, j = self.root.intervals[k]
        # NaN is not apart from anything, and its derivative is passed on.
        moved = [
            (v < before) | (v > before)
            for v, before in ((p.values[i], p.values[j]) for p in players)
        ]
        own = self._along([player.slope(k) for player in players], i)
        return jnp.where(functools.reduce(jnp.logical_or, moved), output.slope(k), own)

    def tangent(self, n: int) -> Slope:
        """The derivative of its own."""
        return self._along([player.derivative(n) for player in self.pieces[:-1]], n)

    def _along(self, slopes: Sequence[Slope], n: int) -> Slope:
        """The derivative at a point of the root, its operands having these slopes."""
        first = len(self.pieces) + len(slopes) * _starts(self.root).index(n)
        derivatives = self.operands[first : first + len(slopes)]
        return add(*map(scale, derivatives, slopes))


def _own_derivative(step: Step, operands: Sequence) -> list:
    """The same where it is not elementwise: a branch on the whole input."""
    rs = step.bind(*map(at_reference, operands))
    kinds = [Pair if is_discrete(r) else kind_of(operands) for r in rs]
    players = {k: o for k, o in enumerate(operands) if isinstance(o, Pair)}

    def filled(moving):
        rows = zip(players.items(), moving, strict=True)
        at = {k: type(o).joined(moved, o.r) for (k, o), moved in rows}
        return [at.get(k, o) for k, o in enumerate(operands)]

    def own(moving):
        xs = step.bind(*map(at_input, filled(moving)))
        rows = zip(kinds, xs, rs, strict=True)
        return [kind.moving(still(x, r)) for kind, x, r in rows]

    def body(moving):
        outputs = _walk_apart(step.context, step.params["call_jaxpr"], filled(moving))
        rows = zip(kinds, outputs, strict=True)
        return [kind.moving(pair_of(output)) for kind, output in rows]

    points = [(x, o.r) for o in players.values() for x in o.points]
    same = functools.reduce(jnp.logical_and, [jnp.all(x == r) for x, r in points])
    found = lax.cond(same, own, body, [type(o).moving(o) for o in players.values()])
    rows = zip(kinds, found, rs, strict=True)
    return [kind.joined(moving, r) for kind, moving, r in rows]


@structural
def remat(step: Step, *operands: Any) -> list:
    """A rematerialised body, rematerialised."""
    params, context = step.params, step.context

    def body(seeds, *operands):
        return _walk_inside(context, seeds, params["jaxpr"], operands)

    body = jax.checkpoint(
        body, prevent_cse=params["prevent_cse"], policy=params["policy"]
    )
    outputs, found = body(dict(context.seeds), *operands)
    context.record(found)
    return outputs


@lazy
@structural
def scan(step: Step, *operands: Any) -> list:
    """A scan, over pairs where a value varies; straight-line code where it says so."""
    if _straight(step, operands):
        return _unrolled(step, operands)
    if step.params["length"] == 0:  # nothing but what is handed through
        return gradient(step, *map(settle, operands))
    params, context = step.params, step.context
    n_consts, n_carry = _compat.scan_sizes(step.eqn)
    consts, carry, xs = _parts(list(map(settle, operands)), n_consts, n_carry)
    moving = _vary(step, operands)[:n_carry]
    seeds = {k: v for k, v in context.seeds.items() if k in dict(tags_of(step.eqn))}
    rows = xs, seeds  # whose length may be symbolic

    def body(carry, row):
        xs, seeds = row
        operands = [*consts, *carry, *xs]
        outputs, found = _walk_inside(context, seeds, params["jaxpr"], operands)
        return outputs[:n_carry], (outputs[n_carry:], found)

    def once(carry):
        row = jax.tree.map(lambda leaf: leaf[0], rows)
        return body(carry, row)[0]

    kinds = _kinds(context, once, carry, moving)

    def lifted(carry, row):
        carry, ys = body(carry, row)
        return _lift(carry, kinds), ys

    carry, (ys, found) = lax.scan(
        lifted,
        _lift(carry, kinds),
        rows,
        length=None if jax.tree.leaves(rows) else params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    context.record(found)
    return [*carry, *ys]


_POINTWISE = {*DIFFERENCES, *STEPS, P.broadcast_in_dim_p}


def _straight(step: Step, operands: Sequence) -> bool:
    """Whether a scan is elementwise, over fixed rows, and asks to be unrolled.

    jnp.polyval is such a scan. As straight-line code a polynomial of one pair is part
    of an activation, so that where an outer `where` does not take it (far from its
    own domain, say, where it overflows) its slope plays no part.
    """
    n_consts, n_carry = _compat.scan_sizes(step.eqn)
    jaxpr, _ = _compat.open_jaxpr(step.params["jaxpr"])
    length = step.params["length"]
    return (
        isinstance(length, int)  # and not symbolic
        and 1 <= length <= step.params["unroll"]
        and len(step.eqn.outvars) == n_carry
        and not any(isinstance(o, Varying) for o in operands[n_consts + n_carry :])
        and _POINTWISE.issuperset(eqn.primitive for eqn in jaxpr.eqns)
    )


def _unrolled(step: Step, operands: Sequence) -> list:
    consts, carry, rows = _parts(operands, *_compat.scan_sizes(step.eqn))
    order = range(step.params["length"])
    for k in reversed(order) if step.params["reverse"] else order:
        xs = [lax.index_in_dim(row, k, keepdims=False) for row in rows]
        carry = _walk(step.context, step.params["jaxpr"], [*consts, *carry, *xs])
    return carry


def while_loop(step: Step, *operands: Any) -> list:
    """A while loop over what varies is refused: it has no reverse derivative."""
    del operands
    raise UnsupportedPrimitiveError(
        "the trip count of a while loop is not known beforehand, and it works on a "
        "value that depends on the attributed input at "
        f"{_compat.source_line(step.eqn)}: there is no way back through it (the "
        "backward rule of a custom_vjp around it is of a gradient). Bound it "
        "(jax.lax.fori_loop with Python numbers for limits, jax.lax.scan), give the "
        "function around it a rule of its own (@jaxlift.custom_rule), or stop the "
        "gradient of what the loop works on."
    )


@structural
def cond(step: Step, index: Any, *operands: Any) -> list:
    """A branch on a fixed index, or on one that varies: a switch on the input."""
    branches = step.params["branches"]
    if isinstance(index, Pair):
        rows = []
        for k, branch in enumerate(branches):
            taken = (index.value == k) | (index.r == k)
            given = [
                given_to_branch(taken, o) if isinstance(o, Pair) else o
                for o in operands
            ]
            with step.context.where(index.value == k):
                outputs = _walk(step.context, branch, given)
                rows.append([settle(output) for output in outputs])
        return [choose(index, cases, lax.select_n) for cases in zip(*rows, strict=True)]

    kinds = _kinds_of(_vary(step, [index, *operands]))

    def walked(branch):
        return lambda *operands: _walk_apart(step.context, branch, operands)

    functions = [walked(branch) for branch in branches]
    if step.context.opens_splits:
        for function in functions:
            kinds = _joined(kinds, jax.eval_shape(function, *operands))

    def lifted(function):
        return lambda *operands: _lift(function(*operands), kinds)

    return lax.switch(index, [lifted(function) for function in functions], *operands)


@structural
def shard_map(step: Step, *operands: Any) -> list:
    """A body mapped over the shards of a mesh."""
    params = step.params

    def body(*operands):
        return _walk_apart(step.context, params["jaxpr"], operands)

    mapped = jax.shard_map(
        body,
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=list(params["out_specs"]),
        axis_names=params["newly_manual_axes"],
        check_vma=params["check_vma"],
    )
    return mapped(*operands)


@lazy
def tag(step: Step, operand: Any) -> Any:
    """`checkpoint_name`: hand out the value, and let it be differentiated by."""
    name, context = step.params["name"], step.context
    if name not in context.tags:
        return operand
    operand = settle(operand)
    if name in context.seeds:
        operand = pair_of(operand).seeded(context.seeds[name])
    context.record({name: operand})
    return operand


def observe(step: Step, *operands: Any) -> list:
    """An effect (debug.print, a check): once, at the input, if it gets there."""
    values = [stopped(operand) for operand in operands]
    if not step.context.taken:
        return step.bind(*values)
    taken = functools.reduce(jnp.logical_and, step.context.taken)
    return lax.cond(taken, step.bind, lambda *_: [], *values)


# --------------------------------------------------------- what varies, in which form


def _vary(step: Step, operands: Sequence) -> list[bool]:
    """Which outputs vary."""
    varies = [isinstance(operand, Varying) for operand in operands]
    return outputs_that_vary(step.eqn, varies, step.context.seeds)


def _kinds_of(moving: Sequence[bool]) -> list:
    """The poorest kind for what varies."""
    return [Pair if moves else None for moves in moving]


def _lift(values: Any, kinds: Sequence[type[Pair] | None]) -> list:
    """Values in the form that a loop carries: pairs of a kind where they vary."""
    return [
        value if kind is None else kind.of(pair_of(value))
        for value, kind in zip(values, kinds, strict=True)
    ]


def _kinds(context: Context, once: Any, carry: Sequence, moving: Sequence) -> list:
    """The kind in which each carried value can stay: plain, a pair, a split."""
    kinds = _joined(_kinds_of(moving), carry)
    while context.opens_splits and Pair in kinds:
        before, kinds = kinds, _joined(kinds, jax.eval_shape(once, _lift(carry, kinds)))
        if kinds == before:
            break
    return kinds


def _joined(kinds: Sequence, values: Sequence) -> list:
    """The richer of each kind and that of a value, where it varies at all."""

    def join(kind, value):
        richer = kind and isinstance(value, Pair) and value.rank > kind.rank
        return type(value) if richer else kind

    return [join(*row) for row in zip(kinds, values, strict=True)]


def _parts(values: Sequence, first: int, second: int) -> tuple[list, list, list]:
    values = list(values)
    return values[:first], values[first : first + second], values[first + second :]
