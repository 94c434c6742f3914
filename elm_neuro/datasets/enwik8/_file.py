"""enwik8 from disk: the file itself, mapped into memory, or the archive that it is handed out in."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from elm_neuro.files import open_regular, remove_old_leftovers, whole_files

Bytes: TypeAlias = NDArray[np.uint8]

ENWIK8_BYTES = 100_000_000
HELD_BACK = 5_000_000  # bytes that validate, and bytes that test, at the end: the split in use since Hutter's prize
CHUNK = 1 << 20
ADDRESS = "https://mattmahoney.net/dc/enwik8.zip"
DAMAGES = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    EOFError,
    RuntimeError,
    LookupError,
    UnicodeError,
)


def read_enwik8(path: str | os.PathLike[str], *, num_bytes: int | None = ENWIK8_BYTES) -> Bytes:
    """The bytes of enwik8, mapped from disk, read-only.

    Of an archive the text is written beside it, ``enwik8.zip`` as ``enwik8``, a chunk at a time and put in place only
    when it is whole; a text that is there already with the right size is taken as it is.

    Args:
        path: the file, or a zip archive with one file in it.
        num_bytes: how many there must be; None takes any number, of another text.

    Returns:
        (num_bytes,).

    Raises:
        FileNotFoundError: there is no such file; the message says where it comes from.
        ValueError: it is no regular file, has another size, or is an archive that is damaged or not of one such file.
        OSError: the text cannot be written beside its archive.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} must be enwik8 or enwik8.zip, and does not exist: it comes from {ADDRESS}")
    with open_regular(path) as file:
        archive = zipfile.is_zipfile(file)
    if archive:
        path = _unpacked(path, num_bytes)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < 1 or (num_bytes is not None and size != num_bytes):
            rule = "at least one byte" if num_bytes is None else f"{num_bytes} bytes"
            raise ValueError(f"{path} must have {rule}, got {size}")
        text = np.memmap(file, dtype=np.uint8, mode="r", shape=(size,))  # it keeps the file open
    text.filename = os.path.abspath(path)  # a file that was opened by its number has no name: workers map it by this
    return text


def _unpacked(path: Path, num_bytes: int | None) -> Path:
    """The text beside an archive."""
    target = path.with_suffix("") if path.suffix else path.with_name(f"{path.name}.txt")
    with open_regular(path) as file, _refusing(path):
        members = zipfile.ZipFile(file).infolist()
        if len(members) != 1 or members[0].is_dir():
            raise ValueError(f"{path} must hold one file, got {len(members)} entries")
        size = members[0].file_size
        limit = ENWIK8_BYTES if num_bytes is None else num_bytes
        if size > limit or (num_bytes is not None and size != num_bytes):
            raise ValueError(f"{path} must hold {limit} bytes{' at most' * (num_bytes is None)}, got {size}")
    if target.is_file() and target.stat().st_size == size:
        return target
    remove_old_leftovers(target.parent)
    with open_regular(path) as file, whole_files(target) as (temporary,), temporary.open("wb") as out:
        with _refusing(path):
            archive = zipfile.ZipFile(file)
            text = archive.open(members[0])
        for chunk in _chunks(text, size, path):
            out.write(chunk)
    return target


def _chunks(text: IO[bytes], size: int, path: Path) -> Iterator[bytes]:
    """Exactly `size` bytes of a member; an archive may hold more than it says."""
    done = 0
    while True:
        with _refusing(path):
            chunk = text.read(CHUNK)
        done += len(chunk)
        if done > size or (not chunk and done < size):
            raise ValueError(f"{path} must hold the {size} bytes that it says, got {'more' if done > size else done}")
        if not chunk:
            return
        yield chunk


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """What the standard library raises for archives that are damaged, as one error: even an OSError, for a place
    before the beginning of the file.
    """
    try:
        yield
    except (*DAMAGES, OSError) as error:
        raise ValueError(f"{path} must be a whole zip archive: {error}") from error


def split_text(text: Bytes, part: str, held_back: int = HELD_BACK) -> Bytes:
    """One part of a text: the last `held_back` bytes test, as many before them validate, the others train.

    Raises:
        ValueError: there is no such part, or nothing is left to train on.

    >>> [len(split_text(np.zeros(100, dtype=np.uint8), part, 5)) for part in ("train", "valid", "test")]
    [90, 5, 5]
    """
    if held_back < 1 or 2 * held_back >= len(text):
        raise ValueError(f"held_back must be at least 1 and below half of {len(text)} bytes, got {held_back}")
    edges = {"train": (0, -2 * held_back), "valid": (-2 * held_back, -held_back), "test": (-held_back, None)}
    if part not in edges:
        raise ValueError(f"part must be one of {list(edges)}, got {part!r}")
    return text[slice(*edges[part])]


def alphabet(text: Bytes) -> Bytes:
    """The bytes that occur in a text, ascending: 205 in enwik8. Read in chunks.

    >>> alphabet(np.frombuffer(b"banana", dtype=np.uint8)).tobytes()
    b'abn'
    """
    count = np.zeros(256, dtype=np.int64)
    for start in range(0, len(text), CHUNK):
        count += np.bincount(text[start : start + CHUNK], minlength=256)
    return np.flatnonzero(count).astype(np.uint8)
