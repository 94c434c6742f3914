"""Figures of spike trains, of what happens inside an ELM neuron, and of its training; in colours that colour-blind
readers tell apart.

Every function returns a matplotlib Figure that belongs to nobody else: no pyplot, no window, no global style.
:func:`save` writes it. Longer than most modules: all figures share one style and its few helpers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from elm_neuro.nn import ELMTraces

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
    from matplotlib.transforms import ScaledTranslation
except ImportError as error:
    raise ImportError('elm_neuro.plotting needs matplotlib: pip install "elm-neuro[train]"') from error

# Okabe & Ito's palette, minus its yellow, which is too pale in print
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
INK, PALE = "#222222", "#8A8A8A"
TIMESCALE_MAP = "viridis"  # rises evenly in lightness, also in grey print
BUSIEST = 6  # traces of synapses and branches shown
DODGE = 0.06  # inches between networks measured at the same setting
SHARE_OF_MAP = 0.9  # its yellow end is too pale for thin lines

STYLE: Any = {  # matplotlib types the keys as literals
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 200,
    "xtick.color": INK,
    "xtick.labelsize": 8,
    "ytick.color": INK,
    "ytick.labelsize": 8,
}

Values: TypeAlias = ArrayLike | torch.Tensor
P = ParamSpec("P")


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def rasters(inputs: Sequence[Values], hidden: Sequence[Values], *, delta_t: float, titles: Sequence[str]) -> Figure:
    """Spikes of several samples side by side: the input above, the spiking layer that reads it below.

    Args:
        inputs: spike counts of each sample, (time, channel).
        hidden: spikes of the layer for each sample, (time, neuron).
        delta_t: time step in ms.
        titles: one a sample.

    Raises:
        ValueError: not one hidden raster and one title per input.
    """
    if not len(inputs) == len(hidden) == len(titles) or not inputs:
        raise ValueError(
            f"inputs, hidden and titles must be as many, at least one, got {len(inputs)}, {len(hidden)} and {len(titles)}"
        )
    figure = Figure(figsize=(1.65 * len(inputs) + 0.6, 4.0))
    axes = figure.subplots(2, len(inputs), sharex=True, sharey="row", squeeze=False)
    for column, (above, below, title) in enumerate(zip(inputs, hidden, titles, strict=True)):
        _raster(axes[0, column], above, delta_t=delta_t, colour=INK)
        _raster(axes[1, column], below, delta_t=delta_t, colour=BLUE)
        axes[0, column].set_title(title)
        axes[1, column].set_xlabel("time (ms)")
        axes[1, column].xaxis.set_major_locator(MaxNLocator(2))
    axes[0, 0].set_ylabel("input channel")
    axes[1, 0].set_ylabel("LIF neuron")
    figure.align_ylabels(axes[:, 0])
    return figure


@_styled
def workings(
    x: Values, traces: ELMTraces, *, tau_m: Values, delta_t: float, answer: int, names: Sequence[str] | None = None
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

    Raises:
        ValueError: `traces` are not those of one sample.
    """
    if traces.memory.ndim != 3 or traces.memory.shape[0] != 1:
        raise ValueError(
            f"traces must be of one sample and one neuron, memory (1, time, num_memory), got {tuple(traces.memory.shape)}"
        )
    synapse, branch, memory, output = (_array(record)[0] for record in traces)
    synapse = synapse.reshape(len(synapse), -1)
    time = delta_t * (np.arange(len(memory)) + 0.5)
    records = [(synapse, GREEN, "synapses"), (branch, ORANGE, "branches")]
    if synapse.shape[1] == branch.shape[1]:
        records = [(branch, GREEN, "synapses, each its own branch")]
    figure = Figure(figsize=(6.8, 5.2 + 1.5 * len(records)))
    axes = figure.subplots(3 + len(records), 1, sharex=True, height_ratios=[1.3, *[1.0] * len(records), 1.5, 1.2])
    letters = iter("abcde")
    _raster(axes[0], x, delta_t=delta_t, colour=INK)
    _label(axes[0], next(letters), "input spikes", "input")
    for axis, (record, colour, what) in zip(axes[1:], records, strict=False):
        shown = _busiest(record, BUSIEST)
        axis.plot(time, record[:, shown], color=colour, linewidth=0.9, alpha=0.75)
        _label(axis, next(letters), f"{what}: the {len(shown)} that change most of {record.shape[1]}", "trace")
    taus = _array(tau_m).reshape(-1)
    norm = LogNorm(*_range(taus))
    colours = matplotlib.colormaps[TIMESCALE_MAP]
    for unit in np.argsort(taus)[::-1]:
        axes[-2].plot(time, memory[:, unit], color=colours(SHARE_OF_MAP * norm(taus[unit])), linewidth=0.8, alpha=0.85)
    _label(axes[-2], next(letters), f"memory: all {len(taus)} units", "memory")
    _timescale_bar(figure, axes[-2], norm)
    others = [line for line in range(output.shape[1]) if line != answer]
    axes[-1].plot(time, output[:, others], color=PALE, linewidth=0.6, alpha=0.7)
    axes[-1].plot(time, output[:, answer], color=VERMILION, linewidth=1.8)
    name = str(answer) if names is None else names[answer]
    handles = [Line2D([], [], color=VERMILION), Line2D([], [], color=PALE, linewidth=0.8)]
    axes[-1].legend(handles, [f"right answer, “{name}”", "other answers"], loc="upper left", ncols=2)
    low, high = axes[-1].get_ylim()
    axes[-1].set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    _label(axes[-1], next(letters), "outputs", "logit")
    axes[-1].set_xlabel("time (ms)")
    figure.align_ylabels(axes)
    return figure


