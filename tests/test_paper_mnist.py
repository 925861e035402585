"""The paper's MNIST experiment runs on MNIST's own files."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import paper_mnist


@pytest.fixture
def folder(tmp_path):
    """Four IDX files of noise."""
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        labels = np.repeat(np.arange(10), 2)
        images = rng.integers(0, 256, (len(labels), 28, 28))
        for name, array in ("images-idx3", images), ("labels-idx1", labels):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(
                f">{array.ndim}I", *array.shape
            )
            content = head + array.astype(np.uint8).tobytes()
            (tmp_path / f"{part}-{name}-ubyte").write_bytes(content)
    return tmp_path


def test_a_network_trained_on_idx_files(folder, capsys, monkeypatch):
    rescale = paper_mnist.METHODS["Rescale"]
    monkeypatch.setattr(paper_mnist, "METHODS", {"Rescale": rescale})
    monkeypatch.setattr(paper_mnist, "PAIRS", [(8, 3)])
    paper_mnist.main(["--mnist", str(folder), "--steps", "1", "--count", "2"])
    printed = capsys.readouterr().out
    assert "8 -> 3, 2 images, 157 pixels erased\n  Rescale " in printed
