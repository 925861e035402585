"""Every differentiable function of JAX: complete, finite, and the gradient's limit.

The default run takes each in one dtype, of special functions, distributions and linear
algebra, which are long programs, every third, and samples for RevealCancel and outside
jit.
"""

import functions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import FUNCTIONS, REFUSED
from jax import lax
from jax.extend.core import primitives
from sampling import alternating, every

import jaxlift

BOUNDS = {
    "": {"float64": 1e-10, "float32": 1e-5},
    "path": {"float64": 1e-6, "float32": 1e-4},
    "single": {"float64": 1e-5, "float32": 1e-5},
    "half": {"float64": 2e-2, "float32": 2e-2},
}
EXACT = {"float64": 1e-12, "float32": 1e-5}
EPS = np.finfo(np.float64).eps


def _points(domain, seed=0):
    """Inputs and references: far apart, near, in part the same, the same."""
    rng = np.random.default_rng(seed)
    u, v, w = rng.normal(size=(3, *domain.shape))
    same = np.arange(u.size).reshape(u.shape) % 2 == 0
    pairs = [(u, v), (u, u + 1e-4 * w), (v, np.where(same, v, w)), (w, w)]
    x, r = (np.stack([domain.place(p[k]) for p in pairs]) for k in (0, 1))
    if domain.kind == "path":
        r = np.stack([_within(*p) for p in zip(x, r, strict=True)])
    return x, r


def _within(x, r):
    """A reference on the way to `r`, no further from `x` than the larger is long."""
    while np.linalg.norm(x - r) > max(np.linalg.norm(x), np.linalg.norm(r)):
        r = x + 0.7 * (r - x)
    return r


TIES = {
    "top_k": lambda x: lax.top_k(x, 3)[0],
    "approx_max_k": lambda x: lax.approx_max_k(x, 3)[0],
    "approx_min_k": lambda x: lax.approx_min_k(x, 3)[0],
    "partition": lambda x: jnp.partition(x, 2),
    "sort": jnp.sort,
    "descending": lambda x: jnp.sort(x, descending=True),
    "maximum": lambda x: jnp.maximum(x, x[::-1]),
    "logaddexp": lambda x: jnp.logaddexp(x, x[::-1]),
    "segment_max": lambda x: jax.ops.segment_max(x, jnp.array([0, 0, 1, 1, 1]), 2),
}


@pytest.mark.parametrize("table", ["RESCALE", "REVEAL_CANCEL"])
@pytest.mark.parametrize("name", TIES)
def test_ties_have_the_gradient_of_jax(name, table):
    """Of values that are equal to each other, behind weights that open a split."""
    rules, weights = getattr(jaxlift, table), jnp.eye(5)
    for x in (jnp.zeros(5), jnp.array([1.0, 1.0, 0.0, 1.0, 0.0])):
        y = TIES[name](x)
        ct = 1.0 + np.arange(y.size)
        f = lambda x, ct=ct: ct @ TIES[name](weights @ x)
        m = jaxlift.multipliers(f, rules=rules)(x, x)
        np.testing.assert_allclose(m, jax.grad(f)(x), rtol=1e-6)


def _cotangents(f, x):
    shape = jax.eval_shape(f, x[0])
    return np.random.default_rng(1).normal(size=(len(x), *shape.shape))


def _explained(f, alone):
    """All that is asserted about `f`, for every pair of points, in one program.

    The two points of the last pair are equal: its multipliers are the gradient's limit.
    """

    def one(row):
        x, r, ct = row
        y, y_reference, pullback = jaxlift.vjp(f, x, r)
        return {"y": y, "y_reference": y_reference, "m": pullback(ct)}

    def program(x, r, ct):
        found = lax.map(one, (x, r, ct))
        values = lax.map(f, jnp.concatenate([x, r]))
        found |= {"f(x)": values[: len(x)], "f(r)": values[len(x) :]}
        if not alone:
            found["gradient"] = jax.grad(lambda x: (ct[-1] * f(x)).sum())(x[-1])
        return found

    return jax.jit(program)


_dtypes: list[str] = []