@_styled
def timescales(before: Values, after: Values, *, bounds: tuple[float, float] | None = None) -> Figure:
    """Memory time constants of a neuron before and after training.

    Args:
        before: in ms, (num_memory,).
        after: in ms, (num_memory,), of the same units.
        bounds: range that training could not leave, in ms.

    Raises:
        ValueError: not as many after as before.
    """
    first, last = _array(before).reshape(-1), _array(after).reshape(-1)
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
    low, high = _range(np.concatenate((first, last)))
    edges = np.geomspace(0.9 * low, 1.1 * high, 19)
    spectrum.hist(first, bins=edges, orientation="horizontal", color=BLUE, histtype="step", linewidth=1.4)
    spectrum.hist(last, bins=edges, orientation="horizontal", color=VERMILION, alpha=0.55)
    spectrum.set(xlabel="number of units")
    spectrum.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if bounds is not None:
        inside = [bound for bound in bounds if low / 3 < bound < high * 3]
        for axis in (units, spectrum):
            axis.hlines(inside, 0, 1, transform=axis.get_yaxis_transform(), color=INK, linewidth=0.8, linestyle=":")
    _plain_log(units)
    _label(units, "a", "each unit")
    _label(spectrum, "b", "all units")
    return figure


@_styled
def learning_curves(histories: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], *, majority: float) -> Figure:
    """Accuracy and loss of several networks over the epochs, in training and on validation samples.

    Args:
        histories: for each network the records of its runs (one a seed), each with "train/accuracy", "valid/accuracy",
            "train/loss" and "valid/loss", one value an epoch. Lines are means over the runs, bands go from the lowest
            to the highest.
        majority: accuracy of the best constant answer.

    Raises:
        ValueError: no network, or one without a run.
    """
    if not histories or not all(histories.values()):
        raise ValueError(
            f"histories must hold at least one run of each network, got {[len(runs) for runs in histories.values()]} of {[*histories]}"
        )
    figure = Figure(figsize=(6.8, 3.3))
    axes = figure.subplots(1, 2)
    for runs, colour in zip(histories.values(), PALETTE, strict=False):
        for axis, what in zip(axes, ("accuracy", "loss"), strict=True):
            for part, line in (("train", (0, (3, 1.5))), ("valid", "-")):
                values = np.array(
                    [run[f"{part}/{what}"] for run in runs if len(run.get(f"{part}/{what}", ()))], dtype=float
                )  # (run, epoch)
                if not values.size:
                    continue
                epoch = np.arange(1, values.shape[1] + 1)
                axis.plot(
                    epoch, values.mean(0), color=colour, linestyle=line, linewidth=1.6 if part == "valid" else 1.1
                )
                if len(values) > 1 and part == "valid":
                    axis.fill_between(epoch, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)
    axes[0].axhline(majority, color=INK, linewidth=0.9, linestyle=":")
    axes[0].set_ylim(0, 1)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[1].set_ylim(bottom=0)
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    _label(axes[0], "a", "accuracy")
    _label(axes[1], "b", "cross entropy", "nats")
    handles = [Line2D([], [], color=colour) for colour, _ in zip(PALETTE, histories, strict=False)]
    handles += [Line2D([], [], color=INK), Line2D([], [], color=INK, linestyle=(0, (3, 1.5)), linewidth=1.1)]
    handles += [Line2D([], [], color=INK, linestyle=":", linewidth=0.9)]
    labels = [*histories, "validation", "training", "majority class"]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), columnspacing=1.4)
    return figure


