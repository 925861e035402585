"""The code of README.md runs, and says the truth."""

import pathlib
import re

import numpy as np

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_python_blocks_run(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert capsys.readouterr().out

    f, x, reference = names["f"], names["x"], names["reference"]
    difference = f(x) - f(reference)
    sums = names["contributions"].sum(-1)
    np.testing.assert_allclose(sums, difference[:, 2], atol=1e-5)
    contrast = f(x)[:, 2] - f(x)[:, 0]
    expected = contrast[0] - contrast[1:].mean()
    np.testing.assert_allclose(names["shap"].sum(), expected, atol=1e-5)
    sums = (names["multipliers"] * (x[0] - reference)).sum(-1)
    np.testing.assert_allclose(sums, difference[0], atol=1e-5)


def test_commands_are_marked_for_the_ci():
    marked = re.findall(
        r"^<!-- ci: (\w+) -->\n```bash\n(.+)\n```", README.read_text(), re.M
    )
    assert [name for name, _ in marked] == ["job", "test"]


def test_local_links_and_pictures_exist():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text())
    assert "docs/digits.png" in targets
    for target in targets:
        assert (README.parent / target).is_file(), target
