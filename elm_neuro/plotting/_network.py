"""A recurrent layer of ELM neurons: who reads what, who is active when, and what its memories are made of."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from elm_neuro.plotting._checks import finite, positive_times
from elm_neuro.plotting._rasters import draw_raster
from elm_neuro.plotting._style import (
    BLUE,
    INK,
    PALE,
    VERMILION,
    Values,
    as_array,
    label_panel,
    plain_log_ticks,
    span,
    styled,
)

MOST_COLUMNS = 64  # of the inputs in the picture of the wiring; more are pooled


@styled
def elm_network(
    x: Values, activity: Values, *, wiring: Values, tau_m: Values, delta_t: float, title: str = "one sample"
) -> Figure:
    """The layer and one sample in it: the synapses between sources and neurons, the input, the activity, and the time
    constants.

    Args:
        x: input of one sample, (time, input_size).
        activity: that the layer gave for it, (time, num_neuron).
        wiring: source of each synapse, (num_neuron, num_branch, num_synapse_per_branch):
            :attr:`elm_neuro.nn.ELMNetwork.wiring`.
        tau_m: time constants of the memory units in ms, (num_neuron, num_memory).
        delta_t: time step in ms.
        title: what the sample is.

    Raises:
        ValueError: the wiring does not fit the input and the activity, these are not finite, or time constants are not
            above 0.
    """
    inputs, active, sources = finite(x, "x"), finite(activity, "activity"), as_array(wiring).astype(np.int64)
    input_size, num_neuron = inputs.shape[1], active.shape[1]
    if sources.ndim != 3 or sources.shape[0] != num_neuron or int(sources.max()) >= input_size + num_neuron:
        raise ValueError(
            f"wiring must be (num_neuron, num_branch, num_synapse_per_branch) of {input_size} inputs and {num_neuron} "
            f"neurons, got shape {sources.shape}"
        )
    count = np.zeros((num_neuron, input_size + num_neuron))
    np.add.at(count, (np.arange(num_neuron)[:, None], sources.reshape(num_neuron, -1)), 1)
    pool = -(-input_size // MOST_COLUMNS)
    from_inputs = np.add.reduceat(count[:, :input_size], np.arange(0, input_size, pool), axis=1) / pool
    from_neurons = count[:, input_size:]
    figure = Figure(figsize=(10.0, 5.6))
    grid = figure.add_gridspec(2, 2, width_ratios=[1.0, 1.25])
    split = grid[0, 0].subgridspec(1, 2, width_ratios=[1.4, 1.0])
    outside, inside = figure.add_subplot(split[0, 0]), figure.add_subplot(split[0, 1])
    for axis, part, reach, what in (
        (outside, from_inputs, input_size, f"input{' (mean of ' + str(pool) + ')' if pool > 1 else ''}"),
        (inside, from_neurons, num_neuron, "neuron"),
    ):
        image = axis.imshow(
            part, aspect="auto", origin="lower", cmap="Blues", vmin=0.0, extent=(0, reach, 0, num_neuron)
        )
        figure.colorbar(image, ax=axis, pad=0.02, aspect=14)
        axis.set_xlabel(what)
        axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    share = from_neurons.sum() / count.sum()
    label_panel(outside, "a", "synapses from inputs", "neuron")
    label_panel(inside, "b", f"from neurons ({share:.0%})")
    taus = np.sort(positive_times(tau_m, "tau_m").reshape(num_neuron, -1), axis=1)
    times = figure.add_subplot(grid[1, 0])
    rank = np.arange(1, taus.shape[1] + 1)
    times.plot(rank, taus.T, color=PALE, linewidth=0.6, alpha=0.5)
    times.plot(rank, np.median(taus, axis=0), "o-", color=VERMILION, markersize=3.5)
    times.set(yscale="log", xlabel="memory unit of a neuron")
    low, high = span(taus)
    times.set_ylim(low / 1.4, high * 1.4)
    times.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    plain_log_ticks(times)
    label_panel(times, "c", "time constants: each neuron, median", r"$\tau_m$ (ms)")
    above = figure.add_subplot(grid[0, 1])
    draw_raster(above, inputs, delta_t=delta_t, colour=INK)
    label_panel(above, "d", f"input: {title}", "channel")
    above.tick_params(labelbottom=False)
    below = figure.add_subplot(grid[1, 1], sharex=above)
    if set(np.unique(active)) <= {0.0, 1.0}:
        draw_raster(below, active, delta_t=delta_t, colour=BLUE)
    else:
        size = float(np.quantile(np.abs(active), 0.995)) or 1.0
        signed = bool((active < 0).any())
        image = below.imshow(
            active.T,
            aspect="auto",
            origin="lower",
            cmap="RdBu_r" if signed else "Blues",
            vmin=-size if signed else 0.0,
            vmax=size,
            extent=(0.0, delta_t * len(active), 0.0, float(num_neuron)),
        )
        figure.colorbar(image, ax=below, pad=0.01, aspect=20)
    below.set_xlabel("time (ms)")
    label_panel(below, "e", "activity of the layer", "neuron")
    return figure
