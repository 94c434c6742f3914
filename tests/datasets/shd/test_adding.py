"""SHD-Adding: the fixed protocol against plain Python integers, the authors' protocol against what their loader
gave.

Longer than most: both protocols are held to the same independent loop.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from elm_neuro.datasets import (
    FixedPairing,
    SHDAdding,
    SHDDataset,
    SpikeRecordings,
    SpokenDigits,
    UpstreamPairing,
    fingerprint,
    fixed_pairs,
    rank_speakers,
    splitmix64,
    upstream_pairs,
    upstream_split,
    write_shd,
)
from elm_neuro.events import SpikeEvents

MASK = 2**64 - 1

# fixed protocol v1, seed 0, sizes of the protocol
FINGERPRINTS = {
    ("train.h5", None, "train", "all"): "1464cba64e1cf0b289531e13482579f9c322874402ebbdcadae1e119ef81b987",
    ("train.h5", None, "validation", "all"): "d9f09f0afd0bec4752914ca7ae5c07e2db18da577cd3b8e7b27e76f6e22fdd97",
    ("train.h5", None, "test", "all"): "891c8328068706b346f6fc34a053ee676bfde6976425f19570fc5e812460aaa9",
    (
        "tiny_train.h5",
        "tiny_test.h5",
        "train",
        "all",
    ): "e1e7a3a05fb36cf2bcdbda4cb0fedcde93989b1ee40e77553b558f168b061cda",
    (
        "tiny_train.h5",
        "tiny_test.h5",
        "validation",
        "all",
    ): "0581f49adfb01dba636fa84ee48571990fe4d0e151175b26bb25823b40d0cdfd",
    (
        "tiny_train.h5",
        "tiny_test.h5",
        "test",
        "all",
    ): "6bfd3e7adbd7f839d9f56d90f85b80c5214bb06237c0d06f2eb9728a3448a9ab",
    (
        "tiny_train.h5",
        "tiny_test.h5",
        "test",
        "seen",
    ): "5c3d3af5803dc195d78d7082372455ab003c2bafed1692d040e521036cf55ece",
    (
        "tiny_train.h5",
        "tiny_test.h5",
        "test",
        "heldout",
    ): "fc879b7c24d1cbbacd55a0e812a68662ad03b2bdfbd6feb15b9a18872df0d145",
}


def output(state: int, n: int) -> int:
    """Output `n` of SplitMix64 in Python's integers."""
    z = (state + (n + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def digits(seed: int = 3, num_samples: int = 60, num_speakers: int = 10) -> SpikeRecordings:
    """Made-up digits of up to 1.3 s, a few empty ones among them; sample i is by speaker ``i % num_speakers``."""
    rng = np.random.default_rng(seed)
    count = rng.integers(0, 30, num_samples) * (rng.random(num_samples) < 0.9)
    indptr = np.concatenate(([0], np.cumsum(count)))
    labels, speakers = np.arange(num_samples) % 20, np.arange(num_samples) % num_speakers
    return SpikeRecordings(
        rng.integers(0, 1_300_000, indptr[-1]), rng.integers(0, 700, indptr[-1]), indptr, labels, speakers
    )


def dense(inputs: SpikeEvents | torch.Tensor) -> torch.Tensor:
    return inputs.to_dense() if isinstance(inputs, SpikeEvents) else inputs


def test_the_hash_is_splitmix64_as_published() -> None:
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(1234567, range(5)).tolist() == published
    assert int(splitmix64(0, 0)) == 0xE220A8397B1DCDAF  # the first output of Java's SplittableRandom(0)


@settings(max_examples=60, deadline=None)
@given(
    pool_size=st.one_of(st.integers(1, 10_000), st.integers(1, 2**32 - 1)),
    start=st.one_of(st.integers(0, 10_000), st.integers(0, 2**61)),
    seed=st.integers(0, 2**64 - 1),
    k=st.integers(0, 2),
)
def test_fixed_pairs_are_those_of_plain_integers(pool_size: int, start: int, seed: int, k: int) -> None:
    split: Any = ("train", "validation", "test")[k]
    key = output(seed, k + 1)
    expected = [[(output(key, 2 * i + j) >> 32) * pool_size >> 32 for j in (0, 1)] for i in range(start, start + 4)]
    assert fixed_pairs(pool_size, start, start + 4, seed=seed, split=split).tolist() == expected


def test_fixed_pairs_are_uniform_and_differ_between_splits_and_seeds() -> None:
    pairs = fixed_pairs(20, 0, 40_000, seed=5, split="train")
    cells = np.bincount(pairs @ [20, 1], minlength=400)
    assert ((cells - 100.0) ** 2 / 100.0).sum() < 500  # chi square of 399 degrees of freedom is above with p = 0.0004
    lists = [
        fixed_pairs(60, 0, 500, seed=seed, split=split) for seed in (0, 1) for split in ("train", "validation", "test")
    ]
    assert all((a == b).all(axis=1).mean() < 0.02 for i, a in enumerate(lists) for b in lists[:i])


def test_speakers_are_ranked_by_the_hash_of_their_number() -> None:
    speakers, key = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11], output(9, 0)
    assert rank_speakers(speakers * 3, seed=9).tolist() == sorted(speakers, key=lambda speaker: output(key, speaker))


def test_every_list_draws_from_its_own_speakers() -> None:
    train, test = digits(), digits(seed=4, num_speakers=12)
    ranked = rank_speakers(range(10), seed=0)
    used = {
        split: set(SHDAdding(train, test, split=split).speakers.flatten().tolist()) for split in ("train", "validation")
    }
    assert used == {"train": set(ranked[2:].tolist()), "validation": set(ranked[:2].tolist())}
    groups = {
        group: set(SHDAdding(train, test, split="test", speakers=group).speakers.flatten().tolist())
        for group in ("all", "seen", "heldout")
    }
    assert groups == {"all": set(range(12)), "seen": used["train"], "heldout": {10, 11}}
    one_file = [
        set(SHDAdding(train, split=split).speakers.flatten().tolist()) for split in ("train", "validation", "test")
    ]
    assert one_file == [set(ranked[4:].tolist()), set(ranked[:2].tolist()), set(ranked[2:4].tolist())]
    chosen = FixedPairing(valid_speakers=(7,), test_speakers=(1, 2, 3))
    assert set(SHDAdding(train, split="test", pairing=chosen, speakers="heldout").speakers.flatten().tolist()) == {
        1,
        2,
        3,
    }
    assert 7 not in SHDAdding(train, split="train", pairing=chosen, speakers="seen").speakers


def test_without_speakers_all_digits_of_a_test_set_pair() -> None:
    known = digits()
    unknown = SpikeRecordings(known.times, known.units, known.indptr, known.labels, None)
    for dataset in (
        SHDAdding(known, unknown, split="test"),
        SHDAdding(unknown, known, pairing=FixedPairing(valid_speakers=())),
    ):
        assert set(dataset.pairs.flatten().tolist()) == set(range(60)) and (dataset.speakers == -1).all()


@pytest.mark.parametrize("pairing", ["fixed", "upstream"])
@pytest.mark.parametrize("digit_ms", [None, 730.0])
@pytest.mark.parametrize("bin_ms", [10.0, 30.0])
def test_an_item_is_one_digit_after_the_other(pairing: Any, digit_ms: float | None, bin_ms: float) -> None:
    source = digits()
    dataset = SHDAdding(
        source, split="train", num_samples=16, pairing=pairing, bin_ms=bin_ms, digit_ms=digit_ms, output="frames"
    )
    window = digit_ms if digit_ms is not None else 1020.0 if pairing == "upstream" and bin_ms == 30.0 else 1000.0
    assert dataset.num_steps == int(np.ceil(2 * window / bin_ms))
    for i, (a, b) in enumerate(dataset.pairs.tolist()):
        frames = np.zeros((dataset.num_steps, 700))
        for shift, digit in ((0.0, a), (window, b)):
            for time, unit in zip(*source.sample(digit), strict=True):
                if time / 1000 < window:
                    frames[int((time / 1000 + shift) // bin_ms), unit] += 1
        assert np.array_equal(dense(dataset[i][0]).numpy(), frames)
        assert dataset[i][1] == source.labels[a] % 10 + source.labels[b] % 10
        assert source.speakers is not None and dataset[i][2] == (source.speakers[a], source.speakers[b])


@pytest.mark.parametrize("output", ["events", "frames"])
@pytest.mark.parametrize("binary", [False, True])
def test_batches_items_and_samples_agree(output: Any, binary: bool) -> None:
    dataset = SHDAdding(digits(), split="validation", num_samples=9, output=output, binary=binary, pool=100, bin_ms=100)
    inputs, targets, speakers = dataset.batch(range(9))
    assert inputs.shape == (9, 20, 7) and speakers.shape == (9, 2)
    assert targets.tolist() == dataset.labels.tolist() and torch.equal(speakers, dataset.speakers)
    collated = SHDAdding.collate([dataset[i] for i in range(9)])
    assert all(torch.equal(dense(a), dense(b)) for a, b in zip(collated, (inputs, targets, speakers), strict=True))
    for i, frames in enumerate(dense(inputs)):
        times, units = dataset.sample(i)
        expected, _, _ = np.histogram2d(times, units, bins=(np.arange(0, 2_000_001, 100_000), np.arange(0, 701, 100)))
        assert np.array_equal(frames.numpy(), np.minimum(expected, 1) if binary else expected)
    assert [item[1] for item in dataset] == targets.tolist() and dataset[-1][1] == dataset[8][1]


def test_collate_gives_time_first_frames_on_request() -> None:
    dataset = SHDAdding(digits(), num_samples=6, output="frames", pool=700)
    loader = DataLoader(dataset, batch_size=3, collate_fn=functools.partial(SHDAdding.collate, batch_first=False))
    frames, _, _ = next(iter(loader))
    assert torch.equal(frames, dense(dataset.batch(range(3))[0]).transpose(0, 1))
    with pytest.raises(ValueError, match="batch_first must be True for events"):
        SHDAdding.collate([SHDAdding(digits(), num_samples=1)[0]], batch_first=False)


def test_a_shorter_list_begins_a_longer_one_and_training_goes_on_from_epoch_to_epoch() -> None:
    for split in ("train", "validation", "test"):
        long, short = (SHDAdding(digits(), split=split, num_samples=n) for n in (90, 30))
        assert np.array_equal(long.pairs[:30], short.pairs)
        for epoch in (2, 1):
            short.set_epoch(epoch)
            assert np.array_equal(
                short.pairs, long.pairs[30 * epoch : 30 * epoch + 30] if split == "train" else long.pairs[:30]
            )
    assert [len(SHDAdding(digits(), split=split)) for split in ("train", "validation", "test")] == [8192, 2048, 4096]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # on a machine of two processors
@pytest.mark.parametrize("pairing", ["fixed", "upstream"])
def test_lists_are_the_same_over_workers_and_batch_sizes(pairing: Any) -> None:
    dataset = SHDAdding(digits(), num_samples=24, pairing=pairing, bin_ms=100, pool=70)
    dataset.set_epoch(3)
    inputs, targets, speakers = dataset.batch(range(24))
    for num_workers, batch_size in ((0, 1), (0, 24), (1, 5), (2, 8), (4, 3)):
        batches = list(
            DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=SHDAdding.collate)
        )
        assert torch.equal(torch.cat([dense(batch[0]) for batch in batches]), dense(inputs))
        assert torch.cat([batch[1] for batch in batches]).tolist() == targets.tolist()
        assert torch.equal(torch.cat([batch[2] for batch in batches]), speakers)


def test_a_new_epoch_reaches_workers_that_live_on() -> None:
    dataset = SHDAdding(digits(), num_samples=12)
    loader = DataLoader(dataset, batch_size=4, num_workers=1, persistent_workers=True, collate_fn=SHDAdding.collate)
    for epoch in (0, 1, 5):
        dataset.set_epoch(epoch)
        assert torch.equal(torch.cat([batch[2] for batch in loader]), dataset.speakers)


def test_a_spawned_worker_loads_the_same_and_so_does_a_pickled_copy(tmp_path: Path) -> None:
    write_shd(tmp_path / "a.h5", digits())
    dataset = SHDAdding(tmp_path / "a.h5", num_samples=8, bin_ms=100)
    dataset.set_epoch(1)
    copy = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(copy.pairs, dataset.pairs) and copy.fingerprint == dataset.fingerprint
    (batch,) = DataLoader(
        dataset, batch_size=8, num_workers=1, collate_fn=SHDAdding.collate, multiprocessing_context="spawn"
    )
    assert torch.equal(dense(batch[0]), dense(dataset.batch(range(8))[0]))


@pytest.mark.parametrize("case", FINGERPRINTS, ids=lambda case: "-".join(map(str, case)))
def test_fingerprints_on_the_shared_digits_never_change(
    digits_folder: Path, case: tuple[str, str | None, Any, Any]
) -> None:
    source, test_source, split, speakers = case
    test = None if test_source is None else digits_folder / test_source
    dataset = SHDAdding(digits_folder / source, test, split=split, speakers=speakers)
    assert dataset.fingerprint == FINGERPRINTS[case]


def test_a_fingerprint_is_the_hash_that_the_docstring_says(digits_folder: Path) -> None:
    dataset = SHDAdding(digits_folder / "tiny_train.h5", split="validation", num_samples=5)
    ranked = sorted({0, 1, 2, 3, 6, 7, 8, 9, 10, 11}, key=lambda speaker: output(output(0, 0), speaker))
    whole = hashlib.sha256(b"SHD-Adding list v1\n" + (1_000_000).to_bytes(8, "little") + (700).to_bytes(8, "little"))
    rows, content = b"", b""
    with h5py.File(digits_folder / "tiny_train.h5") as file:
        labels = file["labels"][:].tolist()
        pool = [i for i, speaker in enumerate(file["extra/speaker"][:].tolist()) if speaker in ranked[:2]]
        for i in range(5):
            pair = [pool[(output(output(0, 2), 2 * i + j) >> 32) * len(pool) >> 32] for j in (0, 1)]
            rows += b"".join(value.to_bytes(8, "little") for value in (*pair, sum(labels[a] % 10 for a in pair)))
            for a in pair:
                spikes = sorted(
                    zip(file["spikes/times"][a].astype(float), file["spikes/units"][a].tolist(), strict=True),
                    key=lambda spike: spike[0],
                )
                times = b"".join(int(time * 1e6).to_bytes(4, "little") for time, _ in spikes)
                content += hashlib.sha256(times + b"".join(unit.to_bytes(2, "little") for _, unit in spikes)).digest()
    whole.update(rows + content)
    assert dataset.fingerprint == whole.hexdigest()


def test_a_fingerprint_sees_pairs_labels_spikes_and_window() -> None:
    one, pairs = digits(), np.array([[0, 1], [2, 3]])
    first = int(one.indptr[2])  # of sample 2, which has spikes
    units = one.units.copy()
    units[first] = (units[first] + 1) % 700
    labels = one.labels.copy()
    labels[0] += 1
    others = [
        fingerprint(one, pairs[::-1], 1000),
        fingerprint(one, pairs, 1001),
        fingerprint(SpikeRecordings(one.times, units, one.indptr, one.labels, None), pairs, 1000),
        fingerprint(SpikeRecordings(one.times, one.units, one.indptr, labels, None), pairs, 1000),
    ]
    assert len({fingerprint(one, pairs, 1000), *others}) == 5
    assert fingerprint(SpikeRecordings(one.times, one.units, one.indptr, one.labels, None), pairs, 1000) == fingerprint(
        one, pairs, 1000
    )


def test_the_fingerprint_is_told_at_load(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="elm_neuro.datasets"):
        dataset = SHDAdding(digits(), num_samples=4)
    assert dataset.fingerprint in caplog.text and dataset.fingerprint[:12] in repr(dataset)


def test_spoken_digits_are_a_source(tmp_path: Path) -> None:
    train, test = SpokenDigits("train", 80, cache_dir=tmp_path), SpokenDigits("test", 24, cache_dir=tmp_path)
    dataset = SHDAdding(train, test, split="test", num_samples=10, speakers="heldout")
    assert set(dataset.speakers.flatten().tolist()) == {4, 5} and not train.path.exists()
    assert np.array_equal(dataset.recordings.labels, test.labels)


def test_the_authors_pairs_are_drawn_batch_after_batch() -> None:
    rng = np.random.default_rng(11)
    for epoch in range(3):
        pairs = upstream_pairs(47, 6, batch_size=5, seed=11, epoch=epoch).reshape(6, 5, 2)
        for batch in pairs:
            assert batch.T.flatten().tolist() == rng.integers(low=0, high=47, size=10).tolist()


def test_everything_the_authors_loaders_gave_is_matched(digits_folder: Path) -> None:
    golden = json.loads((digits_folder / "golden_upstream.json").read_text())
    for key, expected in golden.items():
        if key == "random_val_split tiny_train 0.2 seed0":
            with h5py.File(digits_folder / "tiny_train.h5") as file:
                labels = file["labels"][:]
            train, valid = upstream_split(60, valid_fraction=0.2, seed=0)
            assert (train.size, valid.size) == (expected["n_train"], expected["n_valid"])
            assert labels[valid].tolist() == expected["y_valid"]
        elif key == "SHDAdding index draws, n=60, bs4, seed0, 3 batches":
            pairs = upstream_pairs(60, 3, batch_size=4, seed=0).reshape(3, 4, 2)
            assert [batch.T.flatten().tolist() for batch in pairs] == expected
        else:
            kind, file, bins, batch_size, seed = key.split("/")
            assert (kind in ("SHD", "SHDAdding"), batch_size, seed) == (True, "bs4", "seed0")
            options: dict[str, Any] = {"bin_ms": float(bins.removeprefix("bin")), "output": "frames"}
            path = digits_folder / f"{file}.h5"
            authors = UpstreamPairing(batch_size=4, valid_fraction=0.0)
            dataset = (
                SHDDataset(path, **options)
                if kind == "SHD"
                else SHDAdding(
                    path, path, split="test" if "test" in file else "train", num_samples=12, pairing=authors, **options
                )
            )
            for k, batch in enumerate(expected):
                frames, targets, _ = dataset.batch(range(4 * k, 4 * k + 4))
                assert (
                    targets.tolist() == batch["y"]
                    and list(frames.shape) == batch["shape"]
                    and str(dense(frames).dtype) == batch["dtype"]
                )
                assert (int(dense(frames).sum()), int(dense(frames).max())) == (batch["total"], batch["max"])
                assert (
                    hashlib.sha256(dense(frames).numpy().astype(np.uint8).tobytes()).hexdigest()
                    == batch["sha256_uint8"]
                )


def test_the_authors_lists_have_the_sizes_of_their_notebook_and_split_by_chance() -> None:
    train, test = digits(), digits(seed=4)
    lists = {
        split: SHDAdding(train, test, split=split, pairing="upstream") for split in ("train", "validation", "test")
    }
    assert [len(dataset) for dataset in lists.values()] == [16_000, 4_000, 16_000]
    rest, valid = upstream_split(60)
    assert set(lists["train"].pairs.flatten().tolist()) == set(rest.tolist())
    assert set(lists["validation"].pairs.flatten().tolist()) == set(valid.tolist())
    assert set(lists["test"].pairs.flatten().tolist()) == set(range(60))


BAD: dict[str, tuple[Callable[[SpikeRecordings], Any], str]] = {
    "split": (lambda d: SHDAdding(d, split="valid"), "split must be one of train, validation, test, got 'valid'"),  # type: ignore[arg-type]
    "speakers": (lambda d: SHDAdding(d, speakers="new"), "speakers must be one of all, seen, heldout, got 'new'"),  # type: ignore[arg-type]
    "output": (lambda d: SHDAdding(d, output="dense"), "output must be one of events, frames, got 'dense'"),  # type: ignore[arg-type]
    "pairing": (lambda d: SHDAdding(d, pairing="v1"), 'pairing must be "fixed", "upstream", .* got \'v1\''),  # type: ignore[arg-type]
    "no samples": (lambda d: SHDAdding(d, num_samples=0), r"num_samples must be in \[1, 2\*\*31\), got 0"),
    "seed": (lambda d: SHDAdding(d, seed=-1), r"seed must be in \[0, 2\*\*64\), got -1"),
    "zero bin": (
        lambda d: SHDAdding(d, bin_ms=0.0),
        "bin_ms must be positive and a whole number of microseconds, got 0.0 ms",
    ),
    "huge bin": (lambda d: SHDAdding(d, bin_ms=1e9), "bin_ms must be positive and a whole number of microseconds"),
    "huge digit": (lambda d: SHDAdding(d, digit_ms=2_000_000), "digit_ms must be at most 1073741.824, got 2000000"),
    "pool": (lambda d: SHDAdding(d, pool=701), r"pool must be in \[1, 700\], got 701"),
    "heldout training": (
        lambda d: SHDAdding(d, speakers="heldout"),
        'speakers must not be "heldout" for the train list',
    ),
    "seen validation": (
        lambda d: SHDAdding(d, split="validation", speakers="seen"),
        'speakers must not be "seen" for the validation list',
    ),
    "seen in one file": (
        lambda d: SHDAdding(d, split="test", speakers="seen"),
        'speakers must not be "seen" for the test list',
    ),
    "nobody held out": (
        lambda d: SHDAdding(d, d, split="test", speakers="heldout"),
        "the test list must have digits to pair, got none by speakers='heldout'",
    ),
    "unknown speaker": (
        lambda d: SHDAdding(d, pairing=FixedPairing(valid_speakers=(77,))),
        r"valid_speakers must name speakers .* got \[77\]",
    ),
    "two roles": (
        lambda d: SHDAdding(d, pairing=FixedPairing((1,), (1, 2))),
        r"test_speakers must differ from valid_speakers, got \[1\] in both",
    ),
    "nobody left": (
        lambda d: SHDAdding(d, pairing=FixedPairing(tuple(range(10)), ())),
        "speakers must be left for training, got 10, of whom 10",
    ),
    "test speakers": (
        lambda d: SHDAdding(d, d, pairing=FixedPairing(test_speakers=(1,))),
        "test_speakers must be None where there is a test set",
    ),
    "negative speaker": (lambda d: FixedPairing((-1,)), r"valid_speakers must be in \[0, 2147483648\), got -1"),
    "upstream speakers": (
        lambda d: SHDAdding(d, d, split="test", pairing="upstream", speakers="seen"),
        'speakers must be "all" with the authors',
    ),
    "upstream test": (
        lambda d: SHDAdding(d, split="test", pairing="upstream"),
        "test_source must be given for the authors' test list, got None",
    ),
    "upstream size": (
        lambda d: SHDAdding(d, pairing="upstream", num_samples=12),
        "num_samples must be a multiple of .* batch_size, 8, got 12",
    ),
    "batch size": (lambda d: UpstreamPairing(batch_size=0), "batch_size must be at least 1, got 0"),
    "fraction": (lambda d: UpstreamPairing(valid_fraction=1.5), r"valid_fraction must be in \[0, 1\], got 1.5"),
    "split fraction": (lambda d: upstream_split(5, valid_fraction=-1), r"valid_fraction must be in \[0, 1\], got -1"),
    "split size": (lambda d: upstream_split(-5), "num_samples must not be negative, got -5"),
    "empty pool": (lambda d: fixed_pairs(0, 0, 1, seed=0, split="test"), r"pool_size must be in \[1, 2\*\*32\), got 0"),
    "backwards": (lambda d: fixed_pairs(1, 3, 1, seed=0, split="test"), "0 <= start <= stop < 2\\*\\*62, got 3 and 1"),
    "upstream pool": (lambda d: upstream_pairs(0, 1), "pool_size must be at least 1, got 0"),
    "upstream epoch": (lambda d: upstream_pairs(5, 1, epoch=-1), "epoch must be at least 0, got -1"),
    "epoch": (lambda d: SHDAdding(d, num_samples=1).set_epoch(-1), r"epoch must be in \[0, 2\*\*30\), got -1"),
    "index": (lambda d: SHDAdding(d, num_samples=4).batch([4]), r"indices must be in \[-4, 4\), got 4"),
    "no digits": (
        lambda d: SHDAdding(d, d.subset([]), split="test"),
        "the test list must have digits to pair, got none",
    ),
    "nothing to collate": (lambda d: SHDAdding.collate([]), "items must hold at least one item, got none"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused_with_name_rule_and_value(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(digits())


def test_items_out_of_range_are_refused() -> None:
    with pytest.raises(IndexError, match=r"index must be in \[-4, 4\), got 4"):
        SHDAdding(digits(), num_samples=4)[4]
    with pytest.raises(IndexError, match=r"index must be in \[-4, 4\), got -5"):
        SHDAdding(digits(), num_samples=4).sample(-5)


def test_a_file_without_speakers_is_named(tmp_path: Path) -> None:
    known = digits()
    write_shd(tmp_path / "mute.h5", SpikeRecordings(known.times, known.units, known.indptr, known.labels, None))
    with pytest.raises(
        ValueError,
        match=r"source must know its speakers to hold some out, got speakers=None; .*mute\.h5 has no /extra/speaker",
    ):
        SHDAdding(tmp_path / "mute.h5")
    assert len(SHDAdding(tmp_path / "mute.h5", pairing="upstream", num_samples=8)) == 8


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    write_shd(tmp_path / "a.h5", digits())
    whole = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.h5 must be a whole HDF5 file in the layout of SHD"):
        SHDAdding(tmp_path / "a.h5")
    with pytest.raises(FileNotFoundError, match=r"b\.h5, which does not exist"):
        SHDAdding(tmp_path / "b.h5")
    assert len(SHDAdding(tmp_path / "b.h5", digits(), split="test")) == 4096  # what a list does not need is not read
