"""Agreement with scores that other people's software computed, on small networks.

The oracles, in `shared/` beside the repository, are DeepLIFT's original implementation,
Captum, SHAP and tangermeme, in float64. Where one of them is known to differ from us,
the test says where, and by which rule: it computes the scores of that rule, and finds
the stored ones equal to them. No tolerance is widened for it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from oracle import Case, has_data, oracle, real, stems

import jaxlift

GAP = 1e-12  # completeness in float64
EXACT = 1e-10  # rounding in float64, and sums in another order
PSEUDOCOUNT = 1e-6  # the original's RevealCancel adds 1e-7 to a part that vanished
CAPTUM, OTHERS = 1e-8, 2e-6  # below 1e-10, and 1e-6, they take the gradient
WRONG = 1e-6  # a peer's own completeness gap that is no rounding

MAX_POOLS = "maxpool1d", "maxpool2d", "MaxPool1d", "MaxPool2d"
GLOBAL_MAX_POOLS = "globalmaxpool1d", "globalmaxpool2d"
MEAN_POOLS = "avgpool1d", "avgpool2d", "globalavgpool1d", "globalavgpool2d"
SATURATING = "sigmoid", "tanh", "prelu"
CAPTUM_IGNORES = {"GELU", "SELU", "SiLU", "PReLU"}  # they get the plain gradient
SHAP_IGNORES = {"SiLU", "PReLU"}
NO_ACTIVATION = {"Linear", "Conv1d", "Conv2d", "Flatten", "Identity", "Dropout"}

float64 = pytest.mark.usefixtures("x64")


# ---------------------------------------------------------------------- what we compute


def explain(case, xs, references, *, rules=jaxlift.RESCALE, replaced=None):
    """Multipliers and contributions of a batch, every example to its own reference.

    Two tuples with an array (targets, examples, ...) for each input of the network.
    """
    argnums = tuple(range(len(xs)))

    def f(*inputs):
        return case.outputs(*(x[None] for x in inputs), replaced=replaced)[0]

    def one(xs, references):
        def of(target):
            choose = lambda y: y[target]
            g = jaxlift.multipliers(f, argnums, rules=rules, target=choose)
            return g(*xs, references)

        return jax.vmap(of)(jnp.asarray(case.targets))

    each = jax.jit(jax.vmap(one, out_axes=1))
    multipliers = tuple(np.asarray(m) for m in each(xs, references))
    moves = [x - r for x, r in zip(xs, references, strict=True)]
    return multipliers, tuple(m * d for m, d in zip(multipliers, moves, strict=True))


def shap(case, x, references, *, own=False, replaced=None, **options):
    """Mean contributions over shared references, or over each example's own."""

    def f(x):
        return case.outputs(x[None], replaced=replaced)[0]

    def of(target):
        scores = jaxlift.deeplift_shap(f, target=lambda y: y[target], **options)
        return jax.vmap(scores, in_axes=(0, 0 if own else None))(x, references)

    return jax.device_get(jax.jit(jax.vmap(of))(jnp.asarray(case.targets)))


def assert_complete(case, xs, references, contributions, bound=GAP, roundings=0):
    """Contributions add up, for every target and example.

    The gap is bounded relative to the two outputs and 1; with `roundings` also by that
    many of the sum of the absolute contributions, where these cancel.
    """
    y, y0 = (np.asarray(case.outputs(*at)).T for at in (xs, references))
    y, y0 = (np.float64(at[case.targets]) for at in (y, y0))
    c = [np.float64(c).reshape(*y.shape, -1) for c in contributions]
    gap = np.abs(sum(c.sum(2) for c in c) - (y - y0))
    allowed = bound * np.maximum(1, np.maximum(np.abs(y), np.abs(y0)))
    eps = np.finfo(contributions[0].dtype).eps
    rounding = roundings * eps * sum(np.abs(c).sum(2) for c in c)
    assert (gap / np.maximum(allowed, rounding)).max() <= 1


def equal(actual, stored, tolerance):
    np.testing.assert_allclose(actual, stored, rtol=0, atol=tolerance)


