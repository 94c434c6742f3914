"""SHD-Adding and SHD as tonic data sets: tonic's own transforms, caches and collation work on them, and nothing stale
is served.

Long: one file a host, as the source.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import runpy
import shutil
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from elm_neuro import datasets
from elm_neuro.datasets import SpikeRecordings, SpokenDigits, sample_key, write_shd

tonic = pytest.importorskip("tonic")
face = pytest.importorskip("elm_neuro.adapters.tonic", exc_type=ImportError)
transforms = pytest.importorskip("tonic.transforms")


def digits(seed: int = 3, num_samples: int = 40, num_speakers: int = 10) -> SpikeRecordings:
    """Made-up digits on the grid of the files, two in five without a spike."""
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 30, num_samples) * (np.arange(num_samples) % 5 % 3 > 0)
    indptr = np.concatenate(([0], np.cumsum(count)))
    times = (rng.uniform(0, 1.2, indptr[-1]).astype(np.float16).astype(float) * 1e6).astype(int)
    labels, speakers = np.arange(num_samples) % 20, np.arange(num_samples) // 2 % num_speakers
    return SpikeRecordings(times, rng.integers(0, 700, indptr[-1]), indptr, labels, speakers)


@pytest.fixture
def save_to(tmp_path: Path) -> Path:
    """A folder in which tonic's SHD finds its files."""
    (tmp_path / "SHD").mkdir()
    for part, recordings in (("train", digits()), ("test", digits(seed=4, num_speakers=12))):
        write_shd(tmp_path / "SHD" / f"shd_{part}.h5", recordings)
        (tmp_path / "SHD" / f"shd_{part}.h5.zip").touch()
    return tmp_path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("the network is blocked")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_items_are_the_events_of_tonics_own_shd_one_after_the_other(save_to: Path) -> None:
    host = {split: tonic.datasets.SHD(str(save_to), train=split != "test") for split in ("train", "validation", "test")}
    for split, theirs in host.items():
        dataset = face.SHDAdding(save_to, split=split, num_samples=6)
        assert (dataset.sensor_size, dataset.dtype, dataset.ordering) == (
            theirs.sensor_size,
            theirs.dtype,
            theirs.ordering,
        )
        for i, (a, b) in enumerate(dataset.pairs):
            events, target = dataset[i]
            (first, label_a), (second, label_b) = theirs[a], theirs[b]
            first, second = (np.sort(part[part["t"] < 1_000_000], order="t", kind="stable") for part in (first, second))
            second["t"] += 1_000_000
            expected = np.concatenate((first, second))
            assert events.dtype == expected.dtype and np.array_equal(events["t"], expected["t"])
            assert np.array_equal(np.sort(events), np.sort(expected))
            assert target == label_a % 10 + label_b % 10 == dataset.targets[i] and type(target) is type(label_a)
            assert dataset.speakers[i].tolist() == [theirs.speaker[a], theirs.speaker[b]]
    assert len(dataset) == 6 and dataset.classes[target] == str(target) and len(dataset.classes) == 19


def test_single_digits_are_those_of_tonics_own_shd(save_to: Path) -> None:
    for train in (True, False):
        ours, theirs = face.SHD(save_to, train=train), tonic.datasets.SHD(str(save_to), train=train)
        assert len(ours) == len(theirs) == 40 and ours.speakers.tolist() == theirs.speaker.tolist()
        assert ours.classes == tuple(key.decode() for key in theirs.classes)
        for i in (0, 1, 7, 39):
            (events, label), (expected, expected_label) = ours[i], theirs[i]
            assert events.dtype == expected.dtype and np.array_equal(np.sort(events), np.sort(expected))
            assert label == expected_label == ours.targets[i] and (np.diff(events["t"]) >= 0).all()
    assert ours[-1][1] == ours[39][1]


