"""A fitted neuron beside the recorded one."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from elm_neuro.datasets import SpikeTrains
from elm_neuro.plotting import BLUE, INK, PALE, VERMILION, label_panel, styled


@styled
def spike_trains_beside(recorded: SpikeTrains, predicted: NDArray[np.bool_], *, sample: int = 0) -> Figure:
    """Current, voltage of the first repeat, and the spikes of all repeats and of the model.

    Args:
        recorded: the recording.
        predicted: spikes of the model, (num_samples, num_steps).
        sample: which sample is shown.

    Raises:
        ValueError: the shapes do not fit, or there is no such sample.
    """
    num_repeats, num_samples, num_steps = recorded.spikes.shape
    if predicted.shape != (num_samples, num_steps) or not 0 <= sample < num_samples:
        raise ValueError(
            f"predicted must have shape ({num_samples}, {num_steps}) and sample be below {num_samples}, got "
            f"{predicted.shape} and {sample}"
        )
    time = np.arange(num_steps) * recorded.step_ms
    figure = Figure(figsize=(6.8, 4.4))
    current, voltage, spikes = figure.subplots(3, 1, sharex=True, height_ratios=[1, 1.6, 0.28 * (num_repeats + 2)])
    current.plot(time, recorded.current[0, sample], color=PALE, linewidth=0.7)
    label_panel(current, "a", "injected current", "pA")
    voltage.plot(time, recorded.voltage[0, sample], color=INK, linewidth=0.7)
    label_panel(voltage, "b", "recorded voltage, first repeat", "mV")
    trains = [np.flatnonzero(row) * recorded.step_ms for row in (*recorded.spikes[:, sample], predicted[sample])]
    rows = [*range(num_repeats, 0, -1), -0.4]
    colours = [INK] * num_repeats + [VERMILION]
    spikes.eventplot(trains, lineoffsets=rows, linelengths=0.7, linewidths=1.2, colors=colours)
    spikes.axhline(0.3, color=BLUE, linewidth=0.6, linestyle=":")
    spikes.set(yticks=[(num_repeats + 1) / 2, -0.4], yticklabels=["recorded", "fitted"], xlim=(0, time[-1]))
    spikes.tick_params(axis="y", length=0)
    spikes.set_xlabel("time (ms)")
    label_panel(spikes, "c", "spikes")
    figure.align_ylabels([current, voltage])
    return figure
