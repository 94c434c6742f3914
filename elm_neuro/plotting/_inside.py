"""What a layer is made of, whatever it was trained on: time constants, what it reads, its response to one spike."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from elm_neuro.plotting._checks import finite
from elm_neuro.plotting._panels import MOST_COLUMNS, letters, line_looks
from elm_neuro.plotting._style import (
    ABOVE,
    INK,
    PALE,
    PALETTE,
    Values,
    as_array,
    label_panel,
    plain_log_ticks,
    span,
    styled,
)

WIDEST = 1600  # columns of a picture; of more, each shows the largest of several
DIVERGING = "RdBu_r"
GREEK = re.compile(
    "(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|upsilon|phi|chi|psi"
    r"|omega)(?:_([A-Za-z0-9_]*))?"
)


@styled
def time_constants(
    times: Mapping[str, Values],
    *,
    bounds: tuple[float, float] | None = None,
    readout: Mapping[str, Values] | None = None,
) -> Figure:
    """Time constants of a layer, sorted, and what the units with each of them add to the readout.

    Args:
        times: in ms, for each kind by its symbol, (unit,). A log axis has no place for those that are not finite or not
            above 0: they are left out, and the legend says of how many.
        bounds: range of the first kind that training could not leave, in ms.
        readout: weights of the units of the first kind in each output, by its name, (unit,); None draws how many units
            there are of each time constant.

    Raises:
        ValueError: there are no time constants, or `readout` has not one weight for each of the first kind.
    """
    complete = {name: as_array(values).reshape(-1) for name, values in times.items()}
    kinds = {name: values[_drawable(values)] for name, values in complete.items()}
    if not kinds or not any(values.size for values in kinds.values()):
        raise ValueError(f"times must hold time constants above 0 ms, got {[*times] or 'none'}")
    below = math.ceil(len(kinds) / MOST_COLUMNS) if len(kinds) > 2 else 0  # lines of a legend that has no room above
    figure = Figure(figsize=(7.2, 3.2 + 0.2 * below))
    ranked, right = figure.subplots(1, 2, width_ratios=[1.15, 1.0], gridspec_kw={"wspace": 0.06})
    for (name, values), (colour, marker) in zip(kinds.items(), line_looks(), strict=False):
        label = _label(name, values, complete[name].size)
        if values.size == 1:
            ranked.axhline(values[0], color=colour, linewidth=1.2, marker=marker, markersize=4.5, label=label)
            continue
        ranked.plot(
            100 * np.linspace(0, 1, values.size),
            np.sort(values),
            color=colour,
            linestyle="",
            marker=marker or "o",
            markersize=3.2 if values.size < 300 else 1.5,
            label=label,
        )
    low, high = span(np.concatenate([*kinds.values()]))
    ranked.set_yscale("log")
    ranked.set_ylim(low / 1.5, high * 1.5)
    if bounds is not None:
        inside = [bound for bound in bounds if low / 3 < bound < high * 3]
        ranked.hlines(inside, 0, 1, transform=ranked.get_yaxis_transform(), color=INK, linewidth=0.8, linestyle=":")
    plain_log_ticks(ranked)
    ranked.set(xlabel="units, sorted (%)", ylabel="time constant (ms)", xlim=(-4, 104))
    if below:
        figure.legend(loc="outside lower center", ncols=min(MOST_COLUMNS, len(kinds)), handletextpad=0.4)
    else:
        ranked.legend(**ABOVE, ncols=len(kinds), columnspacing=1.0, handletextpad=0.4)
    label_panel(ranked, "a", "time constants")
    if readout:
        _draw_readout(right, *next(iter(complete.items())), readout)
        label_panel(right, "b", "what the readout weighs")
    else:
        edges = np.geomspace(0.95 * low, 1.05 * high, 19)
        colours = [colour for _, (colour, _) in zip(kinds, line_looks(), strict=False)]
        right.hist([*kinds.values()], bins=edges, color=colours, alpha=0.6, stacked=True)
        right.set_xscale("log")
        right.set(xlabel="time constant (ms)", ylabel="number of units")
        right.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        _plain_log_x(right)
        label_panel(right, "b", "how many of each")
    return figure


def _drawable(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which time constants a log axis has room for."""
    return np.isfinite(values) & (values > 0)


