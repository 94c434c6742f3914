"""The Lightning data module of N-MNIST."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Literal

from lightning import LightningDataModule

from elm_neuro.datasets import SpikeRecordings, read_nmnist
from elm_neuro.training.shd._data import Binning, SHDDataModule


class NMNISTDataModule(SHDDataModule):
    """Training, validation and test batches of N-MNIST, or of a stand-in of
    :func:`elm_neuro.datasets.make_nmnist`; batches as those of :class:`SHDDataModule`, every speaker -1.

    Args:
        folder: which has the folders Train and Test.
        polarity: "fold" or "keep", as in :func:`elm_neuro.datasets.read_nmnist`: 1,156 or 2,312 channels.
        valid: fraction of the training recordings that validate.
        binning: how recordings become time steps.
        batch_size: recordings of a batch.
        num_workers: processes that load; 0 loads in this one, None has two where a GPU trains.
        seed: of the split and of the training order.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: an argument or a file is not as it must be.
    """

    network_settings: ClassVar[tuple[str, ...]] = ("polarity", *SHDDataModule.network_settings)

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        polarity: Literal["fold", "keep"] = "fold",
        valid: float = 0.1,
        binning: Binning | None = None,
        batch_size: int = 64,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        LightningDataModule.__init__(self)
        if polarity not in ("fold", "keep"):
            raise ValueError(f'polarity must be "fold" or "keep", got {polarity!r}')
        self._configure(valid, binning, batch_size, num_workers, seed)
        self.folder, self.polarity = folder, polarity

    @property
    def tested_on(self) -> str:
        """What a figure says its samples are: the folder's name."""
        return Path(self.folder).resolve().name

    @property
    def class_names(self) -> list[str]:
        """The digits."""
        return [str(digit) for digit in range(10)]

    def _read(self) -> tuple[SpikeRecordings, SpikeRecordings]:
        return read_nmnist(self.folder, "train", polarity=self.polarity), read_nmnist(
            self.folder, "test", polarity=self.polarity
        )
