"""Transforms of one sample's events that augment it, in microseconds, usable in tonic's Compose.

Each is a frozen dataclass that takes events and gives a copy. Events are a structured array with integer fields t
(microseconds, not negative) and x (channel), such as tonic's, or a pair (times, channels), such as
`SpikeRecordings.sample` gives; what comes out is of the same kind. No events in, no events out. Randomness follows
`sample_key`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elm_neuro.datasets.shd._recordings import NUM_CHANNELS
from elm_neuro.datasets.transforms._event_arrays import E, changed, check_channels, check_real, check_whole, read_events
from elm_neuro.datasets.transforms._random import generator


@dataclass(frozen=True)
class TimeJitter:
    """Move each event in time by a normally distributed amount, each by itself; times below 0 are reflected. The result
    is in order.

    Args:
        std_us: standard deviation in microseconds.
        seed: not negative.

    >>> times, channels = TimeJitter(std_us=1000.0)((np.array([0, 500, 90_000]), np.array([1, 2, 3])))
    >>> bool((times >= 0).all() and (np.diff(times) >= 0).all())
    True
    """

    std_us: float
    seed: int = 0

    def __post_init__(self) -> None:
        check_real("std_us", self.std_us, 0.0, 2.0**31)
        check_whole("seed", self.seed, 0, 2**63)

    def __call__(self, events: E) -> E:
        times, _ = read_events(events)
        moved = np.abs(times + np.rint(generator(self.seed).normal(0.0, self.std_us, times.size)))
        moved = np.minimum(moved, np.iinfo(times.dtype).max).astype(times.dtype)
        return changed(events, keep=np.argsort(moved, kind="stable"), times=moved)


@dataclass(frozen=True)
class ChannelJitter:
    """Move each event to a neighbouring channel by a normally distributed amount, each by itself, reflected at both
    ends.

    Args:
        std: standard deviation in channels.
        num_channels: number of channels.
        seed: not negative.

    >>> times, channels = ChannelJitter(std=2.0)((np.array([0, 500]), np.array([0, 699])))
    >>> times, bool((channels >= 0).all() and (channels < 700).all())
    (array([  0, 500]), True)
    """

    std: float
    num_channels: int = NUM_CHANNELS
    seed: int = 0

    def __post_init__(self) -> None:
        check_real("std", self.std, 0.0, 2.0**31)
        check_whole("num_channels", self.num_channels, 1, 2**31)
        check_whole("seed", self.seed, 0, 2**63)

    def __call__(self, events: E) -> E:
        _, channels = read_events(events)
        check_channels(channels, self.num_channels)
        shift = np.rint(generator(self.seed).normal(0.0, self.std, channels.size)).astype(np.int64)
        moved = (channels.astype(np.int64) + shift) % (2 * self.num_channels)
        return changed(events, channels=np.where(moved < self.num_channels, moved, 2 * self.num_channels - 1 - moved))


@dataclass(frozen=True)
class ChannelDrop:
    """Silence each channel for the whole sample with probability `p`.

    Args:
        p: probability, in [0, 1].
        num_channels: number of channels.
        seed: not negative.

    >>> ChannelDrop(1.0)((np.array([0, 500]), np.array([0, 699])))
    (array([], dtype=int64), array([], dtype=int64))
    """

    p: float
    num_channels: int = NUM_CHANNELS
    seed: int = 0

    def __post_init__(self) -> None:
        check_real("p", self.p, 0.0, 1.0)
        check_whole("num_channels", self.num_channels, 1, 2**31)
        check_whole("seed", self.seed, 0, 2**63)

    def __call__(self, events: E) -> E:
        _, channels = read_events(events)
        check_channels(channels, self.num_channels)
        kept = generator(self.seed).random(self.num_channels) >= self.p
        return changed(events, keep=kept[channels])


@dataclass(frozen=True)
class EventDrop:
    """Drop each event with probability `p`, each by itself; the others are not scaled (`InputDropout` does).

    Args:
        p: probability, in [0, 1].
        seed: not negative.

    >>> EventDrop(0.0)((np.array([0, 500]), np.array([0, 699])))
    (array([  0, 500]), array([  0, 699]))
    """

    p: float
    seed: int = 0

    def __post_init__(self) -> None:
        check_real("p", self.p, 0.0, 1.0)
        check_whole("seed", self.seed, 0, 2**63)

    def __call__(self, events: E) -> E:
        times, _ = read_events(events)
        return changed(events, keep=generator(self.seed).random(times.size) >= self.p)


@dataclass(frozen=True)
class TimeWarp:
    """Stretch and squeeze time: `num_segments` equal parts of the duration each get a speed of their own; order is
    kept.

    Each part becomes longer by the factor ``exp(strength * n)``, n standard normal; what lies past the duration goes on
    at the last speed. Spikes may leave the window, which `ToRaster` then leaves out. With one segment the sample as a
    whole becomes longer or shorter.

    Args:
        strength: standard deviation of the logarithm of the factors, in [0, 2].
        duration_us: length of the sample in microseconds.
        num_segments: number of parts.
        seed: not negative.

    >>> TimeWarp(0.0)((np.array([0, 500_000, 2_000_000]), np.array([1, 2, 3])))[0]
    array([      0,  500000, 2000000])
    """

    strength: float
    duration_us: int = 1_000_000
    num_segments: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_real("strength", self.strength, 0.0, 2.0)
        check_whole("duration_us", self.duration_us, 1, 2**31)
        check_whole("num_segments", self.num_segments, 1, 2**16)
        check_whole("seed", self.seed, 0, 2**63)

    def __call__(self, events: E) -> E:
        times, _ = read_events(events)
        factor = np.exp(self.strength * generator(self.seed).standard_normal(self.num_segments))
        edges = np.linspace(0.0, self.duration_us, self.num_segments + 1)
        warped = np.concatenate(([0.0], np.cumsum(factor * np.diff(edges))))
        moved = np.interp(times, edges, warped) + np.maximum(times - edges[-1], 0.0) * factor[-1]
        return changed(events, times=np.minimum(np.rint(moved), np.iinfo(times.dtype).max))


@dataclass(frozen=True)
class PoolChannels:
    """Make `factor` neighbouring channels one: ``x // factor``; of C channels ``ceil(C / factor)`` are left.

    >>> PoolChannels(5)((np.array([0, 500]), np.array([4, 699])))
    (array([  0, 500]), array([  0, 139]))
    """

    factor: int

    def __post_init__(self) -> None:
        check_whole("factor", self.factor, 1, 2**31)

    def __call__(self, events: E) -> E:
        _, channels = read_events(events)
        check_channels(channels, np.iinfo(np.int64).max)
        return changed(events, channels=channels.astype(np.int64) // self.factor)
