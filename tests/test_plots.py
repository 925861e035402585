"""The pictures say what the contributions are."""

from __future__ import annotations

import builtins
import io
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxlift import plots

RNG = np.random.default_rng(0)


def on(draw, *args, **kwargs):
    """Draws on new axes, which must be what is returned, and renders the figure."""
    ax = Figure(layout="constrained").subplots()
    assert draw(*args, **kwargs, ax=ax) is ax
    ax.figure.savefig(io.BytesIO(), dpi=30)
    return ax


# Each function, contributions of every form that it takes, and what else it needs.
WORDS = ["not", "very", "good"]
CASES = [
    (plots.image, (5, 4), {}),
    (plots.image, (5, 4, 3), {"image": RNG.random((5, 4, 3))}),
    (plots.tokens, (3,), {"tokens": WORDS}),
    (plots.tokens, (3, 8), {"tokens": WORDS}),
    (plots.bars, (6,), {}),
    (plots.series, (9,), {"values": RNG.random(9)}),
    (plots.series, (9, 2), {"values": RNG.random((9, 2))}),
    (plots.logo, (7, 4), {}),
]
IDS = [f"{draw.__name__}-{len(shape)}d" for draw, shape, _ in CASES]
SCALED = [case for case in CASES if case[0] in (plots.image, plots.series)]


def require(draw):
    if draw is plots.logo:
        pytest.importorskip("logomaker")


@pytest.mark.parametrize("draw, shape, kwargs", CASES, ids=IDS)
def test_takes_arrays_of_jax_and_numpy(draw, shape, kwargs):
    require(draw)
    contributions = RNG.normal(size=shape)
    on(draw, contributions, **kwargs)
    on(draw, jnp.asarray(contributions, jnp.bfloat16), **kwargs)
    on(draw, np.zeros(shape), **kwargs)


@pytest.mark.parametrize("draw, shape, kwargs", CASES, ids=IDS)
def test_the_unit_is_written_once(draw, shape, kwargs):
    require(draw)
    label = "contribution to logit 3"
    ax = on(draw, RNG.normal(size=shape), **kwargs, label=label)
    labels = [a.get_xlabel() for a in ax.figure.axes]
    labels += [a.get_ylabel() for a in ax.figure.axes]
    assert labels.count(label) == 1


@pytest.mark.parametrize("draw, shape, kwargs", CASES, ids=IDS)
def test_refuses_what_it_cannot_draw(draw, shape, kwargs):
    good = RNG.normal(size=shape)
    bad = good.copy()
    bad.flat[2] = np.nan
    where = str(tuple(int(k) for k in np.argwhere(np.isnan(bad))[0]))
    with pytest.raises(ValueError) as error:
        on(draw, bad, **kwargs)
    assert where in str(error.value)
    with pytest.raises(
        ValueError, match="expected .*" + plots.SHAPES[draw.__name__][0]
    ):
        on(draw, good[None, None, None], **kwargs)
    with pytest.raises(ValueError, match="have shape"):
        on(draw, good[:0], **kwargs)
    require(draw)
    for bound in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="bound must be positive"):
            on(draw, good, **kwargs, bound=bound)


@pytest.mark.parametrize("draw, shape, kwargs", SCALED)
def test_the_scale_is_symmetric_and_holds_what_is_drawn(draw, shape, kwargs):
    contributions = RNG.normal(size=shape)
    ax = on(draw, contributions, **kwargs)
    drawn = contributions.reshape(*shape[: 1 + (draw is plots.image)], -1).sum(-1)
    picture = ax.images[0]
    np.testing.assert_allclose(np.ravel(picture.get_array()), drawn.ravel())
    np.testing.assert_allclose(
        picture.get_clim(), [-abs(drawn).max(), abs(drawn).max()]
    )
    assert on(draw, contributions, **kwargs, bound=0.5).images[0].get_clim() == (
        -0.5,
        0.5,
    )


def test_zero_is_white_and_the_sides_are_red_and_blue():
    boxes = on(plots.tokens, [0.0, 1, -1], WORDS).patches[::2]
    zero, positive, negative = (np.array(box.get_facecolor()[:3]) for box in boxes)
    assert zero.min() > 0.95
    assert positive.argmax() == 0 and negative.argmax() == 2


