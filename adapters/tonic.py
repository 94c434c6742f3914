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

import hashlib
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from elm_neuro import __version__, datasets
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
    sample_key,
)
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
OURS = (
    ChannelDrop,
    ChannelJitter,
    EventDrop,
    InputDropout,
    PoolChannels,
    TimeJitter,
    TimeWarp,
    ToRaster,
)  # which take no events, too
DOWNLOAD_FAILS = (OSError, RuntimeError, EOFError, HTTPException, zipfile.BadZipFile)


class _Face:
    """What a tonic data set does with one item: events or a raster, then the transforms, which draw from (seed, epoch,
    index).
    """

    dtype = np.dtype([("t", int), ("x", int), ("p", int)])
    ordering = dtype.names

    def __init__(
        self,
        raster: ToRaster | None,
        transform: Callable[[Any], Any] | None,
        target_transform: Callable[[Any], Any] | None,
        transforms: Callable[[Any, Any], Any] | None,
    ) -> None:
        self.transform, self.target_transform, self.transforms = transform, target_transform, transforms
        self._raster = raster

    def _item(
        self, times: NDArray[Any], units: NDArray[Any], target: np.int64, epoch: int, index: int, training: bool
    ) -> tuple[Any, Any]:
        data: Any = np.empty(times.size, dtype=self.dtype)
        data["t"], data["x"], data["p"] = times, units, 1
        label: Any = target
        if self._raster is not None:
            data = self._raster(data)
        with sample_key(epoch, index, training=training):
            if self.transform is not None:
                data = _apply(self.transform, data)
            if self.target_transform is not None:
                label = self.target_transform(label)
            if self.transforms is not None:
                data, label = self.transforms(data, label)
        return data, label

    def _cache_path(self, folder: str | os.PathLike[str], name: str, *content: Any) -> str:
        settings = [
            repr(part)
            for part in (__version__, *content, self._raster, self.transform, self.target_transform, self.transforms)
        ]
        for setting in settings:
            if " at 0x" in setting and not name:
                raise ValueError(
                    f"name must stand for transforms whose repr does not tell their settings, got name='' and {setting}"
                )
        settings = [re.sub(r" at 0x[0-9a-f]+", "", setting, flags=re.IGNORECASE) for setting in settings]
        return os.path.join(os.fspath(folder), hashlib.sha256("\n".join([name, *settings]).encode()).hexdigest()[:32])


