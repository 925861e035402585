"""What jaxlift costs relative to `jax.grad` of the same function on the same rows.

python benchmarks/vs_grad.py --json vs_grad.json --plot vs_grad.png
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from networks import NAMES, Network, network
from timing import (
    Spread,
    compile_seconds,
    interleaved,
    memory_bytes,
    seconds,
    surroundings,
    write_json,
)

import jaxlift

REFERENCES = 16
COMPILES = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """A method, the references it is given, and the limits it is held to."""

    rules: str
    references: str  # "shared", "set" (of REFERENCES, shared) or "own"
    cost: float
    compiling: float
    memory: float = 1.5

    @property
    def pairs(self) -> int:
        """The number of (input, reference) pairs per row."""
        return REFERENCES if self.references == "set" else 1

    def explain(self, net: Network) -> Callable:
        """A function of (weights, rows, references)."""
        transform = {"set": jaxlift.deeplift_shap}.get(
            self.references, jaxlift.deeplift
        )
        axis = 0 if self.references == "own" else None

        def contributions(weights, rows, references):
            f = functools.partial(net.apply, weights)
            explain = transform(f, rules=getattr(jaxlift, self.rules))
            return jax.vmap(explain, (0, axis))(rows, references)

        return contributions

    def references_for(self, net: Network) -> jax.Array:
        """The references: another draw than the rows."""
        count = {"shared": 1, "set": REFERENCES, "own": net.batch}[self.references]
        references = net.rows(count, seed=2)
        return references[0] if self.references == "shared" else references


CASES = (
    Case("RESCALE", "shared", cost=1.1, compiling=2.0),
    Case("RESCALE", "set", cost=0.8, compiling=2.0),
    Case("RESCALE", "own", cost=1.5, compiling=2.0),
    Case("REVEAL_CANCEL", "shared", cost=2.5, compiling=3.0),
    Case("REVEAL_CANCEL", "set", cost=2.0, compiling=3.0),
    Case("GENOMICS_DEFAULT", "shared", cost=1.5, compiling=2.0),
    Case("GENOMICS_DEFAULT", "set", cost=1.5, compiling=2.0),
)
RULES = tuple(dict.fromkeys(case.rules for case in CASES))


def gradient(net: Network) -> Callable:
    """The gradient with respect to the input alone, a function of (weights, rows)."""
    return jax.vmap(jax.grad(net.apply, argnums=1), (None, 0))


def measure(net: Network, case: Case, rounds: int, compiles: int) -> dict[str, Any]:
    """One row of the table."""
    grad, explain = gradient(net), case.explain(net)
    of_grad = net.weights, net.rows(net.batch, seed=1)
    of_explain = *of_grad, case.references_for(net)
    compiled_grad = jax.jit(grad).lower(*of_grad).compile()
    compiled = jax.jit(explain).lower(*of_explain).compile()
    for _ in range(2):  # warm
        seconds(compiled_grad, *of_grad)
        seconds(compiled, *of_explain)
    grad_seconds, cost = interleaved(
        lambda: seconds(compiled_grad, *of_grad),
        lambda: seconds(compiled, *of_explain),
        rounds,
    )
    grad_compile, compiling = interleaved(
        lambda: compile_seconds(grad, *of_grad),
        lambda: compile_seconds(explain, *of_explain),
        compiles,
    )
    grad_bytes, explain_bytes = map(memory_bytes, (compiled_grad, compiled))
    known = grad_bytes is not None and explain_bytes is not None
    return {
        "network": net.name,
        "rules": case.rules,
        "references": case.references,
        "rows": net.batch,
        "pairs": net.batch * case.pairs,
        "gradient_ms": 1e3 * grad_seconds.median,
        "cost": (cost / case.pairs)._asdict(),
        "gradient_compile_ms": 1e3 * grad_compile.median,
        "compile": compiling._asdict(),
        "gradient_mib": grad_bytes / 2**20 if grad_bytes else None,
        "memory": explain_bytes / grad_bytes / case.pairs if known else None,
        "limits": {
            "cost": case.cost,
            "compile": case.compiling,
            "memory": case.memory,
        },
    }


# ------------------------------------------------------------------------- report

HEADER = (
    f"{'network':12}{'rules':18}{'references':11}{'gradient':>10}  "
    f"{'cost [quartiles]':>21} {'limit':7}{'compile':>8} {'limit':7}"
    f"{'memory':>7} {'limit':7}"
)


def line(row: dict[str, Any]) -> str:
    """A row as text; ! marks a limit that is missed."""
    cost, limits = row["cost"], row["limits"]
    values = cost["median"], row["compile"]["median"], row["memory"]
    verdicts = (verdict(v, limits[k]) for v, k in zip(values, limits, strict=True))
    of_cost, of_compile, of_memory = (f"{text:7}" for text in verdicts)
    spread = f"{values[0]:.2f} [{cost['low']:.2f}, {cost['high']:.2f}]"
    memory = "-" if values[2] is None else f"{values[2]:.2f}"
    return (
        f"{row['network']:12}{row['rules']:18}{row['references']:11}"
        f"{row['gradient_ms']:7.1f} ms  {spread:>21} {of_cost}"
        f"{values[1]:8.2f} {of_compile}{memory:>7} {of_memory}"
    ).rstrip()


def verdict(value: float | None, limit: float) -> str:
    """The limit, with a mark where it is missed."""
    missed = value is not None and value > limit
    return f"<={limit:.1f}{'!' if missed else ''}"


def plot(rows: Sequence[dict[str, Any]], path: str) -> None:
    """The cost of every case, its quartiles and its limit, one panel per network."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure((8, 0.6 + 1.7 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for panel, name in zip(panels, names, strict=True):
        here = [row for row in rows if row["network"] == name][::-1]
        costs = [Spread(**row["cost"]) for row in here]
        missed = [
            cost.median > row["limits"]["cost"]
            for cost, row in zip(costs, here, strict=True)
        ]
        places = range(len(here))
        colors = ["tab:orange" if m else "tab:blue" for m in missed]
        panel.barh(places, [c.median for c in costs], color=colors, height=0.7)
        errors = [[c.median - c.low for c in costs], [c.high - c.median for c in costs]]
        medians = [c.median for c in costs]
        panel.errorbar(medians, places, xerr=errors, fmt="none", color="black", lw=1)
        limits = [row["limits"]["cost"] for row in here]
        panel.plot(limits, places, "|", color="red", markersize=12, mew=2)
        labels = [f"{row['rules']}, {row['references']}" for row in here]
        panel.set_yticks(places, labels, fontsize=8)
        panel.axvline(1, color="gray", lw=0.8, zorder=0)
        panel.set_title(name, fontsize=9, loc="left")
    panels[-1].set_xlabel("jitted cost per pair / jax.grad per row  (red: limit)")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--rules", nargs="+", default=RULES, metavar="TABLE")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--plot", metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="5 rounds, 1 compilation")
    options = parser.parse_args()
    rounds, compiles = (5, 1) if options.quick else (options.rounds, COMPILES)

    about, rows = surroundings(), []
    print(*(f"{key}: {value}" for key, value in about.items()), HEADER, sep="\n")
    cases = [
        case
        for case in CASES
        if case.rules in options.rules and hasattr(jaxlift, case.rules)
    ]
    for name in options.networks:
        net = network(name)
        for case in cases:
            rows.append(measure(net, case, rounds, compiles))
            print(line(rows[-1]), flush=True)
    if options.json:
        write_json(options.json, rows, about)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
