from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elm_neuro import SpikeEvents


@st.composite
def dense(draw: st.DrawFn, *, min_batch: int = 0) -> torch.Tensor:
    shape = (draw(st.integers(min_batch, 3)), draw(st.integers(0, 9)), draw(st.integers(1, 7)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    counts = torch.poisson(torch.full(shape, draw(st.sampled_from([0.0, 0.3, 2.0]))), generator=generator)
    return counts * (torch.randint(0, 2, shape, generator=generator) * 2 - 1 if draw(st.booleans()) else 1)


@given(frames=dense(), dtype=st.sampled_from([torch.float32, torch.float64, torch.int64, torch.int8]))
def test_frames_survive_the_way_through_events(frames: torch.Tensor, dtype: torch.dtype) -> None:
    events = SpikeEvents.from_frames(frames.to(dtype))
    assert torch.equal(events.to_dense(torch.float32), frames)
    row, channel = frames.reshape(-1, frames.shape[2]).nonzero(as_tuple=True)
    assert torch.equal(events.rows(), row) and torch.equal(events.channel, channel)


def test_negative_zero_is_no_event_and_ones_need_no_values() -> None:
    events = SpikeEvents.from_frames(torch.tensor([[[-0.0, 1.0, 0.0, 1.0]]]))
    assert events.num_events == 2 and events.value is None
    assert SpikeEvents.from_frames(torch.tensor([[[True, False]]])).value is None


@given(
    data=st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 4), st.sampled_from([-1, 1])), max_size=40),
    window=st.sampled_from([1, 300, 999, 1000, 10_000]),
    signed=st.booleans(),
)
def test_arrays_fall_into_half_open_bins_from_zero(data: list[tuple[int, int, int]], window: int, signed: bool) -> None:
    t, x, p = (torch.tensor([row[i] for row in data], dtype=torch.int64) for i in range(3))
    num_steps = 7000 // window + 1
    expected = np.zeros((num_steps, 5))
    for time, channel, sign in data:
        if time // window < num_steps:
            expected[time // window, channel] += sign if signed else 1
    events = SpikeEvents.from_arrays(t, x, p if signed else None, delta_t=window, num_steps=num_steps, num_channels=5)
    np.testing.assert_array_equal(events.to_dense().numpy()[0], expected)


@given(parts=st.lists(st.integers(0, 500), min_size=1, max_size=4), width=st.integers(1, 5))
def test_collating_is_stacking_with_silence_at_the_end(parts: list[int], width: int) -> None:
    frames = []
    for seed in parts:
        generator = torch.Generator().manual_seed(seed)
        shape = (1 + seed % 2, seed % 8, width)
        frames.append(torch.poisson(torch.full(shape, 0.8), generator=generator))
    longest = max(f.shape[1] for f in frames)
    expected = torch.cat([torch.nn.functional.pad(f, (0, 0, 0, longest - f.shape[1])) for f in frames])
    assert torch.equal(SpikeEvents.collate([SpikeEvents.from_frames(f) for f in frames]).to_dense(), expected)


@given(frames=dense(), start=st.integers(0, 9), length=st.integers(0, 9))
def test_steps_are_slices_of_the_frames(frames: torch.Tensor, start: int, length: int) -> None:
    part = SpikeEvents.from_frames(frames).steps(start, start + length)
    assert torch.equal(part.to_dense(torch.float32), frames[:, start : start + length])
    part.validate()


@given(frames=dense(min_batch=1), seed=st.integers(0, 99))
def test_dropout_keeps_a_subset_and_scales_it(frames: torch.Tensor, seed: int) -> None:
    events = SpikeEvents.from_frames(frames)
    dropped = events.dropout(0.5, generator=torch.Generator().manual_seed(seed)).to_dense()
    assert torch.equal(dropped, torch.where(dropped != 0, 2 * frames, 0.0))
    plain = events.dropout(0.5, generator=torch.Generator().manual_seed(seed), scale=False).to_dense()
    assert torch.equal(2 * plain, dropped)


@given(frames=dense(min_batch=1), seed=st.integers(0, 99))
def test_what_stays_with_the_value_0_counts_as_what_is_left_out(frames: torch.Tensor, seed: int) -> None:
    events = SpikeEvents.from_frames(frames)
    keep = torch.rand(events.num_events, generator=torch.Generator().manual_seed(seed)) < 0.5
    silenced = events._silenced(keep, 2.0)
    assert torch.equal(silenced.to_dense(), events._selected(keep, 2.0).to_dense())
    silenced.validate()


def test_dropout_drops_with_its_probability_and_keeps_the_mean() -> None:
    events = SpikeEvents.from_frames(torch.ones(10, 100, 100))
    dropped = events.dropout(0.2, generator=torch.Generator().manual_seed(0))
    kept = dropped.num_events / events.num_events
    assert abs(kept - 0.8) < 4 * (0.16 / 100_000) ** 0.5
    assert abs(float(dropped.to_dense().mean()) - 1.0) < 0.01


def test_events_move_cast_and_pickle() -> None:
    events = SpikeEvents.from_frames(torch.tensor([[[0.0, 2.0]]]))
    assert events.to("cpu", torch.float64).value.dtype == torch.float64  # type: ignore[union-attr]
    assert torch.equal(pickle.loads(pickle.dumps(events)).to_dense(), events.to_dense())
    assert events.to("meta").device.type == "meta"
    with pytest.raises(TypeError, match=r"dtype must be floating point, got torch\.int64"):
        events.to(dtype=torch.int64)


@pytest.mark.parametrize("pinned", [True, False])
def test_pinned_events_go_to_a_gpu_without_waiting(monkeypatch: pytest.MonkeyPatch, pinned: bool) -> None:
    events, asked = SpikeEvents.from_frames(torch.tensor([[[0.0, 2.0]]])), []

    def to(tensor: Any, device: Any = None, dtype: Any = None, non_blocking: bool = False) -> Any:
        asked.append(non_blocking)
        return tensor

    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: pinned)
    monkeypatch.setattr(torch.Tensor, "to", to)
    events.to("cuda:0")
    events.to(torch.device("cuda"), non_blocking=False)
    events.to("cpu")
    assert asked == [pinned] * 3 + [False] * 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_events_pin_and_reach_the_gpu() -> None:
    events = SpikeEvents.from_frames(torch.tensor([[[0.0, 2.0]]])).pin_memory()
    assert events.indptr.is_pinned() and events.to("cuda", non_blocking=True).to_dense().is_cuda


