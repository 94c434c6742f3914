from __future__ import annotations

import os
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from elm_neuro.datasets import SHDDataset, SpikeRecordings, SpokenDigits, read_shd, unseen_speakers, write_shd

ARRAYS = ("times", "units", "indptr", "labels", "speakers")


def equal(a: SpikeRecordings, b: SpikeRecordings) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)


@pytest.fixture(scope="module")
def some() -> SpikeRecordings:
    """The first 100 training samples of seed 0, made without a file."""
    digits = SpokenDigits("train", num_samples=100, cache_dir=os.devnull)
    with warnings.catch_warnings(action="ignore"):
        return digits.recordings()


def test_samples_depend_on_split_seed_and_index_alone() -> None:
    long, short = SpokenDigits("train", num_samples=400), SpokenDigits("train", num_samples=40)
    last, again = long.generate(39), short.generate(39)
    assert all(np.array_equal(a, b) for a, b in zip(last, again, strict=True))
    assert np.array_equal(long.labels[:40], short.labels) and np.array_equal(long.speakers[:40], short.speakers)
    for other in (SpokenDigits("train", seed=1), SpokenDigits("test")):
        assert not np.array_equal(other.generate(39)[0], last[0])


def test_classes_come_in_equal_numbers_and_speakers_nearly_so() -> None:
    digits = SpokenDigits("train")
    assert np.bincount(digits.labels).tolist() == [72] * 20
    assert sorted(set(digits.speakers.tolist())) == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]
    table = np.zeros((12, 20), int)
    np.add.at(table, (digits.speakers, digits.labels), 1)
    assert set(np.unique(table[[0, 1, 2, 3, 6, 7, 8, 9, 10, 11]]).tolist()) == {7, 8}


def test_two_in_three_test_samples_are_by_speakers_four_and_five() -> None:
    digits = SpokenDigits("test")
    assert np.bincount(digits.labels).tolist() == [72] * 20
    unseen = np.isin(digits.speakers, [4, 5])
    assert unseen.sum() == 960 and abs(int((digits.speakers == 4).sum()) - 480) <= 20
    assert all((digits.speakers == speaker).sum() >= 40 for speaker in range(12))
    assert np.array_equal(np.unique(digits.labels[digits.speakers == 4]), np.arange(20))


def test_samples_are_spikes_like_those_of_speech(some: SpikeRecordings) -> None:
    count = np.diff(some.indptr)
    last = np.array([some.sample(i)[0][-1] for i in range(len(some))])
    assert 4500 < count.mean() < 7500 and 3000 < np.percentile(count, 10) and np.percentile(count, 90) < 12_000
    assert 300_000 < np.percentile(last, 2) and last.max() < 1_300_000
    assert len(np.unique(some.units)) == 700


def test_no_channel_fires_twice_within_a_millisecond_step_or_the_next(some: SpikeRecordings) -> None:
    times, units = some.sample(3)
    gaps = np.diff(times[np.lexsort((times, units))])[np.diff(np.sort(units)) == 0]
    assert gaps.min() > 400  # a step free in between, less what float16 rounds


def test_times_are_on_the_grid_of_float16_seconds(tmp_path: Path, some: SpikeRecordings) -> None:
    write_shd(tmp_path / "a.h5", some)
    assert equal(read_shd(tmp_path / "a.h5"), some)


def test_a_digit_is_more_like_itself_than_like_others(some: SpikeRecordings) -> None:
    sample = np.repeat(some.labels, np.diff(some.indptr))
    frames, labels, _ = SHDDataset(some, bin_ms=100.0, output="frames", pool=50).batch(range(len(some)))
    flat = frames.flatten(1).numpy()  # type: ignore[union-attr]
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    alike = flat @ flat.T
    same = labels.numpy()[:, None] == labels.numpy()
    np.fill_diagonal(same, False)
    different = labels.numpy()[:, None] != labels.numpy()
    assert alike[same].mean() > alike[different].mean() + 0.03
    assert sample.size == some.num_events


