"""Figures of neurons on NeuronIO: what happens inside one, how well it does, what its branches read. `plotting.save`
writes them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator
from numpy.typing import NDArray
from sklearn.metrics import auc, roc_curve
from torch import Tensor, nn

from elm_neuro.checkpoints import neuronio_head
from elm_neuro.datasets import Simulations
from elm_neuro.datasets.neuronio._simulations import NUM_SEGMENTS, SOMA_CAP_MV
from elm_neuro.datasets.neuronio._windows import gather
from elm_neuro.nn import ELM
from elm_neuro.plotting import BLUE, GREEN, INK, PALE, PALETTE, VERMILION, draw_memory, label_panel, note, styled
from elm_neuro.plotting._style import as_array, span
from elm_neuro.plotting._workings import busiest
from elm_neuro.training.neuronio._evaluation import Protocols, read
from elm_neuro.training.neuronio._metrics import FALSE_POSITIVES, Prediction

SYNAPSES_SHOWN = 20
FILES_NAMED = 3


@styled
def neuronio_workings(
    neuron: ELM, simulations: Simulations, index: int = 0, *, start: int = 0, stop: int = 2000
) -> Figure:
    """One stretch of a simulation on its way through a neuron: input, voltage and spikes against the truth, synapses,
    memory.

    The state is zero at `start`. As figure S7 of Spieler et al., arXiv:2306.16922.

    Args:
        neuron: trained on NeuronIO, two outputs.
        simulations: of one file.
        index: which of them.
        start: first step, in ms.
        stop: end, in ms.

    Raises:
        IndexError: there is no such simulation.
        ValueError: the steps are not within it.
    """
    indptr, channel = simulations.rows(index, start, stop)
    with torch.no_grad():
        traces = neuron.traces(gather([indptr], [channel], stop - start, "events"))
    synapse, _, memory, output = (as_array(record)[0] for record in traces)
    predicted = neuronio_head(torch.from_numpy(output))
    time = start + np.arange(stop - start)
    figure = Figure(figsize=(7.2, 7.4))
    raster, soma, synapses, memories = figure.subplots(4, 1, sharex=True, height_ratios=[1.2, 1.5, 1.0, 1.2])
    for kind, colour in ((channel < NUM_SEGMENTS, VERMILION), (channel >= NUM_SEGMENTS, BLUE)):
        step = np.repeat(time, np.diff(indptr))[kind]
        raster.scatter(step, channel[kind] % NUM_SEGMENTS, s=0.35, linewidths=0, color=colour, rasterized=True)
    raster.set_ylim(0, NUM_SEGMENTS)
    handles = [Line2D([], [], color=colour, marker="o", linestyle="", markersize=3) for colour in (VERMILION, BLUE)]
    raster.legend(
        handles, ["excitatory", "inhibitory"], loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.1
    )
    label_panel(raster, "a", "input spikes", "segment")
    truth = np.minimum(simulations.soma_mv[index, start:stop].astype(np.float64), SOMA_CAP_MV)
    soma.plot(time, truth, color=INK, linewidth=1.0)
    soma.plot(time, predicted.soma_mv, color=VERMILION, linewidth=0.9, alpha=0.9)
    fired = time[simulations.spikes(index)[start:stop]]
    soma.vlines(fired, SOMA_CAP_MV + 1, SOMA_CAP_MV + 5, color=INK, linewidth=1.2)
    low = min(float(truth.min()), float(predicted.soma_mv.min()))
    soma.set(
        ylim=(low - 16, SOMA_CAP_MV + 7), yticks=np.arange(10 * np.ceil(low / 10 - 0.5), SOMA_CAP_MV + 6, 10)
    )  # none beside the probability
    chance = soma.twinx()
    chance.plot(time, predicted.spike_probability, color=BLUE, linewidth=0.9)
    chance.set(ylim=(0, 4.2), yticks=[0, 1])
    chance.set_ylabel("spike\nprobability", color=BLUE, loc="bottom")
    handles = [Line2D([], [], color=colour) for colour in (INK, VERMILION, BLUE)]
    labels = ["cell", "predicted voltage", "predicted spike probability"]
    soma.legend(
        handles, labels, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderaxespad=0.1, columnspacing=1.0
    )
    label_panel(soma, "b", "soma", "voltage (mV)")
    flat = synapse.reshape(len(synapse), -1)
    synapses.plot(time, flat[:, busiest(flat, SYNAPSES_SHOWN)], color=GREEN, linewidth=0.7, alpha=0.6)
    label_panel(
        synapses,
        "c",
        f"synapses: the {min(SYNAPSES_SHOWN, flat.shape[1])} that change most of {flat.shape[1]}",
        "trace",
    )
    draw_memory(memories, time, memory, neuron.tau_m)
    label_panel(memories, "d", f"memory: all {memory.shape[1]} units", "memory")
    memories.set(xlabel="time (ms)", xlim=(start, stop))
    figure.align_ylabels([raster, soma, synapses, memories])
    return figure


@styled
def roc_curves(predictions: Mapping[str, Prediction]) -> Figure:
    """Share of spikes predicted against the share of false alarms, whole and at its low end, where the published
    figures look; the area under each curve is the AUC of the table made of the same predictions.

    Args:
        predictions: of each network, by its name: what the published figures are made of, or all.

    Raises:
        ValueError: there is none, or one holds no spike or nothing else.
    """
    if not predictions:
        raise ValueError("predictions must hold at least one network, got none")
    figure = Figure(figsize=(6.8, 3.3))
    whole, low = figure.subplots(1, 2)
    for (name, prediction), colour in zip(predictions.items(), PALETTE * len(predictions), strict=False):
        truth = prediction.spikes.ravel()
        if not truth.any() or truth.all():
            raise ValueError(
                f"predictions of {name!r} must hold steps with and without a spike, got {int(truth.sum())} of "
                f"{truth.size}"
            )
        fpr, tpr, _ = roc_curve(truth, prediction.probability.ravel())
        name = f"{name}, AUC {auc(fpr, tpr):.4f}"
        for axis in (whole, low):
            axis.plot(100 * fpr, 100 * tpr, color=colour, drawstyle="default", label=name)
    whole.plot([0, 100], [0, 100], color=PALE, linewidth=0.8, linestyle=":")
    for rate in FALSE_POSITIVES:
        low.axvline(100 * rate, color=INK, linewidth=0.8, linestyle=":")
    low.set_xlim(0, 150 * max(FALSE_POSITIVES))
    for axis, letter, title in ((whole, "a", "whole curve"), (low, "b", "few false alarms")):
        axis.set(xlabel="false positives (% of steps without a spike)", ylim=(0, 101))
        axis.grid(color="#DDDDDD", linewidth=0.6)
        label_panel(axis, letter, title)
    whole.set(xlim=(0, 100), ylabel="true positives (% of spikes)")
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(predictions)))
    return figure


def evaluation_figures(
    network: nn.Module,
    curves: Mapping[str, Protocols],
    file: str | os.PathLike[str],
    *,
    source: str | None = None,
) -> dict[str, Figure]:
    """The figures of an evaluation, by the names that their files get, as far as the network has them.

    "roc" is of the predictions that the published figures are made of, where there is a spike among them. Of an ELM
    neuron "workings" is the simulation of `file` with most spikes, up to 2 s of it; of one whose branches read NeuronIO
    "receptive_fields".

    Args:
        network: that was evaluated.
        curves: predictions by the names of their networks.
        file: a simulation file.
        source: what the data are; the names of the files by default.
    """
    (first, *_) = curves.values()
    more = len(first.files) - FILES_NAMED
    source = source or ", ".join(first.files[:FILES_NAMED]) + (f" and {more} more" if more > 0 else "")
    figures: dict[str, Figure] = {}
    if isinstance(network, ELM) and network.config.num_neuron is None:
        simulations = read(file)
        stop = min(2000, simulations.num_steps)
        index = max(range(len(simulations)), key=lambda i: int(simulations.spikes(i)[:stop].sum()))
        shown = neuronio_workings(network, simulations, index, stop=stop)
        figures["workings"] = note(shown, f"simulation {index} of {Path(file).name}, {source}")
        if network.config.num_branch is not None and network.config.input_size == 2 * NUM_SEGMENTS:
            figures["receptive_fields"] = note(receptive_fields(network), f"{next(iter(curves))}; {source}")
    if all(0 < one.published.spikes.sum() < one.published.spikes.size for one in curves.values()):
        roc = roc_curves({name: one.published for name, one in curves.items()})
        num = len(first.published.spikes)
        figures["roc"] = note(roc, f"{source}: published protocol, {num} simulations without their first 500 ms")
    return figures


@styled
def neuronio_ablation(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float, float]]]], *, xlabel: str = "parameters"
) -> Figure:
    """Figures of several families of networks against their size, or any other setting, as figure 2 of the paper.

    Args:
        panels: for each panel, by its title (such as "AUC"), for each family its points (setting, figure, lower and
            upper end of its interval or NaN), drawn in the order of the setting.
        xlabel: the setting and its unit, drawn on a log axis.

    Raises:
        ValueError: there is no panel, or a panel without a family.
    """
    if not panels or not all(panels.values()):
        raise ValueError(
            f"panels must hold at least one family each, got {[len(lines) for lines in panels.values()]} in {[*panels]}"
        )
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    figure = Figure(figsize=(max(3.6, 3.3 * len(panels)), 3.1))
    for axis, letter, (title, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], "abcdefgh", panels.items(), strict=False
    ):
        for name, points in lines.items():
            x, value, low, high = np.array(sorted(points), dtype=float).T
            colour, spread = (
                PALETTE[names.index(name) % len(PALETTE)],
                np.nan_to_num(np.stack((value - low, high - value))).clip(0),
            )
            axis.errorbar(
                x,
                value,
                yerr=spread,
                color=colour,
                marker="o",
                markersize=3.2,
                linewidth=1.3,
                elinewidth=0.8,
                capsize=2,
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_xticks([], minor=True)
        axis.set_xlabel(xlabel)
        axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        label_panel(axis, letter, title)
    handles = [Line2D([], [], color=PALETTE[i % len(PALETTE)], marker="o", markersize=3.2) for i in range(len(names))]
    figure.legend(handles, names, loc="outside lower center", ncols=min(5, len(names)))
    return figure


@styled
def receptive_fields(neuron: ELM) -> Figure:
    """What each branch reads: the weights of its synapses over the segments of the cell, excitatory and inhibitory
    apart.

    Args:
        neuron: with branches, 1278 inputs, one neuron.

    Raises:
        ValueError: it is another.
    """
    config = neuron.config
    if config.num_branch is None or config.input_size != 2 * NUM_SEGMENTS or config.num_neuron is not None:
        raise ValueError(f"neuron must have branches and {2 * NUM_SEGMENTS} inputs and be one, got {config}")
    fields = branch_weights(neuron)  # (branch, input)
    figure = Figure(figsize=(7.2, 5.0))
    axes = figure.subplots(2, 1, sharex=True)
    read = fields[fields > 0]
    low, high = span(read) if read.size else (0.0, 1.0)
    low -= 0.25 * (high - low)  # the smallest weight is not the white of no synapse
    for axis, letter, kind, colours, part in (
        (axes[0], "a", "excitatory synapses", "Oranges", fields[:, :NUM_SEGMENTS]),
        (axes[1], "b", "inhibitory synapses", "Blues", fields[:, NUM_SEGMENTS:]),
    ):
        image = axis.imshow(
            np.ma.masked_equal(part, 0.0),
            aspect="auto",
            origin="lower",
            cmap=colours,
            vmin=low,
            vmax=high,
            interpolation="nearest",
        )
        label_panel(axis, letter, kind, "branch")
        bar = figure.colorbar(image, ax=axis, pad=0.01, aspect=14)
        bar.set_label("weight")
        bar.outline.set_linewidth(0.5)
    axes[1].set_xlabel("segment of the cell")
    return figure


def branch_weights(neuron: ELM) -> NDArray[np.float64]:
    """Summed weights of the synapses of each branch on each input, (num_branch, input_size)."""
    weights: Tensor = neuron.w_s.detach().double().cpu()
    index: Any = neuron.cell.settled_routing()
    index = torch.arange(weights.numel()).view(weights.shape) if index is None else index.cpu().view(weights.shape)
    fields = torch.zeros(weights.shape[0], neuron.config.input_size, dtype=torch.float64)
    valid = index >= 0
    return fields.scatter_add_(1, index.clamp(min=0), weights * valid).numpy()