def test_a_file_recordings_and_spoken_digits_are_sources(save_to: Path, tmp_path: Path) -> None:
    train, test = save_to / "SHD" / "shd_train.h5", save_to / "SHD" / "shd_test.h5"
    lists = [
        face.SHDAdding(save_to, split="test", num_samples=5, speakers="heldout"),
        face.SHDAdding(str(train), str(test), split="test", num_samples=5, speakers="heldout"),
        face.SHDAdding(digits(), digits(4, num_speakers=12), split="test", num_samples=5, speakers="heldout"),
    ]
    assert len({dataset.fingerprint for dataset in lists}) == 1 and set(lists[0].speakers.flatten()) == {10, 11}
    made = face.SHDAdding(SpokenDigits("train", 40, cache_dir=tmp_path), split="train", num_samples=2)
    assert made[0][0].size > 1000 and face.SHD(SpokenDigits("train", 40, cache_dir=tmp_path))[3][1] == 3


def test_the_lists_are_those_of_the_data_sets_without_a_host(save_to: Path) -> None:
    for pairing in ("fixed", "upstream"):
        dataset = face.SHDAdding(save_to, num_samples=8, seed=5, pairing=pairing)
        core = datasets.SHDAdding(save_to / "SHD" / "shd_train.h5", digits(), num_samples=8, seed=5, pairing=pairing)
        for epoch in (0, 2):
            dataset.set_epoch(epoch)
            core.set_epoch(epoch)
            assert np.array_equal(dataset.pairs, core.pairs) and dataset.fingerprint == core.fingerprint
    assert core.fingerprint[:12] in repr(dataset)


