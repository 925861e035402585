"""The table of divided differences of JAX's elementwise primitives.

    D(a, b) = (p(a) - p(b)) / (a - b),   D(a, a) = p'(a),   D(a, b) = D(b, a)

Written as it stands the quotient loses all digits when `a` and `b` are close.
Every entry below is an identity or a quadrature that does not (Reps & Rall,
*Computational divided differencing and divided-difference arithmetics*, 2003).
Four devices do most of the work:

*   `d = |a - b|` carries one rounding, so a function of `d` alone is safe where
    `p(mid)` is not: the midpoint is not a floating-point number.
*   Values further apart than half the larger of them do not cancel: `_settle` takes
    the quotient of the values there, and the identity only has to hold up close.
*   Values that carry no rounding (abs, max, clamp, ...) never cancel.
*   Without an identity, `D` is the mean of `p'` between the points (`_mean`).

Entries take float32 or float64 (`wide` lifts what is narrower) and broadcast like
jnp. `d` is 0 where `a == b`, infinities included.
"""

import math
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.extend.core import primitives as P


def wide(x):
    """`x` in float32 if it is a narrower float; anything else unchanged."""
    dtype = jnp.result_type(x)
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return lax.convert_element_type(x, jnp.float32) if narrow else x


def quotient(fa, fb, a, b, otherwise, where: Any = True):
    """`(fa - fb) / (a - b)` where it is a number and wanted, elsewhere `otherwise`."""
    # By halves: the difference of huge opposite points is finite. The division comes
    # last: XLA keeps what a division makes, and repeats what a selection makes.
    run, rise = 0.5 * a - 0.5 * b, 0.5 * fa - 0.5 * fb
    # XLA flushes a denormal run to 0, and may contract the product that made `a` with
    # the run. From infinity, too, the slope is that at `a`.
    moved = (a != b) & (run != 0) & (abs(run) < jnp.inf) & where
    return jnp.where(moved, rise, otherwise) / jnp.where(moved, run, 1)


def accounts(slope, fa, fb, a, b, within, least=0.0):
    """Whether `slope (a - b)` is `fa - fb`, to a fraction of the larger of the values.

    `least` is what they are measured by at least.
    """
    run, rise = 0.5 * a - 0.5 * b, 0.5 * fa - 0.5 * fb
    size = jnp.maximum(jnp.maximum(abs(fa), abs(fb)), least)
    return abs(slope * run - rise) <= 0.5 * within * size


def _settle(fa, fb, a, b, near):
    """The quotient where the values differ by half the larger of them, else `near`."""
    apart = 2 * abs(fa - fb) >= jnp.maximum(abs(fa), abs(fb))
    return quotient(fa, fb, a, b, near, apart)


def gap(a, b):
    """`|a - b|`, 0 for the same infinity."""
    return jnp.where(a == b, 0, abs(a - b))


def _over(y, d, at_zero):
    """`y / d`, and `at_zero` where `d == 0`; no NaN in its own derivative."""
    return jnp.where(d == 0, at_zero, y / jnp.where(d == 0, 1, d))


def _slope(f, x):
    """JAX's own derivative: the one source for kinks, which differ by version."""
    return jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


# --- Quadrature ---------------------------------------------------------------------
# Gauss-Legendre with n nodes over an interval of length d, whose nearest singularity
# is 2d or more away, is off by about 0.1^(2n): eps at 4 and 8 nodes.


@cache
def _nodes(dtype):
    t, w = np.polynomial.legendre.leggauss(4 if dtype == np.float32 else 8)
    return (t + 1).astype(dtype) / 2, w.astype(dtype) / 2


def _mean(f, a, b):
    """The mean of `f` between `a` and `b`, the nodes on a new leading axis."""
    t, w = (
        n.reshape(-1, *[1] * max(jnp.ndim(a), jnp.ndim(b)))
        for n in _nodes(jnp.result_type(a, b))
    )
    return jnp.sum(w * f(b + t * (a - b)), axis=0)


