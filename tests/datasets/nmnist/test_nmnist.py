"""N-MNIST: files as tonic reads them, damaged ones refused by name, and a stand-in that depends on its seed alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_neuro.datasets import SHDDataset, make_nmnist, read_nmnist, read_nmnist_file, write_nmnist_file
from elm_neuro.datasets.nmnist import _made

EVENT = st.tuples(st.integers(0, 2**23 - 1), st.integers(0, 33), st.integers(0, 33), st.integers(0, 1))


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 recordings to train on and 10 to test."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("nmnist")
    make_nmnist(folder, 20, 10)
    return folder


@given(st.lists(EVENT, max_size=40))
@settings(max_examples=50, deadline=None)
def test_files_hold_events_as_tonic_reads_them(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, ...]]
) -> None:
    tonic = pytest.importorskip("tonic")
    path = tmp_path_factory.mktemp("one") / "00001.bin"
    t, x, y, p = np.array(events, dtype=np.int64).reshape(-1, 4).T
    write_nmnist_file(path, t, x, y, p)
    ours = read_nmnist_file(path)
    for found, wanted in zip(ours, (t, x, y, p), strict=True):
        np.testing.assert_array_equal(found, wanted)
    theirs = tonic.io.read_mnist_file(path, np.dtype([(name, np.int64) for name in "xytp"]))
    for name, found in zip("txyp", ours, strict=True):
        np.testing.assert_array_equal(found, theirs[name])
    np.testing.assert_array_equal(ours.channels("fold"), 34 * y + x)
    np.testing.assert_array_equal(ours.channels("keep"), 34 * y + x + 1156 * p)


def test_a_part_is_read_digit_by_digit(stand_in: Path) -> None:
    folded, kept = read_nmnist(stand_in, "train"), read_nmnist(stand_in, "train", polarity="keep")
    assert (folded.num_channels, kept.num_channels) == (1156, 2312)
    np.testing.assert_array_equal(folded.labels, np.repeat(np.arange(10), 2))
    np.testing.assert_array_equal(kept.units % 1156, folded.units)
    times, units = kept.sample(5)  # the second of digit 2
    events = read_nmnist_file(stand_in / "Train" / "2" / "00012.bin")
    np.testing.assert_array_equal(times, events.times)
    np.testing.assert_array_equal(units, events.channels("keep"))
    frames, label, speaker = SHDDataset(folded, bin_ms=1.0, duration_ms=400.0, output="frames")[5]
    wanted = np.zeros((400, 1156))
    np.add.at(wanted, (events.times // 1000, events.channels("fold")), 1)
    np.testing.assert_array_equal(frames, wanted)
    assert (label, speaker) == (2, -1)
    assert len(read_nmnist(stand_in, "test")) == 10


def test_it_lies_where_tonic_unpacks_it(stand_in: Path, tmp_path: Path) -> None:
    (tmp_path / "NMNIST").symlink_to(stand_in)
    assert read_nmnist(tmp_path, "test").fingerprint() == read_nmnist(stand_in, "test").fingerprint()


def test_the_stand_in_depends_on_its_seed_alone_and_goes_on_where_it_was_stopped(
    stand_in: Path, tmp_path: Path
) -> None:
    def stop(done: int, of: int) -> None:
        assert of == 30
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_nmnist(tmp_path / "again", 20, 10, progress=stop)
    assert len(list((tmp_path / "again").rglob("*.bin"))) == 7
    make_nmnist(tmp_path / "again", 20, 10)
    make_nmnist(tmp_path / "other", 20, 10, seed=1)
    for part in ("train", "test"):
        one, again, other = (read_nmnist(folder, part) for folder in (stand_in, tmp_path / "again", tmp_path / "other"))
        assert one.fingerprint() == again.fingerprint() != other.fingerprint()


def test_what_a_killed_writer_left_is_no_recording(tmp_path: Path) -> None:
    make_nmnist(tmp_path, 12, 10)
    whole = read_nmnist(tmp_path, "train").fingerprint()
    left = [
        tmp_path / "Train" / "1" / ".00001.77-0123abcd.tmp.bin",
        tmp_path / "Test" / "0" / ".00010.77-0123abcd.tmp.bin",
        tmp_path / ".generated.77-0123abcd.tmp.json",
    ]
    for path in left:
        path.write_bytes(bytes(5))
    assert read_nmnist(tmp_path, "train").fingerprint() == whole
    make_nmnist(tmp_path, 12, 10)
    assert not any(path.exists() for path in left)
    assert read_nmnist(tmp_path, "train").fingerprint() == whole
    with FileLock(tmp_path / ".lock"), pytest.raises(BlockingIOError, match="another process is writing into"):
        make_nmnist(tmp_path, 12, 10)


def test_brightness_rises_and_falls_equally_often_along_a_closed_path() -> None:
    pytest.importorskip("sklearn")
    images, _ = _made._digits()
    events = _made.seen(images[0], np.random.default_rng(0))
    assert 1000 < events.times.size < 6000  # published recordings have some 4,000
    assert (np.diff(events.times) >= 0).all() and events.times.max() < 300_000
    balance = np.zeros(1156)
    np.add.at(balance, events.channels("fold"), 2.0 * events.polarity - 1)
    assert np.abs(balance).max() <= 4  # the path ends where it began: what is left is noise and half a threshold


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\1\2\3\4", "must hold events of 5 bytes, got 4 bytes"),
        (b"\0\0\0\0\0\x22\0\0\0\0", "on 34 x 34 pixels, got event 1 at column 34, row 0"),
        (b"\0\xff\0\0\0", "on 34 x 34 pixels, got event 0 at column 0, row 255"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "00001.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_nmnist_file(path)


def test_what_is_no_file_of_this_kind_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(ValueError, match=r"pipe\.bin"):
        read_nmnist_file(tmp_path / "pipe.bin")
    with open(tmp_path / "large.bin", "wb") as file:
        file.truncate(1 << 24)
    with pytest.raises(ValueError, match=r"large\.bin"):
        read_nmnist_file(tmp_path / "large.bin")


def test_folders_that_are_not_there_say_where_the_recordings_are_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"must have the folder Train of N-MNIST: download Train\.zip .* doi 10"
    ):
        read_nmnist(tmp_path)
    for digit in "012345678":
        (tmp_path / "Test" / digit).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"a folder for each digit, got none for 9: download"):
        read_nmnist(tmp_path, "test")
    (tmp_path / "Test" / "9").mkdir()
    with pytest.raises(FileNotFoundError, match=r"0 must have recordings, \*\.bin, got none"):
        read_nmnist(tmp_path, "test")


def test_arguments_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='part must be "train" or "test", got \'valid\''):
        read_nmnist(tmp_path, "valid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='polarity must be "fold" or "keep", got \'both\''):
        read_nmnist(tmp_path, polarity="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"times must .* 8388608"):
        write_nmnist_file(tmp_path / "a.bin", [2**23], [0], [0], [0])
    with pytest.raises(ValueError, match="must be equally many, got 2, 1, 1, 1"):
        write_nmnist_file(tmp_path / "a.bin", [1, 2], [0], [0], [0])
    assert not (tmp_path / "a.bin").exists()
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match="num_test must be at least 10, one a digit, got 9"):
        make_nmnist(tmp_path, 10, 9)


def test_a_stand_in_of_another_seed_or_fewer_recordings_needs_another_folder(tmp_path: Path) -> None:
    make_nmnist(tmp_path, 12, 10, seed=3)
    whole = read_nmnist(tmp_path, "train").fingerprint()
    with pytest.raises(ValueError, match=r"must hold recordings of .*'seed': 4.*, got .*'seed': 3.*: another folder"):
        make_nmnist(tmp_path, 12, 10, seed=4)
    with pytest.raises(ValueError, match="no more than num_train = 10 recordings, got 12"):
        make_nmnist(tmp_path, 10, 10, seed=3)
    next(iter(tmp_path.rglob("00003.bin"))).write_bytes(b"")  # cut off by somebody
    make_nmnist(tmp_path, 12, 10, seed=3)
    assert read_nmnist(tmp_path, "train").fingerprint() == whole
    (tmp_path / "generated.json").unlink()
    with pytest.raises(ValueError, match="must be empty or hold recordings that were made here"):
        make_nmnist(tmp_path, 12, 10, seed=3)
