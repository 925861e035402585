"""`custom_rule`: the user's rule counts, wherever the function is called from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

import jaxlift

X, R = jnp.array([1.0, 2.0, -3.0]), jnp.array([0.5, -1.0, 0.0])
W = jnp.array([[1.0, -2.0], [0.5, 1.0], [-1.0, 0.3]])


@jaxlift.custom_rule
def cube(x):
    """A step that JAX cannot look into."""
    on_host = lambda x: np.asarray(x) ** 3
    return jax.pure_callback(on_host, x, x, vmap_method="expand_dims")


@cube.defrule
def _cube_rule(ct, inputs, references):
    (x,), (r,) = inputs, references
    return (ct * (x * x + x * r + r * r),)


def open_cube(x):
    """The same as JAX sees it, explained by `integer_pow`'s divided difference."""
    return x**3


@jaxlift.custom_rule
def doubled(tree, scale):
    """A kernel, of a tree and an integer."""
    kernel = lambda x, y: y.__setitem__(..., 2 * jnp.tanh(x[...]))
    call = pl.pallas_call(
        kernel, jax.ShapeDtypeStruct(tree["a"].shape, tree["a"].dtype), interpret=True
    )
    return call(tree["a"]) * scale


@doubled.defrule
def _as_plain(ct, inputs, references):
    plain = lambda tree: 2 * jnp.tanh(tree["a"]) * inputs[1]
    return jaxlift.vjp(plain, inputs[0], references[0])[2](ct), None


def scanned(cube):
    def step(carry, x):
        carry = cube(0.2 * carry + x)
        return carry, carry

    return lambda x: lax.scan(step, jnp.zeros(()), 0.3 * x)[1].sum()


USES = {
    "alone": lambda cube: lambda x: jnp.tanh(cube(0.3 * x)).sum(),
    "jit": lambda cube: lambda x: jax.jit(cube)(x).prod(),
    "vmap": lambda cube: lambda x: jax.vmap(cube)(jnp.tanh(x))[1],
    "vmap, axis 1": lambda cube: (
        lambda x: jax.vmap(cube, 1, 1)(x[:, None] * x @ W).sum()
    ),
    "vmap, fixed": lambda cube: lambda x: (jax.vmap(lambda w: cube(x) * w, 1)(W)).sum(),
    "scan": scanned,
    "remat": lambda cube: lambda x: jax.checkpoint(cube)(x).sum(),
    "activation before": lambda cube: lambda x: cube(jax.nn.relu(x)).sum(),
}


@pytest.mark.parametrize("table", ["RESCALE", "REVEAL_CANCEL", "GENOMICS_DEFAULT"])
@pytest.mark.parametrize("name", USES)
def test_it_is_explained_as_what_it_computes(name, table):
    rules = getattr(jaxlift, table)
    ours, plain = USES[name](cube), USES[name](open_cube)
    explain = jax.jit(jaxlift.deeplift(ours, rules=rules))
    contributions = explain(X, R)
    np.testing.assert_allclose(contributions.sum(), ours(X) - ours(R), rtol=1e-5)
    if table == "RESCALE":
        expected = jaxlift.deeplift(plain)(X, R)
        np.testing.assert_allclose(contributions, expected, rtol=1e-5, atol=1e-5)


def test_maps_over_inputs_and_references():
    explain = jaxlift.deeplift(USES["scan"](cube))
    rows = jnp.stack([X, 0.5 * X, R])
    mapped = jax.vmap(explain, in_axes=(0, None))(rows, R)
    looped = jnp.stack([explain(row, R) for row in rows])
    np.testing.assert_allclose(mapped, looped, rtol=1e-6, atol=1e-7)
    mapped = jax.vmap(explain, in_axes=(None, 0))(X, rows)
    looped = jnp.stack([explain(X, row) for row in rows])
    np.testing.assert_allclose(mapped, looped, rtol=1e-6, atol=1e-7)


def test_a_kernel_is_explained_as_its_plain_function():
    f = lambda x: jnp.square(doubled({"a": x}, 3)).sum()
    contributions = jaxlift.deeplift(f)(X, R)
    plain = lambda x: jnp.square(2 * jnp.tanh(x) * 3).sum()
    np.testing.assert_allclose(contributions, jaxlift.deeplift(plain)(X, R), rtol=1e-6)
    with pytest.raises(jaxlift.UnsupportedPrimitiveError, match="pallas_call"):
        jaxlift.deeplift(lambda x: doubled.fun({"a": x}, 3).sum())(X, R)


ELSEWHERE = {
    "value": lambda f: f(X, W),
    "jit": lambda f: jax.jit(f)(X, W),
    "gradient": lambda f: jax.grad(lambda x: f(x, W).sum())(X),
    "forward mode": lambda f: jax.jacfwd(lambda w: f(X, w))(W),
    "vmap": lambda f: jax.vmap(lambda k: f(X, W * k))(X),
    "GRADIENT": lambda f: jaxlift.multipliers(f, rules=jaxlift.GRADIENT, target=0)(
        X, W, 0.0
    ),
}


@pytest.mark.parametrize("use", ELSEWHERE)
def test_elsewhere_it_is_the_function_that_it_was(use):
    plain = lambda x, w: jnp.tanh(x @ w)
    ours = ELSEWHERE[use](jaxlift.custom_rule(plain))
    np.testing.assert_allclose(ours, ELSEWHERE[use](plain), rtol=1e-6)


def test_parameters_of_an_enclosing_jit():
    @jax.jit
    def contributions(w, x, r):
        kernel = jaxlift.custom_rule(lambda x: jax.nn.gelu(x @ w))

        @kernel.defrule
        def rule(ct, inputs, references):
            return jaxlift.vjp(lambda a: kernel.fun(*a), inputs, references)[2](ct)

        return jaxlift.deeplift(lambda x: kernel(x).prod())(x, r)

    expected = jaxlift.deeplift(lambda x: jax.nn.gelu(x @ W).prod())(X, R)
    np.testing.assert_allclose(contributions(W, X, R), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "error", "words"),
    [
        (None, jaxlift.UnsupportedPrimitiveError, "'double' has no rule"),
        (lambda ct, x, r: ct, TypeError, "one for each of its 1 argument"),
        (lambda ct, x, r: (ct, ct), TypeError, "one for each of its 1 argument"),
        (lambda ct, x, r: (ct.sum(),), TypeError, r"shapes \[\(3,\)\], not \[\(\)\]"),
    ],
)
def test_errors_name_the_function(rule, error, words):
    def double(x):
        return 2 * x

    own = jaxlift.custom_rule(double)
    own.rule = rule
    with pytest.raises(error, match=words):
        jaxlift.deeplift(lambda x: own(x).sum())(X, R)


def test_what_is_no_function():
    with pytest.raises(TypeError, match="expected a function"):
        jaxlift.custom_rule(3)
