"""The examples run, and draw and print what they promise."""

import gzip
import importlib.util
import itertools
import os
import pathlib
import re
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits.py"
PICTURES = ROOT / "docs" / "pictures"

# What else each of the short examples prints, and how many explanations it checks.
SHORT = {
    "dna_motifs": (r"a base of GATA1 contributes [+-]\d\.\d{3}$", 8),
    "equinox_residual": (r"^RevealCancel +\d\.\de-\d\d +[+-]\d+\.\d\d$", 16),
    "lstm_series": (r"^\d+% of what contributes lies in the 9 of 60 steps", 8),
    "nnx_transformer": (r"the [+-].*  not [+-]\d+\.\d  good [+-]\d+\.\d$", 6),
    "tabular_shap": (r"is \d+\.\d\d points off exact Shapley values", 111),
}


def load(path):
    spec = importlib.util.spec_from_file_location(f"{path.stem}_example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits():
    return load(DIGITS)


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(DIGITS.parent)
    return importlib.import_module("common")


@pytest.fixture(autouse=True)
def float32():
    """The examples are written for JAX's defaults, whatever the other tests set."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def assert_is_png(path):
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def tiny_mnist(tmp_path):
    """Noise in MNIST's four files, two of them gzipped."""
    draw = np.random.default_rng(0).integers
    arrays = {}
    for part, count, suffix in (("train", 20, ".gz"), ("t10k", 12, "")):
        arrays[part] = draw(0, 256, (count, 9, 8)), draw(0, 10, count)
        images, labels = arrays[part]
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", labels)
    return tmp_path, arrays


def test_digits_runs_as_a_script(tmp_path):
    command = [sys.executable, str(DIGITS), "--fast"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "training: 100%" in done.stderr
    assert_is_png(tmp_path / "digits.png")
    assert re.search(r"test accuracy \d+\.\d+% of 360 digits", done.stdout)
    row = r"^(.+?)  +(\d\.\de-\d\d|0\.0e\+00)  +([\d,]+)$"
    rows = re.findall(row, done.stdout, re.M)
    assert [name for name, _, _ in rows] == [
        "a black image",
        "the mean digit",
        "9 digits, averaged",
    ]
    for _, gap, per_second in rows:
        assert float(gap) <= 1e-5
        assert int(per_second.replace(",", "")) > 0


def test_digits_learns_to_read(digits):
    data = digits.bundled_digits(seed=0)
    params = digits.train(data, epochs=30, seed=0)
    read = digits.CNN().apply(params, data.test_images).argmax(-1)
    assert np.mean(read == data.test_labels) > 0.97


def test_digits_fails_when_contributions_do_not_add_up(
    digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        digits,
        "completeness_gap",
        lambda contributions, *outputs: np.full(contributions.shape[:2], np.nan),
    )
    out = tmp_path / "digits.png"
    assert digits.main(["--fast", "--epochs", "0", "--out", str(out)]) == 1
    assert "do not add up" in capsys.readouterr().out


def test_completeness_gap(digits):
    contributions = np.ones((2, 2, 2, 1), np.float32)
    gap = digits.completeness_gap(contributions, np.array([4.0, 0.5]), np.zeros(2))
    np.testing.assert_allclose(gap, [0, 3.5])


def test_digits_takes_mnist_files(digits, tiny_mnist, capsys):
    directory, _ = tiny_mnist
    out = directory / "figure.png"
    options = ["--mnist", str(directory), "--out", str(out), "--epochs", "1", "--fast"]
    assert digits.main(options) == 0
    assert_is_png(out)
    assert "of 12 digits" in capsys.readouterr().out


def test_mnist_reads_what_was_written(digits, tiny_mnist):
    directory, arrays = tiny_mnist
    data = digits.mnist(directory)
    for part, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("t10k", data.test_images, data.test_labels),
    ):
        written_images, written_labels = arrays[part]
        assert images.dtype == np.float32
        np.testing.assert_allclose(images[..., 0] * 255, written_images, rtol=1e-6)
        np.testing.assert_array_equal(labels, written_labels)


def test_mnist_names_the_missing_file(digits, tiny_mnist):
    directory, _ = tiny_mnist
    (directory / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte\.gz"):
        digits.mnist(directory)


def test_mnist_rejects_labels_of_another_set(digits, tiny_mnist):
    directory, _ = tiny_mnist
    write_idx(directory / "t10k-labels-idx1-ubyte", np.zeros(11))
    with pytest.raises(ValueError, match="t10k: images .* do not match"):
        digits.mnist(directory)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no IDX file"),
        (b"\x89PNG....", "no IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "no IDX file"),  # floats
        (b"\0\0\x08\x01\0\0\0\x03ab", "holds 2 values"),
        (b"\0\0\x08\x01\0\0\0\x01ab", "holds 2 values"),
        (b"\0\0\x08\x02\0\0\0\x01", "header"),  # ends within the header
    ],
)
def test_read_idx_rejects(digits, tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        digits.read_idx(path)


# The short examples, and what they have in common.


def test_every_example_is_tested_and_in_the_gallery():
    examples = {path.stem for path in DIGITS.parent.glob("*.py")} - {"common"}
    assert examples == {"digits", *SHORT}
    gallery = (ROOT / "docs" / "plots.md").read_text()
    for name in SHORT:
        assert f"](pictures/{name}.png)" in gallery
        assert_is_png(PICTURES / f"{name}.png")
    for picture in re.findall(r"\]\((\w+/\w+\.png)\)", gallery):
        assert (ROOT / "docs" / picture).stat().st_size < 120_000


@pytest.mark.parametrize("name", SHORT)
def test_short_example(name, common, tmp_path, monkeypatch, capsys):
    if name == "dna_motifs":
        pytest.importorskip("logomaker")
    example = load(DIGITS.with_name(f"{name}.py"))
    judged = []
    # What `verdict` says is what the example says.
    monkeypatch.setattr(example, "verdict", lambda gaps: judged.append(gaps) or 17)
    out = tmp_path / "figure.png"
    assert example.main(["--short", "--out", str(out)]) == 17
    assert_is_png(out)
    printed, count = SHORT[name]
    assert re.search(printed, capsys.readouterr().out, re.M)
    (gaps,) = judged
    assert np.size(gaps) == count
    assert np.max(gaps) <= 1e-5


@pytest.mark.parametrize(
    "gaps, status", [([0, 1e-5], 0), ([0, 2e-5], 1), ([np.nan], 1)]
)
def test_verdict(common, gaps, status, capsys):
    assert common.verdict(gaps) == status
    assert ("do not add up" in capsys.readouterr().out) == bool(status)


def test_common_completeness_gap(common):
    contributions = np.ones((2, 2, 2), np.float32)
    gap = common.completeness_gap(contributions, np.array([4.0, 0.5]), 0.0)
    np.testing.assert_allclose(gap, [0, 3.5])


def test_judgement_heeds_negations(common):
    judgement = load(DIGITS.with_name("nnx_transformer.py")).judgement
    for text, total in [
        ("the film was good", 1),
        ("the film was not good", -1),
        ("the film never felt boring and the plot was flat", 0),
        ("the film was not _ and the plot was not bad", 1),
        ("_ _ _ _", 0),
    ]:
        assert judgement(text.split()) == total, text


def test_shapley_values_are_those_of_all_orders(common):
    """Of a product: brute force over the orders in which the factors become known."""
    shapley_values = load(DIGITS.with_name("tabular_shap.py")).shapley_values
    draw = np.random.default_rng(0)
    xs, references = (np.float32(draw.normal(size=(k, 4))) for k in (2, 3))
    f = lambda x: jnp.prod(x, axis=-1)
    expected = np.zeros((2, 4))
    orders = list(itertools.permutations(range(4)))
    for (row, x), order in itertools.product(enumerate(xs), orders):
        mixed = references.copy()
        for k in order:
            before = np.prod(mixed, -1).mean()
            mixed[:, k] = x[k]
            expected[row, k] += (np.prod(mixed, -1).mean() - before) / len(orders)
    np.testing.assert_allclose(shapley_values(f, xs, references), expected, atol=1e-6)
