"""Differentiable functions of JAX, each of one float array, and where they live.

`FUNCTIONS` maps a name to `(function, domain)`. A domain draws inputs: `place` takes
standard normal numbers of `shape` to inputs at which the function is smooth enough to
be differentiated. Its `kind` states what may be asked of the function:

* `""`: contributions add up exactly;
* `"path"`: by quadrature along the straight path, so within bounds, between points
  that are no further apart than the larger of them;
* `"index"`: an integer index depends on the input, and its jump shows in the gap;
* `"stopped"`: has a `stop_gradient`, so that the reference output is a frozen one;
* `"alone"`: JAX has no reverse derivative of it to compare with;
* `"single"`, `"half"`: has a cast to float32, to a dtype of 16 bits, whose rounding
  bounds the gap.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
from jax import lax, nn
from jax.ad_checkpoint import checkpoint_name
from jax.flatten_util import ravel_pytree

special, stats, signal = jsp.special, jsp.stats, jsp.signal
linalg, fft = jnp.linalg, jnp.fft


class Domain(NamedTuple):
    shape: tuple[int, ...]
    place: Callable = lambda u: u
    kind: str = ""


def _random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def _unit(u):
    return 1 / (1 + np.exp(-u))


def _simplex(u):
    e = np.exp(u)
    return e / e.sum()


def reals(*shape, kind=""):
    return Domain(shape or (5,), kind=kind)


def wide(*shape, kind=""):
    return Domain(shape or (5,), lambda u: 5 * u, kind)


def positive(*shape, kind=""):
    return Domain(shape or (5,), np.exp, kind)


def above(low, *shape, kind=""):
    return Domain(shape or (5,), lambda u: low + np.exp(u), kind)


def between(low, high, *shape, kind=""):
    return Domain(shape or (5,), lambda u: low + (high - low) * _unit(u), kind)


def near_diagonal(n=3, kind=""):
    """Matrices with a dominant diagonal and well separated eigenvalues."""
    return Domain((n, n), lambda u: np.diag(2.0 * np.arange(1, n + 1)) + 0.2 * u, kind)


def distinct(*shape, kind=""):
    """Numbers whose order is the same at all points, well apart."""
    size = int(np.prod(shape))
    order = np.random.default_rng(7).permutation(size).reshape(shape)
    return Domain(shape, lambda u: 2.0 * order + 0.5 * np.tanh(u), kind)


PROBABILITIES = Domain((4,), _simplex)
W = _random(5, 4)
V = _random(5, seed=1)
POSITIVE = np.exp(_random(5, seed=2))
SQUARE = _random(3, 3, seed=3) + 3 * np.eye(3)
IMAGE = _random(1, 1, 3, 3, seed=4)

FUNCTIONS: dict[str, tuple[Callable, Domain]] = {}


def _over(domain: Domain, **functions: Callable) -> None:
    for name, function in functions.items():
        assert name not in FUNCTIONS, name
        FUNCTIONS[name] = function, domain


# ---------------------------------------------------------------------- jax.nn

_over(
    wide(6),
    nn_relu=nn.relu,
    nn_relu6=nn.relu6,
    nn_sigmoid=nn.sigmoid,
    nn_softplus=nn.softplus,
    nn_sparse_plus=nn.sparse_plus,
    nn_sparse_sigmoid=nn.sparse_sigmoid,
    nn_soft_sign=nn.soft_sign,
    nn_silu=nn.silu,
    nn_log_sigmoid=nn.log_sigmoid,
    nn_leaky_relu=nn.leaky_relu,
    nn_leaky_relu_slopes=lambda x: nn.leaky_relu(x, np.linspace(0.1, 0.6, 6)),
    nn_leaky_relu_own_slope=lambda x: nn.leaky_relu(x, x[::-1]),
    nn_hard_sigmoid=nn.hard_sigmoid,
    nn_hard_silu=nn.hard_silu,
    nn_hard_tanh=nn.hard_tanh,
    nn_elu=nn.elu,
    nn_elu_own_alpha=lambda x: nn.elu(x, x[::-1]),
    nn_celu=nn.celu,
    nn_selu=nn.selu,
    nn_gelu_tanh=nn.gelu,
    nn_gelu_erf=lambda x: nn.gelu(x, approximate=False),
    nn_glu=nn.glu,
    nn_squareplus=nn.squareplus,
    nn_mish=nn.mish,
    nn_identity=nn.identity,
    nn_standardize=nn.standardize,
    nn_softmax=nn.softmax,
    nn_log_softmax=nn.log_softmax,
    nn_logsumexp=nn.logsumexp,
    nn_logmeanexp=nn.logmeanexp,
    nn_swiglu=lambda x: nn.silu(x[:3]) * x[3:],
    nn_softmax_where=lambda x: nn.softmax(x, where=np.array([1, 1, 0, 1, 1, 0]) > 0),
    nn_softmax_by_hand=lambda x: jnp.exp(x - x.max()) / jnp.exp(x - x.max()).sum(),
    nn_softmax_naive=lambda x: jnp.exp(x) / jnp.exp(x).sum(),
    nn_cross_entropy=lambda x: -(nn.log_softmax(x) * nn.one_hot(2, 6)).sum(),
    nn_relu_of_tanh=lambda x: nn.relu(jnp.tanh(x)),
    nn_prelu=lambda x: jnp.where(x > 0, x, 0.25 * x),
    nn_elu_by_hand=lambda x: jnp.where(x > 0, x, jnp.expm1(jnp.minimum(x, 0))),
    nn_threshold=lambda x: jnp.where(x > 1.5, x, 0.3),
)
_over(positive(), nn_log1mexp=nn.log1mexp)


def _by_sums(e):
    return e / jnp.broadcast_to(e.sum(1), e.shape)


def _by_sums_reshaped(e):
    return e / jnp.broadcast_to(e.sum(2).reshape(3), (3, 3)).reshape(e.shape)


def _less_logs(s):
    return s - jnp.log(jnp.exp(s).sum(1))


def _whole_by_sums(e):
    return e.astype(int) / e.sum(1, keepdims=True)


_over(
    wide(3, 4),
    nn_softmax_axis=lambda x: nn.softmax(x, axis=0),
    nn_softmax_axes=lambda x: nn.softmax(x, axis=(0, 1)),
    nn_log_softmax_axis=lambda x: nn.log_softmax(x, axis=0),
    nn_logsumexp_axis=lambda x: nn.logsumexp(x, axis=1, keepdims=True),
    nn_logsumexp_weights=lambda x: nn.logsumexp(x, axis=1, b=np.arange(1.0, 5)),
    nn_logsumexp_where=lambda x: nn.logsumexp(x, axis=1, where=np.arange(4) < 3),
    nn_layer_norm=lambda x: (
        (x - x.mean(1, keepdims=True)) * lax.rsqrt(x.var(1, keepdims=True) + 1e-5)
    ),
    nn_rms_norm=lambda x: x * lax.rsqrt((x * x).mean(1, keepdims=True) + 1e-6),
    nn_l2_normalize=lambda x: x / jnp.maximum(linalg.norm(x, axis=1)[:, None], 1e-6),
    nn_attention_by_hand=lambda x: nn.softmax(x @ x.T / 2.0) @ x,
    nn_rows_by_sums_of_columns=lambda x: _by_sums(jnp.exp(x[:, :3])),
    nn_rows_by_sums_reshaped=lambda x: _by_sums_reshaped(jnp.exp(x[None, :, :3])),
    nn_rows_less_logs_of_columns=lambda x: _less_logs(x[:, :3]),
    nn_log_of_a_broadcast_sum=lambda x: jnp.log(
        jnp.broadcast_to(jnp.exp(x).sum(1, keepdims=True), x.shape)
    ),
    nn_whole_exponentials=lambda x: _whole_by_sums(jnp.exp(x)),
    nn_gumbel=lambda x: nn.softmax(x + _random(3, 4), axis=-1),
)
_over(
    reals(1, 3, 2, 4, kind="single"),  # its softmax is in float32
    nn_attention=lambda x: nn.dot_product_attention(x, x * 0.5, jnp.tanh(x)),
    nn_attention_causal=lambda x: nn.dot_product_attention(x, x, x, is_causal=True),
    nn_attention_bias=lambda x: nn.dot_product_attention(
        x, x, x, bias=_random(1, 2, 3, 3)
    ),
    nn_attention_mask=lambda x: nn.dot_product_attention(
        x, x, x, mask=np.tri(3, dtype=bool)[None, None]
    ),
    nn_attention_query=lambda x: nn.dot_product_attention(
        x, _random(1, 3, 2, 4), _random(1, 3, 2, 4, seed=1)
    ),
)

# ------------------------------------------------------- jax.numpy, elementwise

_over(
    reals(),
    abs=jnp.abs,
    fabs=jnp.fabs,
    negative=jnp.negative,
    exp=jnp.exp,
    exp2=jnp.exp2,
    expm1=jnp.expm1,
    cbrt=jnp.cbrt,
    square=jnp.square,
    reciprocal=jnp.reciprocal,
    sin=jnp.sin,
    cos=jnp.cos,
    arctan=jnp.arctan,
    sinh=jnp.sinh,
    cosh=jnp.cosh,
    tanh=jnp.tanh,
    arcsinh=jnp.arcsinh,
    deg2rad=jnp.deg2rad,
    sinc=jnp.sinc,
    i0=jnp.i0,
    cube=lambda x: x**3,
    inverse_cube=lambda x: x**-3,
    signed_power=lambda x: jnp.sign(x) * jnp.abs(x) ** 1.5,
    two_to_the_x=lambda x: 2.0**x,
    clip=lambda x: jnp.clip(x, -0.5, 0.7),
    clip_varying=lambda x: jnp.clip(x, x[::-1] - 1, x[::-1] + 0.5),
    nan_to_num=jnp.nan_to_num,
    positive=jnp.positive,
    add=lambda x: x + x[::-1],
    subtract=lambda x: x - 2 * x[::-1],
    multiply=lambda x: x * x[::-1],
    multiply_three=lambda x: x * x[::-1] * jnp.roll(x, 1),
    multiply_fixed=lambda x: x * V,
    divide=lambda x: x / x[::-1],
    divide_fixed=lambda x: V / x,
    maximum=lambda x: jnp.maximum(x, x[::-1]),
    maximum_fixed=lambda x: jnp.maximum(x, V),
    minimum=lambda x: jnp.minimum(x, x[::-1]),
    fmax=lambda x: jnp.fmax(x, x[::-1]),
    fmin=lambda x: jnp.fmin(x, x[::-1]),
    arctan2=lambda x: jnp.arctan2(x, x[::-1] + 0.1),
    arctan2_y=lambda x: jnp.arctan2(x, V),
    arctan2_x=lambda x: jnp.arctan2(V, x),
    hypot=lambda x: jnp.hypot(x, x[::-1]),
    logaddexp=lambda x: jnp.logaddexp(x, x[::-1]),
    logaddexp2=lambda x: jnp.logaddexp2(x, x[::-1]),
    copysign=lambda x: jnp.copysign(x, x[::-1]),
    ldexp=lambda x: jnp.ldexp(x, np.array([1, -2, 3, 0, 2])),
    where_sign=lambda x: jnp.where(x > 0, jnp.sin(x), x**2),
    where_varying=lambda x: jnp.where(x > x[::-1], jnp.exp(x), x[::-1] ** 2),
    where_three=lambda x: jnp.where(x > jnp.roll(x, 1), x[::-1], jnp.roll(x, 2) ** 2),
    where_fixed=lambda x: jnp.where(V > 0, x, x[::-1]),
    where_sum=lambda x: jnp.where(x.sum() > 0, x, -2 * x),
    gated_by_comparison=lambda x: (x > x[::-1]) * x,
    logical_gate=lambda x: ((x > 0) & (x[::-1] > 0)) * jnp.exp(x),
    indicator_mean=lambda x: x * (x > 0).astype(x.dtype).mean(),
    huber=lambda x: jnp.where(jnp.abs(x) < 1, 0.5 * x * x, jnp.abs(x) - 0.5),
    softshrink=lambda x: jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.5, 0),
    polynomial=lambda x: jnp.polyval(np.array([1.0, -2, 0.5, 3]), x),
    polynomial_coefficients=lambda x: jnp.polyval(x, 0.7),
    affine_of_exp=lambda x: 3 * jnp.exp(-(x**2)) - 1,
    swish_like=lambda x: x * jnp.tanh(jnp.log1p(jnp.exp(x))),
)
_over(
    wide(),
    sign=lambda x: jnp.sign(x) + x,
    floor=lambda x: jnp.floor(x),
    ceil=lambda x: jnp.ceil(x) * x,
    round=lambda x: jnp.round(x),
    round_decimals=lambda x: jnp.round(x, 1),
    rint=jnp.rint,
    trunc=jnp.trunc,
    heaviside=lambda x: jnp.heaviside(x, 0.5),
    floor_divide=lambda x: x // 1.7,
    mod=lambda x: jnp.mod(x, 1.3),
    mod_varying=lambda x: jnp.mod(x, x[::-1]),
    remainder=lambda x: jnp.remainder(x, -2.1),
    fmod=lambda x: jnp.fmod(x, 1.3),
    fmod_varying=lambda x: jnp.fmod(x, x[::-1]),
    modf=lambda x: jnp.modf(x)[0],
    modf_whole=lambda x: jnp.modf(x)[1],
    frexp=lambda x: jnp.frexp(x)[0],
    divmod=lambda x: sum(jnp.divmod(x, 2.0)),
    unwrap=jnp.unwrap,
    cast_to_integer=lambda x: x.astype(int) * x,
    cast_to_boolean=lambda x: x * (x > 1).astype(x.dtype),
    comparison_count=lambda x: x * (x[:, None] > x).sum(0),
    straight_through=lambda x: jnp.round(x) * 0.5 + x,
    is_finite=lambda x: jnp.where(jnp.isfinite(x), x, 0.0),
    isclose=lambda x: jnp.where(jnp.isclose(x, x[::-1]), x, 2 * x),
)
_over(
    positive(),
    log=jnp.log,
    log2=jnp.log2,
    log10=jnp.log10,
    log1p=jnp.log1p,
    sqrt=jnp.sqrt,
    rsqrt=lax.rsqrt,
    power_half=lambda x: x**0.5,
    power_float=lambda x: x**2.7,
    power_negative=lambda x: x**-1.3,
    power_varying=lambda x: x ** x[::-1],
    power_of_fixed=lambda x: POSITIVE**x,
    float_power=lambda x: jnp.float_power(x, 1.5).astype(x.dtype),
    x_log_x=lambda x: x * jnp.log(x),
    geometric_mean=lambda x: jnp.exp(jnp.log(x).mean()),
)
_over(
    between(-1, 1),
    arcsin=jnp.arcsin,
    arccos=jnp.arccos,
    arctanh=jnp.arctanh,
    tan=jnp.tan,
    erf_inverse=special.erfinv,
    sqrt_one_minus_square=lambda x: jnp.sqrt(1 - x**2),
)
_over(above(1), arccosh=jnp.arccosh)
_over(reals(), nextafter=lambda x: x * 0 + jnp.nextafter(lax.stop_gradient(x), 9.0))
FUNCTIONS["nextafter"] = FUNCTIONS["nextafter"][0], reals(kind="stopped")

# ---------------------------------------------------- jax.numpy, sums and others

_over(
    reals(3, 4),
    sum=jnp.sum,
    sum_axis=lambda x: x.sum(1),
    sum_where=lambda x: x.sum(where=np.arange(4) > 1),
    mean=jnp.mean,
    var=jnp.var,
    var_axis=lambda x: x.var(0, ddof=1),
    std=jnp.std,
    average=lambda x: jnp.average(x, axis=1, weights=np.arange(1.0, 5)),
    average_varying=lambda x: jnp.average(x, axis=1, weights=jnp.exp(x)),
    max=jnp.max,
    max_axis=lambda x: x.max(1),
    max_initial=lambda x: x.max(1, initial=0.3, where=np.arange(4) > 0),
    min=jnp.min,
    min_axis=lambda x: x.min(0),
    ptp=jnp.ptp,
    nanmean=jnp.nanmean,
    nansum=jnp.nansum,
    nanmax=lambda x: jnp.nanmax(x, axis=0),
    nanstd=jnp.nanstd,
    cumsum=lambda x: jnp.cumsum(x, 1),
    cumsum_reverse=lambda x: lax.cumsum(x, 0, reverse=True),
    cumlogsumexp=lambda x: lax.cumlogsumexp(x, 1),
    cummax=lambda x: lax.cummax(x, 1),
    cummin=lambda x: lax.cummin(x, 0, reverse=True),
    diff=lambda x: jnp.diff(x, axis=1),
    gradient=lambda x: jnp.gradient(x, axis=1),
    ediff1d=jnp.ediff1d,
    trapezoid=lambda x: jnp.trapezoid(x**2, x),
    cov=jnp.cov,
    corrcoef=jnp.corrcoef,
    cross=lambda x: jnp.cross(x[:, :3], x[:, 1:]),
    kron=lambda x: jnp.kron(x[:2, :2], x[1:, 2:]),
    outer=lambda x: jnp.outer(x[0], x[1]),
    inner=lambda x: jnp.inner(x, x[::-1]),
    tensordot=lambda x: jnp.tensordot(x, x[:, ::-1], axes=2),
    vdot=lambda x: jnp.vdot(x, jnp.sin(x)),
    matmul_fixed=lambda x: x @ W[:4],
    matmul_left=lambda x: W[:, :3] @ x,
    matmul_self=lambda x: x @ x.T,
    matmul_batched=lambda x: jnp.matmul(x[:, :, None], x[:, None, :]),
    einsum=lambda x: jnp.einsum("ij,kj,il->kl", x, x, x),
    einsum_trace=lambda x: jnp.einsum("ii->", x[:, :3]),
    vander=lambda x: jnp.vander(x[0], 3),
    pad=lambda x: jnp.pad(x, 1),
    pad_reflect=lambda x: jnp.pad(x, 2, mode="reflect"),
    pad_edge=lambda x: jnp.pad(x, 1, mode="edge"),
    pad_mean=lambda x: jnp.pad(x, 1, mode="mean"),
    pad_maximum=lambda x: jnp.pad(x, 1, mode="maximum"),
    roll=lambda x: jnp.roll(x, 2, 1),
    roll_axes=lambda x: jnp.roll(x, (1, 2), (0, 1)),
    flip=jnp.flip,
    rot90=jnp.rot90,
    tile=lambda x: jnp.tile(x, (2, 1)),
    repeat=lambda x: jnp.repeat(x, 2, axis=1),
    concatenate=lambda x: jnp.concatenate([x, jnp.sin(x)], 1),
    concatenate_fixed=lambda x: jnp.concatenate([x, np.ones((3, 2))], 1),
    stack=lambda x: jnp.stack([x, x**2], 1),
    split=lambda x: jnp.split(x, 2, axis=1)[1],
    array_split=lambda x: jnp.array_split(x, 3, axis=1)[0],
    unstack=lambda x: jnp.unstack(x, axis=1)[2],
    reshape=lambda x: x.reshape(2, 6) ** 2,
    transpose=lambda x: x.T,
    moveaxis=lambda x: jnp.moveaxis(x, 0, 1),
    squeeze=lambda x: x[:1].squeeze(),
    triu=jnp.triu,
    tril=lambda x: jnp.tril(x, -1),
    diag=jnp.diag,
    diagflat=lambda x: jnp.diagflat(x[0]),
    trace=jnp.trace,
    block=lambda x: jnp.block([[x, x], [x**2, x]]),
    index_static=lambda x: x[1, 2:],
    index_strided=lambda x: x[::2, ::-1],
    index_array=lambda x: x[np.array([2, 0, 2])],
    index_boolean=lambda x: x[np.array([True, False, True])],
    index_two=lambda x: x[np.array([0, 2]), np.array([3, 1])],
    take=lambda x: jnp.take(x, np.array([1, 3]), axis=1),
    take_fill=lambda x: jnp.take(x, np.array([1, 9]), axis=1, fill_value=0.5),
    take_clip=lambda x: jnp.take(x, np.array([1, 9]), axis=1, mode="clip"),
    take_wrap=lambda x: jnp.take(x, np.array([1, 9]), axis=1, mode="wrap"),
    take_along_axis=lambda x: jnp.take_along_axis(x, np.array([[1], [0], [3]]), 1),
    apply_along_axis=lambda x: jnp.apply_along_axis(lambda r: r @ r, 1, x),
    apply_over_axes=lambda x: jnp.apply_over_axes(jnp.sum, x, [0]),
    vectorize=lambda x: jnp.vectorize(lambda r: r.sum() * r, signature="(n)->(n)")(x),
    convolve=lambda x: jnp.convolve(x[0], V),
    convolve_self=lambda x: jnp.convolve(x[0], x[1], mode="same"),
    correlate=lambda x: jnp.correlate(x[0], x[1, :2]),
    at_set=lambda x: x.at[1].set(x[0] ** 2),
    at_add=lambda x: x.at[np.array([0, 0, 2])].add(jnp.sin(x)),
    at_subtract=lambda x: x.at[0].subtract(x[1]),
    at_multiply=lambda x: x.at[0].multiply(x[1]),
    at_multiply_unique=lambda x: x.at[0].multiply(2.0, unique_indices=True),
    at_divide=lambda x: x.at[0].divide(2.0),
    at_power=lambda x: x.at[0].power(2),
    at_max=lambda x: x.at[np.array([0, 1])].max(x[2]),
    at_min=lambda x: x.at[0].min(x[1]),
    at_max_repeated=lambda x: x.at[np.array([0, 0])].max(x[1:]),
    at_get_fill=lambda x: x.at[np.array([0, 9])].get(mode="fill", fill_value=1.0),
    at_get_clip=lambda x: x.at[np.array([0, 9])].get(mode="clip"),
    at_get_promise=lambda x: x.at[np.array([0, 2])].get(mode="promise_in_bounds"),
    at_set_drop=lambda x: x.at[np.array([0, 9])].set(x[1:], mode="drop"),
    at_set_clip=lambda x: x.at[np.array([0, 9])].set(x[1:], mode="clip"),
    at_add_drop=lambda x: x.at[np.array([1, 9])].add(x[1:], mode="drop"),
    at_add_clip=lambda x: x.at[np.array([1, 9])].add(x[1:], mode="clip"),
    at_max_clip=lambda x: x.at[np.array([1, 2])].max(x[:2], mode="clip"),
    segment_sum=lambda x: jax.ops.segment_sum(x, np.array([0, 1, 0]), 2),
    segment_max=lambda x: jax.ops.segment_max(x, np.array([0, 1, 0]), 2),
    segment_min=lambda x: jax.ops.segment_min(x, np.array([0, 1, 0]), 2),
    sort=lambda x: jnp.sort(x, axis=1),
    sort_descending=lambda x: jnp.sort(x, axis=0, descending=True),
    approx_max_k=lambda x: lax.approx_max_k(x, 2)[0],
    partition=lambda x: jnp.partition(x, 2, axis=1),
    top_k=lambda x: lax.top_k(x, 2)[0],
    median=lambda x: jnp.median(x, axis=1),
    median_all=jnp.median,
    quantile=lambda x: jnp.quantile(x, np.array([0.2, 0.6]), axis=1),
    quantile_midpoint=lambda x: jnp.quantile(x, 0.4, method="midpoint"),
    percentile=lambda x: jnp.percentile(x, 30.0),
    nanmedian=jnp.nanmedian,
    histogram_weights=lambda x: jnp.histogram(
        np.linspace(0, 1, 12), bins=3, weights=x.ravel()
    )[0],
    bincount_weights=lambda x: jnp.bincount(
        np.array([0, 1, 1, 2]), weights=x[0], length=3
    ),
    interp_values=lambda x: jnp.interp(np.array([0.3, 1.7]), np.arange(4.0), x[0]),
    ravel_pytree=lambda x: ravel_pytree({"a": x, "b": x[0]})[0],
    log_sum_of_squares=lambda x: jnp.log((x**2).sum(1) + 1),
    variance_ratio=lambda x: x.var() / (1 + x.mean() ** 2),
)
_over(
    reals(3, 4, kind="path"),
    prod=jnp.prod,
    prod_axis=lambda x: jnp.prod(x, axis=1),
    nanprod=jnp.nanprod,
    cumprod=lambda x: jnp.cumprod(x, axis=1),
    cumprod_reverse=lambda x: lax.cumprod(x, 0, reverse=True),
    nancumprod=jnp.nancumprod,
)
_over(
    reals(6, kind="index"),
    interp=lambda x: jnp.interp(x, np.arange(-3.0, 4), _random(7)),
    select=lambda x: jnp.select([x > 1, x > 0], [x**2, x], -x),
    piecewise=lambda x: jnp.piecewise(x, [x < 0, x >= 1], [jnp.sin, jnp.square, 0.5]),
    argmax_gather=lambda x: x[jnp.argmax(x)] * 2,
    argmax_one_hot=lambda x: x[::-1] * nn.one_hot(jnp.argmax(x), 6),
    argsort_gather=lambda x: x[::-1][jnp.argsort(x)],
    top_k_gather=lambda x: (x**2)[lax.top_k(x, 2)[1]],
    sort_by_key=lambda x: lax.sort((x, x[::-1] ** 2), num_keys=1)[1],
    lexsort_gather=lambda x: x[jnp.lexsort((x, np.array([0, 0, 1, 1, 2, 2])))],
    floor_index=lambda x: (
        jnp.asarray(_random(9), x.dtype)[jnp.floor(jnp.clip(x, -3, 3)).astype(int) + 4]
        * x
    ),
    floor_index_own=lambda x: x[jnp.clip(jnp.floor(x).astype(int) + 2, 0, 5)],
    dynamic_slice_index=lambda x: lax.dynamic_slice(x, (jnp.argmax(x),), (2,)),
    dynamic_update_index=lambda x: lax.dynamic_update_slice(
        x, x[:2] ** 2, (jnp.argmax(x),)
    ),
    scatter_index=lambda x: x.at[jnp.argmax(x)].set(x[0]),
    scatter_add_index=lambda x: x.at[jnp.argmin(x)].add(x[0]),
    searchsorted_gather=lambda x: (
        jnp.asarray(_random(8), x.dtype)[jnp.searchsorted(np.arange(-3.0, 4), x)] * x
    ),
    digitize_gather=lambda x: (
        jnp.asarray(_random(8), x.dtype)[jnp.digitize(x, np.arange(-3.0, 4))] * x
    ),
    switch_index=lambda x: lax.switch(
        jnp.clip(jnp.floor(x[0]).astype(int) + 1, 0, 2),
        [jnp.sin, jnp.square, lambda y: -y],
        x,
    ),
    map_coordinates_points=lambda x: jsp.ndimage.map_coordinates(
        _random(8), [x + 3], order=1, mode="nearest"
    ),
    choose=lambda x: jnp.choose((x > 0).astype(int), [x, x**2], mode="clip"),
    approx_max_position=lambda x: jnp.take_along_axis(
        x, jnp.argmin(x, keepdims=True), 0
    ),
    rank=lambda x: stats.rankdata(x) * x,
    quantile_varying=lambda x: jnp.quantile(V, nn.sigmoid(x)),
)

# ------------------------------------------------------------ jax.scipy.special

_over(
    reals(),
    special_erf=special.erf,
    special_erfc=special.erfc,
    special_expit=special.expit,
    special_ndtr=special.ndtr,
    special_log_ndtr=special.log_ndtr,
    special_i0=special.i0,
    special_i0e=special.i0e,
    special_i1=special.i1,
    special_i1e=special.i1e,
    special_logsumexp=special.logsumexp,
    special_logsumexp_sign=lambda x: special.logsumexp(
        x, b=np.array([1, -0.1, 1, 1, 1]), return_sign=True
    )[0],
    special_softmax=special.softmax,
    special_log_softmax=special.log_softmax,
    special_sici=lambda x: special.sici(x)[0],
)
_over(
    above(0.5),
    special_gammaln=special.gammaln,
    special_digamma=special.digamma,
    special_gamma=special.gamma,
    special_factorial=special.factorial,
    special_beta=lambda x: special.beta(x, 1.5),
    special_betaln=lambda x: special.betaln(x, POSITIVE),
    special_betaln_varying=lambda x: special.betaln(x, x[::-1]),
    special_gammainc_x=lambda x: special.gammainc(1.7, x),
    special_gammaincc_x=lambda x: special.gammaincc(1.7, x),
    special_polygamma=lambda x: special.polygamma(1, x),
    special_multigammaln=lambda x: special.multigammaln(x + 1, 2),
    special_entr=special.entr,
    special_xlogy=lambda x: special.xlogy(x, x[::-1]),
    special_xlogy_fixed=lambda x: special.xlogy(V, x),
    special_xlog1py=lambda x: special.xlog1py(x, x[::-1]),
    special_kl_div=lambda x: special.kl_div(x, x[::-1]),
    special_rel_entr=lambda x: special.rel_entr(x, POSITIVE),
    special_poch=lambda x: special.poch(x, 2.0),
    special_cici=lambda x: special.sici(x)[1],
)
_over(
    between(0, 1),
    special_logit=special.logit,
    special_spence=special.spence,  # jax.grad is nan between 1 and 2
    special_ndtri=special.ndtri,
    special_betainc_x=lambda x: special.betainc(1.2, 2.3, x),
    special_log_of_odds=lambda x: jnp.log(x / (1 - x)),
)
_over(
    Domain((5,), lambda u: 1.5 + 2 * _unit(u), "path"),
    special_zeta=lambda x: special.zeta(x, 1.5),
    special_zeta_q=lambda x: special.zeta(2.5, x),
    special_gammainc_a=lambda x: special.gammainc(x, 1.3),
    special_gammaincc_both=lambda x: special.gammaincc(x, x[::-1]),
    special_polygamma_two=lambda x: special.polygamma(2, x),
)

# -------------------------------------------------------------- jax.scipy.stats

_over(
    reals(),
    stats_norm_pdf=stats.norm.pdf,
    stats_norm_logpdf=lambda x: stats.norm.logpdf(x, V, POSITIVE),
    stats_norm_logpdf_scale=lambda x: stats.norm.logpdf(V, x[::-1], jnp.exp(x)),
    stats_norm_cdf=stats.norm.cdf,
    stats_norm_logcdf=stats.norm.logcdf,
    stats_norm_sf=stats.norm.sf,
    stats_norm_logsf=stats.norm.logsf,
    stats_t_logpdf=lambda x: stats.t.logpdf(x, 3.0),
    stats_cauchy_logpdf=stats.cauchy.logpdf,
    stats_cauchy_cdf=stats.cauchy.cdf,
    stats_cauchy_logcdf=stats.cauchy.logcdf,
    stats_laplace_logpdf=stats.laplace.logpdf,
    stats_laplace_cdf=stats.laplace.cdf,
    stats_logistic_logpdf=stats.logistic.logpdf,
    stats_logistic_sf=stats.logistic.sf,
    stats_gumbel_logpdf=lambda x: stats.gumbel_r.logpdf(x),
    stats_gumbel_cdf=lambda x: stats.gumbel_l.cdf(x),
    stats_gennorm_logpdf=lambda x: stats.gennorm.logpdf(x, 1.5),
    stats_vonmises_logpdf=lambda x: stats.vonmises.logpdf(x, 2.0),
    stats_truncnorm_logpdf=lambda x: stats.truncnorm.logpdf(jnp.tanh(x), -1, 1),
    stats_truncnorm_cdf=lambda x: stats.truncnorm.cdf(jnp.tanh(x), -1, 1),
    stats_multivariate_normal=lambda x: stats.multivariate_normal.logpdf(
        x[:3], np.zeros(3), SQUARE @ SQUARE.T
    ),
    stats_gaussian_kde=lambda x: stats.gaussian_kde(_random(1, 8)).pdf(x[None]),
    stats_gaussian_kde_data=lambda x: stats.gaussian_kde(x[None]).logpdf(V[None]),
    stats_sem=stats.sem,
)
_over(
    positive(),
    stats_gamma_logpdf=lambda x: stats.gamma.logpdf(x, 2.0),
    stats_gamma_logpdf_a=lambda x: stats.gamma.logpdf(POSITIVE, x),
    stats_gamma_cdf=lambda x: stats.gamma.cdf(x, 2.0),
    stats_expon_logpdf=stats.expon.logpdf,
    stats_expon_cdf=stats.expon.cdf,
    stats_chi2_logpdf=lambda x: stats.chi2.logpdf(x, 3.0),
    stats_chi2_cdf=lambda x: stats.chi2.cdf(x, 3.0),
    stats_poisson_logpmf=lambda x: stats.poisson.logpmf(np.arange(5), x),
    stats_poisson_cdf=lambda x: stats.poisson.cdf(2, x),
    stats_pareto_logpdf=lambda x: stats.pareto.logpdf(x + 1.0, 2.0),
    stats_uniform_logpdf=lambda x: stats.uniform.logpdf(0.5, -x, 2 * x + 1),
)
_over(
    between(0, 1),
    stats_beta_logpdf=lambda x: stats.beta.logpdf(x, 1.5, 2.5),
    stats_beta_cdf=lambda x: stats.beta.cdf(x, 1.5, 2.5),
    stats_norm_ppf=stats.norm.ppf,
    stats_bernoulli_logpmf=lambda x: stats.bernoulli.logpmf(
        np.array([0, 1, 1, 0, 1]), x
    ),
    stats_binom_logpmf=lambda x: stats.binom.logpmf(np.arange(5), 6, x),
    stats_nbinom_logpmf=lambda x: stats.nbinom.logpmf(np.arange(5), 3, x),
    stats_geom_logpmf=lambda x: stats.geom.logpmf(np.arange(1, 6), x),
    stats_wrapcauchy_logpdf=lambda x: stats.wrapcauchy.logpdf(np.mod(V, 6), x),
    stats_logistic_ppf=stats.logistic.ppf,
)
_over(
    PROBABILITIES,
    stats_dirichlet_logpdf=lambda x: stats.dirichlet.logpdf(x, np.arange(1.0, 5)),
    stats_multinomial_logpmf=lambda x: stats.multinomial.logpmf(
        np.array([1, 2, 0, 1]), 4, x
    ),
    stats_entropy=lambda x: -(x * jnp.log(x)).sum(),
)

# ----------------------------------------------------------------------- linalg

_over(
    reals(3, 4),
    linalg_norm=linalg.norm,
    linalg_norm_axis=lambda x: linalg.norm(x, axis=1),
    linalg_norm_1=lambda x: linalg.norm(x, 1),
    linalg_norm_inf=lambda x: linalg.norm(x, jnp.inf),
    linalg_norm_3=lambda x: linalg.vector_norm(x, ord=3),
    linalg_vecdot=lambda x: linalg.vecdot(x, x[::-1]),
    linalg_matrix_power=lambda x: linalg.matrix_power(x[:, :3], 3),
    linalg_multi_dot=lambda x: linalg.multi_dot([x, x.T, x]),
    linalg_solve_right=lambda x: linalg.solve(SQUARE, x),
    linalg_solve_triangular_right=lambda x: jsp.linalg.solve_triangular(SQUARE, x),
    linalg_cho_solve_right=lambda x: jsp.linalg.cho_solve(
        (np.linalg.cholesky(SQUARE @ SQUARE.T), True), x
    ),
    linalg_lu_solve_right=lambda x: jsp.linalg.lu_solve(
        jsp.linalg.lu_factor(SQUARE), x
    ),
    linalg_block_diag=lambda x: jsp.linalg.block_diag(x, x.T),
    linalg_toeplitz=lambda x: jsp.linalg.toeplitz(x[0]) @ x[1],
    linalg_tridiagonal_right=lambda x: lax.linalg.tridiagonal_solve(
        np.array([0.0, 1, 1]), np.array([4.0, 4, 4]), np.array([1.0, 1, 0]), x
    ),
    linalg_cg_right=lambda x: jsp.sparse.linalg.cg(
        lambda v: jnp.asarray(SQUARE @ SQUARE.T, x.dtype) @ v, x[:, 0], tol=1e-15
    )[0],
    linalg_gram=lambda x: linalg.matrix_norm(x.T @ x),
)
_over(
    near_diagonal(kind="path"),
    linalg_det=linalg.det,
    linalg_slogdet=lambda x: linalg.slogdet(x)[1],
    linalg_inv=linalg.inv,
    linalg_solve=lambda x: linalg.solve(x, SQUARE),
    linalg_solve_both=lambda x: linalg.solve(x, jnp.sin(x)),
    linalg_solve_vector=lambda x: linalg.solve(x, x[0]),
    linalg_solve_spd=lambda x: jsp.linalg.solve(x @ x.T, x[0], assume_a="pos"),
    linalg_solve_triangular=lambda x: jsp.linalg.solve_triangular(x, x[0], lower=True),
    linalg_tridiagonal_solve=lambda x: lax.linalg.tridiagonal_solve(
        jnp.pad(jnp.diag(x, -1), (1, 0)),
        jnp.diag(x),
        jnp.pad(jnp.diag(x, 1), (0, 1)),
        x,
    ),
    linalg_cholesky=lambda x: linalg.cholesky(x + x.T),
    linalg_cho_solve=lambda x: jsp.linalg.cho_solve(
        jsp.linalg.cho_factor(x + x.T), x[:, 0]
    ),
    linalg_qr_q=lambda x: linalg.qr(x)[0],
    linalg_qr_r=lambda x: linalg.qr(x)[1],
    linalg_eigh=lambda x: linalg.eigh(x + x.T)[0],
    linalg_eigh_vectors=lambda x: linalg.eigh(x + x.T)[1] ** 2,
    linalg_eigvalsh=lambda x: linalg.eigvalsh(x),
    linalg_eigvals=lambda x: linalg.eigvals(x).real.sum(),
    linalg_svd=lambda x: linalg.svd(x, compute_uv=False),
    linalg_svd_vectors=lambda x: linalg.svd(x, full_matrices=False)[0] ** 2,
    linalg_pinv=linalg.pinv,
    linalg_lstsq=lambda x: linalg.lstsq(x, SQUARE)[0],
    linalg_norm_nuclear=lambda x: linalg.norm(x, "nuc"),
    linalg_norm_spectral=lambda x: linalg.norm(x, 2),
    linalg_cond=linalg.cond,
    linalg_lu=lambda x: jsp.linalg.lu(x)[2],
    linalg_lu_factor=lambda x: jsp.linalg.lu_factor(x)[0],
    linalg_lu_solve_left=lambda x: jsp.linalg.lu_solve(jsp.linalg.lu_factor(x), V[:3]),
    linalg_tensorsolve=lambda x: linalg.tensorsolve(x, x[0]),
    linalg_matrix_power_negative=lambda x: linalg.matrix_power(x, -2),
    linalg_expm=lambda x: jsp.linalg.expm(0.2 * x),
    linalg_logdet_spd=lambda x: (
        2 * jnp.log(jnp.diag(linalg.cholesky(x @ x.T + np.eye(3)))).sum()
    ),
    linalg_mahalanobis=lambda x: x[0] @ linalg.inv(x @ x.T) @ x[0],
    linalg_multivariate_normal_covariance=lambda x: stats.multivariate_normal.logpdf(
        V[:3], np.zeros(3), x @ x.T
    ),
    linalg_custom_solve=lambda x: lax.custom_linear_solve(
        lambda v: x @ v,
        x[0],
        lambda _, b: linalg.solve(x, b),
        lambda _, b: linalg.solve(x.T, b),
    ),
)

# -------------------------------------------- fft, complex numbers, signal, image

_over(
    reals(2, 8),
    fft_abs=lambda x: jnp.abs(fft.fft(x)),
    fft_real=lambda x: fft.fft(x).real,
    fft_imag=lambda x: fft.fft(x).imag,
    fft_power=lambda x: jnp.abs(fft.rfft(x)) ** 2,
    fft_log_power=lambda x: jnp.log(jnp.abs(fft.rfft(x)) ** 2 + 1e-3),
    fft_irfft=lambda x: fft.irfft(fft.rfft(x) * np.exp(1j * np.arange(5))),
    fft_ifft=lambda x: fft.ifft(x).real,
    fft_fft2=lambda x: jnp.abs(fft.fft2(x)),
    fft_fftn=lambda x: fft.fftn(x).imag,
    fft_rfft2=lambda x: fft.irfft2(fft.rfft2(x) ** 2),
    fft_hfft=lambda x: fft.hfft(x),
    fft_ihfft=lambda x: fft.ihfft(x).real,
    fft_shift=fft.fftshift,
    fft_convolution=lambda x: fft.irfft(fft.rfft(x[0]) * fft.rfft(x[1])),
    fft_autocorrelation=lambda x: fft.ifft(fft.fft(x) * jnp.conj(fft.fft(x))).real,
    dct=lambda x: jsp.fft.dct(x, norm="ortho"),
    idct=lambda x: jsp.fft.idct(x),
    dctn=lambda x: jsp.fft.dctn(x),
    complex_exp=lambda x: jnp.exp(1j * x).real,
    complex_product=lambda x: ((x[0] + 1j * x[1]) * (x[1] - 2j * x[0])).imag,
    complex_scaled=lambda x: (x * (1 + 2j)).imag ** 2,
    complex_abs=lambda x: jnp.abs(lax.complex(x[0], x[1])),
    complex_conjugate=lambda x: (jnp.conj(lax.complex(x[0], x[1])) ** 2).imag,
    complex_matmul=lambda x: jnp.abs((x + 1j) @ (x.T - 2j)),
    complex_where=lambda x: jnp.where(x > 0, x + 1j, 2j * x).imag,
    complex_real_if=lambda x: jnp.real(1j * x * (1 - 1j * x)),
    stft=lambda x: jnp.abs(
        fft.rfft(x[0][np.arange(3)[:, None] * 2 + np.arange(4)] * np.hanning(4))
    ),
    signal_stft=lambda x: jnp.abs(signal.stft(x[0], nperseg=4)[2]),
    signal_istft=lambda x: signal.istft(lax.complex(x[:, :3], x[:, 3:6]).T, nperseg=4)[
        1
    ],
    signal_welch=lambda x: signal.welch(x[0], nperseg=4)[1],
    signal_csd=lambda x: jnp.abs(signal.csd(x[0], x[1], nperseg=4)[1]),
    signal_convolve=lambda x: signal.convolve(x[0], V),
    signal_fftconvolve=lambda x: signal.fftconvolve(x[0], x[1], mode="same"),
    signal_convolve2d=lambda x: signal.convolve2d(x, SQUARE[:2]),
    signal_correlate=lambda x: signal.correlate(x[0], x[1]),
    signal_correlate2d=lambda x: signal.correlate2d(x, x[:, :2]),
    signal_detrend=signal.detrend,
)
_over(
    positive(2, 8, kind="path"),
    complex_division=lambda x: ((x[0] + 2j) / (x[1] + 1j * x[0])).real,
    complex_reciprocal=lambda x: (1 / lax.complex(x[0], x[1])).imag,
    complex_sqrt=lambda x: jnp.sqrt(lax.complex(x[0], x[1])).real,
    complex_log=lambda x: jnp.log(lax.complex(x[0], x[1])).imag,
    complex_power=lambda x: (lax.complex(x[0], x[1]) ** 1.5).real,
    complex_tanh=lambda x: jnp.tanh(lax.complex(x[0] / 8, x[1] / 8)).real,
    complex_sin=lambda x: jnp.sin(lax.complex(x[0], x[1] / 4)).imag,
    complex_exp_both=lambda x: jnp.exp(lax.complex(-x[0], x[1])).imag,
    complex_normalized=lambda x: (
        (lax.complex(x[0], x[1]) / jnp.abs(lax.complex(x[0], x[1]))).real
    ),
    complex_integer_power=lambda x: (lax.complex(x[0], x[1]) ** 3).imag,
    complex_angle=lambda x: jnp.angle(lax.complex(x[0], x[1])),
    complex_solve=lambda x: linalg.solve(np.eye(2) * 9.0 + 1j * x[:, :2], x[:, 2]).real,
)
_over(
    reals(1, 4, 4),
    image_resize=lambda x: jax.image.resize(x, (1, 7, 3), "bilinear"),
    image_resize_nearest=lambda x: jax.image.resize(x, (1, 2, 6), "nearest"),
    image_resize_cubic=lambda x: jax.image.resize(x, (1, 6, 6), "cubic"),
    image_resize_lanczos=lambda x: jax.image.resize(x, (1, 3, 6), "lanczos3"),
    image_scale_and_translate=lambda x: jax.image.scale_and_translate(
        x[0], (5, 5), (0, 1), np.array([1.2, 0.7]), np.array([0.1, 0.5]), "linear"
    ),
    image_translate_varying=lambda x: jax.image.scale_and_translate(
        x[0], (4, 4), (0, 1), np.ones(2), 0.1 * x[0, 0, :2], "linear"
    ),
    map_coordinates=lambda x: jsp.ndimage.map_coordinates(
        x[0], np.array([[0.3, 1.2], [2.5, 0.1]]), order=1
    ),
    interpolate_grid_values=lambda x: jsp.interpolate.RegularGridInterpolator(
        (np.arange(4.0), np.arange(4.0)), x[0]
    )(np.array([[0.3, 1.2], [2.5, 0.1]])),
)
_over(
    between(0.1, 2.9, 3, 2, kind="index"),
    interpolate_grid_points=lambda x: jsp.interpolate.RegularGridInterpolator(
        (np.arange(4.0), np.arange(4.0)), _random(4, 4)
    )(x),
    map_coordinates_varying=lambda x: jsp.ndimage.map_coordinates(
        _random(4, 4), x.T, order=1
    ),
)

# ---------------------------------------------------------------------- jax.lax


def _window(x, init, combine, size=2, stride=1, padding="VALID", **options):
    window = (1, 1, size, size)
    return lax.reduce_window(
        x, init, combine, window, (1, 1, stride, stride), padding, **options
    )


def _zero(x):
    return jnp.zeros((), x.dtype)


def _conv(x, w, strides=(1, 1), padding="SAME", **options):
    return lax.conv_general_dilated(
        x, jnp.asarray(w, x.dtype), strides, padding, **options
    )


def _max_pool(x):
    return _window(x, -jnp.inf, lax.max, 2, 2)


_over(
    reals(1, 2, 4, 4),
    window_add=lambda x: _window(x, 0.0, lax.add),
    window_mean=lambda x: _window(x, 0.0, lax.add, 2, 2) / 4,
    window_max=_max_pool,
    window_max_overlapping=lambda x: _window(x, -jnp.inf, lax.max, 3, 1, "SAME"),
    window_min=lambda x: _window(x, jnp.inf, lax.min, 2, 2, "SAME"),
    window_max_of_relu=lambda x: _max_pool(nn.relu(x)),
    window_max_by_reshape=lambda x: x.reshape(1, 2, 2, 2, 2, 2).max((3, 5)),
    window_max_gradient=lambda x: (
        jax.grad(lambda y: _max_pool(y).sum())(lax.stop_gradient(x)) * x
    ),
    conv=lambda x: _conv(x, _random(3, 2, 3, 3)),
    conv_strided=lambda x: _conv(x, _random(3, 2, 3, 3), (2, 2), "VALID"),
    conv_dilated=lambda x: _conv(x, _random(3, 2, 2, 2), rhs_dilation=(2, 2)),
    conv_transposed=lambda x: lax.conv_transpose(
        x,
        jnp.asarray(_random(3, 2, 2, 2), x.dtype),
        (2, 2),
        "SAME",
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    ),
    conv_grouped=lambda x: _conv(x, _random(4, 1, 3, 3), feature_group_count=2),
    conv_nhwc=lambda x: _conv(
        x, _random(3, 3, 4, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    conv_fixed_image=lambda x: _conv(
        jnp.asarray(_random(1, 4, 5, 5), x.dtype),
        x.transpose(1, 2, 0, 3)[..., :2].reshape(2, 4, 1, 2),
    ),
    conv_both=lambda x: _conv(x, x[:, :, :2, :2]),
    conv_both_grouped=lambda x: _conv(
        x, x.transpose(1, 0, 2, 3)[..., :2, :2], feature_group_count=2
    ),
    conv_patches=lambda x: lax.conv_general_dilated_patches(x, (2, 2), (1, 1), "SAME"),
    conv_local=lambda x: lax.conv_general_dilated_local(
        x, jnp.asarray(_random(3, 8, 3, 3), x.dtype), (1, 1), "VALID", (2, 2)
    ),
    conv_relu_pool=lambda x: _max_pool(nn.relu(_conv(x, _random(2, 2, 3, 3)) + 0.1)),
)
FUNCTIONS["window_max_gradient"] = (
    FUNCTIONS["window_max_gradient"][0],
    reals(1, 2, 4, 4, kind="stopped"),
)
_over(
    reals(1, 2, 4, 4, kind="path"),
    reduce_generic=lambda x: lax.reduce(
        x, _zero(x), lambda a, b: a + b + 0.1 * a * b, (1, 3)
    ),
)
_over(
    reals(1, 2, 4, 4, kind="index"),
    window_max_tangent=lambda x: jax.jvp(_max_pool, (x,), (x**2,))[1],
    window_max_gradient_varying=lambda x: jax.grad(lambda y: _max_pool(y).sum())(x) * x,
)
_over(
    reals(1, 2, 4, 4, kind="alone"),
    window_max_dilated=lambda x: _window(
        x, -jnp.inf, lax.max, 2, 1, window_dilation=(1, 1, 2, 2)
    ),
)
_over(
    reals(4, 3),
    lax_dot_general=lambda x: lax.dot_general(x, x, (((0,), (0,)), ((1,), (1,)))),
    lax_batch_matmul=lambda x: lax.batch_matmul(x[None], x.T[None]),
    lax_clamp=lambda x: lax.clamp(-0.5, x, 0.5),
    lax_clamp_varying=lambda x: lax.clamp(x[::-1] - 1, x, x[::-1] + 0.5),
    lax_rem=lambda x: lax.rem(5 * x, x[::-1]),
    lax_select_n=lambda x: lax.select_n(x > 0, x, x**2),
    lax_select_three=lambda x: lax.select_n(
        np.arange(12).reshape(4, 3) % 3, x, x**2, -x
    ),
    lax_pad_interior=lambda x: lax.pad(x, _zero(x), ((1, -1, 0), (0, 1, 2))),
    lax_pad_value=lambda x: lax.pad(x, x[0, 0], ((1, 1, 0), (0, 0, 0))),
    lax_rev=lambda x: lax.rev(x, (0,)),
    lax_slice=lambda x: lax.slice(x, (1, 0), (4, 2), (2, 1)),
    lax_dynamic_slice=lambda x: lax.dynamic_slice(x, (1, 1), (2, 2)),
    lax_dynamic_slice_traced=lambda x: lax.map(
        lambda i: lax.dynamic_slice(x, (i, 0), (2, 2)), np.arange(3)
    ),
    lax_dynamic_update_slice=lambda x: lax.dynamic_update_slice(x, x[:2] ** 2, (1, 0)),
    lax_dynamic_update_fixed=lambda x: lax.dynamic_update_slice(
        jnp.zeros((5, 4), x.dtype), x, (1, 1)
    ),
    lax_dynamic_index=lambda x: lax.dynamic_index_in_dim(x, 2) ** 2,
    lax_broadcast_in_dim=lambda x: lax.broadcast_in_dim(x, (2, 4, 3), (1, 2)) * 2,
    lax_reduce_add=lambda x: lax.reduce(x, _zero(x), lax.add, (0,)),
    lax_reduce_max=lambda x: lax.reduce(
        x, -jnp.inf * jnp.ones_like(_zero(x)), lax.max, (0,)
    ),
    lax_reduce_precision=lambda x: lax.reduce_precision(x, 11, 52) ** 2,
    lax_optimization_barrier=lambda x: lax.optimization_barrier(x) ** 2,
    lax_integer_pow=lambda x: lax.integer_pow(x, 7),
    lax_square=lax.square,
    lax_associative_scan=lambda x: lax.associative_scan(jnp.multiply, x),
    lax_associative_scan_linear=lambda x: lax.associative_scan(
        lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (jnp.tanh(x), x)
    )[1],
    lax_ragged_dot=lambda x: lax.ragged_dot(
        x, jnp.asarray(_random(2, 3, 2), x.dtype), np.array([1, 3], np.int32)
    ),
    lax_ragged_dot_weights=lambda x: lax.ragged_dot(
        jnp.asarray(_random(4, 2), x.dtype),
        x.reshape(2, 2, 3),
        np.array([1, 3], np.int32),
    ),
    lax_ragged_dot_both=lambda x: lax.ragged_dot(
        x, jnp.stack([x[:3], x[1:]]), np.array([1, 3], np.int32)
    ),
    lax_top_k_axis=lambda x: lax.top_k(x.T, 1)[0],
)

# ------------------------------------------------------------- calls and control


@jax.custom_jvp
def _log1pexp(x):
    return jnp.log1p(jnp.exp(x))


_log1pexp.defjvp(lambda p, t: (_log1pexp(*p), nn.sigmoid(p[0]) * t[0]))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 2))
def _applied(f, x, n):
    return f(x) ** n


@_applied.defjvp
def _applied_jvp(f, n, primals, tangents):
    y, dy = jax.jvp(f, primals, tangents)
    return y**n, n * y ** (n - 1) * dy


@jax.custom_jvp
def _two(x, y):
    return x * y, jnp.sin(x)


@_two.defjvp
def _two_jvp(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    return _two(x, y), (dx * y + x * dy, jnp.cos(x) * dx)


@jax.custom_vjp
def _cubed(x):
    return x**3


_cubed.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 2))
def _applied_vjp(f, x, n):
    return f(x) ** n


_applied_vjp.defvjp(
    lambda f, x, n: (f(x) ** n, x),
    lambda f, n, x, g: jax.vjp(lambda y: f(y) ** n, x)[1](g),
)


@jax.custom_vjp
def _scaled_by(x, tree):
    return x * tree["a"] + tree["b"]


_scaled_by.defvjp(
    lambda x, tree: (x * tree["a"] + tree["b"], (x, tree)),
    lambda saved, g: (g * saved[1]["a"], {"a": g * saved[0], "b": g}),
)


def _cell(h, x):
    z = nn.sigmoid(x + 0.5 * h)
    h = z * h + (1 - z) * jnp.tanh(x - h)
    return h, h**2


def _loop(x, body, n=4):
    return lax.fori_loop(0, n, body, x)


def _policy(x):
    def f(y):
        z = checkpoint_name(jnp.sin(y), "z")
        return jnp.exp(-(z**2)) @ W

    policies = jax.checkpoint_policies
    saved = jax.checkpoint(f, policy=policies.save_only_these_names("z"))
    dots = jax.checkpoint(f, policy=policies.dots_with_no_batch_dims_saveable)
    return saved(x) + dots(x)


@jax.custom_vjp
def _composite(x):
    return lax.composite(lambda y: jnp.tanh(y) ** 2, "own.function")(x)


def _composite_backward(x, ct):
    return (ct * 2 * jnp.tanh(x) * (1 - jnp.tanh(x) ** 2),)


_composite.defvjp(lambda x: (_composite(x), x), _composite_backward)


_over(
    reals(5),
    call_jit=jax.jit(lambda x: jnp.sin(x) * x),
    call_jit_nested=jax.jit(lambda x: jax.jit(jnp.tanh)(x) + x.sum()),
    call_vmap=lambda x: jax.vmap(lambda a, b: a * b, (0, None))(x, x),
    call_vmap_relu=lambda x: jax.vmap(nn.relu)(x),
    call_custom_jvp=_log1pexp,
    call_custom_jvp_nondiff=lambda x: _applied(jnp.sin, x, 2),
    call_custom_jvp_two=lambda x: sum(_two(x, x[::-1])),
    call_custom_jvp_vmapped=lambda x: jax.vmap(_log1pexp)(x),
    call_custom_vjp=_cubed,
    call_custom_vjp_nondiff=lambda x: _applied_vjp(jnp.sin, x, 3),
    call_custom_vjp_tree=lambda x: _scaled_by(x, {"a": x[::-1], "b": jnp.sin(x)}),
    call_custom_vjp_vmapped=lambda x: jax.vmap(_cubed)(x),
    call_custom_gradient=jax.custom_gradient(
        lambda x: (jnp.sin(x), lambda g: g * jnp.cos(x))
    ),
    call_checkpoint=jax.checkpoint(lambda x: jnp.sin(x) ** 2),
    call_checkpoint_policies=_policy,
    call_checkpoint_scan=lambda x: lax.scan(
        jax.checkpoint(_cell), jnp.zeros_like(x[0]), x
    )[1],
    call_named=lambda x: checkpoint_name(jnp.tanh(x), "a") * x,
    call_named_scope=jax.named_scope("block")(lambda x: jnp.tanh(x) * 2),
    call_named_call=jax.named_call(lambda x: jnp.tanh(x) * 2, name="block"),
    call_grad=lambda x: jax.grad(lambda y: jnp.tanh(y**2).sum())(x),
    call_hessian=lambda x: jax.hessian(lambda y: jnp.tanh(y).prod())(x[:3]),
    call_jvp=lambda x: jax.jvp(jnp.tanh, (x,), (x**2,))[1],
    call_linearize=lambda x: jax.linearize(jnp.sin, x)[1](x[::-1]),
    call_grad_relu=lambda x: jax.grad(lambda y: nn.relu(y * 2).sum())(x) * x,
    call_grad_max=lambda x: jax.grad(lambda y: (y * jnp.max(y)).sum())(x),
    call_composite=_composite,
    call_scan=lambda x: lax.scan(_cell, jnp.zeros_like(x[0]), x)[1],
    call_scan_empty=lambda x: lax.scan(_cell, x[0], x[:0])[0],
    call_scan_carry=lambda x: lax.scan(_cell, x[0], x[1:])[0],
    call_scan_reverse=lambda x: lax.scan(_cell, x[0], x, reverse=True)[1],
    call_scan_unroll=lambda x: lax.scan(_cell, x[0], x, unroll=2)[1],
    call_scan_fixed_rows=lambda x: lax.scan(lambda h, w: (jnp.tanh(h * w), h), x, V)[0],
    call_scan_constant=lambda x: lax.scan(
        lambda h, w: (h + w, h * x), jnp.zeros(()), jnp.asarray(V, x.dtype)
    )[1],
    call_scan_late=lambda x: lax.scan(
        lambda h, _: ((h[1], h[0] + x), h[0]),
        (jnp.zeros_like(x), jnp.zeros_like(x)),
        length=3,
    )[1],
    call_scan_nested=lambda x: lax.scan(
        lambda h, a: (lax.scan(_cell, h, x)[0] * a, h), x[0], x
    )[1],
    call_scan_max=lambda x: lax.scan(
        lambda h, a: (jnp.maximum(h, a), h), -jnp.inf * jnp.ones_like(x[0]), x
    )[0],
    call_scan_relu=lambda x: lax.scan(
        lambda h, w: (nn.relu(jnp.asarray(w, x.dtype) @ h), None),
        x[:3],
        _random(4, 3, 3),
    )[0],
    call_fori=lambda x: _loop(x, lambda i, y: jnp.sin(y) + i),
    call_fori_index=lambda x: _loop(x, lambda i, y: y.at[i].set(y[i] * y[i + 1])),
    call_fori_dynamic=lambda x: (
        jax.jit(lambda n: lax.fori_loop(0, n, lambda i, y: y * 1, jnp.zeros(())))(2) + x
    ),
    call_map=lambda x: lax.map(lambda a: jnp.sin(a) * x.sum(), x),
    call_map_batch=lambda x: lax.map(lambda a: jnp.sin(a) * x, x, batch_size=2),
    call_cond_fixed=lambda x: lax.cond(V[0] > 9, jnp.sin, jnp.cos, x),
    call_cond_input=lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x),
    call_cond_first=lambda x: lax.cond(x[0] > 0, lambda y: y**2, lambda y: -y, x),
    call_cond_operand_free=lambda x: lax.cond(
        x[0] > 0, lambda: x * 2, lambda: jnp.ones_like(x)
    ),
    call_cond_vmapped=lambda x: jax.vmap(
        lambda a: lax.cond(a > 0, jnp.sin, jnp.square, a)
    )(x),
    call_cond_in_scan=lambda x: lax.scan(
        lambda h, a: (lax.cond(a > h, lambda: a * h, lambda: h - a), h), x[0], x
    )[1],
    call_cond_traced=lambda x: lax.scan(
        lambda h, i: (lax.cond(i % 2 == 0, jnp.sin, jnp.cos, h), None), x, np.arange(4)
    )[0],
    call_switch_fixed=lambda x: lax.scan(
        lambda h, i: (lax.switch(i, [jnp.sin, jnp.cos, jnp.tanh], h), None),
        x,
        np.arange(3),
    )[0],
    call_platform=lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.sin),
    call_random=lambda x: x * jax.random.normal(jax.random.key(0), (5,)),
    call_dropout=lambda x: jnp.where(
        jax.random.bernoulli(jax.random.key(0), 0.5, (5,)), x / 0.5, 0
    ),
    call_reparametrized=lambda x: (
        x + jnp.exp(x[::-1]) * jax.random.normal(jax.random.key(1), (5,))
    ),
    call_newton_steps=lambda x: _loop(x, lambda i, y: y - 0.1 * (y**3 - x)),
    call_pytree=lambda x: jax.tree.map(lambda a: a**2, {"a": x})["a"],
    call_mlp=lambda x: nn.relu(x @ W + 0.1) @ W.T[:, :2],
    call_deep_mlp=lambda x: jnp.tanh(nn.gelu(nn.silu(x @ W) @ W.T) @ W).sum(),
    call_residual=lambda x: x + nn.relu(x @ W) @ W.T,
    call_gru_like=lambda x: nn.sigmoid(x) * x[::-1] + (1 - nn.sigmoid(x)) * jnp.tanh(x),
    call_debug_callback=lambda x: (jax.debug.callback(lambda _: None, x), x**2)[1],
    call_effects_barrier=lambda x: lax.optimization_barrier((x, x**2))[1],
    call_constant=lambda x: jnp.ones(3, x.dtype),
    call_constant_and_input=lambda x: jnp.stack([jnp.ones(5, x.dtype), x]),
)
_over(
    reals(5, kind="stopped"),
    stopped_quantised=lambda x: x / lax.stop_gradient(abs(x).max()),
    stopped_scale=lambda x: x * lax.stop_gradient(jnp.exp(x)),
    stopped_shift=lambda x: jnp.tanh(x - lax.stop_gradient(x.mean())),
    stopped_straight_through=lambda x: x + lax.stop_gradient(jnp.round(x) - x),
    stopped_profile_head=lambda x: (
        (x - x.mean()) * lax.stop_gradient(nn.softmax(x - x.mean()))
    ).sum(),
    stopped_in_scan=lambda x: lax.scan(
        lambda h, a: (h + a * lax.stop_gradient(h), h), jnp.ones_like(x[0]), x
    )[1],
)
_over(
    reals(5, kind="path"),
    root=lambda x: lax.custom_root(
        lambda y: y**3 + y - x,
        jnp.zeros_like(x),
        lambda f, y: _loop(y, lambda _, z: z - f(z) / (3 * z**2 + 1), 30),
        lambda g, y: y / g(jnp.ones_like(y)),
    ),
)
_over(
    reals(5, kind="half"),
    half_bfloat16=lambda x: (x.astype(jnp.bfloat16) * 2).astype(x.dtype) ** 2,
    half_float16=lambda x: jnp.tanh(x.astype(jnp.float16)).astype(x.dtype),
    half_matmul=lambda x: (
        x.astype(jnp.bfloat16) @ jnp.asarray(W, jnp.bfloat16)
    ).astype(x.dtype),
    half_preferred=lambda x: jnp.matmul(
        x.astype(jnp.bfloat16),
        jnp.asarray(W, jnp.bfloat16),
        preferred_element_type=jnp.float32,
    ).astype(x.dtype),
    half_relu=lambda x: nn.relu(x.astype(jnp.bfloat16) - 0.5).astype(x.dtype),
    half_reduce_precision=lambda x: lax.reduce_precision(x, 8, 7),
    half_layer=lambda x: nn.gelu(
        x.astype(jnp.bfloat16) @ jnp.asarray(W, jnp.bfloat16)
    ).astype(x.dtype),
)

# What these return does not depend on the shift that they stop.
_SEGMENTS = np.array([0, 0, 1, 1, 1])


def _segment_softmax(x):
    top = lax.stop_gradient(jax.ops.segment_max(x, _SEGMENTS, 2))
    e = jnp.exp(x - top[_SEGMENTS])
    return e / jax.ops.segment_sum(e, _SEGMENTS, 2)[_SEGMENTS]


def _softmax_with_sink(x):
    top = lax.stop_gradient(jnp.maximum(x.max(), 0))
    e = jnp.exp(x - top)
    return e / (e.sum() + jnp.exp(-top))


def _attention(x):
    scores = jnp.outer(x, x)
    e = jnp.exp((scores - lax.stop_gradient(scores.max(-1, keepdims=True))) / 0.5)
    return (e @ W) / e.sum(-1, keepdims=True)


_over(
    Domain((5,), lambda u: 40 * u),
    stopped_max=lambda x: (lambda e: e * (1 / e.sum()))(
        jnp.exp(x - lax.stop_gradient(x.max()))
    ),
    stopped_segments=_segment_softmax,
    stopped_sink=_softmax_with_sink,
    stopped_logsumexp=lambda x: (lambda m: jnp.log(jnp.exp(x - m).sum()) + m)(
        lax.stop_gradient(x.max())
    ),
)
_over(wide(5), stopped_attention=_attention)
# Near 0 and far from it the branches that are not taken overflow in float32.
_over(wide(9), special_fresnel=lambda x: special.fresnel(x)[0])
_over(between(-0.1, 0.1, 5), special_fresnel_small=lambda x: special.fresnel(x)[1])
_over(
    positive(5, kind="path"),
    special_exp1=special.exp1,
    special_expi=special.expi,
    special_hyp1f1=lambda x: special.hyp1f1(1.5, 2.5, x),
)
# The sampler rejects: it jumps, and its derivative is that of the quantile function.
_over(
    above(1.5, kind="index"),
    random_gamma=lambda x: jax.random.gamma(jax.random.key(0), x),
)

# ------------------------------------------------------------------------ refused
_over(
    reals(4),
    logsumexp_of_either_sign=lambda x: nn.logsumexp(
        x, b=np.array([1.0, -1.0, 0.5, -0.7]), return_sign=True
    )[0],
)


@jax.custom_jvp
def _called_back(x):
    return jax.pure_callback(np.round, x, x, vmap_method="expand_dims")


_called_back.defjvp(lambda p, t: (_called_back(*p), t[0]))

REFUSED: dict[str, tuple[Callable[[Any], Any], Domain]] = {
    "while": (
        lambda x: lax.while_loop(lambda v: (v @ v) < 9, lambda v: v * 2, x),
        reals(),
    ),
    "while_of_known_length": (
        lambda x: lax.while_loop(
            lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x)
        )[1],
        reals(),
    ),
    "callback": (lambda x: jax.pure_callback(lambda y: y, x, x), reals()),
    "callback_with_a_derivative": (_called_back, reals()),
    "reduce_window": (
        lambda x: _window(x, 0.2, lax.max, 2, 2),
        reals(1, 2, 4, 4),
    ),
}
"""Functions that are refused by name."""
