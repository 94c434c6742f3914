"""NeuronIO: input spikes and output of a detailed layer 5 pyramidal cell (Beniaguev et al. 2021), read from the
published pickles.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets._items import index_of
from elm_neuro.datasets.neuronio._pickle import load
from elm_neuro.files import open_regular
from elm_neuro.functional import SOMA_BIAS_MV as SOMA_BIAS_MV
from elm_neuro.functional import SOMA_CAP_MV as SOMA_CAP_MV
from elm_neuro.functional import SOMA_SCALE_MV as SOMA_SCALE_MV

NUM_SEGMENTS = 639  # Beniaguev et al. 2021, doi 10.1016/j.neuron.2021.07.002: segments of the dendrites
NUM_INPUTS = 2 * NUM_SEGMENTS  # one excitatory synapse on each, channels 0 to 638, and one inhibitory, 639 to 1277
WANTED = ("exInputSpikeTimes", "inhInputSpikeTimes", "outputSpikeTimes", "somaVoltageLowRes")
MAX_NUMBERS = 1 << 25  # of one kind in one simulation
REFUSALS = (  # what unpickling and looking at damaged data may end in
    pickle.UnpicklingError, ValueError, TypeError, AttributeError, IndexError, KeyError, EOFError,
    OverflowError, RecursionError, MemoryError, UnicodeError, struct.error,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Simulations:
    """Simulations of one file, all of the same length, in steps of 1 ms. What came in at step t arrived at t ms; the
    voltage is that at t ms.

    The input spikes of simulation ``i`` in step ``t`` are entries ``indptr[row] : indptr[row + 1]`` of `channel`, with
    ``row = i * num_steps + t``: a window of time is one slice.

    Args:
        indptr: row boundaries, (num_simulations * num_steps + 1,), integers from 0 to the number of input spikes, never
            falling.
        channel: synapse of each input spike, (num_events,), uint16: 0 to 638 excitatory, 639 to 1277 inhibitory, in the
            order of the segments; rising within a step.
        soma_mv: voltage of the soma in mV, spikes not cut off, (num_simulations, num_steps), float16 as published, or
            float32.
        spike_indptr: boundaries of the simulations in `spike_step`, (num_simulations + 1,), int64.
        spike_step: step of each output spike, ``int(t - 0.5)`` for a spike at t ms, (num_spikes,), int32. Published
            times are float16: on a grid of 2 ms from 2048 ms and of 4 ms from 4096 ms on, where half to three quarters
            of the spikes are a step or two off. That caps the share of spikes that any model can time right; AUC hardly
            sees it.
    """

    indptr: NDArray[np.integer[Any]]
    channel: NDArray[np.uint16]
    soma_mv: NDArray[np.floating[Any]]
    spike_indptr: NDArray[np.int64]
    spike_step: NDArray[np.int32]

    def __len__(self) -> int:
        return int(self.soma_mv.shape[0])

    @property
    def num_steps(self) -> int:
        """Length of each simulation in ms."""
        return int(self.soma_mv.shape[1])

    @property
    def num_events(self) -> int:
        """Number of input spikes of all simulations."""
        return int(self.channel.shape[0])

    @property
    def num_spikes(self) -> int:
        """Number of output spikes of all simulations."""
        return int(self.spike_step.shape[0])

    def rows(self, index: int, start: int = 0, stop: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """Row boundaries, (steps + 1,), from 0, and channels of the input spikes of simulation `index` from step
        `start` to `stop` (exclusive).

        Raises:
            IndexError: there is no such simulation.
            ValueError: the steps are not within it.
        """
        stop = self.num_steps if stop is None else stop
        if not 0 <= start <= stop <= self.num_steps:
            raise ValueError(f"start and stop must rise within the {self.num_steps} steps, got {start} and {stop}")
        first = index_of(index, len(self)) * self.num_steps
        indptr = self.indptr[first + start : first + stop + 1].astype(np.int64)
        return indptr - indptr[0], self.channel[indptr[0] : indptr[-1]]

    def spikes(self, index: int) -> NDArray[np.bool_]:
        """Whether the neuron fired in each step of simulation `index`, (num_steps,).

        Raises:
            IndexError: there is no such simulation.
        """
        index = index_of(index, len(self))
        fired = np.zeros(self.num_steps, dtype=np.bool_)
        fired[self.spike_step[self.spike_indptr[index] : self.spike_indptr[index + 1]]] = True
        return fired

    def __repr__(self) -> str:
        sizes = (
            f"num_simulations={len(self)}, num_steps={self.num_steps}, num_events={self.num_events}, "
            f"num_spikes={self.num_spikes}"
        )
        return f"Simulations({sizes})"


def soma_target(soma_mv: NDArray[Any]) -> NDArray[np.float32]:
    """What networks are trained to give for the soma: the voltage in mV, capped at -55 mV, above -67.7 mV, divided by
    10; float32.

    Source: ``preprocess_data`` in upstream's ``neuronio_data_loader.py`` at 52e68a6.

    >>> soma_target(np.array([-67.7, -57.7, 20.0])).round(4)
    array([0.  , 1.  , 1.27], dtype=float32)
    """
    capped = np.minimum(soma_mv.astype(np.float32), np.float32(SOMA_CAP_MV))
    return np.asarray((capped - np.float32(SOMA_BIAS_MV)) * np.float32(1 / SOMA_SCALE_MV), dtype=np.float32)


def read_simulation_file(path: str | os.PathLike[str]) -> Simulations:
    """The simulations of one file of the NeuronIO data set, a pickle that Python 2 wrote.

    Files come from strangers: nothing but numbers, strings, tuples, lists, dicts and numpy arrays is built, and no
    function is called (:mod:`elm_neuro.datasets.neuronio._pickle`). Voltages of dendrites and traces of finer steps are
    left out while reading.

    Args:
        path: the file, usually ``*sim__saved_InputSpikes*.p``; any number of simulations of any one length.

    Returns:
        Input spikes (ms), output spikes (steps of 1 ms) and the voltage of the soma (mV) of all simulations.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file is damaged, holds anything else, or breaks a rule of the format; the message names file and
            reason.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"path must name a NeuronIO simulation file, got {name}, which does not exist")
    try:
        with open_regular(name) as file:
            size = os.fstat(file.fileno()).st_size
            content = load(file, size, wanted=WANTED)
        return _simulations(content, size)
    except REFUSALS as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} must be a whole NeuronIO simulation file, got: {reason}") from error


