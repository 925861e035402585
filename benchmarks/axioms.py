"""Which axioms each method satisfies: proofs, and counter-examples found by search.

    python benchmarks/axioms.py             # prints the tables
    python benchmarks/axioms.py --write     # and writes them into docs/axioms.md
    python benchmarks/axioms.py --short     # fewer cases: a look

All functions are instances of one small program, two layers of activations and what skips
them,

    h = F(x W1 + b1),   k = F(x U2 + h W2 + b2),   y = x u + h v + k w,

where `F` is relu or softplus, with small integers as parameters, input and reference, so
that each method is compiled once for each `F`. An axiom turns drawn integers into cases
that meet its premise, and says by how much the attributions violate it. A violation counts
if it is there, too, when input and reference are moved a little, one way or the other:
what happens at a kink alone, where there is no gradient, is not held against a method.
(Continuity is about the kinks.) The simplest violation is then shrunk, number by number,
while it remains one.
"""
# ruff: noqa: E501 (the tables of axioms and reasons)

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxlift

PAGE = Path(__file__).parents[1] / "docs" / "axioms.md"
MARKERS = "<!-- tables: begin -->", "<!-- tables: end -->"
INPUTS, FIRST, SECOND = 3, 2, 1  # of a network; a sum of two has twice the units
BATCH = 512
EXACT, CLEAR = 1e-9, 0.2  # relative violations: rounding below, counter-examples above
STEPS = 256  # of integrated gradients: a kink on the path costs about 1 / STEPS
ACTIVATIONS = {"relu": jax.nn.relu, "softplus": jax.nn.softplus}

# ------------------------------------------------------------------- functions


class Net(NamedTuple):
    """Parameters, with any leading axes."""

    W1: np.ndarray
    b1: np.ndarray
    U2: np.ndarray
    W2: np.ndarray
    b2: np.ndarray
    u: np.ndarray
    v: np.ndarray
    w: np.ndarray


SHAPES = Net(
    (INPUTS, FIRST), (FIRST,), (INPUTS, SECOND), (FIRST, SECOND), (SECOND,),
    (INPUTS,), (FIRST,), (SECOND,),
)  # fmt: skip


def dense(x, w):
    return x @ w


def convolution(x, w):
    """The same product as `dense`, as a convolution whose kernel is all of the input."""
    kernel, dimensions = w[:, None, :], ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(
        x[None, :, None], kernel, (1,), "VALID", dimension_numbers=dimensions
    )[0, 0]


def function(net: Net, activation: Callable, first: Callable = dense) -> Callable:
    """The function of one input that has these parameters."""

    def f(x):
        h = activation(first(x, net.W1) + net.b1)
        k = activation(x @ net.U2 + h @ net.W2 + net.b2)
        return x @ net.u + h @ net.v + k @ net.w

    return f


def zeros(like: Net) -> Net:
    return Net(*map(np.zeros_like, like))


def added(f: Net, g: Net, a=1, b=1) -> Net:
    """`a f + b g`: the units of both, side by side."""
    a, b = (np.asarray(k)[..., None] for k in (a, b))
    side = lambda k, l: np.concatenate([k, l], -1)
    none = np.zeros_like(f.W2)
    blocks = [side(f.W2, none), side(none, g.W2)]
    return Net(
        side(f.W1, g.W1), side(f.b1, g.b1), side(f.U2, g.U2),
        np.concatenate(blocks, -2), side(f.b2, g.b2),
        a * f.u + b * g.u, side(a * f.v, b * g.v), side(a * f.w, b * g.w),
    )  # fmt: skip


def padded(f: Net) -> Net:
    return added(f, zeros(f))


def text(net: Net, activation: str) -> str:
    """The formula, without what is 0."""
    inputs = [f"x{i + 1}" for i in range(INPUTS)]
    first = _units(activation, zip(inputs, net.W1, strict=True), net.b1)
    below = [*zip(inputs, net.U2, strict=True), *zip(first, net.W2, strict=True)]
    second = _units(activation, below, net.b2)
    names, weights = inputs + first + second, [*net.u, *net.v, *net.w]
    return _sum(zip(weights, names, strict=True), 0)


def _units(activation: str, terms: Iterable, biases: np.ndarray) -> list[str]:
    terms = list(terms)
    sums = [_sum([(w[j], name) for name, w in terms], b) for j, b in enumerate(biases)]
    return [f"{activation}({inside})" for inside in sums]


def _sum(terms: Iterable, constant: float) -> str:
    parts = [(w, name) for w, name in terms if w and name != "relu(0)"]
    parts.sort(key=lambda part: part[0] < 0)
    signed = [("+" if w > 0 else "-") + (f"{abs(w):g} " if abs(w) != 1 else "") + name
              for w, name in parts]  # fmt: skip
    if constant or not signed:
        signed.append(f"{constant:+g}")
    whole = " ".join(f"{s[0]} {s[1:]}" for s in signed)
    return whole[2:] if whole[0] == "+" else "-" + whole[2:]


