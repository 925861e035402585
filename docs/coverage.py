"""Writes docs/coverage.md: which rule each primitive of JAX has.

    python docs/coverage.py

Of the oldest supported JAX; newer ones add primitives, which the tests know of.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jaxlift

PAGE = Path(__file__).with_name("coverage.md")
HEAD = """# Which rule each primitive has

Written by `docs/coverage.py` from the table `jaxlift.RESCALE`; a test keeps it current.
The rule's own words say what it does. What is in no table is refused by name, with the
line of the code that applies it. `REVEAL_CANCEL` differs in `dot_general` and
`conv_general_dilated`.

| rule | primitives |
|---|---|
"""


def families() -> dict[str, list[str]]:
    """First line of a rule's docstring to the primitives that have it."""
    found: dict[str, list[str]] = {}
    for primitive, rule in jaxlift.RESCALE.items():
        factory = rule.__qualname__.split(".")[0]
        documented = (
            rule if rule.__doc__ else vars(sys.modules[rule.__module__])[factory]
        )
        summary = documented.__doc__.split("\n")[0]
        found.setdefault(summary, []).append(primitive.name)
    return found


def page() -> str:
    """The whole page."""
    rows = sorted(
        (summary, sorted(set(names))) for summary, names in families().items()
    )
    lines = (f"| {s} | {', '.join(f'`{n}`' for n in names)} |\n" for s, names in rows)
    return HEAD + "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
