"""Windows are slices, drawn by (seed, epoch, index) alone."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from elm_neuro.datasets import NeuronIODataset, convert_neuronio, split_files
from elm_neuro.events import SpikeEvents
from tests.datasets.neuronio.neuronio_files import made, read_slowly, write

WINDOW, SKIP = 60, 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 2, 3 and 1 simulations of 200, 260 and 110 ms, converted, in Kaggle's folders."""
    source = tmp_path_factory.mktemp("source")
    for name, i, num, length in (
        ("full_ergodic_train_batch_2", 0, 2, 200),
        ("full_ergodic_train_batch_10", 1, 3, 260),
        ("Data_test", 2, 1, 110),
    ):
        write(source / name / f"sim__{i}.p", made(num, length, seed=i))
    convert_neuronio([source], source / "out")
    return source


def files(folder: Path) -> list[Path]:
    return sorted((folder / "out").rglob("*.h5"), key=lambda path: path.stem)


def make(folder: Path, **options: Any) -> NeuronIODataset:
    return NeuronIODataset(files(folder), **{"num_windows": 40, "window_ms": WINDOW, "skip_ms": SKIP, **options})


def dense(x: SpikeEvents | torch.Tensor) -> np.ndarray[Any, Any]:
    return (x.to_dense() if isinstance(x, SpikeEvents) else x).numpy()


@pytest.mark.parametrize("output", ["events", "int8", "frames"])
def test_windows_are_slices_of_what_the_pickles_hold(folder: Path, output: Any) -> None:
    dataset = make(folder, output=output)
    slow = [read_slowly(next(folder.glob(f"*/{path.stem}.p"))) for path in files(folder)]
    for i, (file, simulation, start) in enumerate(dataset.places(np.arange(40)).tolist()):
        x, spikes, soma = dataset[i]
        expected, span = slow[file][simulation], slice(start, start + WINDOW)
        np.testing.assert_array_equal(dense(x).reshape(WINDOW, 1278), expected["frames"][span])
        np.testing.assert_array_equal(spikes, expected["spikes"][span].astype(np.float32))
        np.testing.assert_allclose(
            soma, (np.minimum(expected["soma"][span].astype(float), -55) + 67.7) / 10, rtol=0, atol=2e-6
        )
        assert (spikes.dtype, soma.dtype) == (torch.float32, torch.float32)
    assert not isinstance(x, torch.Tensor) or x.dtype == (torch.int8 if output == "int8" else torch.float32)


@pytest.mark.parametrize("output", ["events", "int8"])
def test_windows_of_both_formats_are_the_same_bits(folder: Path, tmp_path: Path, output: Any) -> None:
    convert_neuronio(
        [folder / name for name in ("full_ergodic_train_batch_2", "full_ergodic_train_batch_10", "Data_test")],
        tmp_path,
        format="npy",
    )
    one = make(folder, output=output)
    two = NeuronIODataset(
        sorted(tmp_path.rglob("*.arrays"), key=lambda path: path.stem),
        num_windows=40,
        window_ms=WINDOW,
        skip_ms=SKIP,
        output=output,
    )
    for (x, *rest), (other, *others) in zip(one, two, strict=True):
        np.testing.assert_array_equal(dense(x), dense(other))
        assert all(torch.equal(a, b) for a, b in zip(rest, others, strict=True))


def test_windows_of_a_real_file_are_slices(neuronio_folder: Path, tmp_path: Path) -> None:
    convert_neuronio([neuronio_folder], tmp_path)
    (path,) = neuronio_folder.glob("*part_00.p")
    slow = read_slowly(path)
    dataset = NeuronIODataset([next(tmp_path.rglob("*part_00.h5"))], num_windows=12)
    for i, (_, simulation, start) in enumerate(dataset.places(np.arange(12)).tolist()):
        np.testing.assert_array_equal(dense(dataset[i][0])[0], slow[simulation]["frames"][start : start + 500])


@pytest.mark.parametrize("output", ["events", "int8"])
def test_batches_are_their_windows_together(folder: Path, output: Any) -> None:
    dataset = make(folder, output=output)
    x, spikes, soma = dataset.batch([3, -1, 3])
    for row, index in enumerate([3, 39, 3]):
        one = dataset[index]
        np.testing.assert_array_equal(dense(x)[row], dense(one[0]).reshape(WINDOW, 1278))
        assert torch.equal(spikes[row], one[1]) and torch.equal(soma[row], one[2])
    again = NeuronIODataset.collate([dataset[3], dataset[39], dataset[3]])
    np.testing.assert_array_equal(dense(again[0]), dense(x))
    assert torch.equal(again[1], spikes)


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_two_epochs_are_the_same_bits_over_any_number_of_workers(folder: Path, num_workers: int) -> None:
    def two_epochs(num_workers: int) -> list[bytes]:
        dataset, found = make(folder, seed=3), []
        options: dict[str, Any] = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
        loader = DataLoader(dataset, batch_size=7, collate_fn=NeuronIODataset.collate, **options)
        for epoch in range(2):
            dataset.set_epoch(epoch)
            for x, spikes, soma in loader:
                found.append(b"".join(part.numpy().tobytes() for part in (x.indptr, x.channel, x.value, spikes, soma)))
        return found

    alone = two_epochs(0)
    assert two_epochs(num_workers) == alone
    assert len(set(alone)) == 12  # and no batch comes twice