class SHDAdding(_Face):
    """SHD-Adding as a tonic data set: item ``i`` is (events or raster, sum of two spoken digits).

    `elm_neuro.datasets.SHDAdding` says what the lists are, the fixed protocol v1 and the authors'. The second digit's
    times begin where the window of the first digit ends, 1 s by default. Transforms are called as in tonic; those of
    this package draw from (their seed, epoch, index), whatever the workers, and `InputDropout` is off in validation and
    test lists. Call `set_epoch` before each epoch of training, else every epoch has the same pairs and the same draws.
    All spikes are read once, into flat arrays; workers that are forked share them, spawned ones get a copy.

    Args:
        source: a folder ``save_to`` as in tonic, where tonic's SHD lies or is downloaded to; or an SHD-format file,
            recordings, or `SpokenDigits`: the training set.
        test_source: the test set, unless `source` is a folder; None holds speakers of `source` out for testing.
        split: "train", "validation" or "test".
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

    Raises:
        FileNotFoundError: the files of SHD are not there and cannot be downloaded; the message says where to put them.
        ValueError: as `elm_neuro.datasets.SHDAdding`; a file is damaged or breaks a rule of the layout.
    """

    classes = tuple(str(total) for total in range(19))

    def __init__(
        self,
        source: Source,
        test_source: Source | None = None,
        *,
        split: Literal["train", "validation", "test"] = "train",
        num_samples: int | None = None,
        seed: int = 0,
        speakers: Literal["all", "seen", "heldout"] = "all",
        pairing: Literal["fixed", "upstream"] | FixedPairing | UpstreamPairing = "fixed",
        digit_us: int | None = None,
        bin_us: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        transforms: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        if isinstance(source, str | os.PathLike) and _is_folder(source):
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
        super().__init__(raster, transform, target_transform, transforms)
        self.sensor_size = (num_channels, 1, 1)
        self._cached = False

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
            ValueError: `epoch` is out of range, or a cache was made of this epoch by `cache_path`.
        """
        if self._cached and epoch != self.core.epoch:
            raise ValueError(
                f"epoch must stay {self.core.epoch}, of which cache_path made a cache, got {epoch}; cache a new data "
                "set"
            )
        self.core.set_epoch(epoch)

    def cache_path(self, folder: str | os.PathLike[str], name: str = "") -> str:
        """A folder in `folder` that is this list's, epoch's and these transforms' alone, for
        ``tonic.DiskCachedDataset``.

        Transforms tell their settings by their repr, as tonic's and this package's do. For others, such as functions,
        `name` must stand: change it when they change. A cache holds one epoch's pairs and draws: after this call
        `set_epoch` refuses another one, a ``MemoryCachedDataset`` must be made anew. Augment behind the cache, by its
        own ``transform``.

        Raises:
            ValueError: the repr of a transform is an address, and `name` is empty.
        """
        content = fingerprint(self.core.recordings, self.pairs, self.core.digit_us)
        path = self._cache_path(folder, name, "SHDAdding", content, self.core.split, self.core.epoch)
        self._cached = True
        return path

    def __len__(self) -> int:
        return len(self.core)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        times, units = self.core.sample(index)
        index = int(index) % len(self)
        target = (self.core.recordings.labels[self.pairs[index]] % 10).sum()
        return self._item(times, units, target, self.core.epoch, index, self.core.split == "train")

    def __repr__(self) -> str:
        return (
            f"SHDAdding({self.core.split!r}, num_items={len(self)}, epoch={self.core.epoch}, "
            f"fingerprint='{self.fingerprint[:12]}...')"
        )


class SHD(_Face):
    """The single digits as a tonic data set, as tonic's SHD but read once: item ``i`` is (events or raster, label).

    Args:
        source: a folder ``save_to`` as in tonic, an SHD-format file, recordings, or `SpokenDigits`.
        train: which of the two files, where `source` is a folder; whether `InputDropout` is on, in any case.
        bin_us: None emits events; a number of microseconds emits rasters (time, channel) of the first second, of that
            step.
        transform: called with events or raster.
        target_transform: called with the label.
        transforms: called with both.

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
        source: Source,
        *,
        train: bool = True,
        bin_us: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        transforms: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        if isinstance(source, str | os.PathLike):
            source = read_shd(_file_of_tonic(source, train=train, needed=True) if _is_folder(source) else source)
        self.recordings = source.recordings() if isinstance(source, SpokenDigits) else source
        self.train = train
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers that live on see a new epoch
        num_channels = self.recordings.num_channels
        super().__init__(
            None if bin_us is None else ToRaster(bin_us=bin_us, num_channels=num_channels),
            transform,
            target_transform,
            transforms,
        )
        self.sensor_size = (num_channels, 1, 1)

    @property
    def speakers(self) -> NDArray[np.int64]:
        """Speaker of each item, (num_items,), -1 where unknown."""
        return np.full(len(self), -1) if self.recordings.speakers is None else self.recordings.speakers

    @property
    def targets(self) -> NDArray[np.int64]:
        """Label of each item, (num_items,), before any target_transform."""
        return self.recordings.labels

    def set_epoch(self, epoch: int) -> None:
        """Move the draws of all transforms on to `epoch`, not negative: call it before each epoch of training."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self._epoch.fill_(epoch)

    def cache_path(self, folder: str | os.PathLike[str], name: str = "") -> str:
        """A folder in `folder` that is these recordings', this epoch's and these transforms' alone; as
        `SHDAdding.cache_path`.
        """
        arrays = (self.recordings.times, self.recordings.units, self.recordings.indptr, self.recordings.labels)
        content = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
        return self._cache_path(folder, name, "SHD", content, self.train, int(self._epoch))

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        times, units = self.recordings.sample(index)
        index = int(index) % len(self)
        return self._item(times, units, self.recordings.labels[index], int(self._epoch), index, self.train)

    def __repr__(self) -> str:
        return f"SHD(num_items={len(self)}, train={self.train})"


def _apply(transform: Callable[[Any], Any], data: Any) -> Any:
    """Call `transform`, also on a sample without a spike, at which tonic's Compose stops, so that no raster would come
    out.
    """
    if len(data) or not isinstance(transform, tonic.transforms.Compose):
        return transform(data)
    for part in transform.transforms:
        if len(data) or isinstance(part, (*OURS, tonic.transforms.Compose)):
            data = _apply(part, data)
    return data


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
    try:
        host(save_to=os.fspath(save_to), train=train)
    except DOWNLOAD_FAILS as error:
        raise (PermissionError if isinstance(error, PermissionError) else FileNotFoundError)(
            f"source must be a folder that has SHD/{path.name} or to which it can be downloaded, got "
            f"{os.fspath(save_to)}: {error}. "
            f"Download {host.base_url}{archive} by other means and unpack it to {path}"
        ) from error
    return path