@_styled
def confusion_matrix(counts: Values, *, names: Sequence[str] | None = None) -> Figure:
    """How often each class is given each answer, as shares of the class; shares of at least a twentieth in numbers.

    Args:
        counts: samples by class (row) and answer (column), (num_classes, num_classes).
        names: of the classes; None numbers them.

    Raises:
        ValueError: `counts` is not square, or there are not as many names.
    """
    matrix = _array(counts)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"counts must have shape (num_classes, num_classes), got {matrix.shape}")
    num = len(matrix)
    labels = [str(i) for i in range(num)] if names is None else list(names)
    if len(labels) != num:
        raise ValueError(f"names must be one per class, {num}, got {len(labels)}")
    of_class = matrix.sum(1, keepdims=True)
    share = matrix / np.maximum(of_class, 1)
    side = min(6.4, 1.6 + 0.26 * num)
    figure = Figure(figsize=(side + 0.8, side))
    axis = figure.subplots()
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for row, column in zip(*np.nonzero(share >= 0.05), strict=True):
        value = share[row, column]
        colour = "white" if value > 0.55 else INK
        axis.text(
            column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=min(7.0, 120 / num), color=colour
        )
    rotation = 90 if max(map(len, labels)) > 2 else 0
    axis.set_xticks(range(num), labels, rotation=rotation)
    axis.set_yticks(range(num), labels)
    axis.tick_params(length=0, labelsize=7)
    axis.spines[:].set_visible(False)
    axis.set(xlabel="answer", ylabel="class")
    bar = figure.colorbar(image, ax=axis, shrink=0.6, pad=0.02, aspect=22, format=PercentFormatter(1.0))
    bar.set_label("share of the class")
    bar.outline.set_visible(False)
    right = np.trace(matrix) / max(matrix.sum(), 1)
    axis.set_title(f"{100 * right:.1f} % of {int(matrix.sum()):,} samples right")
    return figure


