"""Measuring jitted functions: wall time, compile time, memory, and on what machine."""

import datetime
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

jax.config.update("jax_enable_compilation_cache", False)


class Spread(NamedTuple):
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        low, median, high = np.percentile(values, (25, 50, 75))
        return cls(float(median), float(low), float(high))

    def __truediv__(self, number: float) -> "Spread":
        return Spread(*(value / number for value in self))


def seconds(function: Callable, *args: Any) -> float:
    """The wall time of one call, until its results are there."""
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


def interleaved(
    one: Callable[[], float], other: Callable[[], float], rounds: int
) -> tuple[Spread, Spread]:
    """Two clocks in turns, A B A B: the first's time, and the second's relative to it.

    Ratios are taken round by round, so that what slows the machine for a while slows
    both sides.
    """
    times = np.array([(one(), other()) for _ in range(rounds)])
    return Spread.of(times[:, 0]), Spread.of(times[:, 1] / times[:, 0])


def compile_seconds(function: Callable, *args: Any) -> float:
    """The time to trace, lower and compile a function that JAX has not seen."""
    jax.clear_caches()
    start = time.perf_counter()
    jax.jit(function).lower(*args).compile()
    return time.perf_counter() - start


def memory_bytes(compiled: Any) -> int | None:
    """What a compiled function needs at its peak; None where a backend cannot say."""
    try:
        analysis = compiled.memory_analysis()
        return (
            analysis.temp_size_in_bytes
            + analysis.output_size_in_bytes
            + analysis.argument_size_in_bytes
            - analysis.alias_size_in_bytes
        )
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None


def surroundings() -> dict[str, Any]:
    """Hardware, versions and date of a run."""
    devices = jax.devices()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: _version(name) for name in ("jaxlift", "jax", "jaxlib", "flax")},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = (line.split(": ")[1] for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return getattr(__import__(name), "__version__", None)


def write_json(path: str, rows: Sequence[dict[str, Any]], about: dict) -> None:
    """One run: where it was made, and its rows."""
    Path(path).write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