def test_image_outlines():
    picture = np.zeros((6, 6))
    picture[2:4, 2:4] = 7
    ax = on(plots.image, RNG.normal(size=(6, 6)), picture)
    (outline,) = ax.collections[0].get_paths()
    # Half way between the pixels in and out, but for the corners.
    assert outline.vertices.min() == 1.5 and outline.vertices.max() == 3.5
    for image, message in [
        (np.ones((6, 6)), "no outlines"),
        (np.ones((6, 5)), r"\(6, 5\), but contributions have \(6, 6\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            on(plots.image, np.ones((6, 6)), image)
    with pytest.raises(ValueError, match=r"\(1, 4\): outlines need two pixels"):
        on(plots.image, np.ones((1, 4)), np.arange(4.0)[None])


def test_logo_letters_are_as_tall_as_their_contributions():
    pytest.importorskip("logomaker")
    one_hot = np.eye(4)[RNG.integers(0, 4, 9)]
    contributions = one_hot * RNG.normal(size=(9, 1))
    spans = [(12, 15, "motif")]
    ax = on(plots.logo, contributions, highlights=spans, start=10, bound=9)
    shade, *_ = (p for p in ax.patches if p.get_zorder() == -1)
    glyphs = [p for p in ax.patches if p is not shade]
    extents = [p.get_path().get_extents() for p in glyphs]
    drawn = sorted((round((e.x0 + e.x1) / 2), e.y0, e.y1) for e in extents if e.height)
    heights = [(10 + k, *sorted((0, h))) for k, h in enumerate(contributions.sum(1))]
    np.testing.assert_allclose(drawn, heights, atol=1e-6)
    assert shade.get_x() + 0.5 == 12 and shade.get_width() == 3
    assert [text.get_text() for text in ax.texts] == ["motif"]
    assert ax.get_ylim() == (-9, 9)
    with pytest.raises(ValueError, match="4 columns, but there are 3 letters: 'ACG'"):
        on(plots.logo, contributions, "ACG")


def test_tokens_wrap_and_do_not_overlap():
    words = [
        "a",
        "word",
        "",
        "$x$ = $y$",
        "line\nbreak",
        "\u00fcber",
        "antidisestablish",
    ] * 6
    ax = on(plots.tokens, RNG.normal(size=len(words)), words, width=20)
    boxes = [patch.get_path().get_extents(patch.get_patch_transform())
             for patch in ax.patches[::2]]  # fmt: skip
    left, right = ax.get_xlim()
    assert right <= 20.5  # no word is longer than a line
    low, high = ax.get_ylim()
    for box in boxes:
        assert left <= box.x0 < box.x1 <= right and low <= box.y0 < box.y1 <= high
    for one, other in itertools.combinations(boxes, 2):
        apart = one.x1 <= other.x0 or other.x1 <= one.x0
        assert apart or one.y1 <= other.y0 or other.y1 <= one.y0
    for word, box in zip(ax.patches[1::2], boxes, strict=True):
        if word.get_path().vertices.size:
            inside = word.get_path().get_extents()
            assert box.x0 <= inside.x0 and inside.x1 <= box.x1
            assert box.y0 <= inside.y0 and inside.y1 <= box.y1


def test_bars_add_up():
    contributions = RNG.normal(size=25)
    for top in (1, 10, 25, 30):
        ax = on(plots.bars, contributions, top=top)
        widths = np.array([bar.get_width() for bar in ax.patches])
        np.testing.assert_allclose(widths.sum(), contributions.sum())
        own = widths[:top]
        assert (np.diff(abs(own[:25])) <= 0).all()
        assert len(widths) == (top + 1 if top < 25 else 25)
        labels = [tick.get_text() for tick in ax.get_yticklabels()]
        for label, width in zip(labels[: min(top, 25)], own, strict=True):
            assert contributions[int(label.removeprefix("feature "))] == width
    with pytest.raises(ValueError, match="top must be at least 1, not 0"):
        on(plots.bars, contributions, top=0)


def test_bars_take_names_in_their_order_whatever_their_index():
    pandas = pytest.importorskip("pandas")
    names = pandas.Series(list("abc"), index=[2, 0, 1])
    ax = on(plots.bars, [3.0, 2.0, 1.0], names)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list("abc")


@pytest.mark.parametrize(
    "draw, contributions, other, message",
    [
        (plots.tokens, np.ones(3), ["a", "b"], "2 tokens for 3 contributions"),
        (plots.bars, np.ones(3), ["a", "b"], "2 names for 3 contributions"),
        (plots.series, np.ones(3), np.ones(2), "2 values for 3 contributions"),
        (
            plots.series,
            np.ones(3),
            np.ones((3, 1, 1)),
            r"values have shape \(3, 1, 1\)",
        ),
    ],
)
def test_counts_must_agree(draw, contributions, other, message):
    with pytest.raises(ValueError, match=message):
        on(draw, contributions, other)


@pytest.mark.parametrize("columns", [None, 1, 2])
def test_compare_has_a_panel_for_each(columns):
    methods = {name: size * np.eye(3) for size, name in enumerate("abc", 1)}
    axes = plots.compare(methods, columns=columns, figure=Figure(), label="unit")
    assert [ax.get_title() or ax.get_title(loc="left") for ax in axes] == list("abc")
    assert [ax.images[0].get_clim()[1] for ax in axes] == [1, 2, 3]
    assert "unit" in axes[0].figure.get_suptitle()
    assert not any(ax.get_ylabel() for ax in axes[0].figure.axes)  # nor repeated
    axes = plots.compare(methods, shared=True, columns=columns, figure=Figure())
    assert {ax.images[0].get_clim() for ax in axes} == {(-3, 3)}


def test_compare_shares_the_scale_of_what_is_drawn():
    """The sums over channels, that is, and not the channels themselves."""
    values = np.ones((4, 2))
    methods = {"one": values, "two": 2 * values}
    draw = {"draw": plots.series, "values": np.arange(4), "shared": True}
    axes = plots.compare(methods, **draw, figure=Figure())
    assert {ax.images[0].get_clim() for ax in axes} == {(-4, 4)}


@pytest.mark.parametrize(
    "contributions, kwargs, message",
    [
        ({}, {}, "nothing to compare"),
        ({"a": np.eye(2)}, {"columns": 0}, "columns must be at least 1"),
        ({"a": np.eye(2)}, {"draw": print}, "draw must be one of plots.image"),
    ],
)
def test_compare_refuses(contributions, kwargs, message):
    with pytest.raises(ValueError, match=message):
        plots.compare(contributions, **kwargs, figure=Figure())


def test_draws_on_the_current_axes():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure, axes = pyplot.subplots(2)
    pyplot.sca(axes[0])
    try:
        assert plots.bars(np.ones(2)) is axes[0]
        new = plots.compare({"a": np.eye(2)})
        assert new[0].figure is not figure
        assert new[0].figure is pyplot.gcf()
    finally:
        pyplot.close("all")


@pytest.mark.parametrize(
    "missing, call, remedy",
    [
        ("matplotlib", lambda: plots.bars(np.ones(2)), r'"jaxlift\[plots\]"'),
        ("logomaker", lambda: on(plots.logo, np.eye(4)), r'"jaxlift\[plots\]"'),
        ("shap", lambda: plots.to_shap_explanation([1.0], [1.0], 0.0), "shap"),
    ],
)
def test_names_what_is_missing(monkeypatch, missing, call, remedy):
    found = plots.importlib.import_module

    def without(name):
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return found(name)

    monkeypatch.setattr(plots.importlib, "import_module", without)
    with pytest.raises(ImportError, match=f"needs {missing}: pip install {remedy}"):
        call()


def test_importing_the_module_needs_no_matplotlib(monkeypatch):
    """Nothing but jax and numpy is imported before it is used."""
    real = builtins.__import__

    def refuse(name, *args):
        assert name.split(".")[0] not in ("matplotlib", "pandas", "logomaker", "shap")
        return real(name, *args)

    spec = plots.importlib.util.find_spec("jaxlift.plots")
    module = plots.importlib.util.module_from_spec(spec)
    monkeypatch.setattr(builtins, "__import__", refuse)
    spec.loader.exec_module(module)


# ------------------------------------------------------------------------------- SHAP


@pytest.mark.parametrize(
    "contributions, x, expected, names, message",
    [
        (np.ones(3), np.ones(2), 0, None, r"have shape \(3,\) and x has \(2,\)"),
        (np.ones((2, 3, 1)), np.ones((2, 3, 1)), 0, None, "expected \\(features\\)"),
        (np.ones((2, 3)), np.ones((2, 3)), np.ones(3), None, "expected_value has"),
        (np.ones((2, 3)), np.ones((2, 3)), 0, ["a"], "1 names for 3 contributions"),
    ],
)
def test_to_shap_explanation_refuses(contributions, x, expected, names, message):
    with pytest.raises(ValueError, match=message):
        plots.to_shap_explanation(contributions, x, expected, names)


@pytest.mark.filterwarnings("ignore")  # SHAP's own
def test_to_shap_explanation():
    shap = pytest.importorskip("shap")
    contributions, x = jnp.asarray(RNG.normal(size=(2, 5, 3)))
    many = plots.to_shap_explanation(contributions, x, 2.0, ["a", "b", "c"])
    assert isinstance(many, shap.Explanation)
    np.testing.assert_array_equal(many.values, contributions)
    np.testing.assert_array_equal(many.data, x)
    np.testing.assert_array_equal(many.base_values, np.full(5, 2.0))
    one = plots.to_shap_explanation(contributions[0], x[0], 2.0)
    for explanation in (one, many[0]):
        shap.plots.waterfall(explanation, show=False)
