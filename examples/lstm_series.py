"""Which steps of a time series made the network sound the alarm?

Simulates series of noise on a slow wave. Half of them hold a burst, eight steps of a
fast oscillation. An LSTM of flax learns to tell which, and `jaxlift.deeplift_shap`
explains its logit against quiet series: the alarm should come from the burst.

    python examples/lstm_series.py

The exit status is 1 if the contributions of any series fail to add up.
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import completeness_gap, fit, options, verdict
from matplotlib.figure import Figure

import jaxlift
from jaxlift import plots

STEPS, BURST = 60, 8


def simulate(count, seed):
    """Series `(count, STEPS)`, whether each holds a burst, and where it starts."""
    draw = np.random.default_rng(seed)
    steps = np.arange(STEPS)
    phase, period = draw.uniform(0, 2 * np.pi, count), draw.uniform(15, 40, count)
    wave = np.sin(2 * np.pi * steps / period[:, None] + phase[:, None])
    noise = 0.3 * draw.normal(size=(count, STEPS))
    start = draw.integers(4, STEPS - BURST - 4, count)
    since = steps - start[:, None]
    inside = (since >= 0) & (since < BURST)
    burst = inside * np.where(since % 2, -1.0, 1.0) * draw.uniform(0.8, 1.2, (count, 1))
    has_burst = np.arange(count) % 2 == 0
    series = wave + noise + burst * has_burst[:, None]
    return np.float32(series), np.float32(has_burst), start


class Alarm(nn.Module):
    """Series `(n, steps)` to the logit `(n,)` that there is a burst."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.RNN(nn.LSTMCell(24))(x[..., None])
        return nn.Dense(1)(nn.gelu(nn.Dense(16)(hidden.max(-2))))[..., 0]


def draw(path, series, contributions, starts):
    """A panel for each series, with a bar over its burst."""
    figure = Figure(figsize=(9, 1.9 * len(series)), dpi=80, layout="constrained")
    panels = figure.subplots(len(series), 1, sharex=True)
    bound = abs(contributions).max()
    for ax, x, c, start in zip(panels, series, contributions, starts, strict=True):
        plots.series(c, x, bound=bound, label="", ax=ax)
        ends = start - 0.5, start + BURST - 0.5
        ax.plot(ends, (1.04, 1.04), "k", lw=3, transform=ax.get_xaxis_transform(),
                clip_on=False)  # fmt: skip
        ax.set_title(f"logit {c.sum():+.1f} against quiet series", loc="left", size=10)
        ax.label_outer()
    figure.suptitle("contribution to the logit of a burst (black bar: the burst)")
    figure.savefig(path, pil_kwargs={"optimize": True})


def main(argv=None):
    """Trains, explains, draws and prints; the exit status says whether it adds up."""
    arguments = options(__doc__, "lstm_series.png", argv)
    x, y, _ = simulate(4000, arguments.seed)
    test_x, test_y, starts = simulate(400, arguments.seed + 1)
    model = Alarm()
    params = fit(
        lambda params, x, y: optax.sigmoid_binary_cross_entropy(
            model.apply(params, x), y
        ).mean(),
        jax.jit(model.init)(jax.random.key(arguments.seed), x[:1]),
        (x, y),
        steps=10 if arguments.short else 500,
        rate=1e-2,
        seed=arguments.seed,
    )

    @jax.jit
    def f(x):
        return model.apply(params, x)

    def logit(series):
        return f(series[None])[0]

    quiet = jnp.asarray(x[y == 0][:16])
    loud = np.flatnonzero(test_y)[: 8 if arguments.short else 100]
    explain = jax.jit(jax.vmap(jaxlift.deeplift_shap(logit), in_axes=(0, None)))
    with jax.default_matmul_precision("highest"):  # float32 on accelerators too
        outputs, expected = np.asarray(f(test_x)), f(quiet).mean()
        contributions = np.asarray(explain(test_x[loud], quiet))

    accuracy = np.mean((outputs > 0) == test_y)
    print(f"test accuracy {accuracy:.1%} of {len(test_y)} series")
    since = np.arange(STEPS) - starts[loud, None]
    near = (since >= 0) & (since < BURST + 1)  # the step after it ends it
    share = abs(contributions)[near].sum() / abs(contributions).sum()
    print(
        f"{share:.0%} of what contributes lies in the {BURST + 1} of {STEPS} steps "
        "of the burst and its end"
    )
    draw(arguments.out, test_x[loud[:3]], contributions[:3], starts[loud[:3]])
    print(f"figure in {arguments.out}")
    return verdict(completeness_gap(contributions, outputs[loud], expected))


if __name__ == "__main__":
    sys.exit(main())
