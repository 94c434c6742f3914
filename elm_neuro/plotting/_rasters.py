"""Spike trains as rasters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from elm_neuro.plotting._checks import finite
from elm_neuro.plotting._style import BLUE, INK, Values, as_array, styled


@styled
def rasters(
    inputs: Sequence[Values],
    hidden: Sequence[Values],
    *,
    delta_t: float,
    titles: Sequence[str],
    layer: str = "the LIF layer",
) -> Figure:
    """Spikes of several samples side by side: the input above, the spiking layer that reads it below.

    Args:
        inputs: spike counts of each sample, (time, channel).
        hidden: spikes of the layer for each sample, (time, neuron).
        delta_t: time step in ms.
        titles: one a sample.
        layer: whose spikes those below are.

    Raises:
        ValueError: not one hidden raster and one title per input, or a count that is not finite.
    """
    if not len(inputs) == len(hidden) == len(titles) or not inputs:
        raise ValueError(
            f"inputs, hidden and titles must be as many, at least one, got {len(inputs)}, {len(hidden)} and "
            f"{len(titles)}"
        )
    inputs, hidden = ([finite(x, "inputs") for x in inputs], [finite(x, "hidden") for x in hidden])
    figure = Figure(figsize=(1.65 * len(inputs) + 0.6, 4.0))
    axes = figure.subplots(2, len(inputs), sharex=True, sharey="row", squeeze=False)
    for column, (above, below, title) in enumerate(zip(inputs, hidden, titles, strict=True)):
        draw_raster(axes[0, column], above, delta_t=delta_t, colour=INK, shaded=True)
        draw_raster(axes[1, column], below, delta_t=delta_t, colour=BLUE)
        axes[0, column].set_title(title)
        axes[1, column].set_xlabel("time (ms)")
        axes[1, column].xaxis.set_major_locator(MaxNLocator(2))
    axes[0, 0].set_ylabel("channel of the input")
    axes[1, 0].set_ylabel(f"neuron of {layer}")
    figure.align_ylabels(axes[:, 0])
    return figure


def draw_raster(axis: Axes, counts: Values, *, delta_t: float, colour: str = INK, shaded: bool = False) -> None:
    """A mark where there are spikes, over time in ms.

    Args:
        axis: to draw on.
        counts: spikes of one sample, (time, channel).
        delta_t: time step in ms.
        colour: of the marks.
        shaded: whether a mark is the paler, the fewer spikes it stands for.

    Raises:
        ValueError: a count is not finite.
    """
    spikes = finite(counts, "counts")
    step, channel = np.nonzero(spikes)
    counted = np.abs(spikes[step, channel])
    shade = counted / counted.max() if shaded and counted.size else None
    size = min(4.0, max(0.9, 260.0 / max(spikes.shape)))  # points: neighbouring rows just touch, and no mark vanishes
    axis.scatter(
        delta_t * (step + 0.5),
        channel,
        s=size**2 / 2,
        marker="s",
        linewidths=0,
        color=colour,
        alpha=shade,
        rasterized=True,
    )
    axis.set_xlim(0, delta_t * len(spikes))
    axis.set_ylim(-1, spikes.shape[1])


def by_latency(spikes: Values) -> NDArray[np.float64]:
    """Spikes (time, neuron) with the neurons in the order of the middle of their activity, silent ones last.

    >>> by_latency([[0, 0, 1], [0, 1, 0]]).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    counts = as_array(spikes)
    total = counts.sum(0)
    middle = np.where(total > 0, np.arange(len(counts)) @ counts / np.maximum(total, 1e-12), np.inf)
    return counts[:, np.argsort(middle, kind="stable")]