def _make(**changes: Any) -> SpikeEvents:
    fields: dict[str, Any] = {
        "indptr": torch.tensor([0, 1, 2]),
        "channel": torch.tensor([0, 2]),
        "value": None,
        "shape": (1, 2, 3),
    }
    return SpikeEvents(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (1, 2)}, "shape must be"),
        ({"shape": (1, -2, 3)}, "shape must be"),
        ({"shape": (2, 2, 3)}, r"indptr must have batch \* num_steps \+ 1 = 5 entries, got 3"),
        ({"indptr": torch.tensor([0, 2, 1])}, "indptr must rise from 0 to the number of events, 2, without falling"),
        ({"indptr": torch.tensor([1, 1, 2])}, "indptr must rise from 0"),
        ({"indptr": torch.tensor([0, 1, 3])}, "indptr must rise from 0"),
        ({"indptr": torch.tensor([0.0, 1.0, 2.0])}, "indptr must have dtype torch.int64, got torch.float32"),
        ({"channel": torch.tensor([[0, 2]])}, "channel must have one dimension"),
        ({"channel": torch.tensor([0, 3])}, r"channel must be in \[0, 3\), got 3"),
        ({"channel": torch.tensor([-1, 2])}, r"channel must be in \[0, 3\), got -1"),
        ({"value": torch.ones(3)}, r"value must have one entry per event, \(2,\), got \(3,\)"),
        ({"value": torch.ones(2, dtype=torch.int64)}, "value must be floating point"),
        ({"value": torch.ones(2, requires_grad=True)}, "value must not require a gradient"),
        ({"value": torch.ones(2, device="meta")}, "must be on one device"),
    ],
)
def test_tensors_that_are_no_events_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        _make(**changes)


def test_frames_are_data_and_a_gradient_ends_there() -> None:
    frames = torch.tensor([[[0.0, 2.0]]], requires_grad=True)
    events = SpikeEvents.from_frames(frames)
    assert torch.equal(events.to_dense(), frames.detach()) and not events.to_dense().requires_grad


def test_detached_frames_are_data_to_every_transform() -> None:
    def product(x: torch.Tensor) -> torch.Tensor:
        return (SpikeEvents.from_frames(x.detach()).to_dense() * x).sum()

    frames = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])
    assert torch.equal(torch.func.grad(product)(frames), frames)
    assert torch.func.jvp(product, (frames,), (frames,))[1] == 5.0


def test_other_bad_input_is_named() -> None:
    one = torch.ones(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="frames must have shape"):
        SpikeEvents.from_frames(torch.ones(2, 3))
    with pytest.raises(ValueError, match="delta_t must be positive, got 0"):
        SpikeEvents.from_arrays(one, one, delta_t=0, num_steps=3, num_channels=3)
    with pytest.raises(ValueError, match="t must be finite and not negative, got -1"):
        SpikeEvents.from_arrays(-one, one, delta_t=1, num_steps=3, num_channels=3)
    with pytest.raises(ValueError, match=r"x must have shape \(1,\), got \(2,\)"):
        SpikeEvents.from_arrays(one, torch.ones(2, dtype=torch.int64), delta_t=1, num_steps=3, num_channels=3)
    with pytest.raises(ValueError, match="samples must hold at least one"):
        SpikeEvents.collate([])
    with pytest.raises(ValueError, match=r"samples must have the same number of channels, got \[1, 2\]"):
        SpikeEvents.collate([SpikeEvents.from_frames(torch.ones(1, 1, n)) for n in (1, 2)])
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got 1.0"):
        _make().dropout(1.0)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.int64, np.float32])
