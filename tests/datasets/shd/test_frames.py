"""Frames that are made once, against a loop over spikes."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from elm_neuro.datasets import SHDAdding, SHDDataset, SpikeRecordings
from elm_neuro.datasets.shd import _frames
from elm_neuro.datasets.shd._frames import FrameTable, Steps

STEPS = {
    "whole": Steps(50_000, 1_000_000, pool=70),
    "cut": Steps(30_000, 730_000, pool=9),
    "binary": Steps(100_000, 1_000_000, pool=350, binary=True),
    "scaled": Steps(50_000, 1_000_000, pool=70, scale=0.1),
    "both": Steps(50_000, 1_000_000, pool=70, binary=True, scale=3.0),
}


def looped(recordings: SpikeRecordings, i: int, steps: Steps) -> NDArray[np.float32]:
    frames = np.zeros((-(-steps.duration_us // steps.bin_us), -(-700 // steps.pool)), np.float32)
    for time, unit in zip(*(array.tolist() for array in recordings.sample(i)), strict=True):
        if time < steps.duration_us:
            frames[time // steps.bin_us, unit // steps.pool] += 1
    return (np.minimum(frames, 1) if steps.binary else frames) * np.float32(steps.scale)


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("largest", [_frames.LARGEST, 0])
def test_frames_are_those_of_a_loop_however_often_and_in_whatever_company_they_are_asked_for(
    recordings: SpikeRecordings, steps: Steps, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_frames, "LARGEST", largest)
    table = FrameTable(recordings, steps)
    for chosen in ([2], [4, 2, 2, 3], [], [5, 0, 1, 4], [2]):
        frames = table.batch(np.array(chosen, dtype=np.int64))
        wanted = np.array([looped(recordings, i, steps) for i in chosen])
        assert frames.dtype == torch.float32 and np.array_equal(frames.numpy(), wanted.reshape(frames.shape))
        frames.fill_(7.0)  # whoever changes a batch changes no other
        events = steps.events(recordings, np.array(chosen, dtype=np.int64))
        np.testing.assert_allclose(events.to_dense().numpy(), wanted.reshape(frames.shape), rtol=1e-6)
    copy = pickle.loads(pickle.dumps(table))
    assert np.array_equal(copy.batch(np.arange(6)).numpy(), [looped(recordings, i, steps) for i in range(6)])


def test_no_more_is_remembered_than_was_asked_for_and_nothing_of_large_recordings(
    recordings: SpikeRecordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[int]] = []
    whole = Steps.frames

    def counted(self: Steps, recordings: SpikeRecordings, chosen: NDArray[np.int64]) -> torch.Tensor:
        made.append(chosen.tolist())
        return whole(self, recordings, chosen)

    monkeypatch.setattr(Steps, "frames", counted)
    table = FrameTable(recordings, STEPS["whole"])
    for chosen in ([2, 4], [4, 2, 4], [1, 2, 1]):
        table.batch(np.array(chosen))
    assert made == [[2, 4], [1]]
    monkeypatch.setattr(_frames, "LARGEST", 6 * 20 * 10 * 4 - 1)  # a byte less than all frames take
    large = FrameTable(recordings, STEPS["whole"])
    for _ in range(2):
        large.batch(np.array([2, 4]))
    assert made == [[2, 4], [1], [2, 4], [2, 4]]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [SHDDataset, SHDAdding])
def test_a_spike_that_counts_nothing_is_refused(recordings: SpikeRecordings, kind: Any, scale: float) -> None:
    with pytest.raises(ValueError, match=f"scale must be a finite number above 0, got {scale}"):
        kind(recordings, scale=scale)


@pytest.mark.parametrize("output", ["events", "frames"])
@pytest.mark.parametrize("bin_ms", [50.0, 30.0])  # the second digit begins with a step, or within one
def test_a_pairs_frames_in_a_second_epoch_are_its_spikes(
    recordings: SpikeRecordings, bin_ms: float, output: Any
) -> None:
    pairs = SHDAdding(
        recordings, recordings, split="train", num_samples=5, bin_ms=bin_ms, output=output, pool=100, scale=0.5
    )
    for epoch in (0, 1, 0):
        pairs.set_epoch(epoch)
        inputs, _, _ = pairs.batch(range(5))
        frames = inputs if isinstance(inputs, torch.Tensor) else inputs.to_dense()
        wanted = np.zeros((5, int(np.ceil(2000 / bin_ms)), 7))
        for i in range(5):
            times, units = pairs.sample(i)
            np.add.at(wanted[i], ((times / 1000 // bin_ms).astype(int), units // 100), 0.5)
        assert np.array_equal(frames.numpy(), wanted)
