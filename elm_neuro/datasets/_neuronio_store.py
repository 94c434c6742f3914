"""Simulations in HDF5, laid out so that a window of time is one slice of a memory map."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets._neuronio import NUM_INPUTS, Simulations

try:
    import h5py
except ImportError as error:
    raise ImportError('elm_neuro.datasets needs h5py: pip install "elm-neuro[data]"') from error

FORMAT, FORMAT_VERSION = "elm_neuro NeuronIO", 1
LAYOUT = {  # name in the file, kinds of numbers, dimensions
    "indptr": ("input/indptr", "u", 1),
    "channel": ("input/channel", "u", 1),
    "soma_mv": ("soma_mv", "f", 2),
    "spike_indptr": ("output/indptr", "u", 1),
    "spike_step": ("output/step", "u", 1),
}


def to_bytes(simulations: Simulations) -> bytes:
    """The HDF5 file of these simulations: the same bytes for the same simulations.

    ``/input/indptr`` and ``/input/channel`` hold the input spikes in compressed rows of 1 ms, ``/soma_mv`` (simulation, ms) the voltage,
    ``/output/indptr`` and ``/output/step`` the output spikes, as in :class:`Simulations`; nothing is compressed or cut into chunks, so that
    each can be mapped into memory.
    """
    wide = np.uint32 if simulations.num_events < 2**32 else np.uint64
    kinds = {"indptr": wide, "channel": np.uint16, "spike_indptr": np.uint32, "spike_step": np.uint32}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["format"], file.attrs["format_version"] = FORMAT, FORMAT_VERSION
        for name, (key, _, _) in LAYOUT.items():
            values = getattr(simulations, name)
            file.create_dataset(key, data=values.astype(kinds.get(name, values.dtype)))
    return buffer.getvalue()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside `path`, then rename it: complete or not at all.

    Raises:
        OSError: it cannot be written, for instance because the disk is full; nothing is left of it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def open_simulations(path: str | os.PathLike[str]) -> Simulations:
    """Simulations of a converted file, read from the disk as they are looked at.

    Links, chunks, filters and data in other files are refused, so that what is mapped is this file and nothing else. The content is
    taken as it is: `verify` of a conversion reads all of it.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: it is cut short or not in the layout of :func:`to_bytes`.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"path must name a converted NeuronIO file, got {name}, which does not exist")
    try:
        with h5py.File(name, "r") as file:
            if file.attrs.get("format") != FORMAT or int(file.attrs.get("format_version", 0)) != FORMAT_VERSION:
                raise ValueError(f"format must be {FORMAT!r}, version {FORMAT_VERSION}, got {file.attrs.get('format')!r}")
            arrays = {field: _mapped(file, name, *layout) for field, layout in LAYOUT.items()}
        arrays["spike_indptr"], arrays["spike_step"] = arrays["spike_indptr"].astype(np.int64), arrays["spike_step"].astype(np.int32)
        simulations = Simulations(**arrays)
        _check(simulations)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError, OverflowError, zlib.error) as error:
        raise ValueError(f"{name} must be a whole converted NeuronIO file, got: {error}") from error
    return simulations


def _mapped(file: h5py.File, name: str, key: str, kinds: str, num_dimensions: int) -> NDArray[Any]:
    node: Any = file
    for part in key.split("/"):
        if not isinstance(node.get(part, getlink=True) if isinstance(node, h5py.Group) and part in node else None, h5py.HardLink):
            raise ValueError(f"/{key} must be stored in the file itself, got no such data set")
        node = node[part]
    if not isinstance(node, h5py.Dataset) or node.dtype.kind not in kinds or node.ndim != num_dimensions:
        raise ValueError(f"/{key} must be a data set of {num_dimensions} dimensions of kind {kinds!r}")
    if node.is_virtual or node.external or node.chunks is not None:
        raise ValueError(f"/{key} must be stored in one piece in the file itself")
    if node.size == 0:
        return np.empty(node.shape, node.dtype)
    offset = node.id.get_offset()
    if offset is None or offset + node.size * node.dtype.itemsize > os.path.getsize(name):
        raise ValueError(f"/{key} must lie within the file, got an end past its {os.path.getsize(name)} bytes")
    return np.memmap(name, node.dtype, "r", offset, node.shape)


def _check(simulations: Simulations) -> None:
    """Sizes and ends; not what lies between."""
    num, length = simulations.soma_mv.shape
    if num < 1 or length < 1 or simulations.soma_mv.dtype.itemsize > 4:
        raise ValueError(f"/soma_mv must hold at least one simulation of float16 or float32, got {simulations.soma_mv.shape}")
    if simulations.channel.dtype != np.uint16:
        raise ValueError(f"/input/channel must be uint16, got {simulations.channel.dtype}")
    for key, indptr, rows, size in (
        ("input", simulations.indptr, num * length, simulations.num_events),
        ("output", simulations.spike_indptr, num, simulations.num_spikes),
    ):
        if indptr.size != rows + 1 or int(indptr[0]) != 0 or int(indptr[-1]) != size or (indptr[1:] < indptr[:-1]).any():
            raise ValueError(f"/{key}/indptr must have {rows + 1} entries that rise from 0 to {size} without falling")
    if simulations.num_spikes and simulations.spike_step.max() >= length:
        raise ValueError(f"/output/step must be below {length}, got {int(simulations.spike_step.max())}")


def check_content(simulations: Simulations) -> None:
    """Look at every number, which :func:`open_simulations` does not.

    Raises:
        ValueError: a channel or voltage is out of range.
    """
    if simulations.num_events and int(simulations.channel.max()) >= NUM_INPUTS:
        raise ValueError(f"/input/channel must be below {NUM_INPUTS}, got {int(simulations.channel.max())}")
    if not np.isfinite(simulations.soma_mv).all():
        raise ValueError("/soma_mv must be finite")


def sha256(path: Path) -> str:
    """Checksum of a file, read a part at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
