"""SHD-format files: binning against plain loops, storage, loaders, and files that are damaged or hostile.

Long: the files of all these tests are made in one place.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

from elm_neuro.datasets import SHDDataset, SpikeRecordings, read_shd, split_speakers, unseen_speakers, write_shd
from elm_neuro.events import SpikeEvents

FLOAT16_ROW, UINT16_ROW = h5py.vlen_dtype(np.float16), h5py.vlen_dtype(np.uint16)


def rows(*samples: Any, dtype: Any) -> np.ndarray:
    out = np.empty(len(samples), dtype=object)
    for i, sample in enumerate(samples):
        out[i] = np.asarray(sample, dtype=dtype)
    return out


def write_plain(path: Path, **changes: Any) -> Path:
    """A file of two samples in the layout of SHD written by h5py alone; a change of None leaves the key out."""
    content: dict[str, Any] = {
        "spikes/times": (rows([0.25, 0.125], [0.5], dtype=np.float16), FLOAT16_ROW),
        "spikes/units": (rows([1, 699], [0], dtype=np.uint16), UINT16_ROW),
        "labels": ([3, 19], np.uint16),
        "extra/speaker": ([4, 5], np.uint16),
    }
    content.update({key.replace("__", "/"): value for key, value in changes.items()})
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            if value is not None:
                file.create_dataset(key, data=value[0], dtype=value[1])
    return path


def equal(a: SpikeRecordings, b: SpikeRecordings) -> bool:
    names = ("times", "units", "indptr", "labels", "speakers")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)  # two None are equal


def raster(times: np.ndarray, units: np.ndarray, bin_us: int, duration_us: int, pool: int) -> np.ndarray:
    """Frames of one sample, spike by spike in Python's integers."""
    frames = np.zeros((-(-duration_us // bin_us), -(-700 // pool)))
    for time, unit in zip(times.tolist(), units.tolist(), strict=True):
        if time < duration_us:
            frames[time // bin_us, unit // pool] += 1
    return frames


def test_reading_gives_microseconds_in_order_within_each_sample(tmp_path: Path) -> None:
    recordings = read_shd(write_plain(tmp_path / "a.h5"))
    assert recordings.times.tolist() == [125_000, 250_000, 500_000]
    assert recordings.units.tolist() == [699, 1, 0]
    assert (recordings.indptr.tolist(), recordings.labels.tolist()) == ([0, 2, 3], [3, 19])
    assert recordings.speakers is not None and recordings.speakers.tolist() == [4, 5]


def test_spikes_at_the_same_time_keep_their_order(tmp_path: Path) -> None:
    times = (rows([0.5, 0.25, 0.5, 0.25], [], dtype=np.float16), FLOAT16_ROW)
    units = (rows([9, 8, 7, 6], [], dtype=np.uint16), UINT16_ROW)
    assert read_shd(write_plain(tmp_path / "a.h5", spikes__times=times, spikes__units=units)).units.tolist() == [
        8,
        6,
        9,
        7,
    ]


def test_every_float16_time_survives_and_is_cut_to_whole_microseconds(tmp_path: Path) -> None:
    seconds = np.arange(2**15, dtype=np.uint16).view(np.float16)
    seconds = seconds[np.isfinite(seconds) & (seconds <= 2146)]
    path = write_plain(
        tmp_path / "a.h5",
        spikes__times=(rows(seconds, [], dtype=np.float16), FLOAT16_ROW),
        spikes__units=(rows(np.zeros(seconds.size), [], dtype=np.uint16), UINT16_ROW),
    )
    recordings = read_shd(path)
    exact = [
        numerator * 1_000_000 // denominator
        for numerator, denominator in (float(second).as_integer_ratio() for second in seconds)
    ]
    assert recordings.times.tolist() == exact
    below = recordings.times[:-1]  # the last one is 2146 s
    recordings = SpikeRecordings(
        below, recordings.units[:-1], recordings.indptr - [0, 1, 1], recordings.labels, recordings.speakers
    )
    write_shd(tmp_path / "b.h5", recordings)
    assert equal(read_shd(tmp_path / "b.h5"), recordings)


def test_a_file_without_speakers_reads_as_none(tmp_path: Path) -> None:
    assert read_shd(write_plain(tmp_path / "a.h5", extra__speaker=None)).speakers is None


def test_an_empty_file_and_empty_samples_are_fine(tmp_path: Path) -> None:
    nothing = SpikeRecordings(np.array([], int), np.array([], int), np.array([0]), np.array([], int), np.array([], int))
    silent = SpikeRecordings(np.array([], int), np.array([], int), np.zeros(3, int), np.array([1, 2]), None)
    for recordings in (nothing, silent):
        write_shd(tmp_path / "a.h5", recordings)
        assert equal(read_shd(tmp_path / "a.h5"), recordings)
    frames, labels, speakers = SHDDataset(silent, output="frames").batch([0, 1])
    assert frames.shape == (2, 100, 700) and not frames.any()
    assert (labels.tolist(), speakers.tolist()) == ([1, 2], [-1, -1])
    assert SHDDataset(nothing).batch([])[0].shape == (0, 100, 700)


def test_writing_and_reading_gives_the_same_recordings(tmp_path: Path, recordings: SpikeRecordings) -> None:
    write_shd(tmp_path / "a.h5", recordings, meta_info={"age": [30, 40]}, attributes={"made": "here"})
    assert equal(read_shd(tmp_path / "a.h5"), recordings)
    with h5py.File(tmp_path / "a.h5") as file:
        assert h5py.check_vlen_dtype(file["spikes/times"].dtype) == np.float16
        assert h5py.check_vlen_dtype(file["spikes/units"].dtype) == np.uint16
        assert file["extra/keys"][11] == b"eins" and file["extra/meta_info/age"][:].tolist() == [30, 40]
        assert file.attrs["made"] == "here"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.lists(st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(0, 699)), max_size=20), max_size=5),
    known=st.booleans(),
)
def test_written_times_are_within_half_a_step_of_float16(
    tmp_path: Path, samples: list[list[tuple[int, int]]], known: bool
) -> None:
    times = np.array([time for sample in samples for time, _ in sample], dtype=np.int64)
    units = np.array([unit for sample in samples for _, unit in sample], dtype=np.int64)
    indptr = np.cumsum([0, *map(len, samples)])
    labels = np.arange(len(samples)) % 20
    recordings = SpikeRecordings(times, units, indptr, labels, labels if known else None)
    write_shd(tmp_path / "a.h5", recordings)
    once = read_shd(tmp_path / "a.h5")
    step = np.spacing((np.sort(recordings.times) / 1e6).astype(np.float16)).astype(np.float64) * 1e6
    assert np.all(np.abs(np.sort(once.times) - np.sort(recordings.times)) <= 0.5 * step + 1)
    assert np.array_equal(once.labels, labels) and (once.speakers is not None) == known
    write_shd(tmp_path / "b.h5", once)
    assert equal(read_shd(tmp_path / "b.h5"), once)


def external(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["labels"]
        file["labels"] = h5py.ExternalLink("other.h5", "/labels")


def soft(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.move("labels", "elsewhere")
        file["labels"] = h5py.SoftLink("/elsewhere")


def linked_group(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["spikes"]
        file["spikes"] = h5py.ExternalLink("other.h5", "/spikes")


def linked_speaker(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["extra/speaker"]
        file["extra/speaker"] = h5py.ExternalLink("nowhere.h5", "/labels")


def outside(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["labels"]
        file.create_dataset("labels", shape=(2,), dtype=np.uint16, external=[(str(path.with_suffix(".raw")), 0, 4)])


def virtual(path: Path) -> None:
    layout = h5py.VirtualLayout(shape=(2,), dtype=np.uint16)
    layout[:] = h5py.VirtualSource("other.h5", "labels", shape=(2,))
    with h5py.File(path, "r+") as file:
        del file["labels"]
        file.create_virtual_dataset("labels", layout)


def boundless(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["labels"]
        file.create_dataset("labels", shape=(2**40,), dtype=np.uint16, chunks=(1024,))


def group_for_labels(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["labels"]
        file.create_group("labels")


def times_row(*samples: Any, dtype: Any = np.float16) -> tuple[Any, Any]:
    return rows(*samples, dtype=dtype), h5py.vlen_dtype(dtype)


BAD_CONTENT: dict[str, tuple[dict[str, Any], str]] = {
    "no times": ({"spikes__times": None}, "/spikes/times must be there"),
    "no units": ({"spikes__units": None}, "/spikes/units must be there"),
    "no labels": ({"labels": None}, "/labels must be there, got keys"),
    "integer times": (
        {"spikes__times": times_row([1, 2], [3], dtype=np.int32)},
        "/spikes/times must be variable-length floats, got int32",
    ),
    "float units": (
        {"spikes__units": times_row([1, 2], [3])},
        "/spikes/units must be variable-length integers, got float16",
    ),
    "times in a matrix": ({"spikes__times": (np.zeros((2, 3)), np.float64)}, r"one dimension, got shape \(2, 3\)"),
    "times of fixed length": (
        {"spikes__times": (np.zeros(2), np.float64)},
        "must be variable-length floats, got float64",
    ),
    "text labels": ({"labels": ([b"a", b"b"], "S1")}, "/labels must be integers"),
    "float labels": ({"labels": ([0.0, 1.0], np.float32)}, "/labels must be integers, got dtype float32"),
    "more times than labels": (
        {"spikes__times": times_row([0.1], [0.1], [0.1])},
        "spikes/times must have one row per label, 2, got 3",
    ),
    "fewer units than labels": (
        {"spikes__units": (rows([1], dtype=np.uint16), UINT16_ROW)},
        "spikes/units must have one row per label, 2, got 1",
    ),
    "rows of other length": (
        {"spikes__times": times_row([0.1], [0.1])},
        "as many entries as spikes/times, 1 in sample 0, got 2",
    ),
    "negative time": ({"spikes__times": times_row([0.1, -0.5], [0.1])}, "not negative and at most 2146 s, got -0.5"),
    "NaN time": ({"spikes__times": times_row([0.1, np.nan], [0.1])}, "must be finite.*got nan"),
    "infinite time": ({"spikes__times": times_row([0.1, np.inf], [0.1])}, "must be finite.*got inf"),
    "endless time": ({"spikes__times": times_row([0.1, 60000.0], [0.1])}, "at most 2146 s, got 6"),
    "unit 700": (
        {"spikes__units": (rows([1, 700], [0], dtype=np.uint16), UINT16_ROW)},
        r"units must be in \[0, 700\), got 700",
    ),
    "negative unit": (
        {"spikes__units": times_row([1, -2], [0], dtype=np.int16)},
        r"units must be in \[0, 700\), got -2",
    ),
    "label 20": ({"labels": ([3, 20], np.uint16)}, r"labels must be in \[0, 20\), got 20"),
    "negative label": ({"labels": ([-1, 2], np.int16)}, r"labels must be in \[0, 20\), got -1"),
    "too many speakers": (
        {"extra__speaker": ([1, 2, 3], np.uint16)},
        "extra/speaker must have one entry per label, 2, got 3",
    ),
    "negative speaker": ({"extra__speaker": ([-1, 2], np.int16)}, r"speakers must be in \[0, "),
    "huge unit": ({"spikes__units": times_row([1, 2**64 - 1], [0], dtype=np.uint64)}, r"units must be in \[0, 700\)"),
}
BAD_STRUCTURE: dict[str, tuple[Callable[[Path], None], str]] = {
    "external link": (external, "/labels must be stored in the file itself, got a ExternalLink"),
    "soft link": (soft, "/labels must be stored in the file itself, got a SoftLink"),
    "externally linked group": (linked_group, "/spikes/times must be stored in the file itself, got a ExternalLink"),
    "dangling external link": (linked_speaker, "/extra/speaker must be stored in the file itself, got a ExternalLink"),
    "external storage": (outside, "must be stored in the file itself, got external storage"),
    "virtual data set": (virtual, "must be stored in the file itself, got a virtual data set"),
    "shape larger than the file": (boundless, "no more samples than the file has bytes"),
    "group for labels": (group_for_labels, "/labels must be a data set, got a Group"),
}


@pytest.mark.parametrize("case", BAD_CONTENT)
def test_bad_content_is_refused_with_file_rule_and_value(tmp_path: Path, case: str) -> None:
    changes, message = BAD_CONTENT[case]
    with pytest.raises(ValueError, match=message) as caught:
        read_shd(write_plain(tmp_path / "bad.h5", **changes))
    assert str(tmp_path / "bad.h5") in str(caught.value)


@pytest.mark.parametrize("case", BAD_STRUCTURE)
def test_a_file_that_points_elsewhere_is_refused(tmp_path: Path, case: str) -> None:
    damage, message = BAD_STRUCTURE[case]
    write_plain(tmp_path / "other.h5")
    damage(write_plain(tmp_path / "bad.h5"))
    with pytest.raises(ValueError, match=message):
        read_shd(tmp_path / "bad.h5")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.h5, which does not exist"):
        read_shd(tmp_path / "nothing.h5")


def test_what_is_not_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.h5").write_bytes(b"not HDF5" * 100)
    with pytest.raises(ValueError, match=r"bad\.h5 must be a whole HDF5 file in the layout of SHD"):
        read_shd(tmp_path / "bad.h5")
    with pytest.raises(ValueError, match="must be a whole HDF5 file"):
        read_shd(tmp_path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, recordings: SpikeRecordings, part: float) -> None:
    write_shd(tmp_path / "a.h5", recordings)
    whole = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match=r"a\.h5 must be a whole HDF5 file"):
        read_shd(tmp_path / "a.h5")


@pytest.mark.parametrize(
    "options",
    [{}, {"chunks": (2,)}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True}, {"chunks": (3,)}],
)
def test_rows_are_read_from_every_usual_storage(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_plain(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file["spikes/times"]
        times = rows([0.25, 0.125], [0.5], dtype=np.float16)
        file.create_dataset(
            "spikes/times", data=times, dtype=FLOAT16_ROW, maxshape=(5,) if options else (2,), **options
        )
    assert read_shd(path).times.tolist() == [125_000, 250_000, 500_000]


@pytest.mark.parametrize("options", [{}, {"chunks": (2,)}])
def test_a_row_that_claims_more_than_the_file_is_refused_before_it_is_read(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = write_plain(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file["spikes/times"]
        data = file.create_dataset(
            "spikes/times", data=rows([0.25] * 1000, [0.5], dtype=np.float16), dtype=FLOAT16_ROW, **options
        )
        file.flush()
        offset = data.id.get_chunk_info(0).byte_offset if options else data.id.get_offset()
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write((2**32 - 1).to_bytes(4, "little"))
    with pytest.raises(ValueError, match=r"must hold no more than the file's \d+ bytes, got rows that claim 85899"):
        read_shd(path)


def test_unusual_filters_are_refused(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file["spikes/times"]
        file.create_dataset(
            "spikes/times",
            data=rows([0.25, 0.125], [0.5], dtype=np.float16),
            dtype=FLOAT16_ROW,
            chunks=(2,),
            compression="lzf",
        )
    with pytest.raises(ValueError, match="must be stored plainly or with the filters gzip and shuffle, got filter"):
        read_shd(path)


@pytest.mark.parametrize("name", ["shd_one_byte_segfault", "shd_zeroed_heap_endless"])
def test_files_that_bring_libhdf5_down_are_refused(shared: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.h5 must be a whole HDF5 file in the layout of SHD"):
        read_shd(shared / "data" / "hostile" / f"{name}.h5")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="must be a regular file"):
        read_shd(tmp_path / "a.h5")


def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """libhdf5 brings the interpreter down when it cannot write; a limit on the size of files stands for the disk."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from elm_neuro.datasets import SpikeRecordings, write_shd\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "recordings = SpikeRecordings(np.arange(9999), np.zeros(9999, int), np.array([0, 9999]), np.array([1]), None)\n"
        "try:\n    write_shd(sys.argv[1], recordings)\nexcept OSError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.h5")], check=True, capture_output=True, text=True
    )
    assert "a.h5 cannot be written: File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_any_overwritten_block_gives_recordings_or_a_value_error(tmp_path: Path, recordings: SpikeRecordings) -> None:
    write_shd(tmp_path / "a.h5", recordings)
    whole = (tmp_path / "a.h5").read_bytes()
    refused, rng = 0, np.random.default_rng(3)
    for _ in range(150):
        start = int(rng.integers(0, len(whole) - 16))
        (tmp_path / "b.h5").write_bytes(whole[:start] + rng.bytes(16) + whole[start + 16 :])
        try:
            assert len(read_shd(tmp_path / "b.h5")) <= 6
        except ValueError:
            refused += 1
    assert 20 < refused < 150


RULES: dict[str, tuple[dict[str, Any], str]] = {
    "times": ({"times": np.array([1.0, 2.0, 3.0])}, "times must be integers, got dtype float64"),
    "late": ({"times": np.array([1, 2, 2**31])}, r"times must be in \[0, 2147483648\), got 2147483648"),
    "early": ({"times": np.array([1, -2, 3])}, "got -2"),
    "matrix": ({"units": np.zeros((3, 1), int)}, r"units must have one dimension, got shape \(3, 1\)"),
    "units": ({"units": np.array([1, 2])}, "units must have one entry per time, 3, got 2"),
    "indptr": ({"indptr": np.array([0, 3])}, "indptr must have one entry more than the 2 labels, got 2"),
    "falling": ({"indptr": np.array([0, 4, 3])}, "indptr must be in"),
    "fall": ({"indptr": np.array([1, 0, 3])}, "indptr must rise from 0"),
    "short": ({"indptr": np.array([0, 1, 2])}, "indptr must rise from 0 to the number of events, 3"),
    "speakers": ({"speakers": np.array([1])}, "speakers must have one entry per label, 2, got 1"),
    "channels": ({"num_channels": 0}, r"num_channels must be in \[1, 65536\], got 0"),
    "few channels": ({"num_channels": 3}, r"units must be in \[0, 3\), got 9"),
}


@pytest.mark.parametrize("case", RULES)
def test_recordings_name_the_rule_that_broke(case: str) -> None:
    changes, message = RULES[case]
    good = {
        "times": np.array([1, 2, 3]),
        "units": np.array([7, 8, 9]),
        "indptr": np.array([0, 1, 3]),
        "labels": np.array([0, 1]),
        "speakers": None,
    }
    SpikeRecordings(**good)
    with pytest.raises(ValueError, match=message):
        SpikeRecordings(**{**good, **changes})


def test_unsorted_samples_are_sorted_and_the_caller_keeps_its_array() -> None:
    times, units = np.array([5, 3, 9, 1], dtype=np.int32), np.array([1, 2, 3, 4], dtype=np.uint16)
    recordings = SpikeRecordings(times, units, np.array([0, 2, 2, 4]), np.array([0, 1, 2]), None)
    assert recordings.times.tolist() == [3, 5, 1, 9] and recordings.units.tolist() == [2, 1, 4, 3]
    assert times.tolist() == [5, 3, 9, 1] and times.flags.writeable


def test_recordings_cannot_be_written_to(recordings: SpikeRecordings) -> None:
    with pytest.raises(ValueError, match="read-only"):
        recordings.times[0] = 1


def test_a_subset_holds_the_samples_it_names(recordings: SpikeRecordings) -> None:
    chosen = [4, 3, 0, 4, -1]
    part = recordings.subset(chosen)
    for i, k in enumerate(chosen):
        assert all(np.array_equal(a, b) for a, b in zip(part.sample(i), recordings.sample(k), strict=True))
    assert part.labels.tolist() == recordings.labels[chosen].tolist() and len(recordings.subset([])) == 0
    with pytest.raises(ValueError, match=r"indices must be in \[-6, 6\), got 6"):
        recordings.subset([6])
    with pytest.raises(ValueError, match="indices must be integers"):
        recordings.subset([0.5])
    with pytest.raises(IndexError, match=r"index must be in \[-6, 6\), got 6"):
        recordings.sample(6)


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, recordings: SpikeRecordings, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    write_shd(tmp_path / "a.h5", recordings)
    before = (tmp_path / "a.h5").read_bytes()

    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(failure)):
        write_shd(tmp_path / "a.h5", recordings.subset([0]))
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"] and (tmp_path / "a.h5").read_bytes() == before


def test_a_folder_that_is_missing_or_a_file_is_named(tmp_path: Path, recordings: SpikeRecordings) -> None:
    with pytest.raises(FileNotFoundError, match=r"to be written into a folder, but there is no folder .*absent"):
        write_shd(tmp_path / "absent" / "a.h5", recordings)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"there is no folder .*file"):
        write_shd(tmp_path / "file" / "a.h5", recordings)


def test_a_folder_without_permission_is_named(
    tmp_path: Path, recordings: SpikeRecordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=f"{tmp_path / 'a.h5'} cannot be written: Permission denied"):
        write_shd(tmp_path / "a.h5", recordings)


def test_what_shd_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="recordings must have 700 channels to be stored as SHD, got 64"):
        write_shd(
            tmp_path / "a.h5", SpikeRecordings(np.array([1]), np.array([1]), np.array([0, 1]), np.array([0]), None, 64)
        )
    with pytest.raises(ValueError, match="times must stay below 2146 s"):
        write_shd(
            tmp_path / "a.h5",
            SpikeRecordings(np.array([2_146_000_000]), np.array([1]), np.array([0, 1]), np.array([0]), None),
        )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bin_us=st.integers(500, 400_000),
    duration_us=st.integers(1000, 1_500_000),
    pool=st.sampled_from([1, 2, 5, 7, 140, 700]),
    chosen=st.lists(st.integers(0, 5), min_size=1, max_size=4),
)
def test_binning_equals_a_loop_over_spikes(
    recordings: SpikeRecordings, bin_us: int, duration_us: int, pool: int, chosen: list[int]
) -> None:
    expected = np.stack([raster(*recordings.sample(i), bin_us, duration_us, pool) for i in chosen])
    for binary in (False, True):
        wanted = np.minimum(expected, 1) if binary else expected
        for output in ("frames", "events"):
            options: dict[str, Any] = {"output": output, "binary": binary, "pool": pool}
            dataset = SHDDataset(recordings, bin_ms=bin_us / 1000, duration_ms=duration_us / 1000, **options)
            inputs, labels, speakers = dataset.batch(chosen)
            frames = inputs.to_dense() if isinstance(inputs, SpikeEvents) else inputs
            assert frames.dtype == torch.float32
            assert np.array_equal(frames.numpy(), wanted)
            assert np.array_equal(labels, recordings.labels[chosen]) and np.array_equal(
                speakers, recordings.speakers[chosen]
            )
            one = dataset[chosen[-1]][0]
            assert np.array_equal((one.to_dense()[0] if isinstance(one, SpikeEvents) else one).numpy(), wanted[-1])


def test_binning_equals_a_histogram(recordings: SpikeRecordings) -> None:
    times, units = recordings.sample(4)
    inside = times < 1_000_000  # numpy's last bin is closed
    times, units = times[inside], units[inside]
    expected, _, _ = np.histogram2d(times, units, bins=(np.arange(0, 1_010_000, 10_000), np.arange(701)))
    frames, label, speaker = SHDDataset(recordings, output="frames")[4]
    assert isinstance(frames, torch.Tensor) and np.array_equal(frames.numpy(), expected)
    assert (label, speaker) == (7, 2) and type(label) is int


def test_bins_are_half_open_and_the_last_one_may_be_short() -> None:
    times = np.array([0, 2999, 3000, 9999, 10_000, 11_999])
    recordings = SpikeRecordings(times, np.zeros(6, int), np.array([0, 6]), np.array([0]), None)
    frames, _, speaker = SHDDataset(recordings, bin_ms=3.0, duration_ms=10.0, output="frames", pool=700)[0]
    assert isinstance(frames, torch.Tensor) and frames.flatten().tolist() == [2.0, 1.0, 0.0, 1.0]
    assert speaker == -1


def test_binary_events_hold_each_channel_once(recordings: SpikeRecordings) -> None:
    counts, once = (SHDDataset(recordings, bin_ms=50.0, binary=binary)[0][0] for binary in (False, True))
    assert isinstance(counts, SpikeEvents) and isinstance(once, SpikeEvents)
    assert once.num_events == int((counts.to_dense() > 0).sum()) < counts.num_events


@pytest.mark.parametrize("file", ["tiny_train", "tiny_test"])
@pytest.mark.parametrize("bin_ms", [1, 10])
def test_frames_are_the_bytes_of_the_authors_loader(digits_folder: Path, file: str, bin_ms: int) -> None:
    golden = json.loads((digits_folder / "golden_upstream.json").read_text())[f"SHD/{file}/bin{bin_ms}/bs4/seed0"]
    dataset = SHDDataset(digits_folder / f"{file}.h5", bin_ms=bin_ms, output="frames")
    for k, batch in enumerate(golden):
        frames, labels, _ = dataset.batch(range(4 * k, 4 * k + 4))
        assert isinstance(frames, torch.Tensor)
        assert labels.tolist() == batch["y"] and list(frames.shape) == batch["shape"]
        assert (int(frames.sum()), int(frames.max())) == (batch["total"], batch["max"])
        assert hashlib.sha256(frames.numpy().astype(np.uint8).tobytes()).hexdigest() == batch["sha256_uint8"]


def test_events_and_frames_equal_tonics(tmp_path: Path, recordings: SpikeRecordings) -> None:
    pytest.importorskip("tonic")
    from tonic.datasets import SHD
    from tonic.transforms import ToFrame

    (tmp_path / "SHD").mkdir()
    for name in ("shd_train.h5", "shd_test.h5"):
        write_shd(tmp_path / "SHD" / name, recordings)
        (tmp_path / "SHD" / f"{name}.zip").touch()
    theirs = SHD(save_to=str(tmp_path), train=True)
    to_frame = ToFrame(
        sensor_size=(700, 1, 1), time_window=10_000, start_time=0, end_time=1_000_000, include_incomplete=False
    )
    ours = SHDDataset(tmp_path / "SHD" / "shd_train.h5", output="frames")
    for i in (0, 1, 2, 4, 5):
        events, label = theirs[i]
        times, units = ours.recordings.sample(i)
        assert np.array_equal(np.sort(events["t"]), times) and np.array_equal(np.sort(events["x"]), np.sort(units))
        frames, ours_label, _ = ours[i]
        assert isinstance(frames, torch.Tensor) and ours_label == label
        inside = np.sort(events[events["t"] < 1_000_000], order="t")
        assert np.array_equal(frames.numpy(), to_frame(inside)[:, 0])


@pytest.mark.parametrize("output", ["events", "frames"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_loader_gives_the_batches_of_the_data_set(
    recordings: SpikeRecordings, output: Any, num_workers: int
) -> None:
    dataset = SHDDataset(recordings, output=output, indices=[5, 4, 0, 3, 1])
    loader = DataLoader(dataset, batch_size=2, collate_fn=SHDDataset.collate, num_workers=num_workers)
    for k, (inputs, labels, speakers) in enumerate(loader):
        expected, expected_labels, expected_speakers = SHDDataset.collate(
            [dataset[i] for i in range(2 * k, min(2 * k + 2, 5))]
        )
        for a, b in ((inputs, expected), (labels, expected_labels), (speakers, expected_speakers)):
            dense_a, dense_b = (x.to_dense() if isinstance(x, SpikeEvents) else x for x in (a, b))
            assert dense_a.dtype == dense_b.dtype and torch.equal(dense_a, dense_b)
    assert k == 2


def test_the_usual_collate_and_subsets_work_on_frames(recordings: SpikeRecordings) -> None:
    dataset = SHDDataset(recordings, output="frames")
    frames, labels, _ = next(iter(DataLoader(dataset, batch_size=3)))
    assert torch.equal(frames, dataset.batch([0, 1, 2])[0]) and labels.dtype == torch.int64
    frames, _, _ = next(iter(DataLoader(Subset(dataset, [4, 2]), batch_size=2, collate_fn=SHDDataset.collate)))
    assert torch.equal(frames, dataset.batch([4, 2])[0])


def test_items_fetched_together_are_also_items_one_by_one(recordings: SpikeRecordings) -> None:
    items = SHDDataset(recordings, output="frames").__getitems__([4, 1, 0])
    assert len(items) == 3 and items[1][1] == 0 and [label for _, label, _ in items[1:]] == [0, 3]
    assert [label for _, label, _ in items] == [7, 0, 3]


def test_a_data_set_and_its_recordings_survive_pickling(recordings: SpikeRecordings) -> None:
    dataset = pickle.loads(pickle.dumps(SHDDataset(recordings, bin_ms=2.5, pool=3, output="frames", indices=[1, 4])))
    assert equal(dataset.recordings, recordings) and dataset.indices.tolist() == [1, 4]
    assert torch.equal(dataset.batch([1])[0], SHDDataset(recordings, bin_ms=2.5, pool=3, output="frames").batch([4])[0])
    assert pickle.loads(pickle.dumps(SHDDataset.collate)) is SHDDataset.collate


def test_labels_and_speakers_follow_the_indices(recordings: SpikeRecordings) -> None:
    dataset = SHDDataset(recordings, indices=[5, 2])
    assert dataset.labels.tolist() == [12, 19] and dataset.speakers.tolist() == [4, 5]
    assert [item[1] for item in dataset] == [12, 19] and len(dataset) == 2
    with pytest.raises(IndexError, match="index must be in"):
        dataset[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bin_ms": 0.0}, "bin_ms must be positive and a whole number of microseconds, got 0.0 ms"),
        ({"bin_ms": 0.0123456}, "bin_ms must be positive and a whole number"),
        ({"bin_ms": float("nan")}, "got nan ms"),
        ({"duration_ms": -1.0}, "duration_ms must be positive"),
        ({"duration_ms": float("inf")}, "got inf ms"),
        ({"output": "dense"}, 'output must be "events" or "frames", got \'dense\''),
        ({"pool": 0}, r"pool must be in \[1, 700\], got 0"),
        ({"indices": [9]}, r"indices must be in \[-6, 6\), got 9"),
        ({"indices": [[0]]}, "indices must have one dimension"),
    ],
)
def test_bad_arguments_are_named(recordings: SpikeRecordings, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SHDDataset(recordings, **options)


def test_an_empty_batch_of_items_is_refused() -> None:
    with pytest.raises(ValueError, match="items must hold at least one item, got none"):
        SHDDataset.collate([])


def test_speakers_are_split_without_overlap(recordings: SpikeRecordings) -> None:
    train, held_out = split_speakers(recordings, [4, 5])
    assert train.tolist() == [0, 3, 4] and held_out.tolist() == [1, 2, 5]
    assert unseen_speakers(recordings.subset(train), recordings).tolist() == [4, 5]
    with pytest.raises(ValueError, match=r"held_out must name speakers of recordings, \[0, 2, 4, 5\], got \[9\]"):
        split_speakers(recordings, [4, 9])
    unknown = SpikeRecordings(np.array([], int), np.array([], int), np.array([0]), np.array([], int), None)
    with pytest.raises(ValueError, match="train must know its speakers, got speakers=None"):
        unseen_speakers(unknown, recordings)


def test_without_h5py_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    source = sys.modules[read_shd.__module__].__file__
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert source is not None
    with pytest.raises(ImportError, match=r'elm_neuro\.datasets needs h5py: pip install "elm-neuro\[data\]"'):
        runpy.run_path(source)
