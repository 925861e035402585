"""Pictures of contributions, with matplotlib: `pip install "jaxlift[plots]"`.

Every function takes contributions as `deeplift` returns them (arrays of JAX or numpy),
draws on the matplotlib `Axes` it is given, or on the current ones, and returns them;
`compare` draws a figure of several. Nothing is shown or saved. Red speaks for the
output, blue against it; zero is white, in the middle of a scale that reaches as far
down as up.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

LABEL = "contribution to the output"
COLOURS = "RdBu_r"  # diverging; red and blue are told apart by the colour-blind
FOR, AGAINST, REST = "#b2182b", "#2166ac", "0.6"
# The hues that the field gives the bases, in the shades of Okabe and Ito, which the
# colour-blind can tell apart. Other letters are grey.
LETTERS = {"A": "#009e73", "C": "#0072b2", "G": "#e69f00", "T": "#d55e00"}
LETTERS["U"] = LETTERS["T"]

# What each function draws; the last axis of the longer form is summed, since
# contributions add up.
SHAPES = {
    "image": ("height, width", "height, width, channels"),
    "logo": ("positions, letters",),
    "tokens": ("tokens", "tokens, features"),
    "bars": ("features",),
    "series": ("steps", "steps, channels"),
}


def image(
    contributions: Any,
    image: Any = None,
    *,
    bound: float | None = None,
    label: str = LABEL,
    ax: Axes | None = None,
) -> Axes:
    """A heat map of the contributions of pixels, with the outlines of the image.

    Args:
      contributions: `(height, width)`, or `(height, width, channels)`, which is summed
        over the channels. In units of the output.
      image: `(height, width)` or `(height, width, channels)`, in any unit. A line is
        drawn where its grey value crosses the middle between its darkest and lightest.
      bound: the end of the colour scale; stronger contributions have the end's colour.
        The largest absolute contribution by default.
      label: of the colour scale, its unit included.
      ax: where to draw; the current axes by default.

    Returns:
      The axes.

    Raises:
      ValueError: shapes that do not fit, values that are not finite, or a `bound` that
        is not positive.
      ImportError: matplotlib is not installed.

    Example:
      >>> from matplotlib.figure import Figure
      >>> import jax.numpy as jnp
      >>> from jaxlift import plots
      >>> ax = plots.image(jnp.eye(3), ax=Figure().subplots())
      >>> ax.images[0].get_clim()
      (-1.0, 1.0)
    """
    shown = _numbers(contributions, "image")
    scale = _scale(shown, bound)
    ax = _axes(ax)
    ax.imshow(shown, cmap=COLOURS, norm=scale)
    if image is not None:
        grey = _grey(image, shown.shape)
        ax.contour(grey, [(grey.min() + grey.max()) / 2], colors="0.25", linewidths=0.9)
    ax.set(xticks=[], yticks=[])
    _colorbar(ax, scale, shown, label)
    return ax


def logo(
    contributions: Any,
    letters: str = "ACGT",
    *,
    highlights: Sequence[tuple[float, float, str]] = (),
    start: int = 0,
    bound: float | None = None,
    label: str = LABEL,
    ax: Axes | None = None,
) -> Axes:
    """A sequence logo: letters as tall as what they contribute, drawn by logomaker.

    What speaks against the output hangs below the axis, upside down.

    Args:
      contributions: `(positions, letters)`, as of a one-hot sequence. Letters that
        share a position are stacked: those of the reference contribute by their
        absence. To draw all that a position contributes on the letter that is there:
        `contributions.sum(-1, keepdims=True) * one_hot`.
      letters: the letter of each column.
      highlights: `(first, stop, name)`: positions first to stop - 1 are shaded, with
        the name above.
      start: the number of the first position.
      bound: the end of the vertical axis, up and down. By default it fits the letters.
      label: of the vertical axis, its unit included.
      ax: where to draw; the current axes by default.

    Returns:
      The axes.

    Raises:
      ValueError: shapes that do not fit, values that are not finite, or a `bound` that
        is not positive.
      ImportError: matplotlib or logomaker is not installed.

    Example:
      ```python
      contributions = jaxlift.deeplift_shap(f)(one_hot, shuffled)  # (60, 4)
      heights = contributions.sum(-1, keepdims=True) * one_hot
      plots.logo(heights, highlights=[(20, 26, "GATA")])
      ```

    Source: Schneider, Stephens, Nucleic Acids Research 18 (1990), for the form;
    Tareen, Kinney, Bioinformatics 36 (2020), for logomaker.
    """
    heights = _numbers(contributions, "logo")
    if len(letters) != heights.shape[1]:
        raise ValueError(
            f"contributions have {heights.shape[1]} columns, but there are "
            f"{len(letters)} letters: {letters!r}"
        )
    ax = _axes(ax)
    logomaker, pandas = _needs("logomaker"), _needs("pandas")
    positions = range(start, start + len(heights))
    frame = pandas.DataFrame(heights, columns=list(letters), index=positions)
    colours = {letter: LETTERS.get(letter, "0.4") for letter in letters}
    if heights.any():  # logomaker's vertical axis would have no height
        logomaker.Logo(frame, ax=ax, color_scheme=colours, baseline_width=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(xlim=(start - 0.5, start + len(heights) - 0.5))
    ax.set(xlabel="position", ylabel=label)
    if bound is not None:
        end = _bound(heights, bound)
        ax.set_ylim(-end, end)
    for first, stop, name in highlights:
        ax.axvspan(first - 0.5, stop - 0.5, color="0.92", zorder=-1)
        # In data units across and in parts of the axes upwards: just above the frame.
        middle, above = (first + stop - 1) / 2, ax.get_xaxis_transform()
        ax.text(middle, 1.02, name, transform=above, ha="center", va="bottom")
    return ax


def tokens(
    contributions: Any,
    tokens: Sequence[str],
    *,
    width: float = 36,
    bound: float | None = None,
    label: str = LABEL,
    ax: Axes | None = None,
) -> Axes:
    """A text with each token on the colour of what it contributes.

    The letters are shapes that scale with the axes, so that no text is clipped.

    Args:
      contributions: `(tokens,)`, or `(tokens, features)`, as of an embedding, which is
        summed over the features.
      tokens: the text of each token.
      width: of a line, in heights of the font; longer texts are wrapped.
      bound: the end of the colour scale, as in `image`.
      label: of the colour scale, its unit included. With "" there is no scale.
      ax: where to draw; the current axes by default.

    Returns:
      The axes.

    Raises:
      ValueError: as many tokens as contributions are needed; otherwise as `image`.
      ImportError: matplotlib is not installed.

    Example:
      >>> from matplotlib.figure import Figure
      >>> import jax.numpy as jnp
      >>> from jaxlift import plots
      >>> words = ["not", "bad"]
      >>> ax = plots.tokens(jnp.array([2.0, -1]), words, ax=Figure().subplots())
      >>> len(ax.patches)  # a box and a word for each token
      4
    """
    values = _numbers(contributions, "tokens")
    _check_count(tokens, "tokens", values)
    scale = _scale(values, bound)
    colours = _needs("matplotlib").colormaps[COLOURS](scale(values))
    ax = _axes(ax)
    outlines = [_outline(token) for token in tokens]
    widths = [width for _, width in outlines]
    places = _wrapped(widths, width)
    for (path, across), (left, line), colour in zip(
        outlines, places, colours, strict=True
    ):
        _draw_word(ax, path, across, (left, -LINE * line), colour)
    ends = [left + across for (left, _), across in zip(places, widths, strict=True)]
    lowest = -LINE * places[-1][1]
    ax.set(xlim=(-0.3, max(width, *ends) + 0.3), ylim=(lowest - 0.7, 1.2))
    ax.set(aspect="equal", anchor="W")
    ax.set_axis_off()
    if label:
        _colorbar(ax, scale, values, label, location="bottom", shrink=0.5, aspect=40)
    return ax


def bars(
    contributions: Any,
    names: Sequence[str] | None = None,
    *,
    top: int = 10,
    bound: float | None = None,
    label: str = LABEL,
    ax: Axes | None = None,
) -> Axes:
    """A bar for each of the features that contribute most, and one for all others.

    The bars add up to what all features contribute.

    Args:
      contributions: `(features,)`.
      names: of the features; their numbers by default.
      top: how many features have a bar of their own.
      bound: the end of the horizontal axis, both ways. By default it fits the bars.
      label: of the horizontal axis, its unit included.
      ax: where to draw; the current axes by default.

    Returns:
      The axes.

    Raises:
      ValueError: as many names as contributions are needed, `top` of at least 1;
        otherwise as `image`.
      ImportError: matplotlib is not installed.

    Example:
      >>> from matplotlib.figure import Figure
      >>> import jax.numpy as jnp
      >>> from jaxlift import plots
      >>> contributions = jnp.array([1.0, -3, 0.5, 0.25])
      >>> ax = plots.bars(contributions, list("abcd"), top=2, ax=Figure().subplots())
      >>> [(tick.get_text(), float(bar.get_width()))
      ...  for tick, bar in zip(ax.get_yticklabels(), ax.patches)]
      [('b', -3.0), ('a', 1.0), ('2 others', 0.75)]
    """
    values = _numbers(contributions, "bars")
    if names is None:
        names = [f"feature {k}" for k in range(len(values))]
    names = list(names)  # a pandas Series is indexed by its labels
    _check_count(names, "names", values)
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    order = np.argsort(-abs(values), kind="stable")
    first, rest = order[:top], order[top:]
    widths = values[first].tolist()
    labels = [str(names[k]) for k in first]
    colours = [FOR if width > 0 else AGAINST for width in widths]
    if rest.size:
        widths.append(float(values[rest].sum()))
        labels.append(f"{rest.size} others")
        colours.append(REST)
    ax = _axes(ax)
    rows = ax.barh(range(len(widths)), widths, color=colours, height=0.7)
    ax.bar_label(rows, fmt="{:+.3g}", padding=3)
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set_yticks(range(len(widths)), labels)
    ax.invert_yaxis()
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.18)  # room for the numbers
    if bound is not None:
        end = _bound(values, bound)
        ax.set_xlim(-end, end)
    ax.set_xlabel(label)
    return ax


def series(
    contributions: Any,
    values: Any,
    *,
    bound: float | None = None,
    label: str = LABEL,
    ax: Axes | None = None,
) -> Axes:
    """A time series on the colours of what each step contributes.

    Args:
      contributions: `(steps,)`, or `(steps, channels)`, which is summed over the
        channels.
      values: `(steps,)` or `(steps, channels)`, a line for each channel, in any unit.
      bound: the end of the colour scale, as in `image`.
      label: of the colour scale, its unit included.
      ax: where to draw; the current axes by default.

    Returns:
      The axes.

    Raises:
      ValueError: as many values as contributions are needed; otherwise as `image`.
      ImportError: matplotlib is not installed.

    Example:
      >>> from matplotlib.figure import Figure
      >>> import jax.numpy as jnp
      >>> from jaxlift import plots
      >>> x = jnp.array([0.0, 2, 1])
      >>> ax = plots.series(0.5 * x, x, ax=Figure().subplots())
      >>> ax.images[0].get_clim()
      (-1.0, 1.0)
    """
    colours = _numbers(contributions, "series")
    lines = np.asarray(values, np.float64)
    if lines.ndim not in (1, 2):
        raise ValueError(
            f"values have shape {lines.shape}; expected (steps) or (steps, channels)"
        )
    _check_count(lines, "values", colours)
    scale = _scale(colours, bound)
    ax = _axes(ax)
    halo = _needs("matplotlib.patheffects").withStroke(linewidth=3, foreground="white")
    ax.plot(lines, color="black", linewidth=1.2, path_effects=[halo])
    low, high = ax.get_ylim()
    ax.imshow(
        colours[None], cmap=COLOURS, norm=scale, aspect="auto", zorder=0,
        extent=(-0.5, len(colours) - 0.5, low, high),
    )  # fmt: skip
    ax.set(xlim=(-0.5, len(colours) - 0.5), ylim=(low, high), xlabel="step")
    _colorbar(ax, scale, colours, label)
    return ax


def compare(
    contributions: Mapping[str, Any],
    draw: Callable[..., Axes] = image,
    *,
    shared: bool = False,
    columns: int | None = None,
    label: str = LABEL,
    figure: Figure | None = None,
    **kwargs: Any,
) -> np.ndarray:
    """A panel for each of several contributions, as of several methods.

    Args:
      contributions: what to draw, by the title of its panel.
      draw: which function of this module draws a panel.
      shared: one scale for all panels; otherwise each has its own, since methods
        differ in size.
      columns: how many panels stand side by side; all of them by default.
      label: above the panels, the unit of the contributions included.
      figure: where to draw; a new one of pyplot by default.
      **kwargs: passed on to `draw`, such as `image=`, `values=` or `highlights=`.

    Returns:
      An array of axes, in the order of the contributions.

    Raises:
      ValueError: nothing to draw, `columns` below 1, or a `draw` that is no function of
        this module; otherwise as `draw`.
      ImportError: as `draw`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> import jax.numpy as jnp
      >>> from jaxlift import plots
      >>> methods = {"one": jnp.eye(2), "two": 2 * jnp.eye(2)}
      >>> axes = plots.compare(methods, shared=True, figure=Figure())
      >>> [ax.images[0].get_clim() for ax in axes]
      [(-2.0, 2.0), (-2.0, 2.0)]
    """
    kind = getattr(draw, "__name__", None)
    if kind not in SHAPES:
        raise ValueError(f"draw must be one of plots.{', plots.'.join(SHAPES)}")
    if not contributions:
        raise ValueError("there is nothing to compare: contributions are empty")
    columns = len(contributions) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    if shared:
        largest = [abs(_numbers(c, kind)).max() for c in contributions.values()]
        kwargs.setdefault("bound", max(largest) or None)
    if figure is None:
        figure = _needs("matplotlib.pyplot").figure(layout="constrained")
    assert figure is not None
    rows = math.ceil(len(contributions) / columns)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in cells[len(contributions) :]:
        ax.set_axis_off()
    panels = cells[: len(contributions)]
    for ax, (title, values) in zip(panels, contributions.items(), strict=True):
        draw(values, **kwargs, label="", ax=ax)
        ax.set_title(title, loc="left" if columns == 1 else "center")
    scales = "one scale for all" if shared else "each panel has its own scale"
    figure.suptitle(f"{label} ({scales})", fontsize="medium")
    return panels


def to_shap_explanation(
    contributions: Any,
    x: Any,
    expected_value: Any,
    names: Sequence[str] | None = None,
) -> Any:
    """Contributions in the form that the plots of the SHAP package take.

    Args:
      contributions: `(features,)`, or `(examples, features)`, as of `deeplift_shap`.
      x: the explained input(s), of the same shape.
      expected_value: the mean output over the references: a number, or one for each
        example. `contributions.sum(-1) + expected_value` is the output.
      names: of the features.

    Returns:
      A `shap.Explanation`.

    Raises:
      ValueError: shapes that do not fit.
      ImportError: shap is not installed.

    Example:
      ```python
      contributions = jaxlift.deeplift_shap(f)(x, references)
      explanation = plots.to_shap_explanation(contributions, x, f(references).mean())
      shap.plots.waterfall(explanation)
      ```
    """
    values, data = (np.asarray(array, np.float64) for array in (contributions, x))
    expected = np.asarray(expected_value, np.float64)
    if values.ndim not in (1, 2) or values.shape != data.shape:
        raise ValueError(
            f"contributions have shape {values.shape} and x has {data.shape}; expected "
            "(features) or (examples, features), the same for both"
        )
    if expected.shape not in ((), values.shape[:-1]):
        raise ValueError(
            f"expected_value has shape {expected.shape}; expected a number, or "
            f"one for each example, {values.shape[:-1]}"
        )
    if names is not None:
        _check_count(names, "names", values.T)
    return _needs("shap", "shap").Explanation(
        values=values,
        base_values=np.broadcast_to(expected, values.shape[:-1])[()],
        data=data,
        feature_names=None if names is None else [str(name) for name in names],
    )


# --------------------------------------------------------- what is drawn, and on what


def _needs(module: str, install: str = '"jaxlift[plots]"') -> Any:
    """An optional library, imported when it is needed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"this needs {module.split('.')[0]}: pip install {install}"
        ) from error


