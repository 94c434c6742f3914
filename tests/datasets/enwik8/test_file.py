from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_neuro.datasets import TextStreams, alphabet, read_enwik8, split_text
from tests.full_disk import full_disk

TEXT = b"In the beginning the Universe was created. " * 50


def packed(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_a_file_and_its_archive_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT)
    plain = read_enwik8(tmp_path / "text", num_bytes=len(TEXT))
    assert plain.tobytes() == TEXT and not plain.flags.writeable
    archive = packed(tmp_path / "enwik8.zip", ("../../evil", TEXT))  # the name inside is never used
    assert read_enwik8(archive, num_bytes=len(TEXT)).tobytes() == TEXT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["enwik8", "enwik8.zip", "text"]
    before = (tmp_path / "enwik8").stat().st_mtime_ns
    assert read_enwik8(archive, num_bytes=None).tobytes() == TEXT
    assert (tmp_path / "enwik8").stat().st_mtime_ns == before  # taken as it is
    (tmp_path / "enwik8").write_bytes(TEXT[:7])  # of an unpacking that was cut off by another program
    assert read_enwik8(archive, num_bytes=len(TEXT)).tobytes() == TEXT


def test_a_disk_that_is_full_is_named_with_the_text_and_what_was_killed_before_is_removed(tmp_path: Path) -> None:
    archive = packed(tmp_path / "enwik8.zip", ("enwik8", TEXT * 10))
    left = tmp_path / ".enwik8.99999999-0123abcd.tmp"
    left.touch()
    os.utime(left, (0, 0))
    with full_disk(), pytest.raises(OSError, match="enwik8 cannot be written: File too large"):
        read_enwik8(archive, num_bytes=None)
    assert [path.name for path in tmp_path.iterdir()] == ["enwik8.zip"]


def test_texts_of_another_size_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ValueError, match="must have 100000000 bytes, got 2150"):
        read_enwik8(tmp_path / "text")
    with pytest.raises(ValueError, match="must have at least one byte, got 0"):
        read_enwik8(tmp_path / "empty", num_bytes=None)
    with pytest.raises(FileNotFoundError):
        read_enwik8(tmp_path / "nothing")
    with pytest.raises(ValueError, match="must be a regular file"):
        read_enwik8(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="must be a regular file"):
        read_enwik8(tmp_path / "pipe")


def test_archives_of_strangers_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    two = packed(tmp_path / "two.zip", ("a", b"1"), ("b", b"2"))
    with pytest.raises(ValueError, match="must hold one file, got 2 entries"):
        read_enwik8(two, num_bytes=None)
    bomb = packed(tmp_path / "bomb.zip", ("a", bytes(1_000_000)))
    with pytest.raises(ValueError, match="must hold 2150 bytes, got 1000000"):
        read_enwik8(bomb, num_bytes=len(TEXT))
    lying = packed(tmp_path / "lying.zip", ("a", TEXT))
    content, size = lying.read_bytes(), len(TEXT).to_bytes(4, "little")
    lying.write_bytes(content.replace(size, (len(TEXT) - 1).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"lying\.zip must"):
        read_enwik8(lying, num_bytes=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bomb.zip", "lying.zip", "two.zip"]


@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_does_not_matter(
    position: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("zip")
    archive = packed(folder / "enwik8.zip", ("enwik8", TEXT))
    content = bytearray(archive.read_bytes())
    content[position % len(content)] = value
    archive.write_bytes(content)
    try:
        found = read_enwik8(archive, num_bytes=len(TEXT)).tobytes()
    except ValueError:
        assert sorted(path.name for path in folder.iterdir()) == ["enwik8.zip"]
    else:
        assert found == TEXT


def test_parts_and_letters() -> None:
    text = np.frombuffer(TEXT, dtype=np.uint8)
    parts = [split_text(text, part, 100) for part in ("train", "valid", "test")]
    assert b"".join(part.tobytes() for part in parts) == TEXT and [len(part) for part in parts] == [1950, 100, 100]
    assert alphabet(text).tobytes() == bytes(sorted(set(TEXT)))
    with pytest.raises(ValueError, match="held_back must be at least 1 and below half of 2150 bytes, got 1075"):
        split_text(text, "train", 1075)
    with pytest.raises(ValueError, match="part must be one of"):
        split_text(text, "dev", 10)


@given(
    length=st.integers(4, 300),
    batch_size=st.integers(1, 4),
    num_steps=st.integers(1, 9),
    replicas=st.sampled_from([1, 2]),
)
def test_stretches_are_the_text_in_its_order(length: int, batch_size: int, num_steps: int, replicas: int) -> None:
    text = np.random.default_rng(length).integers(0, 256, length).astype(np.uint8)
    letters, batch_size = alphabet(text), batch_size * replicas
    options = {"batch_size": batch_size, "num_steps": num_steps, "replicas": replicas}
    if length // batch_size < num_steps + 1:
        with pytest.raises(ValueError, match="text must have at least"):
            TextStreams(text, letters, **options)
        return
    each = length // batch_size
    for rank in range(replicas):
        streams = TextStreams(text, letters, rank=rank, **options)
        batches = [streams[k] for k in range(len(streams))]
        assert [bool(batch.begins) for batch in batches] == [k == 0 for k in range(len(streams))]
        for row, stream in enumerate(range(rank, batch_size, replicas)):
            own, whole = text[stream * each : (stream + 1) * each], len(streams) * num_steps
            assert each - 1 - whole < num_steps
            read = np.concatenate([letters[batch.tokens[row].numpy()] for batch in batches])
            said = np.concatenate([letters[batch.targets[row].numpy()] for batch in batches])
            assert (read == own[:whole]).all() and (said == own[1 : whole + 1]).all()
    with pytest.raises(IndexError, match="index must be from 0 to"):
        streams[len(streams)]


def test_streams_that_do_not_fit_are_refused() -> None:
    text = np.frombuffer(TEXT, dtype=np.uint8)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 2 processes, got 3"):
        TextStreams(text, alphabet(text), batch_size=3, num_steps=4, replicas=2)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        TextStreams(text, alphabet(text), batch_size=3, num_steps=0)
    with pytest.raises(ValueError, match="text must hold bytes of its alphabet only, got 73"):
        TextStreams(text, alphabet(text)[5:], batch_size=1, num_steps=4)[0]


def test_a_file_that_is_not_there_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.zip must be enwik8 or enwik8\.zip, .* https://mattmahoney"):
        read_enwik8(tmp_path / "nowhere.zip")
