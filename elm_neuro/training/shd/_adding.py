"""Lightning data module of SHD-Adding: sums of two spoken digits, on the fixed protocol or the authors'."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from elm_neuro.datasets import FixedPairing, SHDAdding, SpikeRecordings, SpokenDigits
from elm_neuro.datasets.shd._pairs import NUM_SUMS, Split
from elm_neuro.datasets.shd._protocols import Group, read_source
from elm_neuro.training.loop._sampling import InListOrder, parts_of, processes_and_rank
from elm_neuro.training.shd._data import Binning, SHDDataModule, check_files

SPLITS: dict[str, Split] = {"train": "train", "valid": "validation", "test": "test"}


class SHDAddingDataModule(SHDDataModule):
    """Training, validation and test batches of :class:`elm_neuro.datasets.SHDAdding`: two digits one after the other,
    their sum in 19 classes.

    Batches are (x, sums, speakers): :class:`SpikeEvents` or frames (batch, time, channel), (batch,) and (batch, 2)
    int64. Every epoch has the next pairs of the training list, in its order, so that a resumed run goes on as one that
    was never stopped, in the middle of an epoch too.

    The fingerprint of each list is printed where it is first used, goes to the logger's hyperparameters and into the
    checkpoint.

    Args:
        train_file: SHD-format file, or :class:`elm_neuro.datasets.SpokenDigits`, of the digits to train and validate
            on.
        test_file: of those to test on; None tests on speakers of `train_file` that are held out.
        pairing: "fixed" is the fixed protocol v1, "upstream" the authors' lists (needs `test_file`).
        speakers: test pairs of "all" speakers, of those "seen" in training, or "heldout": of nobody in `train_file`.
        valid: speakers held out for validation; None is the protocol's choice. Only with "fixed".
        held_out: speakers held out for testing where there is no `test_file`; None is the protocol's choice.
        num_pairs: pairs of an epoch, of validation and of the test; None is the protocol's, 8192, 2048 and 4096, or the
            authors'.
        binning: how recordings become time steps; `duration_ms` is the window of one digit.
        batch_size: pairs of a batch; the last batch may be smaller, none is dropped.
        num_workers: processes that load; 0 loads in this one, None has two where a GPU trains.
        seed: of the protocol, which is to be 0 where results are compared: runs differ by ``seed_everything``.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: an argument is out of range or does not go with `pairing`, or the protocol finds nobody to train or
            test on.
    """

    network_settings = ("binning", "pairing", "valid", "held_out", "seed")

    def __init__(
        self,
        train_file: str | os.PathLike[str] | SpokenDigits,
        test_file: str | os.PathLike[str] | SpokenDigits | None = None,
        *,
        pairing: Literal["fixed", "upstream"] = "fixed",
        speakers: Literal["all", "seen", "heldout"] = "all",
        valid: list[int] | None = None,
        held_out: list[int] | None = None,
        num_pairs: tuple[int, int, int] | None = None,
        binning: Binning | None = None,
        batch_size: int = 8,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        LightningDataModule.__init__(self)
        if pairing not in ("fixed", "upstream"):
            raise ValueError(f'pairing must be "fixed" or "upstream", got {pairing!r}')
        if pairing == "upstream" and (valid is not None or held_out is not None):
            raise ValueError(
                'valid and held_out must be None with pairing="upstream", which mixes speakers, '
                f"got {valid} and {held_out}"
            )
        if num_pairs is not None and (len(num_pairs) != 3 or min(num_pairs) < 1):
            raise ValueError(
                f"num_pairs must be three numbers of at least 1, for training, validation and test, got {num_pairs}"
            )
        self._configure(0.0, binning, batch_size, num_workers, seed)
        self.source, self.test_source, self.pairing, self.speakers = train_file, test_file, pairing, speakers
        self.valid_speakers, self.held_out, self.num_pairs = valid, held_out, num_pairs
        self._lists: dict[str, SHDAdding] = {}
        self._sources: dict[str, SpikeRecordings] = {}
        self._announced: set[str] = set()

    @property
    def synthetic(self) -> list[SpokenDigits]:
        """The digits of the pairs, as far as they are made up."""
        return [source for source in (self.source, self.test_source) if isinstance(source, SpokenDigits)]

    @property
    def tested_on(self) -> str:
        """What a figure says its samples are."""
        source = self.test_source or self.source
        return f"sums of two digits of {'synthetic speech' if isinstance(source, SpokenDigits) else Path(source).name}"

    @property
    def class_names(self) -> list[str]:
        """The sums, as numbers."""
        return [str(total) for total in range(NUM_SUMS)]

    def setup(self, stage: str | None = None) -> None:
        """Read the recordings that `stage` needs, once, and print the fingerprints of its lists."""
        sources = {"train_file": self.source, "test_file": self.test_source}
        check_files(**{name: file for name, file in sources.items() if not isinstance(file, SpokenDigits)})
        for name in parts_of(stage):
            self.part(name)
            self._announce(name)

    def part(self, name: str) -> SHDAdding:  # type: ignore[override]  # a list of pairs where the base class has samples
        """The list "train", "valid" or "test"."""
        if name not in self._lists:
            self._lists[name] = self._make(SPLITS[name])
        return self._lists[name]

    def _make(self, split: Split) -> SHDAdding:
        group: Group = self.speakers if split == "test" else "all"
        fixed = FixedPairing(
            *(None if chosen is None else tuple(chosen) for chosen in (self.valid_speakers, self.held_out))
        )
        # the authors round a digit's window up to whole steps
        whole = self.pairing == "upstream" and self.binning.duration_ms == 1000.0
        return SHDAdding(
            self._recordings(self.source),
            None if self.test_source is None else self._recordings(self.test_source),
            split=split,
            num_samples=None if self.num_pairs is None else self.num_pairs[list(SPLITS.values()).index(split)],
            seed=self.seed,
            speakers=group,
            pairing=fixed if self.pairing == "fixed" else "upstream",
            bin_ms=self.binning.bin_ms,
            digit_ms=None if whole else self.binning.duration_ms,
            output=self.binning.output,
            binary=self.binning.binary,
            pool=self.binning.pool,
            scale=self.binning.scale,
        )

    def _recordings(self, source: str | os.PathLike[str] | SpokenDigits) -> SpikeRecordings:
        """The recordings of `source`, read once."""
        key = repr(source)
        if key not in self._sources:
            self._sources[key] = read_source(source)
        return self._sources[key]

    def _announce(self, name: str) -> None:
        if name in self._announced:
            return
        self._announced.add(name)
        pairs = self._lists[name]
        rank_zero_info(
            f"SHD-Adding, {self.pairing} pairing, {SPLITS[name]} list of {len(pairs)} pairs: "
            f"fingerprint {pairs.fingerprint}"
        )
        logger = None if self.trainer is None else self.trainer.logger
        if logger is not None:
            logger.log_hyperparams({f"fingerprint/{kind}": part.fingerprint for kind, part in self._lists.items()})

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: where training is, and the fingerprints of the lists in use."""
        return super().state_dict() | self.fingerprints

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the lists in use, by "train", "valid" and "test"."""
        return {name: pairs.fingerprint for name, pairs in self._lists.items()}

    @property
    def num_classes(self) -> int:
        """Sums from 0 to 18."""
        return NUM_SUMS

    @property
    def seen_speakers(self) -> Tensor:
        """Speakers of the digits that training pairs are drawn from, ascending, int64; empty where the file does not
        say.
        """
        return _speakers(self.part("train"))

    @property
    def validation_speakers(self) -> Tensor:
        """Speakers of the digits that validation pairs are drawn from, as `seen_speakers`."""
        return _speakers(self.part("valid"))

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches: the list of the epoch, in its order."""
        replicas, rank = processes_and_rank(self.trainer)
        dataset = self.part("train")
        return self._training_loader(dataset, InListOrder(dataset, num_replicas=replicas, rank=rank, shuffle=False))


def _speakers(dataset: SHDAdding) -> Tensor:
    known = dataset.recordings.speakers
    return (
        torch.empty(0, dtype=torch.int64, device="cpu")
        if known is None
        else torch.from_numpy(known[dataset.digits]).unique()
    )
