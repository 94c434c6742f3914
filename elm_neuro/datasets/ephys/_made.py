"""A stand-in for a recorded neuron: an adaptive integrate-and-fire neuron of known numbers, simulated step by step
here, by none of our layers, and written in the layout of NWB 1.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elm_neuro.datasets.ephys._nwb import Floats, Sweep
from elm_neuro.files import write_whole

REST_MV, THRESHOLD_MV, PEAK_MV = -70.0, -50.0, 30.0
LARGEST_PA = 300.0
STIMULI = ("Noise 1", "Noise 2")


@dataclass(frozen=True, kw_only=True)
class KnownNeuron:
    """Numbers of the neuron, as :class:`elm_neuro.nn.ALIF` has them.

    Args:
        tau_v: time constant of the membrane in ms.
        tau_a: time constant of the threshold's adaptation in ms.
        b: strength of the adaptation.
        weight: of the current, as a share of 100 times the largest.
        bias: current that is always there.
        latency: refractory period in ms.

    Raises:
        ValueError: a number is out of range.
    """

    tau_v: float = 14.0
    tau_a: float = 60.0
    b: float = 0.25
    weight: float = 2.2
    bias: float = 0.001
    latency: float = 2.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        for name in ("tau_v", "tau_a"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be a time above 0 ms, got {getattr(self, name)}")
        if self.latency < 0:
            raise ValueError(f"latency must be a time in ms, not negative, got {self.latency}")

    def run(self, current: Floats, step_ms: float) -> tuple[Floats, Floats]:
        """Membrane before the reset, and spikes, each (num_sweeps, num_steps), of currents as shares of 100 times the
        largest.
        """
        beta, p = np.exp(-step_ms / self.tau_v), np.exp(-step_ms / self.tau_a)
        steps = int(self.latency / step_ms + 1e-9)
        v, a, rest = (np.zeros(len(current)) for _ in range(3))
        membrane, spikes = np.empty_like(current), np.empty_like(current)
        for t in range(current.shape[1]):
            v = beta * v + (rest <= 0) * (self.weight * current[:, t] + self.bias)
            s = (v > 1.0 + self.b * a).astype(float)
            membrane[:, t], spikes[:, t] = v, s
            v, a, rest = v * (1.0 - s), p * a + s, np.where(s > 0, steps, rest - 1)
        return membrane, spikes


def make_ephys(
    path: str | os.PathLike[str],
    neuron: KnownNeuron | None = None,
    *,
    num_repeats: int = 4,
    starts_s: Sequence[float] = (2.0, 10.0, 18.0),
    duration_s: float = 3.0,
    noise: float = 0.02,
    seed: int = 0,
) -> None:
    """Write sweeps of "Noise 1" and of "Noise 2", 10 kHz, whole or not at all.

    Args:
        path: of the file.
        neuron: None for the numbers of :class:`KnownNeuron`.
        num_repeats: sweeps of each stimulus.
        starts_s: where the pieces of noise begin, in s.
        duration_s: length of each.
        noise: of the current that is not recorded, drawn anew in every sweep, beside the recorded one's.
        seed: of all random numbers.

    Raises:
        ImportError: h5py is not installed.
        ValueError: an argument is out of range.
        OSError: the file cannot be written.
    """
    numbers = (duration_s, noise, *starts_s)
    in_range = (
        num_repeats >= 1 and len(starts_s) > 0 and all(math.isfinite(number) and number >= 0 for number in numbers)
    )
    if not in_range or duration_s == 0:
        raise ValueError(
            "num_repeats must be at least 1, duration_s above 0, starts_s and noise not negative, all finite, got "
            f"{num_repeats}, {duration_s}, {list(starts_s)} and {noise}"
        )
    neuron, step_ms, rate = neuron or KnownNeuron(), 0.1, 10_000.0
    random = np.random.default_rng(seed)
    num_steps, length = round((max(starts_s) + duration_s) * rate), round(duration_s * rate)
    shares, taken = [], []  # as recorded, and as the neuron takes them in each sweep
    for _ in STIMULI:
        share = np.zeros(num_steps)
        for start_s in starts_s:
            start = round(start_s * rate)
            share[start : start + length] = np.maximum(1.0 + 0.8 * _coloured(random, length, 50.0), 0.0)
        share /= 100.0 * share.max()
        shares.append(share)
        taken += [share + noise * share.max() * _coloured(random, num_steps, 20.0) for _ in range(num_repeats)]
    membrane, spikes = neuron.run(np.stack(taken), step_ms)
    voltage = np.where(spikes > 0, PEAK_MV, REST_MV + (THRESHOLD_MV - REST_MV) * np.minimum(membrane, 1.4))
    sweeps = [
        Sweep(number, STIMULI[number // num_repeats], 100.0 * LARGEST_PA * shares[number // num_repeats], one, rate)
        for number, one in enumerate(voltage)
    ]
    write_sweeps(path, sweeps)


def write_sweeps(path: str | os.PathLike[str], sweeps: Sequence[Sweep]) -> None:
    """Write sweeps in the layout that :func:`read_sweeps` reads, in A and V as float32, whole or not at all.

    Raises:
        ImportError: h5py is not installed.
        OSError: the file cannot be written.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError('writing NWB files needs h5py: pip install "elm-neuro[data]"') from error
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["nwb_version"] = "NWB-1.0.5"
        for sweep in sweeps:
            kept = file.create_group(f"acquisition/timeseries/Sweep_{sweep.number}")
            kept["aibs_stimulus_name"] = sweep.stimulus
            place = file.create_group(f"epochs/Sweep_{sweep.number}")
            for part, values, unit, scale, group in (
                ("stimulus", sweep.current, "Amps", 1e-12, f"stimulus/presentation/Sweep_{sweep.number}"),
                ("response", sweep.voltage, "Volts", 1e-3, f"acquisition/timeseries/Sweep_{sweep.number}"),
            ):
                series = file.require_group(group)
                data = series.create_dataset("data", data=(values * scale).astype(np.float32), compression="gzip")
                data.attrs["unit"], data.attrs["conversion"] = unit, 1.0
                start = series.create_dataset("starting_time", data=0.0)
                start.attrs["rate"], start.attrs["unit"] = sweep.rate, "Seconds"
                place.create_group(part)["timeseries"] = h5py.SoftLink(f"/{group}")
    write_whole({Path(path): memory.getvalue()})


def _coloured(random: np.random.Generator, num: int, steps: float) -> Floats:
    """Noise of variance 1 that forgets exponentially within so many steps."""
    forgets = np.exp(-np.arange(np.ceil(15.0 * steps)) / steps)
    drawn = random.normal(size=num + forgets.size - 1)
    filtered: Floats = np.convolve(drawn, forgets, "valid") / np.sqrt(np.square(forgets).sum())
    return filtered
