"""What a neuron is driven with: a recording in NeuronIO's or SHD's format, or Poisson spikes that are made here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from elm_neuro.events import SpikeEvents
from elm_neuro.look._parts import NUM_NEURONIO_INPUTS

RATE_HZ = 10.0  # about what NeuronIO's excitatory and inhibitory inputs have
NUM_MADE, NUM_READ = 1000.0, 2000.0  # ms that are looked at
FEWEST_STEPS = 100
MOST_STEPS, MOST_NUMBERS = 20_000, 1 << 27  # that are gone through one by one; of the frames


@dataclass(frozen=True)
class Drive:
    """One sequence of input spikes.

    Args:
        events: batch 1.
        what: where it comes from, in a few words.
        soma_mv: what the recorded cell did, (time,); None where nothing is known.
        spikes: whether the recorded cell fired, (time,); None where nothing is known.
    """

    events: SpikeEvents
    what: str
    soma_mv: NDArray[np.float64] | None = None
    spikes: NDArray[np.bool_] | None = None


def poisson_drive(
    num_channels: int,
    delta_t: float,
    *,
    num_excitatory: int | None = None,
    duration_ms: float | None = None,
    rate_hz: float = RATE_HZ,
    seed: int = 0,
) -> Drive:
    """Poisson spikes on every channel, the same for the same seed.

    Args:
        num_channels: number of inputs.
        delta_t: time step in ms.
        num_excitatory: the channels from here on are inhibitory, their spikes -1; None: all spikes are +1.
        duration_ms: length; 1 s by default, at least 100 steps.
        rate_hz: mean rate of a channel.
        seed: of the random numbers.

    Raises:
        ValueError: length or rate are not above 0, there would be more than one spike a channel and step, or `seed` is
            out of range.
    """
    check_seed(seed)
    if not 0 < rate_hz * delta_t <= 1000:
        raise ValueError(f"rate must be above 0 and at most a spike a step, {1000 / delta_t:g} Hz, got {rate_hz:g} Hz")
    duration = max(NUM_MADE, FEWEST_STEPS * delta_t) if duration_ms is None else duration_ms
    num_steps = _steps(duration, delta_t, num_channels)
    generator = torch.Generator().manual_seed(seed)
    expected = rate_hz * delta_t / 1000 * num_steps * num_channels
    total = int(torch.poisson(torch.tensor([expected], dtype=torch.float64, device="cpu"), generator=generator))
    step = torch.randint(num_steps, (total,), generator=generator, device="cpu")
    channel = torch.randint(num_channels, (total,), generator=generator, device="cpu")
    sign = None if num_excitatory is None else torch.where(channel < num_excitatory, 1.0, -1.0)
    events = SpikeEvents.from_arrays(step, channel, sign, delta_t=1, num_steps=num_steps, num_channels=num_channels)
    length = f"{num_steps * delta_t:g} ms"
    return Drive(
        events,
        f"made input: Poisson spikes of {rate_hz:g} Hz on each of {num_channels} channels, {length}, seed {seed}",
    )


def check_seed(seed: int) -> None:
    """Refuse a seed that torch's generators do not take.

    Raises:
        ValueError: it is out of range.
    """
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be in [-2**63, 2**64), got {seed}")


def read_drive(
    path: str | os.PathLike[str],
    num_channels: int,
    delta_t: float,
    *,
    index: int | None = None,
    duration_ms: float | None = None,
) -> Drive:
    """One recording of a file: a simulation of NeuronIO (pickle, or converted) or a sample in SHD's format.

    Args:
        path: the file, or the folder of a converted one.
        num_channels: number of inputs of the neuron. SHD's 700 channels are pooled by the whole number that gives it.
        delta_t: time step of the neuron in ms, the width of SHD's bins.
        index: which simulation or sample; by default the simulation with most spikes in the time, or the first sample.
        duration_ms: from the beginning; 2 s of a simulation, 1 s of a sample by default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of neither format, is damaged, or has other channels or time steps than the neuron; it
            has no such simulation or sample.
        ImportError: the extra ``data`` is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"data must be a NeuronIO or SHD-format file, got {path}, which does not exist")
    if path.suffix == ".p" or path.is_dir() or _is_converted(path):
        return _simulation(path, num_channels, delta_t, index, duration_ms)
    return _sample(path, num_channels, delta_t, index, duration_ms)