def test_hissing_sounds_fill_the_high_channels() -> None:
    digits = SpokenDigits("train", num_samples=200)
    share = {label: np.mean([(digits.generate(i)[1] < 120).mean() for i in range(label, 200, 20)]) for label in (6, 1)}
    assert share[6] > 2 * share[1]  # six begins and ends in s; one has no fricative


def test_the_second_call_reads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = SpokenDigits("test", num_samples=20, seed=3, cache_dir=tmp_path / "new" / "folder")
    steps: list[tuple[int, int]] = []
    made = digits.recordings(progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 20) for done in range(1, 21)]
    monkeypatch.setattr(SpokenDigits, "generate", None)
    assert equal(digits.recordings(), made) and equal(read_shd(digits.path), made)
    assert [path.name for path in digits.path.parent.iterdir()] == [digits.path.name]
    assert "test" in digits.path.name and "20" in digits.path.name and "seed3" in digits.path.name


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def change_a_spike(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        row = file["spikes/units"][0]
        row[0] = (row[0] + 1) % 700
        file["spikes/units"][0] = row


def forget_the_checksum(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["checksum"]


def strange_checksum(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["checksum"] = np.arange(3)


def other_samples(path: Path) -> None:
    write_shd(path, read_shd(path).subset(range(10)))


@pytest.mark.parametrize("damage", [cut, empty, change_a_spike, forget_the_checksum, strange_checksum, other_samples])
def test_a_file_that_is_not_whole_is_made_again_with_a_warning(tmp_path: Path, damage: Any) -> None:
    digits = SpokenDigits("train", num_samples=20, cache_dir=tmp_path)
    made = digits.recordings()
    whole = digits.path.read_bytes()
    damage(digits.path)
    assert digits.path.read_bytes() != whole
    with pytest.warns(UserWarning, match=f"{digits.path.name} is not a whole cache of these samples and is made again"):
        assert equal(digits.recordings(), made)
    with warnings.catch_warnings(action="error"):
        assert equal(digits.recordings(), made)


def test_an_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = SpokenDigits("train", num_samples=5, cache_dir=tmp_path)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            digits.recordings()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / f".{digits.path.stem}.99-0123abcd.tmp.h5").write_bytes(b"half")  # as a killed process leaves behind
    assert len(digits.recordings()) == 5


def test_a_folder_that_cannot_be_written_costs_a_warning_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    digits = SpokenDigits("train", num_samples=3, cache_dir=tmp_path / "file")
    with pytest.warns(UserWarning, match="cache_dir cannot be written, so the samples are made again next time"):
        assert len(digits.recordings()) == 3


def test_the_default_folder_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert SpokenDigits("train").cache_dir == tmp_path / "elm_neuro" / "spoken_digits"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert SpokenDigits("train").cache_dir == tmp_path / ".cache" / "elm_neuro" / "spoken_digits"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, 'split must be "train" or "test", got \'valid\''),
        ({"split": "train", "num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"split": "train", "seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpokenDigits(**arguments)


def test_a_sample_that_is_not_there_is_refused() -> None:
    with pytest.raises(IndexError, match=r"i must be in \[0, 5\), got 5"):
        SpokenDigits("train", num_samples=5).generate(5)


def test_train_and_test_differ_by_two_speakers(tmp_path: Path) -> None:
    train, test = (SpokenDigits(split, num_samples=60, cache_dir=tmp_path).recordings() for split in ("train", "test"))  # type: ignore[arg-type]
    assert unseen_speakers(train, test).tolist() == [4, 5]


def test_the_calibration_script_runs(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(sys, "argv", ["calibrate_spoken_digits.py", "--smoke"])
    runpy.run_path(str(repository / "benchmarks" / "calibrate_spoken_digits.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert (
        "logistic regression on spike counts: " in printed
        and "GRU-128" in printed
        and "majority class: 5.0%" in printed
    )
