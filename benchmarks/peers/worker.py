"""The PyTorch side of `vs_peers.py`, which runs it in an interpreter of its own.

Reads pickled requests (name, arguments) from its input and answers each with a pickled
(True, result) or (False, reason). It times itself, so the pipes cost nothing.
"""

import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import torch
from tools import TOOLS, Cannot, Problem, frozen
from twins import CHANNELS_FIRST

PACKAGES = ("torch", "captum", "shap", "tangermeme")


def timed(call: Callable) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


class Worker:
    """The requests that can be made."""

    def about(self, threads: int) -> dict[str, str]:
        torch.set_num_threads(threads)
        return {name: metadata.version(name) for name in PACKAGES}

    def prepare(self, tool, network, weights, rows, references, own) -> tuple:
        """Outputs, contributions, and the batch size with which a tool is fastest."""
        first = network in CHANNELS_FIRST

        def tensor(values):
            values = np.moveaxis(values, -1, 1) if first else values
            return torch.from_numpy(np.array(values, order="C"))

        problem = Problem(network, weights, tensor(rows), tensor(references), own)
        with torch.no_grad():
            outputs = frozen(problem.twin(), problem)(problem.rows)[:, 0]
        calls = TOOLS[tool](problem)
        contributions = calls[max(calls)]().numpy()  # the first call is the slowest
        taken = {n: timed(call)[0] for n, call in calls.items() if len(calls) > 1}
        size = min(taken, key=taken.__getitem__, default=max(calls))
        self.call = calls[size]
        if first:
            contributions = np.moveaxis(contributions, 1, -1)
        return outputs.numpy(), contributions, size

    def seconds(self) -> float:
        """One more call of what was prepared last."""
        return timed(self.call)[0]


def phrase(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    if isinstance(error, Cannot):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:120]}"


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the tools print is no answer
    warnings.simplefilter("ignore")
    worker = Worker()
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = True, getattr(worker, name)(*arguments)
        except Exception as error:  # whatever a tool may raise is the finding
            answer = False, phrase(error)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
