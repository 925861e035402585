"""RevealCancel: the paper's examples, the Linear rule in matrices, parts, networks."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from networks import NETWORKS
from sampling import alternating
from test_networks import gaps

import jaxlift

KEYS = jax.random.split(jax.random.key(11), 6)
RULES = {"reveal_cancel": jaxlift.REVEAL_CANCEL, "genomics": jaxlift.GENOMICS_DEFAULT}
FAMILIES = [
    "mlp_relu", "mlp_gelu", "mlp_silu", "mlp_softmax", "cnn_max_overlapping", "cnn_avg",
    "resnet", "layer_norm", "rms_norm", "group_norm", "lstm", "gru", "encoder",
    "scanned_remat",
]  # fmt: skip


def test_minimum_of_two_inputs():
    # i1 - relu(i1 - i2) is the minimum; Rescale and gradients see one input only.
    w = jnp.array([[1.0], [-1.0]])
    minimum = lambda i: i[0] - jax.nn.relu(i @ w)[0]
    i = jnp.array([3.0, 2.0])
    np.testing.assert_allclose(jaxlift.deeplift(minimum)(i, 0.0), [0, 2])
    shared = jaxlift.deeplift(minimum, rules=jaxlift.REVEAL_CANCEL)(i, 0.0)
    np.testing.assert_allclose(shared, [1, 1], rtol=1e-6)


@pytest.mark.parametrize("rules", [jaxlift.RESCALE, jaxlift.REVEAL_CANCEL])
def test_saturation_and_threshold(rules):
    w = jnp.array([[-1.0], [-1.0]])
    saturated = lambda i: 1 - jax.nn.relu(1 + i @ w)[0]
    c = jaxlift.deeplift(saturated, rules=rules)(jnp.array([1.0, 1.0]), 0.0)
    np.testing.assert_allclose(c, [0.5, 0.5])
    threshold = lambda x: jax.nn.relu(x @ jnp.ones((1, 1)) - 10)[0]
    for x, expected in [(9.9, 0.0), (10.5, 0.5), (20.0, 10.0)]:
        c = jaxlift.deeplift(threshold, rules=rules)(jnp.array([x]), 0.0)
        np.testing.assert_allclose(c, [expected], atol=1e-5)


def test_a_step_of_parts_times_something_fixed_is_a_step():
    w = jnp.array([[1.0], [-1.0]])
    whole = lambda z: z.astype(int) % 3
    for step in (jnp.sign, jnp.floor, whole, lambda z: (z > 1) * jnp.ones(1)):
        f = lambda i, step=step: (step(i @ w) * jnp.array([3.0])).sum()
        i, r = jnp.array([3.0, 0.5]), jnp.array([0.25, 2.5])
        c = jaxlift.deeplift(f, rules=jaxlift.REVEAL_CANCEL)(i, r)
        np.testing.assert_allclose(c.sum(), f(i) - f(r), rtol=1e-6)


# Halfway `1 + z` is negative if the second input moves first; `1 - z^2` on both ways.
ORDERS = {
    "both": (lambda z: jnp.sqrt(5 + z), lambda g, p, n: _two_orders(g, p, n)),
    "up_first": (
        lambda z: jnp.sqrt(1 + z),
        lambda g, p, n: (g(p) - g(0.0), g(p + n) - g(p)),
    ),
    "neither": (
        lambda z: jnp.sqrt(1 - z * z),
        lambda g, p, n: (g(p + n) - g(0.0)) / (p + n) * np.array([p, n]),
    ),
}


def _two_orders(g, p, n):
    up = (g(p) - g(0.0) + g(p + n) - g(n)) / 2
    return up, g(p + n) - g(0.0) - up


@pytest.mark.parametrize("activation, oracle", ORDERS.values(), ids=ORDERS)
def test_mean_over_the_orders_that_are_defined(activation, oracle):
    f = lambda i: activation(i @ jnp.array([[1.0], [-1.0]]))[0]
    i = jnp.array([3.0, 2.5])
    c = jaxlift.deeplift(f, rules=jaxlift.REVEAL_CANCEL)(i, 0.0)
    np.testing.assert_allclose(c, oracle(activation, 3.0, -2.5), rtol=1e-5)


def test_the_rules_in_matrices(x64):
    """Dense, relu, dense, tanh, dense, restated with masks and quotients."""
    w1 = jax.random.normal(KEYS[0], (5, 7))
    b1 = jax.random.normal(KEYS[1], (7,))
    w2 = jax.random.normal(KEYS[2], (7, 4))
    w3 = jax.random.normal(KEYS[3], (4,))
    x = jax.random.normal(KEYS[4], (5,))
    r = jax.random.normal(KEYS[5], (5,)).at[2].set(x[2])  # an input that rests
    f = lambda x: jnp.tanh(jax.nn.relu(x @ w1 + b1) @ w2) @ w3

    relu = lambda z: np.maximum(z, 0)

    def linear(dx, w):
        w_up, w_down = np.maximum(w, 0), np.minimum(w, 0)
        up, down = np.maximum(dx, 0), np.minimum(dx, 0)
        return up @ w_up + down @ w_down, up @ w_down + down @ w_up

    def back(dx, w, m_pos, m_neg):
        w_up, w_down = np.maximum(w, 0), np.minimum(w, 0)
        rising = w_up @ m_pos + w_down @ m_neg
        falling = w_down @ m_pos + w_up @ m_neg
        still = 0.5 * w @ (m_pos + m_neg)
        return np.where(dx > 0, rising, np.where(dx < 0, falling, still))

    def activation(fn, r, p, n):
        up = 0.5 * (fn(r + p) - fn(r) + fn(r + p + n) - fn(r + n))
        down = 0.5 * (fn(r + n) - fn(r) + fn(r + p + n) - fn(r + p))
        return up, down, up / p, down / n

    w1, b1, w2, w3 = (np.asarray(a) for a in (w1, b1, w2, w3))
    dx = np.asarray(x - r)
    p1, n1 = linear(dx, w1)
    i_up1, i_down1, up1, down1 = activation(relu, np.asarray(r) @ w1 + b1, p1, n1)
    d2 = i_up1 + i_down1
    p2, n2 = linear(d2, w2)
    z2 = relu(np.asarray(r) @ w1 + b1) @ w2
    _, _, up2, down2 = activation(np.tanh, z2, p2, n2)
    last = back(np.ones(4), w3[:, None], np.ones(1), np.ones(1))
    m2 = back(d2, w2, up2 * last, down2 * last)
    expected = back(dx, w1, up1 * m2, down1 * m2)

    m = jaxlift.multipliers(f, rules=jaxlift.REVEAL_CANCEL)(x, r)
    np.testing.assert_allclose(m, expected, rtol=1e-10)


def test_a_product_of_two_varying_values_in_matrices(x64):
    """Attention's scores, restated with masks: `M+` keeps a part, `M-` turns it."""
    rng = np.random.default_rng(2)
    x, r, w1, w2 = rng.normal(size=(4, 3, 3))
    f = lambda x: jnp.tanh((x @ w1) @ (x @ w2).T).sum()

    up, down = (functools.partial(side, 0) for side in (np.maximum, np.minimum))

    def parts(pos, neg, w):
        return pos @ up(w) + neg @ down(w), pos @ down(w) + neg @ up(w)

    dx = x - r
    (qp, qn), (kp, kn) = (parts(up(dx), down(dx), w) for w in (w1, w2))
    q, k = ((x + r) @ w / 2 for w in (w1, w2))
    one, other = parts(qp, qn, k.T), parts(kp, kn, q.T)
    p, n = (a + b.T for a, b in zip(one, other, strict=True))
    z = (r @ w1) @ (r @ w2).T
    t, end = np.tanh, np.tanh(z + p + n)
    m_pos = (t(z + p) - t(z) + end - t(z + n)) / 2 / p
    m_neg = (t(z + n) - t(z) + end - t(z + p)) / 2 / n

    def back(m_pos, m_neg, w):
        to_pos = m_pos @ up(w).T + m_neg @ down(w).T
        return to_pos, m_pos @ down(w).T + m_neg @ up(w).T

    m_q, m_k = back(m_pos, m_neg, k.T), back(m_pos.T, m_neg.T, q.T)
    up_q, down_q = back(*m_q, w1)
    up_k, down_k = back(*m_k, w2)
    expected = np.where(dx > 0, up_q + up_k, down_q + down_k)

    m = jaxlift.multipliers(f, rules=jaxlift.REVEAL_CANCEL)
    np.testing.assert_allclose(m(x, r), expected, rtol=1e-9)
    # Three products at each point, one of sizes for each operand that varies, and for
    # each of these four two on the way back, where a gradient has one.
    products = re.findall("dot_general", str(jax.make_jaxpr(m)(x, r)))
    assert len(products) <= 2 * 3 + 4 + 2 * 4


