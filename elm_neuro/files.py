"""Files written whole, and strangers' files read safely. Knows no neuron."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

MAX_CONFIG_BYTES = 1 << 24
LEFT_S = 3600.0  # seconds after which nobody writes on
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors that nothing but writing has


def cache_folder(name: str) -> Path:
    """Where what can be made again is kept: ``elm_neuro/NAME`` in ``$XDG_CACHE_HOME``, on Windows in
    ``%LOCALAPPDATA%``, or else in ``~/.cache``; a relative path in a variable is ignored, as its specification says.

    Raises:
        RuntimeError: there is no home folder.
    """
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    base = Path(os.environ.get(variable, ""))
    try:
        return (base if base.is_absolute() else Path.home() / ".cache") / "elm_neuro" / name
    except RuntimeError as error:
        raise RuntimeError(f"a cache needs a home folder, or the variable {variable}: {error}") from error


def is_there(path: Path) -> bool:
    """Whether something of that name can be seen: not in a folder of somebody else, nor of a name that is too long."""
    try:
        return path.exists()
    except OSError:
        return False


def make_folder(path: Path, name: str) -> None:
    """Make a folder where there is none.

    Args:
        path: of the folder.
        name: what the message calls it.

    Raises:
        OSError: it cannot be made, for instance because a file is in its place.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{name} must be a folder that can be written, got {path}: {error.strerror or error}") from error


@contextmanager
def whole_files(*paths: str | os.PathLike[str], through_links: bool = True) -> Iterator[tuple[Path, ...]]:
    """Temporary names in the folders of `paths`, one for each, that take their places when the block ends.

    Each file is on the disk before the first is renamed, and they are renamed in the order given: the last one is put
    in place last. A name that the block did not write is an error. Where the block or a write fails, or Ctrl-C comes
    before the first file is in its place, every target stays what it was and no temporary file is left.

    Args:
        paths: files to write or replace; their folders must exist.
        through_links: of a link, write what it leads to, as somebody who names it expects. False: put a file in its
            place, and in that of a pipe or a device, as in folders of a stranger, or of a cache whose files are links,
            where what lies elsewhere must not change.

    Raises:
        FileNotFoundError: a folder does not exist, or the block did not write a file.
        IsADirectoryError: a path is a folder.
        FileExistsError: a path is, or leads to, a pipe, a device or a socket, in whose place no file is put.
        OSError: a file cannot be written; where the disk is full, in the block too, the message names it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     target = Path(folder, "numbers.txt")
    ...     with whole_files(target) as (temporary,):
    ...         _ = temporary.write_text("1 2 3")
    ...     target.read_text(), [path.name for path in Path(folder).iterdir()]
    ('1 2 3', ['numbers.txt'])
    """
    targets = [_led_to(Path(path)) if through_links else Path(path) for path in paths]
    for path in targets:
        if path.is_dir():
            raise IsADirectoryError(f"a file is to be written, but a folder has its name: {path}")
        if through_links:
            _refuse_special(path)
        if not path.parent.is_dir():
            kind = NotADirectoryError if path.parent.exists() else FileNotFoundError
            raise kind(f"a file is to be written into a folder, but there is no folder {path.parent}")
    token = _token()
    temporary = [_temporary(path, token) for path in targets]
    try:
        with _naming_where_full(targets):
            yield tuple(temporary)
        for written, target in zip(temporary, targets, strict=True):
            with naming(target):
                _synchronise(written)
        try:
            _rename(temporary, targets)
        except KeyboardInterrupt:  # between two files: finish, or the folder would be left with one of each
            _rename(temporary, targets)
            raise
        for folder in {path.parent for path in targets}:
            _synchronise_names(folder)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def write_whole(files: Mapping[Path, bytes], *, through_links: bool = True) -> None:
    """Write files so that each is either what it was or complete: :func:`whole_files` for contents that are in memory.

    Args:
        files: content by path; the folders must exist. The last one is put in place last.
        through_links: as there.

    Raises:
        OSError: a file cannot be written; the message names it, and no temporary file is left.
    """
    with whole_files(*files, through_links=through_links) as temporary:
        for path, (target, content) in zip(temporary, files.items(), strict=True):
            with naming(target), path.open("xb") as file:
                file.write(content)


