"""Sweeps of a file in the layout of NWB 1: a current that was injected, and the voltage that it caused.

The layout is that of the Allen Cell Types Database (celltypes.brain-map.org; Allen Institute for Brain Science):
``epochs/Sweep_N/{stimulus,response}/timeseries`` with `data`, whose attributes `conversion` and `unit` say what its
numbers are, and `starting_time`, whose attribute `rate` is the sampling rate in Hz; the stimulus' name stands in
``acquisition/timeseries/Sweep_N/aibs_stimulus_name``.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets.hdf5._file import Dataset, File
from elm_neuro.datasets.hdf5._types import VariableLength
from elm_neuro.files import open_regular

ADDRESS = "https://celltypes.brain-map.org"
AMPERES, VOLTS = ("a", "amp", "amps", "ampere", "amperes"), ("v", "volt", "volts")
NAME = r"Sweep_(0|[1-9]\d{0,8})"
Floats = NDArray[np.float64]


class Sweep(NamedTuple):
    """One repetition of a stimulus."""

    number: int
    stimulus: str  # its name, "" where the file does not say
    current: Floats  # pA, (num_samples,)
    voltage: Floats  # mV, (num_samples,)
    rate: float  # samples a second


def read_sweeps(path: str | os.PathLike[str], stimulus: str | None = None) -> list[Sweep]:
    """The sweeps of a file, in the order of their numbers.

    Args:
        path: HDF5 file in the layout of NWB 1.
        stimulus: only those of the stimulus of this name, such as "Noise 1".

    Raises:
        FileNotFoundError: there is no such file; the message says where such files are to be had.
        ValueError: it is no such file, is damaged, has no sweep of that kind, or a unit, rate or length does not fit.
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(
            f"{file} must be a file in the layout of NWB 1, and does not exist: those of the Allen Cell Types Database "
            f"are at {ADDRESS}, one a cell, to be downloaded as ephys.nwb"
        )
    with open_regular(file) as stream:
        try:
            content = File(stream, follow=True)
            numbers = sorted(int(name[6:]) for name in content.keys("epochs") if re.fullmatch(NAME, name))
            if not numbers:
                raise ValueError("there must be sweeps, epochs/Sweep_N, got none")
            names = {number: _name(content, number) for number in numbers}
            chosen = [number for number in numbers if stimulus is None or names[number] == stimulus]
            if not chosen:
                known = ", ".join(sorted({repr(name) for name in names.values() if name})) or "none that has a name"
                raise ValueError(f"stimulus must be one of the file's, {known}, got {stimulus!r}")
            _check_responses(content, chosen)
            return [_sweep(content, number, names[number]) for number in chosen]
        except (ValueError, EOFError) as error:
            raise ValueError(f"{file} must hold sweeps in the layout of NWB 1: {error}") from error


def _check_responses(content: File, numbers: list[int]) -> None:
    """Refuse one response under two numbers; sweeps may share a stimulus."""
    numbers_of: dict[int, int] = {}
    for number in numbers:
        address = _needed(content, f"epochs/Sweep_{number}/response/timeseries/data").address
        if (other := numbers_of.setdefault(address, number)) != number:
            raise ValueError(f"epochs/Sweep_{number} must have a response of its own, got that of Sweep_{other}")


def _name(content: File, number: int) -> str:
    """Name of the sweep's stimulus."""
    for group in ("acquisition/timeseries", "stimulus/presentation"):
        found = content.get(f"{group}/Sweep_{number}/aibs_stimulus_name")
        if found is None:
            continue
        if isinstance(found.dtype, VariableLength):
            text, lengths = found.rows()
            num, is_text = lengths.size, found.dtype.is_text
        else:
            text = found.values()
            num, is_text = text.size, text.dtype.kind == "S"
        if num != 1 or not is_text:
            raise ValueError(f"/{found.key} must be one text, got {num} {'texts' if is_text else 'of another type'}")
        return text.tobytes().rstrip(b"\0").decode("utf-8", "replace")
    return ""


def _sweep(content: File, number: int, stimulus: str) -> Sweep:
    place = f"epochs/Sweep_{number}"
    current, rate = _series(content, f"{place}/stimulus/timeseries", AMPERES, 1e12)
    voltage, other = _series(content, f"{place}/response/timeseries", VOLTS, 1e3)
    if rate != other:
        raise ValueError(f"{place} must have one rate, got {rate} Hz of the stimulus and {other} Hz of the response")
    if current.size != voltage.size:
        raise ValueError(
            f"{place} must have as many samples of stimulus and response, got {current.size} and {voltage.size}"
        )
    if not current.size:
        raise ValueError(f"{place} must have samples, got none")
    return Sweep(number, stimulus, current, voltage, rate)


def _series(content: File, place: str, units: tuple[str, ...], scale: float) -> tuple[Floats, float]:
    """Numbers in pA or mV, and their rate."""
    data, start = _needed(content, f"{place}/data"), _needed(content, f"{place}/starting_time")
    unit = data.attribute("unit")
    if not isinstance(unit, str) or unit.strip().lower() not in units:
        raise ValueError(f"/{place}/data must have the unit {units[0].upper()}, got {unit!r}")
    conversion = data.attribute("conversion")
    conversion = 1.0 if conversion is None else conversion
    rate = start.attribute("rate")
    for name, value in (("conversion", conversion), ("rate", rate)):
        if isinstance(value, str) or value is None or not math.isfinite(value) or value <= 0:
            raise ValueError(f"/{place} must have a {name} above 0, got {value!r}")
    values = data.values()
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise ValueError(f"/{place}/data must be a row of numbers, got {values.dtype} of shape {values.shape}")
    stored = values.astype(np.float64)
    if not np.isfinite(stored).all():
        raise ValueError(f"/{place}/data must be finite, got {stored[~np.isfinite(stored)][0]}")
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = stored * (float(conversion) * scale)
    if not np.isfinite(numbers).all():
        raise ValueError(f"/{place} must have a conversion with which its data stay finite, got {conversion!r}")
    return numbers, float(rate)  # type: ignore[arg-type]  # it has just been looked at


def _needed(content: File, key: str) -> Dataset:
    found = content.get(key)
    if found is None:
        raise ValueError(f"/{key} must be there, got nothing")
    return found