CASES = [
    *((name, "reveal_cancel", dtype) for name, dtype in alternating(FAMILIES)),
    *((name, "genomics", "float64") for name in ("cnn_avg", "mlp_relu")),
]


@pytest.mark.parametrize("name, rules, dtype", CASES)
def test_complete_on_every_family(name, rules, dtype, x64):
    make, shape = NETWORKS[name]
    f = make()
    x = jax.random.normal(KEYS[0], shape).astype(dtype)

    def evaluate(x, r):
        y, y0, pullback = jaxlift.vjp(f, x, r, rules=RULES[rules])
        return y, y0, jax.vmap(pullback)(jnp.eye(3, dtype=y.dtype)), jax.jacrev(f)(x)

    evaluate = jax.jit(evaluate)
    for r in (jax.random.normal(KEYS[1], shape).astype(dtype), jnp.zeros_like(x)):
        y, y0, slopes, _ = evaluate(x, r)
        gap, allowed = gaps(x, r, y, y0, slopes)
        assert (gap <= allowed).all(), (gap, allowed)
    *_, slopes, gradient = evaluate(x, x)
    tolerance = {"float32": 2e-6, "float64": 1e-13}[dtype]
    assert abs(slopes - gradient).max() <= tolerance * max(1, abs(gradient).max())


