"""Whose digits make up a list of SHD-Adding: the fixed protocol and the authors', read from as few files as
possible.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets._items import integers
from elm_neuro.datasets.shd._files import read_shd
from elm_neuro.datasets.shd._pairs import Split, rank_speakers, upstream_split
from elm_neuro.datasets.shd._recordings import SpikeRecordings
from elm_neuro.datasets.shd._spoken_digits import SpokenDigits

Source: TypeAlias = SpikeRecordings | SpokenDigits | str | os.PathLike[str]
Group: TypeAlias = Literal["all", "seen", "heldout"]
Pool: TypeAlias = tuple[SpikeRecordings, NDArray[np.int64]]


@dataclass(frozen=True)
class FixedPairing:
    """The fixed protocol v1: who is held out of training. The pairs are those of `fixed_pairs`.

    By default one in five speakers of the training set, but at least one, is held out for validation: the first of
    `rank_speakers`. Where there is no test set of its own, as many of the next ones are held out for testing.

    Args:
        valid_speakers: speakers held out for validation; None is the protocol's choice, () nobody.
        test_speakers: speakers held out for testing where there is no test set of its own; None is the protocol's
            choice.

    >>> FixedPairing().roles(np.arange(10), seed=0, one_file=False)["validation"]
    array([5, 7])
    >>> FixedPairing().roles(np.arange(10), seed=0, one_file=True)["test"]
    array([2, 8])
    """

    valid_speakers: tuple[int, ...] | None = None
    test_speakers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("valid_speakers", "test_speakers"):
            chosen: Iterable[int] | None = getattr(self, name)
            if chosen is not None:
                object.__setattr__(
                    self,
                    name,
                    tuple(integers(name, np.array(list(chosen) or [], dtype=np.int64), 0, 2**31, np.int64).tolist()),
                )

    def roles(self, speakers: NDArray[np.int64], *, seed: int, one_file: bool) -> dict[Split, NDArray[np.int64]]:
        """Speakers for training, validation and, with `one_file`, for testing, ascending, of a training set by
        `speakers`.

        Raises:
            ValueError: a chosen speaker is not there or in two roles, or nobody is left for training.
        """
        ranked = rank_speakers(speakers, seed=seed)
        share = max(1, ranked.size // 5)
        if self.test_speakers is not None and not one_file:
            raise ValueError(
                f"test_speakers must be None where there is a test set of its own, got {self.test_speakers}"
            )
        for name, chosen in (("valid_speakers", self.valid_speakers), ("test_speakers", self.test_speakers)):
            missing = np.setdiff1d(np.array(chosen or (), dtype=np.int64), ranked)
            if missing.size:
                raise ValueError(
                    f"{name} must name speakers of the training set, {np.sort(ranked).tolist()}, got {missing.tolist()}"
                )
        free = ranked if self.test_speakers is None else ranked[~np.isin(ranked, self.test_speakers)]
        valid = free[:share] if self.valid_speakers is None else np.array(self.valid_speakers, dtype=np.int64)
        rest = ranked[~np.isin(ranked, valid)]
        test = (
            rest[: share if one_file else 0]
            if self.test_speakers is None
            else np.array(self.test_speakers, dtype=np.int64)
        )
        if np.intersect1d(valid, test).size:
            raise ValueError(
                f"test_speakers must differ from valid_speakers, got {np.intersect1d(valid, test).tolist()} in both"
            )
        train = rest[~np.isin(rest, test)]
        if not train.size:
            raise ValueError(
                f"speakers must be left for training, got {ranked.size}, of whom {valid.size + test.size} are held out"
            )
        return {"train": np.sort(train), "validation": np.sort(valid), "test": np.sort(test)}


@dataclass(frozen=True)
class UpstreamPairing:
    """The authors' protocol: a random split that mixes speakers (`upstream_split`) and pairs that depend on the batch
    size (`upstream_pairs`).

    NumPy does not promise the streams of its generators for all time; tests hold these to the authors' recorded draws.
    Frames are the authors' too, also where a step does not divide 1 s; only at 35 ms their floating-point edges put a
    spike at 0.875 s a step earlier.

    Args:
        batch_size: of the protocol, whatever batches are formed afterwards.
        valid_fraction: share of the training set that becomes validation; 0 leaves all to training.

    Raises:
        ValueError: an argument is out of range.
    """

    batch_size: int = 8
    valid_fraction: float = 0.2

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0.0 <= self.valid_fraction <= 1.0:
            raise ValueError(f"valid_fraction must be in [0, 1], got {self.valid_fraction}")


def read_source(source: Source) -> SpikeRecordings:
    """The recordings of `source`, read or made where it is a path or `SpokenDigits`."""
    if isinstance(source, SpikeRecordings):
        return source
    return source.recordings() if isinstance(source, SpokenDigits) else read_shd(source)


def fixed_pool(
    pairing: FixedPairing, source: Source, test_source: Source | None, split: Split, group: Group, seed: int
) -> Pool:
    """Recordings and indices of the digits that pairs are drawn from, in the order of the file, by the fixed protocol.

    Raises:
        ValueError: `group` makes no sense for `split`, or speakers are needed and not known.
    """
    if split != "test" or test_source is None:
        wrong: Group = "heldout" if split == "train" else "seen"
        if group == wrong:
            rule = "none of the training list's" if split == "train" else "held out of training"
            raise ValueError(
                f'speakers must not be "{wrong}" for the {split} list, whose speakers are {rule} by definition; pass '
                '"all"'
            )
        recordings = read_source(source)
        if split == "train" and pairing.valid_speakers == () and test_source is not None:
            return recordings, np.arange(len(recordings))  # nobody is held out, so that nobody need be known
        roles = pairing.roles(_known("source", source, recordings), seed=seed, one_file=test_source is None)
        return recordings, np.flatnonzero(np.isin(_known("source", source, recordings), roles[split]))
    recordings = read_source(test_source)
    if group == "all":
        return recordings, np.arange(len(recordings))
    training = source.speakers if isinstance(source, SpokenDigits) else _known("source", source, read_source(source))
    testing = _known("test_source", test_source, recordings)
    if group == "heldout":
        return recordings, np.flatnonzero(~np.isin(testing, training))
    return recordings, np.flatnonzero(np.isin(testing, pairing.roles(training, seed=seed, one_file=False)["train"]))


def upstream_pool(
    pairing: UpstreamPairing, source: Source, test_source: Source | None, split: Split, group: Group, seed: int
) -> Pool:
    """Recordings and indices of the digits that pairs are drawn from, in the order of the file, by the authors'
    protocol.

    Raises:
        ValueError: `group` is not "all", or the test list is asked for without a test set.
    """
    if group != "all":
        raise ValueError(f'speakers must be "all" with the authors\' pairing, which mixes speakers, got "{group}"')
    if split != "test":
        recordings = read_source(source)
        indices = upstream_split(len(recordings), valid_fraction=pairing.valid_fraction, seed=seed)
        return recordings, indices[split == "validation"]
    if test_source is None:
        raise ValueError("test_source must be given for the authors' test list, got None")
    recordings = read_source(test_source)
    return recordings, np.arange(len(recordings))


def _known(name: str, source: Source, recordings: SpikeRecordings) -> NDArray[np.int64]:
    if recordings.speakers is None:
        where = f"; {os.fspath(source)} has no /extra/speaker" if isinstance(source, str | os.PathLike) else ""
        raise ValueError(
            f'{name} must know its speakers to hold some out, got speakers=None{where}; pairing="upstream" needs none'
        )
    return recordings.speakers
