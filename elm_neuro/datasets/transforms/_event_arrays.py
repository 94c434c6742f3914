"""One sample as events: tonic's structured array (t, x, p) or our pair (times, channels), read and copied alike."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Events: TypeAlias = Array | tuple[Array, Array]
E = TypeVar("E", Array, tuple[Array, Array])


def read_events(events: Events) -> tuple[Array, Array]:
    """Times in microseconds and channels of `events`, views, each (num_events,), both integers, times not negative.

    Raises:
        TypeError: `events` is neither a structured array with fields t and x nor a pair of arrays, or holds no
            integers.
        ValueError: the arrays differ in length, or a time is negative.
    """
    if isinstance(events, tuple) and len(events) == 2:
        times, channels = np.asarray(events[0]), np.asarray(events[1])
    elif isinstance(events, np.ndarray) and {"t", "x"} <= set(events.dtype.names or ()):
        times, channels = events["t"], events["x"]
    else:
        came = f"an array of dtype {events.dtype}" if isinstance(events, np.ndarray) else f"a {type(events).__name__}"
        raise TypeError(
            f"events must be a structured array with fields t and x, or a pair (times, channels), got {came}"
        )
    for name, array in (("t", times), ("x", channels)):
        if array.dtype.kind not in "ui":
            raise TypeError(
                f"{name} must be integers{' (microseconds)' if name == 't' else ''}, got dtype {array.dtype}"
            )
        if array.ndim != 1:
            raise ValueError(f"{name} must have one dimension, got shape {array.shape}")
    if times.size != channels.size:
        raise ValueError(f"x must have one entry per time, {times.size}, got {channels.size}")
    if times.dtype.kind == "i" and times.size and times.min() < 0:
        raise ValueError(f"t must not be negative, got {times.min()}")
    return times, channels


def check_channels(channels: Array, num_channels: int) -> None:
    """Refuse channels outside [0, num_channels) with a ValueError."""
    if channels.size and (channels.min() < 0 or channels.max() >= num_channels):
        raise ValueError(
            f"x must be in [0, {num_channels}), got {channels.min() if channels.min() < 0 else channels.max()}"
        )


def weights(events: Events) -> Array | None:
    """What each event counts: field p where it is floating; None, for 1, where p is a polarity or there is none."""
    if isinstance(events, tuple) or "p" not in (events.dtype.names or ()) or events["p"].dtype.kind != "f":
        return None
    return events["p"]


def changed(events: E, *, keep: Array | None = None, times: Array | None = None, channels: Array | None = None) -> E:
    """A copy of `events`, of the entries `keep` only (mask or order), with other `times` and `channels`, in the dtypes
    of `events`.
    """
    chosen = slice(None) if keep is None else keep
    if isinstance(events, tuple):
        old = np.asarray(events[0]), np.asarray(events[1])
        new = (old[k] if array is None else array.astype(old[k].dtype) for k, array in enumerate((times, channels)))
        first, second = (np.array(array[chosen]) for array in new)
        return first, second
    copy: Array = events[chosen].copy() if keep is None else events[chosen]
    if times is not None:
        copy["t"] = times[chosen]
    if channels is not None:
        copy["x"] = channels[chosen]
    return copy


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Refuse what is not an integer in [low, high)."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not low <= value < high:
        raise ValueError(f"{name} must be in [{low}, {high}), got {value}")


def check_real(name: str, value: float, low: float, high: float) -> None:
    """Refuse what is not in [low, high], NaN too."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value}")
