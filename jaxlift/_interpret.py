"""Evaluate a jaxpr at an input and at a reference side by side.

The loop knows nothing of mathematics: an equation whose operands are all fixed is
evaluated once, as it stands; any other is handed to the rule that the table has for
its primitive. A rule is a function `rule(step, *operands)` returning the equation's
output, or the list of its outputs where it has several. Operands are fixed arrays and
`Pair`s; a rule marked `lazy` also gets `Piece`s as they are. Outputs are pairs or
pieces; those of a rule marked `structural` may be fixed arrays, and one that depends on
none of the operands that vary is a fixed array, whatever the rule made of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from jax.extend import core

from jaxlift import _compat
from jaxlift._dependence import outputs_that_vary
from jaxlift._pieces import settle
from jaxlift._values import Varying, at_reference, is_discrete

Rule = Callable[..., Any]
Rules = Mapping[core.Primitive, Rule]


class UnsupportedPrimitiveError(NotImplementedError):
    """A function applies a primitive without a rule to a value that varies.

    The message names the primitive, the line of code, and what can be done.
    """


def table(*rules: Rules) -> Rules:
    """An immutable rule table; of several rules for a primitive the last one counts.

    Extend it with `|`: `RESCALE | {primitive: rule}`.
    """
    merged: dict = {}
    for part in rules:
        merged |= part
    return types.MappingProxyType(merged)


def scoped(rules: Rules, scopes: Mapping[str, Rules]) -> Rules:
    """A table that differs by part of a model.

    Args:
      rules: the table that holds everywhere else.
      scopes: name scope to table, or to an edit of the table outside. A scope is a
        name that `jax.named_scope` gives, as flax does for every module (`"Dense_0"`,
        `"encoder/layer_2"`); of several that fit, the last one given counts.

    Returns:
      A rule table.

    Example:
      >>> import jaxlift
      >>> rules = jaxlift.scoped(jaxlift.RESCALE, {"head": jaxlift.REVEAL_CANCEL})
      >>> len(rules) == len(jaxlift.RESCALE)
      True
    """
    tables = (rules, *scopes.values())

    def choice(primitive):
        default = rules.get(primitive)

        def rule(step: Step, *operands: Any) -> Any:
            place = "/" + "/".join(re.findall(r"[^/()]+", _compat.name_scope())) + "/"
            fitting = [t for scope, t in scopes.items() if f"/{scope}/" in place]
            chosen = fitting[-1].get(primitive, default) if fitting else default
            if chosen is None:
                raise unsupported(step.eqn)
            return apply(chosen, step, operands)

        choices = [t.get(primitive) for t in tables]
        rule.opens_split = any(map(opens_split, choices))  # pyright: ignore
        rule.lazy = any(map(is_lazy, choices))  # pyright: ignore
        return structural(rule)  # what it hands on has been looked at

    return table({primitive: choice(primitive) for t in tables for primitive in t})


def opens_split(rule: Rule | None) -> bool:
    """Whether a rule keeps positive and negative parts apart."""
    return getattr(rule, "opens_split", False)


def apply(rule: Rule, step: Step, operands: Sequence) -> Any:
    """Call a rule with its operands in the form that it takes."""
    outputs = rule(step, *(operands if is_lazy(rule) else map(settle, operands)))
    if not getattr(rule, "structural", False) and any(map(_varies, operands)):
        _check_that_they_vary(step, outputs)
    return outputs


def _varies(value: Any) -> bool:
    return isinstance(value, Varying)


def _check_that_they_vary(step: Step, outputs: Any) -> None:
    """What is a plain array takes its tangent along, and would pass back a gradient."""
    for output in outputs if step.primitive.multiple_results else [outputs]:
        fixed = hasattr(output, "dtype") and is_discrete(output)
        if not _varies(output) and not fixed:
            raise TypeError(
                f"the rule for '{step.primitive}' returned {output!r}. What depends on "
                "the attributed input is a value at the input and one at the "
                "reference: return type(operand)(value, reference), or what a rule of "
                "the table returns (jaxlift.RESCALE[primitive](step, *operands)). A "
                "constant is the same at both, jax.lax.stop_gradient(value)"
            )


def lazy(rule: Rule) -> Rule:
    """Mark a rule that takes lazy activations as they are, not made into pairs."""
    rule.lazy = True  # pyright: ignore[reportFunctionMemberAccess]
    return rule


def is_lazy(rule: Rule | None) -> bool:
    """Whether a rule takes lazy activations as they are."""
    return getattr(rule, "lazy", False)


def structural(rule: Rule) -> Rule:
    """Mark a rule of structure: a body, a stop. What it returns may not vary.

    Any other output of a step of what varies does, though it may pass nothing back.
    """
    rule.structural = True  # pyright: ignore[reportFunctionMemberAccess]
    return rule


@dataclasses.dataclass(frozen=True)
class Step:
    """One equation, as a rule sees it."""

    eqn: core.JaxprEqn
    context: Context

    @property
    def primitive(self) -> core.Primitive:
        """The primitive that the equation applies."""
        return self.eqn.primitive

    @property
    def params(self) -> dict:
        """The equation's parameters."""
        return self.eqn.params

    @property
    def among_floats(self) -> Step:
        """The same step of booleans or integers as one of floats."""
        params = _compat.among_floats(self.params)
        return dataclasses.replace(self, eqn=self.eqn.replace(params=params))

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of the equation's first output."""
        return self.eqn.outvars[0].aval.shape  # pyright: ignore

    @property
    def out_dtype(self) -> Any:
        """The dtype of the equation's first output."""
        return self.eqn.outvars[0].aval.dtype  # pyright: ignore

    def bind(self, *operands: Any) -> Any:
        """The equation evaluated at these arrays: its output, or list of outputs."""
        outputs = _compat.bind(self.primitive, self.params, *operands)
        return outputs if self.primitive.multiple_results else outputs[0]