def _axes(ax: Axes | None) -> Axes:
    return _needs("matplotlib.pyplot").gca() if ax is None else ax


def _numbers(contributions: Any, kind: str) -> np.ndarray:
    """As float64, without the last axis if that is only summed over; all finite."""
    values = np.asarray(contributions, np.float64)
    drawn, *longer = (form.count(",") + 1 for form in SHAPES[kind])
    if values.ndim not in (drawn, *longer) or not values.size:
        forms = " or ".join(f"({form})" for form in SHAPES[kind])
        raise ValueError(f"contributions have shape {values.shape}; expected {forms}")
    if not np.isfinite(values).all():
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(f"the contribution at {where} is {values[where]}, not finite")
    return values.sum(axis=tuple(range(drawn, values.ndim)))


def _check_count(items: Any, name: str, values: np.ndarray) -> None:
    if len(items) != len(values):
        raise ValueError(
            f"there are {len(items)} {name} for {len(values)} contributions"
        )


def _bound(values: np.ndarray, bound: float | None) -> float:
    """The one that is given, or the largest absolute value (1 where all are zero)."""
    if bound is None:
        return float(abs(values).max()) or 1.0
    if not 0 < bound < math.inf:
        raise ValueError(f"bound must be positive and finite, not {bound}")
    return float(bound)


