"""What users compose with: meshes, flags, narrow floats, points that do not move."""

import functools
import math

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jaxlift
from jaxlift import methods
from jaxlift._interpret import Context

X, R = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, -1.0, 0.0])
W = jnp.array([[1.0, -2.0], [0.5, 1.0], [-1.0, 0.3]])
TABLES = ["RESCALE", "REVEAL_CANCEL"]


def complete(f, x=X, r=R, tolerance=1e-5, **options):
    contributions = jax.jit(jaxlift.deeplift(f, **options))(x, r)
    assert np.isfinite(contributions).all()
    np.testing.assert_allclose(
        contributions.sum(), f(x) - f(r), rtol=tolerance, atol=tolerance
    )
    return contributions


# ------------------------------------------------------------------ inside a shard_map


def tagging(x):
    hidden = checkpoint_name(jnp.tanh(x @ W), "hidden")
    return jnp.square(hidden).sum()


INSIDE = {
    "scalar reference": lambda x: jaxlift.deeplift(tagging)(x, 0.0),
    "array": lambda x: jaxlift.deeplift(tagging)(x, R),
    "RevealCancel": lambda x: jaxlift.deeplift(tagging, rules=jaxlift.REVEAL_CANCEL)(
        x, R
    ),
    "set": lambda x: jaxlift.deeplift_shap(tagging)(x, jnp.stack([R, 0 * R])),
    "streamed": lambda x: jaxlift.deeplift_shap(tagging, batch_size=1)(
        x, jnp.stack([R, 0 * R])
    ),
    "tagged": lambda x: jaxlift.deeplift(tagging, at="hidden")(x, R),
    "parts": lambda x: jaxlift.parts(tagging)(x, R).pos_to_pos,
}


@pytest.mark.parametrize("name", INSIDE)
def test_inside_shard_map(name):
    rows = jnp.stack([X + k for k in range(4)])
    spec = jax.sharding.PartitionSpec("i")
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.vmap(INSIDE[name])
    sharded = jax.jit(jax.shard_map(mapped, mesh=mesh, in_specs=spec, out_specs=spec))
    np.testing.assert_allclose(sharded(rows), mapped(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rules", [jaxlift.RESCALE, jaxlift.REVEAL_CANCEL])
@pytest.mark.parametrize(
    "name", ["relu", "softplus", "leaky_relu", "selu", "hard_tanh"]
)
def test_activations_of_shards(name, rules):
    """What is explained is mapped over shards itself."""
    activation = getattr(jax.nn, name)
    spec = jax.sharding.PartitionSpec("i")
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    body = lambda x: lax.psum(activation(x).sum(), "i")
    sharded = jax.shard_map(
        body, mesh=mesh, in_specs=spec, out_specs=jax.sharding.PartitionSpec()
    )
    x, r = jnp.array([1.0, -2.0, 3.0, 0.5]), jnp.array([-1.0, 0.0, 3.0, -0.5])
    whole = lambda x: activation(x).sum()
    found, expected = (
        jax.jit(jaxlift.multipliers(f, rules=rules))(x, r) for f in (sharded, whole)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("table", TABLES)
def test_an_activation_of_many_steps(table):
    """Steps upon steps of one array: deeper than Python's stack."""

    def f(x):
        for _ in range(300):
            x = 1.001 * x + 1e-3
        return jnp.tanh(x).sum()

    complete(f, rules=getattr(jaxlift, table))


# ------------------------------------------------------------------ explicit sharding

SHARDED = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "selu": jax.nn.selu,
    "where": lambda x: jnp.where(x > 0, x, 2 * x),
    "where of two": lambda x: jnp.where(x > x[:, ::-1], x, x * x),
    "clamp": lambda x: lax.clamp(x.mean(), x, 2.0),
    "logsumexp": lambda x: jax.nn.logsumexp(x, -1, keepdims=True),
    "layer norm": lambda x: x / jnp.sqrt(x.var(-1, keepdims=True) + 0.1),
    "power": lambda x: (2 + jnp.abs(x)) ** x[:, ::-1],
    "scan": lambda x: lax.scan(lambda c, w: (jax.nn.relu(c * w), None), x, jnp.ones(3))[
        0
    ],
}
GIVEN = {"alike": lambda x: -2 * x, "number": lambda x: 0.1, "row": lambda x: R}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", SHARDED)
def test_explicit_sharding(name, given):
    f = lambda x: SHARDED[name](x @ jnp.eye(3))[:, 0]
    x, r = np.asarray(jnp.stack([X - k for k in range(4)])), GIVEN[given]
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    spec = jax.sharding.PartitionSpec("d")
    explains = [
        jax.jit(lambda x, t=t: jaxlift.deeplift(f, target=jnp.sum, rules=t)(x, r(x)))
        for t in (jaxlift.RESCALE, jaxlift.REVEAL_CANCEL)
    ]
    plain = explains[0](x)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, spec)
        for explain in explains:
            shape = jax.eval_shape(explain, sharded)
            assert shape.sharding == jax.typeof(sharded).sharding
        found = explains[0](sharded)
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)


def test_a_cotangent_goes_where_the_output_is():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((4, 3)), jax.sharding.PartitionSpec("d"))
        _, _, pullback = jaxlift.vjp(jnp.square, x, 0.0)
        for ct in (1.0, jnp.ones((4, 3))):
            np.testing.assert_allclose(pullback(ct), x)