def _draw_readout(axis: Axes, kind: str, tau: NDArray[np.float64], readout: Mapping[str, Values]) -> None:
    drawable = _drawable(tau)
    if not drawable.any():
        raise ValueError(f"times must hold {kind} above 0 ms, which readout weighs, got none")
    lines = {name: as_array(values).reshape(-1) for name, values in readout.items()}
    for name, values in lines.items():
        if values.size != tau.size:
            raise ValueError(f"readout must have one weight for each {kind}, {tau.size}, got {values.size} of {name}")
    if len(lines) > 2:
        lines = {f"root mean square over {len(lines)} outputs": np.sqrt(np.mean([one**2 for one in lines.values()], 0))}
    shift = 1.02 if len(lines) > 1 else 1.0
    for at, ((name, values), colour) in enumerate(zip(lines.items(), PALETTE, strict=False)):
        place, values = tau[drawable] * shift ** (2 * at - 1), values[drawable]
        axis.vlines(place, 0, values, color=colour, linewidth=0.9, alpha=0.8)
        axis.plot(place, values, "o", color=colour, markersize=2.8, label=name)
    axis.axhline(0, color=INK, linewidth=0.7)
    axis.set_xscale("log")
    low, high = span(tau[drawable])
    axis.set_xlim(low / 1.3, high * 1.3)
    _plain_log_x(axis)
    axis.set(xlabel=r"time constant $\tau_m$ (ms)", ylabel="weight of the unit")
    bottom, top = axis.get_ylim()
    axis.set_ylim(bottom, top + 0.25 * (top - bottom))
    axis.legend(loc="upper left")


