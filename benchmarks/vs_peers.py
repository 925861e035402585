"""The time of Captum, SHAP's DeepExplainer and tangermeme relative to jaxlift's.

python benchmarks/vs_peers.py --peers PYTHON --json vs_peers.json --plot vs_peers.png
"""

import argparse
import dataclasses
import functools
import os
import pickle
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from networks import NAMES, Network, network
from timing import Spread, interleaved, seconds, surroundings, write_json
from vs_grad import CASES, Case

TOOLS = {"captum": "Captum", "shap": "SHAP", "tangermeme": "tangermeme"}
WANTED = {"shared": 1.5, "set": 3.0, "own": 1.5}  # times faster than the fastest tool
SAME = 1e-4  # largest difference of contributions, relative to the largest of them
COMPLETE = 1e-3  # what adds up so well may differ by no more than rounding
REST = 5e-3  # seconds between the two sides, so that idle threads fall asleep
ROUNDS = 4, 20
WORKER = Path(__file__).parent / "peers" / "worker.py"

LSTM = "nn.LSTM is one module and gets the plain gradient"
PRODUCTS = "the products of attention and layer normalisation get the plain gradient"
REASONS = {
    ("captum", "lstm"): LSTM,
    ("shap", "lstm"): LSTM,
    ("captum", "transformer"): f"{PRODUCTS}, and so does nn.GELU; the rule of "
    "nn.Softmax subtracts a mean over all rows",
    ("shap", "transformer"): f"{PRODUCTS}; nn.Softmax is taken for elementwise",
}


class PeerError(Exception):
    """Why a tool gave no contributions."""


class Peers:
    """The worker with the PyTorch tools, in an interpreter that has them."""

    def __init__(self, python: str):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([python, str(WORKER)], **pipes)

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.stdin.close()
        self.process.wait()

    def ask(self, request: str, *arguments: Any) -> Any:
        try:
            pickle.dump((request, arguments), self.process.stdin)
            self.process.stdin.flush()
            done, answer = pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError):
            raise RuntimeError("the worker has ended: see its messages above") from None
        if not done:
            raise PeerError(answer)
        return answer


