"""Layers of unmodified models, by name scope; tags inside control flow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jaxlift
from jaxlift import layers

KEY_X, KEY_R, KEY_P = jax.random.split(jax.random.key(3), 3)
PAGE = Path(__file__).parents[1] / "docs" / "targets_and_layers.md"


def close(a, b, tolerance=2e-6):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def points(shape):
    return jax.random.normal(KEY_X, shape), jax.random.normal(KEY_R, shape)


# ------------------------------------------------- models of the libraries, unmodified


class Model(NamedTuple):
    """A model, one of its scopes, and that layer by the library's own means."""

    f: object
    shape: tuple
    scope: str
    layer: object


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.relu(nn.Dense(4)(x))


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3,))(x))
        x = nn.remat(Block)(name="block")(x)
        return nn.Dense(3)(x.mean(0))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.GRUCell(4))(x)[-1])


def linen(module, shape, scope, *path):
    params = module.init(KEY_P, jnp.zeros(shape))

    def layer(x):
        _, kept = module.apply(params, x, capture_intermediates=True)
        for name in path:
            kept = kept[name] if name in kept else kept["intermediates"][name]
        return kept["__call__"][0]

    return Model(lambda x: module.apply(params, x), shape, scope, layer)


def equinox_mlp():
    model = eqx.nn.MLP(4, 3, 5, 2, key=KEY_P)
    first, second, _ = model.layers
    layer = lambda x: second(jax.nn.relu(first(x)))
    return Model(eqx.filter_jit(model), (4,), "eqx.nn.Linear[1]", layer)


def equinox_cnn():
    conv = eqx.nn.Conv1d(2, 3, 3, key=KEY_P)
    head = eqx.nn.Linear(12, 3, key=KEY_P)
    parts = [conv, eqx.nn.Lambda(jax.nn.gelu), eqx.nn.Lambda(jnp.ravel), head]
    return Model(eqx.nn.Sequential(parts), (2, 6), "eqx.nn.Conv", conv)


