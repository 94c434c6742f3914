"""SHD-Adding: two spoken digits one after the other, the target is their sum. Spieler et al. 2023, arXiv:2306.16922."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from elm_neuro.datasets._counter import checked_seed
from elm_neuro.datasets._items import Items, collate, index_of, indices_of
from elm_neuro.datasets._processes import SharedNumber
from elm_neuro.datasets.shd._frames import FrameTable, Steps, whole_microseconds
from elm_neuro.datasets.shd._pairs import (
    SPLITS,
    Split,
    add_labels,
    fingerprint,
    fixed_pairs,
    upstream_pairs,
)
from elm_neuro.datasets.shd._protocols import FixedPairing, Group, Source, UpstreamPairing, fixed_pool, upstream_pool
from elm_neuro.events import SpikeEvents

PairItem: TypeAlias = tuple[SpikeEvents | Tensor, int, tuple[int, int]]
PairBatch: TypeAlias = tuple[SpikeEvents | Tensor, Tensor, Tensor]

SIZES: dict[Split, int] = {"train": 8192, "validation": 2048, "test": 4096}  # fixed protocol v1
UPSTREAM_BATCHES: dict[Split, int] = {
    "train": 2000,
    "validation": 500,
    "test": 2000,
}  # the authors' train_elm_on_shd.ipynb at 52e68a6

logger = logging.getLogger("elm_neuro.datasets")


class SHDAdding(Dataset[PairItem]):
    """Pairs of spoken digits: item ``i`` is (input, sum of the digits, (speaker of the first, speaker of the second)).

    The second digit begins where the window of the first ends; spikes at or past the end of a window are left out.
    Targets are ``a % 10 + b % 10``, 19 classes. Speakers are -1 where unknown.

    **Fixed protocol v1** (``pairing="fixed"``), to be cited with `fingerprint`:

    1. Digits. Training and validation pairs are made of digits of `source`, test pairs of digits of `test_source`. One
    in five speakers
       of `source`, rounded down, but at least one, is held out for validation, by `rank_speakers`; without a
       `test_source` as many others are held out for testing. The pool of a list is all digits by its speakers, in the
       order of the file.
    2. Pairs. Both digits of pair ``i`` are drawn from the pool with replacement by SplitMix64 from (seed, split, i),
    exactly as
       `fixed_pairs` says: whatever the platform, the version of NumPy, the batch size, the workers.
    3. Lists. Validation is pairs 0 to 2047, test pairs 0 to 4095. Training is one endless list: epoch ``e`` of N pairs
    is its entries
       ``e * N`` to ``(e + 1) * N - 1``, N = 8192. Another `num_samples` gives a longer or shorter beginning of the same
       lists.
    4. `speakers`: of a test set "seen" are the speakers of the training list, "heldout" those of whom `source` has no
    digit, "all"
       also those held out for validation. Both digits of a pair are by speakers of that group. Training and validation
       take "all".

    ``pairing="upstream"`` is the authors' protocol: item ``k`` is item ``k % batch_size`` of their batch
    ``k // batch_size``, validation is a random split, and the second digit begins after a whole number of steps.

    Use ``DataLoader(dataset, batch_size=32, collate_fn=SHDAdding.collate)``; shuffling is not needed. `set_epoch` moves
    a training list on, in running workers too. The fingerprint is logged at level INFO of the logger
    ``elm_neuro.datasets``.

    Args:
        source: the training set: recordings, the path of an SHD-format file, or `SpokenDigits`.
        test_source: the test set, or None to hold speakers of `source` out for testing. Files that a list does not need
            are not read.
        split: "train", "validation" or "test".
        num_samples: number of pairs, at least 1; None is 8192, 2048 and 4096 (the authors': 2000, 500 and 2000
            batches).
        seed: in [0, 2**64).
        speakers: "all", "seen" or "heldout".
        pairing: "fixed", "upstream", or a `FixedPairing` or `UpstreamPairing` with other settings.
        bin_ms: width of a step in ms, a whole number of microseconds.
        digit_ms: window of one digit in ms, a whole number of microseconds; None is 1000 (the authors': rounded up to
            whole steps).
        output: "events" gives `SpikeEvents` of batch 1, "frames" a Tensor (num_steps, num_channels), float32.
        binary: whether several spikes of one channel and step count as one.
        pool: this many neighbouring channels become one, ``channel // pool``.
        scale: what a spike counts.

    Raises:
        ValueError: an argument is out of range, speakers are needed and not known, or no digit is left for the list.

    >>> from elm_neuro.datasets import SpikeRecordings
    >>> digits = SpikeRecordings(np.array([0, 900_000, 20_000]), np.array([1, 2, 3]), np.array([0, 2, 3]),
    ...     np.array([7, 14]), np.array([4, 5]))
    >>> dataset = SHDAdding(digits, test_source=digits, split="test", num_samples=2)
    >>> dataset
    SHDAdding('test', num_items=2, num_steps=200, num_channels=700, bin_ms=10.0, output='events',
    fingerprint='3a1f5af4c617...')
    >>> dataset.pairs.tolist(), dataset.labels, dataset.speakers.tolist()
    ([[0, 1], [1, 1]], tensor([11,  8]), [[4, 5], [5, 5]])
    >>> dataset.sample(0)
    (array([      0,  900000, 1020000], dtype=int32), array([1, 2, 3], dtype=uint16))
    """

    def __init__(
        self,
        source: Source,
        test_source: Source | None = None,
        *,
        split: Split = "train",
        num_samples: int | None = None,
        seed: int = 0,
        speakers: Group = "all",
        pairing: Literal["fixed", "upstream"] | FixedPairing | UpstreamPairing = "fixed",
        bin_ms: float = 10.0,
        digit_ms: float | None = None,
        output: Literal["events", "frames"] = "events",
        binary: bool = False,
        pool: int = 1,
        scale: float = 1.0,
    ) -> None:
        for name, value, allowed in (
            ("split", split, SPLITS),
            ("speakers", speakers, ("all", "seen", "heldout")),
            ("output", output, ("events", "frames")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if pairing not in ("fixed", "upstream") and not isinstance(pairing, FixedPairing | UpstreamPairing):
            raise ValueError(
                f'pairing must be "fixed", "upstream", a FixedPairing or an UpstreamPairing, got {pairing!r}'
            )
        self.pairing = (
            FixedPairing()
            if pairing == "fixed"
            else UpstreamPairing()
            if pairing == "upstream"
            else cast(FixedPairing, pairing)
        )
        self.split, self.seed, self.output, self.binary, self.pool = split, checked_seed(seed), output, binary, pool
        self._bin_us = whole_microseconds("bin_ms", bin_ms)
        self.digit_us = whole_microseconds("digit_ms", 1000.0 if digit_ms is None else digit_ms)
        if digit_ms is None and isinstance(self.pairing, UpstreamPairing):
            self.digit_us = -(-self.digit_us // self._bin_us) * self._bin_us
        if self.digit_us > 2**30:
            raise ValueError(f"digit_ms must be at most {2**30 / 1000}, got {digit_ms}")
        self.num_steps = -(-2 * self.digit_us // self._bin_us)
        self._num_items = self._size(num_samples)
        if isinstance(self.pairing, UpstreamPairing):
            self.recordings, self._digits = upstream_pool(self.pairing, source, test_source, split, speakers, self.seed)
        else:
            self.recordings, self._digits = fixed_pool(self.pairing, source, test_source, split, speakers, self.seed)
        if not self._digits.size:
            raise ValueError(f"the {split} list must have digits to pair, got none by speakers={speakers!r}")
        if not 1 <= pool <= self.recordings.num_channels:
            raise ValueError(f"pool must be in [1, {self.recordings.num_channels}], got {pool}")
        self.num_channels = -(-self.recordings.num_channels // pool)
        self._steps, whole = Steps(self._bin_us, self.digit_us, pool, binary, scale), self.digit_us % self._bin_us == 0
        self._table = FrameTable(self.recordings, self._steps) if output == "frames" and whole else None
        self._epoch = SharedNumber()
        self._drawn = (0, self._draw(0))
        self.fingerprint = fingerprint(self.recordings, self._drawn[1], self.digit_us)
        logger.info("%s: fingerprint of the list %s", self, self.fingerprint)

    def _size(self, num_samples: int | None) -> int:
        upstream = self.pairing if isinstance(self.pairing, UpstreamPairing) else None
        if num_samples is None:
            return SIZES[self.split] if upstream is None else upstream.batch_size * UPSTREAM_BATCHES[self.split]
        if not 1 <= num_samples < 2**31:
            raise ValueError(f"num_samples must be in [1, 2**31), got {num_samples}")
        if upstream is not None and num_samples % upstream.batch_size:
            raise ValueError(
                f"num_samples must be a multiple of the authors' batch_size, {upstream.batch_size}, got {num_samples}"
            )
        return int(num_samples)

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        if isinstance(self.pairing, UpstreamPairing):
            batch_size = self.pairing.batch_size
            places = upstream_pairs(
                self._digits.size, len(self) // batch_size, batch_size=batch_size, seed=self.seed, epoch=epoch
            )
        else:
            places = fixed_pairs(
                self._digits.size, epoch * len(self), (epoch + 1) * len(self), seed=self.seed, split=self.split
            )
        return self._digits[places]

    @property
    def epoch(self) -> int:
        """Epoch of the training list; 0 for the others."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Move a training list on to `epoch`, not negative; validation and test lists never change.

        Raises:
            ValueError: `epoch` is out of range.
        """
        if not 0 <= epoch < 2**30:
            raise ValueError(f"epoch must be in [0, 2**30), got {epoch}")
        if self.split == "train":
            self._epoch.set(epoch)

    @property
    def digits(self) -> NDArray[np.int64]:
        """Indices in `recordings` of all digits that pairs are drawn from, (num_digits,), in the order of the file."""
        return self._digits

    @property
    def pairs(self) -> NDArray[np.int64]:
        """Indices in `recordings` of both digits of each item of this epoch, (num_items, 2)."""
        epoch = self.epoch
        if self._drawn[0] != epoch:
            self._drawn = (epoch, self._draw(epoch))
        return self._drawn[1]

    @property
    def labels(self) -> Tensor:
        """Target of each item, (num_items,), int64, in [0, 19)."""
        return torch.from_numpy(add_labels(self.recordings.labels, self.pairs))

    @property
    def speakers(self) -> Tensor:
        """Speakers of both digits of each item, (num_items, 2), int64, -1 where unknown."""
        return self._speakers(self.pairs)

    def __len__(self) -> int:
        return self._num_items

    def sample(self, index: int) -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]:
        """Times in microseconds, int32, ascending, and channels (before pooling), uint16, of both digits of item
        `index`.

        Raises:
            IndexError: there is no such item.
        """
        times, units, _ = self._spikes(self.pairs[[index_of(index, len(self))]])
        return times, units

    def __getitem__(self, index: int) -> PairItem:
        inputs, labels, speakers = self.batch([index_of(index, len(self))])
        return (
            inputs if isinstance(inputs, SpikeEvents) else inputs[0],
            int(labels[0]),
            (int(speakers[0, 0]), int(speakers[0, 1])),
        )

    def __getitems__(self, indices: Sequence[int]) -> Sequence[PairItem]:
        """The items `indices`, not yet binned: `collate` bins them in one go, any other reader gets them one by one."""
        return Items(self, indices)

    def __iter__(self) -> Iterator[PairItem]:
        return (self[index] for index in range(len(self)))

    def batch(self, indices: ArrayLike) -> PairBatch:
        """The items `indices` of this data set, (batch,), as one batch.

        Returns:
            `SpikeEvents` or frames (batch, num_steps, num_channels), float32; targets (batch,), int64; speakers (batch,
            2), int64.

        Raises:
            ValueError: `indices` is not a list of integers in [-num_items, num_items).
        """
        pairs = self.pairs[indices_of(indices, len(self))]
        inputs = self._spike_by_spike(pairs) if self._table is None else self._put_together(self._table, pairs)
        return inputs, torch.from_numpy(add_labels(self.recordings.labels, pairs)), self._speakers(pairs)

    @staticmethod
    def collate(items: Sequence[PairItem], *, batch_first: bool = True) -> PairBatch:
        """Items put into one batch, as a ``collate_fn``; items that a DataLoader fetched together are binned together.

        Args:
            items: at least one, all of the same output and size.
            batch_first: False gives frames (num_steps, batch, num_channels):
                ``functools.partial(SHDAdding.collate, batch_first=False)``.

        Returns:
            `SpikeEvents` or frames (batch, num_steps, num_channels), float32; targets (batch,), int64; speakers (batch,
            2), int64.

        Raises:
            ValueError: `items` is empty, or `batch_first` is False and the items are events, which are batch-first
                always.
        """
        inputs, labels, speakers = collate(items)
        if not batch_first:
            if isinstance(inputs, SpikeEvents):
                raise ValueError(
                    "batch_first must be True for events, got False: turn them into frames, or transpose to_dense()"
                )
            inputs = inputs.transpose(0, 1)
        return inputs, labels, speakers

    def _put_together(self, table: FrameTable, pairs: NDArray[np.int64]) -> Tensor:
        """Frames of pairs whose second digit begins with a step."""
        return table.batch(pairs.reshape(-1)).view(len(pairs), self.num_steps, self.num_channels)

    def _spike_by_spike(self, pairs: NDArray[np.int64]) -> SpikeEvents | Tensor:
        """Events or frames of pairs, spike by spike."""
        times, units, item = self._spikes(pairs)
        rows = times // np.int32(self._bin_us) + item * self.num_steps
        channels = np.floor_divide(units, self.pool, dtype=np.int64)
        binned = self._steps.as_frames if self.output == "frames" else self._steps.as_events
        return binned(rows, channels, (len(pairs), self.num_steps, self.num_channels))

    def _spikes(self, pairs: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
        """Times, the second digit's shifted, channels and place in `pairs` of all spikes."""
        times, units, count = self.recordings.spikes_of(pairs.reshape(-1), before=self.digit_us)
        later = np.repeat(np.tile(np.array([0, self.digit_us], np.int32), len(pairs)), count)
        return times + later, units, np.repeat(np.arange(len(pairs)), count.reshape(-1, 2).sum(1))

    def _speakers(self, pairs: NDArray[np.int64]) -> Tensor:
        known = self.recordings.speakers
        return torch.full(pairs.shape, -1, device="cpu") if known is None else torch.from_numpy(known[pairs])

    def __repr__(self) -> str:
        shape = f"num_steps={self.num_steps}, num_channels={self.num_channels}, bin_ms={self._bin_us / 1000}"
        return (
            f"SHDAdding({self.split!r}, num_items={len(self)}, {shape}, output={self.output!r}, "
            f"fingerprint='{self.fingerprint[:12]}...')"
        )