def test_rasters_of_every_step_hold_the_counts_of_the_events() -> None:
    for bin_us in (1000, 7000, 300_000, 5_000_000):
        rasters, events = (face.SHDAdding(digits(), num_samples=12, bin_us=size) for size in (bin_us, None))
        for i in range(12):
            raster, target = rasters[i]
            spikes, expected_target = events[i]
            edges = np.append(np.arange(0, 2_000_000, bin_us), -(-2_000_000 // bin_us) * bin_us) - 0.5
            expected, _, _ = np.histogram2d(spikes["t"], spikes["x"], bins=(edges, np.arange(701) - 0.5))
            assert raster.dtype == np.float32 and np.array_equal(raster, expected) and target == expected_target


def test_the_authors_rasters_are_those_of_the_data_set_without_a_host() -> None:
    for bin_us in (10_000, 30_000):
        dataset = face.SHDAdding(digits(), num_samples=8, pairing="upstream", bin_us=bin_us)
        core = datasets.SHDAdding(digits(), num_samples=8, pairing="upstream", bin_ms=bin_us / 1000, output="frames")
        assert all(np.array_equal(dataset[i][0], np.asarray(core[i][0])) for i in range(8))


def test_transforms_are_called_as_in_tonic() -> None:
    plain = face.SHDAdding(digits(), num_samples=3)
    changed = face.SHDAdding(
        digits(),
        num_samples=3,
        transform=lambda events: events["t"],
        target_transform=lambda target: target + 100,
        transforms=lambda times, target: (times + target, target),
    )
    for i in range(3):
        times, target = changed[i]
        assert target == plain[i][1] + 100 and np.array_equal(times, plain[i][0]["t"] + target)


def test_ours_and_tonics_transforms_compose() -> None:
    compose = transforms.Compose(
        [face.TimeJitter(2000.0), face.PoolChannels(7), transforms.ToFrame((100, 1, 1), n_time_bins=4)]
    )
    dataset = face.SHDAdding(digits(), num_samples=60, transform=compose)
    full = next(i for i in range(60) if dataset.core.sample(i)[0].size)
    assert dataset[full][0].shape == (4, 1, 100)
    compose = transforms.Compose(
        [transforms.DropEvent(p=0.1), face.PoolChannels(7), face.ToRaster(10_000, 2_000_000, 100, axes="tpc")]
    )
    assert face.SHDAdding(digits(), num_samples=4, transform=compose)[1][0].shape == (200, 1, 100)


def test_a_sample_without_a_spike_becomes_a_raster_in_a_compose_too() -> None:
    parts = [
        transforms.DropEvent(p=0.1),
        face.TimeJitter(9.0),
        face.ToRaster(100_000, 2_000_000),
        face.InputDropout(0.5),
    ]
    for compose in (transforms.Compose(parts), transforms.Compose([transforms.Compose(parts[:2]), *parts[2:]])):
        dataset = face.SHDAdding(digits(), num_samples=60, transform=compose)
        assert {dataset[i][0].shape for i in range(60)} == {(20, 700)}
        empty = [i for i in range(60) if not dataset.core.sample(i)[0].size]
        assert empty and not any(dataset[i][0].any() for i in empty)


def test_tonics_frames_do_not_change_what_is_in_memory() -> None:
    dataset = face.SHDAdding(digits(), num_samples=2, transform=transforms.ToFrame((700, 1, 1), time_window=10_000))
    dataset[0]  # ToFrame writes p = 0 into what it is given
    dataset.transform = None
    assert (dataset[0][0]["p"] == 1).all()


def test_augmentation_follows_epoch_and_index_and_not_the_worker() -> None:
    compose = transforms.Compose([face.TimeJitter(5000.0), face.EventDrop(0.2)])
    dataset = face.SHDAdding(
        digits(), num_samples=8, bin_us=None, transform=transforms.Compose([compose, face.ToRaster(100_000, 2_000_000)])
    )
    dataset.set_epoch(1)
    alone = torch.stack([torch.from_numpy(dataset[i][0]) for i in range(8)])
    for num_workers in (0, 2):
        loader = DataLoader(dataset, batch_size=3, num_workers=num_workers)
        assert torch.equal(torch.cat([frames for frames, _ in loader]), alone)
    single = face.SHD(digits(), transform=face.EventDrop(0.5))
    draws = []
    for epoch in (0, 1, 0):
        single.set_epoch(epoch)
        draws.append(single[1][0].tobytes())
    assert draws[0] == draws[2] != draws[1]


def test_input_dropout_acts_on_training_lists_only(save_to: Path) -> None:
    for split in ("train", "validation", "test"):
        dropped, plain = (
            face.SHDAdding(save_to, split=split, num_samples=6, bin_us=50_000, transform=t)
            for t in (face.InputDropout(0.5), None)
        )
        same = all(np.array_equal(dropped[i][0], plain[i][0]) for i in range(6))
        assert same == (split != "train")


@pytest.mark.parametrize("batch_first", [True, False])
def test_pad_tensors_collates_rasters(batch_first: bool) -> None:
    dataset = face.SHDAdding(digits(), num_samples=4, bin_us=100_000)
    loader = DataLoader(dataset, batch_size=4, collate_fn=tonic.collation.PadTensors(batch_first=batch_first))
    frames, targets = next(iter(loader))
    expected = torch.stack([torch.from_numpy(dataset[i][0]) for i in range(4)], 0 if batch_first else 1)
    assert torch.equal(frames, expected) and targets.tolist() == dataset.targets.tolist()


def test_memory_and_disk_caches_serve_the_items(tmp_path: Path) -> None:
    for bin_us in (None, 100_000):
        dataset = face.SHDAdding(digits(), num_samples=60, bin_us=bin_us)
        assert min(dataset.core.sample(i)[0].size for i in range(60)) == 0  # the list has a pair without a spike
        for cache in (
            tonic.MemoryCachedDataset(dataset),
            tonic.DiskCachedDataset(dataset, cache_path=dataset.cache_path(tmp_path)),
        ):
            for _ in range(2):
                for i in range(60):
                    data, target = cache[i]
                    assert (
                        data.dtype == dataset[i][0].dtype
                        and np.array_equal(data, dataset[i][0])
                        and target == dataset[i][1]
                    )


def test_no_two_settings_share_a_cache(save_to: Path, tmp_path: Path) -> None:
    def path(source: Any = save_to, epoch: int = 0, **options: Any) -> str:
        dataset = face.SHDAdding(source, num_samples=4, **options)
        dataset.set_epoch(epoch)
        return str(dataset.cache_path(tmp_path / "cache"))

    other = digits()
    labels = other.labels.copy()
    labels[:] = (labels + 1) % 20
    settings: list[dict[str, Any]] = [
        {},
        {"epoch": 1},
        {"seed": 1},
        {"split": "validation"},
        {"split": "test"},
        {"split": "test", "speakers": "heldout"},
        {"pairing": "upstream", "num_samples": 8},
        {"digit_us": 900_000},
        {"bin_us": 1000},
        {"bin_us": 2000},
        {"transform": face.TimeJitter(1.0)},
        {"transform": face.TimeJitter(2.0)},
        {"transform": transforms.Compose([face.TimeJitter(1.0), transforms.DropEvent(p=0.5)])},
        {"transform": transforms.Compose([face.TimeJitter(1.0), transforms.DropEvent(p=0.6)])},
        {"target_transform": face.PoolChannels(2)},
        {"source": SpikeRecordings(other.times, other.units, other.indptr, labels, other.speakers)},
    ]
    paths = [
        path(**{key: value for key, value in setting.items() if key != "num_samples"})
        if "num_samples" not in setting
        else ""
        for setting in settings
    ]
    assert len(set(paths)) == len(settings) and path() == paths[0] and Path(paths[0]).parent == tmp_path / "cache"
    labels = (other.labels + 10) % 20  # German for English
    german = SpikeRecordings(other.times, other.units, other.indptr, labels, other.speakers)
    assert face.SHD(other).cache_path("a") == face.SHD(digits()).cache_path("a") != face.SHD(german).cache_path("a")
    assert (
        face.SHD(save_to).cache_path("a")
        != face.SHD(save_to, train=False).cache_path("a")
        != face.SHD(save_to, train=False).cache_path("b")
    )


def test_a_transform_that_does_not_tell_its_settings_needs_a_name(tmp_path: Path) -> None:
    dataset = face.SHDAdding(digits(), num_samples=2, transform=lambda events: events["t"])
    with pytest.raises(
        ValueError,
        match="name must stand for functions and whatever else does not tell its settings, got name='' and <function",
    ):
        dataset.cache_path(tmp_path)
    assert (
        dataset.cache_path(tmp_path, "times")
        == dataset.cache_path(tmp_path, "times")
        != dataset.cache_path(tmp_path, "times 2")
    )


class Filter:
    """A transform whose repr hides what it computes with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __repr__(self) -> str:
        return "Filter()"

    def __call__(self, events: Any) -> Any:
        return events


@pytest.mark.parametrize("wrap", [lambda transform: transform, lambda transform: transforms.Compose([transform])])
def test_what_a_repr_hides_is_in_the_caches_folder(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    """Modules, long arrays (NumPy prints dots) and reprs without settings shared one folder of stale items."""
    torch.manual_seed(0)
    long = np.arange(5000.0)
    other = long.copy()
    other[2500] += 1e-9
    layers = [torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)]
    changed = [torch.nn.Conv1d(1, 1, 3, padding=1), torch.nn.Conv1d(1, 1, 3, padding=2)]
    changed[1].load_state_dict(changed[0].state_dict())
    settings: list[Any] = [
        Filter(1), Filter(1.0), Filter("1"), Filter((1,)), Filter([1]), Filter({"a": 1}), Filter({"a": 2}),
        Filter(None), Filter(long), Filter(other), Filter(long.astype(np.float32)), Filter(long.reshape(50, 100)),
        Filter(torch.arange(5000)), Filter(torch.arange(5000, dtype=torch.int32)), Filter(layers[0]), Filter(layers[1]),
        *layers, *changed, Filter(np.random.default_rng(0)), Filter(np.random.default_rng(1)), Filter({1, 2}),
        Filter({1}), Filter(np.log), Filter(np.exp), Filter(abs), Filter(int), Filter(torch.float32),
        Filter(torch.float64),
        Filter(Path("a")), Filter(Path("b")), Filter(Filter(1)), Filter(Filter(2)), Filter([[], 1]), Filter([[1]]),
    ]  # fmt: skip
    paths = [face.SHD(digits(), transform=wrap(one)).cache_path(tmp_path) for one in settings]
    assert len(set(paths)) == len(settings)
    again = [Filter(long.copy()), Filter({"a": 1}), Filter({2, 1}), Filter(np.random.default_rng(1))]
    assert all(face.SHD(digits(), transform=wrap(one)).cache_path(tmp_path) in paths for one in again)


def test_a_transform_that_holds_itself_has_a_folder(tmp_path: Path) -> None:
    own = Filter(1)
    own.kernel = [own]
    assert face.SHD(digits(), transform=own).cache_path(tmp_path) != face.SHD(digits()).cache_path(tmp_path)


@pytest.mark.parametrize("make", [face.SHD, lambda source: face.SHDAdding(source, num_samples=4)])
@pytest.mark.parametrize("subset", [False, True])
def test_a_memory_cache_of_another_epoch_is_told_about(make: Callable[[Any], Any], subset: bool) -> None:
    dataset = make(digits())
    dataset.set_epoch(1)
    dataset[0]
    dataset.set_epoch(2)  # nobody has kept anything
    cache = tonic.MemoryCachedDataset(torch.utils.data.Subset(dataset, [0, 1]) if subset else dataset)
    cache[0]
    dataset.set_epoch(2)
    with pytest.warns(UserWarning, match="a MemoryCachedDataset keeps items of epoch 2 and serves them in epoch 3"):
        dataset.set_epoch(3)
    dataset.set_epoch(4)  # told once


def test_a_memory_cache_in_a_worker_is_told_about() -> None:
    dataset = face.SHD(digits(), bin_us=100_000)
    for _ in DataLoader(tonic.MemoryCachedDataset(dataset), num_workers=1):
        pass
    with pytest.warns(UserWarning, match="keeps items of epoch 0"):
        dataset.set_epoch(1)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", ["SHD", "SHDAdding"])
def test_a_new_epoch_of_a_copy_reaches_its_workers_and_leaves_the_original(kind: str, way: str) -> None:
    options = {"num_samples": 8} if kind == "SHDAdding" else {}
    original = getattr(face, kind)(digits(), transform=face.EventDrop(0.5), **options)
    dataset = copy.deepcopy(original) if way == "deepcopy" else pickle.loads(pickle.dumps(original))
    loader = DataLoader(dataset, batch_size=40, num_workers=1, persistent_workers=True, collate_fn=list)
    drawn = []
    for epoch in (0, 1, 5):
        dataset.set_epoch(epoch)
        (items,) = loader
        expected = [dataset[i] for i in range(len(dataset))]
        for (events, target), (its_events, its_target) in zip(items, expected, strict=True):
            assert np.array_equal(events, its_events) and target == its_target
        drawn.append(b"".join(events.tobytes() for events, _ in items))
    assert len(set(drawn)) == 3
    assert b"".join(original[i][0].tobytes() for i in range(len(original))) == drawn[0]


def test_single_digits_that_are_cached_on_disk_refuse_another_epoch(tmp_path: Path) -> None:
    dataset = face.SHD(digits())
    dataset.cache_path(tmp_path)
    with pytest.raises(ValueError, match="epoch must stay 0, of which cache_path made a cache, got 1"):
        dataset.set_epoch(1)


def test_tonics_habits_work(save_to: Path) -> None:
    assert face.SHD.sensor_size == face.SHDAdding.sensor_size == tonic.datasets.SHD.sensor_size == (700, 1, 1)
    assert face.SHD.dtype == face.SHDAdding.dtype == tonic.datasets.SHD.dtype
    assert face.SHD.ordering == face.SHDAdding.ordering == tonic.datasets.SHD.ordering
    to_frame = transforms.ToFrame(sensor_size=face.SHD.sensor_size, n_time_bins=5)
    test = face.SHD(save_to, train=False)
    positional, keywords = face.SHD(str(save_to), False), face.SHD(save_to=str(save_to), train=False)
    for same in (positional, keywords, face.SHD(save_to=save_to, train=False)):
        assert same.fingerprint == test.fingerprint != face.SHD(save_to=save_to).fingerprint
    assert face.SHD(str(save_to), True, to_frame, lambda label: -label)[1][0].shape == (5, 1, 700)
    assert face.SHD(str(save_to), True, to_frame, lambda label: -label)[3][1] == -3
    pairs = {train: face.SHDAdding(save_to=str(save_to), train=train, num_samples=4) for train in (True, False)}
    for train, split in ((True, "train"), (False, "test")):
        assert pairs[train].fingerprint == face.SHDAdding(save_to, split=split, num_samples=4).fingerprint
    assert face.SHDAdding(save_to, split="validation", train=True, num_samples=4).core.split == "validation"
    with pytest.raises(ValueError, match="train must be False for the test list, got True"):
        face.SHDAdding(save_to, split="test", train=True)
    with pytest.raises(ValueError, match="train must be True for the validation list, got False"):
        face.SHDAdding(save_to, split="validation", train=False)
    for make in (face.SHD, face.SHDAdding):
        with pytest.raises(TypeError, match="source must be None where save_to is given"):
            make(digits(), save_to=save_to)
        with pytest.raises(TypeError, match="source must be given, or save_to in its place, got neither"):
            make()


def test_the_fingerprint_of_single_digits_is_of_every_number() -> None:
    own = digits()
    whole = face.SHD(own).fingerprint
    assert whole == face.SHD(digits(), bin_us=1000, train=False).fingerprint == own.fingerprint()
    for name in ("times", "units", "labels", "speakers"):
        arrays = {key: getattr(own, key).copy() for key in ("times", "units", "indptr", "labels", "speakers")}
        arrays[name][-1] ^= 1
        assert face.SHD(SpikeRecordings(**arrays)).fingerprint != whole
    assert SpikeRecordings(own.times, own.units, own.indptr, own.labels, None).fingerprint() != whole


def test_a_cached_list_refuses_another_epoch(tmp_path: Path) -> None:
    dataset = face.SHDAdding(digits(), num_samples=2)
    dataset.set_epoch(2)
    dataset.cache_path(tmp_path)
    dataset.set_epoch(2)
    with pytest.raises(ValueError, match="epoch must stay 2, of which cache_path made a cache, got 3"):
        dataset.set_epoch(3)


def test_a_half_written_cache_file_is_made_again(tmp_path: Path) -> None:
    dataset = face.SHDAdding(digits(), num_samples=2, bin_us=100_000)
    path = Path(dataset.cache_path(tmp_path))
    tonic.DiskCachedDataset(dataset, cache_path=str(path))[1]
    (file,) = path.iterdir()
    file.write_bytes(file.read_bytes()[:700])
    assert np.array_equal(tonic.DiskCachedDataset(dataset, cache_path=str(path))[1][0], dataset[1][0])


FRESH: list[tuple[Callable[[Any], Any], str]] = [
    (lambda folder: face.SHDAdding(folder), "train"),
    (lambda folder: face.SHDAdding(str(folder), split="test"), "test"),
    (lambda folder: face.SHD(folder, train=False), "test"),
]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("make", "part"), FRESH)
def test_a_fresh_folder_without_network_says_what_to_put_where(
    tmp_path: Path, make: Callable[[Any], Any], part: str
) -> None:
    target = tmp_path / "SHD" / f"shd_{part}.h5"
    message = rf"source must be a folder that has SHD/shd_{part}\.h5 .*network is blocked.*Download https://zenkelab\.org/datasets/shd_{part}\.h5\.zip"
    with pytest.raises(FileNotFoundError, match=message) as caught:
        make(tmp_path)
    assert str(caught.value).endswith(f"unpack it to {target}")
    target.parent.mkdir(exist_ok=True)
    write_shd(target, digits())
    assert len(make(tmp_path)) > 0


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(tonic.datasets.SHD, "base_url", f"http://127.0.0.1:{server.getsockname()[1]}/")
        monkeypatch.setattr(face, "DEADLINE", 0.3)
        with pytest.raises(FileNotFoundError, match="timed out"):
            face.SHD(tmp_path)
    assert socket.getdefaulttimeout() is None


@pytest.mark.usefixtures("no_network")
def test_only_the_file_that_a_list_needs_must_be_there(save_to: Path) -> None:
    (save_to / "SHD" / "shd_train.h5").unlink()
    (save_to / "SHD" / "shd_train.h5.zip").unlink()
    assert len(face.SHDAdding(save_to, split="test", num_samples=3)) == 3
    with pytest.raises(FileNotFoundError, match=r"shd_train\.h5"):
        face.SHDAdding(save_to, split="test", num_samples=3, speakers="seen")


@pytest.mark.parametrize(
    ("error", "kind"),
    [(PermissionError(13, "Permission denied"), PermissionError), (OSError(28, "No space left"), FileNotFoundError)],
)
def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, kind: type[OSError]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("tonic.dataset.download_and_extract_archive", refuse)
    with pytest.raises(kind, match=rf"got {tmp_path}: .*{error.strerror}"):
        face.SHD(tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def mute(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["extra/speaker"]


def relabel(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["labels"][0] = 20


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"shd_train\.h5 must be a whole HDF5 file"),
        (mute, r"source must know its speakers .*shd_train\.h5 has no /extra/speaker"),
        (relabel, r"labels must be in \[0, 20\), got 20"),
    ],
)
def test_damaged_files_are_refused(save_to: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(save_to / "SHD" / "shd_train.h5")
    with pytest.raises(ValueError, match=message):
        face.SHDAdding(save_to)


def test_bad_arguments_are_refused(save_to: Path) -> None:
    for options, message in (
        ({"bin_us": 0}, r"bin_us must be in \[1, 2147483648\), got 0"),
        ({"bin_us": 2**31}, "bin_us must be in .* got 2147483648"),
        ({"bin_us": 7, "digit_us": 2**31}, "digit_ms must be positive and a whole number of microseconds"),
        ({"digit_us": 0}, "digit_ms must be positive and a whole number of microseconds, got 0.0 ms"),
        ({"split": "valid"}, "split must be one of train, validation, test, got 'valid'"),
        ({"speakers": "new"}, "speakers must be one of all, seen, heldout, got 'new'"),
        ({"test_source": "a.h5"}, "test_source must be None where source is a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            face.SHDAdding(save_to, **options)
    with pytest.raises(IndexError, match=r"index must be in \[-2, 2\), got 2"):
        face.SHDAdding(save_to, num_samples=2)[2]
    with pytest.raises(IndexError, match=r"index must be in \[-40, 40\), got 40"):
        face.SHD(save_to)[40]
    with pytest.raises(ValueError, match="epoch must not be negative, got -1"):
        face.SHD(save_to).set_epoch(-1)
    with pytest.raises(FileNotFoundError, match=r"nothing\.h5, which does not exist"):
        face.SHD(save_to / "nothing.h5")


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.delitem(sys.modules, "elm_neuro.adapters.tonic")
    yield monkeypatch
    sys.modules["elm_neuro.adapters.tonic"] = face


def test_a_missing_tonic_is_told(unloaded: pytest.MonkeyPatch) -> None:
    unloaded.setitem(sys.modules, "tonic", None)
    with pytest.raises(ImportError, match=r'elm_neuro\.adapters\.tonic needs tonic: pip install "elm-neuro\[tonic\]"'):
        importlib.import_module("elm_neuro.adapters.tonic")


@pytest.mark.parametrize("version", ["1.6.0", "0.9", "unknown"])
def test_a_tonic_that_is_too_old_is_told_with_its_version(unloaded: pytest.MonkeyPatch, version: str) -> None:
    old = ModuleType("tonic")
    old.__version__ = version  # type: ignore[attr-defined]
    unloaded.setitem(sys.modules, "tonic", old)
    with pytest.raises(
        ImportError, match=rf"elm_neuro\.adapters\.tonic needs tonic 1\.7 or newer, got {version}: pip install -U"
    ):
        importlib.import_module("elm_neuro.adapters.tonic")


def test_tonic_still_reads_float16_seconds_rightly(save_to: Path) -> None:
    """The guard of the version: older tonics turn them into garbage under NumPy 2."""
    events, _ = tonic.datasets.SHD(str(save_to), train=True)[1]
    assert np.array_equal(np.sort(events["t"]), digits().sample(1)[0])


def test_the_shared_digits_load_through_tonics_folder(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "SHD").mkdir()
    for part in ("train", "test"):
        shutil.copy(shared / "data" / "spoken_digits" / f"tiny_{part}.h5", tmp_path / "SHD" / f"shd_{part}.h5")
    dataset = face.SHDAdding(tmp_path, split="test", speakers="heldout")
    assert dataset.fingerprint == "fc879b7c24d1cbbacd55a0e812a68662ad03b2bdfbd6feb15b9a18872df0d145"
    with sample_key(0, 0):
        assert face.ToRaster(10_000, 2_000_000)(dataset[0][0]).sum() == dataset[0][0].size


def test_the_benchmark_runs(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["raster_speed.py", "--smoke"])
    assert runpy.run_path(str(repository / "benchmarks" / "raster_speed.py"))["main"]() == 0
    assert "ToRaster" in capsys.readouterr().out