def test_every_simulation_and_start_is_as_likely(folder: Path) -> None:
    dataset = make(folder, num_windows=60_000)
    file, simulation, start = dataset.places(np.arange(60_000)).T
    overall = np.array([0, 2, 5])[file] + simulation
    np.testing.assert_allclose(np.bincount(overall, minlength=6), 10_000, rtol=0.06)
    for i, (first, last) in enumerate([(50, 140), (50, 200), (50, 50)]):
        own = start[file == i]
        assert (own.min(), own.max()) == (first, last)
        np.testing.assert_allclose(
            np.bincount(own - first), own.size / (last - first + 1), rtol=0.45
        )  # five standard deviations of 130


def test_epochs_and_seeds_draw_other_windows(folder: Path) -> None:
    dataset, other = make(folder), make(folder, seed=1)
    first = dataset.places(np.arange(40))
    assert not np.array_equal(first, other.places(np.arange(40)))
    dataset.set_epoch(1)
    assert not np.array_equal(first, dataset.places(np.arange(40)))
    dataset.set_epoch(0)
    np.testing.assert_array_equal(first, dataset.places(np.arange(40)))
    np.testing.assert_array_equal(
        first[5:7], make(folder, num_windows=7).places([5, 6])
    )  # the length of an epoch changes nothing


def test_the_stream_is_splitmix64s(folder: Path) -> None:
    """Written out in Python's integers."""

    def splitmix64(state: int, n: int) -> int:
        z = (state + (n + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    dataset, simulations, num_starts = (
        make(folder, seed=11),
        [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)],
        [91, 151, 1],
    )
    dataset.set_epoch(5)
    state = splitmix64(splitmix64(11, 0), 5)
    for i, place in enumerate(dataset.places(np.arange(40)).tolist()):
        file, simulation = simulations[(splitmix64(state, 2 * i) >> 32) * 6 >> 32]
        assert place == [file, simulation, 50 + ((splitmix64(state, 2 * i + 1) >> 32) * num_starts[file] >> 32)]


def test_a_data_set_is_pickled_without_its_files(folder: Path) -> None:
    dataset = make(folder)
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < 10_000
    np.testing.assert_array_equal(dense(copy[4][0]), dense(dataset[4][0]))


def test_kaggles_folders_are_train_valid_and_test(folder: Path) -> None:
    found = split_files(folder / "out")
    assert {part: [path.stem for path in paths] for part, paths in found.items()} == {
        "train": ["sim__1", "sim__0"],
        "valid": [],
        "test": ["sim__2"],
    }
    assert [path.suffix for path in split_files(folder, ".p")["test"]] == [".p"]


def test_folders_of_npy_files_are_found_too(folder: Path, tmp_path: Path) -> None:
    convert_neuronio([folder / "full_ergodic_train_batch_2", folder / "Data_test"], tmp_path, format="npy")
    found = {part: [path.name for path in paths] for part, paths in split_files(tmp_path).items()}
    assert found == {
        "train": ["sim__0.arrays"],
        "valid": [],
        "test": ["sim__2.arrays"],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_ms": 61}, r"must last skip_ms \+ window_ms = 111 ms or longer, got 110 ms in .*sim__2\.h5"),
        ({"window_ms": 0}, r"window_ms must be in \[1"),
        ({"num_windows": 0}, r"num_windows must be in \[1"),
        ({"skip_ms": -1}, r"skip_ms must be in \[0"),
        ({"output": "dense"}, 'output must be "events", "int8" or "frames"'),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(folder, **options)


def test_bad_indices_and_epochs_are_refused(folder: Path) -> None:
    dataset = make(folder)
    with pytest.raises(IndexError):
        dataset[40]
    with pytest.raises(ValueError, match="indices"):
        dataset.batch([40])
    with pytest.raises(ValueError, match="epoch must be in"):
        dataset.set_epoch(-1)
    with pytest.raises(ValueError, match="at least one converted file"):
        NeuronIODataset([], num_windows=1)
    with pytest.raises(ValueError, match="at least one item"):
        NeuronIODataset.collate([])


def test_relative_paths_lead_to_the_files_from_other_folders_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    relative = [path.relative_to(folder) for path in files(folder)]
    dataset = NeuronIODataset(relative, num_windows=3, window_ms=60, skip_ms=20)
    expected = dataset[1]
    monkeypatch.chdir(tmp_path)
    found = pickle.loads(pickle.dumps(dataset))[1]  # as a worker that is spawned gets it
    np.testing.assert_array_equal(dense(found[0]), dense(expected[0]))
