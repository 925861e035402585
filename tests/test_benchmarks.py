"""The comparison with other tools says what ran, what agrees and what is fastest."""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

DIRECTORY = Path(__file__).parents[1] / "benchmarks"
MODULES = ("networks", "timing", "vs_grad", "vs_peers")  # tests has a `networks` too


@pytest.fixture(scope="module")
def vs_peers():
    theirs = {name: sys.modules.pop(name, None) for name in MODULES}
    caching = jax.config.jax_enable_compilation_cache
    sys.path.insert(0, str(DIRECTORY))
    yield importlib.import_module("vs_peers")
    sys.path.remove(str(DIRECTORY))
    jax.config.update("jax_enable_compilation_cache", caching)
    for name, module in theirs.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


class Tools:
    """Stands in for the worker: one tool is right, one is not, one cannot."""

    def __init__(self, vs_peers, task):
        self.error = vs_peers.PeerError("LayerError: no such layer")
        net, (*_, rows, references, own) = task.net, task.for_peers()
        apply = lambda x: np.asarray(jax.vmap(net.apply, (None, 0))(net.weights, x))
        self.outputs = apply(rows)
        gradient = jax.vmap(jax.grad(net.apply, argnums=1), (None, 0))
        references = references[:, None] if own else references[None]
        self.contributions = {
            "captum": gradient(net.weights, rows) * (rows - references.mean(1)),
            "tangermeme": np.asarray(task.case.explain(net)(
                net.weights, task.rows, task.references
            )),
        }  # fmt: skip

    def ask(self, request, tool=None, *arguments):
        if request == "seconds":
            return 1e-3
        if tool not in self.contributions:
            raise self.error
        return self.outputs, self.contributions[tool], 4


@pytest.fixture(scope="module")
def net(vs_peers):
    networks = sys.modules["networks"]
    return networks.build("mlp", networks.MLP(1, 8), (5,), 4)


@pytest.fixture(scope="module")
def results(vs_peers, net):
    tasks = [
        vs_peers.Task(net, case) for case in vs_peers.CASES if case.rules == "RESCALE"
    ]
    return [list(vs_peers.measure(t, Tools(vs_peers, t), 0)) for t in tasks]


def test_a_tool_is_the_same_if_its_contributions_are(vs_peers, results):
    for rows in results:
        same = {row["tool"]: vs_peers.same(row) for row in rows}
        assert same == {"captum": False, "shap": False, "tangermeme": True}
        wrong, _, right = rows
        assert right["gap"] < 1e-5 < wrong["gap"]
        assert right["our_gap"] < 1e-5


def test_rounding_may_decide_a_row_but_not_most(vs_peers, net):
    task = vs_peers.Task(net, vs_peers.CASES[0])
    tools = Tools(vs_peers, task)
    ours = tools.contributions["tangermeme"]
    for moved, same in ((1, True), (3, False)):  # they still add up
        sign = np.array([1, -1, 0, 0, 0], ours.dtype)
        others = np.arange(4)[:, None] < moved
        tools.contributions["tangermeme"] = ours + others * sign
        *_, row = vs_peers.measure(task, tools, 0)
        assert vs_peers.same(row) == same and row["our_rounding"] > 0.1


def test_only_the_same_numbers_compete(vs_peers, results):
    for rows in results:
        of_right = rows[-1]["times"]["median"]
        assert vs_peers.verdict(rows).startswith(f"{of_right:.1f} ")
        assert vs_peers.verdict(rows[:-1]) == "none runs"
        cells = vs_peers.line(rows).split(" | ")
        assert cells[4].startswith("(") and cells[5] == "-" and cells[6][0] != "("


def test_notes_say_why(vs_peers, results):
    captum, shap = vs_peers.notes([row for rows in results for row in rows])
    assert "unexplained" in captum and "mlp" in captum
    assert shap.endswith("LayerError: no such layer")


def test_another_network_is_an_error(vs_peers, net):
    task = vs_peers.Task(net, vs_peers.CASES[0])
    tools = Tools(vs_peers, task)
    tools.outputs = tools.outputs + 1
    with pytest.raises(AssertionError, match="not the same network"):
        list(vs_peers.measure(task, tools, 0))