def any_of(condition):
    """Whether it holds for any element of each example."""
    condition = np.asarray(condition)
    return condition.reshape(len(condition), -1).any(1)


# ---------------------------------------------------------------- the original DeepLIFT


def originals(**modes):
    """The original's cases of a mode, as parameters, with the table for it.

    The name of a table that jaxlift does not have has no cases, until it has one.
    """
    return [
        pytest.param(stem, getattr(jaxlift, table), id=stem)
        for table, mode in modes.items()
        if hasattr(jaxlift, table)
        for stem in stems("original", f"*__{mode}")
    ]


def pairs(case):
    """Inputs and references, all reference sets one after another."""
    sets = case.sidecar["reference_sets"]
    xs = tuple(np.concatenate([case.arrays[f"x.{n}"]] * len(sets)) for n in case.inputs)
    references = tuple(
        np.concatenate([case.arrays[f"ref.{n}.{s}"] for s in sets]) for n in case.inputs
    )
    return xs, references


def has_moved(xs, references):
    """Which examples are not their own reference."""
    moves = [any_of(x != r) for x, r in zip(xs, references, strict=True)]
    return np.any(moves, axis=0)


def stored_scores(case, kind):
    """The original's, in the form of `explain` for all `pairs`."""
    sets = case.sidecar["reference_sets"]
    return [
        np.concatenate([case.arrays[f"f64.{kind}.{n}.{s}"] for s in sets], 1)
        for n in case.inputs
    ]


def with_its_pools(case, rules):
    pooled = case.of_type(*MAX_POOLS, *GLOBAL_MAX_POOLS)
    return rules | jaxlift.WINNER_AT_INPUT if pooled else rules


def explained(case, rules):
    """Ours for all `pairs`, with the original's rule for max pools."""
    xs, references = pairs(case)
    rules = with_its_pools(case, rules)
    return xs, references, *explain(case, xs, references, rules=rules)


def winners(layer, x, y):
    """The cells that equal a global maximum, and the axes it is taken over."""
    first = 2 if layer.get("data_format") == "channels_first" else 1
    axes = tuple(range(first, first + x.ndim - 2))
    return np.asarray(x == np.expand_dims(y, axes)), axes


def tied(case, xs):
    """Examples in which two cells tie for a global maximum at the input."""
    at_x = case.values(*xs)
    found = np.zeros(len(xs[0]), bool)
    for layer in case.of_type(*GLOBAL_MAX_POOLS):
        wins, axes = winners(layer, at_x[layer["inputs"][0]], at_x[layer["name"]])
        found |= any_of(wins.sum(axes) > 1)
    return found


def rescale_of_original(case, xs, references):
    """The original's multipliers under Rescale, and where its slopes are not ours.

    They are the gradient of a network in which every activation is a line through its
    value at the input, with the quotient of the differences as its slope. But where the
    activation's input moves by less than 1e-7, its slope is the derivative at its
    *output* at the reference; and all cells that tie for a global maximum win it.
    """
    at_x, at_r = case.values(*xs), case.values(*references)
    lines, other = {}, tied(case, xs)
    for layer in case.of_type("relu", *SATURATING):
        name, (operand,) = layer["name"], layer["inputs"]
        x, r, y, y0 = at_x[operand], at_r[operand], at_x[name], at_r[name]

        def derivative(z, name=name):
            z = jnp.asarray(z)
            return jax.jvp(case.functions[name], (z,), (jnp.ones_like(z),))[1]

        still = np.abs(x - r) < 1e-7
        slope = jnp.where(still, derivative(y0), (y - y0) / np.where(still, 1, x - r))
        other |= any_of(still & (slope != derivative(r)))
        lines[name] = lambda _, z, x=x, y=y, slope=slope: y + slope * (z - x)
    for layer in case.of_type(*GLOBAL_MAX_POOLS):
        x, y = at_x[layer["inputs"][0]], at_x[layer["name"]]
        wins, axes = winners(layer, x, y)
        lines[layer["name"]] = lambda _, z, x=x, y=y, wins=wins, axes=axes: (
            y + (wins * (z - x)).sum(axes)
        )

    def of(target):
        total = lambda *xs: case.outputs(*xs, replaced=lines)[:, target].sum()
        return jax.grad(total, tuple(range(len(xs))))(*map(jnp.asarray, xs))

    return jax.device_get(jax.vmap(of)(jnp.asarray(case.targets))), other


