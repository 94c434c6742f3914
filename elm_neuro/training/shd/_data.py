"""Lightning data modules over recordings in the form of SHD: which samples train, validate and test, in which order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from elm_neuro.datasets import SHDDataset, SpikeRecordings, SpokenDigits, read_shd, split_speakers
from elm_neuro.datasets.shd._recordings import SHD_WORDS, where_shd_is
from elm_neuro.training.loop._sampling import Remaining, ResumesInEpoch, check_loading, processes_and_rank

Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Binning:
    """How recordings become time steps; the fields are those of :class:`elm_neuro.datasets.SHDDataset`.

    Args:
        bin_ms: width of a step in ms, the neurons' delta_t.
        duration_ms: length of a sample in ms; later spikes are left out.
        pool: this many neighbouring channels become one.
        scale: what a spike counts.
        binary: whether several spikes of one channel and step count as one.
        output: "events" or "frames".
    """

    bin_ms: float = 10.0
    duration_ms: float = 1000.0
    pool: int = 1
    scale: float = 1.0
    binary: bool = False
    output: Literal["events", "frames"] = "events"


class SHDDataModule(ResumesInEpoch):
    """Training, validation and test batches of recordings in SHD-format files.

    Batches are (x, labels, speakers): :class:`SpikeEvents` or frames (batch, time, channel), and two (batch,) int64.
    The order of the training samples depends on (seed, epoch) alone, so that a resumed run goes on as one that was
    never stopped, in the middle of an epoch too.

    Args:
        train_file: SHD-format file of the training samples.
        test_file: SHD-format file of the test samples; None tests on samples of `train_file`, see `held_out`.
        held_out: without a test file, the speakers who do not train: the unseen part of the test set. A tenth of the
            samples of all other speakers is its seen part.
        valid: validation samples: a fraction of the training samples, or a list of training speakers who are then not
            trained on.
        binning: how recordings become time steps.
        batch_size: samples of a batch; the last batch may be smaller, none is dropped.
        num_workers: processes that load; 0 loads in this one, None has two where a GPU trains.
        seed: of the split and of the training order.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is not in the layout of SHD, a speaker is not there, or nothing is left to train on.
    """

    # what `test` and `export` take from a checkpoint: how samples are made, and who was trained on
    network_settings: ClassVar[tuple[str, ...]] = ("binning", "valid", "seed")
    collate = staticmethod(SHDDataset.collate)

    def __init__(
        self,
        train_file: str | os.PathLike[str],
        test_file: str | os.PathLike[str] | None = None,
        *,
        held_out: list[int] | None = None,
        valid: float | list[int] = 0.2,
        binning: Binning | None = None,
        batch_size: int = 8,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (test_file is None) != bool(held_out):
            raise ValueError(
                f"held_out must name speakers exactly where there is no test_file, got test_file={test_file}, "
                f"held_out={held_out}"
            )
        self._configure(valid, binning, batch_size, num_workers, seed)
        self.train_file, self.test_file, self.held_out = train_file, test_file, held_out

    def _configure(
        self, valid: float | list[int], binning: Binning | None, batch_size: int, num_workers: int | None, seed: int
    ) -> None:
        check_loading(batch_size, num_workers)
        if isinstance(valid, int | float) and not 0.0 <= valid < 1.0:
            raise ValueError(f"valid must be a fraction in [0, 1) or a list of speakers, got {valid}")
        self.valid, self.binning = valid, binning or Binning()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._parts: dict[str, SHDDataset] = {}

    @property
    def synthetic(self) -> list[SpokenDigits]:
        """Recordings that are made where they are not cached yet; none where all come from files."""
        return []

    @property
    def tested_on(self) -> str:
        """What a figure says its samples are."""
        return "synthetic spoken digits" if self.synthetic else Path(self.test_file or self.train_file).name

    @property
    def class_names(self) -> list[str]:
        """The word of each class."""
        return list(SHD_WORDS)

    def prepare_data(self) -> None:
        """Make synthetic recordings where they are not cached yet, in one process only."""
        for digits in self.synthetic:
            digits.recordings()

    def _read(self) -> tuple[SpikeRecordings, SpikeRecordings]:
        """All training and all test recordings."""
        check_files(train_file=self.train_file, test_file=self.test_file)
        recordings = read_shd(self.train_file)
        if self.test_file is not None:
            return recordings, read_shd(self.test_file)
        rest, unseen = split_speakers(recordings, self.held_out or [])
        tenth = _drawn(rest.size, 0.1, self.seed, stream=1)
        return recordings.subset(rest[~tenth]), recordings.subset(np.sort(np.concatenate((rest[tenth], unseen))))

    def setup(self, stage: str | None = None) -> None:
        """Read the recordings, once, and split them."""
        if self._parts:
            return
        train, test = self._read()
        chosen, held_back = self._split(train)
        if not chosen.size:
            raise ValueError(f"valid must leave samples to train on, got {self.valid} of {len(train)}")
        options = asdict(self.binning)
        self._parts = {
            "train": SHDDataset(train, indices=chosen, **options),
            "valid": SHDDataset(train, indices=held_back, **options),
            "test": SHDDataset(test, **options),
        }

    def _split(self, train: SpikeRecordings) -> tuple[Indices, Indices]:
        if isinstance(self.valid, list):
            return split_speakers(train, self.valid)
        drawn = _drawn(len(train), self.valid, self.seed, stream=0)
        return np.flatnonzero(~drawn), np.flatnonzero(drawn)

    def part(self, name: str) -> SHDDataset:
        """The data set "train", "valid" or "test"."""
        self.setup()
        return self._parts[name]

    @property
    def num_channels(self) -> int:
        """Channels of a sample after pooling."""
        return self.part("train").num_channels

    @property
    def seen_speakers(self) -> Tensor:
        """Speakers that are trained on, ascending, int64; empty where the file does not say."""
        speakers: Tensor = self.part("train").speakers.unique()
        return speakers[speakers >= 0]

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches in an order drawn anew for every epoch."""
        replicas, rank = processes_and_rank(self.trainer)
        dataset = self.part("train")
        return self._training_loader(
            dataset, Remaining(dataset, num_replicas=replicas, rank=rank, shuffle=True, seed=self.seed)
        )

    def val_dataloader(self) -> DataLoader[Any] | Sequence[Any]:
        """Validation batches; none where nothing is held back."""
        return self._loader(self.part("valid")) if len(self.part("valid")) else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches."""
        return self._loader(self.part("test"))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Test batches."""
        return self.test_dataloader()

    def _training_loader(self, dataset: Dataset[Any], sampler: Remaining) -> DataLoader[Any]:
        sampler.resume, sampler.batch_size = self.resume, self.batch_size
        return self._loader(dataset, sampler)


