"""The public contract: arguments, trees, targets, tags, errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import checkify

import jaxlift
from jaxlift import targets

X = jnp.array([1.0, 2.0, -1.0])
R = jnp.array([0.5, -2.0, 0.0])
W = jax.random.normal(jax.random.key(0), (3, 4))


def logits(x):
    return jnp.tanh(x @ W) * 2


def close(a, b, tolerance=1e-6):
    jax.tree.map(
        lambda u, v: np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance),
        a,
        b,
    )


def test_contributions_are_multipliers_times_the_difference():
    m = jaxlift.multipliers(logits, target=2)(X, R)
    c = jaxlift.deeplift(logits, target=2)(X, R)
    close(c, m * (X - R))
    close(c.sum(), logits(X)[2] - logits(R)[2])


def test_vjp_serves_many_outputs():
    y, y0, pullback = jaxlift.vjp(logits, X, R)
    close(y, logits(X))
    close(y0, logits(R))
    rows = jax.vmap(pullback)(jnp.eye(4))
    close(rows @ (X - R), y - y0)
    close(rows[1], jaxlift.multipliers(logits, target=1)(X, R))


def test_aux_comes_through_at_the_input():
    f = lambda x: (x.sum() ** 2, {"mean": x.mean(), "n": 3})
    c, aux = jaxlift.deeplift(f, has_aux=True)(X, R)
    close(c.sum(), X.sum() ** 2 - R.sum() ** 2)
    close(aux["mean"], X.mean())
    *_, aux = jaxlift.vjp(f, X, R, has_aux=True)
    close(aux["mean"], X.mean())
    c, aux = jaxlift.deeplift(f, has_aux=True, target=lambda y: 2 * y)(X, R)
    close(c.sum(), 2 * (X.sum() ** 2 - R.sum() ** 2))


def test_argnums_and_trees():
    f = lambda a, k, b: (a["u"] * b + k * a["v"]).sum()
    a, a0 = {"u": X, "v": X * X}, {"u": R, "v": R}
    c = jaxlift.deeplift(f, (0, 2))(a, 3, X, (a0, R))
    assert jax.tree.structure(c) == jax.tree.structure((a, X))
    total = sum(leaf.sum() for leaf in jax.tree.leaves(c))
    close(total, f(a, 3, X) - f(a0, 3, R))
    close(jaxlift.deeplift(f, 2)(a, 3, X, R), jaxlift.deeplift(f, -1)(a, 3, X, R))
    assert isinstance(jaxlift.deeplift(f, (2,))(a, 3, X, (R,)), tuple)


def test_keyword_arguments_are_passed_on():
    f = lambda x, *, power: (x**power).sum()
    close(jaxlift.deeplift(f)(X, 0.0, power=2), X * X)


@pytest.mark.parametrize("target", [1, (1,), -3, lambda y: y[1]])
def test_targets_agree(target):
    close(
        jaxlift.deeplift(logits, target=target)(X, R),
        jaxlift.deeplift(lambda x: logits(x)[1])(X, R),
    )


def test_target_sum_explains_each_example_of_a_batch():
    xs = jnp.stack([X, R, 2 * X])
    batched = jaxlift.deeplift(logits, target=jnp.sum)(
        xs, jnp.broadcast_to(R, xs.shape)
    )
    single = jaxlift.deeplift(logits, target=jnp.sum)
    close(batched, jnp.stack([single(x, R) for x in xs]))


@pytest.mark.parametrize(
    "reference", [0.0, 0, jnp.zeros(()), jnp.zeros(1), np.zeros(3)]
)
def test_references_broadcast(reference):
    if isinstance(reference, np.ndarray):
        reference = reference.astype(np.float32)
    g = jaxlift.deeplift(logits, target=0)
    close(g(X, reference), g(X, jnp.zeros(3)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("reference", [0.0, 0])
def test_a_number_is_a_reference_also_through_jit(reference, dtype):
    g = jaxlift.deeplift(lambda x: jnp.tanh(x).sum())
    x = X.astype(dtype)
    close(jax.jit(g)(x, reference), g(x, jnp.zeros_like(x)), 1e-2)
    rows = jnp.stack([x, 2 * x])
    close(jax.jit(jax.vmap(g, (0, None)))(rows, reference)[0], g(x, 0.0), 1e-2)


def test_scalar_reference_for_several_arguments():
    a, b = jaxlift.deeplift(jnp.dot, (0, 1))(X, R, 0.0)
    close((a, b), (X * R / 2, X * R / 2))


def test_scalar_reference_for_a_tree():
    f = lambda p: p["a"] @ p["b"]
    c = jaxlift.deeplift(f)({"a": X, "b": R}, 0.0)
    close(c, {"a": X * R / 2, "b": X * R / 2})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_results_have_the_dtype_of_the_input(dtype):
    f = lambda x: jax.nn.gelu(x @ W.astype(x.dtype)).sum()
    x, r = X.astype(dtype), R.astype(dtype)
    c = jaxlift.deeplift(f)(x, r)
    assert c.dtype == x.dtype and c.shape == x.shape
    eps = float(jnp.finfo(dtype).eps)
    close(c.astype("float32").sum(), (f(x) - f(r)).astype("float32"), 20 * eps)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 5, 9])
def test_deeplift_shap_is_the_mean_over_references(batch_size):
    references = jax.random.normal(jax.random.key(1), (5, 3))
    g = jaxlift.deeplift(logits, target=1)
    mean = jnp.stack([g(X, r) for r in references]).mean(0)
    shap = jaxlift.deeplift_shap(logits, target=1, batch_size=batch_size)
    close(shap(X, references), mean)
    close(jax.jit(shap)(X, references), mean)


def test_integrated_gradients_is_exact_on_polynomials():
    f = lambda a, b: (a**3 * b).sum() + (a @ b) ** 2
    ig = jaxlift.integrated_gradients(f, (0, 1), steps=2)(X, 2 * X, (R, R))
    t = jnp.linspace(0, 1, 20001)
    point = lambda t: (R + t * (X - R), R + t * (2 * X - R))
    grads = jax.vmap(lambda t: jax.grad(f, (0, 1))(*point(t)))(t)
    path = jax.tree.map(lambda g: jnp.trapezoid(g, t, axis=0), grads)
    close(ig, (path[0] * (X - R), path[1] * (2 * X - R)), 1e-4)
    close(sum(map(jnp.sum, ig)), f(X, 2 * X) - f(R, R), 1e-5)
    assert isinstance(jaxlift.integrated_gradients(f)(X, X, R), jax.Array)


def test_gradient_table_is_the_gradient():
    f = lambda x: jax.nn.softmax(jax.nn.relu(x @ W))[0] + jnp.sort(x)[1]
    close(jaxlift.multipliers(f, rules=jaxlift.GRADIENT)(X, 7 * R), jax.grad(f)(X))


def test_locality():
    f = lambda x: jnp.where(x[0] > 0, jnp.exp(x[0]), x[1])
    c = jaxlift.deeplift(lambda x: f(x[:2]) * 2)(X, R)
    assert c[2] == 0


# ------------------------------------------------------------------------ tags


def tagged(x):
    hidden = checkpoint_name(jnp.tanh(x @ W), "hidden")
    return (checkpoint_name(jax.jit(jnp.square)(hidden), "square") * W[0]).sum()


def test_intermediate_values_and_their_contributions():
    hidden = jaxlift.intermediate(tagged, "hidden")
    close(hidden(X), jnp.tanh(X @ W))
    rest = lambda h: (h * h * W[0]).sum()
    direct = jaxlift.deeplift(rest)(hidden(X), hidden(R))
    close(jaxlift.deeplift(tagged, at="hidden")(X, R), direct)
    both = jaxlift.multipliers(tagged, at=("hidden", "square"))(X, R)
    close(both["square"], W[0])
    close(both["hidden"] * (hidden(X) - hidden(R)), direct)


def test_neuron_attribution():
    neuron = jaxlift.deeplift(jaxlift.intermediate(tagged, "hidden"), target=3)(X, R)
    close(neuron.sum(), jnp.tanh(X @ W)[3] - jnp.tanh(R @ W)[3])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_tags_in_a_scan_come_stacked(wrap):
    def f(x):
        def body(c, w):
            c = checkpoint_name(jnp.tanh(c * w + x), "state")
            return c, c.sum()

        return lax.scan(body, x, W[:, 0])[1].sum()

    f = wrap(f)
    states = jaxlift.intermediate(f, "state")(X)
    assert states.shape == (3, 3)
    c = jaxlift.deeplift(f, at="state")(X, R)
    assert c.shape == (3, 3)
    # The last state reaches the output by its sum alone.
    close(c[-1], states[-1] - jaxlift.intermediate(f, "state")(R)[-1])


@pytest.mark.parametrize(
    "last",
    [
        jax.nn.softmax,
        jax.nn.log_softmax,
        jax.nn.sigmoid,
        jnp.tanh,
        jax.jit(jax.nn.softmax),
        lambda z: jax.nn.softmax(z).reshape(-1),
        lambda z: (lambda e: e / e.sum())(jnp.exp(z - z.max())),
        lambda z: checkpoint_name(jax.nn.softmax(z), "p"),
        lambda z: jax.jit(lambda z: (2 * z, jax.nn.softmax(z)))(z)[1],
    ],
)
def test_pre_activation(last):
    close(jaxlift.pre_activation(lambda x: last(x @ W))(X), X @ W)


def test_the_value_explained_is_that_of_the_function():
    """A stopped scale is that of the input, though it is a maximum."""
    f = lambda x: (x / lax.stop_gradient(jnp.abs(x).max())).sum()
    for x, r in ((X, 30 * X), (30 * X, X), (X, X)):
        y, y_reference, pullback = jaxlift.vjp(f, x, r)
        close(y, f(x))
        close(y_reference, r.sum() / jnp.abs(x).max())
        close(pullback(1.0), jax.grad(f)(x))


# ---------------------------------------------------------------------- errors

F = jnp.sum
WHILE = lambda x: lax.while_loop(lambda c: c.sum() < 10, lambda c: c * 2 + 1, x).sum()
SCHUR = lambda x: jax.scipy.linalg.schur(jnp.outer(x, x))[0].sum()
CALLBACK = lambda x: jax.pure_callback(lambda y: y, x, x).sum()

ERRORS = {
    "not a function": (TypeError, "int: 3", lambda: jaxlift.deeplift(3)),
    "vector output": (
        ValueError, r"shape \(4,\).*target=", lambda: jaxlift.deeplift(logits)(X, R)),
    "shape": (jaxlift.ReferenceMismatchError, r"\(4,\)",
              lambda: jaxlift.deeplift(F)(X, jnp.ones(4))),
    "larger shape": (jaxlift.ReferenceMismatchError, r"\(2, 3\)",
                     lambda: jaxlift.deeplift(F)(X, jnp.ones((2, 3)))),
    "dtype": (jaxlift.ReferenceMismatchError, "float16",
              lambda: jaxlift.deeplift(F)(X, R.astype("float16"))),
    "integer reference": (jaxlift.ReferenceMismatchError, "int32",
                          lambda: jaxlift.deeplift(F)(X, jnp.ones(3, int))),
    "tree": (jaxlift.ReferenceMismatchError, "tree",
             lambda: jaxlift.deeplift(lambda p: p["a"].sum())({"a": X}, {"b": R})),
    "not a tuple": (jaxlift.ReferenceMismatchError, "tuple of 2",
                    lambda: jaxlift.deeplift(lambda a, b: a @ b, (0, 1))(X, X, R)),
    "an array for a tuple": (
        jaxlift.ReferenceMismatchError, "tuple of 2.*not one array",
        lambda: jaxlift.deeplift_shap(jnp.dot, (0, 1))(X, X, jnp.ones((2, 3)))),
    "a tuple too long": (jaxlift.ReferenceMismatchError, r"not the tree .*\*, \*, \*",
                         lambda: jaxlift.deeplift(jnp.dot, (0, 1))(X, X, (R, R, R))),
    "complex cotangent": (TypeError, "cotangent.*real, not complex64",
                          lambda: jaxlift.vjp(jnp.sin, X, R)[2](X * 1j)),
    "complex number": (TypeError, "cotangent.*real, not complex64",
                       lambda: jaxlift.vjp(jnp.sin, X, R)[2](1j)),
    "cotangent's shape": (ValueError, r"cotangent.*\(4,\).*\(3,\)",
                          lambda: jaxlift.vjp(jnp.sin, X, R)[2](jnp.ones(4))),
    "integer input": (TypeError, "int32",
                      lambda: jaxlift.deeplift(F)(X.astype(int), R)),
    "complex input": (TypeError, "complex64",
                      lambda: jaxlift.deeplift(F)(X + 0j, 0.0)),
    "integer output": (TypeError, "int32",
                       lambda: jaxlift.deeplift(lambda x: x.astype(int).sum())(X, R)),
    "a text as output": (TypeError, "return a real.*'q'",
                         lambda: jaxlift.deeplift(lambda x: "q")(X, R)),
    "a text as target": (TypeError, "return a real.*'a'",
                         lambda: jaxlift.deeplift(F, target=lambda y: "a")(X, R)),
    "no pair": (TypeError, r"pair \(output, aux\), not one array",
                lambda: jaxlift.deeplift(F, has_aux=True)(X, R)),
    "several outputs": (TypeError, "tree",
                        lambda: jaxlift.deeplift(lambda x: (x.sum(), x))(X, R)),
    "target": (ValueError, r"\(9,\).*\(4,\)",
               lambda: jaxlift.deeplift(logits, target=9)(X, R)),
    "target rank": (ValueError, r"\(0, 0\)",
                    lambda: jaxlift.deeplift(logits, target=(0, 0))(X, R)),
    "target type": (TypeError, "'a'", lambda: jaxlift.deeplift(logits, target="a")),
    "boolean target": (TypeError, "target must.*True",
                       lambda: jaxlift.deeplift(logits, target=True)),
    "booleans among a target": (TypeError, "target must.*False",
                                lambda: jaxlift.deeplift(logits, target=(0, False))),
    "traced target": (TypeError, r"lambda y: y\[k\]",
                      lambda: jax.jit(lambda k: jaxlift.deeplift(logits, target=k))(1)),
    "rules": (TypeError, "RESCALE.*'rescale'",
              lambda: jaxlift.deeplift(F, rules="rescale")(X, R)),
    "a word for a primitive": (
        TypeError, "primitive.*tanh_p, not 'tanh'",
        lambda: jaxlift.deeplift(F, rules=jaxlift.RESCALE | {"tanh": jnp.tanh})(X, R)),
    "a function for a primitive": (
        TypeError, "primitive.*tanh_p, not .*jit",
        lambda: jaxlift.vjp(F, X, R, rules=jaxlift.RESCALE | {jnp.tanh: jnp.tanh})),
    "a word in a scope": (
        TypeError, "primitive.*tanh_p, not 'tanh'",
        lambda: jaxlift.vjp(F, X, R, rules=jaxlift.scoped(
            jaxlift.RESCALE, {"head": {"tanh": jnp.tanh}}))),
    "no rule": (TypeError, "'tanh'.*function.*not 2.0",
                lambda: jaxlift.vjp(F, X, R, rules={lax.tanh_p: 2.0})),
    "a word for a reference": (TypeError, "reference.*'zero'",
                               lambda: jaxlift.deeplift(F)(X, "zero")),
    "no array": (TypeError, r"0\[1\] .*array.*partition",
                 lambda: jaxlift.deeplift(lambda p: p[0].sum())((X, jax.nn.relu), 0.0)),
    "argnums": (ValueError, "argnums 2", lambda: jaxlift.deeplift(F, 2)(X, R)),
    "argnums twice": (ValueError, "twice",
                      lambda: jaxlift.deeplift(jnp.dot, (0, -2))(X, X, (R, R))),
    "boolean argnums": (TypeError, "argnums must.*True",
                        lambda: jaxlift.deeplift(F, True)),
    "argnums type": (TypeError, "argnums", lambda: jaxlift.deeplift(F, "x")),
    "no reference": (TypeError, "reference", lambda: jaxlift.deeplift(F)(X)),
    "no tag": (ValueError, r"'q'.*\['hidden', 'square'\]",
               lambda: jaxlift.deeplift(tagged, at="q")(X, R)),
    "no tag to return": (ValueError, "'q'",
                         lambda: jaxlift.intermediate(tagged, "q")(X)),
    "a tag twice": (ValueError, "more than one",
                    lambda: jaxlift.intermediate(lambda x: tagged(x) + tagged(x),
                                                 "hidden")(X)),
    "no references": (ValueError, "empty",
                      lambda: jaxlift.deeplift_shap(F)(X, jnp.ones((0, 3)))),
    "batch_size": (ValueError, "batch_size",
                   lambda: jaxlift.deeplift_shap(F, batch_size=0)(X, jnp.ones((2, 3)))),
    "batch_size bool": (TypeError, "batch_size must be an int, not True",
                        lambda: jaxlift.deeplift_shap(F, batch_size=True)(X, X[None])),
    "references": (ValueError, "leading axis",
                   lambda: jaxlift.deeplift_shap(F)(X, 0.0)),
    "steps": (ValueError, "steps", lambda: jaxlift.integrated_gradients(F, steps=0)),
    "no pre-activation": (ValueError, "mul",
                          lambda: jaxlift.pre_activation(lambda x: x * 2)(X)),
    "no pre-activation in a loop": (
        ValueError, "scan",
        lambda: jaxlift.pre_activation(lambda x: lax.map(jnp.tanh, x))(X)),
    "an output with several parts": (
        TypeError, r"tuple.*y\[0\]",
        lambda: jaxlift.deeplift(lambda x: (x, x), target=targets.logit(0))(X, R)),
    "inside a function of JAX": (
        jaxlift.UnsupportedPrimitiveError, "schur.*test_transforms.py",
        lambda: jaxlift.deeplift(SCHUR)(X, R)),
    "trip count": (jaxlift.UnsupportedPrimitiveError, "trip count.*test_transforms.py",
                   lambda: jaxlift.deeplift(WHILE)(X, R)),
    "callback": (jaxlift.UnsupportedPrimitiveError, "pure_callback.*test_transforms.py",
                 lambda: jaxlift.deeplift(CALLBACK)(X, R)),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_offender_while_tracing(name):
    kind, message, call = ERRORS[name]
    with pytest.raises(kind, match=message):
        jax.eval_shape(lambda: call())


def test_non_finite_data_propagate():
    x = jnp.array([jnp.nan, 1.0, 2.0])
    m = jaxlift.multipliers(lambda x: jnp.tanh(x).sum())(x, R)
    assert jnp.isnan(m[0]) and jnp.isfinite(m[1:]).all()


@pytest.mark.parametrize("name", ["relu", "relu6", "softplus", "leaky_relu", "selu"])
def test_infinity_has_the_slope_of_the_gradient(name):
    f = lambda x: getattr(jax.nn, name)(x).sum()
    x = jnp.array([jnp.inf, jnp.inf, -jnp.inf, 1.0])
    r = jnp.array([0.5, -jnp.inf, -jnp.inf, jnp.inf])
    m = jaxlift.multipliers(f)(x, r)
    close(m, jax.grad(f)(x).at[-1].set(m[-1]))
    assert np.isfinite(m[-1])


def test_tables_are_immutable_and_extended_by_or():
    with pytest.raises(TypeError):
        jaxlift.RESCALE[lax.tanh_p] = None
    double = lambda step, x: type(x)(2 * step.bind(x.x), 2 * step.bind(x.r))
    rules = jaxlift.RESCALE | {lax.tanh_p: double}
    f = lambda x: jnp.tanh(x).sum()
    close(jaxlift.vjp(f, X, R, rules=rules)[0], 2 * f(X))


RULED = {
    "elementwise": lambda x: jnp.tanh(x).sum(),
    "in a scan": lambda x: lax.scan(lambda c, x: (jnp.tanh(c + x), c), 0.0, x)[0],
    "in a jit": lambda x: jax.jit(jnp.tanh)(x).sum(),
}


@pytest.mark.parametrize("wrap", [lambda f, _: f, jaxlift.scoped])
@pytest.mark.parametrize("name", RULED)
def test_a_rule_that_returns_an_array_would_pass_back_the_gradient(name, wrap):
    f = jax.named_scope("part")(RULED[name])
    for rule in (lambda step, p: step.bind(p.x), lambda step, p: (p, p)):
        edited = jaxlift.RESCALE | {lax.tanh_p: rule}
        rules = wrap(edited, {"part": edited})
        with pytest.raises(TypeError, match="rule for 'tanh' returned .*operand"):
            jaxlift.deeplift(f, rules=rules)(X, R)


def test_a_rule_may_return_a_constant():
    """Explicitly so: the same at both points, or what it is that stop_gradient does."""
    same = lambda step, p: type(p)(*2 * [lax.stop_gradient(step.bind(p.x))])
    for rule in (same, jaxlift.RESCALE[lax.stop_gradient_p]):
        rules = jaxlift.RESCALE | {lax.tanh_p: rule}
        f = lambda x: (x * jnp.tanh(x)).sum()
        explain = jaxlift.multipliers(f, rules=rules)
        kept = jnp.tanh(X) if rule is same else X
        close(explain(X, R), kept)


def test_effects_happen_once(capfd):
    def f(x):
        jax.debug.print("seen {}", x[0])
        return x.sum()

    jaxlift.deeplift(f)(X, R)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("seen 1.0") == 1


@pytest.mark.parametrize("rules", [jaxlift.RESCALE, jaxlift.REVEAL_CANCEL])
def test_effects_of_branches_that_are_not_taken_do_not_happen(rules, capfd):
    @jax.jit
    def alarm():
        jax.debug.print("not a number")
        return 1.0

    def bad(x):
        jax.debug.print("bad {}", x)
        return x.sum() * alarm()

    def good(x):
        jax.debug.print("good {}", x[0])
        return jnp.square(x).sum()

    f = lambda x: lax.cond(jnp.isnan(x).any(), bad, good, x)
    jax.jit(jaxlift.deeplift(f, rules=rules))(X, R)
    jax.effects_barrier()
    printed = capfd.readouterr().out
    assert printed.count("good 1.0") == 1
    assert "bad" not in printed and "not a number" not in printed


def _in_while(x):
    step = lambda state: (state[0] + 1, checkpoint_name(2 * state[1], "inside"))
    return lax.while_loop(lambda state: state[0] < 3, step, (0, x))[1].sum()


def _in_cond(x):
    tag = lambda x: checkpoint_name(2 * x, "inside")
    return lax.cond(jnp.arange(3).sum() > 1, tag, lambda x: x, x).sum()


def _in_custom_jvp(x):
    return jax.nn.relu(x).sum() + _tagging(x).sum()


@jax.custom_jvp
def _tagging(x):
    return checkpoint_name(x * x[::-1], "inside")


_tagging.defjvp(lambda p, t: (_tagging(*p), p[0] * t[0][::-1] + p[0][::-1] * t[0]))


@pytest.mark.parametrize(
    ("f", "primitive"),
    [(_in_while, "while"), (_in_cond, "cond"), (_in_custom_jvp, "custom_jvp_call")],
)
def test_a_tag_that_cannot_be_handed_out_is_refused(f, primitive):
    x = jnp.ones(2)
    for ask in (
        lambda: jaxlift.deeplift(f, at="inside")(x, 0.0),
        lambda: jaxlift.intermediate(f, "inside")(x),
    ):
        with pytest.raises(ValueError, match=f"'inside'.* body of {primitive},"):
            ask()


def test_derivatives_of_contributions_are_refused_not_wrong():
    f = lambda w, x: jnp.tanh(w @ x).sum()
    w, x = jnp.ones((2, 3)), jnp.arange(3.0)
    for explained in (
        lambda w: jaxlift.deeplift(f, 1)(w, x, 0.0).sum(),
        lambda w: jaxlift.vjp(functools.partial(f, w), x, 0.0)[0],
        lambda w: jaxlift.parts(f, 1)(w, x, 0.0).pos_to_pos.sum(),
    ):
        with pytest.raises(NotImplementedError, match="stop_gradient"):
            jax.grad(explained)(w)
        assert jnp.all(jax.grad(lambda w: explained(lax.stop_gradient(w)))(w) == 0)  # noqa: B023
    hessian = jax.jacfwd(jaxlift.multipliers(f, 1, rules=jaxlift.GRADIENT), 1)
    np.testing.assert_allclose(
        hessian(w, x, 0.0), jax.hessian(f, 1)(w, x), rtol=1e-5, atol=1e-6
    )


def test_a_check_is_made_once_at_the_input():
    def f(x):
        checkify.check(x.sum() < 10, "too large")
        return jnp.tanh(x).sum()

    for explain in (jaxlift.deeplift(f), jax.jit(jaxlift.deeplift(f))):
        error, found = checkify.checkify(explain)(X, 10 + R)
        assert error.get() is None
        close(found.sum(), jnp.tanh(X).sum() - jnp.tanh(10 + R).sum())
        assert "too large" in checkify.checkify(explain)(10 + X, R)[0].get()