@float64
@pytest.mark.parametrize("stem", stems("original"))
def test_network_of_original(stem):
    """The sidecar is understood: its network has the stored outputs."""
    case = oracle("original", stem)
    dtype, tolerance = ("f64", 1e-13) if case.stored("f64") else ("f32", 3e-6)
    xs, references = pairs(case)
    for at, which in ((xs, "x"), (references, "ref")):
        stored = case.stored(f"{dtype}.target_value_{which}")
        stored = np.concatenate([stored[s] for s in case.sidecar["reference_sets"]])
        equal(case.outputs(*at), stored, tolerance)


@float64
@pytest.mark.parametrize("stem, rules", originals(RESCALE="Rescale"))
def test_rescale(stem, rules):
    case = oracle("original", stem)
    xs, references, multipliers, contributions = explained(case, rules)
    if not case.of_type(*MAX_POOLS, *GLOBAL_MAX_POOLS):
        assert_complete(case, xs, references, contributions)
    by_its_rule, other = rescale_of_original(case, xs, references)
    moved = has_moved(xs, references)
    for m, c, m_its, m_stored, c_stored in zip(
        multipliers,
        contributions,
        by_its_rule,
        stored_scores(case, "multipliers"),
        stored_scores(case, "contribs"),
        strict=True,
    ):
        equal(m[:, ~other], m_stored[:, ~other], EXACT)
        equal(c[:, ~(other & moved)], c_stored[:, ~(other & moved)], EXACT)
        equal(m_its, m_stored, EXACT)
    if (at_rest := other & ~moved).any():  # we take the gradient there, it does not
        gradients, _ = explain(case, xs, references, rules=jaxlift.GRADIENT)
        for m, gradient, m_stored in zip(
            multipliers, gradients, stored_scores(case, "multipliers"), strict=True
        ):
            equal(m[:, at_rest], gradient[:, at_rest], 1e-13)
            assert (np.abs(m - m_stored)[:, at_rest] > EXACT).any()


@float64
@pytest.mark.parametrize("stem, rules", originals(RESCALE="Rescale"))
def test_deeplift(stem, rules):
    """As it is called most: one function, one target."""
    case = oracle("original", stem)
    xs, references = pairs(case)

    def f(*inputs):
        return case.outputs(*(x[None] for x in inputs))[0]

    argnums = tuple(range(len(xs)))
    options = dict(rules=with_its_pools(case, rules), target=case.targets[-1])
    one = jaxlift.deeplift(f, argnums, **options)
    contributions = jax.jit(jax.vmap(one))(*xs, references)
    _, other = rescale_of_original(case, xs, references)
    same = ~(other & has_moved(xs, references))
    stored = stored_scores(case, "contribs")
    for c, c_stored in zip(contributions, stored, strict=True):
        equal(c[same], c_stored[-1, same], EXACT)


@float64
@pytest.mark.parametrize("stem, rules", originals(RESCALE="Rescale"))
def test_rescale_at_layers(stem, rules):
    """The multipliers of the values inside, by `at`, for the stored first examples."""
    case = oracle("original", stem)
    chosen = case.sidecar["internals_reference_set"]
    stored = case.stored("f64.internal")
    if chosen is None:
        pytest.skip("no internal values are stored")
    rules = with_its_pools(case, rules)
    names = tuple(name for name in case.functions if f"{name}.act_x" in stored)
    tagged = {
        name: lambda layer, *operands, name=name: checkpoint_name(
            layer(*operands), name
        )
        for name in names
    }

    def f(*inputs):
        return case.outputs(*(x[None] for x in inputs), replaced=tagged)[0]

    def one(xs, references):
        options = dict(rules=rules, target=case.targets[0], at=names)
        argnums = tuple(range(len(xs)))
        return jaxlift.multipliers(f, argnums, **options)(*xs, references)

    count = len(stored[f"{names[0]}.act_x"])
    xs = tuple(case.arrays[f"x.{n}"][:count] for n in case.inputs)
    references = tuple(case.arrays[f"ref.{n}.{chosen}"][:count] for n in case.inputs)
    multipliers = jax.jit(jax.vmap(one))(xs, references)
    _, other = rescale_of_original(case, xs, references)
    for name in names:
        equal(multipliers[name][~other, 0], stored[f"{name}.pos_mxts"][~other], EXACT)


