"""`custom_rule`: a function of one's own, explained by a rule of one's own.

The function becomes one equation of a primitive that belongs to this module, so that it
reaches the interpreter whole, from inside `jit`, `vmap` or a scan; everywhere else it
is the function that it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from jaxlift import _compat
from jaxlift._interpret import Context, Step, UnsupportedPrimitiveError, interpret
from jaxlift._values import (
    Pair,
    at_reference,
    is_discrete,
    still,
    stopped,
)


class custom_rule:  # noqa: N801 (a decorator, as jax.custom_vjp)
    """A function that is explained by its own rule, whatever it is made of.

    What `jax.custom_vjp` is to `jax.grad`: for a kernel, a foreign call or a callback
    that jaxlift refuses to look into, or for a step whose multipliers are known. In
    values, `jit`, `vmap` and gradients the function stays as it was.

    Args:
      fun: a JAX function of positional arguments (trees of arrays). As with
        `jax.custom_vjp`, what the rule needs is an argument, not closed over.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> @jaxlift.custom_rule
      ... def cube(x):
      ...     return jax.pure_callback(lambda x: x**3, x, x)
      >>> @cube.defrule
      ... def multipliers(ct, inputs, references):
      ...     (x,), (r,) = inputs, references
      ...     return (ct * (x * x + x * r + r * r),)
      >>> jaxlift.deeplift(cube)(jnp.float32(2.0), 1.0)
      Array(7., dtype=float32)
    """

    def __init__(self, fun: Callable):
        if not callable(fun):
            raise TypeError(f"expected a function, got {type(fun).__name__}: {fun!r}")
        functools.update_wrapper(self, fun)
        self.fun = fun
        self.rule: Callable | None = None

    def defrule(self, rule: Callable) -> Callable:
        """Give the function its rule; may be used as a decorator.

        Args:
          rule: `rule(ct, inputs, references)`. `inputs` and `references` are the tuples
            of arguments at the two points (an argument that does not depend on the
            attributed input is the same in both), `ct` is like the output. It returns a
            tuple of multipliers like `inputs` (None for an argument without any),
            linear in `ct`, such that `sum(m * (x - r))` over all arguments is
            `sum(ct * (fun(*inputs) - fun(*references)))`. To explain a kernel as the
            plain function that it computes, return
            `jaxlift.vjp(plain, inputs, references)[2](ct)`.

        Returns:
          The rule.
        """
        self.rule = rule
        return rule

    def __call__(self, *args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)

        def flat(*leaves):
            return self.fun(*jax.tree.unflatten(tree, leaves))

        closed, shape = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        jaxpr, consts = _compat.open_jaxpr(closed)
        n_consts, out_tree = len(consts), jax.tree.structure(shape)

        def function(*operands):
            return interpret(
                Context({}), jaxpr, operands[:n_consts], operands[n_consts:]
            )

        def rule(cts, xs, rs):
            """For flat operands, the constants first: these have no multipliers."""
            inputs, references = (
                jax.tree.unflatten(tree, side[n_consts:]) for side in (xs, rs)
            )
            ct = jax.tree.unflatten(out_tree, cts)
            found = self._multipliers(ct, inputs, references)
            return [jnp.zeros_like(x) for x in xs[:n_consts]] + found

        outputs = custom_rule_p.bind(
            *consts, *leaves, function=function, rule=rule, name=self._name
        )
        return jax.tree.unflatten(out_tree, outputs)

    @property
    def _name(self) -> str:
        return getattr(self, "__name__", repr(self.fun))

    def _multipliers(self, ct: Any, inputs: tuple, references: tuple) -> list:
        if self.rule is None:
            raise UnsupportedPrimitiveError(
                f"the custom_rule function '{self._name}' has no rule: give it one "
                f"with {self._name}.defrule(rule)"
            )
        found = self.rule(ct, inputs, references)
        wanted = f"the rule of '{self._name}' must return a tuple of multipliers, one"
        if not isinstance(found, (tuple, list)) or len(found) != len(inputs):
            raise TypeError(
                f"{wanted} for each of its {len(inputs)} argument(s), not {found!r}"
            )
        filled = [
            jax.tree.map(jnp.zeros_like, x) if m is None else m
            for m, x in zip(found, inputs, strict=True)
        ]
        shapes = [jax.tree.map(jnp.shape, side) for side in (filled, list(inputs))]
        if shapes[0] != shapes[1]:
            raise TypeError(
                f"{wanted} like each argument: shapes {shapes[1]}, not {shapes[0]}"
            )
        return jax.tree.leaves(filled)


# ---------------------------------------------------------------- the primitive

custom_rule_p = core.Primitive("custom_rule")
custom_rule_p.multiple_results = True


def _evaluated(*operands: Any, function: Callable, rule: Callable, name: str) -> list:
    del rule, name
    return function(*operands)


def _shapes(*avals: Any, function: Callable, **_: Any) -> list:
    return jax.make_jaxpr(function)(*avals).out_avals


def _jvp(primals: Sequence, tangents: Sequence, *, function: Callable, **_: Any):
    moving = [k for k, t in enumerate(tangents) if not isinstance(t, ad.Zero)]

    def moved(*values):
        at = dict(zip(moving, values, strict=True))
        return function(*(at.get(k, p) for k, p in enumerate(primals)))

    return jax.jvp(moved, [primals[k] for k in moving], [tangents[k] for k in moving])


def _batch(operands: Sequence, dims: Sequence, *, function, rule, name):
    """Both the function and its rule, vmapped; a fixed operand's cotangents add up."""
    axes = tuple(dims)  # None: not mapped

    def batched(*operands):
        return jax.vmap(function, in_axes=axes)(*operands)

    def batched_rule(cts, xs, rs):
        found = jax.vmap(rule, in_axes=(0, list(axes), list(axes)))(
            cts, list(xs), list(rs)
        )
        return [
            m.sum(0) if axis is None else jnp.moveaxis(m, 0, axis)
            for m, axis in zip(found, axes, strict=True)
        ]

    outputs = custom_rule_p.bind(
        *operands, function=batched, rule=batched_rule, name=name
    )
    return outputs, [0] * len(outputs)


