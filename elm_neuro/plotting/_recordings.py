"""A layer at work on one sequence: its input spikes, and whatever was recorded of it, one above the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from elm_neuro.plotting._panels import letters
from elm_neuro.plotting._rasters import draw_raster
from elm_neuro.plotting._style import (
    ABOVE,
    BLUE,
    INK,
    PALETTE,
    VERMILION,
    Values,
    as_array,
    label_panel,
    styled,
)
from elm_neuro.plotting._workings import busiest, draw_memory

MOST_LINES = 6


class Record(NamedTuple):
    """One panel of :func:`recordings`."""

    title: str
    unit: str
    values: Values  # (time, unit)
    kind: str = "lines"  # "lines", "memory" coloured by `tau`, "raster" of spikes, or "spikes of a cell", (time, 1)
    colour: str = INK
    tau: Values | None = None  # ms, (unit,)
    truth: Values | None = None  # (time,), drawn beside the values
    names: Sequence[str] = ()  # of the units, at most six; without, those that change most are drawn


@styled
def recordings(x: Values, records: Sequence[Record], *, delta_t: float, num_excitatory: int | None = None) -> Figure:
    """One sequence on its way through a layer: its input spikes, and what else was recorded, one above the other.

    Args:
        x: input, (time, channel).
        records: the panels below it.
        delta_t: time step in ms.
        num_excitatory: the first channels, drawn in red, the others in blue; None draws all alike.

    Raises:
        ValueError: a record has more names than there are colours.
    """
    for record in records:
        if len(record.names) > len(PALETTE):
            raise ValueError(
                f"records must have at most {len(PALETTE)} names, got {len(record.names)} of {record.title}"
            )
    spikes = as_array(x)
    time = np.asarray(delta_t * (np.arange(len(spikes)) + 0.5), dtype=np.float64)
    heights = [
        1.2,
        *(1.4 if one.kind == "memory" else 0.7 if one.kind == "spikes of a cell" else 1.0 for one in records),
    ]
    figure = Figure(figsize=(7.2, 0.7 + 1.35 * sum(heights)))
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    letter = letters()
    _draw_input(axes[0], time, spikes, delta_t, num_excitatory, next(letter))
    for axis, record in zip(axes[1:], records, strict=True):
        _draw_record(axis, time, record, delta_t)
        label_panel(axis, next(letter), record.title, record.unit)
    axes[-1].set(xlabel="time (ms)", xlim=(0, delta_t * len(spikes)))
    for axis in axes[:-1]:
        axis.set_xlabel("")
    figure.align_ylabels(axes)
    return figure


def _draw_input(
    axis: Axes,
    time: NDArray[np.float64],
    x: NDArray[np.float64],
    delta_t: float,
    num_excitatory: int | None,
    letter: str,
) -> None:
    """Spikes as marks; what is more often there than not, or no whole number, as lines."""
    if np.count_nonzero(x) > x.size / 2 or (x != np.round(x)).any():
        shown = busiest(x, MOST_LINES)
        axis.plot(time, x[:, shown], color=INK, linewidth=0.8, alpha=0.75)
        label_panel(axis, letter, f"input: the {len(shown)} that change most of {x.shape[1]}", "input")
        return
    if num_excitatory is None:
        draw_raster(axis, x, delta_t=delta_t, colour=INK)
    else:
        _draw_two_kinds(axis, x, delta_t, num_excitatory)
    label_panel(axis, letter, "input spikes", "input")


def _draw_two_kinds(axis: Axes, spikes: NDArray[np.float64], delta_t: float, num_excitatory: int) -> None:
    step, channel = np.nonzero(spikes)
    size = min(4.0, max(0.7, 260.0 / max(spikes.shape)))
    for kind, colour in ((channel < num_excitatory, VERMILION), (channel >= num_excitatory, BLUE)):
        axis.scatter(
            delta_t * (step[kind] + 0.5),
            channel[kind],
            s=size**2 / 2,
            marker="s",
            linewidths=0,
            color=colour,
            rasterized=True,
        )
    axis.set_ylim(-1, spikes.shape[1])
    handles = [Line2D([], [], color=colour, marker="o", linestyle="", markersize=3) for colour in (VERMILION, BLUE)]
    axis.legend(handles, ["excitatory", "inhibitory"], **ABOVE, ncols=2)


def _draw_record(axis: Axes, time: NDArray[np.float64], record: Record, delta_t: float) -> None:
    values = as_array(record.values)
    if record.kind == "raster":
        draw_raster(axis, values, delta_t=delta_t, colour=record.colour)
        return
    if record.kind == "memory" and record.tau is not None:
        draw_memory(axis, time, values, record.tau)
        return
    handles = []
    if record.kind == "spikes of a cell":
        axis.set_ylim(0, max(0.02, 1.1 * float(values.max(initial=0.0))))
        if record.truth is not None:
            fired = time[as_array(record.truth) > 0]
            axis.vlines(fired, 0, 1, transform=axis.get_xaxis_transform(), color=INK, linewidth=0.8, linestyle=":")
            handles.append((Line2D([], [], color=INK, linewidth=0.8, linestyle=":"), "spike of the cell"))
    elif record.truth is not None:
        axis.plot(time, as_array(record.truth), color=INK, linewidth=1.0)
        handles.append((Line2D([], [], color=INK), "cell"))
    if values.shape[1] <= len(record.names):
        for column, (name, colour) in enumerate(zip(record.names, PALETTE, strict=False)):
            colour = record.colour if values.shape[1] == 1 else colour
            axis.plot(time, values[:, column], color=colour, linewidth=1.0)
            handles.append((Line2D([], [], color=colour), name))
    else:
        axis.plot(time, values[:, busiest(values, MOST_LINES)], color=record.colour, linewidth=0.8, alpha=0.75)
    if len(handles) > 1:
        lines, names = zip(*handles, strict=True)
        axis.legend(lines, names, **ABOVE, ncols=len(names), columnspacing=1.0)