def haiku(net, shape, scope, module_name):
    net = hk.without_apply_rng(hk.transform(net))
    params = net.init(KEY_P, jnp.zeros(shape))
    wanted = (module_name, "__call__")

    def layer(x):
        kept = []

        def keep(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if (context.module.module_name, context.method_name) == wanted:
                kept.append(y)
            return y

        with hk.intercept_methods(keep):
            net.apply(params, x)
        return kept[0]

    return Model(lambda x: net.apply(params, x), shape, scope, layer)


def haiku_mlp(x):
    return hk.nets.MLP([5, 4, 3])(x)


def keras_mlp():
    keras.utils.set_random_seed(0)
    inputs = keras.layers.Input((4,))
    hidden = keras.layers.Dense(5, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    trained = [v.value for v in model.trainable_variables]

    def f(x):
        return model.stateless_call(trained, [], x[None], training=False)[0][0]

    layer = keras.Model(inputs, hidden)
    return Model(
        f, (4,), "hidden", lambda x: layer.stateless_call(trained[:2], [], x[None])[0]
    )


MODELS = {
    "linen": lambda: linen(CNN(), (6, 2), "Conv_0", "Conv_0"),
    "linen, in remat": lambda: linen(CNN(), (6, 2), "block", "block"),
    "linen, recurrent": lambda: linen(Recurrent(), (5, 2), "RNN_0", "RNN_0"),
    "equinox, in jit": equinox_mlp,
    "equinox": equinox_cnn,
    "haiku": lambda: haiku(haiku_mlp, (4,), "linear_0", "mlp/~/linear_0"),
    "keras": keras_mlp,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_layer_of_an_unmodified_model(name):
    f, shape, scope, layer = MODELS[name]()
    x, r = points(shape)
    g = layers.tagged(f, scope)
    value = jaxlift.intermediate(g, scope)

    @jax.jit
    def evaluate(x, r):
        c = jaxlift.deeplift(g, target=1, at=scope)(x, r)
        return c, f(x), f(r), value(x), layer(x)

    c, fx, fr, found, expected = evaluate(x, r)
    close(found, expected)
    # All paths lead through the layer.
    close(c.sum(), fx[1] - fr[1], 1e-5)


def test_contributions_at_a_layer_are_those_of_the_rest_of_the_model():
    model = eqx.nn.MLP(4, 3, 5, 2, activation=jnp.tanh, key=KEY_P)
    x, r = points((4,))
    first, second, third = model.layers
    rest = lambda z: third(jnp.tanh(second(jnp.tanh(z))))
    g = layers.tagged(model, "eqx.nn.Linear[0]")
    at = jax.jit(jaxlift.deeplift(g, target=0, at="eqx.nn.Linear[0]"))(x, r)
    close(at, jax.jit(jaxlift.deeplift(rest, target=0))(first(x), first(r)))


def test_a_path_around_the_layer_is_missing_from_its_contributions():
    f, shape, *_ = MODELS["linen, in remat"]()
    x, r = points(shape)
    inner = layers.tagged(f, "block/Dense_0", "block")
    names = ("block", "block/Dense_0")
    c = jax.jit(jaxlift.deeplift(inner, target=1, at=names))(x, r)
    change = (f(x) - f(r))[1]
    close(c["block"].sum(), change, 1e-5)
    assert abs(c["block/Dense_0"].sum() - change) > 1e-2


@pytest.mark.parametrize("name", ["linen", "linen, recurrent", "equinox, in jit"])
def test_every_scope_that_is_listed_can_be_asked_for(name):
    f, shape, *_ = MODELS[name]()
    x, _ = points(shape)
    listed = layers.scopes(f)(x)
    assert len(listed) >= 4
    for scope, values in listed.items():
        several = [f"{scope}.{k}" for k in range(len(values))]
        tags = several if len(values) > 1 else [scope]
        for tag, value in zip(tags, values, strict=True):
            h = jaxlift.intermediate(layers.tagged(f, scope), tag)
            found = jax.eval_shape(h, x)
            looped = found.shape[len(found.shape) - len(value.shape) :]
            assert looped == value.shape and found.dtype == value.dtype


# ----------------------------------------------------------- what a scope stands for

NET = jax.named_scope("net")
W = jax.random.normal(KEY_P, (3, 3))


@jax.named_scope("layer")
def layer(x):
    return jnp.tanh(x @ W)


def in_order(x):
    return layer(layer(x) * 2).sum()


@jax.named_scope("cell")
def cell(c, h):
    """Two values leave, and the second is made of the first."""
    c = jnp.tanh(c @ W + h)
    return c, jax.nn.relu(c * 2)


def names_of(f, *args):
    return list(layers.scopes(f)(*args))


def test_scopes_entered_several_times_are_numbered_in_order():
    x, _ = points((3,))
    assert names_of(in_order, x) == ["layer[0]", "layer[1]"]
    g = layers.tagged(in_order, "layer[0]", "layer[1]")
    first = jnp.tanh(x @ W)
    close(jaxlift.intermediate(g, "layer[0]")(x), first)
    close(jaxlift.intermediate(g, "layer[1]")(x), jnp.tanh(2 * first @ W))


def test_a_scope_may_be_called_as_if_it_were_numbered():
    x, _ = points((3,))
    own = jax.named_scope("layer[1]")(jnp.sin)
    f = lambda x: own(own(NET(own)(x)) * 2).sum()
    assert names_of(f, x) == ["net", "net/layer[1]", "layer[1][0]", "layer[1][1]"]
    g = layers.tagged(f, *names_of(f, x))
    close(jaxlift.intermediate(g, "net/layer[1]")(x), jnp.sin(x))
    close(jaxlift.intermediate(g, "layer[1][0]")(x), jnp.sin(jnp.sin(x)))


def test_entries_with_nothing_between_them_count_as_one():
    x, _ = points((3,))
    twice = lambda x: layer(layer(x)).sum()
    assert names_of(twice, x) == ["layer"]
    g = layers.tagged(twice, "layer")
    close(jaxlift.intermediate(g, "layer")(x), jnp.tanh(jnp.tanh(x @ W) @ W))


def test_a_scope_is_told_by_the_end_of_its_path():
    x, _ = points((3,))
    a, b = jax.named_scope("a"), jax.named_scope("b")
    f = lambda x: a(lambda x: layer(x) * 3)(x) + b(lambda x: layer(x) - 1)(x)
    assert names_of(f, x) == ["a", "a/layer", "b", "b/layer"]
    assert names_of(NET(f), x)[:3] == ["net", "net/a", "net/a/layer"]
    for g in (f, NET(f), jax.jit(f), NET(jax.jit(f))):
        tagged = layers.tagged(g, "b/layer", "layer[0]", "a")
        close(jaxlift.intermediate(tagged, "a")(x), 3 * jnp.tanh(x @ W))
        close(jaxlift.intermediate(tagged, "b/layer")(x), jnp.tanh(x @ W))


def test_a_scope_inside_one_of_the_same_name():
    x, _ = points((3,))
    f = NET(lambda x: NET(jnp.tanh)(x) * 2)
    assert names_of(f, x) == ["net", "net/net"]
    g = layers.tagged(f, "net", "net/net")
    close(jaxlift.intermediate(g, "net")(x), 2 * jnp.tanh(x))
    close(jaxlift.intermediate(g, "net/net")(x), jnp.tanh(x))


@pytest.mark.parametrize("order", [("net", "layer"), ("layer", "net")])
@pytest.mark.parametrize("composed", [False, True])
def test_two_scopes_that_end_with_the_same_value(order, composed):
    x, r = points((3,))
    f = lambda x: NET(lambda x: layer(x * x))(x).sum()
    g = layers.tagged(f, *order)
    if composed:
        g = layers.tagged(layers.tagged(f, order[0]), order[1])
    c = jax.jit(jaxlift.deeplift(g, at=order))(x, r)
    for name in order:
        close(c[name], jnp.tanh(x * x @ W) - jnp.tanh(r * r @ W))


def test_a_tag_stays_inside_the_scopes_around_its_layer():
    x, _ = points((3,))
    f = NET(lambda x: layer(x) * 2)
    g = layers.tagged(f, "layer")
    assert names_of(g, x) == names_of(f, x) == ["net", "net/layer"]
    close(jaxlift.intermediate(layers.tagged(g, "net"), "net")(x), f(x))


def test_several_values_that_leave_are_kept_apart():
    x, r = points((3,))

    def f(x):
        c, h = cell(x, 2 * x)
        return (c * W[0] + h * W[1]).sum()

    (shapes,) = layers.scopes(f)(x).values()
    assert [s.shape for s in shapes] == [(3,), (3,)]
    g = layers.tagged(f, "cell")
    c = jax.jit(jaxlift.deeplift(g, at=("cell.0", "cell.1")))(x, r)
    (c1, h1), (c0, h0) = cell(x, 2 * x), cell(r, 2 * r)
    # What the first gives to the second, inside, is counted once: in the second.
    close(c["cell.0"], W[0] * (c1 - c0))
    close(c["cell.1"], W[1] * (h1 - h0))
    close(c["cell.0"].sum() + c["cell.1"].sum(), f(x) - f(r), 1e-5)


def test_integers_that_leave_are_not_values_to_attribute_to():
    @jax.named_scope("pick")
    def pick(x):
        return x * 2, jnp.argmax(x)

    x, _ = points((3,))
    f = lambda x: (lambda y, k: y * (k > 0))(*pick(x)).sum()
    assert [len(values) for values in layers.scopes(f)(x).values()] == [1]


# --------------------------------------------------------------------- as a transform


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, NET])
def test_it_composes_with_transforms_of_the_function(wrap):
    x, r = points((3,))
    g = layers.tagged(wrap(in_order), "layer[0]")
    c = jaxlift.deeplift(g, at="layer[0]")
    expected = jaxlift.deeplift(lambda h: layer(h * 2).sum())(layer(x), layer(r))
    close(jax.jit(c)(x, r), expected)


def test_vmap_inside_and_outside():
    x, r = points((2, 3))
    each = jax.vmap(
        jaxlift.deeplift(layers.tagged(in_order, "layer[0]"), at="layer[0]")
    )
    mapped = lambda x: jax.vmap(in_order)(x).sum()
    whole = jaxlift.deeplift(layers.tagged(mapped, "layer[0]"), at="layer[0]")
    close(jax.jit(each)(x, r), jax.jit(whole)(x, r))


def test_parameters_may_be_traced():
    x, r = points((3,))

    def explain(w):
        f = lambda x: jax.named_scope("dense")(lambda x: x @ w)(x).sum()
        return jaxlift.deeplift(layers.tagged(f, "dense"), at="dense")(x, r)

    ws = jnp.stack([W, 2 * W])
    close(jax.jit(jax.vmap(explain))(ws), jnp.stack([(x - r) @ w for w in ws]))


def test_trees_keywords_and_several_outputs_pass_through():
    f = lambda p, *, k: {"y": layer(p["x"]) * k, "n": 3}
    x, _ = points((3,))
    found = layers.tagged(f, "layer")({"x": x}, k=2.0)
    assert found["n"] == 3
    close(found["y"], 2 * jnp.tanh(x @ W))


def test_rules_by_scope_still_find_their_scope():
    x, r = points((3,))
    rules = jaxlift.scoped(jaxlift.RESCALE, {"layer": jaxlift.GRADIENT})
    g = layers.tagged(in_order, "layer[0]")
    explain = lambda f: jax.jit(jaxlift.multipliers(f, rules=rules))(x, r)
    close(explain(g), jax.grad(in_order)(x))
    close(explain(g), explain(in_order))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 5, rngs=rngs)
        self.last = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x)))