class SpokenDigitsDataModule(SHDDataModule):
    """Batches of :class:`elm_neuro.datasets.SpokenDigits`, made on the first use and cached: synthetic, nothing is
    downloaded.

    Args:
        num_train: number of training samples, before validation samples are taken out.
        num_test: number of test samples, two in three of them by speakers who do not train.
        cache_dir: folder of the cache, as in :class:`elm_neuro.datasets.SpokenDigits`.
        valid: as in :class:`SHDDataModule`, like all that follow.
        binning: how recordings become time steps.
        batch_size: samples of a batch.
        num_workers: processes that load; 0 loads in this one, None has two where a GPU trains.
        seed: of the split and of the training order; the recordings are always those of seed 0.
    """

    def __init__(
        self,
        *,
        num_train: int = 1440,
        num_test: int = 720,
        cache_dir: str | os.PathLike[str] | None = None,
        valid: float | list[int] = 0.1,
        binning: Binning | None = None,
        batch_size: int = 32,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        LightningDataModule.__init__(self)
        self._configure(valid, binning, batch_size, num_workers, seed)
        self.digits = [SpokenDigits("train", num_train, 0, cache_dir), SpokenDigits("test", num_test, 0, cache_dir)]

    @property
    def synthetic(self) -> list[SpokenDigits]:
        """Training and test digits."""
        return self.digits

    def _read(self) -> tuple[SpikeRecordings, SpikeRecordings]:
        train, test = self.digits
        return train.recordings(), test.recordings()


def check_files(**files: str | os.PathLike[str] | None) -> None:
    """Say where SHD is to be had, where a file is not there.

    Args:
        files: by the argument of the data module that names them; None is no file.

    Raises:
        FileNotFoundError: one does not exist.
    """
    for name, file in files.items():
        if file is not None and not os.path.exists(file):
            place = os.path.dirname(file) or "this folder"
            raise FileNotFoundError(
                f"--data.{name} must name an SHD-format HDF5 file, got {os.fspath(file)}, which does not exist: "
                + where_shd_is(place, ", or say with --data.train_file and --data.test_file where they are")
            )


def _drawn(num: int, fraction: float, seed: int, *, stream: int) -> NDArray[np.bool_]:
    """Which of `num` samples are drawn; sample i depends on (seed, stream, i) alone: Philox is counter-based."""
    random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, stream]))
    return random.random(num) < fraction
