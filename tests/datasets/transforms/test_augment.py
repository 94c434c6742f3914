"""Transforms of events: against NumPy's histogram, tonic's ToFrame where that is right, and the distributions they
promise.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from elm_neuro.datasets import (
    ChannelDrop,
    ChannelJitter,
    EventDrop,
    InputDropout,
    PoolChannels,
    TimeJitter,
    TimeWarp,
    ToRaster,
    sample_key,
)
from elm_neuro.events import SpikeEvents

TONIC = np.dtype([("t", int), ("x", int), ("p", int)])
RANDOM: list[Any] = [
    TimeJitter(3000.0),
    ChannelJitter(5.0),
    ChannelDrop(0.3),
    EventDrop(0.3),
    TimeWarp(0.2, num_segments=4),
]
ALL: list[Any] = [*RANDOM, PoolChannels(7)]


@pytest.fixture(autouse=True)
def _same_draws_in_every_run() -> None:
    torch.manual_seed(0)


def structured(times: Any, channels: Any) -> np.ndarray:
    events = np.empty(len(times), dtype=TONIC)
    events["t"], events["x"], events["p"] = times, channels, 1
    return events


def some_events(num_events: int = 5000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return structured(np.sort(rng.integers(0, 1_000_000, num_events)), rng.integers(0, 700, num_events))


events_of_any_order = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 4)), max_size=40).map(
    lambda spikes: structured(*(np.array(spikes, dtype=int).reshape(-1, 2).T))
)


@settings(max_examples=150, deadline=None)
@given(events=events_of_any_order, bin_us=st.integers(1, 80), duration_us=st.integers(1, 70))
def test_a_raster_is_a_histogram_of_half_open_bins_for_every_bin_size(
    events: np.ndarray, bin_us: int, duration_us: int
) -> None:
    num_steps = -(-duration_us // bin_us)
    inside = events[events["t"] < duration_us]
    edges = (
        np.append(np.arange(num_steps) * bin_us, num_steps * bin_us) - 0.5
    )  # whole microseconds: no spike lies on an edge
    expected, _, _ = np.histogram2d(inside["t"], inside["x"], bins=(edges, np.arange(6) - 0.5))
    before = events.copy()
    for axes, shape in (("tc", (num_steps, 5)), ("tpc", (num_steps, 1, 5)), ("ct", (5, num_steps))):
        for binary in (False, True):
            raster = ToRaster(bin_us, duration_us, 5, binary=binary, axes=axes)(events)  # type: ignore[arg-type]
            wanted = np.minimum(expected, 1) if binary else expected
            assert raster.shape == shape and raster.dtype == np.float32
            assert np.array_equal(raster.T if axes == "ct" else raster.reshape(wanted.shape), wanted)
    pair = ToRaster(bin_us, duration_us, 5)((events["t"].astype(np.int32), events["x"].astype(np.uint16)))
    assert np.array_equal(pair, expected) and np.array_equal(events, before)


@pytest.mark.parametrize("bin_us", [1000, 2000, 10_000, 40_000])
def test_a_raster_equals_tonics_frames_where_tonic_is_given_the_window(bin_us: int) -> None:
    transforms = pytest.importorskip("tonic.transforms")
    events = some_events()
    theirs = transforms.ToFrame(sensor_size=(700, 1, 1), time_window=bin_us, start_time=0, end_time=1_000_000)(
        events.copy()
    )
    assert np.array_equal(ToRaster(bin_us, axes="tpc")(events), theirs)


def test_integers_of_every_width_and_sign_are_binned_alike() -> None:
    times, channels = np.array([0, 99, 100, 127]), np.array([0, 1, 1, 2])
    expected = ToRaster(100, 200, 3)((times, channels))
    for kind in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.uint64):
        assert np.array_equal(ToRaster(100, 200, 3)((times.astype(kind), channels.astype(kind))), expected)


def test_a_floating_polarity_is_a_weight_and_an_integer_one_is_not_looked_at() -> None:
    events = np.array([(5, 1, -1.5), (6, 1, 0.5)], dtype=[("t", int), ("x", int), ("p", float)])
    assert ToRaster(10, 10, 2)(events).tolist() == [[0.0, -1.0]]
    signed = np.array([(5, 1, -1), (6, 1, 1)], dtype=TONIC)
    assert ToRaster(10, 10, 2)(signed).tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize("transform", ALL, ids=lambda transform: type(transform).__name__)
def test_a_transform_copies_keeps_its_kind_and_takes_no_events(transform: Any) -> None:
    events = some_events(200)
    before = events.copy()
    out = transform(events)
    assert out.dtype == TONIC and np.array_equal(events, before) and not np.shares_memory(out, events)
    pair = events["t"].astype(np.int32), events["x"].astype(np.uint16)
    out = transform(pair)
    assert isinstance(out, tuple) and [array.dtype for array in out] == [np.int32, np.uint16]
    assert np.array_equal(pair[0], before["t"]) and np.array_equal(pair[1], before["x"])
    assert transform(events[:0]).shape == (0,) and transform(events[:0]).dtype == TONIC
    frozen = before.copy()
    frozen.flags.writeable = False
    assert transform(frozen).flags.writeable


@pytest.mark.parametrize("transform", RANDOM, ids=lambda transform: type(transform).__name__)
def test_draws_depend_on_seed_epoch_and_index_alone(transform: Any) -> None:
    def draw(transform: Any, epoch: int, index: int) -> bytes:
        with sample_key(epoch, index):
            return bytes(transform(some_events()).tobytes())

    assert draw(transform, 2, 5) == draw(transform, 2, 5) == draw(pickle.loads(pickle.dumps(transform)), 2, 5)
    others = [draw(transform, 3, 5), draw(transform, 2, 6), draw(dataclasses.replace(transform, seed=1), 2, 5)]
    assert len({draw(transform, 2, 5), *others}) == 4


def test_two_equal_transforms_in_a_row_draw_differently() -> None:
    with sample_key(0, 0):
        first, second = EventDrop(0.5)(some_events()), EventDrop(0.5)(some_events())
    assert not np.array_equal(first, second)


def test_outside_of_a_data_set_torch_seeds_the_draws() -> None:
    def draw() -> np.ndarray:
        return EventDrop(0.5)(some_events())

    torch.manual_seed(1)
    one, two = draw(), draw()
    torch.manual_seed(1)
    assert np.array_equal(draw(), one) and not np.array_equal(one, two)


def test_time_jitter_is_normal_reflected_at_0_and_ordered() -> None:
    events = structured(np.full(20_000, 500_000), np.arange(20_000) % 700)
    moved = TimeJitter(1000.0)(events)["t"]
    assert (np.diff(moved) >= 0).all()
    assert abs(moved.mean() - 500_000) < 30 and abs(moved.std() - 1000) < 25  # four standard errors
    at_zero = TimeJitter(1000.0)(structured(np.zeros(20_000, int), np.zeros(20_000, int)))["t"]
    assert at_zero.min() >= 0 and abs(at_zero.mean() - 1000 * np.sqrt(2 / np.pi)) < 20


def test_time_jitter_moves_channels_along() -> None:
    out = TimeJitter(10.0)(structured([1000, 2000, 3000], [1, 2, 3]))
    assert out["x"].tolist() == [1, 2, 3] and TimeJitter(0.0)(some_events()).tolist() == some_events().tolist()


def test_channel_jitter_is_normal_and_reflected_at_both_ends() -> None:
    moved = ChannelJitter(8.0)(structured(np.zeros(20_000, int), np.full(20_000, 350)))["x"]
    assert abs(moved.mean() - 350) < 0.25 and abs(moved.std() - 8) < 0.2
    for edge in (0, 699):
        moved = ChannelJitter(8.0)(structured(np.zeros(20_000, int), np.full(20_000, edge)))["x"]
        assert moved.min() >= 0 and moved.max() <= 699
        assert (
            abs(np.abs(moved - edge).mean() + 0.5 - 8 * np.sqrt(2 / np.pi)) < 0.2
        )  # channel -1 becomes 0: the mirror is at -0.5
    far = ChannelJitter(1e6, num_channels=3)(structured(np.zeros(3000, int), np.ones(3000, int)))["x"]
    assert set(far.tolist()) == {0, 1, 2}


def test_channel_drop_silences_whole_channels() -> None:
    events = structured(np.arange(70_000), np.arange(70_000) % 700)
    left = np.bincount(ChannelDrop(0.3)(events)["x"], minlength=700)
    assert set(left.tolist()) == {0, 100} and abs((left == 0).mean() - 0.3) < 0.07


def test_event_drop_drops_single_events() -> None:
    events = some_events(40_000)
    left = EventDrop(0.3)(events)
    assert abs(left.size / 40_000 - 0.7) < 0.01 and np.isin(left, events).all()
    assert EventDrop(1.0)(events).size == 0 and EventDrop(0.0)(events).size == 40_000


def test_time_warp_stretches_parts_and_keeps_the_order() -> None:
    times = np.arange(0, 1_200_000, 1000)
    with sample_key(0, 0):
        warped = TimeWarp(0.3, num_segments=5)(structured(times, times % 700))["t"]
    assert (np.diff(warped) > 0).all() and warped[0] == 0
    speed = np.diff(warped)
    for part in range(5):
        inside = speed[200 * part : 200 * part + 200]
        assert inside.max() - inside.min() <= 1  # rounding to whole microseconds
    assert abs(speed[1000:].mean() - speed[900:1000].mean()) < 1
    lengths = [TimeWarp(0.2)(structured([1_000_000], [0]))["t"][0] for _ in range(800)]
    assert (
        abs(np.log(np.array(lengths) / 1e6).mean()) < 0.03 and abs(np.log(np.array(lengths) / 1e6).std() - 0.2) < 0.02
    )


def test_pooling_before_binning_is_summing_after() -> None:
    events = some_events()
    assert np.array_equal(
        ToRaster(num_channels=140)(PoolChannels(5)(events)), ToRaster()(events).reshape(100, 140, 5).sum(-1)
    )
    assert PoolChannels(3)(structured([0], [699]))["x"][0] == 233


def test_input_dropout_keeps_the_mean_of_rasters() -> None:
    kinds: list[Any] = [
        np.ones(40_000),
        np.ones(40_000, np.float32),
        np.ones(40_000, np.int16),
        torch.ones(40_000),
        torch.ones(40_000, dtype=torch.int16),
    ]
    for ones in kinds:
        out: Any = InputDropout(0.75)(ones)
        assert (
            set(out.tolist()) == {0.0, 4.0}
            and abs(float(out.mean()) - 1) < 0.04
            and float(ones.max()) == float(ones.min()) == 1
        )
        assert type(out) is type(ones) and str(out.dtype).removeprefix("torch.") == (
            "float64" if ones.dtype == np.float64 else "float32"
        )
        assert set(InputDropout(0.75, scale=False)(ones).tolist()) == {0.0, 1.0}


def test_input_dropout_weighs_the_events_that_stay() -> None:
    events = some_events(40_000)
    out = InputDropout(0.5)(events)
    assert out["p"].dtype == np.float32 and set(out["p"].tolist()) == {2.0} and events.dtype == TONIC
    assert abs(ToRaster()(out).sum() - 40_000) < 900
    again = InputDropout(0.5)(out)
    assert set(again["p"].tolist()) == {4.0}
    spikes = SpikeEvents.from_frames(torch.from_numpy(ToRaster()(events))[None])
    thin = InputDropout(0.5)(spikes)
    assert abs(float(thin.to_dense().sum()) - 40_000) < 1000 and thin.shape == spikes.shape
    assert InputDropout(0.5, scale=False)(SpikeEvents.from_frames(torch.ones(1, 9, 9))).value is None


def test_input_dropout_acts_in_training_only() -> None:
    ones, drop = np.ones(50, np.float32), InputDropout(0.5)
    with sample_key(0, 0, training=False):
        assert np.array_equal(drop(ones), ones) and drop(ones) is not ones
        assert not np.array_equal(InputDropout(0.5, training=True)(ones), ones)
        assert torch.equal(drop(torch.ones(3)), torch.ones(3)) and drop(some_events()).dtype == TONIC
    with sample_key(0, 0, training=True):
        assert not np.array_equal(drop(ones), ones)
        assert np.array_equal(InputDropout(0.5, training=False)(ones), ones)
    assert not np.array_equal(drop(ones), ones)


class Augmented(Dataset[Any]):
    """Any data set that puts `sample_key` around its transforms."""

    def __init__(self, transforms: list[Any]) -> None:
        self.transforms = transforms

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        events: Any = some_events(300, seed=index)
        with sample_key(4, index):
            for transform in self.transforms:
                events = transform(events)
        return events


def test_augmentation_is_the_same_over_workers() -> None:
    dataset = Augmented([*RANDOM, PoolChannels(70), ToRaster(100_000, num_channels=10), InputDropout(0.2)])
    alone = torch.stack([torch.from_numpy(dataset[i]) for i in range(6)])
    for num_workers in (1, 2):
        assert torch.equal(torch.cat(list(DataLoader(dataset, batch_size=2, num_workers=num_workers))), alone)


@pytest.mark.parametrize(
    "transform", [*ALL, ToRaster(), InputDropout(0.5)], ids=lambda transform: type(transform).__name__
)
def test_transforms_are_frozen_and_tell_their_settings(transform: Any) -> None:
    assert all(
        f"{field.name}={getattr(transform, field.name)!r}" in repr(transform) for field in dataclasses.fields(transform)
    )
    assert hash(transform) == hash(pickle.loads(pickle.dumps(transform)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        transform.seed = 3


BAD_SETTINGS: dict[str, tuple[Callable[[], Any], str]] = {
    "zero bin": (lambda: ToRaster(bin_us=0), r"bin_us must be in \[1, 2147483648\), got 0"),
    "huge bin": (lambda: ToRaster(bin_us=2**31), r"bin_us must be in \[1, 2147483648\), got 2147483648"),
    "no duration": (lambda: ToRaster(duration_us=-1), "duration_us must be in .* got -1"),
    "no channels": (lambda: ToRaster(num_channels=0), "num_channels must be in .* got 0"),
    "axes": (lambda: ToRaster(axes="bt"), 'axes must be "tc", "tpc" or "ct", got \'bt\''),  # type: ignore[arg-type]
    "float bin": (lambda: ToRaster(bin_us=0.5), "bin_us must be an integer, got 0.5"),  # type: ignore[arg-type]
    "bool bin": (lambda: ToRaster(bin_us=True), "bin_us must be an integer, got True"),
    "jitter": (lambda: TimeJitter(-1.0), "std_us must be in .* got -1.0"),
    "NaN jitter": (lambda: ChannelJitter(float("nan")), "std must be in .* got nan"),
    "seed": (lambda: EventDrop(0.1, seed=-2), "seed must be in .* got -2"),
    "probability": (lambda: ChannelDrop(1.1), r"p must be in \[0, 1\], got 1.1"),
    "all dropped": (lambda: InputDropout(1.0), r"p must be in \[0, 1\), got 1.0"),
    "strength": (lambda: TimeWarp(3.0), r"strength must be in \[0, 2\], got 3.0"),
    "segments": (lambda: TimeWarp(0.1, num_segments=0), "num_segments must be in .* got 0"),
    "factor": (lambda: PoolChannels(0), "factor must be in .* got 0"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_are_refused(case: str) -> None:
    make, message = BAD_SETTINGS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        make()


BAD_EVENTS: dict[str, tuple[Any, str]] = {
    "negative time": (structured([5, -1], [1, 1]), "t must not be negative, got -1"),
    "seconds": ((np.array([0.5]), np.array([1])), r"t must be integers \(microseconds\), got dtype float64"),
    "float channels": ((np.array([5]), np.array([1.0])), "x must be integers, got dtype float64"),
    "other lengths": ((np.array([5]), np.array([1, 2])), "x must have one entry per time, 1, got 2"),
    "matrix": ((np.ones((2, 2), int), np.ones((2, 2), int)), r"t must have one dimension, got shape \(2, 2\)"),
    "no times": (
        np.zeros(3, dtype=[("x", int)]),
        "events must be a structured array with fields t and x, .* got an array of dtype",
    ),
    "a raster": (np.zeros((3, 4)), "events must be a structured array .* got an array of dtype float64"),
    "a list": ([1, 2], r"events must be a structured array .*, got a list"),
}


@pytest.mark.parametrize("case", BAD_EVENTS)
@pytest.mark.parametrize("transform", [*ALL, ToRaster()], ids=lambda transform: type(transform).__name__)
def test_bad_events_are_refused_by_every_transform(case: str, transform: Any) -> None:
    events, message = BAD_EVENTS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        transform(events)


@pytest.mark.parametrize(
    "transform", [ToRaster(), ChannelDrop(0.1), ChannelJitter(1.0)], ids=lambda transform: type(transform).__name__
)
@pytest.mark.parametrize("channel", [-1, 700])
def test_channels_out_of_range_are_refused(transform: Any, channel: int) -> None:
    with pytest.raises(ValueError, match=rf"x must be in \[0, 700\), got {channel}"):
        transform(structured([0, 0], [3, channel]))


def test_a_second_axis_is_refused_by_a_raster() -> None:
    with pytest.raises(ValueError, match="events must have one spatial axis, x, got fields"):
        ToRaster()(np.zeros(3, dtype=[("t", int), ("x", int), ("y", int), ("p", int)]))


def test_input_dropout_refuses_what_carries_no_weight() -> None:
    with pytest.raises(TypeError, match="inputs must be a raster, SpikeEvents or a structured array, got a tuple"):
        InputDropout(0.5)((np.array([1]), np.array([2])))  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"inputs must have a field p to carry the weight, got fields \('t', 'x'\)"):
        InputDropout(0.5)(np.zeros(3, dtype=[("t", int), ("x", int)]))
