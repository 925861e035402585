"""Shared by all tests: 8 simulated devices, helpers, and where the oracles lie."""

import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest

_DEVICES = "--xla_force_host_platform_device_count=8"
# Compile times make up those of the tests, and what is compiled runs a few times. Level
# 0 is not to be had: XLA gets `jax.grad(lambda x: (0.3 * x + 0.1).max(-1).sum() +
# x.mean())` of a float64 (3, 4) wrong there, at more than half of random points.
_QUICK = [
    "--xla_backend_optimization_level=1",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false",
]


def _flags():
    """Those for XLA, but for those that it does not know: it ends and names them."""
    tried = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "XLA_FLAGS": " ".join(_QUICK)},
        capture_output=True,
        text=True,
    )
    known = [f for f in _QUICK if f.partition("=")[0] not in tried.stderr]
    return " ".join([_DEVICES, *known])


# Processes that share the tests are given the environment of the one that starts them.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = _flags()
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax  # noqa: E402  it reads what is set above

# Programs that are dropped (below, and where a test of many functions drops them) need
# not be compiled again. Each process has its own: entries are not written atomically.
_COMPILED = tempfile.TemporaryDirectory(prefix="jaxlift-compiled-")
jax.config.update("jax_compilation_cache_dir", _COMPILED.name)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture
def x64():
    """Run a test with 64-bit types."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def _small_processes():
    """Compiled programs are dropped with the module: large processes become slow."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def own_draws(request):
    """A test draws the same numbers whichever tests ran before it."""
    if hasattr(request.module, "RNG"):
        # Not a module's own seed, which would repeat the constants drawn from it.
        request.module.RNG = np.random.default_rng(2)