def write_whole_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files so that it is what it was, or complete and holds nothing else.

    No system replaces a folder by another in one step: killed between the two renames, there is none until it is
    written again, but never one that is half old.

    Args:
        path: folder to write or replace, or a file to replace; the folder that it lies in must exist. A link is
            replaced.
        files: content by name.

    Raises:
        FileExistsError: `path` is a pipe, a device or a socket.
        OSError: it cannot be written; the message names it, and no temporary folder is left.
    """
    _refuse_special(path)
    temporary, old = (_temporary(path, _token()) for _ in range(2))
    try:
        with naming(path):
            temporary.mkdir()
            for name, content in files.items():
                (temporary / name).write_bytes(content)
                _synchronise(temporary / name)
            _synchronise_names(temporary)
            if path.exists() or path.is_symlink():
                os.rename(path, old)
            os.rename(temporary, path)
            _synchronise_names(path.parent)
    finally:
        if (old.exists() or old.is_symlink()) and not path.exists():
            os.rename(old, path)
        remove(temporary)
        remove(old)


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders of writers that were killed, and of those that are at work this moment."""
    return [path for path in folder.iterdir() if is_temporary(path)]


def is_temporary(path: Path) -> bool:
    """Whether the name is one that this module gives to what is not whole yet."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_old_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a folder into which others may be writing: what nobody touched for an hour,
    and whose process does not run. The number of a process says nothing of one on another machine, so the hour counts.
    """
    with contextlib.suppress(OSError):  # a folder that cannot be read, or somebody else was faster: another time
        for path in leftovers(folder):
            touched = max(part.lstat().st_mtime for part in (path, *path.rglob("*")))
            if time.time() - touched > LEFT_S and not _runs(int(_TEMPORARY.sub(r"\1", path.name))):
                remove(path)


def _runs(process: int) -> bool:
    """Whether there is such a process on this machine; True where it cannot be known."""
    if os.name == "nt":
        return True  # there the signal 0 is no question, but Ctrl-C
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is somebody else's, or the number none of a process
        return True
    return True


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it, if it is there; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _led_to(path: Path) -> Path:
    """The path itself, or what it leads to where it is a link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _refuse_special(path: Path) -> None:
    if path.exists() and not (path.is_symlink() or path.is_file() or path.is_dir()):
        raise FileExistsError(f"a file is to be written, but a pipe, a device or a socket has its name: {path}")


_TEMPORARY = re.compile(r"\..*\.(\d+)-[0-9a-f]{8}\.tmp(\.[^.]*)?")


def _token() -> str:
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def _temporary(path: Path, token: str) -> Path:
    """A hidden name beside `path`; the ending stays, for writers that look at it."""
    return path.with_name(f".{path.stem[:100]}.{token}.tmp{path.suffix}")


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """Have the system's errors name the file that was asked for, not a temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{target} cannot be written: {error.strerror or error}") from error


@contextmanager
def _naming_where_full(targets: list[Path]) -> Iterator[None]:
    """The same for a full disk alone: other errors of a block may be of something that it reads."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL or error.strerror != os.strerror(error.errno):  # or it is named already
            raise
        names = ", ".join(map(str, targets))
        raise OSError(error.errno, f"{names} cannot be written: {error.strerror}") from error


def _rename(temporary: list[Path], targets: list[Path]) -> None:
    for written, target in zip(temporary, targets, strict=True):
        if written.exists():
            with naming(target):
                os.replace(written, target)


def _synchronise(path: Path) -> None:
    """Have a file written to the disk."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _synchronise_names(folder: Path) -> None:
    """Have the names in a folder written to the disk, where it can be opened: not on Windows, nor without leave to
    read it, nor on every file system.
    """
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """A regular file opened for reading: a pipe or a device could keep us waiting for ever, or have no end.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, a pipe, a device or a socket.
        OSError: it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError(f"{os.fspath(path)} must be a regular file, got a folder, a pipe or a device")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: Path, limit: int | None = None) -> bytes:
    """Content of a regular file of at most `limit` bytes.

    Raises:
        FileNotFoundError: there is no such file; the message lists what is there.
        ValueError: it is larger, or no regular file.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} must be a regular file, got {'a folder' if path.is_dir() else 'a pipe or a device'}")
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} must hold {path.name}, got {listing(path.parent)}")
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise ValueError(f"{path} must have at most {limit} bytes, got {size}")
        return file.read(size)


def listing(folder: Path) -> str:
    """Names in a folder, for messages: the first ten."""
    if not folder.is_dir():
        return "no such folder"
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:10] + ["..."] * (len(names) > 10)) or "an empty folder"


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a stranger: at most 16 MiB, not nested without end.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too large, not JSON, not an object, or has a name twice.
    """
    try:
        values = json.loads(read_file(path, MAX_CONFIG_BYTES), object_pairs_hook=with_each_name_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def with_each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its names and values, for ``json.loads(..., object_pairs_hook=...)``, which takes the last of
    two.

    Raises:
        ValueError: a name is there twice.

    >>> json.loads('{"a": 1, "a": 2}', object_pairs_hook=with_each_name_once)
    Traceback (most recent call last):
    ValueError: an object must have each name once, got 'a' twice
    """
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"an object must have each name once, got {name!r:.100} twice")
        values[name] = value
    return values