@float64
@pytest.mark.parametrize("stem, rules", originals(GRADIENT="Gradient"))
def test_gradient(stem, rules):
    same_as_multipliers(stem, rules)


@float64
@pytest.mark.parametrize(
    "stem, rules", originals(GUIDED_BACKPROP="GuidedBackprop", DECONVNET="DeconvNet")
)
def test_changed_gradient(stem, rules):
    """The original changes the backward pass of all activations, jaxlift relu's."""
    if oracle("original", stem).of_type(*SATURATING):
        pytest.skip("not all activations are relu")
    same_as_multipliers(stem, rules)


def same_as_multipliers(stem, rules):
    """The original's multipliers are ours; contributions are stored in float32 only."""
    case = oracle("original", stem)
    xs, references, multipliers, contributions = explained(case, rules)
    same = ~tied(case, xs)  # every tied cell gets the full multiplier of a global pool
    for x, r, m, c, stored in zip(
        xs,
        references,
        multipliers,
        contributions,
        stored_scores(case, "multipliers"),
        strict=True,
    ):
        equal(m[:, same], stored[:, same], EXACT)
        equal(c[:, same], (stored * (x - r))[:, same], EXACT)


@float64
@pytest.mark.parametrize(
    "stem, rules",
    originals(
        REVEAL_CANCEL="RevealCancel", GENOMICS_DEFAULT="DeepLIFT_GenomicsDefault"
    ),
)
def test_reveal_cancel(stem, rules):
    """Contributions; the original's multipliers hold a pseudocount where dx = 0."""
    case = oracle("original", stem)
    xs, references, _, contributions = explained(case, rules)
    if not case.of_type(*MAX_POOLS, *GLOBAL_MAX_POOLS):
        assert_complete(case, xs, references, contributions)
    same = ~(tied(case, xs) | cancelling(case, xs, references))
    assert same.any()
    for c, stored in zip(contributions, stored_scores(case, "contribs"), strict=True):
        equal(c[:, same], stored[:, same], PSEUDOCOUNT)


def cancelling(case, xs, references):
    """Examples with a mean whose cells move and which itself does not.

    The original takes the sign of its rounding error for the direction of its move.
    """
    at_x, at_r = case.values(*xs), case.values(*references)
    found = np.zeros(len(xs[0]), bool)
    for layer in case.of_type(*MEAN_POOLS):
        name, (operand,) = layer["name"], layer["inputs"]
        cells = jnp.asarray(at_x[operand] - at_r[operand])
        moves = case.functions[name](jnp.abs(cells))
        found |= any_of((moves > 1e-9) & (np.abs(at_x[name] - at_r[name]) < 1e-14))
    return found


# ------------------------------------------------------------ Captum, SHAP, tangermeme


def ignored(case, kinds):
    """Whether a peer does not know an activation and takes its gradient silently."""
    return bool({layer["type"] for layer in case.layers} & kinds)


def is_constant(references):
    """References with the same values at all positions: they tie pooled cells."""
    return ~any_of(np.ptp(references, axis=-1) != 0)


def first_cell_wins(case):
    """The layers of a network whose pools find the first cells larger, by a hair.

    Of cells that tie at the reference, the peers take the first, jaxlift the one that
    wins at the input.
    """

    def pool(layer, x):
        places = np.arange(np.prod(x.shape[2:])).reshape(x.shape[2:])
        return layer(x - 1e-10 * places)

    return {layer["name"]: pool for layer in case.of_type(*MAX_POOLS)}