@styled
def weight_fields(
    fields: Mapping[str, Values], *, row: str = "branch", column: str = "input", signed: bool = False
) -> Figure:
    """What branches or neurons read: pictures of weights, one above the other, or a line where there is one row.

    Args:
        fields: for each panel, by its title, weights (row, input); 0 is no synapse and white.
        row: what a row is.
        column: what a column is.
        signed: whether weights may be negative; they are then red above and blue below 0.

    Raises:
        ValueError: there is no panel, or one that is not finite or not of two dimensions.
    """
    pictures = {title: finite(values, f"fields of {title}") for title, values in fields.items()}
    if not pictures:
        raise ValueError("fields must hold at least one panel, got none")
    for title, picture in pictures.items():
        if picture.ndim != 2 or not picture.size:
            raise ValueError(f"fields of {title} must have shape (row, input), got {picture.shape}")
    tall = max(len(picture) for picture in pictures.values()) > 1
    figure = Figure(figsize=(7.2, (0.6 + 2.2 * len(pictures)) if tall else (0.6 + 1.8 * len(pictures))))
    axes = figure.subplots(len(pictures), 1, sharex=True, squeeze=False)[:, 0]
    some = np.concatenate([picture[picture != 0] for picture in pictures.values()])
    low, high = span(np.abs(some)) if some.size else (0.0, 1.0)
    low = max(0.0, low - 0.25 * (high - low))  # the smallest weight is not the white of no synapse
    for axis, letter, (title, picture), colours in zip(
        axes, letters(), pictures.items(), itertools.cycle(("Oranges", "Blues")), strict=False
    ):
        label_panel(axis, letter, title, row)
        if len(picture) == 1 and not signed:
            axis.fill_between(
                np.arange(picture.shape[1]), picture[0], step="mid", color=PALETTE[0], alpha=0.35, linewidth=0
            )
            axis.plot(picture[0], color=PALETTE[0], linewidth=0.7, drawstyle="steps-mid")
            axis.set(ylabel="weight", xlim=(-0.5, picture.shape[1] - 0.5), ylim=(0, 1.08 * max(high, 1e-12)))
            continue
        norm = Normalize(-high, high) if signed else Normalize(low, high)
        image = axis.imshow(
            np.ma.masked_equal(_narrowed(picture), 0.0),
            aspect="auto",
            origin="lower",
            cmap=DIVERGING if signed else colours,
            norm=norm,
            interpolation="nearest",
            extent=(-0.5, picture.shape[1] - 0.5, -0.5, len(picture) - 0.5),
        )
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        bar = figure.colorbar(image, ax=axis, pad=0.01, aspect=14)
        bar.set_label("weight")
        bar.outline.set_linewidth(0.5)
    axes[-1].set_xlabel(column)
    axes[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure


@styled
def spike_responses(
    panels: Mapping[str, Values], *, delta_t: float, rows: Values, kind: str = "branch", signed: bool = True
) -> Figure:
    """What one spike changes, one row a branch or input, time to the right.

    Args:
        panels: for each panel, by title and unit ("title|unit"), changes (row, time); NaN is grey.
        delta_t: time step in ms.
        rows: number of the branch or input of each row, (row,).
        kind: what a row is.
        signed: whether changes may be negative.

    Raises:
        ValueError: there is no panel, or one that has not one row for each of `rows`.
    """
    pictures = {title: as_array(values) for title, values in panels.items()}
    if not pictures:
        raise ValueError("panels must hold at least one picture, got none")
    numbers = as_array(rows).astype(np.int64)
    for title, picture in pictures.items():
        if picture.ndim != 2 or not picture.size or len(picture) != numbers.size:
            raise ValueError(f"panels must have shape ({numbers.size}, time), got {picture.shape} of {title}")
    columns = 1 if len(pictures) == 1 else 2
    lines = -(-len(pictures) // columns)
    figure = Figure(figsize=(7.2, 0.5 + 2.7 * lines))
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    units: dict[str, float] = {}
    for title, picture in pictures.items():  # panels of one unit share a scale
        unit = title.partition("|")[2]
        largest = float(np.abs(picture[np.isfinite(picture)]).max(initial=0.0))
        units[unit] = max(units.get(unit, 0.0), largest, 1e-12)
    colours = matplotlib.colormaps[DIVERGING if signed else "viridis"].with_extremes(bad=PALE)
    for axis, letter, (title, picture) in zip(axes, letters(), pictures.items(), strict=False):
        name, _, unit = title.partition("|")
        top = units[unit]
        image = axis.imshow(
            picture,
            aspect="auto",
            origin="lower",
            cmap=colours,
            norm=TwoSlopeNorm(0.0, -top, top) if signed else Normalize(0.0, top),
            interpolation="nearest",
            extent=(0.0, delta_t * picture.shape[1], numbers[0] - 0.5, numbers[-1] + 0.5),
        )
        label_panel(axis, letter, name)
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        bar = figure.colorbar(image, ax=axis, pad=0.02, aspect=18)
        bar.set_label(unit)
        bar.outline.set_linewidth(0.5)
    for axis in axes[len(pictures) :]:
        axis.set_visible(False)
    for at, axis in enumerate(axes[: len(pictures)]):
        if at % columns == 0:
            axis.set_ylabel(kind)
        if at + columns >= len(pictures):
            axis.set_xlabel("time after the spike (ms)")
            axis.tick_params(labelbottom=True)
    return figure


def _narrowed(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """A picture of at most 1600 columns: each the largest value, by its size, of several."""
    width = -(-picture.shape[1] // WIDEST)
    if width == 1:
        return picture
    padded = np.pad(picture, ((0, 0), (0, -picture.shape[1] % width))).reshape(len(picture), -1, width)
    largest = np.abs(padded).argmax(-1)
    return np.take_along_axis(padded, largest[..., None], -1)[..., 0]


def _label(name: str, values: NDArray[np.float64], total: int) -> str:
    """Of a kind of time constants in the legend: the only one, or how many are drawn."""
    if total == values.size == 1:
        return f"{_symbol(name)} = {values[0]:.4g} ms"
    return f"{_symbol(name)}, {values.size}" + (f" of {total}" if values.size < total else "")


def _symbol(name: str) -> str:
    """A Greek letter with its index; any other name as it is."""
    greek = GREEK.fullmatch(name)
    if greek is None:
        return name.replace("$", r"\$")
    base, index = greek.groups(default="")
    words = index.replace("_", r"\ ")
    return rf"$\{base}_{{{words}}}$" if words else rf"$\{base}$"


def _plain_log_x(axis: Axes) -> None:
    """Ticks of a log axis to the right as plain numbers."""
    low, high = axis.get_xlim()
    marks = [factor * 10.0**power for power in range(-4, 8) for factor in (1, 2, 5)]
    inside = [mark for mark in marks if 0.99 * low <= mark <= 1.01 * high]
    axis.set_xticks(inside if len(inside) <= 7 else [mark for mark in inside if f"{mark:e}".startswith("1")])
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