def _steps(duration_ms: float, delta_t: float, num_channels: int) -> int:
    """Steps of a duration."""
    longest = min(MOST_STEPS, MOST_NUMBERS // num_channels) * delta_t
    if not 2 * delta_t <= duration_ms <= longest:
        raise ValueError(
            f"duration must be at least two time steps, {2 * delta_t:g} ms, and at most {longest:g} ms with "
            f"{num_channels} inputs, got {duration_ms:g} ms"
        )
    return int(duration_ms / delta_t + 1e-9)


def _is_converted(path: Path) -> bool:
    """Whether it is a converted file of NeuronIO by what it says of itself."""
    from elm_neuro.datasets.hdf5._file import File
    from elm_neuro.datasets.neuronio._store import FORMAT
    from elm_neuro.files import open_regular

    try:
        with open_regular(path) as stream:
            return File(stream).attribute("format") == FORMAT
    except (OSError, ValueError, TypeError, OverflowError, MemoryError):  # who reads it will say so
        return False


def _simulation(path: Path, num_channels: int, delta_t: float, index: int | None, duration_ms: float | None) -> Drive:
    from elm_neuro.datasets import open_simulations, read_simulation_file
    from elm_neuro.datasets.neuronio._windows import gather

    if num_channels != NUM_NEURONIO_INPUTS or delta_t != 1.0:
        raise ValueError(
            f"data of NeuronIO need a neuron of {NUM_NEURONIO_INPUTS} inputs and steps of 1 ms, got one of "
            f"{num_channels} inputs and {delta_t:g} ms for {path}"
        )
    simulations = read_simulation_file(path) if path.suffix == ".p" else open_simulations(path)
    stop = min(_steps(NUM_READ if duration_ms is None else duration_ms, delta_t, num_channels), simulations.num_steps)
    chosen = index
    if chosen is None:
        chosen = max(range(len(simulations)), key=lambda i: int(simulations.spikes(i)[:stop].sum()))
    if not 0 <= chosen < len(simulations):
        raise ValueError(f"index must be in [0, {len(simulations)}), the simulations in {path}, got {chosen}")
    indptr, channel = simulations.rows(chosen, 0, stop)
    if channel.size and int(channel.max()) >= NUM_NEURONIO_INPUTS:
        raise ValueError(f"{path}: channels must be below {NUM_NEURONIO_INPUTS}, got {int(channel.max())}")
    events: Any = gather([indptr], [channel], stop, "events")
    what = f"simulation {chosen} of {path.name}, its first {stop} ms"
    soma = simulations.soma_mv[chosen, :stop].astype(np.float64)
    return Drive(events, what, soma, simulations.spikes(chosen)[:stop])


def _sample(path: Path, num_channels: int, delta_t: float, index: int | None, duration_ms: float | None) -> Drive:
    from elm_neuro.datasets import SHDDataset, read_shd

    recordings = read_shd(path)
    there = recordings.num_channels
    pool = -(-there // num_channels)
    if not 1 <= pool <= there or -(-there // pool) != num_channels:
        raise ValueError(
            f"data in SHD's format need a neuron of {there} inputs, or of as many as pooling them by a whole number "
            f"gives, got one of {num_channels} inputs for {path}"
        )
    chosen = 0 if index is None else index
    if not 0 <= chosen < len(recordings):
        raise ValueError(f"index must be in [0, {len(recordings)}), the samples in {path}, got {chosen}")
    duration = max(NUM_MADE, delta_t) if duration_ms is None else duration_ms
    duration = _steps(duration, delta_t, num_channels) * delta_t
    samples = SHDDataset(recordings, bin_ms=delta_t, duration_ms=duration, pool=pool)
    events, label, _ = samples[chosen]
    pooled = f", {pool} channels pooled to one" if pool > 1 else ""
    what = f"sample {chosen} of {path.name}, class {label}, {duration:g} ms in bins of {delta_t:g} ms{pooled}"
    return Drive(events, what)  # type: ignore[arg-type]  # events are what was asked for
