"""Sequences, batches and the cache they are kept in."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elm_neuro.datasets import SpokenDigits
from elm_neuro.datasets.lra import TokenDataset, TokenSequences, _cache, cached, content_key, token_events


def made(num_tokens: int = 7) -> TokenSequences:
    sequences = [[3, 1], [2, 2, 0], [], [num_tokens - 1]]
    return TokenSequences.of(sequences, labels=[0, 1, 1, 0], num_tokens=num_tokens, num_classes=2)


def test_a_cache_is_mapped_into_memory_and_made_once(tmp_path: Path) -> None:
    key = content_key([], {"a": 1})
    calls = []

    def make() -> dict[str, TokenSequences]:
        calls.append(1)
        return {"train": made(), "none": TokenSequences.of([], labels=[], num_tokens=7, num_classes=2)}

    first, second = cached("t", key, make, tmp_path), cached("t", key, make, tmp_path)
    assert len(calls) == 1
    assert isinstance(second["train"].tokens, np.memmap)
    assert first["train"].fingerprint == second["train"].fingerprint == made().fingerprint
    assert len(second["none"]) == 0


def test_an_old_or_damaged_cache_is_made_again_with_a_warning(tmp_path: Path) -> None:
    key = content_key([], {})
    cached("t", key, lambda: {"train": made()}, tmp_path)
    (place,) = tmp_path.iterdir()
    manifest, tokens = place / "manifest.json", place / "train.tokens.npy"
    whole = manifest.read_bytes(), tokens.read_bytes()
    for file, content in (
        (manifest, json.dumps(json.loads(whole[0]) | {"version": 0}).encode()),
        (manifest, b"{}"),
        (manifest, b"nonsense"),
        (tokens, whole[1][:-2]),
        (tokens, whole[1][:-1] + b"\x00"),
        (tokens, b""),
    ):
        file.write_bytes(content)
        with pytest.warns(UserWarning, match="is no whole cache of these sequences and is made again"):
            again = cached("t", key, lambda: {"train": made()}, tmp_path)
        assert again["train"].fingerprint == made().fingerprint
        assert (manifest.read_bytes(), tokens.read_bytes()) == whole


def test_two_that_make_a_cache_at_once_both_have_their_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, write, written = content_key([], {}), _cache.write_whole_folder, []

    def count(path: Path, files: Any) -> None:
        written.append(1)
        write(path, files)

    monkeypatch.setattr(_cache, "write_whole_folder", count)

    def make_slowly() -> dict[str, TokenSequences]:
        cached("t", key, lambda: {"train": made()}, tmp_path)  # another process is faster
        return {"train": made()}

    assert isinstance(cached("t", key, make_slowly, tmp_path)["train"].tokens, np.memmap)
    assert written == [1]  # what is whole is not replaced

    def write_and_lose(path: Path, files: Any) -> None:
        write(path, files)
        path.rename(tmp_path / ".away")  # another process is between its two renames

    monkeypatch.setattr(_cache, "write_whole_folder", write_and_lose)
    parts = cached("t", content_key([], {"a": 1}), lambda: {"train": made()}, tmp_path)
    assert parts["train"].fingerprint == made().fingerprint


def test_a_cache_that_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".t-0123.99999999-0123abcd.tmp"
    left.mkdir()
    os.utime(left, (0, 0))
    cached("t", content_key([], {}), lambda: {"train": made()}, tmp_path)
    assert not left.exists()


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names are Unicode there")
def test_a_key_knows_files_of_any_name_and_none_that_are_being_written(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"one")
    key = content_key([tmp_path], {})
    (tmp_path / ".f.77-0123abcd.tmp").write_bytes(b"half of")
    assert content_key([tmp_path], {}) == key
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff")).write_bytes(b"stray")
    assert content_key([tmp_path], {}) != key


def test_keys_tell_contents_and_settings_apart(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"one")
    keys = {content_key([file], {}), content_key([file], {"a": 1})}
    file.write_bytes(b"two")
    keys |= {content_key([file], {}), content_key([tmp_path], {})}
    assert len(keys) == 4


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be written"):
        parts = cached("t", content_key([], {}), lambda: {"train": made()}, tmp_path / "file" / "inside")
    assert len(parts["train"]) == 4


def test_without_a_home_or_with_a_name_too_long_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "/" + "a" * 300)
    with pytest.warns(UserWarning, match="cannot be written"):
        assert len(cached("t", content_key([], {}), lambda: {"train": made()})["train"]) == 4
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.warns(UserWarning, match="a cache needs a home folder, or the variable XDG_CACHE_HOME"):
        assert len(cached("t", content_key([], {}), lambda: {"train": made()})["train"]) == 4
    digits = SpokenDigits("train", 20)
    assert digits.generate(0)[0].size
    with pytest.warns(UserWarning, match="no home folder nor cache_dir"):
        assert len(digits.recordings()) == 20


@pytest.mark.parametrize("num_tokens", [7, 300])
def test_batches_are_padded_with_zeros_and_reach_neurons_as_spikes(num_tokens: int) -> None:
    dataset = TokenDataset(made(num_tokens), [3, 1, 0])
    batch = dataset.batch([0, 1, 2])
    assert batch.tokens.dtype == (torch.uint8 if num_tokens == 7 else torch.uint16)
    assert batch.tokens.long().tolist() == [[num_tokens - 1, 0, 0], [2, 2, 0], [3, 1, 0]]
    assert (batch.lengths.tolist(), batch.labels.tolist()) == ([1, 3, 2], [0, 1, 0])
    together = TokenDataset.collate(dataset.__getitems__([0, 1, 2]))
    one_by_one = TokenDataset.collate([dataset[0], dataset[1], dataset[2]])
    for whole in (together, one_by_one):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole, batch, strict=True))
    frames = token_events(batch.tokens, num_tokens).to_dense()
    torch.testing.assert_close(frames, torch.nn.functional.one_hot(batch.tokens.long(), num_tokens).float())
    assert TokenDataset(made())[2].lengths.item() == 1  # an empty sequence is one padding
    with pytest.raises(ValueError, match="at least one item, got none"):
        dataset.batch([])


def test_pairs_stay_together() -> None:
    pairs = TokenSequences.of([[1], [2, 2], [3], []], labels=[0, 1], num_tokens=4, num_classes=2, per_item=2)
    batch = TokenDataset(pairs).batch([1, 0])
    assert batch.tokens.tolist() == [[3, 0], [0, 0], [1, 0], [2, 2]]
    assert batch.labels.tolist() == [1, 0]
    assert pairs.subset([1]).lengths.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.array([1.0])}, "tokens must be one array of uint8 or uint16"),
        ({"tokens": np.array([9], np.uint8)}, r"tokens must be in \[0, 4\), got 9"),
        ({"indptr": np.array([0, 2])}, r"indptr must be in \[0, 2\)"),
        ({"indptr": np.array([0])}, "indptr must have num_items \\* per_item \\+ 1 = 2 entries, got 1"),
        ({"labels": np.array([2])}, r"labels must be in \[0, 2\), got 2"),
        ({"groups": np.array([0])}, "groups must be in"),
        ({"per_item": 3}, "per_item must be 1 or 2, got 3"),
    ],
)
def test_arrays_that_are_no_sequences_are_refused(change: dict[str, object], message: str) -> None:
    options = {"tokens": np.array([1], np.uint8), "indptr": np.array([0, 1]), "labels": np.array([0])}
    with pytest.raises(ValueError, match=message):
        TokenSequences(**{**options, "num_tokens": 4, "num_classes": 2, **change})  # type: ignore[arg-type]