def _smooth(f, reach):
    """D of `f(x, *others)`: the mean slope while `|a - b| < reach`, then the quotient.

    `reach(a, b, *others)` must not exceed half the distance to a singularity.
    """

    def difference(a, b, *others, **_):
        a, b, *others = jnp.broadcast_arrays(a, b, *others)

        def slope(x):
            held = (jnp.broadcast_to(o, x.shape) for o in others)
            return _slope(lambda x, held=tuple(held): f(x, *held), x)

        near = (abs(a - b) < reach(a, b, *others)) | (a == b)
        mean = _mean(slope, a, jnp.where(near, b, a))
        return quotient(f(a, *others), f(b, *others), a, b, mean, ~near)

    return difference


# --- Exponentials ---------------------------------------------------------------------
# Transcendental functions of each point only, which its value needs as well.
# With d = |a - b|, t(h) = tanh(h) / h, M = max(|a|, |b|), s the logistic:
#   e^a - e^b         = (e^a + e^b)/2 t(d/2) d
#   s(a) - s(b)       = (s(a) s(-b) + s(b) s(-a))/2 t(d/2) d
#   tanh a - tanh b   = (1 - tanh a tanh b) t(d) d
#   sinh a - sinh b   = e^M/2 (1 + e^-|a+b|) (1 - e^-d)
#   cosh a - cosh b   = e^M/2 (1 - e^-|a+b|) (1 - e^-d), signed as (a+b)(a-b)
# Close to each other t is a fraction; further apart the values do not cancel.


def _by_tanh(h, mean, rise, run):
    """`mean tanh(h) / h` while `h < 1/2`, from there on `rise / run`."""
    near = h < 0.5
    over, under = _lambert(h * h, 3 if h.dtype == np.float32 else 7)
    return jnp.where(near, mean * over, rise) / jnp.where(near, under, run)


def _lambert(z, terms):
    """Numerator and denominator of `tanh(h) / h`, `z = h^2`; of `tan(h) / h`, `-h^2`.

    A convergent of Lambert's continued fraction, 1 / (1 + c_1 z / (1 + c_2 z / ...)),
    c_k = 1 / (4 k^2 - 1), of so many terms that it is off by less than eps / 2.
    """
    over = under = jnp.ones_like(z)
    for k in range(terms, 0, -1):
        over, under = under, under + z * (1 / (4 * k * k - 1)) * over
    return over, under


def decay(d):
    """`(1 - e^-|d|) / |d|`, the divided difference of exp from `-|d|` to 0."""
    return _over(-lax.expm1(-abs(d)), abs(d), 1)


def of_exp(ea, eb, a, b):
    """D of exp, its values `ea` and `eb` given, both times any one factor."""
    return _by_tanh(gap(a, b) / 2, 0.5 * ea + 0.5 * eb, ea - eb, a - b)


def _exp(a, b, **_):
    return of_exp(lax.exp(a), lax.exp(b), a, b)


def _exp2(a, b, **_):
    ln2 = math.log(2)
    return lax.exp2(jnp.maximum(a, b)) * (ln2 * decay(ln2 * gap(a, b)))


def _logistic(a, b, **_):
    def both(x):
        """s(x) and s(-x), the smaller of them without cancellation."""
        s = lax.logistic(x)
        return s, jnp.where(x > 0, lax.exp(-x) * s, 1 - s)

    (sa, ra), (sb, rb) = both(a), both(b)
    rise = jnp.where((a > 0) & (b > 0), rb - ra, sa - sb)
    return _by_tanh(gap(a, b) / 2, 0.5 * (sa * rb + sb * ra), rise, a - b)


def _tanh(a, b, **_):
    ta, tb = abs(lax.tanh(a)), abs(lax.tanh(b))
    # u = 1 - |tanh a| = e^(-2|a|) (1 + |tanh a|), and v; 1 - (1-u)(1-v) = u + v - uv.
    u, v = lax.exp(-2 * abs(a)) * (1 + ta), lax.exp(-2 * abs(b)) * (1 + tb)
    opposite, d = (a < 0) != (b < 0), gap(a, b)
    mean = jnp.where(opposite, 1 + ta * tb, u + v - u * v)
    return _by_tanh(d, mean, jnp.where(opposite, ta + tb, abs(u - v)), d)


