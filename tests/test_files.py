"""Files are written whole or not at all, whatever stops the writer, and strangers' JSON is read within bounds."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elm_neuro.files import (
    cache_folder,
    json_object,
    leftovers,
    open_regular,
    read_file,
    remove_old_leftovers,
    whole_files,
    write_whole,
    write_whole_folder,
)
from tests.full_disk import full_disk

OLD, NEW = {"one.txt": b"old 1", "two.txt": b"old 2"}, {"one.txt": b"new 1", "two.txt": b"new 2"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    write_whole({folder / name: raw for name, raw in files.items()})


def stream_files(folder: Path, files: dict[str, bytes]) -> None:
    with whole_files(*(folder / name for name in files)) as temporary:
        for path, raw in zip(temporary, files.values(), strict=True):
            path.write_bytes(raw)


WRITERS: dict[str, Callable[[Path, dict[str, bytes]], None]] = {
    "write_whole": write_files,
    "whole_files": stream_files,
    "write_whole_folder": write_whole_folder,
}


def failing(call: Callable[..., Any], number: int, error: BaseException) -> Callable[..., Any]:
    """`call`, but its call `number`, counted from 0, raises."""
    count = iter(range(1_000_000))

    def instead(*arguments: Any, **options: Any) -> Any:
        if next(count) == number:
            raise error
        return call(*arguments, **options)

    return instead


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_written_replaces_what_was_there(tmp_path: Path, writer: str) -> None:
    write_files(tmp_path / "folder", OLD)
    WRITERS[writer](tmp_path / "folder", NEW)
    assert content(tmp_path / "folder") == NEW
    assert names(tmp_path) == ["folder"]


def test_a_folder_keeps_no_file_of_the_one_before(tmp_path: Path) -> None:
    write_whole_folder(tmp_path / "folder", OLD | {"three": b""})
    write_whole_folder(tmp_path / "folder", NEW)
    assert content(tmp_path / "folder") == NEW


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
@pytest.mark.parametrize("call", ["fsync", "open", "replace", "rename"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_writer_that_is_stopped_leaves_all_old_or_all_new_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, error: BaseException, call: str, number: int
) -> None:
    write_files(tmp_path / "folder", OLD)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(getattr(os, call), number, error))
        with contextlib.suppress(OSError, KeyboardInterrupt):
            WRITERS[writer](tmp_path / "folder", NEW)
    assert names(tmp_path) == ["folder"]
    half = {"one.txt": b"new 1", "two.txt": b"old 2"}  # a disk that fails between two renames: nothing can be done
    allowed = (OLD, NEW, half) if (call, number) == ("replace", 1) else (OLD, NEW)
    assert content(tmp_path / "folder") in allowed


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_named_with_the_file_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    monkeypatch.setattr(os, "fsync", failing(os.fsync, 0, OSError(28, "No space left on device")))
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"folder\S* cannot be written: No space left on device") as raised:
        WRITERS[writer](tmp_path / "folder", NEW)
    assert raised.value.errno == 28 and ".tmp" not in str(raised.value)


def test_a_disk_that_is_full_while_a_block_writes_is_named_with_its_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with (
        full_disk(),
        pytest.raises(OSError, match=r"one, \S*two cannot be written: File too large") as raised,
        whole_files(one, two) as (temporary, _),
        temporary.open("wb") as file,
    ):
        file.write(bytes(100_000))
    assert raised.value.errno == errno.EFBIG and names(tmp_path) == []
    with pytest.raises(ConnectionResetError, match=r"^\[Errno 104\] reset$"), whole_files(one):
        raise ConnectionResetError(104, "reset")  # of what the block reads: no word of the file


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_folders_that_cannot_be_opened_or_synchronised_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, call: str
) -> None:
    real = {"open": os.open, "fsync": os.fsync}[call]

    def refused(place: Any, *arguments: Any, **options: Any) -> Any:
        if os.path.isdir(place if call == "open" else f"/proc/self/fd/{place}") and not options:  # rmtree has some
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(place, *arguments, **options)

    write_files(tmp_path / "folder", OLD)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refused)
        WRITERS[writer](tmp_path / "folder", NEW)
    assert content(tmp_path / "folder") == NEW and names(tmp_path) == ["folder"]


@pytest.mark.skipif(os.name == "nt", reason="there nobody knows whether a process runs")
def test_leftovers_are_removed_when_they_are_old_and_their_process_is_gone(tmp_path: Path) -> None:
    nobody = 99_999_999  # more than any system counts
    kept = [f".young.{nobody}-0123abcd.tmp", f".old.{os.getpid()}-0123abcd.tmp.h5", ".old.tmp", "old"]
    for name in [*kept, f".old.{nobody}-0123abcd.tmp.ckpt"]:
        (tmp_path / name).touch()
    for name in (f".old.{nobody}-0123abcd.tmp", f".filled.{nobody}-0123abcd.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").touch()
    long_ago = time.time() - 2 * 3600
    for path in (*tmp_path.rglob("*"), *tmp_path.iterdir()):
        if "young" not in path.name and path.parent.name != f".filled.{nobody}-0123abcd.tmp":
            os.utime(path, (long_ago, long_ago))
    remove_old_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*kept, f".filled.{nobody}-0123abcd.tmp"])
    remove_old_leftovers(tmp_path / "nothing")


KILLED = """
import os, signal, sys
from pathlib import Path
from elm_neuro import files

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

