"""Image: CIFAR-10 in grey, pixel by pixel, from Python's pickles, folders of PNG files, or parquet files."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets.lra._grey import to_grey, to_levels
from elm_neuro.datasets.lra._pathfinder_files import image_sequences
from elm_neuro.datasets.lra._png import decoded_png, read_png
from elm_neuro.datasets.lra._release import check_file, check_folder
from elm_neuro.datasets.lra._sequences import TokenSequences
from elm_neuro.datasets.lra._splits import image_split
from elm_neuro.datasets.lra._vocabulary import Convention, check_convention
from elm_neuro.files import listing, read_file

SIZE = 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
MAX_BYTES = 1 << 26  # of a pickle; those of CIFAR-10 have 31 MB
Colours = NDArray[np.uint8]


class Pictures(NamedTuple):
    """Colours, (num_images, 32, 32, 3), and labels."""

    colours: Colours
    labels: NDArray[np.int64]


def read_image(
    folder: str | os.PathLike[str], convention: Convention = "mega", *, num_levels: int = 16
) -> dict[str, TokenSequences]:
    """Grey images, row by row, of "train", "valid" and "test" (45,000, 5,000 and 10,000 of CIFAR-10).

    Args:
        folder: cifar-10-batches-py; or a folder with ``train`` and ``test``, each with a folder of PNG files a class,
            by the classes' names or numbers; or one with parquet files ``train*.parquet`` and ``test*.parquet``
            (columns img or image, and label), which pyarrow reads.
        convention: how colours become grey and which images validate: :func:`to_grey`, :func:`image_split`.
        num_levels: grey levels, the paper's 16; 256 for all.

    Raises:
        FileNotFoundError: a file is not there; the message says where it comes from.
        ValueError: a file is damaged, or an image has another size.
    """
    check_convention(convention)
    check_folder(folder, "Image")
    place = Path(folder)
    read = _reader(place)
    parts = {}
    for part in ("train", "test"):
        colours, labels = read(place, part)
        levels = to_levels(to_grey(colours, convention), num_levels).reshape(len(labels), SIZE * SIZE)
        parts[part] = image_sequences(levels, labels, num_levels, len(CLASSES))
    split = image_split(len(parts["train"]), convention)
    return {name: parts["train"].subset(indices) for name, indices in split.items()} | {"test": parts["test"]}


def _reader(place: Path) -> Callable[[Path, str], Pictures]:
    if any((place / name).exists() for names in BATCHES.values() for name in names):
        return _pickled
    if (place / "train").is_dir():
        return _painted
    if any(place.glob("*.parquet")):
        return _tabled
    check_file(place / BATCHES["train"][0], "Image")
    raise FileNotFoundError(f"{place} must hold CIFAR-10, got {listing(place)}")


def _pickled(place: Path, part: str) -> Pictures:
    batches = []
    for name in BATCHES[part]:
        check_file(place / name, "Image")
        batches.append(read_batch(place / name))
    return Pictures(*(np.concatenate(column) for column in zip(*batches, strict=True)))


def _painted(place: Path, part: str) -> Pictures:
    folders = [place / part / name for name in CLASSES]
    if not any(folder.is_dir() for folder in folders):
        folders = [place / part / str(number) for number in range(len(CLASSES))]
    colours, labels = [], []
    for label, folder in enumerate(folders):
        check_folder(folder, "Image")
        files = sorted(folder.glob("*.png"))
        colours += [read_png(path, SIZE, "RGB") for path in files]
        labels += [label] * len(files)
    if not labels:
        raise FileNotFoundError(f"{place / part} must hold PNG files, a folder a class, got none")
    return Pictures(np.stack(colours), np.array(labels, dtype=np.int64))


def _tabled(place: Path, part: str) -> Pictures:
    try:
        from pyarrow import parquet  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install pyarrow") from error
    colours, labels = [], []
    for path in sorted(place.glob(f"{part}*.parquet")):
        table = parquet.read_table(path).to_pydict()
        images = table.get("img", table.get("image"))
        if images is None or "label" not in table:
            raise ValueError(f"{path} must have the columns img or image, and label, got {sorted(table)}")
        colours += [decoded_png(one["bytes"], f"{path}, image {row}", SIZE, "RGB") for row, one in enumerate(images)]
        labels += table["label"]
    if not labels:
        raise FileNotFoundError(f"{place} must hold {part}*.parquet, got {listing(place)}")
    return Pictures(np.stack(colours), _checked_labels(place, labels))


# Instructions that build data; REDUCE and BUILD call one of our stand-ins, the only names that are found.
_ALLOWED = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 EMPTY_LIST EMPTY_DICT EMPTY_TUPLE "
    "TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS SHORT_BINSTRING BINSTRING BINUNICODE SHORT_BINUNICODE "
    "BINBYTES "
    "SHORT_BINBYTES BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD".split()
)
# What these give may be taken from the memo, if it is short: containers that share no other do not outgrow their file.
_SHARED = frozenset(
    "SHORT_BINSTRING BINSTRING BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES GLOBAL STACK_GLOBAL REDUCE".split()
)
_MAX_SHARED = 1000  # characters
_MAX_INSTRUCTIONS = 200_000
_MAX_DEPTH = 20  # marks that are open at once
_MAX_TUPLES = 20  # that are not at once used up by a call: Python's hash of one has no limit of its own in depth


class _Type:
    """In place of ``numpy.dtype``: bytes only."""

    def __init__(self, code: Any = None, align: Any = False, copy: Any = False) -> None:
        if code not in ("u1", b"u1"):
            got = repr(code[:20]) if isinstance(code, str | bytes) else type(code).__name__
            raise pickle.UnpicklingError(f"arrays must be of u1, got {got}")

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """In place of ``numpy.ndarray``."""

    values: NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _Type) and not state[3]):
            raise pickle.UnpicklingError("arrays must hold a shape, a type and bytes in order")
        _, shape, _, _, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(raw, bytes) or shape != (len(raw) // (3 * SIZE * SIZE), 3 * SIZE * SIZE):
            raise pickle.UnpicklingError("arrays must have the shape (num_images, 3072) and its bytes, got another")
        if len(raw) != shape[0] * shape[1]:
            raise pickle.UnpicklingError(f"arrays must have {shape[0] * shape[1]} bytes, got {len(raw)}")
        self.values = np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def _array(*_: Any) -> _Array:
    return _Array()


def _encoded(text: Any = None, encoding: Any = None) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":  # how Python 3 writes bytes for Python 2
        raise pickle.UnpicklingError("bytes must be stored as bytes or as latin1")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encoded,
} | {(module, "_reconstruct"): _array for module in ("numpy.core.multiarray", "numpy._core.multiarray")}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"only numpy's arrays may be named, got {module}.{name}"[:120])
        return _STAND_INS[module, name]


def read_batch(path: Path) -> Pictures:
    """Images and labels of one of CIFAR-10's pickles; nothing in it can name or call anything but stand-ins of ours.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or is not a dict with data and labels.
    """
    raw = read_file(path, MAX_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python, on a damaged name with a backslash
            _look_through(raw)
        loaded = _Unpickler(io.BytesIO(raw), encoding="latin1").load()
        if not isinstance(loaded, dict):
            raise ValueError(f"it must be a dict, got {type(loaded).__name__}")
        found = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in loaded.items()}
        data, labels = found.get("data"), found.get("labels")
        if not isinstance(data, _Array) or data.values is None or not isinstance(labels, list):
            keys = ", ".join(key for key in found if isinstance(key, str))
            raise ValueError(f"it must hold data and labels, got {keys[:80]}")
        if len(labels) != len(data.values):
            raise ValueError(f"it must have a label for each image, got {len(labels)} for {len(data.values)}")
        colours = data.values.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
        return Pictures(np.ascontiguousarray(colours), _checked_labels(path, labels))
    except (pickle.UnpicklingError, ValueError, TypeError, EOFError, IndexError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} must be a batch of CIFAR-10 as Python's pickle: {error}") from error


def _look_through(raw: bytes) -> None:
    """Refuse a pickle before any of it is run, where it does more than build plain data."""
    depth = tuples = 0
    shared: dict[int, bool] = {}  # whether what stands at a place of the memo may be taken from there
    before, short = "", False  # the instruction that gave what the memo takes next
    for number, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
        name = opcode.name
        if name not in _ALLOWED or number > _MAX_INSTRUCTIONS:
            raise pickle.UnpicklingError(f"a batch must not hold the instruction {name}, or so many")
        depth += (name == "MARK") - (pickletools.markobject in opcode.stack_before)
        tuples += name.startswith("TUPLE") - (name == "REDUCE" and before.startswith("TUPLE"))
        if depth > _MAX_DEPTH or tuples > _MAX_TUPLES:
            raise pickle.UnpicklingError(f"containers must be nested at most {_MAX_DEPTH} deep, {_MAX_TUPLES} tuples")
        if name == "MEMOIZE" or name.endswith("BINPUT"):
            place = len(shared) if argument is None else int(argument)
            if place > _MAX_INSTRUCTIONS:
                raise pickle.UnpicklingError(f"places in the memo must be below {_MAX_INSTRUCTIONS}, got {place}")
            shared[place] = before in _SHARED and short
            continue
        if name.endswith("BINGET") and not shared.get(int(argument or 0), False):
            raise pickle.UnpicklingError(f"only names and short texts may be used twice, got place {argument}")
        before, short = name, not isinstance(argument, str | bytes) or len(argument) <= _MAX_SHARED


def _checked_labels(place: Path, labels: list[Any]) -> NDArray[np.int64]:
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < len(CLASSES):
            got = str(label)[:20] if type(label) is int else type(label).__name__
            raise ValueError(f"{place}, image {row} must have a label from 0 to 9, got {got}")
    return np.array(labels, dtype=np.int64)