@pytest.mark.parametrize("batch_size, count", [(None, 8), (3, 8), (4, 12)])
def test_references_spread_over_devices(batch_size, count):
    references = np.float32(np.arange(3.0 * count).reshape(count, 3) / count)
    shap = jaxlift.deeplift_shap(tagging, batch_size=batch_size)
    sampled = methods.expected_gradients(tagging, samples=6, batch_size=batch_size)
    explains = shap, functools.partial(sampled, jax.random.key(0))
    plain = [explain(X, references) for explain in explains]
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(references, jax.sharding.PartitionSpec("d"))
        found = [jax.jit(explain)(X, sharded) for explain in explains]
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------- symbolic shapes

EXPORTED = {
    "index": lambda x: x[:, 0],
    "relu": lambda x: jax.nn.relu(x)[:, 0],
    "softmax": lambda x: jax.nn.softmax(x)[:, 0],
    "log_softmax": lambda x: jax.nn.log_softmax(x)[:, 0],
    "logsumexp": lambda x: jax.nn.logsumexp(x, -1),
    "over the batch": lambda x: jax.nn.softmax(x.reshape(-1, 3), 0),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", EXPORTED)
def test_export_with_a_symbolic_batch(name, table):
    f, rules = EXPORTED[name], getattr(jaxlift, table)
    explain = jax.jit(jaxlift.deeplift(f, target=jnp.sum, rules=rules))
    (batch,) = jax.export.symbolic_shape("b")
    row = jax.ShapeDtypeStruct((3,), X.dtype)
    rows = jax.ShapeDtypeStruct((batch, 3), X.dtype)
    assert jax.export.export(explain)(rows, row).out_avals[0].shape == (batch, 3)
    exported = jax.export.export(explain)(rows, rows)
    x, r = jnp.stack([X, -X]), jnp.stack([R, X])
    np.testing.assert_allclose(exported.call(x, r), explain(x, r), rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------- flags

POOLED = dict(window_dimensions=(2,), window_strides=(1,), padding="VALID")
PROMOTING = {
    "max-pool": lambda x: lax.reduce_window(x, -np.inf, lax.max, **POOLED).sum(),
    "digamma": lambda x: jax.scipy.special.digamma(x * x + 1).sum(),
    "relu": lambda x: jax.nn.relu(x).sum(),
    "softplus": lambda x: jax.nn.softplus(x).sum(),
    "softmax": lambda x: jax.nn.softmax(x)[0],
    "logsumexp": jax.nn.logsumexp,
    "max": jnp.max,
    "argmax": lambda x: jnp.where(jnp.argmax(x) > 1, x[0], x[1]),
    "sort": lambda x: (jnp.sort(x) * x).sum(),
}
STRICT = {
    "rank": functools.partial(jax.numpy_rank_promotion, "raise"),
    "dtype": functools.partial(jax.numpy_dtype_promotion, "strict"),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("flag", STRICT)
@pytest.mark.parametrize("name", PROMOTING)
def test_rules_under_strict_flags(name, flag, table):
    explain = jaxlift.deeplift(PROMOTING[name], rules=getattr(jaxlift, table))
    with STRICT[flag]():
        shape = jax.eval_shape(explain, X, R)
    assert shape.shape == X.shape


def test_what_is_the_users_is_traced_with_the_users_flags():
    row, whole = jnp.ones(3), jnp.ones(3, int)
    mixed = {
        "rank": lambda x: (x[None] + row).sum(),
        "dtype": lambda x: (x + whole).sum(),
    }
    for flag, f in mixed.items():
        ruled = jaxlift.custom_rule(jnp.sum)
        ruled.defrule(lambda ct, x, r, f=f: (jnp.full(3, ct) + 0 * f(x[0]),))
        assert jaxlift.deeplift(ruled)(X, R).shape == (3,)
        for explained in (f, ruled):
            with STRICT[flag](), pytest.raises(ValueError, match=f"{flag}_promotion"):
                jaxlift.deeplift(explained)(X, R)


def test_a_polynomial_of_many_coefficients():
    explain = jax.jit(jaxlift.deeplift(lambda c: jnp.polyval(c, 0.7)))
    contributions = explain(jnp.ones(70), jnp.zeros(70))
    np.testing.assert_allclose(contributions[::-1], 0.7 ** np.arange(70), rtol=1e-5)


# ----------------------------------------------------------- what is not an array


def test_arguments_that_are_no_arrays_stay_what_they_are():
    def f(x, activation, width, *, train=True):
        y = activation(x @ W)[:width]
        return y.sum() if train else jnp.square(y).sum()

    explain = jaxlift.deeplift(f)
    contributions = explain(X, jnp.tanh, 1, R, train=False)
    plain = jaxlift.deeplift(lambda x: jnp.square(jnp.tanh(x @ W)[:1]).sum())(X, R)
    np.testing.assert_array_equal(contributions, plain)
    assert methods.integrated_gradients(f)(X, jnp.tanh, 1, R, train=False).shape == (3,)
    last = jaxlift.deeplift(lambda scale, x: scale * x.sum(), 1)
    np.testing.assert_allclose(last(2.0, X, R), 2 * (X - R))


def test_aux_that_is_no_array():
    f = lambda x: (x.sum(), {"name": "sum", "mean": x.mean(), "count": 3})
    _, aux = jaxlift.deeplift(f, has_aux=True)(X, R)
    assert aux["name"] == "sum" and aux["count"] == 3
    np.testing.assert_allclose(aux["mean"], X.mean())


def test_jit_with_donated_arguments_and_returned_pullbacks():
    f = lambda x: jnp.tanh(x @ W)
    jitted = jax.jit(jaxlift.deeplift(f, target=0), donate_argnums=1)
    np.testing.assert_allclose(
        jitted(X, jnp.array(R)), jaxlift.deeplift(f, target=0)(X, R), rtol=1e-6
    )
    y, _, pullback = jax.jit(functools.partial(jaxlift.vjp, f))(X, R)
    expected = jaxlift.vjp(f, X, R)[2](jnp.ones(2))
    np.testing.assert_allclose(pullback(jnp.ones(2)), expected, rtol=1e-6)
    np.testing.assert_allclose(pullback(1.0), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"cotangent has the shape \(1,\).*\(2,\)"):
        pullback(jnp.ones(1))
    assert y.shape == (2,)


# -------------------------------------------------------------------- narrow floats


@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_means_of_narrow_floats_are_taken_in_float32(batch_size):
    x = X.astype(jnp.bfloat16)
    references = jnp.zeros((1000, 3), jnp.bfloat16)
    explain = jaxlift.deeplift_shap(jnp.sum, batch_size=batch_size)
    mean = explain(x, references)
    assert mean.dtype == jnp.bfloat16
    np.testing.assert_array_equal(mean, x)
    half = jaxlift.deeplift_shap(lambda x: 100 * x.sum(), batch_size=batch_size)
    np.testing.assert_array_equal(
        half(X.astype(jnp.float16), references.astype(jnp.float16)), 100 * X
    )
    steps = methods.integrated_gradients(jnp.sum, steps=256)
    np.testing.assert_allclose(steps(x, 0.0), X, rtol=1e-2)


# --------------------------------------------------------------- what does not move


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "f",
    [
        lambda x: jnp.sqrt(x).sum(),
        lambda x: jnp.linalg.norm(x[:, None], axis=1).sum(),
    ],
)
def test_where_nothing_moves_an_infinite_slope_contributes_nothing(f, table):
    x = jnp.array([0.0, 1.0, 4.0])
    contributions = complete(f, x, jnp.zeros(3), rules=getattr(jaxlift, table))
    assert contributions[0] == 0


# ------------------------------------------------------------- lengths and quotients

HYPOT = {
    "both": lambda x: jnp.hypot(x, x[::-1]).sum(),
    "one": lambda x: jnp.hypot(2, x).sum(),
    "rows": lambda x: jnp.hypot(x[:, None], x[:2]).sum(),
    "activation": lambda x: jnp.hypot(jnp.tanh(x), x @ jnp.ones(3)).sum(),
    "mask": lambda x: jnp.hypot(x, x > 1.5).sum(),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", HYPOT)
def test_hypot(name, table):
    """JAX scales by powers of two that depend on the size, or divides by the larger."""
    f, rules = HYPOT[name], getattr(jaxlift, table)
    for scale in (1, 1e-6, 1e15):
        contributions = complete(f, scale * X, 0 * X, rules=rules)
        assert abs(contributions).max() <= 3 * f(scale * X)
    m = jaxlift.multipliers(f, rules=rules)(X, X)
    np.testing.assert_allclose(m, jax.grad(f)(X), rtol=1e-6)


EXTREMA = {  # of products, which a compiler contracts with what is subtracted from them
    "cummax": lambda x: lax.cummax(FACTORS * x).sum(),
    "cummin": lambda x: lax.cummin(FACTORS * x).sum(),
    "square": lambda x: lax.cummax(x * x[::-1]).sum(),
    "segments": lambda x: jax.ops.segment_max(jnp.outer(FACTORS, x), HALVES, 2).sum(),
    "reduce": lambda x: lax.reduce(
        jnp.outer(FACTORS, x), -jnp.inf * jnp.ones(()), lax.max, (1,)
    ).sum(),
}
FACTORS, HALVES = np.array([0.1, 0.7, 1.3, -0.9], np.float32), np.array([0, 0, 1, 1])


@pytest.mark.parametrize("name", EXTREMA)
def test_an_extremum_of_products_at_the_reference(name):
    x = jnp.array([0.3, 0.6, 0.9, -1.7])
    multipliers = jax.jit(jaxlift.multipliers(EXTREMA[name]))(x, x)
    np.testing.assert_allclose(multipliers, jax.grad(EXTREMA[name])(x), rtol=1e-6)


PREFIXES = {  # extrema, and the same one by one
    "cummax": (lax.cummax, lambda x: [x[: k + 1].max() for k in range(4)]),
    "cummin": (lax.cummin, lambda x: [x[: k + 1].min() for k in range(4)]),
    "segments": (
        lambda x: jax.ops.segment_max(x, HALVES, 2),
        lambda x: [x[:2].max(), x[2:].max()],
    ),
    "reduce": (
        lambda x: lax.reduce(x[None], -jnp.inf * jnp.ones(()), lax.max, (1,)),
        lambda x: [x.max()],
    ),
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", PREFIXES)
def test_extrema_of_a_constant_reference(name, sign):
    """All are tied there: position plays no part, the input's winner is taken."""
    weigh = lambda y: (jnp.stack([*y]) * jnp.arange(1.0, 1 + len(y))).sum()
    together, apart = (lambda x, f=f: weigh(f(x)) for f in PREFIXES[name])
    x, expected = sign * jnp.array([-2.0, -1, -4, -3]), jax.jit(jaxlift.deeplift(apart))
    for r in (jnp.zeros(4), jnp.array([0.0, 0, 0, -3 * sign]), -x):
        found = complete(together, x, r)
        np.testing.assert_allclose(found, expected(x, r), rtol=1e-6)


WINDOWS = {  # dimensions, strides, padding, base dilation, window dilation
    "side by side": ((2, 3), (2, 3), "VALID", (1, 1), (1, 1)),
    "overlapping": ((3, 3), (2, 1), ((1, 1), (0, 2)), (1, 1), (1, 1)),
    "every place": ((3, 2), (1, 1), "SAME", (1, 1), (1, 1)),
    "with gaps": ((1, 2), (2, 3), "VALID", (1, 1), (1, 1)),
    "dilated": ((2, 2), (1, 2), ((1, 0), (2, 1)), (2, 1), (1, 2)),
}


@pytest.mark.parametrize("reduce", ["max", "min"])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows_one_by_one(name, reduce):
    """Pooling is many maxima; of many winners the first one has the gradient."""
    start, least = (-jnp.inf, jnp.max) if reduce == "max" else (jnp.inf, jnp.min)
    size, *rest = WINDOWS[name]

    def pooled(x):
        return lax.reduce_window(x, start, getattr(lax, reduce), size, *rest)

    rng = np.random.default_rng(8)
    weights = rng.normal(size=pooled(jnp.zeros((6, 7))).shape).astype(np.float32)
    numbers = jnp.arange(1.0, 43).reshape(1, 1, 6, 7)  # of the elements; 0 is padding
    windows = lax.conv_general_dilated_patches(numbers, size, *rest)
    places = np.asarray(windows).reshape(math.prod(size), -1).astype(int) - 1

    def apart(x):
        cells = jnp.where(places >= 0, x.ravel()[places], start)
        return weights.ravel() @ least(cells, axis=0)

    together = lambda x: (weights * pooled(x)).sum()
    x, other = rng.normal(size=(2, 6, 7)).astype(np.float32)
    partly = np.where(other > 0, x, other)
    for r, table in zip((np.zeros_like(x), partly), TABLES, strict=True):
        rules = getattr(jaxlift, table)
        found = complete(together, x, r, rules=rules)
        expected = jax.jit(jaxlift.deeplift(apart, rules=rules))(x, r)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    if name == "dilated":  # which has no gradient in JAX
        return
    tied = rng.integers(0, 2, size=x.shape).astype(np.float32)
    limit = jax.jit(jaxlift.multipliers(together))(tied, tied)
    np.testing.assert_allclose(limit, jax.grad(together)(tied), rtol=1e-6)


def test_nothing_at_all_to_explain():
    pooled = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID")
    rows = lambda x: x.max(1)
    total = lambda x: jax.nn.logsumexp(x, 1)
    nothing = jnp.zeros((0, 3))
    for f in (rows, jax.nn.softmax, jax.nn.log_softmax, total, pooled):
        explained = jaxlift.deeplift(lambda x, f=f: f(x).sum())(nothing, 0.0)
        assert explained.shape == nothing.shape


@pytest.mark.parametrize("table", TABLES)
def test_a_scan_of_symbolic_length(table):
    rnn = lambda x: lax.scan(lambda c, t: (jnp.tanh(c + t), None), X, x)[0].sum()
    explain = jax.jit(jaxlift.deeplift(rnn, rules=getattr(jaxlift, table)))
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("t, 3"), jnp.float32)
    x = jax.random.normal(jax.random.key(3), (5, 3))
    found = jax.export.export(explain)(shape, shape).call(x, 0 * x)
    np.testing.assert_allclose(found, explain(x, 0 * x), rtol=1e-5, atol=1e-6)


BRANCHES = {
    "cond": lambda x: lax.cond(x[0] > 0, lambda x: 3 * x[1], lambda x: x[1], x),
    "switch": lambda x: lax.switch(
        (x[0] > 0) + (x[0] > 1).astype(int), [jnp.sum, jnp.max, lambda x: x[1]], x
    ),
    "one is not defined": lambda x: lax.cond(
        x[0] > 0, lambda x: jnp.sqrt(x).sum(), lambda x: x.sum(), x
    ),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", BRANCHES)
def test_branches_one_by_one_and_in_a_batch(name, table):
    """vmap stops what it gives to the branches that are not taken: no part of f."""
    f, rules = BRANCHES[name], getattr(jaxlift, table)
    x = jnp.array([[1.0, 2.0], [-1.0, 3.0], [0.5, 0.1], [-2.0, -1.0], [2.0, 1.0]])
    r = jnp.array([[0.5, 1.0], [-2.0, 1.0], [1.5, 0.3], [-1.0, -3.0], [2.0, 1.0]])
    if name != "one is not defined":  # where only one of the points takes it
        r = r.at[:2].set(-r[:2])
    expected = jnp.stack(
        [jaxlift.multipliers(f, rules=rules)(*p) for p in zip(x, r, strict=True)]
    )
    mapped = lambda x: lax.map(f, x, batch_size=2).sum()
    for batch in (lambda x: jax.vmap(f)(x).sum(), mapped):
        found = jaxlift.multipliers(batch, rules=rules)(x, r)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


CHOSEN = {  # by conditions in turn, and the same by one at a time
    "one": (
        lambda x: jnp.select([x > 0], [jnp.log(x)], 0.0),
        lambda x: jnp.where(x > 0, jnp.log(x), 0.0),
    ),
    "two": (
        lambda x: jnp.select([x > 3, x > 0], [x * x, jnp.log(x)], jnp.sin(x)),
        lambda x: jnp.where(x > 3, x * x, jnp.where(x > 0, jnp.log(x), jnp.sin(x))),
    ),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", CHOSEN)
def test_conditions_in_turn_are_one_activation(name, table):
    """What is not taken may be NaN."""
    x, r = jnp.array([1.0, -1.0, 5.0]), jnp.array([2.0, 3.0, -2.0])
    rules = getattr(jaxlift, table)
    found, expected = (
        complete(lambda x, f=f: f(x).sum(), x, r, rules=rules) for f in CHOSEN[name]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("n", [3, 4, 6])
def test_determinants_whose_rows_are_ordered_otherwise(n):
    """A determinant is a polynomial, its logarithm smooth; pivots are neither."""
    rng = np.random.default_rng(n)
    for distance in (0.1, 0.5):
        x = rng.normal(size=(n, n)).astype(np.float32)
        r = x + distance * rng.normal(size=(n, n)).astype(np.float32)
        complete(jnp.linalg.det, x, r)
        covariance = lambda m: jnp.linalg.slogdet(m @ m.T + jnp.eye(n))[1]
        complete(covariance, x, r, 1e-4)
    swapped = jnp.eye(4).at[1, 0].set(1.1), jnp.eye(4).at[1, 0].set(0.9)
    np.testing.assert_allclose(jaxlift.deeplift(jnp.linalg.det)(*swapped), 0, atol=1e-6)


def test_hypot_in_other_tables():
    f = lambda x: jnp.hypot(x[0], x[1])
    m = jaxlift.multipliers(f, rules=jaxlift.GRADIENT)(X, R)
    np.testing.assert_allclose(m, jax.grad(f)(X), rtol=1e-6)


@pytest.mark.parametrize("table", TABLES)
def test_a_quotient_of_complex_numbers(table, x64):
    """Its rule is that of real numbers; along the path next to 0 it would not do."""
    x, r = jnp.array([1.0, -2.0]), jnp.array([1e-2, 1e-2])
    unit = lambda z: z / (abs(z) + 1e-3)
    for f in (unit, lambda z: 1 / z, lambda z: 3 / (z + 1e-3j), lambda z: z / (1 + z)):
        for part in (jnp.real, jnp.imag):
            explained = lambda x, f=f, part=part: part(f(lax.complex(x[0], x[1])))
            complete(explained, x, r, 1e-11, rules=getattr(jaxlift, table))


@pytest.mark.parametrize("reverse", [False, True])
def test_logsumexp_of_all_that_came_before(reverse, x64):
    """Each is a logsumexp, of points far apart and next to each other."""
    weights = np.arange(1.0, 7)
    rng = np.random.default_rng(2)
    x, r = rng.normal(size=(2, 6))
    part = (lambda x, k: x[k:]) if reverse else (lambda x, k: x[: k + 1])
    together = jax.jit(lambda x: lax.cumlogsumexp(x, reverse=reverse) @ weights)
    apart = lambda x: sum(
        w * jax.nn.logsumexp(part(x, k)) for k, w in enumerate(weights)
    )
    explain, expected = (jax.jit(jaxlift.deeplift(f)) for f in (together, apart))
    for scale in (1e-6, 1, 30, 1e3):
        for shift in (0.0, 100.0):
            a, b = scale * x + shift, scale * r
            found, tolerance = explain(a, b), 1e-12 * max(scale, 1)
            total = together(a) - together(b)
            np.testing.assert_allclose(found.sum(), total, tolerance, tolerance)
            np.testing.assert_allclose(found, expected(a, b), rtol=1e-9)


def test_what_is_infinite_at_both_points():
    mask = jnp.array([True, False, True])
    f = lambda x: lax.cumlogsumexp(jnp.where(mask, x, -jnp.inf))[1:].sum()
    assert complete(f)[1] == 0
    limit = jaxlift.multipliers(f)(X, X)
    np.testing.assert_allclose(limit, jax.grad(f)(X), rtol=1e-6)


# ------------------------------------------------------- booleans and integers


COUNTS = {
    "bool @ float": lambda x: (x > 1.5) @ jnp.array([1.0, 2.0, 3.0]),
    "int @ float": lambda x: (x > 1.5).astype(int) @ jnp.array([1.0, 2.0, 3.0]),
    "int @ int": lambda x: ((x > 1.5).astype(int) @ jnp.array([1, 2, 3])) * 1.0,
    "float @ bool, both": lambda x: x @ (x > 1.5),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", COUNTS)
def test_products_of_booleans_and_integers(name, table):
    contributions = complete(COUNTS[name], rules=getattr(jaxlift, table))
    assert contributions[0] == 0 or "both" in name


IDS = jnp.array([2, 0, 1])
COMBINED = {
    "segment_sum": lambda m: jax.ops.segment_sum(m, jnp.array([0, 0, 1]), 2)[0],
    "add": lambda m: jnp.zeros(2, int).at[0].add(m.sum())[0],
    "subtract": lambda m: jnp.ones(2, int).at[0].subtract(m[1])[0],
    "segment_max": lambda m: jax.ops.segment_max(m, jnp.array([0, 0, 1]), 2).sum(),
    "multiply": lambda m: jnp.full(3, 2).at[IDS].multiply(m, unique_indices=True),
    "prod": jnp.prod,
    "cumprod": jnp.cumprod,
    "cummax": lax.cummax,
    "cummin": lax.cummin,
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", COMBINED)
def test_integers_combined(name, table):
    """Masks of what is still going on, and counts; also outside `jit`."""
    f = lambda x: (COMBINED[name]((x > 0).astype(int)) * x).sum()
    rules = getattr(jaxlift, table)
    complete(f, X * jnp.array([-1, 1, 1]), R + 0.5, rules=rules)
    outside = jaxlift.deeplift(f, rules=rules)(X, R)
    np.testing.assert_allclose(outside, complete(f, rules=rules), rtol=1e-6, atol=1e-6)


def masked_by_a_branch(x):
    fixed, varying = lambda x: jnp.ones(3, bool), lambda x: x > 1.5
    return (x * lax.cond(jnp.asarray(True), varying, fixed, x)).sum()


def masked_by_a_loop(x):
    step = lambda mask, _: (x > 1.5, None)
    return (x * lax.scan(step, jnp.ones(3, bool), None, length=2)[0]).sum()


def masked_in_a_row(x):
    mask = jnp.concatenate([x > 1.5, jnp.ones(3, bool)])
    return (mask[::-1] * jnp.concatenate([x, x])).sum()


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("f", [masked_by_a_branch, masked_by_a_loop, masked_in_a_row])
def test_masks_beside_fixed_ones(f, dtype, table, x64):
    """Of inputs narrower than the default float."""
    x, r = X.astype(dtype), R.astype(dtype)
    assert complete(f, x, r, 1e-2, rules=getattr(jaxlift, table)).dtype == dtype


@jax.custom_jvp
def total_and_mask(x, where):
    return x.sum() * x, (x > 1.5) & where


@total_and_mask.defjvp
def _total_and_mask_jvp(primals, tangents):
    x, _ = primals
    total = jax.jvp(lambda x: x.sum() * x, (x,), tangents[:1])[1]
    return total_and_mask(*primals), (total, np.zeros(x.shape, jax.dtypes.float0))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("weights", [jnp.eye(3), W @ W.T])
@pytest.mark.parametrize("seen", [lambda x: True, lambda x: x[::-1] > 0.7])
def test_booleans_of_a_custom_jvp(seen, weights, table):
    """Where it is not elementwise, as without it: from a mask, and to one."""

    def f(x, function):
        y, mask = function(weights @ x, seen(x))
        return jnp.where(mask, y, 0).sum()

    rules = getattr(jaxlift, table)
    own, plain = (
        complete(functools.partial(f, function=function), rules=rules)
        for function in (total_and_mask, total_and_mask.fun)
    )
    np.testing.assert_allclose(own, plain, rtol=1e-5, atol=1e-5)


def handed_on(hand, x):
    key = jax.random.key(0)
    parts = x @ W @ W.T, x > 1.5, jnp.arange(3)[::-1], key, jnp.arange(3.0)
    y, mask, where, key, weights = hand(parts)
    y = weights * jax.nn.relu(y[where])
    return (y * mask * jax.random.normal(key, (3,))).sum()


@pytest.mark.parametrize("table", [*TABLES, "GRADIENT", "LRP"])
@pytest.mark.parametrize("hand", [lax.optimization_barrier, jax.device_put])
def test_what_is_handed_on_together(hand, table):
    """Each as it is: floats, in parts or whole, a mask, fixed indices, key, weights."""
    found, expected = (
        jaxlift.deeplift(functools.partial(handed_on, f), rules=getattr(jaxlift, table))
        for f in (hand, lambda values: values)
    )
    np.testing.assert_allclose(found(X, R), expected(X, R), rtol=1e-6)


def test_a_stopped_step_in_a_loop():
    def f(x):
        def step(h, x):
            h = jnp.tanh(h + x) + lax.stop_gradient(jnp.round(3 * h))
            return h, h

        return lax.scan(step, jnp.zeros(()), x)[1].sum()

    y, y_reference, pullback = jaxlift.vjp(f, X, R)
    gap = ((X - R) * pullback(1.0)).sum() - (y - y_reference)
    assert abs(gap) < 1e-5


# ------------------------------------------------------------- keys, tags, and control


def drop(h, key):
    key, own = jax.random.split(key)
    return h * jax.random.bernoulli(own, 0.7, h.shape), key


def keep(h, key):
    return 2 * h, key


def drop_in_a_branch(carry, k):
    return lax.cond(k % 2 == 0, drop, keep, *carry), None


def drop_in_a_loop(carry, k):
    return lax.scan(lambda carry, _: (drop(*carry), None), carry, None, length=2)


def drop_in_calls(carry, k):
    """And in what hands on a key."""
    carry = lax.optimization_barrier(jax.checkpoint(drop)(*carry))
    return jax.jit(lambda h, key: jax.device_put((h, key)))(*carry), None


@pytest.mark.parametrize("table", [*TABLES, "GRADIENT", "LRP"])
@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
@pytest.mark.parametrize("step", [drop_in_a_branch, drop_in_a_loop, drop_in_calls])
def test_a_carried_key_does_not_vary(step, make_key, table):
    """Dropout is linear: its multipliers are the gradient."""

    def f(x):
        h, key = lax.scan(step, (x, make_key(0)), jnp.arange(4))[0]
        return (h * jax.random.normal(key, h.shape)).sum()

    found = jax.jit(jaxlift.multipliers(f, rules=getattr(jaxlift, table)))(X, R)
    np.testing.assert_allclose(found, jax.grad(f)(X), rtol=1e-6)


@pytest.mark.parametrize("closed_over", [True, False])
def test_a_key_from_outside(closed_over):
    """Beside a stopped maximum, whose part in the result is looked for."""
    key = jax.random.key(1)

    def f(x, key=key):
        return (jax.nn.softmax(x) * jax.random.bernoulli(key, 0.7, x.shape)) @ X

    if closed_over:
        complete(f)
    else:
        found = jaxlift.deeplift(f)(X, key, R).sum()
        np.testing.assert_allclose(found, f(X) - f(R), rtol=1e-6)


VARYING_KEYS = {
    "branch": lambda x, key: lax.cond(x.sum() > 0, drop, keep, x, key)[1],
    "selected": lambda x, key: jnp.where(x[0] > 0, key, jax.random.split(key)[0]),
    "indexed": lambda x, key: jax.random.split(key, 3)[jnp.argmax(x)],
    "rows": lambda x, key: jnp.where(x > 0, *jax.random.split(key, (2, 3)))[0],
}


@pytest.mark.parametrize("table", [*TABLES, "GRADIENT", "LRP"])
@pytest.mark.parametrize("name", VARYING_KEYS)
def test_a_key_that_varies_is_refused_where_it_is_used(name, table):
    f = lambda x: (x * jax.random.normal(use(x), (3,))).sum()
    use = lambda x: VARYING_KEYS[name](x, jax.random.key(0))
    with pytest.raises(jaxlift.UnsupportedPrimitiveError, match="'random_bits'"):
        jaxlift.deeplift(f, rules=getattr(jaxlift, table))(X, R)


@pytest.mark.parametrize("table", TABLES)
def test_a_tag_on_what_is_fixed_in_a_loop(table):
    def f(x, shift):
        def step(carry, _):
            h, shift = lax.cond(jnp.asarray(True), lambda *c: c, keep, *carry)
            return (jnp.tanh(h + checkpoint_name(shift, "shift")), shift), None

        return lax.scan(step, (x, shift), None, length=1)[0][0].sum()

    rules = getattr(jaxlift, table)
    found = jaxlift.multipliers(f, at="shift", rules=rules)(X, 0.5 * R, R)
    expected = jaxlift.multipliers(lambda x: jnp.tanh(x + 0.5 * R).sum())(X, R)
    np.testing.assert_allclose(found, expected[None], rtol=1e-6)


def attending(x):
    hidden = checkpoint_name(jnp.tanh(x @ W), "hidden")
    return x[:2] @ (jax.nn.softmax(hidden) * hidden)


BODIES = {
    "remat": jax.checkpoint(attending),
    "scan": lambda x: lax.scan(lambda c, x: (c, attending(x)), 0, x[None])[1],
    "cond": lambda x: lax.cond(jnp.asarray(True), attending, jnp.sum, x),
    "custom_jvp": lambda x: total_and_mask(jax.nn.softmax(x), x > 0)[0],
}


@pytest.mark.parametrize("name", BODIES)
def test_no_value_of_a_body_is_kept(name):
    at = "hidden" if name in ("remat", "scan") else None
    explain = jax.jit(jaxlift.multipliers(BODIES[name], at=at, target=jnp.sum))
    expected = explain(X, R)
    jax.clear_caches()
    with jax.check_tracer_leaks(True):
        found = explain(X, R)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# ------------------------------------------------------------------------- errors


@pytest.mark.parametrize("table", TABLES)
def test_debug_nans_outside_jit(table):
    """It looks at what jitted functions return: `var` masks a NaN."""
    explain = functools.partial(jaxlift.deeplift, rules=getattr(jaxlift, table))
    normed = lambda x: x[0] / jnp.sqrt(x.var() + 1)
    undefined = lambda x: jax.jit(jnp.log)(x - 2).sum()
    with jax.debug_nans(True):
        total = explain(normed)(X, R).sum()
        with pytest.raises(FloatingPointError):
            explain(undefined)(X, R)
    np.testing.assert_allclose(total, normed(X) - normed(R), rtol=1e-5)


def test_a_forgotten_axis_of_references():
    for explain in (
        lambda r: jaxlift.deeplift_shap(jnp.sum)(X, r),
        lambda r: methods.expected_gradients(jnp.sum)(jax.random.key(0), X, r),
    ):
        with pytest.raises(jaxlift.ReferenceMismatchError, match=r"no set .* \(3,\)"):
            explain(R)
        assert explain(R[None]).shape == (3,)


def test_parts_of_what_is_no_scalar():
    with pytest.raises(ValueError, match=r"scalar output, not one of shape \(3,\)"):
        jaxlift.parts(lambda x: 2 * x)(X, R)


@pytest.mark.parametrize(
    ("at", "error"), [(5, TypeError), ((), ValueError), (("hidden", 3), TypeError)]
)
def test_names_that_are_none(at, error):
    with pytest.raises(error, match="at "):
        jaxlift.deeplift(tagging, at=at)(X, R)


def test_a_tag_on_an_integer():
    f = lambda x: x[checkpoint_name(jnp.argmax(x), "where")]
    with pytest.raises(TypeError, match="'where' tags a value of dtype int32"):
        jaxlift.deeplift(f, at="where")(X, R)


def test_an_operand_without_a_rule_is_named():
    f = lambda x: jax.scipy.special.betainc(x, 2.0, 0.5).sum()
    with pytest.raises(jaxlift.UnsupportedPrimitiveError, match="operand 0 of.*beta"):
        jaxlift.deeplift(f)(X, X + 1)


def test_a_primitive_that_only_a_scope_has_a_rule_for():
    cumprod = jax.extend.core.primitives.cumprod_p
    outside = {k: v for k, v in jaxlift.RESCALE.items() if k is not cumprod}
    rules = jaxlift.scoped(outside, {"head": jaxlift.RESCALE})
    head = jax.named_scope("head")(lambda x: jnp.cumprod(x).sum())
    complete(head, rules=rules, tolerance=1e-4)
    with pytest.raises(jaxlift.UnsupportedPrimitiveError, match="cumprod"):
        jaxlift.deeplift(lambda x: jnp.cumprod(x).sum(), rules=rules)(X, R)


EXPLAINED = {
    "deeplift": lambda f: lambda x: jaxlift.deeplift(f)(x, 0.0).sum(),
    "multipliers": lambda f: lambda x: jaxlift.multipliers(f)(x, 0.0).sum(),
    "shap": lambda f: lambda x: jaxlift.deeplift_shap(f)(x, R[None]).sum(),
    "tagged": lambda f: lambda x: jaxlift.deeplift(f, at="hidden")(x, R).sum(),
    "output": lambda f: lambda x: jaxlift.vjp(f, x, R)[0],
    "jit": lambda f: jax.jit(lambda x: jaxlift.deeplift(f)(x, 0.0).sum()),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_derivatives_by_the_input_are_refused(name):
    explained = EXPLAINED[name](tagging)
    with pytest.raises(NotImplementedError, match="stop_gradient"):
        jax.grad(explained)(X)
    assert (jax.grad(lambda x: explained(lax.stop_gradient(x)))(X) == 0).all()


# ------------------------------------------------- NumPy arrays, mapped over inside jit

ROWS, ROWS0 = (np.stack([v, 2 * v, -v]).astype(np.float32) for v in (X, R))


def returning_argument(x):
    return jnp.sum(jnp.tanh(x)), {"argument": x, "scale": 2}


MAPPED = {
    "deeplift": jaxlift.deeplift(tagging),
    "multipliers": jaxlift.multipliers(tagging),
    "tagged": jaxlift.deeplift(tagging, at="hidden"),
    "aux": jaxlift.deeplift(returning_argument, has_aux=True),
    "vjp": lambda x, r: jaxlift.vjp(tagging, x, reference=r)[0],
    "parts": lambda x, r: jaxlift.parts(tagging)(x, r).pos_to_pos,
    "set": lambda x, r: jaxlift.deeplift_shap(tagging)(x, jnp.stack([r, 0 * r])),
    "integrated gradients": jaxlift.integrated_gradients(tagging),
    "scalar": lambda x, r: jaxlift.deeplift(lambda s: s)(x[0], r[0]),
    "relu": jaxlift.deeplift(lambda x: jax.nn.relu(x).sum()),
}


@pytest.mark.parametrize("name", MAPPED)
def test_closed_over_numpy_arrays(name):
    mapped = jax.vmap(MAPPED[name])
    inside = jax.jit(lambda: mapped(ROWS, ROWS0))()
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
        inside,
        mapped(jnp.asarray(ROWS), jnp.asarray(ROWS0)),
    )


def test_constants_outside_jit():
    # A step that has nothing to do returns the very array that it was given.
    matrix = jnp.eye(3) + 0.1 * W @ W.T
    complete(lambda x: jnp.linalg.solve(matrix, x).sum())


def test_a_fixed_matrix_is_walked_through_once(monkeypatch):
    """What a solve's matrix is made of may be used again and again on the way."""
    asked = []
    origin = Context.origin
    monkeypatch.setattr(
        Context, "origin", lambda self, v: asked.append(1) or origin(self, v)
    )

    def f(x, matrix):
        for _ in range(12):
            matrix = matrix + 0.1 * jnp.tanh(matrix)
        return jnp.linalg.solve(matrix + 4 * jnp.eye(3), x).sum()

    jax.make_jaxpr(jaxlift.deeplift(f))(jnp.ones(3), jnp.ones((3, 3)), 0.0)
    assert len(asked) < 400


@pytest.mark.parametrize("rules", TABLES)
def test_a_scan_of_no_steps(rules):
    def f(x):
        step = lambda carry, row: (jnp.tanh(carry * row), carry)
        return (lax.scan(step, x[:2], jnp.zeros((0, 2)))[0] ** 2).sum()

    complete(f, rules=getattr(jaxlift, rules))