# --------------------------------------------------------------------- methods


def multiplied(rules):
    return lambda f: jaxlift.deeplift(f, rules=rules)


def gradient(f):
    return lambda x, reference: jax.grad(f)(x)


def lrp(f):
    """Its contributions are for the zero reference: cases are moved there."""
    return lambda x, reference: jaxlift.deeplift(f, rules=jaxlift.LRP)(x, 0.0)


def occlusion(f):
    def explain(x, reference):
        one = lambda i: x.at[i].set(reference[i])
        return f(x) - jax.vmap(lambda i: f(one(i)))(jnp.arange(INPUTS))

    return explain


class Method(NamedTuple):
    explain: Callable
    """A function to a function of input and reference."""
    first: Callable = dense
    together: int = BATCH
    """How many cases at once (a batch of kernels is slow on a CPU)."""
    zero_reference: bool = False
    tolerance: float = EXACT


METHODS = {
    "gradient": Method(gradient),
    "gradient x input": Method(multiplied(jaxlift.GRADIENT)),
    "integrated gradients": Method(
        partial(jaxlift.integrated_gradients, steps=STEPS), tolerance=CLEAR
    ),
    "Rescale": Method(multiplied(jaxlift.RESCALE)),
    "RevealCancel": Method(multiplied(jaxlift.REVEAL_CANCEL)),
    "GenomicsDefault": Method(multiplied(jaxlift.GENOMICS_DEFAULT), convolution, 8),
    "guided backprop x input": Method(multiplied(jaxlift.GUIDED_BACKPROP)),
    "DeconvNet x input": Method(multiplied(jaxlift.DECONVNET)),
    "epsilon-LRP": Method(lrp, zero_reference=True),
    "occlusion": Method(occlusion),
}


class Case(NamedTuple):
    """A function, an input and a reference; with a leading axis many."""

    net: Net
    x: np.ndarray
    reference: np.ndarray


class Explained(NamedTuple):
    """What a method answers."""

    attributions: np.ndarray  # (cases, INPUTS)
    y: np.ndarray
    y_reference: np.ndarray


@cache
def compiled(name: str, activation: str) -> Callable:
    method, function_of = METHODS[name], ACTIVATIONS[activation]

    def one(case):
        f = function(case.net, function_of, method.first)
        x, reference = case.x, case.reference
        return Explained(method.explain(f)(x, reference), f(x), f(reference))

    return jax.jit(partial(jax.lax.map, one, batch_size=method.together))