def _half_exp(a, b):
    """`e^M/2`, finite as long as sinh and cosh are."""
    root = lax.exp(jnp.maximum(abs(a), abs(b)) / 2)
    return 0.5 * root * root


def _sinh(a, b, **_):
    return _half_exp(a, b) * decay(gap(a, b)) * (1 + lax.exp(-abs(a + b)))


def _cosh(a, b, **_):
    return _half_exp(a, b) * decay(gap(a, b)) * ((a + b) * decay(a + b))


# --- Logarithms -----------------------------------------------------------------------
# Each is log(1 + k d) / d, k the derivative's like at the smaller point:
#   log a - log b     = log(1 + d / min)
#   atanh a - atanh b = log(1 + 2d / ((1 - max)(1 + min))) / 2
#   asinh, acosh      = log(x + c), c = sqrt(x^2 +- 1), x >= 0, where
#                       (a + ca) - (b + cb) = (a - b)(1 + (a + b) / (ca + cb))


def _log_over(d, k):
    """`log(1 + k d) / d`, also where `k d` overflows; `k` at `d == 0`."""
    r = k * d
    huge = jnp.isinf(r)
    log = lax.log1p(jnp.where(huge, lax.sqrt(k) * lax.sqrt(d), r))
    return _over(jnp.where(huge, 2 * log, log), d, k)


def _log(a, b, **_):
    return _log_over(gap(a, b), 1 / jnp.minimum(a, b))


def _log2(a, b, **_):
    return _log(a, b) / math.log(2)


def _log1p(a, b, **_):
    return _log_over(gap(a, b), 1 / (1 + jnp.minimum(a, b)))


def _atanh(a, b, **_):
    high, low = jnp.maximum(a, b), jnp.minimum(a, b)
    return _log_over(gap(a, b), 2 / ((1 - high) * (1 + low))) / 2


def _log_of_sum(a, b, ca, cb):
    k = 1 + (a / 2 + b / 2) / (ca / 2 + cb / 2)
    return _log_over(gap(a, b), k / jnp.minimum(a + ca, b + cb))


def _asinh(a, b, **_):
    def c(x):  # without overflow: from 1e10 on the 1 is below rounding
        return jnp.where(x < 1e10, lax.sqrt(1 + x * x), x)

    near = _log_of_sum(abs(a), abs(b), c(abs(a)), c(abs(b)))
    return _settle(lax.asinh(a), lax.asinh(b), a, b, near)


def _acosh(a, b, **_):
    def c(x):
        return lax.sqrt(x - 1) * lax.sqrt(x + 1)

    return _log_of_sum(a, b, c(a), c(b))


# --- Trigonometry ---------------------------------------------------------------------
#   sin a - sin b     =  (cos a + cos b) tan(d/2)
#   cos a - cos b     = -(sin a + sin b) tan(d/2)
#   tan a - tan b     =  (1 + tan a tan b) tan d
#   asin a - asin b   =  the angle with sine d(a + b) / (a cb + b ca) and cosine
#                        ca cb + a b, where ca = sqrt(1 - a^2) and a, b >= 0
#   atan a - atan b   =  the angle of (1 + a b, d)


def _sin(a, b, **_):
    return _wave(lax.sin(a), lax.sin(b), a, b, (lax.cos(a) + lax.cos(b)) / 2)


def _cos(a, b, **_):
    return _wave(lax.cos(a), lax.cos(b), a, b, (lax.sin(a) + lax.sin(b)) / -2)


def _wave(fa, fb, a, b, mean):
    h, run, rise = gap(a, b) / 2, 0.5 * a - 0.5 * b, 0.5 * fa - 0.5 * fb
    near, finite = h < 1, abs(run) < jnp.inf
    z = jnp.where(near, -h * h, 0)
    over, under = _lambert(z, 5 if z.dtype == np.float32 else 9)
    run, rise = jnp.where(finite, run, 1), jnp.where(finite, rise, mean)
    return jnp.where(near, mean * over, rise) / jnp.where(near, under, run)