def sets_of(case):
    """Reference sets, and inputs and references one set after another."""
    sets = case.stored("ref")
    x = np.concatenate([case.arrays["x"]] * len(sets))
    return list(sets), x, np.concatenate(list(sets.values()))


def joined(case, prefix, sets):
    return np.concatenate([case.arrays[f"{prefix}.{s}"] for s in sets], 1)


@float64
@pytest.mark.parametrize("stem", stems("torch"))
def test_network_of_torch(stem):
    """The sidecar is understood: its network has the stored outputs."""
    case = oracle("torch", stem)
    for key, stored in case.stored("pred_ref").items():
        equal(case.outputs(case.arrays[f"ref.{key}"]), stored, 1e-13)
    for key in ("x", "background"):
        equal(case.outputs(case.arrays[key]), case.arrays[f"pred_{key}"], 1e-13)
    if "perex_refs" in case.arrays:
        references, stored = case.arrays["perex_refs"], case.arrays["pred_perex_refs"]
        outputs = case.outputs(references.reshape(-1, *references.shape[2:]))
        equal(outputs.reshape(stored.shape), stored, 1e-13)


@float64
@pytest.mark.parametrize("stem", stems("torch"))
def test_captum(stem):
    case = oracle("torch", stem)
    sets, x, references = sets_of(case)
    pools = case.of_type(*MAX_POOLS)
    (m,), (c,) = explain(case, (x,), (references,))
    assert_complete(case, (x,), (references,), (c,))
    attr, multipliers, delta = (
        joined(case, f"captum_deeplift.{kind}", sets)
        for kind in ("attr", "multipliers", "delta")
    )
    if not ignored(case, CAPTUM_IGNORES) and not pools:
        equal(c, attr, CAPTUM)
        equal(m, multipliers, CAPTUM)
        return
    # Captum is wrong, and its own delta says so, wherever it is not as we are.
    moved = any_of(x != references)
    differs = np.abs(c - attr).max(axis=tuple(range(2, c.ndim))) > CAPTUM
    assert differs.any() and (np.abs(delta[differs]) > WRONG).all()
    if ignored(case, CAPTUM_IGNORES):
        assert differs[:, moved].all()
    # It has taken the gradient of what it did not know.
    kinds = {layer["type"] for layer in case.layers} - NO_ACTIVATION
    if pools and kinds <= {"ReLU", *MAX_POOLS}:
        rules = jaxlift.RESCALE | jaxlift.WINNER_AT_INPUT
    elif kinds <= CAPTUM_IGNORES:
        rules = jaxlift.GRADIENT
    else:
        return
    (m,), (c,) = explain(case, (x,), (references,), rules=rules)
    equal(c, attr, CAPTUM)
    equal(m, multipliers, CAPTUM)


def torch_cases(key):
    """Those that have an array, or arrays, of this name."""
    return [
        stem
        for stem in stems("torch")
        if any(k.split(".")[0] == key for k in oracle("torch", stem).arrays)
    ]


@float64
@pytest.mark.parametrize("stem", torch_cases("captum_clonefix_deeplift"))
def test_captum_with_pools_mended(stem):
    """An identity before each max pool makes Captum see it."""
    case = oracle("torch", stem)
    sets, x, references = sets_of(case)
    attr, multipliers = (
        joined(case, f"captum_clonefix_deeplift.{kind}", sets)
        for kind in ("attr", "multipliers")
    )
    _, (c,) = explain(case, (x,), (references,))
    assert_complete(case, (x,), (references,), (c,))
    same = ~is_constant(references)
    equal(c[:, same], attr[:, same], CAPTUM)
    assert (np.abs(c - attr)[:, ~same] > CAPTUM).any()
    (m,), (c,) = explain(case, (x,), (references,), replaced=first_cell_wins(case))
    equal(c, attr, CAPTUM)
    moved = x != references  # elsewhere it is a matter of rounding in Captum
    equal(np.where(moved, m, 0), np.where(moved, multipliers, 0), CAPTUM)