def test_jit_vmap_and_reference_sets():
    make, shape = NETWORKS["mlp_silu"]
    f = make()
    xs = jax.random.normal(KEYS[0], (3, *shape))
    rs = jax.random.normal(KEYS[1], (2, *shape))
    g = jaxlift.deeplift(f, target=0, rules=jaxlift.REVEAL_CANCEL)
    once = jax.jit(g)
    loop = np.stack([[once(x, r) for r in rs] for x in xs])
    both = jax.jit(jax.vmap(jax.vmap(g, (None, 0)), (0, None)))
    np.testing.assert_allclose(both(xs, rs), loop, rtol=1e-4, atol=1e-6)
    shap = jaxlift.deeplift_shap(f, target=0, rules=jaxlift.REVEAL_CANCEL, batch_size=1)
    mean = jax.jit(jax.vmap(shap, (0, None)))(xs, rs)
    np.testing.assert_allclose(mean, loop.mean(1), rtol=1e-4, atol=1e-6)


def tagged(x):
    w1, w2 = jax.random.normal(KEYS[2], (5, 6)), jax.random.normal(KEYS[3], (6, 3))
    hidden = checkpoint_name(jax.nn.gelu(x @ w1), "hidden")
    with jax.named_scope("head"):
        return jnp.tanh(hidden @ w2).sum()


def test_parts_of_inputs_and_of_tagged_values(x64):
    x, r = jax.random.normal(KEYS[0], (5,)), jax.random.normal(KEYS[1], (5,))
    total = tagged(x) - tagged(r)
    for at in (None, "hidden"):
        four = jaxlift.parts(tagged, at=at)(x, r)
        np.testing.assert_allclose(sum(map(jnp.sum, four)), total, rtol=1e-10)
        c = jaxlift.deeplift(tagged, at=at, rules=jaxlift.REVEAL_CANCEL)(x, r)
        np.testing.assert_allclose(sum(four), c, rtol=1e-10)
        m = jaxlift.multipliers(tagged, at=at, rules=jaxlift.REVEAL_CANCEL)(x, r)
        difference = x - r
        if at:
            hidden = jaxlift.intermediate(tagged, at)
            difference = hidden(x) - hidden(r)
        np.testing.assert_allclose(m * difference, c, rtol=1e-9)
    # What arrives at the positive part of a sum of positives and negatives.
    f = lambda x: x @ jnp.array([1.0, -1.0, 1.0, -1.0, 0.5])
    four = jaxlift.parts(f)(x, r)
    assert all((p >= 0).all() for p in (four.pos_to_pos, four.neg_to_pos))
    assert all((p <= 0).all() for p in (four.pos_to_neg, four.neg_to_neg))


