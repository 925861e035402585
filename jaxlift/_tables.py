"""The rule tables: which rule each primitive gets. A method is a table."""

from __future__ import annotations

from jax.extend.core import primitives as P

from jaxlift import (
    _backprop,
    _compat,
    _control,
    _convolution,
    _custom,
    _extrema,
    _linalg,
    _order,
    _reveal_cancel,
    _rules,
    _softmax,
)
from jaxlift._compat import existing
from jaxlift._dependence import CALLS, ONE_FOR_ONE
from jaxlift._differences import DIFFERENCES, STEPS
from jaxlift._interpret import table
from jaxlift._rules import gradient, indexed, linear, on_floats, one_for_one

# fmt: off
_LINEAR = existing(
    "broadcast_in_dim", "reshape", "squeeze", "transpose", "rev", "pad", "concatenate", "slice",
    "split", "stack", "unstack", "tile", "reduce_sum", "cumsum", "reduce_window_sum", "fft",
    "real", "imag", "complex", "conj", "add_jaxvals", "sharding_constraint",
    "select_and_scatter_add", "psum", "psum_invariant", "all_gather", "all_gather_invariant",
    "all_to_all", "ppermute", "reduce_scatter", "pvary", "reshard",
)
_PATH = existing(
    "cholesky", "eig", "qr", "triangular_solve", "tridiagonal_solve", "random_gamma",
)
_PRODUCTS = existing("reduce_prod", "cumprod", "scatter_mul")
_MAXIMA, _MINIMA = existing("cummax", "scatter_max"), existing("cummin", "scatter_min")
_ELEMENTWISE = {*DIFFERENCES, *STEPS}

STRUCTURE = {
    **dict.fromkeys(CALLS, _control.call),
    **dict.fromkeys(existing("call_hi_primitive"), _control.expanded),
    P.custom_jvp_call_p: _control.custom_jvp,
    P.remat_p:           _control.remat,
    P.scan_p:            _control.scan,
    P.while_p:           _control.while_loop,
    P.cond_p:            _control.cond,
    P.name_p:            _control.tag,
    P.stop_gradient_p:   _softmax.freeze,
    **dict.fromkeys(_compat.SHARD_MAP, _control.shard_map),
    **dict.fromkeys(_compat.EFFECTS, _control.observe),
    **dict.fromkeys(ONE_FOR_ONE, one_for_one),
}

RESCALE = table(
    dict.fromkeys(_PATH, _rules.path),
    dict.fromkeys(_PRODUCTS, on_floats(0, 2)(_rules.path)),
    dict.fromkeys(_ELEMENTWISE, _rules.elementwise),
    dict.fromkeys(_LINEAR, linear),
    {
        P.dot_general_p:          _rules.bilinear,
        P.conv_general_dilated_p: _convolution.channels_last(_rules.bilinear),
    },
    dict.fromkeys(existing("reduce_max", "reduce_or"), _extrema.extremum(+1)),
    dict.fromkeys(existing("reduce_min", "reduce_and"), _extrema.extremum(-1)),
    {
        P.reduce_window_max_p: _extrema.window_extremum(+1),
        P.reduce_window_min_p: _extrema.window_extremum(-1),
        P.select_n_p:  _rules.select,
        P.div_p:       _softmax.softmax_or_divide,
        P.sub_p:       _softmax.log_softmax_or_subtract,
        P.exp_p:       _softmax.softmax_or_exp,
        P.log_p:       _softmax.logsumexp_or_log,
        P.add_p:       _softmax.logsumexp_or_add,
    },
    dict.fromkeys(_MAXIMA, on_floats(0, 2)(_order.any_extremum(+1))),
    dict.fromkeys(_MINIMA, on_floats(0, 2)(_order.any_extremum(-1))),
    dict.fromkeys(existing("cumlogsumexp"), _softmax.cumulative),
    {P.argmax_p: _order.first_or_argmax, P.argmin_p: _order.argmax},
    {P.sort_p: _order.sort, P.top_k_p: _order.top_k, P.approx_top_k_p: _order.top_k},
    {P.reduce_p: _order.reduce, P.select_and_gather_add_p: indexed(1)},
    {P.linear_solve_p: _linalg.linear_solve, P.lu_p: _linalg.lu},
    {P.eigh_p: _linalg.eigh, P.svd_p: _linalg.svd},
    dict.fromkeys(_compat.PIVOTS, gradient),  # integers in, integers out
    dict.fromkeys(existing("ragged_dot_general"), _rules.bilinear),
    dict.fromkeys(existing("gather", "dynamic_slice"), indexed(1)),
    dict.fromkeys(existing("scatter", "scatter_add", "scatter_sub"), indexed(1, 2)),
    dict.fromkeys(existing("dynamic_update_slice"), indexed(2)),
    {_custom.custom_rule_p: _custom.own_rule},
    STRUCTURE,
    dict.fromkeys(existing("jit"), _control.jitted),
)
"""Rescale (Shrikumar et al. 2017, section 3.5.2), extended to every primitive."""

REVEAL_CANCEL = table(
    RESCALE,
    {
        P.dot_general_p:          _reveal_cancel.opening,
        P.conv_general_dilated_p: _convolution.channels_last(_reveal_cancel.opening),
    },
)
"""RevealCancel: products with fixed weights keep what pushes up apart from what pushes
down (Shrikumar et al. 2017, section 3.5.3)."""

GENOMICS_DEFAULT = table(
    REVEAL_CANCEL, {P.conv_general_dilated_p: RESCALE[P.conv_general_dilated_p]}
)
"""The original implementation's default for genomics: Rescale after convolutions,
RevealCancel after dense layers."""

GRADIENT = table(
    dict.fromkeys(RESCALE.keys() - STRUCTURE.keys(), gradient),
    STRUCTURE,
    dict.fromkeys(existing("custom_jvp_call", "custom_vjp_call", "cond", "stop_gradient"), gradient),
)
"""The ordinary derivative at the input; what `jax.grad` computes."""

def _relu_edit(derivative: bool):
    relus = existing("max", "custom_jvp_call")
    return dict.fromkeys(relus, _backprop.relu_backward(derivative))


GUIDED_BACKPROP = table(GRADIENT, _relu_edit(derivative=True))
"""The gradient, negative multipliers cut off at every relu (Springenberg et al. 2014)."""

DECONVNET = table(GRADIENT, _relu_edit(derivative=False))
"""As guided backpropagation, without the derivative of the relu (Zeiler, Fergus 2014)."""

LRP = table(
    GRADIENT,
    dict.fromkeys({*_ELEMENTWISE, P.select_n_p} - {P.exp_p}, _backprop.relevance),
    {P.custom_jvp_call_p: _backprop.relevance_of_call},
)
"""Layer-wise relevance propagation, epsilon rule, in the form of Ancona et al. 2018
(1711.06104): an activation of `z` multiplies by `F(z) / z`. Contributions are for the
zero reference."""

WINNER_AT_INPUT = table(
    dict.fromkeys(
        existing("reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min"),
        gradient,
    ),
)
"""A table edit: a maximum passes its multiplier to the winner at the input, whatever
the reference. The original implementation's rule for max-pooling; not complete."""
# fmt: on