def explained(name: str, activation: str, case: Case) -> Explained:
    """All cases, in batches of one size, so that there is one compilation."""
    count, run = len(case.x), compiled(name, activation)
    rows = np.arange(-(-count // BATCH) * BATCH).reshape(-1, BATCH) % count
    batches = [
        jax.device_get(run(jax.tree.map(lambda a, r=r: a[r] * 1.0, case))) for r in rows
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *batches)


# ---------------------------------------------------------------------- axioms

Draw = dict[str, np.ndarray]


class Axiom(NamedTuple):
    """Draws meet the premise by construction."""

    meaning: str
    shapes: dict[str, tuple]
    """Of the integers that are drawn, by name."""
    cases: Callable[[Draw], list[Case]]
    """What to explain."""
    violation: Callable[[Draw, list[Explained]], np.ndarray]
    """Relative to the size of what is compared."""
    nudges: Callable[[Draw], list[list[tuple]]]
    """Small shifts of (input, reference). A violation must stay under one of each list."""
    show: Callable[[Shown], str]
    """One violation in words."""
    tolerance: float = EXACT
    constructed: tuple[dict, ...] = ()


POINTS = {"x": (INPUTS,), "reference": (INPUTS,)}
OFF = np.array([0.0011, 0.0017, 0.0023]), np.array([0.0013, -0.0019, 0.0029])
NET = SHAPES._asdict()


def net_of(draw: Draw, prefix: str = "") -> Net:
    return Net(*(draw[prefix + name] for name in Net._fields))


def off_kinks(draw: Draw, shared: int = 0) -> list[list[tuple]]:
    """No shift, and two opposite ones by which what was equal remains equal."""
    away = [np.array([v[max(i, shared)] for i in range(INPUTS)]) for v in OFF]
    moved = away[1] * (draw["x"] != draw["reference"])
    return [[(s * (away[0] + moved), s * away[0])] for s in (0, 1, -1)]


def relative(difference: np.ndarray, *scales: np.ndarray) -> np.ndarray:
    size = [abs(s).reshape(len(s), -1).max(1) for s in scales]
    return abs(difference).reshape(len(difference), -1).max(1) / np.maximum(
        np.max(size, 0), 1
    )


class Shown(NamedTuple):
    """One violation: the draw, its cases, their formulas, and the answers."""

    draw: Draw
    cases: list[Case]
    formulas: list[str]
    answers: list[Explained]

    @property
    def points(self) -> str:
        case = self.cases[0]
        return f"x = {numbers(case.x)}, reference = {numbers(case.reference)}"

    @property
    def attributed(self) -> list[str]:
        pairs = zip(self.formulas, self.answers, strict=True)
        return [f"`{formula}`: {numbers(e.attributions)}" for formula, e in pairs]


def numbers(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in np.round(values, 5) + 0.0) + ")"


def show_one(shown: Shown) -> str:
    (e,) = shown.answers
    change = f"f(x) - f(reference) = {round(e.y - e.y_reference, 9):.4g}"
    return f"f = `{shown.formulas[0]}`, {shown.points}, {change}: {numbers(e.attributions)}"


def show_two(shown: Shown) -> str:
    f, g = shown.attributed
    return f"{shown.points}, f = {f}; the same function as {g}"


def show_sum(shown: Shown) -> str:
    f, g, both = shown.attributed
    a, b = shown.draw["ab"]
    return f"{shown.points}, f = {f}; g = {g}; {a:g} f + {b:g} g = {both}"


def show_jump(shown: Shown) -> str:
    feature = shown.draw["feature"] % INPUTS + 1
    before, after = (numbers(e.attributions) for e in shown.answers)
    return (
        f"f = `{shown.formulas[0]}`, {shown.points}: {before} with x{feature} just below, "
        f"{after} just above"
    )


def one_case(draw: Draw) -> list[Case]:
    return [Case(padded(net_of(draw)), draw["x"], draw["reference"])]


# Only x1 moves.
def only_first_moves(draw: Draw) -> list[Case]:
    (case,) = one_case(draw)
    kept = np.concatenate([case.x[:, :1], case.reference[:, 1:]], 1)
    return [case._replace(x=kept)]


def nudge_first(draw: Draw) -> list[list[tuple]]:
    kept = {"x": np.where(np.arange(INPUTS) > 0, draw["reference"], draw["x"])}
    return off_kinks(draw | kept)


def missed(draw: Draw, answers: list[Explained]) -> np.ndarray:
    (e,) = answers
    change = abs(e.y - e.y_reference)
    return np.where(abs(e.attributions[:, 0]) < EXACT, change, 0)


# x3 has no wire.
def unwired(draw: Draw) -> list[Case]:
    (case,) = one_case(draw)
    w1, u2, u = (np.array(a) for a in (case.net.W1, case.net.U2, case.net.u))
    w1[:, 2], u2[:, 2], u[:, 2] = 0, 0, 0
    return [case._replace(net=case.net._replace(W1=w1, U2=u2, u=u))]


# Two programs of one function, from affine forms a, b, c of the input.
FORMS = {"a": (INPUTS + 1,), "b": (INPUTS + 1,), "c": (INPUTS + 1,), "identity": ()}


def _net(first: list, second: tuple, u, v, w) -> Net:
    """From columns: units of the first layer, (form, weights of them) of the second."""
    form, weights = second
    batch = len(form)
    wide = lambda rows: np.stack([np.broadcast_to(r, batch) for r in rows], -1)
    return Net(
        np.stack([f[:, :-1] for f in first], -1),
        np.stack([f[:, -1] for f in first], -1),
        form[:, :-1, None],
        wide(weights)[..., None],
        form[:, -1:],
        u[:, :-1],
        wide(v),
        wide([w]),
    )


def _identities(a, b, c) -> list[tuple[Net, Net]]:
    o = np.zeros_like(a)
    return [
        # max(max(a, b), c) = c + relu(b - c + relu(a - b)); the constant of c is left out
        # max(a, max(b, c)) = c + relu(b - c) + relu(a - c - relu(b - c))
        (
            _net([a - b, o], (b - c, (1, 0)), c, (0, 0), 1),
            _net([b - c, o], (a - c, (-1, 0)), c, (1, 0), 1),
        ),
        # relu(a) + relu(b) = a + relu(-a) + relu(b), inside a relu
        (
            _net([a, b], (c, (1, 1)), o, (0, 0), 1),
            _net([-a, b], (c + a, (1, 1)), o, (0, 0), 1),
        ),
        # relu(a) = a + relu(-a)
        (
            _net([a, o], (o, (0, 0)), o, (1, 0), 0),
            _net([-a, o], (o, (0, 0)), a, (1, 0), 0),
        ),
        # relu(b + relu(a) - relu(a)) = relu(b)
        (
            _net([a, a], (b, (1, -1)), o, (0, 0), 1),
            _net([o, o], (b, (0, 0)), o, (0, 0), 1),
        ),
    ]


def two_programs(draw: Draw, forms=lambda form: form) -> tuple[Net, Net]:
    made = _identities(*(forms(draw[k]) for k in "abc"))
    which = draw["identity"] % len(made)
    pick = lambda *leaves: np.stack(leaves, 1)[np.arange(len(which)), which]
    return tuple(jax.tree.map(pick, *nets) for nets in zip(*made, strict=True))


def both_programs(draw: Draw) -> list[Case]:
    return [
        Case(padded(net), draw["x"], draw["reference"]) for net in two_programs(draw)
    ]


def nothing(draw: Draw) -> list[Case]:
    """Their difference: no feature matters."""
    net = added(*two_programs(draw), 1, -1)
    return [Case(net, draw["x"], draw["reference"])]


# Sums.
SUM = {f"{f}_{k}": shape for f in "fg" for k, shape in NET.items()} | {"ab": (2,)}


def three_nets(draw: Draw) -> list[Case]:
    f, g = net_of(draw, "f_"), net_of(draw, "g_")
    nets = padded(f), padded(g), added(f, g, *draw["ab"].T)
    return [Case(net, draw["x"], draw["reference"]) for net in nets]


def not_linear(draw: Draw, answers: list[Explained]) -> np.ndarray:
    f, g, both = (e.attributions for e in answers)
    f, g = f * draw["ab"][:, :1], g * draw["ab"][:, 1:]
    return relative(both - f - g, both, f, g)


# A step across x, along one feature.
STEP = 1e-7


def both_sides(draw: Draw) -> list[Case]:
    (case,) = one_case(draw)
    step = STEP * np.eye(INPUTS)[draw["feature"] % INPUTS]
    return [case._replace(x=case.x - step), case._replace(x=case.x + step)]


def jump(draw: Draw, answers: list[Explained]) -> np.ndarray:
    before, after = (e.attributions for e in answers)
    return relative(after - before, after, before)


# Symmetry of x1 and x2.
MIRRORED = [1, 0, 2]


def mirror(net: Net) -> Net:
    swap = lambda a: np.take(a, MIRRORED, 1)
    return net._replace(W1=swap(net.W1), U2=swap(net.U2), u=swap(net.u))


def at_equal(net: Net, draw: Draw) -> list[Case]:
    same = lambda v: v[:, [0, 0, 2]]
    return [Case(net, same(draw["x"]), same(draw["reference"]))]


def mirrored_program(draw: Draw) -> list[Case]:
    """`g(x1 + s x2, x3) + g(x2 + s x1, x3)`, s 0 or 1: no kink where x1 = x2."""
    s = abs(draw["shared"]) % 2
    f = net_of(draw)
    tied = [np.array(a) for a in (f.W1, f.U2, f.u)]
    for a in tied:
        a[:, 1] = a[:, 0] * s.reshape(-1, *[1] * (a.ndim - 2))
    f = f._replace(W1=tied[0], U2=tied[1], u=tied[2])
    return at_equal(added(f, mirror(f)), draw)


def mirrored_function(draw: Draw) -> list[Case]:
    """`h(x1, x3) + h(x2, x3)`, the second `h` by another program."""
    f, g = two_programs(draw, lambda form: form * np.array([1, 0, 1, 1]))
    return at_equal(added(f, mirror(g)), draw)


def nudge_equal(draw: Draw) -> list[list[tuple]]:
    equal = {k: draw[k][:, [0, 0, 2]] for k in POINTS}
    return off_kinks(equal, shared=1)


def unequal(draw: Draw, answers: list[Explained]) -> np.ndarray:
    c = answers[0].attributions
    return relative(c[:, 0] - c[:, 1], c)


def incomplete(draw: Draw, answers: list[Explained]) -> np.ndarray:
    (e,) = answers
    change = e.y - e.y_reference
    return relative(e.attributions.sum(1) - change, e.attributions, change)


def of_third(draw: Draw, answers: list[Explained]) -> np.ndarray:
    c = answers[0].attributions
    return relative(c[:, 2], c[:, 2])


def of_any(draw: Draw, answers: list[Explained]) -> np.ndarray:
    c = answers[0].attributions
    return relative(c, c)


def different(draw: Draw, answers: list[Explained]) -> np.ndarray:
    a, b = (e.attributions for e in answers)
    return relative(a - b, a, b)


AT = POINTS | {"feature": ()}
STAY = lambda draw: [[(0, 0)]]
# The place of the jump may move with the reference, or not.
MOVE_REFERENCE = lambda draw: [
    [(0, s * OFF[1]), (s * OFF[1], s * OFF[1])] for s in (0, 1, -1)
]
# 1 - relu(1 - x1); max(max(x1, x2), 0); max(max(0, x1), -x3); relu(relu(x1) - relu(x2)); and
# relu(relu(x1 + x2) + x3 - 2), whose inner unit comes back to its reference.
SATURATED = {
    "W1": [[-1, 0], [0, 0], [0, 0]], "b1": [1, 0], "v": [-1, 0], "x": [2, 0, 0],
}  # fmt: skip
THREE = {"a": [1, 0, 0, 0], "b": [0, 1, 0, 0], "x": [1, 2, 0], "reference": [0, -1, 0]}
MIRRORED_THREE = {
    "b": [1, 0, 0, 0], "c": [0, 0, -1, 0], "x": [0, 0, 2], "reference": [-2, -2, -1],
}  # fmt: skip
CANCELLING = {
    "W1": [[1, 0], [0, 1], [0, 0]], "W2": [[1], [-1]], "w": [1],
    "x": [1, 1, 0], "reference": [-1, -1, 0],
}  # fmt: skip
RETURNING = {
    "W1": [[1, 0], [1, 0], [0, 0]], "U2": [[0], [0], [1]], "W2": [[1], [0]], "b2": [-2],
    "w": [1], "x": [-2, 3, 4], "reference": [3, -2, 0],
}  # fmt: skip
# fmt: off
AXIOMS = {
    "sensitivity": Axiom(
        "Input and reference differ in one feature and the outputs differ: that feature's attribution is not 0.",
        NET | POINTS, only_first_moves, missed, nudge_first, show_one, constructed=(SATURATED,)),
    "completeness": Axiom(
        "Attributions add up to `f(x) - f(reference)`.",
        NET | POINTS, one_case, incomplete, off_kinks, show_one, constructed=(SATURATED,)),
    "linearity": Axiom(
        "The attributions of the program `a f + b g` are `a` times those of `f` plus `b` times those of `g`.",
        SUM | POINTS, three_nets, not_linear, off_kinks, show_sum),
    "no wire": Axiom(
        "A feature that is wired to nothing, or by weights of 0 only, gets 0.",
        NET | POINTS, unwired, of_third, off_kinks, show_one),
    "dummy": Axiom(
        "A feature on which the *function* does not depend gets 0, however it is wired (*specificity*).",
        FORMS | POINTS, nothing, of_any, off_kinks, show_one, constructed=(THREE,)),
    "invariance": Axiom(
        "Two programs that compute the same function have the same attributions (*implementation invariance*).",
        FORMS | POINTS, both_programs, different, off_kinks, show_two, constructed=(THREE,)),
    "symmetric program": Axiom(
        "`x1 = x2`, the same at the reference, and exchanging the two only renames units: their attributions are equal.",
        NET | POINTS | {"shared": ()}, mirrored_program, unequal, nudge_equal, show_one),
    "symmetry": Axiom(
        "The same where exchanging the two leaves the *function* as it is.",
        FORMS | POINTS, mirrored_function, unequal, nudge_equal, show_one, constructed=(MIRRORED_THREE,)),
    "continuity": Axiom(
        "Attributions of a continuous function do not jump as `x` moves.",
        NET | AT, both_sides, jump, STAY, show_jump, 1e-3, (CANCELLING, RETURNING)),
    "continuity, most references": Axiom(
        "The same for almost all references: what happens at a few, such as those where a unit of the first layer is at its kink, does not count.",
        NET | AT, both_sides, jump, MOVE_REFERENCE, show_jump, 1e-3, (CANCELLING, RETURNING)),
}
# fmt: on

# --------------------------------------------------------------------- reasons

SLOPES = "gradient", "gradient x input"
DEEPLIFT = "Rescale", "RevealCancel", "GenomicsDefault"
SPLITS = DEEPLIFT[1:]
CUTS = "guided backprop x input", "DeconvNet x input"


class Reason(NamedTuple):
    """Why methods satisfy an axiom (then it is a proof) or do not."""

    methods: tuple[str, ...]
    holds: bool
    why: str


BY_ORDER = (
    "A unit's multiplier depends on where the unit's own input is at the two points. "
    "`max(max(a, b), c)` and `max(a, max(b, c))`, written with relus, have different units, "
    "and divide the same difference differently."
)
OF_NUMBERS = (
    "Only values of the function are used, `f(x) - f(x with x_i at the reference)`."
)
OF_SLOPES = (
    "Only derivatives of the function are used. At a kink it has none, and what is "
    "computed there does depend on the program: see above."
)
NOT_A_SLOPE = (
    "`F(z) / z` obeys no chain rule, so it depends on where `z` is cut out of the program. "
    "(With relu it is the slope, and the answer that of gradient x input: yes.)"
)
CUT = (
    "What comes back negative is cut off at each relu, and with it the one half of what "
    "should cancel."
)
# fmt: off
REASONS = {
    "sensitivity": [
        Reason((*SLOPES, "epsilon-LRP"), False,
               "Only the slope at `x` is read (in LRP `F(z) / z`, for relu the same), and a relu may be flat there: *saturation*."),
        Reason(("integrated gradients", *DEEPLIFT), True,
               "Contributions have the factor `x_i - reference_i`, so that all others are 0, and by completeness this one is `f(x) - f(reference)`."),
        Reason(CUTS, False,
               "A feature that only lowers the output sends back a negative signal, which is cut off."),
        Reason(("occlusion",), True, "The attribution is `f(x) - f(reference)` itself."),
    ],
    "completeness": [
        Reason(("gradient",), False, "A slope is no difference."),
        Reason(("gradient x input", *CUTS), False,
               "It is the first term of a Taylor series at best."),
        Reason(("integrated gradients",), True,
               "The fundamental theorem of calculus along the path; a quadrature is complete in its limit (with smooth activations it soon is; a kink on the path costs up to the jump of the slope times the distance, over the number of steps)."),
        Reason(DEEPLIFT, True,
               "Each step's multipliers times its operands' differences are its own difference, exactly; the chain rule puts them together."),
        Reason(("epsilon-LRP",), False,
               "`F(z) = (F(z) / z) (w x + bias)`: the share of the bias goes to no feature."),
        Reason(("occlusion",), False,
               "Features are taken away one at a time: what two do together is counted twice or not at all."),
    ],
    "linearity": [
        Reason((*SLOPES, "integrated gradients"), True, "A derivative is linear in the function."),
        Reason(("Rescale", "epsilon-LRP"), True,
               "The way back is linear in what starts at the output, and the slopes of the units of `f` and `g` are each function's own."),
        Reason(SPLITS, True,
               "Both parts of the output start with the same multiplier, so both parts of `f` get `a` and both of `g` get `b`; from there the way back is linear in the two, with coefficients of each function's own."),
        Reason(CUTS, False, "Cutting off what is negative is not linear: `-f` has not minus the attributions of `f`."),
        Reason(("occlusion",), True, "A difference of values is linear in the function."),
    ],
    "no wire": [
        Reason(tuple(METHODS), True,
               "Whatever comes back to the feature comes through its weights, times 0 (occlusion: nothing changes)."),
    ],
    "dummy": [
        Reason((*SLOPES, "integrated gradients"), True, OF_SLOPES),
        Reason(("Rescale",), False,
               f"{BY_ORDER} Their difference is 0 everywhere, its contributions are not. (They add up to 0. Copies of one and the same unit do cancel, by linearity.)"),
        Reason(SPLITS, False,
               "As for Rescale; besides, two copies of a unit that cancel inside another unit are its positive and its negative part, which get two multipliers: of `relu(x2 + relu(x3) - relu(x3))` at (0, 1, 1), reference 0, `x3` gets 0.25 and `x2` 0.75."),
        Reason(CUTS, False, CUT),
        Reason(("epsilon-LRP",), False, NOT_A_SLOPE),
        Reason(("occlusion",), True, OF_NUMBERS),
    ],
    "invariance": [
        Reason((*SLOPES, "integrated gradients"), True, OF_SLOPES),
        Reason(("Rescale",), False, BY_ORDER),
        Reason(SPLITS, False,
               "As for Rescale; besides, what is split into parts depends on which products the program has."),
        Reason(CUTS, False, CUT),
        Reason(("epsilon-LRP",), False, NOT_A_SLOPE),
        Reason(("occlusion",), True, OF_NUMBERS),
    ],
    "symmetric program": [
        Reason(tuple(METHODS), True,
               "Renaming the units renames all values and multipliers; no rule depends on the order of its operands."),
    ],
    "symmetry": [
        Reason((*SLOPES, "integrated gradients", "occlusion"), True,
               "By invariance: `f` and `f` with its features exchanged are two programs of one function."),
        Reason((*DEEPLIFT, *CUTS, "epsilon-LRP"), False,
               "`h(x1) + h(x2)` with two programs for `h`: what is said of invariance."),
    ],
    "continuity": [
        Reason((*SLOPES, "guided backprop x input", "epsilon-LRP"), False,
               "The slope of a relu jumps at its kink (LRP: and `F(z) / z` has a pole at 0 where `F(0)` is not 0). With smooth activations gradients are continuous."),
        Reason(("integrated gradients",), False,
               "Where the path runs along a kink, the mean slope jumps as the path crosses over."),
        Reason(("Rescale", "GenomicsDefault"), False,
               "As `z` comes back to `z0`, `(F(z) - F(z0)) / (z - z0)` has a limit only if `F` has a slope at `z0`; at relu's kink it is 0 from one side and 1 from the other. The sum goes to 0, but not features that moved in opposite directions."),
        Reason(("RevealCancel",), False,
               "The Linear rule counts a unit to the part of the next layer that has the sign of its net difference. Where this is 0 the multiplier changes from one part's to the other's, while the unit's own two parts are large."),
        Reason(("DeconvNet x input",), True,
               "A relu passes what is positive, wherever its input is: multipliers do not depend on `x` (and with smooth activations they are the gradient)."),
        Reason(("occlusion",), True, "Values of a continuous function are continuous."),
    ],
    "continuity, most references": [
        Reason((*SLOPES, "guided backprop x input", "epsilon-LRP"), False, "The reference plays no part in the slope."),
        Reason(("integrated gradients",), True,
               "From almost all references the path crosses kinks and runs along none; so slopes, which are bounded, converge at almost every point of it, and their mean does."),
        Reason(("Rescale",), False,
               "A unit that only gets the outputs of units which are off at the reference is at its kink there, for all references near by."),
        Reason(SPLITS, False,
               "The sign of a hidden unit's net difference changes where the unit comes back to its reference, whatever that is; what then changes part is 0, but its own inputs may have moved far, up and down."),
        Reason(("DeconvNet x input",), True, "As above."),
        Reason(("occlusion",), True, "As above."),
    ],
}
# fmt: on

# ---------------------------------------------------------------------- search


class Verdict(NamedTuple):
    """What the search found."""

    cases: int
    largest: float
    counter_example: str | None


def violations(name: str, activation: str, axiom: Axiom, draw: Draw) -> np.ndarray:
    """The smallest over the lists of shifts, of the largest within each."""
    cases = axiom.cases(draw)

    def moved(dx, dr):
        shifted = [c._replace(x=c.x + dx, reference=c.reference + dr) for c in cases]
        return [explained(name, activation, case) for case in shifted]

    found = [
        np.max([axiom.violation(draw, moved(*shift)) for shift in shifts], 0)
        for shifts in axiom.nudges(draw)
    ]
    return np.min(found, 0)


def integers(rng: np.random.Generator, axiom: Axiom, count: int) -> Draw:
    """The constructed cases, and random ones: small integers, half of them 0."""
    draw = lambda shape: rng.integers(-3, 4, shape) * rng.integers(0, 2, shape)
    drawn = {k: draw((count, *shape)) for k, shape in axiom.shapes.items()}
    for k, case in enumerate(axiom.constructed):
        for name, shape in axiom.shapes.items():
            drawn[name][k] = np.reshape(case.get(name, np.zeros(shape)), shape)
    return drawn


def search(name: str, axiom: Axiom, count: int, seed: int = 0) -> Verdict:
    """`count` cases with each activation, until one shows a violation."""
    draw = integers(np.random.default_rng(seed), axiom, count)
    if METHODS[name].zero_reference:
        draw["reference"] = 0 * draw["reference"]
    largest = 0.0
    for tried, activation in enumerate(ACTIVATIONS, 1):
        found = violations(name, activation, axiom, draw)
        largest = max(largest, float(found.max()))
        if largest > CLEAR:
            bad = packed(draw)[found > CLEAR]
            example = simplest(name, activation, axiom, bad)
            return Verdict(count * tried, largest, example)
    return Verdict(count * len(ACTIVATIONS), largest, None)


def simplest(name: str, activation: str, axiom: Axiom, bad: np.ndarray) -> str:
    """The violation that is left when the simplest ones are shrunk."""
    starts = bad[np.argsort(cost(bad, axiom), kind="stable")[:STARTS]]
    shrunk = np.stack([shrink(name, activation, axiom, start) for start in starts])
    best = unpacked(shrunk[[np.argmin(cost(shrunk, axiom))]], axiom)
    cases = axiom.cases(best)
    answers = [explained(name, activation, case) for case in cases]
    best, cases, answers = jax.tree.map(lambda a: a[0], (best, cases, answers))
    formulas = [text(case.net, activation) for case in cases]
    return axiom.show(Shown(best, cases, formulas, answers))


STARTS = 4


def packed(draw: Draw) -> np.ndarray:
    return np.concatenate([a.reshape(len(a), -1) for a in draw.values()], 1)


def unpacked(vectors: np.ndarray, axiom: Axiom) -> Draw:
    draw, start = {}, 0
    for k, shape in axiom.shapes.items():
        stop = start + int(np.prod(shape))
        draw[k] = vectors[:, start:stop].reshape(-1, *shape)
        start = stop
    return draw


def cost(vectors: np.ndarray, axiom: Axiom) -> np.ndarray:
    """How much there is to read: numbers that are not 0, large ones, signs."""
    weight = {"x": 0.5, "reference": 0.5, "feature": 0, "identity": 0}
    weights = np.concatenate([
        np.full(int(np.prod(shape)), weight.get(k, 1)) for k, shape in axiom.shapes.items()
    ])  # fmt: skip
    return (3 * (vectors != 0) + abs(vectors) + 0.3 * (vectors < 0)) @ weights


def shrink(name: str, activation: str, axiom: Axiom, vector: np.ndarray) -> np.ndarray:
    """One or two numbers nearer to 0 (or positive) at a time, while it is a violation."""
    while True:
        near = neighbours(vector)
        near = near[cost(near, axiom) < cost(vector[None], axiom)]
        near = near[np.argsort(cost(near, axiom), kind="stable")]
        for start in range(0, len(near), BATCH):
            batch = near[start : start + BATCH]
            found = violations(name, activation, axiom, unpacked(batch, axiom)) > CLEAR
            if found.any():
                vector = batch[np.argmax(found)]
                break
        else:
            return vector


def neighbours(vector: np.ndarray) -> np.ndarray:
    """All that differ in one number, or alike in two."""
    moves = [np.zeros_like, lambda v: v - np.sign(v), np.negative]
    single = []
    for k in np.flatnonzero(vector):
        for move in moves:
            single.append(vector.copy())
            single[-1][k] = move(vector[k])
    single = np.array(single).reshape(-1, len(vector))
    change = single - vector
    pairs = vector + change[:, None] + change[None]
    apart = (change[:, None] * change[None] == 0).all(-1)
    return np.concatenate([single, pairs[apart]])


# ----------------------------------------------------------------------- table

Table = dict[tuple[str, str], Verdict]


def reason(axiom: str, method: str) -> Reason:
    """The one that is for this method."""
    (found,) = (r for r in REASONS[axiom] if method in r.methods)
    return found


def contradictions(table: Table) -> list[str]:
    """Where search and reasons do not say the same, or rounding explains no more."""
    wrong = []
    for (axiom, method), verdict in table.items():
        expected = reason(axiom, method).holds
        allowed = max(METHODS[method].tolerance, AXIOMS[axiom].tolerance)
        agrees = verdict.largest <= allowed if expected else verdict.counter_example
        if not agrees:
            wrong.append(f"{method}, {axiom}: expected {expected}, found {verdict}")
    return wrong


def fill(cases: int) -> Table:
    """Every axiom with every method."""
    return {
        (axiom, method): search(method, AXIOMS[axiom], cases)
        for method in METHODS
        for axiom in AXIOMS
    }


def markdown(table: Table) -> str:
    """The table of yes and no, and what stands behind each."""
    answer = lambda axiom, method: (
        "**no**" if table[axiom, method].counter_example else "yes"
    )
    rows = [["method", *AXIOMS], ["---"] * (len(AXIOMS) + 1)]
    rows += [[m, *(answer(a, m) for a in AXIOMS)] for m in METHODS]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    for axiom, described in AXIOMS.items():
        lines += ["", f"### {axiom.capitalize()}", "", described.meaning, ""]
        for said in REASONS[axiom]:
            lines += evidence(axiom, said, table)
    return "\n".join(lines) + "\n"


def evidence(axiom: str, said: Reason, table: Table) -> list[str]:
    """A reason, and below it the counter-examples or the size of the search."""
    everyone = len(said.methods) == len(METHODS)
    who = "all methods" if everyone else ", ".join(said.methods)
    verdicts = {m: table[axiom, m] for m in said.methods}
    if not said.holds:
        head = f"* **{who}: no.** {said.why}"
        examples = {m: v.counter_example for m, v in verdicts.items()}
        return [head, *(f"    * {m}: {example}" for m, example in examples.items())]
    cases = sum(v.cases for v in verdicts.values())
    largest = max(v.largest for v in verdicts.values())
    size = f"largest violation {largest:.0e}" if largest else "no violation"
    return [f"* **{who}: yes.** {said.why} ({cases:,} cases tried, {size}.)"]


def main() -> None:
    """Prints the tables; with --write also into the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="fewer cases")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    options = parser.parse_args()
    with jax.enable_x64(True):
        table = fill(BATCH if options.short else 8 * BATCH)
    made = markdown(table)
    print(made)
    if wrong := contradictions(table):
        raise SystemExit("\n".join(wrong))
    if options.write:
        head, _, rest = PAGE.read_text().partition(MARKERS[0])
        tail = rest.partition(MARKERS[1])[2]
        PAGE.write_text(f"{head}{MARKERS[0]}\n\n{made}\n{MARKERS[1]}{tail}")


if __name__ == "__main__":
    main()