os.fsync = killed
target = Path(sys.argv[1])
{"file": lambda: files.write_whole({target / "one.txt": b"new"}),
 "folder": lambda: files.write_whole_folder(target, {"one.txt": b"new"})}[sys.argv[2]]()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_writer_leaves_the_old_and_what_leftovers_finds(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    write_files(folder, OLD)
    process = subprocess.run([sys.executable, "-c", KILLED, str(folder), kind])
    assert process.returncode == -signal.SIGKILL
    beside = folder if kind == "file" else tmp_path
    (left,) = leftovers(beside)
    assert left.name.startswith(".")
    assert {name: raw for name, raw in content(folder).items() if name != left.name} == OLD
    WRITERS["write_whole" if kind == "file" else "write_whole_folder"](folder, NEW)  # the next run minds nothing
    assert {name: raw for name, raw in content(folder).items() if name != left.name} == NEW


def test_only_names_of_ours_are_leftovers(tmp_path: Path) -> None:
    mine = [".a.12-0123abcd.tmp", ".a.12-0123abcd.tmp.h5", ".sim__a.b.7-ffffffff.tmp.arrays"]
    for name in [*mine, ".lock", "a.12-0123abcd.tmp", ".a.tmp", ".a.12-0123abcd.tmp.h5.more", ".a.12-xyz.tmp"]:
        (tmp_path / name).touch()
    assert sorted(path.name for path in leftovers(tmp_path)) == sorted(mine)


def test_a_name_that_the_block_did_not_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"one cannot be written"), whole_files(tmp_path / "one"):
        pass
    assert names(tmp_path) == []


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with whole_files(tmp_path / "one") as (temporary,):
            temporary.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert names(tmp_path) == []


def test_missing_folders_and_folders_of_the_same_name_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent"):
        write_whole({tmp_path / "absent" / "one": b""})
    with pytest.raises(NotADirectoryError, match=r"there is no folder .*file"):
        write_whole({tmp_path / "file" / "one": b""})
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a folder has its name: .*folder"):
        write_whole({tmp_path / "folder": b""})


def test_files_are_written_with_the_usual_permissions(tmp_path: Path) -> None:
    write_whole({tmp_path / "one": b"1"})
    (tmp_path / "two").write_bytes(b"2")
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "two").stat().st_mode


def test_files_are_read_up_to_a_limit_and_missing_ones_named(tmp_path: Path) -> None:
    write_files(tmp_path, OLD)
    assert read_file(tmp_path / "one.txt", 5) == b"old 1"
    with pytest.raises(ValueError, match=r"one\.txt must have at most 4 bytes, got 5"):
        read_file(tmp_path / "one.txt", 4)
    with pytest.raises(FileNotFoundError, match=r"must hold three\.txt, got one\.txt, two\.txt"):
        read_file(tmp_path / "three.txt")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "must be JSON"),
        (b"[1]", "must hold a JSON object, got list"),
        (b"[" * 100_000, "must be JSON"),
        (b"\xff\xfe", "must be JSON"),
    ],
)
def test_json_that_is_no_object_is_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    write_whole({tmp_path / "a.json": b'{"a": 1}'})
    assert json_object(tmp_path / "a.json") == {"a": 1}
    write_whole({tmp_path / "a.json": raw})
    with pytest.raises(ValueError, match=message):
        json_object(tmp_path / "a.json")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="must be a regular file, got a folder, a pipe or a device"):
            open_regular(path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"1")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"1"


@pytest.mark.skipif(os.name == "nt", reason="another variable, another folder")
@pytest.mark.parametrize("value", [None, "", "relative", "./relative"])
def test_a_cache_lies_where_xdg_says_and_a_relative_path_says_nothing(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("cuda") == tmp_path / "xdg" / "elm_neuro" / "cuda"
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder("cuda") == tmp_path / "home" / ".cache" / "elm_neuro" / "cuda"


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    there = tmp_path / "elsewhere"
    there.mkdir()
    (there / "real.txt").write_bytes(b"old")
    for name, target in (("link.txt", there / "real.txt"), ("new.txt", there / "not yet.txt")):
        (tmp_path / name).symlink_to(target)
        write_whole({tmp_path / name: b"new"})
        assert (tmp_path / name).is_symlink() and target.read_bytes() == b"new"
    write_whole({tmp_path / "link.txt": b"newer"}, through_links=False)
    assert not (tmp_path / "link.txt").is_symlink() and (there / "real.txt").read_bytes() == b"new"
    assert names(there) == ["not yet.txt", "real.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="no pipe has a name there")
def test_no_file_takes_the_place_of_a_pipe_or_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "nothing").symlink_to(os.devnull)
    for name in ("pipe", "link", "nothing"):
        with pytest.raises(FileExistsError, match="a pipe, a device or a socket has its name"):
            write_whole({tmp_path / name: b"new"})
    with pytest.raises(FileExistsError, match="a pipe, a device or a socket has its name"):
        write_whole_folder(tmp_path / "pipe", NEW)
    assert (tmp_path / "pipe").is_fifo() and Path(os.devnull).is_char_device()
