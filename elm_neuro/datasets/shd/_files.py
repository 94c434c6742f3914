"""Files in the HDF5 layout of the Spiking Heidelberg Digits, read as from strangers and written whole or not at all."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elm_neuro.datasets.shd._recordings import NUM_CHANNELS, SpikeRecordings
from elm_neuro.files import write_whole

try:
    import h5py
except ImportError as error:
    raise ImportError('elm_neuro.datasets needs h5py: pip install "elm-neuro[data]"') from error

LONGEST = 2146  # seconds: microseconds are kept as int32, and 2146 is a float16
ROW_BYTES = 16  # of a reference to a variable-length row: uint32 length, uint64 address of its heap, uint32 index
KEYS = "zero one two three four five six seven eight nine null eins zwei drei vier fuenf sechs sieben acht neun".split()


def read_shd(path: str | os.PathLike[str]) -> SpikeRecordings:
    """All recordings of a file in the layout of SHD.

    The layout: ``/spikes/times``, one variable-length row of float16 seconds per sample; ``/spikes/units``, rows of
    channels; ``/labels``; optionally ``/extra/speaker``. Seconds are multiplied as float64, which is exact, and cut to
    whole microseconds as tonic does, never rounded up: a spike just below the edge of a bin stays below it. The steps
    of float16 are far coarser (0.49 ms above half a second). Links out of the file, soft links, virtual data sets and
    externally stored ones are refused: a file from strangers must not make us read another.

    Args:
        path: the HDF5 file.

    Returns:
        The recordings, times in microseconds, in order within each sample.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file is not HDF5, is cut short, or breaks a rule of the layout.
    """
    name = os.fspath(path)
    if not os.path.exists(name):
        raise FileNotFoundError(f"path must name an SHD-format HDF5 file, got {name}, which does not exist")
    try:
        with h5py.File(name, "r") as file:
            size = os.path.getsize(name)
            times = _rows(file, "spikes/times", "f", size)
            units = _rows(file, "spikes/units", "ui", size)
            labels = _column(file, "labels", size)
            speakers = _column(file, "extra/speaker", size) if _has(file, "extra/speaker") else None
        num_samples = labels.size
        for key, rows in (("spikes/times", times), ("spikes/units", units)):
            if len(rows) != num_samples:
                raise ValueError(f"{key} must have one row per label, {num_samples}, got {len(rows)}")
        if speakers is not None and speakers.size != num_samples:
            raise ValueError(f"extra/speaker must have one entry per label, {num_samples}, got {speakers.size}")
        return _flatten(times, units, labels, speakers)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError, zlib.error) as error:
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


def _has(file: h5py.File, key: str) -> bool:
    """Whether the hard link `key` is there; any other kind of link on the way to it is refused."""
    node: Any = file
    for part in key.split("/"):
        if not isinstance(node, h5py.Group) or part not in node:
            if isinstance(node, h5py.Group) and node.get(part, getlink=True) is not None:
                raise ValueError(
                    f"/{key} must be stored in the file itself, got a {type(node.get(part, getlink=True)).__name__}"
                )
            return False
        link = node.get(part, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"/{key} must be stored in the file itself, got a {type(link).__name__}")
        node = node[part]
    return True


def _dataset(file: h5py.File, key: str, file_size: int) -> h5py.Dataset:
    if not _has(file, key):
        raise ValueError(f"/{key} must be there, got keys {sorted(map(str, file))}")
    dataset = file[key]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"/{key} must be a data set, got a {type(dataset).__name__}")
    if dataset.is_virtual or dataset.external:
        raise ValueError(
            f"/{key} must be stored in the file itself, got "
            f"{'a virtual data set' if dataset.is_virtual else 'external storage'}"
        )
    if dataset.ndim != 1:
        raise ValueError(f"/{key} must have one dimension, got shape {dataset.shape}")
    if dataset.shape[0] > file_size:
        raise ValueError(
            f"/{key} must have no more samples than the file has bytes, {file_size}, got {dataset.shape[0]}"
        )
    return dataset


def _rows(file: h5py.File, key: str, kinds: str, file_size: int) -> list[NDArray[Any]]:
    dataset = _dataset(file, key, file_size)
    base = h5py.check_vlen_dtype(dataset.dtype)
    if not isinstance(base, np.dtype) or base.kind not in kinds:
        raise ValueError(
            f"/{key} must be variable-length {'floats' if kinds == 'f' else 'integers'}, got {base or dataset.dtype}"
        )
    _check_lengths(dataset, key, base.itemsize, file_size)
    return [np.asarray(row, dtype=base) for row in dataset[()]]


def _check_lengths(dataset: h5py.Dataset, key: str, itemsize: int, file_size: int) -> None:
    """Refuse rows that claim more bytes than the file has: HDF5 allocates what a row claims before it looks for it."""
    layout = dataset.id.get_create_plist()
    if not dataset.size or dataset.id.get_storage_size() == 0:
        return
    if dataset.chunks is not None:
        claims = [_plain_chunk(dataset, layout, key, k) for k in range(dataset.id.get_num_chunks())]
    elif dataset.id.get_offset() is not None:
        with open(dataset.file.filename, "rb") as file:
            file.seek(dataset.id.get_offset())
            claims = [file.read(dataset.size * ROW_BYTES)]
    else:
        raise ValueError(f"/{key} must be stored contiguously or in chunks, got a compact data set")
    claimed = itemsize * sum(int(np.frombuffer(raw, "<u4")[:: ROW_BYTES // 4].sum(dtype=np.uint64)) for raw in claims)
    if claimed > file_size:
        raise ValueError(f"/{key} must hold no more than the file's {file_size} bytes, got rows that claim {claimed}")


def _plain_chunk(dataset: h5py.Dataset, layout: Any, key: str, k: int) -> bytes:
    """The row references of chunk `k` as they were before gzip and shuffle, the two filters that are read."""
    filter_mask, raw = dataset.id.read_direct_chunk(dataset.id.get_chunk_info(k).chunk_offset)
    size = dataset.chunks[0] * ROW_BYTES
    for n in reversed(range(layout.get_nfilters())):
        code = layout.get_filter(n)[0]
        if filter_mask >> n & 1:
            continue
        if code == h5py.h5z.FILTER_DEFLATE:
            raw = zlib.decompressobj().decompress(raw, size)
        elif code == h5py.h5z.FILTER_SHUFFLE:
            raw = np.frombuffer(raw, np.uint8).reshape(ROW_BYTES, -1).T.tobytes()
        else:
            raise ValueError(f"/{key} must be stored plainly or with the filters gzip and shuffle, got filter {code}")
    if len(raw) != size:
        raise ValueError(f"/{key} must have chunks of {size} bytes, got {len(raw)}")
    return bytes(raw)


def _column(file: h5py.File, key: str, file_size: int) -> NDArray[Any]:
    dataset = _dataset(file, key, file_size)
    if dataset.dtype.kind not in "ui":
        raise ValueError(f"/{key} must be integers, got dtype {dataset.dtype}")
    return np.asarray(dataset[()])


def _flatten(
    times: list[NDArray[Any]], units: list[NDArray[Any]], labels: NDArray[Any], speakers: NDArray[Any] | None
) -> SpikeRecordings:
    count = np.array([row.size for row in times], dtype=np.int64)
    other = np.array([row.size for row in units], dtype=np.int64)
    if (count != other).any():
        i = int(np.flatnonzero(count != other)[0])
        raise ValueError(
            f"spikes/units must have as many entries as spikes/times, {count[i]} in sample {i}, got {other[i]}"
        )
    seconds = np.concatenate(times).astype(np.float64) if times else np.zeros(0)
    wrong = ~((seconds >= 0) & (seconds <= LONGEST))
    if wrong.any():
        raise ValueError(f"spikes/times must be finite, not negative and at most {LONGEST} s, got {seconds[wrong][0]}")
    channels = np.concatenate(units) if units else np.zeros(0, np.uint16)
    indptr = np.concatenate((np.zeros(1, np.int64), np.cumsum(count)))
    return SpikeRecordings((seconds * 1e6).astype(np.int32), channels, indptr, labels, speakers)


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
