"""The examples run, and draw and print what they promise."""

import gzip
import importlib.util
import os
import pathlib
import re
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits():
    spec = importlib.util.spec_from_file_location("digits_example", DIGITS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
