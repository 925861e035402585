"""Shared by all tests: 8 simulated devices, helpers, and where the oracles lie."""

import os
import tempfile

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import numpy as np
import pytest

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