def test_rules_by_name_scope():
    x, r = jax.random.normal(KEYS[0], (5,)), jax.random.normal(KEYS[1], (5,))
    explain = lambda rules: jaxlift.deeplift(tagged, rules=rules)(x, r)
    rescale, reveal = jaxlift.RESCALE, jaxlift.REVEAL_CANCEL
    in_head = explain(jaxlift.scoped(rescale, {"head": reveal}))
    np.testing.assert_allclose(in_head.sum(), explain(rescale).sum(), rtol=1e-5)
    assert abs(in_head - explain(rescale)).max() > 1e-3
    assert abs(in_head - explain(reveal)).max() > 1e-3
    elsewhere = explain(jaxlift.scoped(rescale, {"tail": reveal}))
    np.testing.assert_array_equal(elsewhere, explain(rescale))


MIX = np.array(jax.random.normal(KEYS[4], (5, 5)))
SEEN = np.array([True, True, False, True, False])
UNUSUAL = {  # behind weights that open a split
    "masked softmax": lambda z: jax.nn.softmax(jnp.where(SEEN, z, -jnp.inf))[0],
    "masked softmax of products": lambda z: (
        jax.nn.softmax(jnp.where(SEEN, z * z[::-1], -jnp.inf)) @ z
    ),
    "masked maximum": lambda z: jnp.max(z, initial=-jnp.inf, where=SEEN),
    "what stays at infinity": lambda z: jnp.tanh(jnp.where(SEEN, z, jnp.inf)).sum(),
    "what stays below": lambda z: (
        jax.nn.relu(jnp.where(SEEN, z, -jnp.inf)).sum()
        + jnp.where(SEEN, jnp.square(jnp.where(SEEN, z, jnp.inf)), 0).sum()
    ),
    "complex solve": lambda z: abs(jnp.linalg.solve(np.eye(5) + 0.1j * MIX, z)).sum(),
    "complex product": lambda z: abs((1j * MIX) @ jnp.fft.fft(z)).sum(),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_masks_and_complex_numbers(name, x64):
    f = lambda x: UNUSUAL[name](MIX @ x)
    x, r = jax.random.normal(KEYS[0], (5,)), jax.random.normal(KEYS[1], (5,))
    c = jaxlift.deeplift(f, rules=jaxlift.REVEAL_CANCEL)(x, r)
    np.testing.assert_allclose(c.sum(), f(x) - f(r), rtol=1e-12)
    parts = jaxlift.parts(f)(x, r)
    assert np.isfinite(parts).all()


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("pseudocount", [1e-3, 1e-6, 1e-8])
@pytest.mark.parametrize("function", [jnp.log, jnp.sqrt, lambda y: -jax.lax.rsqrt(y)])
def test_counts_beside_a_singularity(function, pseudocount, rules):
    """The part that is not there must not drown the other one in rounding."""
    rng = np.random.default_rng(5)
    weights, x = rng.uniform(size=(64, 8)), rng.uniform(size=64)
    weights, x = weights.astype(np.float32), x.astype(np.float32)
    f = lambda x: function(x @ weights + pseudocount).sum()
    contributions = jaxlift.deeplift(f, rules=RULES[rules])(x, 0.0)
    np.testing.assert_allclose(contributions.sum(), f(x) - f(0 * x), rtol=1e-5)


def test_what_is_subtracted_swaps_its_parts(x64):
    """In a difference as in an update: both spellings have the same parts."""
    rng = np.random.default_rng(3)
    weights, x, r = rng.normal(size=(6, 6)), *rng.normal(size=(2, 6))
    ones, places = jnp.ones(6), jnp.arange(6)

    def parts(function):
        return jaxlift.parts(lambda x: function(x @ weights)[0])(x, r)

    update = parts(lambda y: ones.at[places].subtract(y))
    jax.tree.map(np.testing.assert_allclose, update, parts(lambda y: ones - y))
