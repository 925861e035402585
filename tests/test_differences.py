"""Every row of DIFFERENCES against 350 digits of mpmath, and against JAX's gradient.

A row is tested because it exists: `test_every_row_has_a_case` fails for one that
CASES does not know. An error is counted in units of eps, relative to

    |D| + conditioned * min((|p(a)| + |p(b)|) / |a - b|, |p'(a)| + |p'(b)|),

so that a bound is purely relative unless a row says `conditioned=1`: there `D` passes
through zero where no formula in `p(a)` and `p(b)` could keep relative accuracy.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.extend.core import primitives as P
from mpmath import mp, mpf
from sampling import every

from jaxlift._differences import DIFFERENCES, STEPS, quotient, wide

MAGNITUDES = (1e-300, 1e-30, 1e-9, 2e-3, 0.1, 0.3, 0.5, 1.0, 1.4, 3.0, 10.0, 80.0)
MAGNITUDES += (700.0, 1e4, 1e9, 1e30, 1e300)
INFINITE = float("inf")


@dataclass(frozen=True)
class Case:
    """One operand of one primitive, tested between `low` and `high`."""

    name: str
    p: Callable  # p(x, *others) in mpmath
    bound: float  # in eps, for float32 and float64
    bound64: float = 0
    low: float = -INFINITE
    high: float = INFINITE
    extra: tuple = ()
    others: tuple = ((),)
    operand: int = 0
    conditioned: int = 0
    params: tuple = ()
    tiny: float = 0  # smallest magnitude but 0
    kinks: Callable = lambda *_: ()  # where JAX's derivative is a convention
    digits: int = 400

    def __str__(self):
        return "-".join([self.name, str(self.operand), *map(str, self.params)])


def _real(f):
    """`f`, or nan where mpmath finds a pole or leaves the real line."""

    def real(*x):
        try:
            y = f(*x)
        except (ValueError, ZeroDivisionError, OverflowError):
            return mp.nan
        return mp.nan if isinstance(y, mpmath.mpc) else mpf(y)

    return real


def _cbrt(x):
    return mp.sign(x) * mp.cbrt(abs(x))


def _pow(x, y):
    y = int(y) if y == int(y) and abs(y) < 1e6 else y
    return mp.power(x, y)


def _rem(x, c):
    return mp.sign(x) * mp.fmod(abs(x), abs(c))


def _clamp(x, low, high):
    return min(max(x, low), high)


EXP = dict(extra=(-87.0, 88.0, -1e9))
UNIT = dict(low=-1, high=1, extra=(0.999, 0.9999999, -0.99999))
PAIRS = tuple((v,) for v in (-1e9, -0.25, 1e-9, 3.0))

CASES = [
    Case("exp", mp.exp, 4, **EXP),
    Case("exp2", lambda x: mp.power(2, x), 60, 1000, **EXP),
    Case("expm1", mp.expm1, 4, **EXP),
    Case("log", mp.log, 2, low=1e-300),
    Case("log1p", mp.log1p, 2, low=-0.9999999, extra=(-0.9999999, -0.999)),
    Case("logistic", lambda x: 1 / (1 + mp.exp(-x)), 4),
    Case("tanh", mp.tanh, 5),
    Case("sinh", mp.sinh, 5, extra=(88.8, -88.8)),
    Case("cosh", mp.cosh, 6, digits=1000, extra=(88.8, -88.8)),
    Case("asinh", mp.asinh, 3),
    Case("acosh", mp.acosh, 3, low=1, extra=(1.0000001, 1.001)),
    Case("atanh", mp.atanh, 2, **UNIT),
    Case("sin", mp.sin, 2, conditioned=1, extra=(1.5, 1.57, 1.58, 4.71, 100.0)),
    Case("cos", mp.cos, 3, digits=1000, conditioned=1, extra=(1.5, 3.14, 3.15, 100.0)),
    Case("tan", mp.tan, 3, conditioned=1, extra=(1.5, 1.57, 1.58, 100.0)),
    Case("asin", mp.asin, 4, **UNIT),
    Case("acos", mp.acos, 4, **UNIT),
    Case("atan", mp.atan, 5),
    Case("atan2", mp.atan2, 5, 600, others=PAIRS),
    Case("atan2", lambda x, y: mp.atan2(y, x), 5, 600, others=PAIRS, operand=1),
    Case("sqrt", mp.sqrt, 2, low=0),
    Case("rsqrt", lambda x: 1 / mp.sqrt(x), 3, low=1e-300),
    Case("cbrt", _cbrt, 5, kinks=lambda: (0,)),
    Case("square", lambda x: x * x, 1),
    *(
        Case("integer_pow", partial(_pow, y=n), 5, params=(("y", n),))
        for n in (0, 1, 2, 3, 6, 7, 12, -1, -2, -3)
    ),
    Case(
        "pow",
        _pow,
        5,
        200,
        low=1e-300,
        others=tuple((y,) for y in (-2.5, -1.0, 0.0, 1e-9, 0.5, 1.0, 2.0, 3.7, 20.0)),
    ),
    Case("pow", _pow, 5, others=((0.0,), (1.0,), (2.0,), (3.0,), (4.0,))),
    Case(
        "pow",
        lambda y, x: _pow(x, y),
        5,
        others=tuple((x,) for x in (1e-9, 0.5, 0.999, 1.0, 1.001, 3.0, 1e9)),
        operand=1,
    ),
    Case("mul", lambda x, v: x * v, 1, others=PAIRS),
    Case("mul", lambda x, v: x * v, 1, others=PAIRS, operand=1),
    Case("div", lambda x, v: x / v, 1, others=PAIRS),
    Case("div", lambda v, x: x / v, 3, others=PAIRS, operand=1),
    Case("neg", lambda x: -x, 0),
    Case("add", lambda x, v: x + v, 0, others=PAIRS),
    Case("add", lambda x, v: x + v, 0, others=PAIRS, operand=1),
    Case("add_any", lambda x, v: x + v, 0, others=PAIRS),
    Case("add_any", lambda x, v: x + v, 0, others=PAIRS, operand=1),
    Case("sub", lambda x, v: x - v, 0, others=PAIRS),
    Case("sub", lambda x, v: v - x, 0, others=PAIRS, operand=1),
    Case("copy", lambda x: x, 0),
    Case("convert_element_type", lambda x: x, 0),
    Case("reduce_precision", lambda x: x, 0),
    Case("abs", abs, 2, kinks=lambda: (0,)),
    Case("max", max, 2, others=PAIRS, kinks=lambda v: (v,)),
    Case("max", max, 2, others=PAIRS, kinks=lambda v: (v,), operand=1),
    Case("min", min, 2, others=PAIRS, kinks=lambda v: (v,)),
    Case("min", min, 2, others=PAIRS, kinks=lambda v: (v,), operand=1),
    Case(
        "clamp",
        lambda low, x, high: _clamp(x, low, high),
        2,
        others=((0.5, 3.0), (0.1, 0.3)),
        kinks=lambda *v: v,
    ),
    Case(
        "clamp",
        _clamp,
        2,
        others=((0.0, 6.0), (-0.5, 0.5)),
        operand=1,
        kinks=lambda *v: v,
    ),
    Case(
        "clamp",
        lambda high, low, x: _clamp(x, low, high),
        2,
        others=((0.1, 0.3), (-3.0, 1.0)),
        operand=2,
        kinks=lambda *v: v,
    ),
    Case("rem", _rem, 2, others=((0.75,), (-2.0,)), high=1e9, low=-1e9, kinks=None),
    Case(
        "rem",
        lambda c, x: _rem(x, c),
        2,
        others=((5.3717,), (-700.5,)),
        operand=1,
        tiny=1e-3,
        kinks=None,
    ),
    Case("erf", mp.erf, 8, 400, extra=(2.0, 5.0, 9.0, 26.0)),
    Case("erfc", mp.erfc, 8, 400, extra=(2.0, 5.0, 9.0, 26.0)),
    Case(
        "erf_inv", mp.erfinv, 100, low=-0.9995, high=0.9995, extra=(0.999,), digits=100
    ),
    Case("lgamma", lambda x: mp.re(mp.loggamma(x)), 64, conditioned=1, high=1e30),
    Case("digamma", mp.digamma, 32, conditioned=1, high=1e9),
    Case(
        "bessel_i0e",
        lambda x: mp.exp(-abs(x)) * mp.besseli(0, x),
        6,
        conditioned=2,
        low=-1e4,
        high=1e4,
    ),
    Case(
        "bessel_i1e",
        lambda x: mp.exp(-abs(x)) * mp.besseli(1, x),
        6,
        conditioned=2,
        low=-1e4,
        high=1e4,
    ),
    Case(
        "igamma",
        lambda s, x: mp.gammainc(s, 0, x, regularized=True),
        400,
        conditioned=2,
        low=0.1,
        high=80.0,
        others=((0.3,), (5.0,)),
        digits=80,
    ),
    Case(
        "igamma",
        lambda x, s: mp.gammainc(s, 0, x, regularized=True),
        400,
        conditioned=2,
        low=0.002,
        high=80.0,
        others=((0.5,), (30.0,)),
        operand=1,
        digits=80,
    ),
    Case(
        "igammac",
        lambda s, x: mp.gammainc(s, x, regularized=True),
        400,
        conditioned=2,
        low=0.1,
        high=80.0,
        others=((0.3,), (5.0,)),
        digits=80,
    ),
    Case(
        "igammac",
        lambda x, s: mp.gammainc(s, x, regularized=True),
        400,
        conditioned=2,
        low=0.002,
        high=80.0,
        others=((0.5,), (30.0,)),
        operand=1,
        digits=80,
    ),
    Case(
        "polygamma",
        lambda x, m: mp.psi(int(m), x),
        16,
        conditioned=1,
        low=1e-3,
        high=1e4,
        others=((1.0,), (2.0,), (5.0,)),
        operand=1,
        digits=80,
    ),
    Case(
        "regularized_incomplete_beta",
        lambda x, p, q: mp.betainc(p, q, 0, x, regularized=True),
        400,
        conditioned=2,
        low=0.002,
        high=0.998,
        others=((0.5, 0.5), (2.0, 3.0), (10.0, 30.0)),
        operand=2,
        digits=80,
        tiny=0.002,
    ),
    Case("log2", lambda x: mp.log(x, 2), 3, low=1e-300),
    Case("one_minus_square", lambda x: 1 - x * x, 1, digits=1000),
    Case(
        "polynomial",
        lambda x, *c: sum(c * x**k for k, c in enumerate(c)),
        4,
        conditioned=1,
        high=1e4,
        low=-1e4,
        others=((1.0, -2.0, 0.5, 3.0),),
    ),
    *(
        Case(
            "polynomial",
            lambda c, x, *_, k=k: c * x**k,
            1,
            high=1e4,
            low=-1e4,
            others=((3.0, *4 * (0.5,)),),
            operand=k + 1,
        )
        for k in range(3)
    ),
]
ROWS = {p.name: p for p in DIFFERENCES}
CASES = [case for case in CASES if case.name in ROWS]  # JAX may be older
DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "bfloat16": jnp.dtype("bfloat16").type,
}


def slope_of(case):
    return partial(DIFFERENCES[ROWS[case.name]][case.operand], **dict(case.params))


def others_of(case, dtype):
    return [np.array(o, dtype) for o in zip(*case.others, strict=True)]


def points(case, narrow):
    """All pairs of the grid, and pairs 1 ulp, 0.1 % and 30 % apart or opposite."""
    info = jnp.finfo(narrow)
    tiny, most = float(info.tiny), float(info.max)
    sizes = [v for v in MAGNITUDES if max(100 * tiny, case.tiny) < v < most / 100]
    kinks = case.kinks(*case.others[0]) if case.kinks else ()
    x = [0.0, *sizes, *(-v for v in sizes), *case.extra, *kinks]
    x = np.unique(np.array(x, narrow))
    up = np.nextafter(x, narrow(np.inf))
    pairs = [(a, b) for a in x for b in x if a <= b]
    pairs += [*zip(x, up), *zip(-x, up), *zip(x, x * narrow(1.001))]  # noqa: B905
    pairs += zip(x, x * narrow(1.3), strict=True)
    pairs = np.array(pairs, narrow).astype(np.float64)
    inside = (case.low <= pairs) & (pairs <= case.high)
    normal = (pairs == 0) | (abs(pairs) > 2 * tiny)  # XLA flushes denormals
    return pairs[(inside & normal).all(1)].T


# Errors are counted in roundings, so the function is compiled as XLA does unless told
# (by `conftest`) to be quick: a quick `cbrt` of -1e30 is wrong by 12 of them.
_EMITTERS = "xla_cpu_use_fusion_emitters"
_precisely = partial(
    jax.jit,
    compiler_options={_EMITTERS: True} if _EMITTERS in os.environ["XLA_FLAGS"] else {},
)


@cache
def compiled(case):
    return _precisely(slope_of(case))


@cache
def evaluate(case, name):
    """The points, the other operands, and D both ways round, compiled once a dtype."""
    narrow = DTYPES[name]
    with jax.enable_x64(narrow is np.float64):
        a, b = (np.asarray(wide(p.astype(narrow))) for p in points(case, narrow))
        n, others = len(a), others_of(case, a.dtype)
        a, b = (np.resize(p, 1000)[:, None] for p in (a, b))  # one shape
        shape = (1000, len(case.others))
        slope = compiled(case)
        ab, ba = (np.broadcast_to(slope(*p, *others), shape) for p in [(a, b), (b, a)])
    return a[:n, 0].astype(float), b[:n, 0].astype(float), others, ab[:n], ba[:n]


def is_kink(case, x, others):
    return case.kinks is None or x in case.kinks(*others)


@pytest.mark.parametrize(
    "case, dtype",
    [
        *((case, dtype) for case in CASES for dtype in ("float32", "float64")),
        *((case, "bfloat16") for case in every(3, CASES)),
    ],
    ids=str,
)
def test_slope(case, dtype):
    a, b, others, ab, ba = evaluate(case, dtype)
    info = jnp.finfo(ab.dtype)
    big, tiny, eps = (mpf(float(v)) for v in (info.max, info.tiny, info.eps))
    bound = case.bound64 if dtype == "float64" and case.bound64 else case.bound
    tested = 0
    mp.dps = case.digits
    for j in range(len(case.others)):
        held = [mpf(float(o[j])) for o in others]
        p = cache(lambda x, held=held: _real(case.p)(x, *held))

        @cache
        def derivative(x, p=p):
            h = mpf("1e-20") * (min(abs(x), 1) if x else mpf("1e-330"))
            return (p(x + h) - p(x - h)) / (2 * h)

        for i in range(len(a)):
            x, y = mpf(a[i]), mpf(b[i])
            px, py = p(x), p(y)
            largest = max(abs(px), abs(py))
            if mp.isnan(largest) or largest > big:
                continue
            if x == y:
                if is_kink(case, x, held):
                    continue
                expected = derivative(x)
            else:
                if 0 < largest and abs(px - py) < tiny:  # the step underflows
                    continue
                expected = (px - py) / (x - y)
            if mp.isnan(expected) or abs(expected) > big / 4:
                continue
            scale = abs(expected) + 8 * tiny / (bound + 1) / eps
            if case.conditioned == 1:
                ends = abs(derivative(x)) + abs(derivative(y))
                scale += ends if x == y else min(ends, 2 * largest / abs(x - y))
            elif case.conditioned == 2:
                scale += abs(px) + abs(py)
            for got in (ab[i, j], ba[i, j]):
                error = abs(mpf(float(got)) - expected) / scale / eps
                assert error <= bound + 1e-9, (
                    a[i],
                    b[i],
                    held,
                    float(expected),
                    got,
                    error,
                )
            tested += 1
    assert tested > 30


FUNCTIONS = {
    "clamp": lambda *x: jax.lax.clamp(*jnp.broadcast_arrays(*x)),
    "add_any": jax.lax.add,
    "copy": jnp.copy,
    "convert_element_type": lambda x: x,
    "reduce_precision": lambda x: x,
    "regularized_incomplete_beta": jax.lax.betainc,
    "polynomial": lambda x, *c: jnp.polyval(jnp.stack(c[::-1]), x),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal_points_give_the_gradient_of_jax(case, dtype):
    tolerance = 1e-6 if dtype == "float32" else 1e-13
    bound = case.bound64 if dtype == "float64" and case.bound64 else case.bound
    rtol = max(2 * tolerance, bound * float(jnp.finfo(dtype).eps))
    f, i = FUNCTIONS.get(case.name) or getattr(jax.lax, case.name), case.operand
    with jax.enable_x64(dtype == "float64"):
        a, b, others, ab, _ = evaluate(case, dtype)
        x, got = a[a == b].astype(dtype), ab[a == b, 0]
        if case.high == 1:  # JAX's 1 - x^2 is itself inexact close to 1
            x, got, rtol = x[abs(x) < 0.9995], got[abs(x) < 0.9995], 1000 * rtol
        others = [np.full_like(x, o[0]) for o in others]

        def along(x):
            return jnp.sum(f(*others[:i], x, *others[i:], **dict(case.params)))

        expected = jax.jit(jax.grad(along))(x)
        kept = ~np.isnan(expected)
        assert kept.any()
        np.testing.assert_allclose(got[kept], expected[kept], rtol, tolerance)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in ("log", "erf", "max", "pow")], ids=str
)
def test_vmap(case):
    a, b, others, ab, _ = evaluate(case, "float32")
    if not others:
        slope = jax.vmap(slope_of(case))
        got = jax.jit(slope)(np.float32(a), np.float32(b))[:, None]
    else:
        over_others = (None, None, *(0 for _ in others))
        over_points = (0, 0, *(None for _ in others))
        slope = jax.vmap(jax.vmap(slope_of(case), over_others), over_points)
        got = jax.jit(slope)(np.float32(a), np.float32(b), *others)
    np.testing.assert_allclose(got, ab, 1e-5, 1e-30)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "name", ["exp", "exp2", "expm1", "logistic", "tanh", "erf", "erfc", "atan"]
)
def test_infinite_points(name, dtype):
    pairs = [(-INFINITE, -INFINITE), (-INFINITE, 0.0), (-INFINITE, -1e30), (0.0, 0.0)]
    if name not in ("exp", "exp2", "expm1"):
        pairs += [(-y, -x) for x, y in pairs] + [(-INFINITE, INFINITE)]
    with jax.enable_x64(dtype == "float64"):
        a, b = np.array(pairs, dtype).T
        (slope,) = DIFFERENCES[ROWS[name]]
        for got in (jax.jit(slope)(a, b), jax.jit(slope)(b, a)):
            assert np.isfinite(got).all()
            assert (np.asarray(got)[(a != 0) | (b != 0)] == 0).all()


def test_every_row_has_a_case():
    tested = {(case.name, case.operand) for case in CASES}
    for p, row in DIFFERENCES.items():
        for i, slope in enumerate(islice(iter(row), 4)):
            assert slope is None or (p.name, i) in tested, f"no domain for {p}, {i}"


def test_steps_and_differences_are_apart():
    assert not STEPS & DIFFERENCES.keys()
    assert {P.floor_p, P.sign_p, P.eq_p} <= STEPS


def test_quotient():
    big = jnp.float32(3e38)
    assert quotient(big, -big, big, -big, 7.0) == 1
    assert quotient(1.0, 1.0, big, big, 7.0) == 7


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_wide(dtype):
    assert wide(jnp.ones(2, dtype)).dtype == jnp.float32
    assert wide(jnp.ones(2, jnp.complex64)).dtype == jnp.complex64
