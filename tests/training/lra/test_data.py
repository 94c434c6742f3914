"""The order of training items, and what each data module hands out."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elm_neuro import ELM
from elm_neuro.backends.parts import _shapes
from elm_neuro.datasets.lra import ListOpsSettings, TokenDataset, TokenSequences, make_listops, write_listops
from elm_neuro.training import (
    ImageDataModule,
    ListOpsDataModule,
    PathfinderDataModule,
    RetrievalDataModule,
    SequentialDigitsDataModule,
    TextDataModule,
    TokenClassifier,
)
from elm_neuro.training.lra._sampling import BucketOrder

SMALL = ListOpsSettings(max_depth=4, max_args=4, min_length=5, max_length=30)


def sampler(lengths: Any, rank: int = 0, **options: Any) -> BucketOrder:
    chosen = {"batch_size": 4, "num_replicas": 1, "seed": 0} | options
    return BucketOrder(range(len(lengths)), np.asarray(lengths), rank=rank, **chosen)


def test_every_item_is_drawn_once_and_batches_are_about_equally_long() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 1003)
    order = list(sampler(lengths))
    assert sorted(order) == list(range(1003))
    spread = [np.ptp(lengths[order[start : start + 4]]) for start in range(0, 1000, 4)]
    unsorted = np.ptp(lengths[np.arange(1000)].reshape(-1, 4), axis=1)
    assert np.mean(spread) < 0.1 * unsorted.mean()
    first = [lengths[order[start]] for start in range(0, 1000, 4)]
    assert abs(np.corrcoef(first, np.arange(250))[0, 1]) < 0.3  # not from short to long


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = np.arange(50) % 7
    orders = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        one, again = sampler(lengths, seed=seed), sampler(lengths, seed=seed)
        one.set_epoch(epoch)
        list(again)  # what was drawn before
        again.set_epoch(epoch)
        assert list(one) == list(again)
        orders[seed, epoch] = tuple(one)
    assert len(set(orders.values())) == 3


def test_processes_share_each_batch_and_have_as_many_of_them() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 45)
    whole = sampler(lengths, batch_size=12)
    shares = [list(sampler(lengths, batch_size=4, num_replicas=3, rank=rank)) for rank in range(3)]
    assert {len(share) for share in shares} == {15}
    for batch in range(3):
        together = sorted(item for share in shares for item in share[4 * batch : 4 * batch + 4])
        assert together == sorted(list(whole)[12 * batch : 12 * batch + 12])
    uneven = [list(sampler(lengths[:44], batch_size=4, num_replicas=3, rank=rank)) for rank in range(3)]
    assert {len(share) for share in uneven} == {15}
    assert set().union(*uneven) == set(range(44))


def test_a_resumed_epoch_goes_on_at_its_batch() -> None:
    one, resumed = sampler(np.arange(30)), sampler(np.arange(30))
    for epoch in (2, 3):
        one.set_epoch(epoch)
        resumed.set_epoch(epoch)
        resumed.resume = (2, 3)
        assert list(resumed) == list(one)[12 if epoch == 2 else 0 :]


def test_listops_from_a_made_file_and_from_the_published_files_are_the_same(tmp_path: Path) -> None:
    made = make_listops(100, SMALL)
    made.save(tmp_path / "made")
    for name, first, last in (("train", 0, 80), ("val", 80, 90), ("test", 90, 100)):
        write_listops(tmp_path / f"basic_{name}.tsv", made.sequences(first, last))
    options: dict[str, Any] = {"batch_size": 16, "cache_dir": tmp_path / "cache"}
    one, other = (ListOpsDataModule(source, **options) for source in (tmp_path / "made", tmp_path))
    for part in ("train", "valid", "test"):
        assert one.part(part).sequences.fingerprint == other.part(part).sequences.fingerprint
    assert (one.num_tokens, one.num_classes, len(one.part("train"))) == (25, 10, 80)
    assert one.group_names == ("[MAX", "[MED", "[MIN", "[SM")
    tokens, lengths, _, groups = next(iter(one.test_dataloader()))
    assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)
    first_tokens = [one.group_names[group] for group in groups]
    assert len({(name, token) for name, token in zip(first_tokens, tokens[:, 0].tolist(), strict=True)}) <= 4
    order = [label for batch in one.predict_dataloader() for label in batch.labels.tolist()]
    assert order == made.answers[90:].tolist()


def test_a_cache_is_used_the_second_time_and_not_for_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_listops(30, SMALL).save(tmp_path / "made")
    first = ListOpsDataModule(tmp_path / "made", cache_dir=tmp_path / "cache")
    first.setup()
    monkeypatch.setattr(ListOpsDataModule, "_made", None)  # a second reading would fail
    second = ListOpsDataModule(tmp_path / "made", cache_dir=tmp_path / "cache")
    assert second.part("train").sequences.fingerprint == first.part("train").sequences.fingerprint
    with pytest.raises(TypeError):
        ListOpsDataModule(tmp_path / "made", convention="google", cache_dir=tmp_path / "cache").setup()


def test_the_other_tasks_read_the_frozen_files(shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, cache = shared / "data" / "lra", tmp_path / "cache"
    text = TextDataModule(folder / "aclImdb", valid=0.2, undecodable="replace", batch_size=2, cache_dir=cache)
    assert [len(text.part(part)) for part in ("train", "valid", "test")] == [5, 1, 4]
    assert text.num_tokens == 169
    theirs = TextDataModule(folder / "aclImdb", convention="google", valid=0.0, batch_size=2, cache_dir=cache)
    assert len(theirs.part("valid")) == len(theirs.part("test")) == 4
    pairs = RetrievalDataModule(folder / "tsv_data", batch_size=2, cache_dir=cache)
    batch = next(iter(pairs.train_dataloader()))
    assert batch.tokens.shape[0] == batch.lengths.shape[0] == 4 and len(batch.labels) == 2
    with caplog.at_level(logging.INFO):
        images = PathfinderDataModule(folder / "pathfinder32", batch_size=2, cache_dir=cache)
        images.setup()
    assert "16 train, 2 valid, 2 test; 16 tokens, longest 1,024" in caplog.text
    large = PathfinderDataModule(folder / "pathfinder128", size=128, convention="google", batch_size=2, cache_dir=cache)
    assert large.part("test").indices.tolist() == [9]
    assert next(iter(large.test_dataloader())).tokens.shape == (1, 128 * 128)


def test_digits_need_no_download() -> None:
    pytest.importorskip("sklearn")
    data = SequentialDigitsDataModule(batch_size=100)
    assert [len(data.part(part)) for part in ("train", "valid", "test")] == [1257, 180, 360]
    assert sum(len(batch.labels) for batch in data.train_dataloader()) == 1257


def test_missing_data_say_where_they_come_from(tmp_path: Path) -> None:
    for data, address in (
        (ListOpsDataModule(tmp_path / "no"), "lra_release.gz"),
        (TextDataModule(tmp_path / "no"), "aclImdb_v1.tar.gz"),
        (RetrievalDataModule(tmp_path / "no"), "lra_release.gz"),
        (ImageDataModule(tmp_path / "no"), "cifar-10-python.tar.gz"),
        (PathfinderDataModule(tmp_path / "no"), "lra_release.gz"),
    ):
        with pytest.raises(FileNotFoundError, match=rf"which does not exist: download .*{address}"):
            data.setup()


def test_arguments_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        SequentialDigitsDataModule(batch_size=0)
    with pytest.raises(ValueError, match="num_held_out must be at least 1, got 0"):
        ListOpsDataModule(tmp_path, num_held_out=0)
    with pytest.raises(ValueError, match=r"valid must be in \[0, 1\), got 1.0"):
        TextDataModule(tmp_path, valid=1.0)
    with pytest.raises(ValueError, match="convention must be one of google, s4, mega, got 'fairseq'"):
        ImageDataModule(tmp_path, convention="fairseq")  # type: ignore[arg-type]
    make_listops(5, SMALL).save(tmp_path / "few")
    with pytest.raises(ValueError, match="must have at least 10 sequences to hold some back, got 5"):
        ListOpsDataModule(tmp_path / "few", cache_dir=tmp_path).setup()
    shutil.rmtree(tmp_path)
    nothing = TokenSequences.of([], labels=[], num_tokens=3, num_classes=2)
    assert len(TokenDataset(nothing)) == 0


def test_lengths_that_went_to_a_device_are_not_looked_at_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_listops(30, SMALL).save(tmp_path / "made")
    data = ListOpsDataModule(tmp_path / "made", batch_size=4, cache_dir=tmp_path / "cache")
    batch = next(iter(data.predict_dataloader()))
    looked: list[torch.Tensor] = []
    look = _shapes._look
    monkeypatch.setattr(_shapes, "_look", lambda lengths: looked.append(lengths) or look(lengths))
    monkeypatch.setattr(_shapes, "HOST", "none")  # the host's tensors stand for a device's
    there = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    looked.clear()
    TokenClassifier(ELM(data.num_tokens, 10, 5))(there.tokens, there.lengths)
    assert not looked
