"""The search for counter-examples, and the page that it writes."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlift

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "axioms.md").read_text()


@pytest.fixture(scope="module")
def axioms():
    path = ROOT / "benchmarks" / "axioms.py"
    spec = importlib.util.spec_from_file_location("axioms_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # NamedTuples look their module up
    spec.loader.exec_module(module)
    module.BATCH = 64
    return module


def test_the_page_says_what_the_reasons_say(axioms):
    rows = [
        line.strip("| ").split(" | ") for line in PAGE.splitlines() if line[:1] == "|"
    ]
    head, _, *body = rows
    assert [row[0] for row in body] == list(axioms.METHODS)
    assert head[1:] == list(axioms.AXIOMS)
    for method, *answers in body:
        for axiom, answer in zip(head[1:], answers, strict=True):
            assert (answer == "yes") == axioms.reason(axiom, method).holds


SEARCHED = ["gradient", "integrated gradients", "Rescale", "RevealCancel", "occlusion"]


@pytest.mark.parametrize("method", SEARCHED)
def test_a_short_search_finds_what_the_reasons_say(axioms, x64, method):
    table = {
        (axiom, method): axioms.search(method, described, axioms.BATCH)
        for axiom, described in axioms.AXIOMS.items()
    }
    assert not axioms.contradictions(table)
    wrong = {key: axioms.Verdict(1, 1.0, None) for key in table}
    assert len(axioms.contradictions(wrong)) == len(table)


# ---------------------------------------------------------------- by hand

EXPLAINED = {
    "gradient": lambda f: lambda x, r: jax.grad(f)(x),
    "gradient x input": lambda f: lambda x, r: jax.grad(f)(x) * (x - r),
    "Rescale": jaxlift.deeplift,
    "occlusion": lambda f: (
        lambda x, r: jnp.stack([f(x) - f(x.at[i].set(r[i])) for i in range(3)])
    ),
}
NUMBERS = r"\(([-\d., ]+)\)"
EXAMPLE = re.compile(
    rf"^    \* (.*?): (.*x = {NUMBERS}, reference = {NUMBERS}.*)$", re.M
)
ANSWER = re.compile(rf"`([^`]+)`(?:, x = .*)?: {NUMBERS}")


def function(formula):
    """From the text of a formula."""
    code = re.sub(r"(\d) (?=[a-z])", r"\1 * ", formula)
    known = {"relu": jax.nn.relu, "softplus": jax.nn.softplus}
    return lambda x: (
        eval(code, known | {f"x{i + 1}": x[i] for i in range(3)}) + 0 * x[0]
    )


def numbers(text):
    return jnp.array([float(n) for n in text.split(",")])


def test_counter_examples_are_what_they_seem():
    checked = 0
    for method, said, *points in EXAMPLE.findall(PAGE):
        if "just below" in said or method not in EXPLAINED:
            continue
        x, reference = map(numbers, points)
        for formula, answer in ANSWER.findall(said):
            explain = jax.jit(EXPLAINED[method](function(formula)))
            np.testing.assert_allclose(
                explain(x, reference), numbers(answer), atol=1e-3
            )
            checked += 1
    assert checked >= 9


def test_copies_that_cancel_inside_a_unit():
    """What the page says of RevealCancel in passing."""
    first = jnp.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    beside, below = jnp.array([0.0, 1.0, 0.0]), jnp.array([1.0, -1.0])
    f = lambda x: jax.nn.relu(x @ beside + jax.nn.relu(x @ first) @ below)
    explain = jax.jit(jaxlift.deeplift(f, rules=jaxlift.REVEAL_CANCEL))
    c = explain(jnp.array([0.0, 1.0, 1.0]), 0.0)
    np.testing.assert_allclose(c, [0, 0.75, 0.25], atol=1e-6)
