"""SHD-Adding and SHD as tonic data sets: structured events (t in microseconds, x, p) or rasters, for tonic's
transforms, caches and collation.

>>> from tonic.transforms import Compose
>>> digits = SpikeRecordings(np.array([0, 5, 9]), np.array([7, 8, 9]), np.array([0, 1, 2, 3]), np.array([4, 15, 6]),
...     np.array([0, 1, 2]))
>>> dataset = SHDAdding(digits, split="test", num_samples=8,
...     transform=Compose([PoolChannels(5), ToRaster(10_000, 2_000_000, 140)]))
>>> raster, target = dataset[0]
>>> raster.shape, dataset.sensor_size, len(dataset.classes)
((200, 140), (700, 1, 1), 19)
"""

from __future__ import annotations

import os
import re
import socket
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from elm_neuro import datasets
from elm_neuro.adapters._tonic_items import Face
from elm_neuro.datasets import (
    ChannelDrop,
    ChannelJitter,
    EventDrop,
    FixedPairing,
    InputDropout,
    PoolChannels,
    SpikeRecordings,
    SpokenDigits,
    TimeJitter,
    TimeWarp,
    ToRaster,
    UpstreamPairing,
    fingerprint,
    read_shd,
)
from elm_neuro.datasets._processes import SharedNumber
from elm_neuro.datasets.shd._files import KEYS

try:
    import tonic
except ImportError as error:
    raise ImportError('elm_neuro.adapters.tonic needs tonic: pip install "elm-neuro[tonic]"') from error

_VERSION = str(getattr(tonic, "__version__", "unknown"))
if tuple(int(part) for part in re.findall(r"\d+", _VERSION)[:2]) < (
    1,
    7,
):  # before, float16 seconds became garbage under NumPy 2
    raise ImportError(
        f'elm_neuro.adapters.tonic needs tonic 1.7 or newer, got {_VERSION}: pip install -U "elm-neuro[tonic]"'
    )

__all__ = [
    "SHD",
    "ChannelDrop",
    "ChannelJitter",
    "EventDrop",
    "FixedPairing",
    "InputDropout",
    "PoolChannels",
    "SHDAdding",
    "TimeJitter",
    "TimeWarp",
    "ToRaster",
    "UpstreamPairing",
]

Source = str | os.PathLike[str] | SpikeRecordings | SpokenDigits
DEADLINE = 60.0  # seconds without a byte after which a download is given up
DOWNLOAD_FAILS = (OSError, RuntimeError, EOFError, HTTPException, zipfile.BadZipFile)