@_styled
def accuracies(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    *,
    xlabel: str,
    majority: float | None = None,
    log: bool = True,
) -> Figure:
    """Accuracy of several networks against a setting, one panel a part of the data, as in figure 5 of the paper.

    Args:
        panels: for each panel, by its title, for each network its points (setting, mean, half width of the interval or
            NaN), drawn in the order of the setting.
        xlabel: the setting and its unit.
        majority: accuracy of the best constant answer.
        log: whether the setting is drawn on a log axis.

    Raises:
        ValueError: there is no panel, or a panel without a network.
    """
    if not panels or not all(panels.values()):
        raise ValueError(
            f"panels must hold at least one network each, got {[len(lines) for lines in panels.values()]} in {[*panels]}"
        )
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    figure = Figure(figsize=(max(3.6, 2.3 * len(panels)), 3.1))
    for axis, letter, (title, lines) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], "abcdefgh", panels.items(), strict=False
    ):
        for name, points in lines.items():
            x, mean, half = np.array(sorted(points), dtype=float).T
            colour = PALETTE[names.index(name) % len(PALETTE)]
            aside = ScaledTranslation((names.index(name) - (len(names) - 1) / 2) * DODGE, 0, figure.dpi_scale_trans)
            place, error = axis.transData + aside, np.nan_to_num(half)
            axis.errorbar(
                x,
                mean,
                yerr=error,
                transform=place,
                color=colour,
                marker="o",
                markersize=3.2,
                linewidth=1.3,
                elinewidth=0.8,
                capsize=2,
            )
        settings = sorted({point[0] for points in lines.values() for point in points})
        lowest, highest = settings[0], settings[-1]
        if log:
            axis.set_xscale("log")
            axis.set_xlim(lowest / 1.5, highest * 1.5)
        else:
            margin = 0.1 * (highest - lowest) or 0.5
            axis.set_xlim(lowest - margin, highest + margin)
        if majority is not None:
            axis.axhline(majority, color=INK, linewidth=0.9, linestyle=":")
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        if log:
            axis.set_xticks(settings if len(settings) <= 5 else settings[:: math.ceil(len(settings) / 5)])
            axis.set_xticks([], minor=True)
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_xlabel(xlabel)
        axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        _label(axis, letter, title)
    figure.axes[0].set_ylabel("accuracy")
    handles = [Line2D([], [], color=PALETTE[i % len(PALETTE)], marker="o", markersize=3.2) for i in range(len(names))]
    if majority is not None:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=":"))
    labels = names if majority is None else [*names, "majority class"]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(handles)), columnspacing=1.2)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write a figure as PNG and PDF, each complete or not at all.

    Args:
        figure: what to write.
        path: file name; its suffix, if any, is replaced by .png and .pdf. The folder must exist.

    Returns:
        The two files.

    Raises:
        OSError: they cannot be written.
    """
    written = []
    with matplotlib.rc_context(STYLE):
        for kind in ("png", "pdf"):
            target = Path(path).with_suffix(f".{kind}")
            partial = target.with_name(f".{target.name}.part")
            try:
                figure.savefig(
                    partial, format=kind, metadata={"Software": None} if kind == "png" else {"CreationDate": None}
                )
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
            written.append(target)
    return written[0], written[1]


def _array(values: Values) -> NDArray[np.float64]:
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)


def _raster(axis: Axes, counts: Values, *, delta_t: float, colour: str) -> None:
    spikes = _array(counts)
    step, channel = np.nonzero(spikes)
    size = min(4.0, 260.0 / max(spikes.shape))  # points, so that neighbouring rows just touch
    axis.scatter(
        delta_t * (step + 0.5), channel, s=size**2 / 2, marker="s", linewidths=0, color=colour, rasterized=True
    )
    axis.set_xlim(0, delta_t * len(spikes))
    axis.set_ylim(-1, spikes.shape[1])


def _label(axis: Axes, letter: str, title: str, unit: str | None = None) -> None:
    axis.set_title(rf"$\mathbf{{{letter}}}$  {title}")
    if unit is not None:
        axis.set_ylabel(unit)


def _busiest(record: NDArray[np.float64], num: int) -> NDArray[np.int64]:
    """The columns of a record (time, column) that move most."""
    return np.sort(np.argsort(record.std(0))[::-1][:num])


def _range(taus: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(taus.min()), float(taus.max())
    return (low, high) if high > 1.001 * low else (low / 1.5, high * 1.5)


def _timescale_bar(figure: Figure, axis: Axes, norm: LogNorm) -> None:
    whole = matplotlib.colormaps[TIMESCALE_MAP]
    shown = matplotlib.colors.ListedColormap(whole(np.linspace(0.0, SHARE_OF_MAP, 256)))
    bar = figure.colorbar(ScalarMappable(norm, shown), ax=axis, pad=0.01, aspect=12)
    bar.set_label(r"$\tau_m$ (ms)")
    bar.outline.set_linewidth(0.5)
    _plain_log(bar.ax)


def _plain_log(axis: Axes) -> None:
    """Ticks of a log axis as plain numbers, at 1, 2, 5 where the axis is short."""
    low, high = axis.get_ylim()
    marks = [factor * 10.0**power for power in range(-3, 7) for factor in (1, 2, 5)]
    inside = [mark for mark in marks if 0.99 * low <= mark <= 1.01 * high]
    if len(inside) > 7:
        inside = [mark for mark in inside if f"{mark:e}".startswith("1")]
    axis.set_yticks(inside)
    axis.set_yticks([], minor=True)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
