"""The generated pages say what the tables say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def rows(page):
    """Rule to primitives, of the rows of a page."""
    table = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {rule: names.strip(" |").split(", ") for rule, names in table[1:]}


def test_the_recipes_run():
    page = (DOCS / "recipes.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert len(blocks) >= 8
    names = {}
    for block in blocks:
        exec(compile(block, "recipes.md", "exec"), names)


def test_the_coverage_page_is_current():
    spec = importlib.util.spec_from_file_location("coverage_page", DOCS / "coverage.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    written, made = rows(generator.PAGE.read_text()), rows(generator.page())
    known = {name for names in made.values() for name in names}
    assert written.keys() == made.keys(), "run python docs/coverage.py"
    for rule, names in written.items():
        # Another JAX may lack a primitive of the page, or have more.
        assert known.intersection(names) <= set(made[rule]), rule