def _simulations(content: Any, size: int) -> Simulations:
    """Simulations of a file of `size` bytes, which has at least two for a voltage and one for a spike: the memo of a
    pickle can repeat them, so that what they come to is counted before it is built.
    """
    listed = _get(_get(content, "Results", "the file"), "listOfSingleSimulationDicts", "Results")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"listOfSingleSimulationDicts must be a list of at least one simulation, got {_kind(listed)}")
    soma: list[NDArray[Any]] = []
    for i, one in enumerate(listed):
        soma.append(_voltage(_get(one, "somaVoltageLowRes", f"simulation {i}"), i, size // 2))
        if soma[i].size != soma[0].size:
            raise ValueError(
                f"all simulations must be as long, got lengths of {sorted((soma[0].size, soma[i].size))} ms"
            )
        if 2 * soma[0].size * (i + 1) > size:
            raise ValueError(
                f"a file of {size} bytes must hold every voltage once, got {len(listed)} simulations of "
                f"{soma[0].size} ms"
            )
    num_steps = soma[0].size
    params = content.get("Params")
    seconds = params.get("totalSimDurationInSec") if isinstance(params, dict) else None
    if isinstance(seconds, int | float) and round(1000 * seconds) != num_steps:
        raise ValueError(
            f"somaVoltageLowRes must have a value for each of the {seconds} s of Params, got {num_steps} ms"
        )
    counts, channels, spikes, num_spikes = [], [], [], 0
    for i, one in enumerate(listed):
        cells = np.concatenate(
            [_inputs(one, key, num_steps, i, first, size) for key, first in ((WANTED[0], 0), (WANTED[1], NUM_SEGMENTS))]
        )
        spikes.append(_outputs(_get(one, "outputSpikeTimes", f"simulation {i}"), num_steps, i, size))
        num_spikes += cells.size + spikes[i].size
        if num_spikes > size:
            raise ValueError(f"a file of {size} bytes must hold every spike once, got {num_spikes} or more")
        cells.sort()
        cells = cells[np.diff(cells, prepend=-1) > 0]  # twice in one step on one synapse counts once, as upstream
        step, channel = np.divmod(cells, NUM_INPUTS)
        counts.append(np.bincount(step, minlength=num_steps))
        channels.append(channel.astype(np.uint16))
    indptr = np.concatenate(([0], np.cumsum(np.concatenate(counts))))
    spike_indptr = np.concatenate(([0], np.cumsum([own.size for own in spikes])))
    return Simulations(indptr, np.concatenate(channels), np.stack(soma), spike_indptr, np.concatenate(spikes))


def _get(owner: Any, key: str, what: str) -> Any:
    if not isinstance(owner, dict) or key not in owner:
        had = ", ".join(sorted(map(_name, islice(owner, 10)))) or "nothing" if isinstance(owner, dict) else _kind(owner)
        raise ValueError(f"{what} must be a dict with {key}, got {had}")
    return owner[key]


def _name(key: Any) -> str:
    """A key for a message: short, however large what it holds is."""
    return key[:40] if isinstance(key, str) else f"a {type(key).__name__}"


def _kind(value: Any) -> str:
    return f"an empty {type(value).__name__}" if isinstance(value, list | dict) and not value else type(value).__name__


def _numbers(value: Any, what: str, limit: int) -> NDArray[Any]:
    """The values of an array stored as one, or of at most `limit` numbers in a list."""
    found: Any = np.asarray(_flat(value, what, limit)) if isinstance(value, list) else getattr(value, "values", None)
    if not isinstance(found, np.ndarray) or found.ndim != 1:
        raise ValueError(
            f"{what} must be an array of one dimension, got "
            f"{_kind(value) if found is None else f'shape {np.shape(found)}'}"
        )
    return found


def _flat(values: list[Any], what: str, limit: int) -> NDArray[Any]:
    """The numbers of a list, in which some may come as arrays, at most `limit`."""
    limit = min(limit, MAX_NUMBERS)
    if len(values) > limit:
        raise ValueError(f"{what} must hold at most {limit} numbers, got {len(values)} or more")
    if not all(isinstance(value, int | float | np.ndarray) for value in values):
        raise ValueError(
            f"{what} must hold numbers, got "
            f"{next(_kind(v) for v in values if not isinstance(v, int | float | np.ndarray))}"
        )
    if len(values) == 1 and isinstance(values[0], np.ndarray):
        return values[0]
    if (size := sum(value.size if isinstance(value, np.ndarray) else 1 for value in values)) > limit:
        raise ValueError(f"{what} must hold at most {limit} numbers, got {size}")
    return np.concatenate([np.atleast_1d(value) for value in values]) if values else np.empty(0, dtype=np.int64)


def _voltage(value: Any, simulation: int, limit: int) -> NDArray[Any]:
    what = f"somaVoltageLowRes of simulation {simulation}"
    voltage = _numbers(value, what, limit)
    if voltage.dtype.kind != "f" or not voltage.size:
        raise ValueError(f"{what} must hold at least one voltage in mV, got {voltage.size} of {voltage.dtype}")
    if not np.isfinite(voltage).all():
        raise ValueError(
            f"{what} must be finite, got {voltage[~np.isfinite(voltage)][0]} at "
            f"{int(np.argmin(np.isfinite(voltage)))} ms"
        )
    return voltage.astype(np.float16 if voltage.dtype.itemsize == 2 else np.float32)


def _inputs(
    simulation: Mapping[str, Any], key: str, num_steps: int, index: int, first: int, limit: int
) -> NDArray[np.int64]:
    """Place ``step * 1278 + channel`` of each input spike of one kind of synapse, at most `limit`."""
    what = f"{key} of simulation {index}"
    spikes = _get(simulation, key, f"simulation {index}")
    if (
        not isinstance(spikes, dict)
        or len(spikes) != NUM_SEGMENTS
        or not all(isinstance(k, int) and 0 <= k < NUM_SEGMENTS for k in spikes)
    ):
        raise ValueError(
            f"{what} must be a dict of {NUM_SEGMENTS} segments, 0 to 638, got "
            f"{len(spikes) if isinstance(spikes, dict) else _kind(spikes)}"
        )
    lists = [own if isinstance(own, list) else [_numbers(own, what, limit)] for own in spikes.values()]
    if sum(map(len, lists)) > limit:
        raise ValueError(f"{what} must hold every spike once, got more than the file's {limit} bytes")
    count = [sum(value.size if isinstance(value, np.ndarray) else 1 for value in own) for own in lists]
    if sum(count) > NUM_SEGMENTS * num_steps:
        raise ValueError(f"{what} must hold at most one spike per segment and ms, got {sum(count)} in {num_steps} ms")
    times = _flat([value for own in lists for value in own], what, limit)
    if times.dtype.kind not in "ui" and times.size:
        raise ValueError(f"{what} must hold whole ms, got {times.dtype}")
    if times.size and (times.min() < 0 or times.max() >= num_steps):
        raise ValueError(
            f"{what} must be in [0, {num_steps}) ms, got {int(times.min() if times.min() < 0 else times.max())}"
        )
    return times.astype(np.int64) * NUM_INPUTS + np.repeat(np.fromiter(spikes, np.int64, NUM_SEGMENTS) + first, count)


def _outputs(value: Any, num_steps: int, simulation: int, limit: int) -> NDArray[np.int32]:
    what = f"outputSpikeTimes of simulation {simulation}"
    times = _numbers(value, what, limit)
    if times.dtype.kind not in "fui" and times.size:
        raise ValueError(f"{what} must hold times in ms, got {times.dtype}")
    times = times.astype(np.float64)
    if not (np.isfinite(times) & (times >= 0)).all() or (times - 0.5 >= num_steps).any():
        raise ValueError(
            f"{what} must be in [0, {num_steps}] ms, got {times[~((times >= 0) & (times - 0.5 < num_steps))][0]}"
        )
    return np.unique((times - 0.5).astype(np.int32))
