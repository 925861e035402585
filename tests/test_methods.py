"""The methods to compare with, each against a statement of its own."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import jaxlift
from jaxlift import methods
from jaxlift.methods import QUADRATURES, integrated_gradients

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
X, R, V = (RNG.normal(size=4).astype(np.float32) for _ in range(3))
W, B = RNG.normal(size=(4, 6)).astype(np.float32), RNG.normal(size=6).astype(np.float32)
A = RNG.normal(size=(4, 4)).astype(np.float32)


def close(a, b, tolerance=1e-5):
    jax.tree.map(
        lambda u, v: np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance),
        a,
        b,
    )


def jitted(explain, *args):
    """One compilation is faster than one for each operation."""
    return jax.jit(explain)(*args)


# --------------------------------------------------------------- one backward pass


def net(x):
    hidden = checkpoint_name(jax.nn.relu(x @ W + B), "hidden")
    return jnp.stack([hidden.sum(), hidden @ W[0]])


Z, OUT = X @ W + B, W[0]
BY_MATRICES = {
    "gradient": W @ (OUT * (Z > 0)),
    "gradient_times_input": (X - R) * (W @ (OUT * (Z > 0))),
    "guided_backprop": W @ (np.maximum(OUT, 0) * (Z > 0)),
    "deconvnet": W @ np.maximum(OUT, 0),
    "lrp": (X - R) * (W @ (OUT * np.maximum(Z, 0) / Z)),
}
AT_HIDDEN = {
    "gradient": OUT,
    "gradient_times_input": OUT * (np.maximum(Z, 0) - np.maximum(R @ W + B, 0)),
    "guided_backprop": OUT,
    "deconvnet": OUT,
    "lrp": OUT * (np.maximum(Z, 0) - np.maximum(R @ W + B, 0)),
}


@pytest.mark.parametrize("name", BY_MATRICES)
def test_one_backward_pass_by_matrix_algebra(name):
    method = getattr(methods, name)
    close(jitted(method(net, target=1), X, R), BY_MATRICES[name])
    close(jitted(method(net, target=1, at="hidden"), X, R), AT_HIDDEN[name])


def test_lrp_is_complete_without_biases():
    f = lambda x: jnp.tanh(jax.nn.relu(x @ W) @ OUT)
    close(jitted(methods.lrp(f), X, 0.0).sum(), f(X))


# -------------------------------------------------------------- integrated gradients

POWERS = np.array([3, 1, 2, 1])
MONOMIAL = lambda x: (x**POWERS).prod()
# By hand, for the zero reference: the i-th share is its power's part of the degree.
SHARES = POWERS / POWERS.sum() * MONOMIAL(X)


def monomial_slopes(x):
    return POWERS * MONOMIAL(x) / x


def by_sum(nodes, weights):
    """A quadrature from 0 to X, term by term."""
    return X * sum(
        w * monomial_slopes(t * X) for t, w in zip(nodes, weights, strict=True)
    )


EVEN = np.full(5, 0.2)
SUMS = {
    "left": by_sum([1e-30, 0.2, 0.4, 0.6, 0.8], EVEN),
    "right": by_sum([0.2, 0.4, 0.6, 0.8, 1.0], EVEN),
    "midpoint": by_sum([0.1, 0.3, 0.5, 0.7, 0.9], EVEN),
    "trapezoid": by_sum([1e-30, 0.2, 0.4, 0.6, 0.8, 1], [0.1, *EVEN[1:], 0.1]),
    "gauss_legendre": SHARES,  # exact: the degree 7 is below 10
}
ORDERS = {"left": 1, "right": 1, "midpoint": 2, "trapezoid": 2}


def test_every_quadrature_has_a_sum():
    assert SUMS.keys() == QUADRATURES.keys()


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_quadratures_are_their_sums(quadrature):
    ig = integrated_gradients(MONOMIAL, steps=5, quadrature=quadrature)
    close(jitted(ig, X, 0.0), SUMS[quadrature])


@pytest.mark.parametrize("quadrature", ORDERS)
def test_quadratures_converge_to_the_integral(quadrature, x64):
    x = X.astype(float)

    def error(steps):
        ig = integrated_gradients(MONOMIAL, steps=steps, quadrature=quadrature)
        return np.abs(jitted(ig, x, 0.0) - POWERS / POWERS.sum() * MONOMIAL(x))

    np.testing.assert_allclose(
        error(64) / error(128), 2 ** ORDERS[quadrature], rtol=0.1
    )


def test_a_quadrature_of_ones_own():
    simpson = lambda steps: (np.array([0, 0.5, 1]), np.array([1, 4, 1]) / 6)
    cubic = lambda x: x[0] * x[1] ** 2
    close(
        jitted(integrated_gradients(cubic, quadrature=simpson), X, 0.0),
        np.array([1, 2, 0, 0]) / 3 * cubic(X),
    )


def curved(x, reference, t):
    """Each coordinate at its own pace: `r + t^p (x - r)`."""
    paces = jnp.array([1, 2, 3, 1], t.dtype)
    return reference + t**paces * (x - reference)


def test_along_a_path_of_ones_own():
    f = lambda x: x[0] * x[1]
    # The integral of t^q d(t^p) is p / (p + q).
    shares = np.array([1 / 3, 2 / 3, 0, 0])
    close(jitted(integrated_gradients(f, path=curved), X, 0.0), shares * f(X))
    g = lambda x: jnp.tanh(x @ W).sum()
    c = jitted(integrated_gradients(g, path=curved), X, R)
    close(c.sum(), g(X) - g(R))
    straight = jitted(integrated_gradients(g), X, R)
    assert np.abs(c - straight).max() > 1e-3


def test_a_path_of_trees():
    def late_b(x, reference, t):
        (a, b), (a0, b0) = x, reference
        return {"u": a0["u"] + t * (a["u"] - a0["u"])}, b0 + t**2 * (b - b0)

    f = lambda a, b: (a["u"] * b).sum()
    a, b = {"u": X}, V
    c = jitted(integrated_gradients(f, (0, 1), path=late_b), a, b, (0.0, 0.0))
    close(c, ({"u": X * V / 3}, 2 * X * V / 3))


SATURATED = lambda x: jax.nn.relu(x @ W - 1).sum() + jnp.tanh(5 * x).sum()


def gap(c, f, x, reference):
    y, y0 = f(x), f(reference)
    return abs(c.sum() - (y - y0)) / np.maximum(1, np.maximum(abs(y), abs(y0)))


def test_tolerance_is_met_by_each_example():
    xs = np.stack([X, 0.01 * X, 30 * X])
    at_once = integrated_gradients(SATURATED, steps=4)
    refined = integrated_gradients(SATURATED, steps=4, tolerance=1e-4)
    c = jax.jit(jax.vmap(refined, (0, None)))(xs, R)
    gaps = [gap(c, SATURATED, x, R) for c, x in zip(c, xs, strict=True)]
    assert max(gaps) <= 1.1e-4
    assert gap(jitted(at_once, X, R), SATURATED, X, R) > 1e-3
    one = jax.jit(refined)
    for x, row in zip(xs, c, strict=True):
        close(one(x, R), row)


@pytest.mark.parametrize(
    "tolerance, most, steps", [(np.inf, 99, 2), (0.0, 16, 16), (0.0, 31, 16)]
)
def test_refinement_begins_with_steps_and_ends_at_max_steps(tolerance, most, steps):
    # A left sum over parts is the left sum over the whole.
    ig = functools.partial(integrated_gradients, SATURATED, quadrature="left")
    refined = ig(steps=2, tolerance=tolerance, max_steps=most)
    close(jitted(refined, X, R), jitted(ig(steps=steps), X, R))


def test_refinement_in_half_precision_goes_on_until_it_is_complete():
    # The change of the output is beyond float16.
    f = lambda x: 40000 * jnp.sin(1.5 * x.mean())
    ig = functools.partial(integrated_gradients, f, quadrature="left")
    ends = jnp.ones(2, jnp.float16), -1.0
    np.testing.assert_allclose(
        ig(steps=2, tolerance=1e-3, max_steps=16)(*ends), ig(steps=16)(*ends), rtol=1e-2
    )


def test_refinement_ends_where_nothing_is_finite():
    ig = integrated_gradients(lambda x: jnp.sqrt(x).sum(), steps=2, tolerance=0.1)
    assert np.isnan(jitted(ig, -1 - abs(X), X * 0)).all()


# ----------------------------------------------------------------------- sampling

REFERENCES = RNG.normal(size=(3, 4)).astype(np.float32)
CUBIC = lambda x: (x @ V) ** 3


def test_expected_gradients_average_integrated_gradients():
    samples = 4000
    explain = methods.expected_gradients(CUBIC, samples=samples)
    ig = jax.vmap(integrated_gradients(CUBIC, steps=3), (None, 0))
    expected = jitted(ig, X, REFERENCES).mean(0)
    # The spread of a sample, from numpy's own draws.
    t, k = RNG.uniform(size=samples), RNG.integers(3, size=samples)
    d = X - REFERENCES[k]
    terms = d * (3 * V * ((X - (1 - t)[:, None] * d) @ V)[:, None] ** 2)
    error = np.abs(jitted(explain, KEY, X, REFERENCES) - expected)
    assert (error < 5 * terms.std(0) / np.sqrt(samples)).all()


def test_expected_gradients_of_a_linear_function_are_exact():
    explain = methods.expected_gradients(lambda x: x @ V, samples=3)
    close(jitted(explain, KEY, X, R[None]), V * (X - R))


def test_expected_gradients_draw_every_reference():
    explain = methods.expected_gradients(lambda x: x.sum(), samples=1)
    each = jax.vmap(explain, (0, None, None))
    found = jitted(each, jax.random.split(KEY, 60), X, REFERENCES)
    assert len(np.unique(np.round(X - found, 4), axis=0)) == 3


def test_smoothgrad_of_a_quadratic():
    f, noise, samples = lambda x: x @ A @ x / 2, 0.3, 500
    symmetric = (A + A.T) / 2
    explain = methods.smoothgrad(f, samples=samples, noise=noise)
    error = jitted(explain, KEY, X, R) - symmetric @ X
    spread = noise * np.linalg.norm(symmetric, axis=0)
    assert (np.abs(error) < 5 * spread / np.sqrt(samples)).all()
    one = methods.smoothgrad(f, samples=1, noise=noise)
    each = jax.vmap(one, (0, None, None))
    draws = jitted(each, jax.random.split(KEY, 2000), X, R)
    np.testing.assert_allclose(draws.std(0), spread, rtol=0.1)


@pytest.mark.parametrize("method", [methods.gradient, jaxlift.deeplift])
def test_smoothgrad_without_noise_is_the_method(method):
    smooth = methods.smoothgrad(net, target=1, noise=0.0, samples=2, method=method)
    close(jitted(smooth, KEY, X, R), jitted(method(net, target=1), X, R))


SAMPLED = {
    "expected_gradients": (methods.expected_gradients, REFERENCES),
    "smoothgrad": (methods.smoothgrad, R),
}


@pytest.mark.parametrize("name, size", [("expected_gradients", 20), ("smoothgrad", 3)])
def test_batches_of_samples_change_nothing(name, size):
    method, reference = SAMPLED[name]
    at_once = jitted(method(CUBIC, samples=10), KEY, X, reference)
    in_batches = jitted(method(CUBIC, samples=10, batch_size=size), KEY, X, reference)
    close(in_batches, at_once)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_function_may_have_a_keyword_called_key(name):
    method, reference = SAMPLED[name]
    scale = lambda key: jax.random.uniform(key)
    explain = method(lambda x, key: scale(key) * (x @ V), samples=2)
    plain = method(lambda x: x @ V, samples=2)(KEY, X, reference)
    own = jax.random.key(1)
    close(explain(KEY, X, reference, key=own), scale(own) * plain)


# ------------------------------------------------------------------------ Grad-CAM

IMAGE = RNG.normal(size=(7, 6, 2)).astype(np.float32)
KERNEL = RNG.normal(size=(3, 3, 2, 5)).astype(np.float32)
HEAD = RNG.normal(size=5).astype(np.float32)


def conv_net(image, layer_axis=-1):
    maps = jax.lax.conv_general_dilated(
        image[None], KERNEL, (2, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]
    tagged = checkpoint_name(jnp.moveaxis(jax.nn.relu(maps), -1, layer_axis), "maps")
    return jnp.tanh(jnp.moveaxis(tagged, layer_axis, -1).mean((0, 1))) @ HEAD


def numpy_grad_cam(image):
    places = [(i, j) for i in range(0, 5, 2) for j in range(4)]
    patches = np.stack([image[i : i + 3, j : j + 3] for i, j in places])
    maps = np.maximum(np.einsum("pijc,ijck->pk", patches, KERNEL), 0)
    weights = (1 - np.tanh(maps.mean(0)) ** 2) * HEAD / len(places)
    return np.maximum(maps @ weights, 0).reshape(3, 4)


def stretched(values, size, axis):
    """Linear interpolation between the centres of cells."""
    n = values.shape[axis]
    centres = (np.arange(size) + 0.5) * n / size - 0.5
    return np.apply_along_axis(lambda v: np.interp(centres, range(n), v), axis, values)


def test_grad_cam():
    expected = numpy_grad_cam(IMAGE)
    assert 0 < (expected > 0).sum()
    close(jitted(methods.grad_cam(conv_net, layer="maps"), IMAGE, 0.0), expected)
    f = functools.partial(conv_net, layer_axis=0)
    cam = methods.grad_cam(f, layer="maps", channel_axis=0)
    close(jitted(cam, IMAGE, 0.0), expected)


@pytest.mark.parametrize("axis", [-1, 0])
def test_guided_grad_cam(axis):
    f = lambda image: conv_net(jnp.moveaxis(image, axis, -1), axis)
    explain = methods.guided_grad_cam(f, layer="maps", channel_axis=axis)
    cam = stretched(stretched(numpy_grad_cam(IMAGE), 7, 0), 6, 1)
    guided = jitted(methods.guided_backprop(conv_net), IMAGE, 0.0)
    expected = np.moveaxis(guided * cam[:, :, None], -1, axis)
    close(jitted(explain, np.moveaxis(IMAGE, -1, axis), 0.0), expected)


def test_guided_grad_cam_of_an_input_without_channels():
    f = lambda image: conv_net(jnp.stack([image, image], -1))
    image = IMAGE[..., 0]
    cam = numpy_grad_cam(np.stack([image, image], -1))
    guided = jitted(methods.guided_backprop(f), image, 0.0)
    expected = guided * stretched(stretched(cam, 7, 0), 6, 1)
    close(jitted(methods.guided_grad_cam(f, layer="maps"), image, 0.0), expected)


# --------------------------------------------------------- the transforms of JAX

CALLS = {
    **{name: (getattr(methods, name), R) for name in BY_MATRICES},
    "integrated_gradients": (functools.partial(integrated_gradients, steps=3), R),
    "refined": (
        functools.partial(integrated_gradients, steps=2, tolerance=1e-2, max_steps=8),
        R,
    ),
    "grad_cam": (functools.partial(methods.grad_cam, layer="hidden"), R),
    "guided_grad_cam": (functools.partial(methods.guided_grad_cam, layer="places"), R),
    "expected_gradients": (
        functools.partial(methods.expected_gradients, samples=4, batch_size=3),
        REFERENCES,
    ),
    "smoothgrad": (functools.partial(methods.smoothgrad, samples=4), R),
}


def keyed(name, explain):
    return functools.partial(explain, KEY) if name in SAMPLED else explain


def tagged_net(x):
    x = checkpoint_name(x[:, None] * jnp.ones(2), "places")[:, 0]
    return net(x)


@pytest.mark.parametrize("name", CALLS)
def test_jit_and_vmap(name):
    method, reference = CALLS[name]
    explain = keyed(name, method(tagged_net, target=1))
    xs = np.stack([X, V])
    one = jax.jit(explain) if name in SAMPLED else explain
    rows = [one(x, reference) for x in xs]
    close(jax.jit(jax.vmap(explain, (0, None)))(xs, reference), np.stack(rows))


@pytest.mark.parametrize("name", [k for k in CALLS if "cam" not in k])
def test_trees_are_explained_like_one_array(name):
    method, _ = CALLS[name]
    parts = lambda v: ({"u": v[..., :1]}, v[..., 1:])
    f = lambda a, k, b: net(k * jnp.concatenate([a["u"], b]))[1]
    whole = lambda v: f(parts(v)[0], 2.0, parts(v)[1])
    if name in SAMPLED:  # one reference, no noise: nothing depends on the draw
        drawn = {"expected_gradients": {"samples": 1}, "smoothgrad": {"noise": 0.0}}
        method = functools.partial(getattr(methods, name), **drawn[name])
        f, whole = (lambda a, k, b: a["u"] @ V[:1] + b @ V[1:]), lambda v: v @ V
    reference = R[None] if name == "expected_gradients" else R
    a, b = parts(X)
    explain = keyed(name, method(f, (0, -1)))
    expected = jitted(keyed(name, method(whole)), X, reference)
    close(jitted(explain, a, 2.0, b, parts(reference)), parts(expected))


def test_low_precision_stays(x64):
    x, r = X.astype(np.float16), R.astype(np.float16)
    f = lambda x: jnp.tanh(x).sum()
    for path in (methods.straight_path, lambda x, r, t: r + jnp.float64(t) * (x - r)):
        c = jitted(integrated_gradients(f, steps=4, path=path), x, r)
        assert c.dtype == x.dtype
        close(c, np.tanh(X) - np.tanh(R), 5e-3)


# ------------------------------------------------------------------------- errors

WHOLE = lambda x: x.sum()
ERRORS = {
    "quadrature": (ValueError, "'simpson'.*midpoint",
                   lambda: integrated_gradients(WHOLE, quadrature="simpson")),
    "a quadrature's weights": (
        ValueError, r"quadrature.*\(2,\) and \(3,\)",
        lambda: integrated_gradients(
            WHOLE, steps=2, quadrature=lambda n: (np.zeros(n), np.ones(n + 1)))),
    "tolerance": (ValueError, "tolerance.*nan",
                  lambda: integrated_gradients(WHOLE, tolerance=np.nan)),
    "noise": (ValueError, r"noise.*\(2, 4\).*\(4,\)",
              lambda: methods.smoothgrad(WHOLE, noise=jnp.ones((2, 4)))(KEY, X, R)),
    "steps": (ValueError, "steps.*0", lambda: integrated_gradients(WHOLE, steps=0)),
    "whole steps": (TypeError, "steps.*2.5",
                    lambda: integrated_gradients(WHOLE, steps=2.5)),
    "max_steps": (ValueError, "max_steps 8.*32",
                  lambda: integrated_gradients(WHOLE, tolerance=0.1, max_steps=8)),
    "path's shape": (ValueError, r"path.*\(3,\).*\(4,\)",
                     lambda: integrated_gradients(
                         WHOLE, path=lambda x, r, t: x[1:] * t)(X, R)),
    "path's tree": (ValueError, "path.*tree",
                    lambda: integrated_gradients(
                        WHOLE, path=lambda x, r, t: (x * t,))(X, R)),
    "not a function": (TypeError, "int: 3", lambda: integrated_gradients(3)),
    "vector output": (ValueError, r"\(2,\).*target=",
                      lambda: integrated_gradients(net)(X, R)),
    "samples": (ValueError, "samples.*0",
                lambda: methods.smoothgrad(WHOLE, samples=0)),
    "batch_size": (ValueError, "batch_size.*0",
                   lambda: methods.smoothgrad(WHOLE, batch_size=0)(KEY, X, R)),
    "references": (jaxlift.ReferenceMismatchError, "leading axis",
                   lambda: methods.expected_gradients(WHOLE)(KEY, X, 0.0)),
    "no key": (TypeError, "PRNG key",
               lambda: methods.expected_gradients(WHOLE)(X, REFERENCES)),
    "reference": (jaxlift.ReferenceMismatchError, r"\(3,\)",
                  lambda: methods.gradient(WHOLE)(X, R[:3])),
    "no tag": (ValueError, r"'maps'.*\['hidden'\]",
               lambda: methods.grad_cam(net, layer="maps", target=0)(X, R)),
    "channel_axis": (ValueError, "channel_axis.*3",
                     lambda: methods.grad_cam(
                         conv_net, layer="maps", channel_axis=3)(IMAGE, 0.0)),
    "axes": (ValueError, r"\(3, 4\).*\(84,\)",
             lambda: methods.guided_grad_cam(
                 lambda v: conv_net(v.reshape(7, 6, 2)), layer="maps")(
                     IMAGE.ravel(), 0.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_offender_while_tracing(name):
    kind, message, call = ERRORS[name]
    with pytest.raises(kind, match=message):
        jax.eval_shape(lambda: call())


def test_the_page_runs():
    page = Path(__file__).parents[1] / "docs" / "methods.md"
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "methods.md", "exec"), names)