def _tan(a, b, **_):
    fa, fb, d = lax.tan(a), lax.tan(b), jnp.clip(gap(a, b), max=1)
    near = (1 + fa * fb) * _over(lax.tan(d), d, 1)
    return quotient(fa, fb, a, b, near, d >= 1)


def _asin(a, b, **_):
    x, y, d = abs(a), abs(b), gap(a, b)
    cx, cy = lax.sqrt((1 - x) * (1 + x)), lax.sqrt((1 - y) * (1 + y))
    k = _over(x + y, x * cy + y * cx, 1)
    near = _over(jnp.arctan2(d * k, cx * cy + x * y), d, 1 / cx)
    return _settle(lax.asin(a), lax.asin(b), a, b, near)


def _atan(a, b, **_):
    big = jnp.finfo(jnp.result_type(a, b)).max  # for inf
    x, y = jnp.clip(a, -big, big), jnp.clip(b, -big, big)
    return _angle(lax.atan(a), lax.atan(b), x, y, 1, 1.0)


def _angle(fa, fb, a, b, turn, held):
    """D of the angle `fa` of a point whose coordinate `a` moves and `held` does not.

    Below half a radian from the vectors' cross and inner product. Scaled, these do not
    overflow, and a sine that underflows is small enough for the derivative.
    """
    d, scale = gap(a, b), jnp.maximum(abs(held), jnp.maximum(abs(a), abs(b)))
    h = held / scale
    sine, cosine = h * (d / scale), h * h + (a / scale) * (b / scale)
    d = jnp.where(sine == 0, 0, d)
    angle = lax.atan(sine / jnp.where(cosine == 0, 1, cosine))
    near = turn * _over(angle, d, h / cosine / scale)
    largest = jnp.maximum(abs(fa), abs(fb))
    apart = (2 * abs(fa - fb) >= jnp.minimum(largest, 1)) | (cosine == 0)
    return quotient(fa, fb, a, b, near, apart)


def _atan2_y(a, b, x, **_):
    return _angle(jnp.arctan2(a, x), jnp.arctan2(b, x), a, b, 1, x)


def _atan2_x(a, b, y, **_):
    return _angle(jnp.arctan2(y, a), jnp.arctan2(y, b), a, b, -1, y)


# --- Powers ---------------------------------------------------------------------------
# With s = a + b:   D of x^2m      = s D_m(a^2, b^2)
#                   D of x^(2m+1)  = (a^2m + b^2m + s^2 D_m(a^2, b^2)) / 2
# sums of positive terms. For x^-n, D = -u v D_n(u, v), u = 1/a, v = 1/b.