class Context:
    """What holds for a whole walk: the rules, and the tags that were asked for.

    `tags` are the names of `checkpoint_name` to be found; `seeds` maps some of them
    to two arrays of zeros, added to either part of the tagged value so that it can be
    differentiated by them; `found` collects the tagged values. `origins` remembers
    how values came about, for rules that recognise a form of several equations
    (softmax): the innermost equation, of values of this walk alone, so that no form is
    recognised across the border of a scan or a remat. A walk of such a body `is_inner`:
    what becomes of its outputs is not known to it.
    """

    def __init__(
        self,
        rules: Rules,
        tags: frozenset[str] = frozenset(),
        seeds: Mapping[str, Any] = types.MappingProxyType({}),
    ):
        self.rules, self.tags, self.seeds = rules, tags, seeds
        self.found: dict[str, Any] = {}
        self.in_custom_jvp = self.is_inner = False
        self.origins: dict[int, Origin] = {}
        # What is being walked, outermost first: jaxpr, constants, equation at hand.
        self.frames: list[tuple[core.Jaxpr, Sequence, core.JaxprEqn]] = []
        self.taken: list[Any] = []  # whether the input takes the branches around

    @functools.cached_property
    def opens_splits(self) -> bool:
        """Whether a rule of the table keeps positive and negative parts apart."""
        return any(map(opens_split, self.rules.values()))

    def inner(self, seeds: Mapping[str, Any]) -> Context:
        """The context of a body that is traced on its own, a scan's say."""
        inner = Context(self.rules, self.tags, seeds)
        inner.is_inner = True
        inner.in_custom_jvp, inner.taken = self.in_custom_jvp, [*self.taken]
        return inner

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """While a body is traced on its own: how its values came about is forgotten.

        Rules that refer to a context live on in what was traced, and would keep them.
        """
        before, self.origins = self.origins, self.origins.copy()
        try:
            yield
        finally:
            self.origins = before

    @contextlib.contextmanager
    def where(self, taken: Any) -> Iterator[None]:
        """While a branch is walked that the input takes only where it says so."""
        self.taken.append(taken)
        try:
            yield
        finally:
            self.taken.pop()

    @contextlib.contextmanager
    def walking(
        self, jaxpr: core.Jaxpr, consts: Sequence, eqn: core.JaxprEqn
    ) -> Iterator[None]:
        """While an equation is evaluated."""
        self.frames.append((jaxpr, consts, eqn))
        try:
            yield
        finally:
            self.frames.pop()

    def record(self, found: Mapping[str, Any]) -> None:
        """Keep tagged values; a name that stands for two values is refused."""
        for name in found.keys() & self.found.keys():
            raise ValueError(
                f"the name '{name}' tags more than one value: give each its own name "
                "to ask for it"
            )
        self.found |= found

    def origin(self, value: Any) -> Origin | None:
        """The equation that made a value, if it is one of those remembered."""
        return self.origins.get(id(value))


class Origins(Protocol):
    """What knows how values came about."""

    def origin(self, value: Any) -> Origin | None:
        """The equation that made a value, or None."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """How a value came about. Holds the value, so that its id stays its own."""

    value: Any
    eqn: core.JaxprEqn
    operands: Sequence[Any]
    position: int = 0


class Producers:
    """The origins of a jaxpr's variables, whose values are not known."""

    def __init__(self, jaxpr: core.Jaxpr):
        self.by_variable = {
            variable: Origin(variable, eqn, [*map(_known, eqn.invars)], k)
            for eqn in jaxpr.eqns
            for k, variable in enumerate(eqn.outvars)
        }

    def origin(self, value: Any) -> Origin | None:
        """The equation that makes a variable."""
        return self.by_variable.get(value) if isinstance(value, core.Var) else None


