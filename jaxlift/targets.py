"""What to explain: ready values for `target=`.

A target is a function of the output of `f`, and becomes part of what is explained.
Those below are linear in the output, up to weights that are frozen, so that
contributions to them are the same combination of the contributions to each output.

Outputs have their classes on the last axis, whatever stands before it. A target leaves
the axes before as they are; `summed` adds up over them, which explains every example of
a batch at once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Target = Callable[[Any], jax.Array]


def logit(k: int) -> Target:
    """One class: `y[..., k]`.

    Args:
      k: the class, an index of the last axis.

    Returns:
      A target: `(..., classes) -> (...)`, in units of the output.

    Raises:
      TypeError: `k` is no integer.
      ValueError: while tracing, if the output has no class `k`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> from jaxlift import targets
      >>> f = lambda x: jnp.stack([x.sum(), 2 * x[0]])
      >>> jaxlift.deeplift(f, target=targets.logit(1))(jnp.ones(2), 0.0)
      Array([2., 0.], dtype=float32)

    Source: Shrikumar, Greenside, Kundaje, ICML 2017 (arXiv 1704.02685), section 3.6:
    explain the input of the last sigmoid or softmax, not its output.
    """
    k = _integer(k)
    return lambda y: _class(y, k)


def log_odds(a: int, b: int) -> Target:
    """How much more one class is predicted than another: `y[..., a] - y[..., b]`.

    Of logits it is `log(p_a / p_b)`, whatever the other classes do. The paper's
    experiment on digits explains it: what to erase to turn an 8 into a 3.

    Args:
      a: the class that is predicted, an index of the last axis.
      b: the class that it is compared with.

    Returns:
      A target: `(..., classes) -> (...)`; of logits, in nats.

    Raises:
      TypeError: `a` or `b` is no integer.
      ValueError: while tracing, if the output has no such class.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxlift import targets
      >>> y = jnp.array([1.0, 3.0, 7.0])
      >>> p = jax.nn.softmax(y)
      >>> float(targets.log_odds(1, 0)(y)), round(float(jnp.log(p[1] / p[0])), 5)
      (2.0, 2.0)

    Source: Shrikumar et al. 2017, section 4.1.
    """
    a, b = _integer(a), _integer(b)
    return lambda y: _class(y, a) - _class(y, b)


def mean_normalised(k: int) -> Target:
    """One class above the mean of all: `y[..., k] - y.mean(-1)`.

    A softmax does not see what is added to all of its logits. Contributions to a logit
    contain what goes to all classes alike; these do not, and they add up to zero over
    the classes.

    Args:
      k: the class, an index of the last axis.

    Returns:
      A target: `(..., classes) -> (...)`, in units of the output.

    Raises:
      TypeError: `k` is no integer.
      ValueError: while tracing, if the output has no class `k`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import targets
      >>> y = jnp.array([1.0, 3.0, 8.0])
      >>> float(targets.mean_normalised(2)(y)), float(targets.mean_normalised(2)(y + 9))
      (4.0, 4.0)

    Source: Shrikumar et al. 2017, section 3.6 ("Adjustments for softmax layers"):
    `C'_k = C_k - mean_j C_j`.
    """
    k = _integer(k)
    return lambda y: _class(y, k) - jnp.mean(y, -1)


def profile(axis: int | tuple[int, ...] = -1) -> Target:
    """The shape of a predicted profile: `sum_i w_i l_i`, weighted by where it is high.

    `l = y - mean(y)` are the mean-normalised logits of the positions, and `w` is their
    softmax at the input, frozen: a constant in both evaluations, so that contributions
    add up to `sum_i w_i (l_i(x) - l_i(reference))`, and why the weights are what they
    are is not explained. Adding a constant to all positions changes nothing.

    Args:
      axis: that of the positions, or several over which the softmax is taken jointly
        (two strands that share one multinomial, say). It is summed over.

    Returns:
      A target: the output's shape without `axis`, in units of the output.

    Raises:
      ValueError: while tracing, if the output has no such axis, or `axis` names one
        twice.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxlift import targets
      >>> float(targets.profile()(jnp.array([0.0, 0.0, 30.0])))
      20.0

    Source: chrombpnet (Kundaje lab), `get_weightedsum_meannormed_logits`. BPNet (Avsec
    et al., Nature Genetics 2021) weights the logits as they are, without the mean, and
    averages over strands; bpnet-lite's wrapper no longer freezes the weights.
    """
    several: Any = (axis,) if np.ndim(axis) == 0 else axis
    axes = tuple(_integer(k, "an axis") for k in several)

    def target(y: Any) -> jax.Array:
        shape = _shape(y, "profile()")
        ndim = len(shape)
        if not all(-ndim <= k < ndim for k in axes):
            raise ValueError(
                f"axis {axis} of a profile is out of range for an output of shape "
                f"{shape}"
            )
        if len({k % ndim for k in axes}) < len(axes):
            raise ValueError(
                f"axis {axis} of a profile names one twice, of an output of shape "
                f"{shape}"
            )
        centred = y - jnp.mean(y, axes, keepdims=True)
        weights = jax.nn.softmax(lax.stop_gradient(centred), axes)
        return jnp.sum(weights * centred, axes)

    return target


def summed(target: Target) -> Target:
    """A target added up over all axes that it leaves: a scalar.

    For a function that maps a batch to a batch, `deeplift(f, target=summed(logit(2)))`
    explains every example at once, each on its own as long as no output depends on
    another example.

    Args:
      target: one of this module, or any function of the output.

    Returns:
      A target: `(...) -> ()`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxlift
      >>> from jaxlift import targets
      >>> explain = jaxlift.deeplift(jnp.tanh, target=targets.summed(targets.logit(0)))
      >>> batch = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> explain(batch, 0.0)[:, 1]
      Array([0., 0.], dtype=float32)
    """
    return lambda y: jnp.sum(target(y))


def _integer(k: Any, what: str = "a class") -> int:
    try:
        return operator.index(k)
    except TypeError:
        raise TypeError(f"{what} must be an integer, not {k!r}") from None


def _shape(y: Any, target: str) -> tuple[int, ...]:
    if isinstance(y, (tuple, list, dict)):
        raise TypeError(
            f"the output is a {type(y).__name__}, not an array: pick one of its arrays "
            f"in a target of your own, target=lambda y: targets.{target}(y[0])"
        )
    return jnp.shape(y)


def _class(y: Any, k: int) -> jax.Array:
    shape = _shape(y, "logit(k)")
    if not shape or not -shape[-1] <= k < shape[-1]:
        raise ValueError(
            f"class {k} is out of range for an output of shape {shape}, which has its "
            "classes on the last axis"
        )
    return y[..., k]
