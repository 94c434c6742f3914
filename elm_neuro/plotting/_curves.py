"""Curves and tables of training: accuracy and loss over epochs or settings, and which class is taken for which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from matplotlib.transforms import ScaledTranslation

from elm_neuro.plotting._checks import finite
from elm_neuro.plotting._panels import MOST_COLUMNS, letters, line_looks
from elm_neuro.plotting._style import INK, Values, label_panel, styled

DODGE, MOST_DODGE = 0.06, 0.24  # inches between networks measured at the same setting, and between all of them


@styled
def learning_curves(histories: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], *, majority: float) -> Figure:
    """Accuracy and loss of several networks over the epochs, in training and on validation samples.

    Args:
        histories: for each network the records of its runs (one a seed), each with "train/accuracy", "valid/accuracy",
            "train/loss" and "valid/loss", one value an epoch. Lines are means over the runs, bands go from the lowest
            to the highest, as far as all runs go; one that goes on is drawn alone then, thin.
        majority: accuracy of the best constant answer.

    Raises:
        ValueError: no network, or one without a run.
    """
    if not histories or not all(histories.values()):
        raise ValueError(
            f"histories must hold at least one run of each network, got {[len(runs) for runs in histories.values()]} "
            f"of {[*histories]}"
        )
    labels = [*histories, "validation", "training", "majority class"]
    figure = Figure(figsize=(6.8, 3.1 + 0.2 * math.ceil(len(labels) / MOST_COLUMNS)))
    axes = figure.subplots(1, 2)
    for runs, (colour, marker) in zip(histories.values(), line_looks(), strict=False):
        for axis, what in zip(axes, ("accuracy", "loss"), strict=True):
            for part, line in (("train", (0, (3, 1.5))), ("valid", "-")):
                curves = [run[f"{part}/{what}"] for run in runs if len(run.get(f"{part}/{what}", ()))]
                if not curves:
                    continue
                common = min(map(len, curves))
                values = np.array([curve[:common] for curve in curves], dtype=float)  # (run, epoch)
                epoch = np.arange(1, common + 1)
                axis.plot(
                    epoch,
                    values.mean(0),
                    color=colour,
                    linestyle=line,
                    linewidth=1.6 if part == "valid" else 1.1,
                    marker=marker or ("o" if common == 1 else ""),  # a line of one point is none
                    markersize=3.2,
                )
                if len(curves) > 1 and part == "valid":
                    axis.fill_between(epoch, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)
                for curve in curves:
                    if len(curve) > common:
                        on = np.arange(common, len(curve) + 1)
                        axis.plot(on, curve[common - 1 :], color=colour, linestyle=line, linewidth=0.6)
    axes[0].axhline(majority, color=INK, linewidth=0.9, linestyle=":")
    axes[0].set_ylim(0, 1)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[1].set_ylim(bottom=0)
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    label_panel(axes[0], "a", "accuracy")
    label_panel(axes[1], "b", "cross entropy", "nats")
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=3.2)
        for _, (colour, marker) in zip(histories, line_looks(), strict=False)
    ]
    handles += [Line2D([], [], color=INK), Line2D([], [], color=INK, linestyle=(0, (3, 1.5)), linewidth=1.1)]
    handles += [Line2D([], [], color=INK, linestyle=":", linewidth=0.9)]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(MOST_COLUMNS, len(handles)), columnspacing=1.4)
    return figure


@styled
def confusion_matrix(counts: Values, *, names: Sequence[str] | None = None, title: str = "") -> Figure:
    """How often each class is given each answer, as shares of the class; shares of at least a twentieth in numbers.

    Args:
        counts: samples by class (row) and answer (column), (num_classes, num_classes).
        names: of the classes; None numbers them.
        title: whose answers they are.

    Raises:
        ValueError: `counts` is not square, without a class or no counts, or there are not as many names.
    """
    matrix = finite(counts, "counts")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"counts must have shape (num_classes, num_classes), got {matrix.shape}")
    if matrix.min() < 0:
        raise ValueError(f"counts must be at least 0, got {matrix.min():g}")
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
    axis.set_title(f"{title + chr(10) if title else ''}{100 * right:.1f} % of {int(matrix.sum()):,} samples right")
    return figure


@styled
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
        ValueError: there is no panel, a panel without a network, a network without a point, or a setting that is not
            above 0 on a log axis.
    """
    if not panels or not all(panels.values()):
        raise ValueError(
            f"panels must hold at least one network each, got {[len(lines) for lines in panels.values()]} in "
            f"{[*panels]}"
        )
    for title, lines in panels.items():
        for name, points in lines.items():
            if not len(points):
                raise ValueError(f"panels must hold at least one point of each network, got none of {name} in {title}")
            if log and (lowest := min(setting for setting, _, _ in points)) <= 0:
                raise ValueError(
                    f"panels must hold settings above 0 on a log axis, got {lowest:g} of {name} in {title}"
                )
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    looks = dict(zip(names, line_looks(), strict=False))
    dodge = min(DODGE, MOST_DODGE / len(names))
    figure = Figure(figsize=(max(3.6, 2.3 * len(panels)), 3.1))
    for axis, letter, (title, lines) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], letters(), panels.items(), strict=False
    ):
        for name, points in lines.items():
            x, mean, half = np.array(sorted(points), dtype=float).T
            colour, marker = looks[name]
            aside = ScaledTranslation((names.index(name) - (len(names) - 1) / 2) * dodge, 0, figure.dpi_scale_trans)
            place, error = axis.transData + aside, np.nan_to_num(half)
            axis.errorbar(
                x,
                mean,
                yerr=error,
                transform=place,
                color=colour,
                marker=marker or "o",
                markersize=3.2,
                linewidth=1.3,
                elinewidth=0.8,
                capsize=2,
            )
        settings = sorted({point[0] for points in lines.values() for point in points})
        lowest, highest = settings[0], settings[-1]
        if log:
            axis.set_xscale("log")
            margin = max(1.5, (highest / lowest) ** 0.1)
            axis.set_xlim(lowest / margin, highest * margin)
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
        label_panel(axis, letter, title)
    figure.axes[0].set_ylabel("accuracy")
    handles = [Line2D([], [], color=colour, marker=marker or "o", markersize=3.2) for colour, marker in looks.values()]
    if majority is not None:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=":"))
    labels = names if majority is None else [*names, "majority class"]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(MOST_COLUMNS, len(handles)), columnspacing=1.2)
    return figure


def draw_accuracy(
    axis: Axes, curves: Mapping[str, Sequence[float]], *, chance: float | None = None, guess: str = "majority class"
) -> None:
    """Accuracy over the epochs of one training, a line for each part of the data.

    Args:
        axis: to draw on.
        curves: for each part, by its name, one share of 1 an epoch.
        chance: accuracy of an answer that needs no network, drawn dotted.
        guess: what this answer is.
    """
    for (name, values), (colour, marker) in zip(curves.items(), line_looks(), strict=False):
        axis.plot(range(1, len(values) + 1), values, color=colour, label=name, marker=marker or "o", markersize=2.5)
    if chance is not None:
        axis.axhline(chance, color=INK, linewidth=0.9, linestyle=":", label=guess)
    axis.set(xlabel="epoch", ylim=(0, 1))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axis.legend(loc="best")