def _forget(dtype):
    """JAX keeps the dtype that a NumPy constant was first traced with.

    And compiled programs, which make the process large and slow.
    """
    if _dtypes[-1:] != [dtype] or len(_dtypes) % 32 == 0:
        jax.clear_caches()
    _dtypes.append(dtype)


def _run(name, dtype):
    f, domain = FUNCTIONS[name]
    _forget(dtype)
    with jax.enable_x64(dtype == "float64"):
        x, r = (p.astype(dtype) for p in _points(domain))
        ct = _cotangents(f, x).astype(dtype)
        alone = domain.kind == "alone" or dtype == "float32"
        found = _explained(f, alone)(x, r, ct)
        found |= {"x": x, "r": r, "ct": ct}
        found = {k: np.asarray(v) for k, v in found.items()}
    return {k: v.astype(np.float64) for k, v in found.items()}


def _gaps(found, dtype):
    """Of each pair: the gap, and the size that it is measured by."""
    axes = lambda array: tuple(range(1, array.ndim))
    total = lambda array: array.sum(axes(array))
    contributions = found["m"] * (found["x"] - found["r"])
    ct, y, y0 = found["ct"], found["y"], found["y_reference"]
    gap = abs(total(contributions) - total(ct * (y - y0)))
    larger = np.maximum(np.maximum(abs(y), abs(y0)), 1)
    rounding = 8 * np.finfo(dtype).eps * total(abs(contributions))
    return gap, total(abs(ct) * larger), rounding


def _check(name, dtype):
    kind = FUNCTIONS[name][1].kind
    found = _run(name, dtype)
    for key, value in found.items():
        assert np.isfinite(value).all(), f"{key} is not finite: {value}"
    bounds = BOUNDS.get(kind, BOUNDS[""])
    exact = {"half": 2e-2, "single": 1e-5}.get(kind, EXACT[dtype])
    tolerance = dict(rtol=exact, atol=exact)
    np.testing.assert_allclose(found["y"], found["f(x)"], **tolerance)
    if kind != "stopped":
        np.testing.assert_allclose(found["y_reference"], found["f(r)"], **tolerance)
    if kind != "index":
        gap, size, rounding = _gaps(found, dtype)
        allowed = np.maximum(bounds[dtype] * size, rounding)
        assert (gap <= allowed).all(), f"gaps {gap / size}, allowed {allowed / size}"
    if "gradient" in found:
        exact = {"half": 2e-2, "single": 1e-5}.get(kind, 1e-10)
        tolerance = dict(rtol=exact, atol=exact)
        np.testing.assert_allclose(found["m"][-1], found["gradient"], **tolerance)


_FAMILIES = ("special_", "stats_", "linalg_")
_LONG = [name for name in FUNCTIONS if name.startswith(_FAMILIES)]
_TAKEN = [*(FUNCTIONS.keys() - _LONG), *every(3, _LONG)]


@pytest.mark.parametrize("name, dtype", alternating(sorted(_TAKEN)))
def test_explained(name, dtype):
    _check(name, dtype)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    f, domain = REFUSED[name]
    x = domain.place(np.ones(domain.shape)).astype(np.float32)
    with pytest.raises(
        jaxlift.UnsupportedPrimitiveError,
        match="trip count|pure_callback|reduce_window",
    ):
        jaxlift.vjp(f, x, 0.5 * x)


# Names in `jax.extend.core.primitives`, without their `_p`.
_NO_DERIVATIVE = "JAX itself has no derivative of it"
_INTEGERS = "of integers or random bits only: never depends on a floating input"
_EFFECT = "reads or writes a reference, or only orders effects"
UNSUPPORTED = {
    "after_all": _EFFECT,
    "create_token": _EFFECT,
    "get": _EFFECT,
    "swap": _EFFECT,
    "axis_index": "has no operands",
    "empty2": "has no operands",
    "iota": "has no floating operands",
    "random_bits": _INTEGERS,
    "random_fold_in": _INTEGERS,
    "random_seed": _INTEGERS,
    "random_split": _INTEGERS,
    "reduce_xor": _INTEGERS,
    "reduce_window": "JAX transposes no general combiner or initial value",
    "ragged_all_to_all": "not yet: needs several processes to be tested",
    "rng_bit_generator": _INTEGERS,
    "threefry2x32": _INTEGERS,
    "rng_uniform": _NO_DERIVATIVE,
    "hessenberg": _NO_DERIVATIVE,
    "householder_product": _NO_DERIVATIVE,
    "igamma_grad_a": _NO_DERIVATIVE,
    "pmax": _NO_DERIVATIVE,
    "pmin": _NO_DERIVATIVE,
    "select_and_scatter": _NO_DERIVATIVE,
    "tridiagonal": _NO_DERIVATIVE,
    "schur": _NO_DERIVATIVE,
    "zeta": "has none; the custom_jvp around it has, and is explained along the path",
    "custom_lin": "appears while JAX differentiates, in no traced function",
}


