"""Options for XLA that compile fast what hardly runs."""

import functools

import jax


def _accepted(options):
    """Those compiler options that this XLA knows."""

    def known(option):
        try:
            jax.jit(lambda x: x, compiler_options=dict([option]))(0.0)
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return dict(filter(known, options.items()))


# Compile times make up those of the tests, and what is compiled runs a few times. Level
# 0 is not to be had: XLA gets `jax.grad(lambda x: (0.3 * x + 0.1).max(-1).sum() +
# x.mean())` of a float64 (3, 4) wrong there, at more than half of random points.
QUICK = _accepted(
    {
        "xla_backend_optimization_level": 1,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_parallel_codegen_split_count": 1,
        "xla_cpu_use_fusion_emitters": False,
    }
)

quickly = functools.partial(jax.jit, compiler_options=QUICK)