@dataclasses.dataclass(frozen=True)
class Task:
    """Rows of a network, their references, and what jaxlift makes of them."""

    net: Network
    case: Case

    @classmethod
    def of(cls, net: Network, case: Case) -> "Task":
        """Fewer rows where each has a set of references."""
        if case.references == "set":
            net = dataclasses.replace(net, batch=max(8, net.batch // 4))
        return cls(net, case)

    @property
    def pairs(self) -> int:
        return self.net.batch * self.case.pairs

    @functools.cached_property
    def rows(self) -> jax.Array:
        return self.net.rows(self.net.batch, seed=1)

    @functools.cached_property
    def references(self) -> jax.Array:
        return self.case.references_for(self.net)

    @functools.cached_property
    def outputs(self) -> np.ndarray:
        return self._apply(self.rows)

    @functools.cached_property
    def deltas(self) -> np.ndarray:
        """What the contributions of each row have to add up to."""
        at_references = self._apply(self.references.reshape(-1, *self.net.shape))
        own = self.case.references == "own"
        return self.outputs - (at_references if own else at_references.mean())

    def _apply(self, rows: jax.Array) -> np.ndarray:
        apply = jax.jit(jax.vmap(self.net.apply, (None, 0)))
        return np.asarray(apply(self.net.weights, rows))

    def for_peers(self, dtype: Any = np.float32) -> tuple:
        """Name, weights, rows, references, and whether each row has its own."""
        references = self.references.reshape(-1, *self.net.shape)
        arrays = jax.tree.map(
            lambda a: np.asarray(a, dtype), (self.net.weights, self.rows, references)
        )
        return self.net.name, *arrays, self.case.references == "own"


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two arrays relative to the largest value."""
    return float(abs(a - b).max() / abs(b).max())


def measure(task: Task, peers: Peers, budget: float) -> Iterator[dict[str, Any]]:
    """A row of the results for each tool."""
    arguments = task.net.weights, task.rows, task.references
    compiled = jax.jit(task.case.explain(task.net)).lower(*arguments).compile()
    ours = np.asarray(compiled(*arguments))

    def clock() -> float:
        time.sleep(REST)
        return seconds(compiled, *arguments)

    def other() -> float:
        time.sleep(REST)
        return peers.ask("seconds")

    for tool in TOOLS:
        row = {
            "network": task.net.name,
            "references": task.case.references,
            "rows": task.net.batch,
            "pairs": task.pairs,
            "tool": tool,
        }
        try:
            prepared = peers.ask("prepare", tool, *task.for_peers())
        except PeerError as error:
            yield row | {"failure": str(error)}
            continue
        outputs, theirs, batch_size = prepared
        if relative(outputs, task.outputs) > SAME:
            raise AssertionError(f"the two {task.net.name} are not the same network")
        clock()
        rounds = int(np.clip(budget / (clock() + other()), *ROUNDS))
        our_seconds, times = interleaved(clock, other, rounds)
        row |= {
            "batch_size": batch_size,
            "rounds": rounds,
            "ours_ms": 1e3 * our_seconds.median,
            "times": times._asdict(),
            "difference": relative(theirs, ours),
            "gap": gap(theirs, task),
            "our_gap": gap(ours, task),
        }
        if not same(row) and row["gap"] < COMPLETE:
            row |= rounding(task, tool, peers, theirs, ours)
        yield row


def rounding(task: Task, tool: str, peers: Peers, theirs, ours) -> dict[str, float]:
    """How far both are from the tool's float64 result.

    Rounding can decide a whole row (which of two nearly equal cells is the maximum),
    another definition shows in every row: so the median row tells the two apart.
    """
    _, exact, _ = peers.ask("prepare", tool, *task.for_peers(np.float64))
    by_row = [relative(a, b) for a, b in zip(ours, exact, strict=True)]
    return {
        "difference": float(np.median(by_row)),
        "rounding": relative(theirs, exact),
        "our_rounding": relative(ours, exact),
    }


def gap(contributions: np.ndarray, task: Task) -> float:
    """How far contributions are from adding up, relative to what they should."""
    sums = contributions.reshape(len(contributions), -1).sum(1)
    return relative(sums, task.deltas)


# ------------------------------------------------------------------------- report


def same(row: dict[str, Any]) -> bool:
    """Whether a tool ran and computed what jaxlift computes."""
    return "failure" not in row and row["difference"] <= SAME


def grouped(rows: Sequence[dict], *keys: str) -> dict[tuple, list[dict]]:
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def cell(row: dict[str, Any]) -> str:
    """Times slower than jaxlift and quartiles; in brackets if not the same numbers."""
    if "failure" in row:
        return "-"
    times = Spread(**row["times"])
    text = f"{times.median:.1f} [{times.low:.1f}, {times.high:.1f}]"
    return text if same(row) else f"({text})"


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """The fastest tool that computes the same, against what is wanted."""
    medians = [row["times"]["median"] for row in rows if same(row)]
    if not medians:
        return "none runs"
    wanted = WANTED[rows[0]["references"]]
    missed = "!" if min(medians) < wanted else ""
    return f"{min(medians):.1f} (>= {wanted}){missed}"


HEADER = (
    f"| network | references | rows x references | jaxlift | "
    f"{' | '.join(TOOLS.values())} | fastest of the same |\n"
    f"|---|---|---|---|{'---|' * len(TOOLS)}---|"
)


def line(rows: Sequence[dict[str, Any]]) -> str:
    """One network and one kind of references, as a line of a table."""
    first = rows[0]
    times = [row["ours_ms"] for row in rows if "ours_ms" in row]
    ours = f"{np.median(times):.1f} ms" if times else "-"
    size = f"{first['rows']} x {first['pairs'] // first['rows']}"
    cells = (first["network"], first["references"], size, ours)
    return f"| {' | '.join((*cells, *map(cell, rows), verdict(rows)))} |"


def notes(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Why a tool has no figure, or one in brackets."""
    for (tool, name), group in grouped(rows, "tool", "network").items():
        failures = dict.fromkeys(row["failure"] for row in group if "failure" in row)
        yield from (f"* {TOOLS[tool]}, {name}: {failure}" for failure in failures)
        rounded = [row for row in group if "rounding" in row]
        if rounded:
            theirs, ours = (
                max(row[key] for row in rounded) for key in ("rounding", "our_rounding")
            )
            yield (
                f"* {TOOLS[tool]}, {name}: rounding. From its own float64 result its "
                f"float32 one is at most {theirs:.0e} of the largest contribution "
                f"away, jaxlift's {ours:.0e}"
            )
        others = [row for row in group if "failure" not in row and not same(row)]
        if others:
            difference = max(row["difference"] for row in others)
            theirs, ours = (max(row[g] for row in others) for g in ("gap", "our_gap"))
            reason = REASONS.get((tool, name), "unexplained")
            yield (
                f"* {TOOLS[tool]}, {name}: differs by {difference:.0e} of the largest "
                f"contribution, its sums are off by {theirs:.0e} (jaxlift's by "
                f"{ours:.0e}): {reason}"
            )


def plot(rows: Sequence[dict[str, Any]], path: str) -> None:
    """Times slower than jaxlift, its quartiles and what is wanted, by network."""
    from matplotlib.figure import Figure

    networks = grouped(rows, "network")
    figure = Figure((8, 0.6 + 1.9 * len(networks)), layout="constrained")
    panels = figure.subplots(len(networks), sharex=True, squeeze=False)[:, 0]
    for panel, ((name,), group) in zip(panels, networks.items(), strict=True):
        ran = [row for row in group if "failure" not in row][::-1]
        spreads = [Spread(**row["times"]) for row in ran]
        places, medians = range(len(ran)), [times.median for times in spreads]
        colors = ["tab:blue" if same(row) else "lightgray" for row in ran]
        panel.barh(places, medians, color=colors, height=0.7)
        below = [times.median - times.low for times in spreads]
        above = [times.high - times.median for times in spreads]
        panel.errorbar(
            medians, places, xerr=(below, above), fmt="none", color="black", lw=1
        )
        wanted = [WANTED[row["references"]] for row in ran]
        panel.plot(wanted, places, "|", color="red", markersize=10, mew=2)
        labels = [f"{row['references']}, {TOOLS[row['tool']]}" for row in ran]
        panel.set_yticks(places, labels, fontsize=8)
        panel.axvline(1, color="gray", lw=0.8, zorder=0)
        panel.set_xscale("log")
        panel.set_title(name, fontsize=9, loc="left")
    panels[-1].set_xlabel(
        "time / jaxlift's  (red: wanted; gray: does not compute the same)"
    )
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", required=True, metavar="PYTHON")
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--plot", metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    # As many threads on both sides: JAX starts one for each core that it may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    jax.config.update("jax_platforms", "cpu")
    budget = 0.5 if options.quick else 3.0

    rows: list[dict[str, Any]] = []
    with Peers(options.peers) as peers:
        about = surroundings() | peers.ask("about", options.threads)
        print(*(f"{key}: {value}" for key, value in about.items()), sep="\n")
        print("", HEADER, sep="\n")
        for net in map(network, options.networks):
            for case in (case for case in CASES if case.rules == "RESCALE"):
                found = list(measure(Task.of(net, case), peers, budget))
                print(line(found), flush=True)
                rows += found
            if options.json:  # network by network: a run that is cut off leaves some
                write_json(options.json, rows, about)
    print("", *notes(rows), sep="\n")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