def test_nnx_opens_no_scope_but_one_can_be_put_around_a_layer():
    model = NnxNet(nnx.Rngs(0))
    x, r = points((4,))
    assert not layers.scopes(model)(x)
    f = nnx.clone(model)
    f.first = jax.named_scope("first")(model.first)
    g = layers.tagged(f, "first")
    close(jaxlift.intermediate(g, "first")(x), model.first(x))
    c = jax.jit(jaxlift.deeplift(g, target=1, at="first"))(x, r)
    close(c.sum(), (model(x) - model(r))[1], 1e-5)


def test_equinox_layers_with_nothing_between_them_get_a_scope_of_their_own():
    model = eqx.nn.MLP(4, 3, 5, 1, activation=lambda x: x, key=KEY_P)
    x, _ = points((4,))
    assert "eqx.nn.MLP/eqx.nn.Linear" in names_of(model, x)
    f = eqx.tree_at(lambda m: m.layers[0], model, replace_fn=jax.named_scope("first"))
    value = jaxlift.intermediate(layers.tagged(f, "first"), "first")
    close(value(x), model.layers[0](x))


# --------------------------------------------------------------------------- errors


def in_while(x):
    step = lambda state: (state[0] - 1, layer(state[1]))
    return lax.while_loop(lambda state: state[0] > 0, step, (3, x))[1].sum()


