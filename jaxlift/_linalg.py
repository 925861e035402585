"""Rules for linear algebra: solving exactly, decompositions along the path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as P
from jax.tree_util import Partial

from jaxlift import _compat
from jaxlift._interpret import Context, Step, interpret, unsupported
from jaxlift._pieces import pair_of, settle
from jaxlift._rules import path
from jaxlift._values import (
    Pair,
    at_input,
    at_reference,
    attach,
    stopped,
)


def linear_solve(step: Step, *operands: Any) -> list:
    """The solution of `A y = b`, exactly, without quadrature.

    From `A y = b` and `A0 y0 = b0`, with the residual `rho(v) = b - A v`,
    `y - y0 = A^-1 (rho(y0) - rho0(y0)) = A0^-1 (rho(y) - rho0(y))`: the multipliers are
    the mean of the two, each the derivative of a residual in `A` and `b` at a fixed
    `v`, solved for.
    """
    lengths, jaxprs = step.params["const_lengths"], step.params["jaxprs"]
    sizes = (lengths.matvec, lengths.vecmat, lengths.solve, lengths.transpose_solve)
    n_matvec, n_consts = lengths.matvec, sum(sizes)
    consts, b = list(operands[:n_consts]), list(operands[n_consts:])
    xs = [stopped(o) for o in consts]
    # JAX decomposes a stopped A: at the reference it has to be the reference's own.
    known: dict[int, Any] = {}
    rs = [_thawed(step.context, o, known) for o in consts]
    y = step.bind(*xs, *map(stopped, b))
    y0 = step.bind(*rs, *map(at_reference, b))
    jaxpr, inner = _compat.open_jaxpr(jaxprs.matvec)

    def residual(v):
        outputs = interpret(step.context, jaxpr, inner, [*consts[:n_matvec], *v])
        return [
            jnp.asarray(at_input(right)) - pair_of(settle(left)).x
            for right, left in zip(b, outputs, strict=True)
        ]

    def tangent(sides, *tangents):
        k = len(tangents) // 2
        solved = (
            step.bind(*side, *ts)
            for side, ts in zip(sides, (tangents[:k], tangents[k:]), strict=True)
        )
        return [0.5 * (u + v) for u, v in zip(*solved, strict=True)]

    moved = attach(y, Partial(tangent, (xs, rs)), residual(y0) + residual(y))
    return [Pair(*sides) for sides in zip(moved, y0, strict=True)]


def _thawed(context: Context, value: Any, known: dict[int, Any]) -> Any:
    """A value at the reference, also of what was computed from a stopped one.

    `known` are those found before, by their ids: what is used twice is made once.
    """
    if isinstance(value, Pair):
        return value.r
    origin = context.origin(value)
    if origin is None:
        return value
    if id(value) in known:
        return known[id(value)]
    before = [settle(operand) for operand in origin.operands]
    operands = [_thawed(context, operand, known) for operand in before]
    if origin.eqn.primitive is P.stop_gradient_p:
        (thawed,) = operands
    elif all(a is b for a, b in zip(operands, before, strict=True)):
        thawed = value
    else:
        outputs = _compat.bind(origin.eqn.primitive, origin.eqn.params, *operands)
        thawed = outputs[origin.position]
    known[id(value)] = thawed
    return thawed


def lu(step: Step, operand: Pair) -> list:
    """A triangular decomposition along the path, in the same order of rows throughout.

    Not inside a function that has a derivative of its own, a determinant: that does
    not depend on the order of rows, which the two points may have each their own.
    """
    if step.context.in_custom_jvp:
        raise unsupported(step.eqn)
    return path(step, operand)


def eigh(step: Step, operand: Pair) -> list:
    """Eigenvalues and eigenvectors by the path rule, in the gauge of the input."""

    def in_gauge(at_input: Sequence) -> Callable:
        anchor = step.bind(*at_input)[0]

        def bind(matrix):
            vectors, values = step.bind(matrix)
            return [vectors * _gauge(anchor, vectors)[..., None, :], values]

        return bind

    return path(step, operand, binder=in_gauge)


def svd(step: Step, operand: Pair) -> list:
    """Singular values and vectors by the path rule, in the gauge of the input."""

    def in_gauge(at_input: Sequence) -> Callable:
        anchor = step.bind(*at_input)

        def bind(matrix):
            outputs = step.bind(matrix)
            if len(outputs) == 1:
                return outputs
            s, u, vh = outputs
            gauge = _gauge(anchor[1], u)[..., : s.shape[-1]]

            def padded(size):
                rest = [(0, 0)] * (gauge.ndim - 1) + [(0, size - gauge.shape[-1])]
                return jnp.pad(gauge, rest, constant_values=1)

            u = u * padded(u.shape[-1])[..., None, :]
            return [s, u, vh * jnp.conj(padded(vh.shape[-2]))[..., :, None]]

        return bind

    return path(step, operand, binder=in_gauge)


def _gauge(anchor: Any, vectors: Any) -> Any:
    """The sign (or phase) that turns each column towards the anchor's."""
    overlap = lax.stop_gradient(jnp.sum(anchor * jnp.conj(vectors), -2))
    size = abs(overlap)
    return jnp.where(size == 0, 1, overlap / jnp.where(size == 0, 1, size))
