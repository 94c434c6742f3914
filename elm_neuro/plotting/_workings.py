"""What happens inside an ELM neuron, and inside a network that holds some of them, while they hear one sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from elm_neuro.nn import ELMTraces
from elm_neuro.plotting._checks import positive_times
from elm_neuro.plotting._curves import draw_accuracy
from elm_neuro.plotting._panels import letters
from elm_neuro.plotting._rasters import by_latency, draw_raster
from elm_neuro.plotting._style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PALE,
    VERMILION,
    Values,
    as_array,
    label_panel,
    plain_log_ticks,
    span,
    styled,
)

TIMESCALE_MAP = "viridis"  # rises evenly in lightness, also in grey print
SHARE_OF_MAP = 0.9  # its yellow end is too pale for thin lines
BUSIEST = 6  # traces of synapses and branches shown


@styled
def workings(
    x: Values,
    traces: ELMTraces,
    *,
    tau_m: Values,
    delta_t: float,
    answer: int,
    names: Sequence[str] | None = None,
    source: str = "the input",
) -> Figure:
    """One sample on its way through an ELM neuron: input, synapses, branches, memory coloured by its time constants,
    outputs.

    Args:
        x: input of one sample, (time, input_size).
        traces: what :meth:`elm_neuro.nn.ELM.traces` gives for it, batch 1, one neuron.
        tau_m: memory time constants in ms, (num_memory,).
        delta_t: time step in ms.
        answer: index of the output that is right, drawn in colour.
        names: of the outputs.
        source: whose spikes `x` are.

    Raises:
        ValueError: `traces` are not those of one sample.
    """
    if traces.memory.ndim != 3 or traces.memory.shape[0] != 1:
        raise ValueError(
            f"traces must be of one sample and one neuron, memory (1, time, num_memory), got "
            f"{tuple(traces.memory.shape)}"
        )
    synapse, branch, memory, output = (as_array(record)[0] for record in traces)
    synapse = synapse.reshape(len(synapse), -1)
    time = delta_t * (np.arange(len(memory)) + 0.5)
    records = [(synapse, GREEN, "synapses"), (branch, ORANGE, "branches")]
    if synapse.shape[1] == branch.shape[1]:
        records = [(branch, GREEN, "synapses, each its own branch")]
    figure = Figure(figsize=(6.8, 5.2 + 1.5 * len(records)))
    axes = figure.subplots(3 + len(records), 1, sharex=True, height_ratios=[1.3, *[1.0] * len(records), 1.5, 1.2])
    letter = letters()
    draw_raster(axes[0], x, delta_t=delta_t, colour=INK)
    label_panel(axes[0], next(letter), f"spikes of {source}", "neuron" if source != "the input" else "channel")
    for axis, (record, colour, what) in zip(axes[1:], records, strict=False):
        shown = busiest(record, BUSIEST)
        axis.plot(time, record[:, shown], color=colour, linewidth=0.9, alpha=0.75)
        label_panel(axis, next(letter), f"{what}: the {len(shown)} that change most of {record.shape[1]}", "trace")
    draw_memory(axes[-2], time, memory, tau_m)
    label_panel(axes[-2], next(letter), f"memory: all {memory.shape[1]} units", "memory")
    draw_outputs(axes[-1], time, output, answer=answer, name=str(answer) if names is None else names[answer])
    label_panel(axes[-1], next(letter), "outputs", "logit")
    axes[-1].set_xlabel("time (ms)")
    figure.align_ylabels(axes)
    return figure


@styled
def network_workings(
    layers: Mapping[str, Values],
    outputs: Values,
    *,
    answer: int,
    name: str,
    delta_t: float,
    accuracy: Mapping[str, Sequence[float]],
    majority: float,
    memory: tuple[Values, Values] | None = None,
) -> Figure:
    """One sample on its way through a network, layer by layer, and what the network has learned.

    Args:
        layers: spikes of the input and of each layer that spikes, by what they are, (time, unit); layers are drawn with
            their neurons in the order of their activity.
        outputs: of the last layer, (time, class).
        answer: index of the output that is right.
        name: its name.
        delta_t: time step in ms.
        accuracy: for each part of the data, by its name, one share of 1 an epoch.
        majority: accuracy of the best constant answer.
        memory: of one ELM neuron: (time, num_memory), and its time constants in ms, (num_memory,).

    Raises:
        ValueError: there is no layer.
    """
    if not layers:
        raise ValueError("layers must hold the input at least, got none")
    num_rows = len(layers) + 1 + (memory is not None)
    figure = Figure(figsize=(10.0, 1.0 + 1.5 * num_rows))
    grid = figure.add_gridspec(num_rows, 2, width_ratios=[1.5, 1.0])
    first = figure.add_subplot(grid[0, 0])
    axes = [first, *(figure.add_subplot(grid[row, 0], sharex=first) for row in range(1, num_rows))]
    letter = letters()
    for axis, (title, counts) in zip(axes, layers.items(), strict=False):
        hidden = axis is not first
        draw_raster(axis, by_latency(counts) if hidden else counts, delta_t=delta_t, colour=BLUE if hidden else INK)
        label_panel(axis, next(letter), title, "neuron" if hidden else "channel")
    time = delta_t * (np.arange(len(as_array(outputs))) + 0.5)
    if memory is not None:
        draw_memory(axes[-2], time, *memory)
        label_panel(axes[-2], next(letter), "memory units of one ELM neuron", "memory")
    draw_outputs(axes[-1], time, outputs, answer=answer, name=name)
    label_panel(axes[-1], next(letter), "outputs", "output")
    axes[-1].set_xlabel("time (ms)")
    for axis in axes[:-1]:
        axis.tick_params(labelbottom=False)
    figure.align_ylabels(axes)
    curve = figure.add_subplot(grid[:, 1])
    draw_accuracy(curve, accuracy, chance=majority)
    label_panel(curve, next(letter), "accuracy")
    return figure


@styled
def timescales(before: Values, after: Values, *, bounds: tuple[float, float] | None = None) -> Figure:
    """Memory time constants of a neuron before and after training.

    Args:
        before: in ms, (num_memory,).
        after: in ms, (num_memory,), of the same units.
        bounds: range that training could not leave, in ms.

    Raises:
        ValueError: not as many after as before, none, or some that are not finite or not above 0.
    """
    first, last = positive_times(before, "before"), positive_times(after, "after")
    if first.shape != last.shape:
        raise ValueError(f"after must have one time constant per unit, {first.size}, got {last.size}")
    order = np.argsort(first, kind="stable")
    first, last = first[order], last[order]
    figure = Figure(figsize=(6.8, 3.0))
    units, spectrum = figure.subplots(1, 2, width_ratios=[1.5, 1.0], sharey=True)
    rank = np.arange(1, first.size + 1)
    units.vlines(rank, first, last, color=PALE, linewidth=0.8)
    units.plot(rank, first, "o", color=BLUE, markersize=3.2, fillstyle="none", label="before training")
    units.plot(rank, last, "o", color=VERMILION, markersize=3.2, label="after training")
    units.set_yscale("log")
    units.set(xlabel="memory unit, by initial time constant", ylabel=r"time constant $\tau_m$ (ms)")
    units.legend(loc="upper left")
    low, high = span(np.concatenate((first, last)))
    edges = np.geomspace(0.9 * low, 1.1 * high, 19)
    spectrum.hist(first, bins=edges, orientation="horizontal", color=BLUE, histtype="step", linewidth=1.4)
    spectrum.hist(last, bins=edges, orientation="horizontal", color=VERMILION, alpha=0.55)
    spectrum.set(xlabel="number of units")
    spectrum.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if bounds is not None:
        inside = [bound for bound in bounds if low / 3 < bound < high * 3]
        for axis in (units, spectrum):
            axis.hlines(inside, 0, 1, transform=axis.get_yaxis_transform(), color=INK, linewidth=0.8, linestyle=":")
    plain_log_ticks(units)
    label_panel(units, "a", "each unit")
    label_panel(spectrum, "b", "all units")
    return figure


def busiest(record: NDArray[np.float64], num: int) -> NDArray[np.int64]:
    """The columns of a record (time, column) that move most."""
    return np.sort(np.argsort(record.std(0))[::-1][:num])


def draw_memory(axis: Axes, time: Values, memory: Values, tau_m: Values) -> None:
    """Memory units of one neuron, coloured by their time constants, and the bar that tells them.

    Args:
        axis: to draw on.
        time: of each step in ms, (time,).
        memory: of one sample, (time, num_memory).
        tau_m: time constants in ms, (num_memory,).

    Raises:
        ValueError: there is not one time constant above 0 per unit.
    """
    units, taus = as_array(memory), positive_times(tau_m, "tau_m")
    if units.shape[1] != taus.size:
        raise ValueError(f"tau_m must have one time constant per memory unit, {units.shape[1]}, got {taus.size}")
    norm, colours = LogNorm(*span(taus)), matplotlib.colormaps[TIMESCALE_MAP]
    for unit in np.argsort(taus)[::-1]:
        colour = colours(SHARE_OF_MAP * norm(taus[unit]))
        axis.plot(as_array(time), units[:, unit], color=colour, linewidth=0.8, alpha=0.85)
    shown = ListedColormap(colours(np.linspace(0.0, SHARE_OF_MAP, 256)))
    bar = axis.figure.colorbar(ScalarMappable(norm, shown), ax=axis, pad=0.01, aspect=12)
    bar.set_label(r"$\tau_m$ (ms)")
    bar.outline.set_linewidth(0.5)
    plain_log_ticks(bar.ax)


def draw_outputs(axis: Axes, time: Values, outputs: Values, *, answer: int, name: str) -> None:
    """Outputs of one sample, the right one in colour.

    Args:
        axis: to draw on.
        time: of each step in ms, (time,).
        outputs: (time, output_size).
        answer: index of the output that is right.
        name: its name.
    """
    lines, steps = as_array(outputs), as_array(time)
    others = [line for line in range(lines.shape[1]) if line != answer]
    axis.plot(steps, lines[:, others], color=PALE, linewidth=0.6, alpha=0.7)
    axis.plot(steps, lines[:, answer], color=VERMILION, linewidth=1.8)
    handles = [Line2D([], [], color=VERMILION), Line2D([], [], color=PALE, linewidth=0.8)]
    axis.legend(handles, [f"right answer, “{name}”", "other answers"], loc="upper left", ncols=2)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