def in_cond(x):
    return lax.cond(W[0, 0] > 0, layer, lambda x: x, x).sum()


ERRORS = {
    "absent": (in_order, ("q",), r"'q'.*\['layer\[0\]', 'layer\[1\]'\]"),
    "no whole name": (in_order, ("ayer[0]",), "nothing leaves"),
    "several": (in_order, ("layer",), r"write one of \['layer\[0\]', 'layer\[1\]'\]"),
    "number": (in_order, ("layer[2]",), r"'layer\[2\]'.*write one of"),
    "none at all": (lambda x: x.sum(), ("a",), "present: none.*flax.nnx"),
    "nothing leaves": (lambda x: (layer(x), x.sum())[1], ("layer",), "nothing leaves"),
    "a while loop": (in_while, ("layer",), "'layer'.*body of while.*around it"),
    "a branch": (in_cond, ("layer",), "'layer'.*body of cond.*around it"),
}


@pytest.mark.parametrize("f, scopes, message", ERRORS.values(), ids=ERRORS)
def test_errors_name_the_scopes_that_are_there(f, scopes, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(layers.tagged(f, *scopes), jnp.ones(3))


def test_no_function():
    for transform in (layers.scopes, layers.tagged):
        with pytest.raises(TypeError, match="int: 3"):
            transform(3)


# --------------------------------------------------------- tags inside control flow

STEPS = (2, 3)


def tagged_step(c, w, name):
    return checkpoint_name(jnp.tanh(c * w + 0.5), name)


def nested(inner=lambda f: f, reverse=False):
    """A scan in a scan; each state is tagged."""

    @inner
    def row(c, ws):
        return lax.scan(
            lambda c, w: (tagged_step(c, w, "state"), None), c, ws, reverse=reverse
        )

    def f(x):
        weights = jnp.broadcast_to(W.ravel()[:6].reshape(*STEPS, 1), (*STEPS, 3))
        return (lax.scan(row, x, weights, reverse=reverse)[0] * W[0]).sum()

    return f


def unrolled(reverse=False):
    """The same with a tag of its own for each state."""
    order = (lambda n: range(n)[::-1]) if reverse else range

    def f(x):
        weights = W.ravel()[:6].reshape(STEPS)
        for i in order(STEPS[0]):
            for j in order(STEPS[1]):
                x = tagged_step(x, weights[i, j], f"{i},{j}")
        return (x * W[0]).sum()

    return f


LOOPS = {
    "nested": (nested(), False),
    "reversed": (nested(reverse=True), True),
    "remat in scan": (nested(inner=jax.checkpoint), False),
    "scan in remat": (jax.checkpoint(nested(inner=jax.jit)), False),
}


@pytest.mark.parametrize("f, reverse", LOOPS.values(), ids=LOOPS)
def test_tags_in_nested_loops_come_stacked(f, reverse):
    x, r = points((3,))
    names = tuple(f"{i},{j}" for i in range(STEPS[0]) for j in range(STEPS[1]))

    @jax.jit
    def evaluate(x, r):
        at = jaxlift.deeplift(f, at="state")(x, r)
        by_name = jaxlift.deeplift(unrolled(reverse), at=names)(x, r)
        return at, jaxlift.intermediate(f, "state")(x), by_name

    at, values, by_name = evaluate(x, r)
    assert at.shape == values.shape == (*STEPS, 3)
    close(at.reshape(6, 3), jnp.stack([by_name[name] for name in names]))
    state, weights = np.asarray(x), np.asarray(W).ravel()[:6]
    expected = np.zeros((6, 3))
    for k in range(6)[::-1] if reverse else range(6):
        expected[k] = state = np.tanh(state * weights[k] + 0.5)
    close(values.reshape(6, 3), expected)


def test_tags_in_loops_under_vmap():
    x, r = points((2, 3))
    explain = jaxlift.deeplift(nested(jax.checkpoint), at="state")
    together = jax.jit(jax.vmap(explain))(x, r)
    assert together.shape == (2, *STEPS, 3)
    close(together[1], jax.jit(explain)(x[1], r[1]))


def test_a_haiku_lstm_step_by_step():
    def net(x):
        core = hk.LSTM(4)
        hidden, _ = hk.dynamic_unroll(core, x, core.initial_state(None))
        return hk.Linear(3)(hidden[-1])

    f, shape, scope, _ = haiku(net, (5, 2), "lstm", "lstm")
    x, r = points(shape)
    listed = layers.scopes(f)(x)
    assert {"lstm", "lstm/linear", "linear"} < listed.keys()
    assert len(listed["lstm"]) == 2
    g = layers.tagged(f, scope)
    names = ("lstm.0", "lstm.1")
    c = jax.jit(jaxlift.deeplift(g, target=0, at=names))(x, r)
    assert c["lstm.0"].shape == (5, 4)
    # After the last step only the hidden state counts, and all leads through it.
    close(c["lstm.0"][-1], jnp.zeros(4))
    close(c["lstm.1"][-1].sum(), (f(x) - f(r))[0], 1e-5)


def test_the_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) >= 5
    names = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
