"""Simulations in HDF5 or in a folder of .npy files, laid out so that a window of time is one slice of a memory map."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets.hdf5._file import File
from elm_neuro.datasets.neuronio._simulations import NUM_INPUTS, Simulations
from elm_neuro.files import open_regular, write_whole, write_whole_folder

try:
    import h5py
except ImportError as error:
    raise ImportError('elm_neuro.datasets needs h5py: pip install "elm-neuro[data]"') from error

Format: TypeAlias = Literal["hdf5", "npy"]
SUFFIXES: dict[Format, str] = {"hdf5": ".h5", "npy": ".arrays"}  # a file, or a folder
FORMAT, FORMAT_VERSION = "elm_neuro NeuronIO", 1
LAYOUT = {  # name in the file, kinds of numbers, dimensions
    "indptr": ("input/indptr", "u", 1),
    "channel": ("input/channel", "u", 1),
    "soma_mv": ("soma_mv", "f", 2),
    "spike_indptr": ("output/indptr", "u", 1),
    "spike_step": ("output/step", "u", 1),
}


def to_content(simulations: Simulations, form: Format) -> bytes | dict[str, bytes]:
    """The HDF5 file of these simulations, or the .npy files by their names: the same bytes for the same simulations.

    ``/input/indptr`` and ``/input/channel`` hold the input spikes in compressed rows of 1 ms, ``/soma_mv`` (simulation,
    ms) the voltage, ``/output/indptr`` and ``/output/step`` the output spikes, as in :class:`Simulations`; nothing is
    compressed or cut into chunks, so that each can be mapped into memory. The .npy files have the same arrays, under
    the names in :class:`Simulations`.
    """
    wide = np.uint32 if simulations.num_events < 2**32 else np.uint64
    kinds = {"indptr": wide, "channel": np.uint16, "spike_indptr": np.uint32, "spike_step": np.uint32}
    arrays = {
        name: np.ascontiguousarray(values, kinds.get(name, values.dtype)) for name, values in vars(simulations).items()
    }
    if form == "npy":
        return {f"{name}.npy": _npy(values) for name, values in arrays.items()}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["format"], file.attrs["format_version"] = FORMAT, FORMAT_VERSION
        for name, (key, _, _) in LAYOUT.items():
            file.create_dataset(key, data=arrays[name])
    return buffer.getvalue()


def _npy(values: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def write_content(path: Path, content: bytes | Mapping[str, bytes]) -> None:
    """Write what :func:`to_content` made, a file or a folder: complete or not at all.

    Raises:
        OSError: it cannot be written, for instance because the disk is full; nothing is left of it.
    """
    if isinstance(content, bytes):
        write_whole({path: content}, through_links=False)
    else:
        write_whole_folder(path, content)


def converted_files(path: str | os.PathLike[str]) -> list[Path]:
    """Converted files of a folder and the folders in it, in the order of their names; `path` alone if it is one
    itself.
    """
    path = Path(path)
    if path.suffix in SUFFIXES.values():
        return [path]
    found = [file for suffix in SUFFIXES.values() for file in path.rglob(f"*sim__*{suffix}")]
    return sorted(file for file in found if not file.name.startswith("."))


def open_simulations(path: str | os.PathLike[str]) -> Simulations:
    """Simulations of a converted file, HDF5 or a folder of .npy files, read from the disk as they are looked at.

    Links, chunks, filters and data in other files are refused, so that what is mapped is this file and nothing else.
    The content is taken as it is: `verify` of a conversion reads all of it.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: it is cut short or not in the layout of :func:`to_content`.
    """
    name = os.fspath(path)
    if not (os.path.isfile(name) or os.path.isdir(name)):
        raise FileNotFoundError(f"path must name a converted NeuronIO file, got {name}, which does not exist")
    try:
        arrays = _npy_arrays(name) if os.path.isdir(name) else _hdf5_arrays(name)
        _check(Simulations(**arrays))
        arrays["spike_indptr"] = arrays["spike_indptr"].astype(np.int64)
        arrays["spike_step"] = arrays["spike_step"].astype(np.int32)
        return Simulations(**arrays)
    except (OSError, TypeError, ValueError, MemoryError, OverflowError, EOFError, SyntaxError) as error:
        raise ValueError(f"{name} must be a whole converted NeuronIO file, got: {error}") from error


def _npy_arrays(name: str) -> dict[str, NDArray[Any]]:
    arrays = {}
    for field, (key, kinds, num_dimensions) in LAYOUT.items():
        path = os.path.join(name, f"{field}.npy")
        if os.path.islink(path) or not os.path.isfile(path):
            raise ValueError(f"{field}.npy must be stored in the folder itself, got no such file")
        with open(path, "rb") as file:
            if file.read(8) != b"\x93NUMPY\x01\x00":
                raise ValueError(f"{field}.npy must be a .npy file of version 1.0")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
        if fortran or dtype.kind not in kinds or len(shape) != num_dimensions:
            raise ValueError(
                f"{field}.npy must have {num_dimensions} dimensions of kind {kinds!r}, got {shape} of {dtype}"
            )
        arrays[field] = _map(path, f"/{key}", dtype, offset, shape)
    return arrays


def _hdf5_arrays(name: str) -> dict[str, NDArray[Any]]:
    with open_regular(name) as stream:
        file = File(stream)
        form, version = file.attribute("format"), file.attribute("format_version")
        if (form, version) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"format must be {FORMAT!r}, version {FORMAT_VERSION}, got {form!r}, version {version!r}")
        return {field: _mapped(file, name, *layout) for field, layout in LAYOUT.items()}


def _map(path: str, key: str, dtype: np.dtype[Any], offset: int | None, shape: tuple[int, ...]) -> NDArray[Any]:
    """Part of a file, once it is known to lie within it."""
    if min(shape) < 0 or offset is None or offset + math.prod(shape) * dtype.itemsize > os.path.getsize(path):
        raise ValueError(f"{key} must lie within the file, got {shape} past its {os.path.getsize(path)} bytes")
    return np.memmap(path, dtype, "r", offset, shape) if math.prod(shape) else np.empty(shape, dtype)


def _mapped(file: File, name: str, key: str, kinds: str, num_dimensions: int) -> NDArray[Any]:
    dataset = file.get(key)
    if dataset is None:
        raise ValueError(f"/{key} must be stored in the file itself, got no such data set")
    dtype, shape = dataset.dtype, dataset.shape
    if not isinstance(dtype, np.dtype) or dtype.kind not in kinds or len(shape) != num_dimensions:
        raise ValueError(f"/{key} must be a data set of {num_dimensions} dimensions of kind {kinds!r}")
    if math.prod(shape) and dataset.offset is None:
        raise ValueError(f"/{key} must be stored in one piece in the file itself")
    return _map(name, f"/{key}", dtype, dataset.offset or 0, shape)


def _check(simulations: Simulations) -> None:
    """Sizes and ends; not what lies between."""
    num, length = simulations.soma_mv.shape
    if num < 1 or length < 1 or simulations.soma_mv.dtype.itemsize > 4:
        raise ValueError(
            f"/soma_mv must hold at least one simulation of float16 or float32, got {simulations.soma_mv.shape}"
        )
    if simulations.channel.dtype != np.uint16:
        raise ValueError(f"/input/channel must be uint16, got {simulations.channel.dtype}")
    for key, indptr, rows, size in (
        ("input", simulations.indptr, num * length, simulations.num_events),
        ("output", simulations.spike_indptr, num, simulations.num_spikes),
    ):
        if (
            indptr.size != rows + 1
            or int(indptr[0]) != 0
            or int(indptr[-1]) != size
            or (indptr[1:] < indptr[:-1]).any()
        ):
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
    """Checksum of a file, read a part at a time, or of a folder: of the names and checksums of its files."""
    if path.is_dir():
        return _of_all({file.name: sha256(file) for file in _inside(path)})
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _inside(folder: Path) -> list[Path]:
    found = list(folder.iterdir())
    if wrong := [file for file in found if file.is_symlink() or not file.is_file()]:
        raise ValueError(f"{folder} must hold files only, got {wrong[0].name}")
    return found


def checksum(content: bytes | Mapping[str, bytes]) -> str:
    """What :func:`sha256` says once it is written."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return _of_all({name: checksum(raw) for name, raw in content.items()})


def _of_all(checksums: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums)).encode()).hexdigest()


def size(path: Path) -> int:
    """Bytes of a file, or of those in a folder; -1 where there is neither, or a link or anything but files."""
    if path.is_symlink():
        return -1
    if path.is_dir():
        try:
            return sum(file.stat().st_size for file in _inside(path))
        except ValueError:
            return -1
    return path.stat().st_size if path.is_file() else -1