def _known(atom: Any) -> Any:
    return atom.val if isinstance(atom, core.Literal) else atom


def interpret(
    context: Context, jaxpr: core.Jaxpr, consts: Sequence, operands: Sequence
) -> list:
    """The outputs of a jaxpr, some operands being `Varying`."""
    env: dict[core.Var, Any] = {}
    env |= zip(jaxpr.constvars, consts, strict=True)
    env |= zip(jaxpr.invars, operands, strict=True)

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    live = _live(context, jaxpr)
    settled = _settled(context, live)
    for eqn in live:
        with _compat.context_of(eqn), context.walking(jaxpr, consts, eqn):
            outputs = _evaluate(context, eqn, [read(atom) for atom in eqn.invars])
            for var, output in zip(eqn.outvars, outputs, strict=True):
                env[var] = output
                if var in settled:
                    settle(output)
    return [read(atom) for atom in jaxpr.outvars]


def _live(context: Context, jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """The equations that an output, an effect or a tag depends on, in order."""
    needed = {atom for atom in jaxpr.outvars if isinstance(atom, core.Var)}
    live = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or needed.intersection(eqn.outvars) or _tagged(context, eqn):
            live.append(eqn)
            needed |= {atom for atom in eqn.invars if isinstance(atom, core.Var)}
    return live[::-1]


def _settled(context: Context, eqns: Sequence[core.JaxprEqn]) -> set[core.Var]:
    """The variables that some equation takes as pairs, not as lazy activations.

    They are made into pairs where they come about, not where they are first used, so
    that tangents are in the order of the program and cotangents are added up as those
    of a gradient are. The order counts: a sum whose last term is a broadcast (the way
    back through a mean) XLA does not store but repeats for every use of it, in a stack
    of layer norms all that was added up before as well.
    """
    return {
        atom
        for eqn in eqns
        if not is_lazy(context.rules.get(eqn.primitive))
        for atom in eqn.invars
        if isinstance(atom, core.Var)
    }


def _tagged(context: Context, eqn: core.JaxprEqn) -> bool:
    return bool(context.tags and context.tags & {name for name, _ in tags_of(eqn)})


def tags_of(eqn: core.JaxprEqn) -> list[tuple[str, core.JaxprEqn]]:
    """The (name, equation) of every `checkpoint_name` in an equation and its bodies."""
    if eqn.primitive.name == "name":
        return [(eqn.params["name"], eqn)]
    bodies = core.jaxprs_in_params(eqn.params)
    return [tag for body in bodies for inner in body.eqns for tag in tags_of(inner)]


def _evaluate(context: Context, eqn: core.JaxprEqn, operands: list) -> list:
    varies = [isinstance(operand, Varying) for operand in operands]
    observed = bool(context.taken and eqn.effects)
    if not any(varies) and not observed and not _tagged(context, eqn):
        outputs = _compat.bind(eqn.primitive, eqn.params, *operands)
    else:
        rule = context.rules.get(eqn.primitive)
        if rule is None:
            raise unsupported(eqn)
        outputs = apply(rule, Step(eqn, context), operands)
        outputs = outputs if eqn.primitive.multiple_results else [outputs]
        moving = outputs_that_vary(eqn, varies, context.seeds)
        outputs = [
            output if moves else at_reference(settle(output))
            for output, moves in zip(outputs, moving, strict=True)
        ]
    for k, output in enumerate(outputs):
        # What comes out as it went in (a constant that is stopped) was not made here.
        if all(output is not operand for operand in operands):
            # A call only hands on what its body made.
            context.origins.setdefault(id(output), Origin(output, eqn, operands, k))
    return outputs


def unsupported(eqn: core.JaxprEqn, part: str = "") -> UnsupportedPrimitiveError:
    """The error that names a primitive without a rule, or a part of it."""
    name = eqn.primitive.name
    return UnsupportedPrimitiveError(
        f"no rule for {part}the primitive '{name}', applied to a value that depends on "
        f"the attributed input at {_compat.source_line(eqn)}. Give it one, "
        f"rules=RESCALE | {{{name}_p: rule}}; or wrap the call, @jaxlift.custom_rule; "
        "or keep the attributed input away from it (jax.lax.stop_gradient). jaxlift "
        "never falls back to the gradient silently."
    )