class SHDAdding(Face):
    """SHD-Adding as a tonic data set: item ``i`` is (events or raster, sum of two spoken digits).

    `elm_neuro.datasets.SHDAdding` says what the lists are, the fixed protocol v1 and the authors'. The second digit's
    times begin where the window of the first digit ends, 1 s by default. Transforms are called as in tonic; those of
    this package draw from (their seed, epoch, index), whatever the workers, and `InputDropout` is off in validation and
    test lists. Call `set_epoch` before each epoch of training, else every epoch has the same pairs and the same draws.
    All spikes are read once, into flat arrays; workers that are forked share them, spawned ones get a copy.

    Args:
        source: a folder as tonic's ``save_to``, where its SHD lies or is downloaded to; or an SHD-format file,
            recordings, or `SpokenDigits`: the training set.
        test_source: the test set, unless `source` is a folder; None holds speakers of `source` out for testing.
        split: "train", "validation" or "test"; None goes by `train`.
        num_samples: number of pairs; None is the protocol's.
        seed: of the pairs.
        speakers: "all", "seen" or "heldout".
        pairing: "fixed", "upstream", or a `FixedPairing` or `UpstreamPairing`.
        digit_us: window of one digit in microseconds; None is 1,000,000 (the authors': rounded up to whole steps of
            `bin_us`).
        bin_us: None emits events; a number of microseconds emits rasters (time, channel) of that step,
            ``ceil(2 * digit_us / bin_us)`` long.
        transform: called with events or raster.
        target_transform: called with the target.
        transforms: called with both.
        save_to: in place of `source`, as in tonic: the folder.
        train: in place of `split`, as in tonic: True is "train", False "test".

    Raises:
        FileNotFoundError: the files of SHD are not there and cannot be downloaded; the message says where to put them.
        ValueError: as `elm_neuro.datasets.SHDAdding`; a file is damaged or breaks a rule of the layout.
    """

    classes = tuple(str(total) for total in range(19))

    def __init__(
        self,
        source: Source | None = None,
        test_source: Source | None = None,
        *,
        split: Literal["train", "validation", "test"] | None = None,
        num_samples: int | None = None,
        seed: int = 0,
        speakers: Literal["all", "seen", "heldout"] = "all",
        pairing: Literal["fixed", "upstream"] | FixedPairing | UpstreamPairing = "fixed",
        digit_us: int | None = None,
        bin_us: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        transforms: Callable[[Any, Any], Any] | None = None,
        save_to: str | os.PathLike[str] | None = None,
        train: bool | None = None,
    ) -> None:
        source = _one_source(source, save_to)
        split = split or ("test" if train is False else "train")
        if train is not None and train is (split == "test"):
            raise ValueError(f"train must be {split != 'test'} for the {split} list, got {train}")
        if isinstance(source, str | os.PathLike) and (save_to is not None or _is_folder(source)):
            if test_source is not None:
                raise ValueError(
                    f"test_source must be None where source is a folder, got source={os.fspath(source)!r} and a "
                    "test_source"
                )
            test_source = _file_of_tonic(source, train=False, needed=split == "test")
            source = _file_of_tonic(source, train=True, needed=split != "test" or speakers != "all")
        raster = None if bin_us is None else ToRaster(bin_us=bin_us)
        self.core = datasets.SHDAdding(
            source,
            test_source,
            split=split,
            num_samples=num_samples,
            seed=seed,
            speakers=speakers,
            pairing=pairing,
            bin_ms=10.0 if bin_us is None else bin_us / 1000,
            digit_ms=None if digit_us is None else digit_us / 1000,
        )
        num_channels = self.core.recordings.num_channels
        if raster is not None:
            raster = replace(raster, duration_us=2 * self.core.digit_us, num_channels=num_channels)
        super().__init__(num_channels, raster, transform, target_transform, transforms)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the list and of its spikes, of epoch 0: what a paper cites."""
        return self.core.fingerprint

    @property
    def pairs(self) -> NDArray[np.int64]:
        """Indices of both digits of each item, (num_items, 2)."""
        return self.core.pairs

    @property
    def speakers(self) -> NDArray[np.int64]:
        """Speakers of both digits of each item, (num_items, 2), -1 where unknown."""
        speakers: NDArray[np.int64] = self.core.speakers.numpy()
        return speakers

    @property
    def targets(self) -> NDArray[np.int64]:
        """Sum of each item, (num_items,), before any target_transform."""
        targets: NDArray[np.int64] = self.core.labels.numpy()
        return targets

    def set_epoch(self, epoch: int) -> None:
        """Move a training list, and the draws of all transforms, on to `epoch`.

        Raises:
            ValueError: `epoch` is out of range, or a cache was made of this epoch by `cache_path`. Of a
                ``MemoryCachedDataset`` of this epoch a warning tells.
        """
        if self.core.split == "train":
            self.leave_epoch(self.core.epoch, epoch)
        self.core.set_epoch(epoch)

    def cache_path(self, folder: str | os.PathLike[str], name: str = "") -> str:
        """A folder in `folder` that is this list's, epoch's and these transforms' alone, for
        ``tonic.DiskCachedDataset``.

        Hashed is what the transforms hold: numbers, arrays, tensors, modules with their weights. For what cannot be
        looked into, such as functions, `name` must stand: change it when they change, and when the code of a class
        does. A cache holds one epoch's pairs and draws: after this call `set_epoch` refuses another one. Augment behind
        the cache, by its own ``transform``.

        Raises:
            ValueError: a transform is a function or the like, and `name` is empty.
        """
        content = fingerprint(self.core.recordings, self.pairs, self.core.digit_us)
        return self.folder_of(folder, name, "SHDAdding", content, self.core.split, self.core.epoch)

    def __len__(self) -> int:
        return len(self.core)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        times, units = self.core.sample(index)
        index = int(index) % len(self)
        target = (self.core.recordings.labels[self.pairs[index]] % 10).sum()
        return self.item(times, units, target, self.core.epoch, index, self.core.split == "train")

    def __repr__(self) -> str:
        return (
            f"SHDAdding({self.core.split!r}, num_items={len(self)}, epoch={self.core.epoch}, "
            f"fingerprint='{self.fingerprint[:12]}...')"
        )


class SHD(Face):
    """The single digits as a tonic data set, as tonic's SHD but read once: item ``i`` is (events or raster, label).

    Args:
        source: a folder as tonic's ``save_to``, an SHD-format file, recordings, or `SpokenDigits`.
        train: which of the two files, where `source` is a folder; whether `InputDropout` is on, in any case.
        transform: called with events or raster.
        target_transform: called with the label.
        bin_us: None emits events; a number of microseconds emits rasters (time, channel) of the first second, of that
            step.
        transforms: called with both.
        save_to: in place of `source`, as in tonic: the folder.

    Raises:
        FileNotFoundError: the file is not there and cannot be downloaded; the message says where to put it.
        ValueError: the file is damaged or breaks a rule of the layout.

    >>> dataset = SHD(SpikeRecordings(np.array([5]), np.array([3]), np.array([0, 1]), np.array([7]), None),
    ...     bin_us=10_000)
    >>> raster, label = dataset[0]
    >>> raster.shape, dataset.classes[label]
    ((100, 700), 'seven')
    """

    classes = tuple(KEYS)

    def __init__(
        self,
        source: Source | None = None,
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        *,
        bin_us: int | None = None,
        transforms: Callable[[Any, Any], Any] | None = None,
        save_to: str | os.PathLike[str] | None = None,
    ) -> None:
        source = _one_source(source, save_to)
        if isinstance(source, str | os.PathLike):
            inside = save_to is not None or _is_folder(source)
            source = read_shd(_file_of_tonic(source, train=train, needed=True) if inside else source)
        self.recordings = source.recordings() if isinstance(source, SpokenDigits) else source
        self.train = train
        self._epoch = SharedNumber()
        num_channels = self.recordings.num_channels
        super().__init__(
            num_channels,
            None if bin_us is None else ToRaster(bin_us=bin_us, num_channels=num_channels),
            transform,
            target_transform,
            transforms,
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of every spike, label and speaker: what a paper cites."""
        return self.recordings.fingerprint()

    @property
    def speakers(self) -> NDArray[np.int64]:
        """Speaker of each item, (num_items,), -1 where unknown."""
        return np.full(len(self), -1) if self.recordings.speakers is None else self.recordings.speakers

    @property
    def targets(self) -> NDArray[np.int64]:
        """Label of each item, (num_items,), before any target_transform."""
        return self.recordings.labels

    def set_epoch(self, epoch: int) -> None:
        """Move the draws of all transforms on to `epoch`, not negative: call it before each epoch of training.

        Raises:
            ValueError: `epoch` is negative, or a cache was made of this epoch by `cache_path`. Of a
                ``MemoryCachedDataset`` of this epoch a warning tells.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self.leave_epoch(int(self._epoch), epoch)
        self._epoch.set(epoch)

    def cache_path(self, folder: str | os.PathLike[str], name: str = "") -> str:
        """A folder in `folder` that is these recordings', this epoch's and these transforms' alone; as
        `SHDAdding.cache_path`.
        """
        return self.folder_of(folder, name, "SHD", self.fingerprint, self.train, int(self._epoch))

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        times, units = self.recordings.sample(index)
        index = int(index) % len(self)
        return self.item(times, units, self.recordings.labels[index], int(self._epoch), index, self.train)

    def __repr__(self) -> str:
        return f"SHD(num_items={len(self)}, train={self.train})"


def _one_source(source: Source | None, save_to: str | os.PathLike[str] | None) -> Source:
    if source is not None and save_to is not None:
        raise TypeError(f"source must be None where save_to is given, got {source!r} and save_to={save_to!r}")
    if (one := save_to if source is None else source) is None:
        raise TypeError("source must be given, or save_to in its place, got neither")
    return one


def _is_folder(source: str | os.PathLike[str]) -> bool:
    path = Path(source).expanduser()
    return path.is_dir() or path.suffix.lower() not in (".h5", ".hdf5")


def _file_of_tonic(save_to: str | os.PathLike[str], *, train: bool, needed: bool) -> Path:
    """The file that tonic's SHD reads under `save_to`, downloaded by tonic if it is `needed` and not there."""
    host = tonic.datasets.SHD
    archive: str = host.train_zip if train else host.test_zip
    path = Path(save_to).expanduser() / "SHD" / archive.removesuffix(".zip")
    if path.is_file() or not needed:
        return path
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DEADLINE)  # tonic sets none: a server that says nothing would be waited for without end
    try:
        host(save_to=os.fspath(save_to), train=train)
    except DOWNLOAD_FAILS as error:
        raise (PermissionError if isinstance(error, PermissionError) else FileNotFoundError)(
            f"source must be a folder that has SHD/{path.name} or to which it can be downloaded, got "
            f"{os.fspath(save_to)}: {error}. "
            f"Download {host.base_url}{archive} by other means and unpack it to {path}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return path