@float64
@pytest.mark.parametrize("stem", stems("torch"))
def test_shared_references(stem):
    """Captum's DeepLiftShap and SHAP's DeepExplainer."""
    case = oracle("torch", stem)
    x, references = case.arrays["x"], case.arrays["background"]
    c = shap(case, x, references, batch_size=3)
    y, y0 = (np.asarray(case.outputs(at))[:, case.targets] for at in (x, references))
    total = c.reshape(*c.shape[:2], -1).sum(2).T
    equal(total, y - y0.mean(0), GAP * max(1, np.abs(y).max(), np.abs(y0).max()))
    captum = case.arrays["captum_deepliftshap.attr"]
    values = case.arrays["shap_deep.values"]
    pools = case.of_type(*MAX_POOLS)
    if ignored(case, CAPTUM_IGNORES) or pools:
        delta = np.abs(case.arrays["captum_deepliftshap.delta"])
        assert delta.max() > WRONG and np.abs(c - captum).max() > WRONG
    else:
        equal(c, captum, CAPTUM)
    if pools:
        if is_constant(references).any():
            assert np.abs(c - values).max() > OTHERS
        c = shap(case, x, references, replaced=first_cell_wins(case))
        equal(c, case.arrays["captum_clonefix_deepliftshap.attr"], CAPTUM)
    if ignored(case, SHAP_IGNORES):
        assert np.abs(case.arrays["shap_deep.additivity_gap"]).max() > WRONG
        assert np.abs(c - values).max() > WRONG
    else:
        equal(c, values, OTHERS)


@float64
@pytest.mark.parametrize("stem", torch_cases("perex_refs"))
def test_own_references(stem):
    """tangermeme, and Captum's DeepLiftShap, with shuffles of each sequence."""
    case = oracle("torch", stem)
    x, references = case.arrays["x"], case.arrays["perex_refs"]
    count = references.shape[1]
    (m,), (c,) = explain(
        case,
        (np.repeat(x, count, 0),),
        (references.reshape(-1, *references.shape[2:]),),
    )
    m, c = (v.reshape(len(v), *references.shape) for v in (m, c))
    equal(m, case.arrays["tangermeme.multipliers_each"], OTHERS)
    # What each letter e_i would contribute: the mean of sum_c m_c (e_i - reference)_c.
    hypothetical = (m - (m * references).sum(-2, keepdims=True)).mean(2)
    equal(hypothetical, case.arrays["tangermeme.hypothetical"], OTHERS)
    equal(hypothetical * x, case.arrays["tangermeme.attr"], OTHERS)
    averaged = shap(case, x, references, own=True)
    equal(averaged, c.mean(2), EXACT)
    stored = case.arrays["captum_deepliftshap_perex.attr"]
    if case.of_type(*MAX_POOLS):
        rules = jaxlift.RESCALE | jaxlift.WINNER_AT_INPUT
        equal(shap(case, x, references, own=True, rules=rules), stored, CAPTUM)
    if case.of_type(*MAX_POOLS) or ignored(case, CAPTUM_IGNORES):
        delta = np.abs(case.arrays["captum_deepliftshap_perex.delta"])
        assert delta.max() > WRONG and np.abs(averaged - stored).max() > WRONG
    else:
        equal(averaged, stored, CAPTUM)


# ------------------------------------------------------------------- trained networks


def trained_networks():
    """Networks and references, each with all the tables that are complete."""
    tables = ("RESCALE", "REVEAL_CANCEL", "GENOMICS_DEFAULT")
    kinds = {
        "real_mnist": ("zero",),
        "real_genomics": ("zero", "background", "shuffled"),
    }
    return [
        pytest.param(name, kind, getattr(jaxlift, table), id=f"{name}-{kind}-{table}")
        for name in kinds
        if has_data(name)
        for kind in kinds[name]
        for table in tables
        if hasattr(jaxlift, table)
    ]


