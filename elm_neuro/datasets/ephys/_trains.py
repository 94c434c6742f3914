"""Sweeps cut into samples: current, voltage and spikes at the time step of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets.ephys._nwb import Floats, Sweep


class SpikeTrains(NamedTuple):
    """Samples of repeated sweeps."""

    current: Floats  # pA, (num_repeats, num_samples, num_steps)
    voltage: Floats  # mV, the same shape
    spikes: NDArray[np.bool_]  # the same shape
    step_ms: float


def cut_sweeps(
    sweeps: Sequence[Sweep],
    *,
    starts_s: Sequence[float] = (2.0, 10.0, 18.0),
    duration_s: float = 1.0,
    step_ms: float = 0.1,
    spike_mv: float = -20.0,
) -> SpikeTrains:
    """Samples of sweeps that repeat one stimulus; the defaults are those of Taylor, King, Harper, NeurIPS 2023: the
    first second of each of the three pieces of noise, at 10 kHz.

    A step holds the current and voltage of its first sample, as there, and a spike where the voltage rises through
    `spike_mv` in it (there: where the features of the Allen Institute place one).

    Args:
        sweeps: at least one, of one rate, which must be a whole multiple of the steps'.
        starts_s: where the samples begin, in s.
        duration_s: length of each.
        step_ms: time step of the model.
        spike_mv: what the voltage rises through in a spike.

    Raises:
        ValueError: an argument is out of range, or a sweep is too short.

    >>> sweep = Sweep(0, "Noise 1", np.arange(8.0), np.array([-70.0, -70, 10, 20, -70, -70, -70, 30]), 2000.0)
    >>> trains = cut_sweeps([sweep], starts_s=[0.0], duration_s=0.004, step_ms=1.0)
    >>> trains.current[0, 0], trains.spikes[0, 0]
    (array([0., 2., 4., 6.]), array([False,  True, False,  True]))
    """
    if not sweeps or not starts_s:
        raise ValueError(f"sweeps and starts_s must not be empty, got {len(sweeps)} and {len(starts_s)}")
    times = [("step_ms", step_ms), ("duration_s", duration_s), *(("starts_s", start_s) for start_s in starts_s)]
    for name, value in [*times, ("spike_mv", spike_mv)]:
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    for sweep in sweeps:
        if not 0 < sweep.rate < math.inf:
            raise ValueError(f"rate of sweep {sweep.number} must be above 0 Hz and finite, got {sweep.rate}")
        if sweep.voltage.shape != sweep.current.shape:
            raise ValueError(
                f"sweep {sweep.number} must have as many samples of current and voltage, got {sweep.current.size} and "
                f"{sweep.voltage.size}"
            )
    rates = {sweep.rate for sweep in sweeps}
    if len(rates) > 1:
        raise ValueError(f"sweeps must have one rate, got {sorted(rates)} Hz")
    (rate,) = rates
    factor = round(rate * step_ms / 1000.0)
    num_steps = round(duration_s * 1000.0 / step_ms) if factor > 0 else 0
    if factor < 1 or num_steps < 1 or abs(factor - rate * step_ms / 1000.0) > 1e-6 * factor:
        raise ValueError(
            f"step_ms must be a whole number of the sweeps' samples, and duration_s not shorter, got {step_ms} ms, "
            f"{duration_s} s and samples of {1000.0 / rate} ms"
        )
    current, voltage, spikes = [], [], []
    for sweep in sweeps:
        for start_s in starts_s:
            start = round(start_s * rate)
            end = start + factor * num_steps
            if start < 0 or end > sweep.current.size:
                raise ValueError(
                    f"starts_s and duration_s must lie within sweep {sweep.number} of {sweep.current.size / rate} s, "
                    f"got {start_s} s and {duration_s} s"
                )
            before = sweep.voltage[start - 1] if start else sweep.voltage[0]
            above = np.concatenate(([before], sweep.voltage[start:end])) > spike_mv
            current.append(sweep.current[start:end:factor])
            voltage.append(sweep.voltage[start:end:factor])
            spikes.append((above[1:] & ~above[:-1]).reshape(num_steps, factor).any(1))
    shape = len(sweeps), len(starts_s), num_steps
    return SpikeTrains(
        np.stack(current).reshape(shape), np.stack(voltage).reshape(shape), np.stack(spikes).reshape(shape), step_ms
    )