def test_every_public_primitive_has_a_rule_or_a_reason():
    names = {name[:-2] for name in dir(primitives) if name.endswith("_p")}
    ruled = {n for n in names if getattr(primitives, f"{n}_p") in jaxlift.RESCALE}
    assert names - ruled - UNSUPPORTED.keys() == set()
    assert UNSUPPORTED.keys() & ruled == set(), "these have a rule by now"
    assert UNSUPPORTED.keys() - names <= set()


def test_the_table_is_large():
    assert len(FUNCTIONS) >= 300
    assert {domain.kind for _, domain in FUNCTIONS.values()} <= {
        *("", "path", "index", "stopped", "alone", "single", "half")
    }
    assert functions.__doc__


@pytest.mark.parametrize("name", every(48, FUNCTIONS))
def test_outside_jit(name):
    """Step by step, where JAX hands on what a step leaves as it is."""
    f, domain = FUNCTIONS[name]
    (x, *_), (r, *_) = _points(domain)
    _forget("float64")
    with jax.enable_x64(True):
        (ct,) = _cotangents(f, x[None])
        explain = jaxlift.deeplift(lambda x: (ct * f(x)).sum())
        outside, inside = explain(x, r), jax.jit(explain)(x, r)
    np.testing.assert_allclose(outside, inside, rtol=1e-9, atol=1e-9)


# Newton's method, step by step: each step's parts are larger than the last one's, until
# they overflow. RESCALE explains it; `scoped` can choose it for such a part of a model.
_OUTGROWN = {"root"}
REVEALED = every(24, (name for name in FUNCTIONS if name not in _OUTGROWN))


def _mixed(domain):
    """A fixed matrix that opens a split and keeps inputs in their domain.

    Rows that add up to 1 mix neighbours, where the domain allows that.
    """
    size = int(np.prod(domain.shape))
    structured = {"near_diagonal", "distinct"}
    if len(domain.shape) > 1 or domain.place.__qualname__.split(".")[0] in structured:
        return np.eye(size)
    return 0.75 * np.eye(size) + 0.25 * np.roll(np.eye(size), 1, 0)


@pytest.mark.parametrize("name", REVEALED)
def test_reveal_cancel(name):
    """Behind fixed weights: parts have their signs, and add up to the difference."""
    f, domain = FUNCTIONS[name]
    (x, *_), (r, *_) = _points(domain)
    weights = _mixed(domain)
    bound = BOUNDS.get(domain.kind, BOUNDS[""])["float64"]
    _forget("float64")
    with jax.enable_x64(True):
        (ct,) = _cotangents(f, x[None])

        def explained(x):
            return (ct * f((x.ravel() @ weights).reshape(x.shape))).sum()

        def program(x, r):
            y, y_reference, _ = jaxlift.vjp(explained, x, r)
            size = (abs(ct) * jnp.maximum(abs(f(x)), 1)).sum()
            return y - y_reference, size, jaxlift.parts(explained)(x, r)

        program = jax.jit(program)
        difference, size, parts = jax.tree.map(np.asarray, program(x, r))
    up = parts.pos_to_pos.sum() + parts.neg_to_pos.sum()
    down = parts.pos_to_neg.sum() + parts.neg_to_neg.sum()
    rounding = 64 * EPS * sum(abs(part).sum() for part in parts)
    assert np.isfinite(rounding)
    assert up >= -rounding
    assert down <= rounding
    if domain.kind != "index":
        assert abs(up + down - difference) <= max(bound * size, rounding)
