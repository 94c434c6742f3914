"""What a layer is made of, whatever it was trained on: time constants, what it reads, its response to one spike."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from elm_neuro.plotting._style import (
    ABOVE,
    INK,
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


@styled
def time_constants(
    times: Mapping[str, Values],
    *,
    bounds: tuple[float, float] | None = None,
    readout: Mapping[str, Values] | None = None,
) -> Figure:
    """Time constants of a layer, sorted, and what the units with each of them add to the readout.

    Args:
        times: in ms, for each kind by its symbol, (unit,).
        bounds: range of the first kind that training could not leave, in ms.
        readout: weights of the units of the first kind in each output, by its name, (unit,); None draws how many units
            there are of each time constant.

    Raises:
        ValueError: there are no time constants.
    """
    kinds = {name: as_array(values).reshape(-1) for name, values in times.items()}
    kinds = {name: values[np.isfinite(values) & (values > 0)] for name, values in kinds.items()}
    if not kinds or not any(values.size for values in kinds.values()):
        raise ValueError(f"times must hold time constants above 0 ms, got {[*times] or 'none'}")
    figure = Figure(figsize=(7.2, 3.2))
    ranked, right = figure.subplots(1, 2, width_ratios=[1.15, 1.0], gridspec_kw={"wspace": 0.06})
    for (name, values), colour in zip(kinds.items(), PALETTE, strict=False):
        label = f"{_symbol(name)}, {values.size}" if values.size > 1 else f"{_symbol(name)} = {values[0]:.4g} ms"
        if values.size > 1:
            rank = np.linspace(0, 1, values.size)
            ranked.plot(
                100 * rank,
                np.sort(values),
                "o",
                color=colour,
                markersize=3.2 if values.size < 300 else 1.5,
                label=label,
            )
        elif values.size:
            ranked.axhline(values[0], color=colour, linewidth=1.2, label=label)
    low, high = span(np.concatenate([*kinds.values()]))
    ranked.set_yscale("log")
    ranked.set_ylim(low / 1.5, high * 1.5)
    if bounds is not None:
        inside = [bound for bound in bounds if low / 3 < bound < high * 3]
        ranked.hlines(inside, 0, 1, transform=ranked.get_yaxis_transform(), color=INK, linewidth=0.8, linestyle=":")
    plain_log_ticks(ranked)
    ranked.set(xlabel="units, sorted (%)", ylabel="time constant (ms)", xlim=(-4, 104))
    if len(kinds) > 2:  # no room beside the title
        ranked.legend(loc="lower right", frameon=True, handletextpad=0.4)
    else:
        ranked.legend(**ABOVE, ncols=len(kinds), columnspacing=1.0, handletextpad=0.4)
    label_panel(ranked, "a", "time constants")
    first = as_array(next(iter(times.values()))).reshape(-1)
    if readout:
        _draw_readout(right, first, readout)
        label_panel(right, "b", "what the readout weighs")
    else:
        edges = np.geomspace(0.95 * low, 1.05 * high, 19)
        for (_, values), colour in zip(kinds.items(), PALETTE, strict=False):
            right.hist(values, bins=edges, color=colour, alpha=0.6)
        right.set_xscale("log")
        right.set(xlabel="time constant (ms)", ylabel="number of units")
        right.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        _plain_log_x(right)
        label_panel(right, "b", "how many of each")
    return figure


def _draw_readout(axis: Axes, tau: NDArray[np.float64], readout: Mapping[str, Values]) -> None:
    lines = {name: as_array(values).reshape(-1) for name, values in readout.items()}
    if len(lines) > 2:
        lines = {f"root mean square over {len(lines)} outputs": np.sqrt(np.mean([one**2 for one in lines.values()], 0))}
    shift = 1.02 if len(lines) > 1 else 1.0
    for at, ((name, values), colour) in enumerate(zip(lines.items(), PALETTE, strict=False)):
        place = tau * shift ** (2 * at - 1)
        axis.vlines(place, 0, values, color=colour, linewidth=0.9, alpha=0.8)
        axis.plot(place, values, "o", color=colour, markersize=2.8, label=name)
    axis.axhline(0, color=INK, linewidth=0.7)
    axis.set_xscale("log")
    low, high = span(tau[np.isfinite(tau) & (tau > 0)])
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
        ValueError: there is no panel.
    """
    pictures = {title: as_array(values) for title, values in fields.items()}
    if not pictures:
        raise ValueError("fields must hold at least one panel, got none")
    tall = max(len(picture) for picture in pictures.values()) > 1
    figure = Figure(figsize=(7.2, (0.6 + 2.2 * len(pictures)) if tall else (0.6 + 1.8 * len(pictures))))
    axes = figure.subplots(len(pictures), 1, sharex=True, squeeze=False)[:, 0]
    some = np.concatenate([picture[picture != 0] for picture in pictures.values()])
    low, high = span(np.abs(some)) if some.size else (0.0, 1.0)
    low = max(0.0, low - 0.25 * (high - low))  # the smallest weight is not the white of no synapse
    for axis, letter, (title, picture), colours in zip(
        axes, "abcd", pictures.items(), ("Oranges", "Blues") * 2, strict=False
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
        panels: for each panel, by title and unit ("title|unit"), changes (row, time).
        delta_t: time step in ms.
        rows: number of the branch or input of each row, (row,).
        kind: what a row is.
        signed: whether changes may be negative.

    Raises:
        ValueError: there is no panel.
    """
    pictures = {title: as_array(values) for title, values in panels.items()}
    if not pictures:
        raise ValueError("panels must hold at least one picture, got none")
    columns = 1 if len(pictures) == 1 else 2
    lines = -(-len(pictures) // columns)
    figure = Figure(figsize=(7.2, 0.5 + 2.7 * lines))
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    first, last = int(as_array(rows)[0]), int(as_array(rows)[-1])
    units: dict[str, float] = {}
    for title, picture in pictures.items():  # panels of one unit share a scale
        unit = title.partition("|")[2]
        units[unit] = max(units.get(unit, 0.0), float(np.abs(picture).max(initial=0.0)), 1e-12)
    for axis, letter, (title, picture) in zip(axes, "abcdefgh", pictures.items(), strict=False):
        name, _, unit = title.partition("|")
        top = units[unit]
        image = axis.imshow(
            picture,
            aspect="auto",
            origin="lower",
            cmap=DIVERGING if signed else "viridis",
            norm=TwoSlopeNorm(0.0, -top, top) if signed else Normalize(0.0, top),
            interpolation="nearest",
            extent=(0.0, delta_t * picture.shape[1], first - 0.5, last + 0.5),
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


def _symbol(name: str) -> str:
    base, _, index = name.partition("_")
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
