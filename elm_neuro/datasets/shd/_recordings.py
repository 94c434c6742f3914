"""Recordings as flat arrays: spikes of many samples, their classes and speakers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elm_neuro.datasets._items import index_of, indices_of, integers

NUM_CHANNELS = 700  # Cramer et al. 2020, arXiv:1910.07407, section II: hair cells of the inner ear model
NUM_CLASSES = 20  # 0 to 9 English, 10 to 19 German
SHD_ADDRESS = "https://zenkelab.org/datasets"
SHD_PAPER = (
    "Cramer, Stradmann, Schemmel, Zenke: The Heidelberg Spiking Data Sets for the Systematic Evaluation of Spiking "
    "Neural Networks, IEEE TNNLS 33(7), 2022, doi 10.1109/TNNLS.2020.3044364"
)
SHD_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
)  # of the classes, in their order


def where_shd_is(folder: object, otherwise: str = "") -> str:
    """The end of a message about files of SHD that are not there: address, what else may be done, and the paper.

    >>> where_shd_is("data")[:63]
    'download shd_train.h5.zip and shd_test.h5.zip from https://zenk'
    """
    way = f"download shd_train.h5.zip and shd_test.h5.zip from {SHD_ADDRESS} and unpack them into {folder}"
    return f"{way}{otherwise} ({SHD_PAPER})"


@dataclass(frozen=True, eq=False)
class SpikeRecordings:
    """All samples of a file as flat arrays; the spikes of sample ``i`` are entries ``indptr[i] : indptr[i + 1]``.

    The arrays are read-only views. Times that fall within a sample are put in order (stably) on construction.

    Args:
        times: time of each spike, (num_events,), integer microseconds from 0 to 2**31 - 1; kept as int32.
        units: channel of each spike, (num_events,), integers in [0, num_channels); kept as uint16.
        indptr: sample boundaries, (num_samples + 1,), integers from 0 to num_events, never falling.
        labels: class of each sample, (num_samples,), integers in [0, 20).
        speakers: speaker of each sample, (num_samples,), integers, not negative; None where unknown.
        num_channels: number of channels, at most 65536.

    Raises:
        ValueError: the arrays do not describe such samples; the message says which rule broke.

    >>> recordings = SpikeRecordings(np.array([900, 100, 500]), np.array([2, 1, 0]), np.array([0, 2, 3]),
    ...     np.array([4, 19]), None)
    >>> recordings
    SpikeRecordings(num_samples=2, num_events=3, num_channels=700, speakers=None)
    >>> recordings.sample(0)
    (array([100, 900], dtype=int32), array([1, 2], dtype=uint16))
    """

    times: NDArray[np.integer[Any]]
    units: NDArray[np.integer[Any]]
    indptr: NDArray[np.int64]
    labels: NDArray[np.int64]
    speakers: NDArray[np.int64] | None
    num_channels: int = NUM_CHANNELS

    def __post_init__(self) -> None:
        if not 1 <= self.num_channels <= 65536:
            raise ValueError(f"num_channels must be in [1, 65536], got {self.num_channels}")
        times = integers("times", self.times, 0, 2**31, np.int32)
        units = integers("units", self.units, 0, self.num_channels, np.uint16)
        indptr = integers("indptr", self.indptr, 0, times.size + 1, np.int64)
        labels = integers("labels", self.labels, 0, NUM_CLASSES, np.int64)
        if units.size != times.size:
            raise ValueError(f"units must have one entry per time, {times.size}, got {units.size}")
        if indptr.size != labels.size + 1:
            raise ValueError(f"indptr must have one entry more than the {labels.size} labels, got {indptr.size}")
        if indptr[0] != 0 or indptr[-1] != times.size or (np.diff(indptr) < 0).any():
            raise ValueError(f"indptr must rise from 0 to the number of events, {times.size}, without falling")
        speakers = None if self.speakers is None else integers("speakers", self.speakers, 0, 2**31, np.int64)
        if speakers is not None and speakers.size != labels.size:
            raise ValueError(f"speakers must have one entry per label, {labels.size}, got {speakers.size}")
        falls = times[1:] < times[:-1]
        first = indptr[1:-1]
        falls[first[(first > 0) & (first < times.size)] - 1] = False  # between samples time may fall
        if falls.any():
            order = np.lexsort((times, np.repeat(np.arange(labels.size), np.diff(indptr))))
            times, units = times[order], units[order]
        for name, array in (
            ("times", times),
            ("units", units),
            ("indptr", indptr),
            ("labels", labels),
            ("speakers", speakers),
        ):
            object.__setattr__(self, name, None if array is None else _readonly(array))

    def __len__(self) -> int:
        return self.labels.size

    @property
    def num_events(self) -> int:
        return self.times.size

    def sample(self, i: int) -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]:
        """Times in microseconds and channels of sample `i`, each (num_events of the sample,); negative `i` counts from
        the end.

        Raises:
            IndexError: there is no such sample.
        """
        i = index_of(i, len(self))
        span = slice(int(self.indptr[i]), int(self.indptr[i + 1]))
        return self.times[span], self.units[span]

    def fingerprint(self) -> str:
        """The SHA-256, in hex, of every spike, label and speaker, to be cited: the same wherever these are the same.

        Hashed are the bytes ``SHD recordings v1`` and a newline; as little-endian int64 the numbers of channels and of
        samples, `indptr`, the labels and the speakers (-1 each where unknown); then all times, in microseconds,
        little-endian int32, and all channels, little-endian uint16.

        >>> SpikeRecordings(np.array([5]), np.array([3]), np.array([0, 1]), np.array([7]), None).fingerprint()[:16]
        'f7aaf644514e2ee0'
        """
        speakers = np.full(len(self), -1) if self.speakers is None else self.speakers
        head = np.concatenate(([self.num_channels, len(self)], self.indptr, self.labels, speakers))
        whole = hashlib.sha256(b"SHD recordings v1\n" + head.astype("<i8").tobytes())
        whole.update(self.times.astype("<i4", copy=False).tobytes())
        whole.update(self.units.astype("<u2", copy=False).tobytes())
        return whole.hexdigest()

    def subset(self, indices: ArrayLike) -> SpikeRecordings:
        """The samples `indices`, (num_samples of the subset,), in that order, repeats allowed.

        Raises:
            ValueError: `indices` is not a list of integers in [-num_samples, num_samples).

        >>> recordings = SpikeRecordings(np.array([1, 2, 3]), np.array([7, 8, 9]), np.array([0, 2, 3]),
        ...     np.array([4, 5]), None)
        >>> recordings.subset([1]).units, recordings.subset([1, 0]).labels
        (array([9], dtype=uint16), array([5, 4]))
        """
        chosen = indices_of(indices, len(self))
        times, units, count = self.spikes_of(chosen)
        speakers = None if self.speakers is None else self.speakers[chosen]
        indptr = np.concatenate(([0], np.cumsum(count)))
        return SpikeRecordings(times, units, indptr, self.labels[chosen], speakers, self.num_channels)

    def spikes_of(
        self, chosen: NDArray[np.int64], before: int | None = None
    ) -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]], NDArray[np.int64]]:
        """Times and channels of the samples `chosen`, one sample after another, and their number in each; of spikes
        before that many microseconds, or of all.
        """
        spans = [
            slice(*pair) for pair in zip(self.indptr[chosen].tolist(), self.indptr[chosen + 1].tolist(), strict=True)
        ]
        if before is not None:  # times rise within a sample
            ends = [span.start + int(self.times[span].searchsorted(before)) for span in spans]
            spans = [slice(span.start, end) for span, end in zip(spans, ends, strict=True)]
        times, units = (
            np.concatenate([array[:0], *(array[span] for span in spans)]) for array in (self.times, self.units)
        )
        return times, units, np.array([span.stop - span.start for span in spans], dtype=np.int64)

    def __repr__(self) -> str:
        known = "None" if self.speakers is None else f"{np.unique(self.speakers).size} distinct"
        return (
            f"SpikeRecordings(num_samples={len(self)}, num_events={self.num_events}, "
            f"num_channels={self.num_channels}, speakers={known})"
        )


def split_speakers(recordings: SpikeRecordings, held_out: Iterable[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the samples of all other speakers, and of the speakers `held_out`.

    Raises:
        ValueError: the speakers are unknown, or one of `held_out` has no sample.

    >>> recordings = SpikeRecordings(np.array([], int), np.array([], int), np.zeros(4, int), np.array([1, 2, 3]),
    ...     np.array([0, 4, 0]))
    >>> split_speakers(recordings, [4])
    (array([0, 2]), array([1]))
    """
    chosen = np.asarray(list(held_out), dtype=np.int64)
    speakers = _speakers("recordings", recordings)
    missing = np.setdiff1d(chosen, speakers)
    if missing.size:
        raise ValueError(
            f"held_out must name speakers of recordings, {np.unique(speakers).tolist()}, got {missing.tolist()}"
        )
    inside = np.isin(speakers, chosen)
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def unseen_speakers(train: SpikeRecordings, test: SpikeRecordings) -> NDArray[np.int64]:
    """Speakers of `test` that `train` does not have, ascending.

    Raises:
        ValueError: one of the two does not know its speakers.

    >>> one, two = (SpikeRecordings(np.array([], int), np.array([], int), np.zeros(3, int), np.array([1, 2]),
    ...     np.array(s)) for s in ([0, 1], [1, 5]))
    >>> unseen_speakers(one, two)
    array([5])
    """
    return np.setdiff1d(_speakers("test", test), _speakers("train", train))


def _speakers(name: str, recordings: SpikeRecordings) -> NDArray[np.int64]:
    if recordings.speakers is None:
        raise ValueError(f"{name} must know its speakers, got speakers=None")
    return recordings.speakers


def _readonly(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