def _power(n, a, b, s):
    """D of `x^n`, n >= 0, where `s = a + b` is known to full accuracy."""
    if n < 2:
        return jnp.full_like(s, n)
    a2, b2 = a * a, b * b
    inner = _power(n // 2, a2, b2, a2 + b2)
    if n % 2 == 0:
        return s * inner
    return (lax.integer_pow(a, n - 1) + lax.integer_pow(b, n - 1) + s * s * inner) / 2


def _integer_pow(a, b, *, y, **_):
    if y >= 0:
        return _power(y, a, b, a + b)
    u, v = 1 / a, 1 / b
    s = _settle(u, -v, jnp.ones_like(u), jnp.zeros_like(v), (a + b) * (u * v))
    return -(u * v) * _power(-y, u, v, s)


def _sqrt(a, b, **_):
    return 1 / (lax.sqrt(a) + lax.sqrt(b))


def _rsqrt(a, b, **_):
    return -lax.rsqrt(a) * lax.rsqrt(b) / (lax.sqrt(a) + lax.sqrt(b))


def _cbrt(a, b, **_):
    u, v = lax.cbrt(a), lax.cbrt(b)
    return 1 / (u * u + u * v + v * v)


def _pow_x(a, b, y, **_):
    # |a|^y - |b|^y = +-larger (1 - e^-z), z = |y log(a/b)|.
    fa, fb = jnp.power(a, y), jnp.power(b, y)
    x0, x1 = abs(a), abs(b)
    larger = jnp.where(abs(fa) > abs(fb), fa, fb)
    rate = y * _log(x0, x1)
    fold = quotient(x0, x1, a, b, jnp.sign(a))
    near = larger * rate * decay(rate * gap(x0, x1)) * fold
    near = jnp.where(gap(a, b) == 0, y * jnp.power(a, y - 1), near)
    return _settle(fa, fb, a, b, jnp.where(y == 0, 0, near))


def _pow_y(a, b, x, **_):
    fa, fb = jnp.power(x, a), jnp.power(x, b)
    log = lax.log(jnp.where(x == 0, 1, x))
    near = jnp.maximum(fa, fb) * log * decay(log * gap(a, b))
    return quotient(fa, fb, a, b, near, x <= 0)


def _div_v(a, b, u, **_):
    # -u / (a b), the smaller first: u / a and u / b are finite, 1 / (a b) may not be.
    small = jnp.where(abs(a) < abs(b), a, b)
    return -(u / small) * (1 / jnp.where(abs(a) < abs(b), b, a))


def _polynomial(a, b, *coefficients, **_):
    # Horner's rule at b; its partial sums are the coefficients of D(., b).
    value = slope = jnp.zeros_like(a + b)
    for c in reversed(coefficients):
        slope = slope * a + value
        value = value * b + c
    return slope


def _monomial(k, a, b, x, *_, **__):
    return lax.integer_pow(x, k)


class _OfAnyNumber:
    """Rows of a primitive with any number of operands: the first's, and operand k's."""

    def __init__(self, first, other):
        self.first, self.other = first, other

    def __getitem__(self, k):
        return partial(self.other, k - 1) if k else self.first


def _one(a, b, *_, **__):
    return 1.0


def _minus_one(a, b, *_, **__):
    return -1.0


def _held(a, b, v, **_):
    return v


# --- Piecewise linear: exact values, never a cancellation -----------------------------


def _abs(a, b, **_):
    return quotient(abs(a), abs(b), a, b, _slope(lax.abs, a))


def _max(a, b, c, **_):
    tie = jnp.where(a == c, 0.5, a > c)
    return quotient(jnp.maximum(a, c), jnp.maximum(b, c), a, b, tie)


def _min(a, b, c, **_):
    tie = jnp.where(a == c, 0.5, a < c)
    return quotient(jnp.minimum(a, c), jnp.minimum(b, c), a, b, tie)


def _clamp(low, x, high):
    return jnp.minimum(jnp.maximum(x, low), high)


def _clamp_low(a, b, x, high, **_):
    inside = (a > x) & (a < high)
    return quotient(_clamp(a, x, high), _clamp(b, x, high), a, b, inside)


def _clamp_x(a, b, low, high, **_):
    inside = (a > low) & (a < high)
    return quotient(_clamp(low, a, high), _clamp(low, b, high), a, b, inside)


def _clamp_high(a, b, low, x, **_):
    return quotient(_clamp(low, x, a), _clamp(low, x, b), a, b, a < x)


def _rem_x(a, b, c, **_):
    return quotient(jnp.fmod(a, c), jnp.fmod(b, c), a, b, 1)


def _rem_c(a, b, x, **_):
    return quotient(jnp.fmod(x, a), jnp.fmod(x, b), a, b, -jnp.trunc(x / a))


# --- Special functions ----------------------------------------------------------------


def _erf(a, b, **_):
    # The mean of 2/sqrt(pi) e^-t^2 between the points. With c = (a + b)/2, h = d/2 and
    # H_k Hermite's polynomials, it is 2/sqrt(pi) e^-c^2 sum_j H_2j(c) h^2j / (2j + 1)!;
    # beyond, the quotient of values whose relative accuracy the tail needs.
    d, opposite = gap(a, b), (a < 0) != (b < 0)
    ea, eb = lax.erfc(abs(a)), lax.erfc(abs(b))
    rise = jnp.where(opposite, 2 - ea - eb, abs(ea - eb))
    a, b = jnp.clip(a, -30, 30), jnp.clip(b, -30, 30)  # e^-900 is 0
    near = d * (1 + jnp.minimum(abs(a), abs(b))) < 0.5
    head = jnp.round(8 * (a + b)) / 16  # head^2 is exact
    low = ((a - head) + (b - head)) / 2
    peak = lax.exp(-head * head) * lax.exp(-low * (2 * head + low))
    x, y = (head + low) * d, d * d / 2
    last, term = jnp.ones_like(x), x  # H_k(c) h^k / k!
    total = last
    for k in range(2, 11 if x.dtype == np.float32 else 17):
        last, term = term, (x * term - y * last) * (1 / k)
        total = total if k % 2 else total + term * (1 / (k + 1))
    mean = 2 / math.sqrt(math.pi) * peak * total
    return jnp.where(near, mean, rise) / jnp.where(near, 1, d)


def _erf_inv(a, b, **_):
    fa, fb = lax.erf_inv(a), lax.erf_inv(b)
    return _settle(fa, fb, a, b, 1 / _erf(fa, fb))


def _pole(x):
    """The distance from 0, -1, -2, ..."""
    return jnp.where(x > 0, x, abs(x - jnp.round(x)))


def _bessel_i0e(a, b, **_):
    x, y = abs(a), abs(b)
    fold = quotient(x, y, a, b, jnp.sign(a))  # even, with a kink at 0
    return fold * _smooth(lax.bessel_i0e, lambda *_: 0.5)(x, y)


def _bessel_i1e(a, b, **_):
    near = _smooth(lax.bessel_i1e, lambda *_: 0.5)(abs(a), abs(b))
    return _settle(lax.bessel_i1e(a), lax.bessel_i1e(b), a, b, near)


def _quarter(a, b, *_):
    return jnp.minimum(a, b) / 4


def _polygamma_reach(a, b, m):
    return _half_pole(a, b) / (1 + m / 4)


def _igamma_reach(a, b, s, *_):
    """Half the distance over which the density `x^(s-1) e^-x` changes by a factor e."""
    return 0.5 / (1 + (1 + abs(s - 1)) / jnp.minimum(a, b))


def _betainc_reach(a, b, p, q, *_):
    left, right = jnp.minimum(a, b), 1 - jnp.maximum(a, b)
    return 0.5 / ((1 + abs(p - 1)) / left + (1 + abs(q - 1)) / right)


def _half_pole(a, b, *_):
    return jnp.minimum(_pole(a), _pole(b)) / 2


def _swap(f):
    """`f` with its second operand first."""
    return lambda x, s: f(s, x)


_lgamma = _smooth(lax.lgamma, _half_pole)
_digamma = _smooth(lax.digamma, _half_pole)
_polygamma = _smooth(_swap(lax.polygamma), _polygamma_reach)
_betainc = _smooth(lambda x, p, q: lax.betainc(p, q, x), _betainc_reach)


# The bound of each row as measured on CPU in eps of float32 and float64, relative to D;
# "slope": to the larger of D and the end slopes, where D passes through zero;
# "value": to D + |p(a)| + |p(b)|; "own": that is the error of JAX's own p or p'.
# fmt: off
DIFFERENCES: dict[Primitive, tuple | _OfAnyNumber] = {
    P.exp_p:                  (_exp,),                                          # 4
    P.exp2_p:                 (_exp2,),                                         # 60, 1000 own
    P.expm1_p:                (_exp,),                                          # 4
    P.log_p:                  (_log,),                                          # 2
    P.log1p_p:                (_log1p,),                                        # 2
    P.logistic_p:             (_logistic,),                                     # 4
    P.tanh_p:                 (_tanh,),                                         # 5
    P.sinh_p:                 (_sinh,),                                         # 5
    P.cosh_p:                 (_cosh,),                                         # 6
    P.asinh_p:                (_asinh,),                                        # 3
    P.acosh_p:                (_acosh,),                                        # 3
    P.atanh_p:                (_atanh,),                                        # 2
    P.sin_p:                  (_sin,),                                          # 2 slope
    P.cos_p:                  (_cos,),                                          # 3 slope
    P.tan_p:                  (_tan,),                                          # 3 slope
    P.asin_p:                 (_asin,),                                         # 4
    P.acos_p:                 (lambda a, b, **_: -_asin(a, b),),                # 4
    P.atan_p:                 (_atan,),                                         # 5
    P.atan2_p:                (_atan2_y, _atan2_x),                             # 5, 600 own
    P.sqrt_p:                 (_sqrt,),                                         # 2
    P.rsqrt_p:                (_rsqrt,),                                        # 3
    P.cbrt_p:                 (_cbrt,),                                         # 5
    P.square_p:               (lambda a, b, **_: a + b,),                       # 1
    P.integer_pow_p:          (_integer_pow,),                                  # 5 up to y = 12
    P.pow_p:                  (_pow_x, _pow_y),                                 # 5, 200 own
    P.mul_p:                  (_held, _held),                                   # 0
    P.div_p:                  (lambda a, b, v, **_: 1 / v, _div_v),             # 1, 3
    P.neg_p:                  (_minus_one,),                                    # 0
    P.add_p:                  (_one, _one),                                     # 0
    P.add_jaxvals_p:          (_one, _one),                                     # 0
    P.sub_p:                  (_one, _minus_one),                               # 0
    P.copy_p:                 (_one,),                                          # 0
    P.convert_element_type_p: (_one,),                                          # 0 float to float
    P.reduce_precision_p:     (_one,),                                          # 0 rounding aside
    P.abs_p:                  (_abs,),                                          # 2
    P.max_p:                  (_max, _max),                                     # 2
    P.min_p:                  (_min, _min),                                     # 2
    P.clamp_p:                (_clamp_low, _clamp_x, _clamp_high),              # 2
    P.rem_p:                  (_rem_x, _rem_c),                                 # 2
    P.erf_p:                  (_erf,),                                          # 8, 400 own
    P.erfc_p:                 (lambda a, b, **_: -_erf(a, b),),                 # 8, 400 own
    P.erf_inv_p:              (_erf_inv,),                                      # 100 own, |x| < 0.9995
    P.lgamma_p:               (_lgamma,),                                       # 64 own slope
    P.digamma_p:              (_digamma,),                                      # 32 own slope, x <= 1e9
    P.bessel_i0e_p:           (_bessel_i0e,),                                   # 6 value
    P.bessel_i1e_p:           (_bessel_i1e,),                                   # 6 value
    P.igamma_p:               (_smooth(lax.igamma, _quarter),                   # 400 own value
                               _smooth(_swap(lax.igamma), _igamma_reach)),      # 400 own value
    P.igammac_p:              (_smooth(lax.igammac, _quarter),                  # 400 own value
                               _smooth(_swap(lax.igammac), _igamma_reach)),     # 400 own value
    P.polygamma_p:            (None, _polygamma),                              # 16 own slope
    P.regularized_incomplete_beta_p: (None, None, _betainc),                    # 400 own value
}
_NEWER = {  # not in every supported JAX
    "log2_p":                 (_log2,),                                         # 3
    "one_minus_square_p":     (lambda a, b, **_: -(a + b),),                    # 1
    "polynomial_p":           _OfAnyNumber(_polynomial, _monomial),                # 4 slope
}
# fmt: on
DIFFERENCES |= {getattr(P, n): d for n, d in _NEWER.items() if hasattr(P, n)}

# Discrete: values are exact, so the slope is their quotient, and 0 at equal points.
STEPS: frozenset[Primitive] = frozenset(
    {P.sign_p, P.floor_p, P.ceil_p, P.round_p, P.is_finite_p, P.nextafter_p}
    | {P.eq_p, P.ne_p, P.lt_p, P.le_p, P.gt_p, P.ge_p, P.eq_to_p, P.le_to_p, P.lt_to_p}
    | {P.and_p, P.or_p, P.xor_p, P.not_p, P.population_count_p, P.clz_p}
    | {P.shift_left_p, P.shift_right_arithmetic_p, P.shift_right_logical_p}
    | {P.bitcast_convert_type_p}
)