def test_numpy_columns_of_any_width_are_binned_exactly(dtype: Any) -> None:
    t, x = np.array([30000, 10000], dtype=dtype), np.array([0, 1], dtype=np.uint16)
    events = SpikeEvents.from_arrays(t, x, delta_t=70000, num_steps=20, num_channels=3)
    assert events.to_dense()[0, 0].tolist() == [1.0, 1.0, 0.0] and events.num_events == 2


@pytest.mark.parametrize(
    ("t", "x", "p", "message"),
    [
        (torch.tensor([torch.inf]), torch.tensor([0]), None, "t must be finite and not negative, got inf"),
        (torch.tensor([1e30]), torch.tensor([7]), None, r"x must be in \[0, 3\), got 7"),
        (torch.tensor([1]), torch.tensor([0.7]), None, "x must be integers, got torch.float32"),
        (torch.tensor(1), torch.tensor([0]), None, r"t must have shape \(num_events,\), got \(\)"),
        (torch.tensor([1]), torch.tensor([0]), torch.tensor([torch.nan]), "p must not be NaN, got 1 of 1"),
    ],
)
def test_columns_that_are_no_events_are_refused(
    t: torch.Tensor, x: torch.Tensor, p: torch.Tensor | None, message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        SpikeEvents.from_arrays(t, x, p, delta_t=1, num_steps=3, num_channels=3)


def test_events_far_past_the_end_are_left_out() -> None:
    events = SpikeEvents.from_arrays(
        torch.tensor([1e30, 0.5]), torch.tensor([0, 1]), delta_t=1.0, num_steps=3, num_channels=3
    )
    assert events.num_events == 1


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("delta_t", [0.1, 0.05, 0.3, 0.7, 1 / 3, 0.001, 2.5])
def test_times_on_a_simulators_grid_fall_one_into_each_step(dtype: type[np.floating[Any]], delta_t: float) -> None:
    """Multiples of a step lie just below an edge as often as just above it: half of the steps held 0 or 2 spikes."""
    k = np.arange(1000)
    grids = (k * delta_t, k * dtype(delta_t), np.linspace(0.0, 1000 * delta_t, 1000, endpoint=False))
    for times in grids:
        events = SpikeEvents.from_arrays(
            times.astype(dtype), np.zeros(1000, int), delta_t=delta_t, num_steps=1000, num_channels=1
        )
        assert events.indptr.tolist() == list(range(1001))


def test_only_what_rounding_explains_is_moved_to_the_edge() -> None:
    below = np.array([0.3, 0.3 * (1 - 1e-14), 0.2999])
    events = SpikeEvents.from_arrays(below, np.array([0, 1, 2]), delta_t=0.1, num_steps=4, num_channels=3)
    assert events.to_dense()[0].argmax(dim=0).tolist() == [3, 2, 2]
    below = np.array([0.29999], dtype=np.float32)
    events = SpikeEvents.from_arrays(below, np.array([0]), delta_t=0.1, num_steps=4, num_channels=1)
    assert events.to_dense()[0].argmax(dim=0).tolist() == [2]


def test_whole_times_are_divided_by_fractions_without_rounding() -> None:
    times = np.array([12_345_679], dtype=np.int64)
    events = SpikeEvents.from_arrays(times, np.array([0]), delta_t=0.6, num_steps=20_576_200, num_channels=1)
    assert int(events.rows()) == 12_345_679 * 10 // 6


@pytest.mark.parametrize("name", ["ELM", "BranchELM", "LIF", "ELMNetwork"])
def test_tensors_that_lie_apart_in_memory_are_read_as_they_are(name: str) -> None:
    """A column of a table of events, and one value for all of them."""
    from elm_neuro import ELM, LIF, BranchELM, ELMNetwork

    torch.manual_seed(0)
    layers = {
        "ELM": lambda: ELM(5, 2, 3),
        "BranchELM": lambda: BranchELM(
            5, 2, 3, num_branch=2, num_synapse_per_branch=3, branch_activation="tanh", routing="random"
        ),
        "LIF": lambda: LIF(5, 3),
        "ELMNetwork": lambda: ELMNetwork(5, 3),
    }
    layer = layers[name]()
    table = torch.tensor([[3, 0], [1, 0], [4, 0], [0, 0]])
    apart = SpikeEvents(torch.tensor([0, 2, 3, 4]), table[:, 0], torch.tensor([0.5]).expand(4), (1, 3, 5))
    for found, wanted in zip(layer(apart)[1], layer(apart.to_dense())[1], strict=True):
        torch.testing.assert_close(found, wanted)