def _scale(values: np.ndarray, bound: float | None) -> Normalize:
    """From contributions to colours, zero in the middle."""
    end = _bound(values, bound)
    return _needs("matplotlib.colors").Normalize(-end, end)


def _colorbar(
    ax: Axes, scale: Normalize, values: np.ndarray, label: str, **kwargs: Any
) -> None:
    """The scale beside the axes, with pointed ends if it does not hold all values."""
    beyond = (abs(scale(values) - 0.5) > 0.5).any()
    kwargs["extend"] = "both" if beyond else "neither"
    colours = _needs("matplotlib.cm").ScalarMappable(scale, COLOURS)
    ax.figure.colorbar(colours, ax=ax, label=label, **kwargs)


def _grey(image: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The mean over the channels of an image that is not of one colour."""
    grey = np.asarray(image, np.float64)
    if grey.ndim not in (2, 3) or grey.shape[:2] != shape:
        raise ValueError(
            f"the image has shape {grey.shape}, but contributions have {shape}"
        )
    if min(shape) < 2:
        raise ValueError(
            f"the image has shape {grey.shape}: outlines need two pixels each way"
        )
    grey = grey.reshape(*shape, -1).mean(-1)
    if not np.isfinite(grey).all() or grey.min() == grey.max():
        raise ValueError("the image has no outlines: it is constant, or not finite")
    return grey


# ---------------------------------------------------------------------- text as shapes

LINE, GAP = 2.0, 0.55  # between lines, between words; in heights of the font


def _outline(token: str) -> tuple[Any, float]:
    """The shape of a word one unit high, and where it ends."""
    visible = "".join(c if c.isprintable() else repr(c)[1:-1] for c in token)
    literal = visible.strip().replace("$", r"\$") or "\N{OPEN BOX}"  # no formula
    path = _needs("matplotlib.textpath").TextPath((0, 0), literal, size=1)
    return path, float(path.vertices[:, 0].max())


def _wrapped(widths: Sequence[float], width: float) -> list[tuple[float, int]]:
    """The left end and the line of each word."""
    places, left, line = [], 0.0, 0
    for word in widths:
        if left > 0 and left + word > width:
            left, line = 0.0, line + 1
        places.append((left, line))
        left += word + GAP
    return places


def _draw_word(
    ax: Axes, path: Any, width: float, place: tuple[float, float], colour: Any
) -> None:
    """A rounded box of the colour, and the word in black or white, whichever shows."""
    patches = _needs("matplotlib.patches")
    left, base = place
    box = (left, base - 0.35), width, 1.15
    frame = {"edgecolor": "0.85", "linewidth": 0.5, "boxstyle": "round,pad=0.16"}
    ax.add_patch(patches.FancyBboxPatch(*box, facecolor=colour, **frame))
    luma = np.dot(colour[:3], (0.299, 0.587, 0.114))
    ink = {"facecolor": "black" if luma > 0.5 else "white", "linewidth": 0}
    moved = _needs("matplotlib.transforms").Affine2D().translate(*place)
    ax.add_patch(patches.PathPatch(moved.transform_path(path), **ink))