@pytest.mark.parametrize("name, kind, rules", trained_networks())
def test_trained_network_is_complete(name, kind, rules):
    """In float32, for all targets."""
    with jax.enable_x64(False):
        case = real(name)
        x = case.arrays["x"]
        if kind == "shuffled":
            references = case.arrays["shuffled_refs"][:, :2]
            x = np.repeat(x, references.shape[1], 0)
            references = references.reshape(x.shape)
        else:
            reference = case.arrays["background_ref"] if kind == "background" else 0
            references = np.broadcast_to(np.float32(reference), x.shape)
        _, contributions = explain(case, (x,), (references,), rules=rules)
        assert contributions[0].dtype == np.float32
        # The logits are small differences of contributions of up to 10000.
        assert_complete(case, (x,), (references,), contributions, 1e-5, roundings=4)


# ------------------------------------------------------- the networks' own description


def test_unknown_layers_are_errors():
    layer = {"name": "z", "type": "dense", "inputs": ["x"]}
    sidecar = {"layers": [layer], "target": {"layer": "z", "task_indices": [0]}}
    assert Case(sidecar, {"w.z.kernel": np.ones((2, 1))}).outputs(np.ones((1, 2))) == 2
    with pytest.raises(NotImplementedError, match="'z' of type 'dense'.*'alpha'"):
        Case(sidecar, {"w.z.kernel": np.ones((2, 1)), "w.z.alpha": np.ones(1)})
    layer["type"] = "lstm"
    with pytest.raises(NotImplementedError, match="'z': unknown type 'lstm'"):
        Case(sidecar, {})


@float64
def test_windows_as_described():
    """Strides, padding and layouts that no stored network may have."""
    draw = np.random.default_rng(0).normal
    x, kernel = draw(size=(2, 7, 3)), draw(size=(4, 3, 5))

    def padded(fill):  # SAME: 3 windows, (3 - 1) * 3 + 4 - 7 = 3 to pad, 1 of it left
        return np.pad(x, [(0, 0), (1, 2), (0, 0)], constant_values=fill)

    def windows(fill):
        return np.stack([padded(fill)[:, t : t + 4] for t in (0, 3, 6)], 1)

    def layer(kind, x, options, **weights):
        layers = [{"name": "z", "type": kind, "inputs": ["x"], **options}]
        weights = {f"w.z.{k}": v for k, v in weights.items()}
        return Case({"layers": layers, "target": "z"}, weights).outputs(x)

    same = {"stride": 3, "padding": "SAME"}
    convolved = np.einsum("ntji,jio->nto", windows(0), kernel)
    equal(layer("conv1d", x, same, kernel=kernel), convolved, EXACT)
    pool = same | {"pool": 4}
    equal(layer("maxpool1d", x, pool), windows(-np.inf).max(2), 0)
    equal(layer("avgpool1d", x, pool), np.nanmean(windows(np.nan), 2), EXACT)
    first = pool | {"data_format": "channels_first"}
    equal(layer("maxpool1d", x.mT, first), windows(-np.inf).max(2).mT, 0)
    torch = {"kernel_size": [4], "stride": [3], "padding": [1], "dilation": [1]}
    equal(
        layer("Conv1d", x.mT, torch, weight=kernel.transpose(2, 1, 0)),
        convolved[:, :2].mT,
        EXACT,
    )
    torch = {"kernel_size": 4, "stride": 3, "padding": 1}
    equal(layer("MaxPool1d", x.mT, torch), windows(-np.inf).max(2)[:, :2].mT, 0)
    equal(layer("AvgPool1d", x.mT, torch), windows(0).mean(2)[:, :2].mT, EXACT)
    scale = dict(gamma=draw(size=3), beta=draw(size=3), mean=draw(size=3))
    var = draw(size=3) ** 2
    normal = (x - scale["mean"]) / np.sqrt(var + 0.1) * scale["gamma"] + scale["beta"]
    options = {"axis": -1, "epsilon": 0.1}
    equal(layer("batchnorm", x, options, var=var, **scale), normal, EXACT)
    options["axis"] = 1
    equal(layer("batchnorm", x.mT, options, var=var, **scale), normal.mT, EXACT)