custom_rule_p.def_impl(_evaluated)
custom_rule_p.def_abstract_eval(_shapes)
mlir.register_lowering(custom_rule_p, mlir.lower_fun(_evaluated, multiple_results=True))
ad.primitive_jvps[custom_rule_p] = _jvp
batching.primitive_batchers[custom_rule_p] = _batch


# ------------------------------------------------------------ how it is explained


def own_rule(step: Step, *operands: Any) -> list:
    """A function of the user's with a rule of the user's."""
    xs, rs = map(stopped, operands), map(at_reference, operands)
    xs, rs = list(xs), list(rs)
    ys, y0s = step.bind(*xs), step.bind(*rs)
    moving = [
        k
        for k, o in enumerate(operands)
        if isinstance(o, Pair) and not is_discrete(o.r)
    ]
    sources = [operands[k].source for k in moving]
    ys: Any = _pulled(step.params["rule"], tuple(moving), ys, (xs, rs), sources)
    return [
        still(y, y0) if is_discrete(y0) else Pair(y, y0)
        for y, y0 in zip(ys, y0s, strict=True)
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pulled(rule, moving, values, ends, sources):
    """`values`, whose cotangents reach the `sources` as the rule says."""
    del rule, moving, ends, sources
    return values


def _forward(rule, moving, values, ends, sources):
    del rule, moving
    return values, (ends, sources)


def _backward(rule, moving, kept, cts):
    (xs, rs), sources = kept
    found = rule(cts, xs, rs)
    back = [found[k].astype(s.dtype) for k, s in zip(moving, sources, strict=True)]
    return None, None, back


_pulled.defvjp(_forward, _backward)
