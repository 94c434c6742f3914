"""Files in the HDF5 layout of the Spiking Heidelberg Digits, read as from strangers and written whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elm_neuro.datasets.hdf5._file import Dataset, File
from elm_neuro.datasets.hdf5._types import VariableLength
from elm_neuro.datasets.shd._recordings import NUM_CHANNELS, SpikeRecordings
from elm_neuro.files import open_regular, write_whole

try:
    import h5py
except ImportError as error:
    raise ImportError('elm_neuro.datasets needs h5py: pip install "elm-neuro[data]"') from error

LONGEST = 2146  # seconds: microseconds are kept as int32, and 2146 is a float16
PART = 1 << 20  # spikes that are looked at together
KEYS = "zero one two three four five six seven eight nine null eins zwei drei vier fuenf sechs sieben acht neun".split()


def read_shd(path: str | os.PathLike[str]) -> SpikeRecordings:
    """All recordings of a file in the layout of SHD.

    The layout: ``/spikes/times``, one variable-length row of float16 seconds per sample; ``/spikes/units``, rows of
    channels; ``/labels``; optionally ``/extra/speaker``. Seconds are multiplied as float64, which is exact, and cut to
    whole microseconds as tonic does, never rounded up: a spike just below the edge of a bin stays below it. The steps
    of float16 are far coarser (0.49 ms above half a second). Links out of the file, soft links, virtual data sets and
    externally stored ones are refused: a file from strangers must not make us read another. It is read without libhdf5
    (:mod:`elm_neuro.datasets.hdf5`), which a single changed byte can crash or keep busy for ever.

    Args:
        path: the HDF5 file.

    Returns:
        The recordings, times in microseconds, in order within each sample.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file is not HDF5, is cut short, or breaks a rule of the layout.
    """
    name = os.fspath(path)
    try:
        with open_regular(name) as stream:
            return _recordings(File(stream))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"path must name an SHD-format HDF5 file, got {name}, which does not exist") from error
    except (OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{name} must be a whole HDF5 file in the layout of SHD, got: {error}") from error


def write_shd(
    path: str | os.PathLike[str],
    recordings: SpikeRecordings,
    *,
    meta_info: Mapping[str, ArrayLike] | None = None,
    attributes: Mapping[str, str | int] | None = None,
) -> None:
    """Write recordings in the layout of SHD: complete or not at all.

    The file is made in memory, written under a temporary name beside `path` and renamed when it is whole; what stood
    there before stays until then. Times are stored as the nearest float16 seconds, as in SHD: up to 0.25 ms off
    between 0.5 and 1 s. What is on that grid already, such as anything `read_shd` returned, is read back exactly.

    Args:
        path: file to write or replace.
        recordings: samples with 700 channels.
        meta_info: rows of ``/extra/meta_info``, one entry per speaker each, such as age or gender.
        attributes: attributes of the root, such as the name and version of a generator.

    Raises:
        ValueError: `recordings` does not have 700 channels or has times of 2146 s or more.
        FileNotFoundError: the folder of `path` does not exist.
        OSError: the file cannot be written: no permission, a full disk.
    """
    if recordings.num_channels != NUM_CHANNELS:
        raise ValueError(
            f"recordings must have {NUM_CHANNELS} channels to be stored as SHD, got {recordings.num_channels}"
        )
    if recordings.num_events and int(recordings.times.max()) >= LONGEST * 1_000_000:
        raise ValueError(
            f"times must stay below {LONGEST} s to be read back, got {int(recordings.times.max())} microseconds"
        )
    write_whole({Path(path): _hdf5(recordings, meta_info or {}, attributes or {})})


def _recordings(file: File) -> SpikeRecordings:
    labels = _column(_dataset(file, "labels"))
    speakers = None if file.get("extra/speaker") is None else _column(_dataset(file, "extra/speaker"))
    seconds, num_times = _rows(_dataset(file, "spikes/times"), "f")
    channels, num_units = _rows(_dataset(file, "spikes/units"), "ui")
    for key, lengths in (("spikes/times", num_times), ("spikes/units", num_units)):
        if lengths.size != labels.size:
            raise ValueError(f"{key} must have one row per label, {labels.size}, got {lengths.size}")
    if speakers is not None and speakers.size != labels.size:
        raise ValueError(f"extra/speaker must have one entry per label, {labels.size}, got {speakers.size}")
    if (num_times != num_units).any():
        i = int(np.flatnonzero(num_times != num_units)[0])
        raise ValueError(
            f"spikes/units must have as many entries as spikes/times, {num_times[i]} in sample {i}, got {num_units[i]}"
        )
    indptr = np.concatenate((np.zeros(1, np.int64), np.cumsum(num_times)))
    return SpikeRecordings(_microseconds(seconds), channels, indptr, labels, speakers)


def _dataset(file: File, key: str) -> Dataset:
    dataset = file.get(key)
    if dataset is None:
        raise ValueError(f"/{key} must be there, got keys {file.keys()}")
    if len(dataset.shape) != 1:
        raise ValueError(f"/{key} must have one dimension, got shape {dataset.shape}")
    if dataset.shape[0] > file.size:
        raise ValueError(
            f"/{key} must have no more samples than the file has bytes, {file.size}, got {dataset.shape[0]}"
        )
    return dataset


def _rows(dataset: Dataset, kinds: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    base = dataset.dtype.base if isinstance(dataset.dtype, VariableLength) else None
    if base is None or base.kind not in kinds:
        wanted = "floats" if kinds == "f" else "integers"
        raise ValueError(f"/{dataset.key} must be variable-length {wanted}, got {base or dataset.dtype}")
    return dataset.rows()


def _column(dataset: Dataset) -> NDArray[Any]:
    if isinstance(dataset.dtype, VariableLength) or dataset.dtype.kind not in "ui":
        raise ValueError(f"/{dataset.key} must be integers, got dtype {dataset.dtype}")
    return dataset.values()


def _microseconds(seconds: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
    """Times in whole microseconds; a part at a time, because float64 takes four times as much as float16."""
    times = np.empty(seconds.size, dtype=np.int32)
    for start in range(0, seconds.size, PART):
        part = seconds[start : start + PART].astype(np.float64)
        wrong = ~((part >= 0) & (part <= LONGEST))
        if wrong.any():
            raise ValueError(f"spikes/times must be finite, not negative and at most {LONGEST} s, got {part[wrong][0]}")
        times[start : start + PART] = part * 1e6
    return times


def _float16_seconds(times: NDArray[np.integer[Any]]) -> NDArray[np.float16]:
    """The nearest float16, or the one above it where only that is read back as the same microsecond."""
    seconds = (times / 1e6).astype(np.float16)
    above = np.nextafter(seconds, np.float16(np.inf))
    return (
        np.where((above.astype(np.float64) * 1e6).astype(np.int64) == times, above, seconds) if times.size else seconds
    )


def _hdf5(
    recordings: SpikeRecordings, meta_info: Mapping[str, ArrayLike], attributes: Mapping[str, str | int]
) -> bytes:
    """The file in memory: where writing fails, HDF5 may bring the whole interpreter down while it closes the file."""
    seconds = _float16_seconds(recordings.times)
    times, units = np.empty(len(recordings), dtype=object), np.empty(len(recordings), dtype=object)
    for i in range(len(recordings)):
        span = slice(int(recordings.indptr[i]), int(recordings.indptr[i + 1]))
        times[i], units[i] = seconds[span], recordings.units[span]
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs.update(attributes)
        file.create_dataset("spikes/times", data=times, dtype=h5py.vlen_dtype(np.float16))
        file.create_dataset("spikes/units", data=units, dtype=h5py.vlen_dtype(np.uint16))
        file.create_dataset("labels", data=recordings.labels.astype(np.uint16))
        file.create_dataset("extra/keys", data=np.array(KEYS, dtype="S6"))
        file.require_group("extra/meta_info")
        if recordings.speakers is not None:
            width = np.uint16 if recordings.speakers.max(initial=0) < 65536 else np.uint32
            file.create_dataset("extra/speaker", data=recordings.speakers.astype(width))
        for name, column in meta_info.items():
            file.create_dataset(f"extra/meta_info/{name}", data=np.asarray(column))
    return image.getvalue()
