"""Which digits are added: the fixed protocol v1 and the authors' draws, as pure functions of integers."""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elm_neuro.datasets._counter import checked_seed, splitmix64
from elm_neuro.datasets.shd._recordings import SpikeRecordings

Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
NUM_SUMS = 19  # 0 + 0 to 9 + 9


def fixed_pairs(pool_size: int, start: int, stop: int, *, seed: int, split: Split) -> NDArray[np.int64]:
    """Pairs `start` to `stop` (exclusive) of the endless list of the fixed protocol v1, as places in a pool of digits.

    The stream of a split begins in the state ``key = splitmix64(seed, k)`` with k = 1, 2, 3 for train, validation,
    test. Pair ``i`` is made of outputs ``2 * i`` and ``2 * i + 1`` of that stream; an output h becomes the place
    ``(h >> 32) * pool_size >> 32``. No digit is likelier than another by more than ``pool_size / 2**32`` (2e-6 for
    SHD), relatively.

    Returns:
        Places of the first and the second digit, (stop - start, 2), int64, in [0, pool_size).

    Raises:
        ValueError: an argument is out of range.

    >>> fixed_pairs(60, 0, 3, seed=0, split="test")
    array([[18, 38],
           [33, 54],
           [ 8, 59]])
    """
    if not 1 <= pool_size < 2**32:
        raise ValueError(f"pool_size must be in [1, 2**32), got {pool_size}")
    if not 0 <= start <= stop < 2**62:
        raise ValueError(f"start and stop must satisfy 0 <= start <= stop < 2**62, got {start} and {stop}")
    key = int(splitmix64(checked_seed(seed), 1 + SPLITS.index(split)))
    high = splitmix64(key, np.arange(2 * start, 2 * stop, dtype=np.uint64)) >> np.uint64(32)
    return (high * np.uint64(pool_size) >> np.uint64(32)).astype(np.int64).reshape(-1, 2)


def rank_speakers(speakers: ArrayLike, *, seed: int) -> NDArray[np.int64]:
    """The distinct `speakers`, (any number,), in the order in which the fixed protocol v1 holds them out of training.

    Speaker ``s`` stands at the rank of output ``s`` of the stream with ``key = splitmix64(seed, 0)``, the smallest
    first.

    >>> rank_speakers([0, 0, 1, 2, 3, 6, 7, 8, 9, 10, 11], seed=0)
    array([11,  7,  8,  2, 10,  9,  0,  3,  1,  6])
    """
    distinct = np.unique(np.asarray(speakers, dtype=np.int64))
    return distinct[np.argsort(splitmix64(int(splitmix64(checked_seed(seed), 0)), distinct), kind="stable")]


def upstream_split(
    num_samples: int, *, valid_fraction: float = 0.2, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of training and validation samples as the authors draw them, speakers mixed:
    ``default_rng(seed).binomial``.

    Raises:
        ValueError: an argument is out of range.

    >>> [indices.size for indices in upstream_split(8156)]
    [6514, 1642]
    """
    if num_samples < 0:
        raise ValueError(f"num_samples must not be negative, got {num_samples}")
    if not 0.0 <= valid_fraction <= 1.0:
        raise ValueError(f"valid_fraction must be in [0, 1], got {valid_fraction}")
    valid = np.random.default_rng(checked_seed(seed)).binomial(1, valid_fraction, size=num_samples).astype(bool)
    return np.flatnonzero(~valid), np.flatnonzero(valid)


def upstream_pairs(
    pool_size: int, num_batches: int, *, batch_size: int = 8, seed: int = 0, epoch: int = 0
) -> NDArray[np.int64]:
    """Pairs of one epoch as the authors draw them: of the ``2 * batch_size`` draws of a batch, draw i is paired with
    draw i + batch_size.

    The draws are ``default_rng(seed).integers(0, pool_size)``; epoch 1 goes on where epoch 0 ended.

    Returns:
        Places of the first and the second digit, (num_batches * batch_size, 2), int64, batch after batch.

    Raises:
        ValueError: an argument is out of range.

    >>> upstream_pairs(60, 1, batch_size=4)
    array([[51, 18],
           [38,  2],
           [30,  4],
           [16,  0]])
    """
    for name, value, least in (
        ("pool_size", pool_size, 1),
        ("num_batches", num_batches, 0),
        ("batch_size", batch_size, 1),
        ("epoch", epoch, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    draws = np.random.default_rng(checked_seed(seed)).integers(
        0, pool_size, size=((epoch + 1) * num_batches, 2, batch_size)
    )
    return draws[epoch * num_batches :].swapaxes(1, 2).reshape(-1, 2)


def add_labels(labels: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Target of each pair, (num_pairs,), in [0, 19): the sum of the two digits, English or German; labels 10 to 19 are
    German 0 to 9.
    """
    sums: NDArray[np.int64] = (labels[pairs] % 10).sum(axis=-1)
    return sums


def fingerprint(recordings: SpikeRecordings, pairs: NDArray[np.int64], digit_us: int) -> str:
    """What a paper cites: the SHA-256, in hex, of a list of pairs and of every spike of their digits.

    Hashed are the bytes ``SHD-Adding list v1`` and a newline; as little-endian int64 the window of a digit in
    microseconds, the number of channels and, for each pair, the indices of both samples in `recordings` and the target;
    then for each pair the SHA-256 (32 bytes) of its first and of its second sample. The hash of a sample is over all of
    its times, in microseconds, little-endian int32, ascending, followed by its channels, little-endian uint16.

    Args:
        recordings: the digits.
        pairs: indices of samples, (num_pairs, 2).
        digit_us: window of one digit in microseconds.

    >>> one = SpikeRecordings(np.array([5]), np.array([3]), np.array([0, 1]), np.array([7]), None)
    >>> fingerprint(one, np.array([[0, 0]]), 1_000_000)[:16]
    '93b67fe32b1c067f'
    """
    content: dict[int, bytes] = {}
    for i in np.unique(pairs).tolist():
        times, units = recordings.sample(i)
        content[i] = hashlib.sha256(times.astype("<i4").tobytes() + units.astype("<u2").tobytes()).digest()
    rows = np.column_stack((pairs, add_labels(recordings.labels, pairs)))
    whole = hashlib.sha256(b"SHD-Adding list v1\n")
    whole.update(np.array([digit_us, recordings.num_channels], dtype="<i8").tobytes())
    whole.update(rows.astype("<i8").tobytes())
    for i in pairs.reshape(-1).tolist():
        whole.update(content[i])
    return whole.hexdigest()
