"""What the data modules of Long Range Arena share: padded batches, in an order that goes on where it was stopped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from elm_neuro.backends.parts._shapes import bounds_of, remember_bounds
from elm_neuro.datasets.lra import TokenBatch, TokenDataset
from elm_neuro.training.loop._sampling import ResumesInEpoch, check_loading, processes_and_rank
from elm_neuro.training.lra._sampling import BucketOrder

PathLike = str | os.PathLike[str]


class TokenDataModule(ResumesInEpoch):
    """Training, validation and test batches of token sequences: the base of those that follow.

    Batches are :class:`elm_neuro.datasets.lra.TokenBatch`. The order of the training items depends on (seed, epoch)
    alone, so that a resumed run goes on as one that was never stopped, in the middle of an epoch too; those of a batch
    are about equally long. What was read from files is kept in a cache by their content and the settings.

    Args:
        batch_size: items of a batch in each process; the last batch may be smaller, none is dropped.
        num_workers: processes that load; 0 loads in this one, None has two where a GPU trains.
        seed: of the training order.
        cache_dir: folder of the cache; None is ``elm_neuro/lra`` in ``$XDG_CACHE_HOME`` or else ``~/.cache``.

    Raises:
        ValueError: `batch_size` is not at least 1.
    """

    network_settings: ClassVar[tuple[str, ...]] = ("convention", "max_length")
    collate = staticmethod(TokenDataset.collate)

    def __init__(self, *, batch_size: int, num_workers: int | None, seed: int, cache_dir: PathLike | None) -> None:
        super().__init__()
        check_loading(batch_size, num_workers)
        self.batch_size, self.num_workers, self.seed, self.cache_dir = batch_size, num_workers, seed, cache_dir
        self._parts: dict[str, TokenDataset] = {}

    def read(self) -> dict[str, TokenDataset]:
        """The data sets "train", "valid" and "test"."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Fill the cache, in one process only."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read the sequences, once, and say what they are."""
        if self._parts:
            return
        self._parts = self.read()
        if not len(self._parts["train"]):
            raise ValueError("the data must leave items to train on, got none")
        sizes = ", ".join(f"{len(part):,} {name}" for name, part in self._parts.items())
        longest = max(int(part.lengths.max()) for part in self._parts.values() if len(part))
        rank_zero_info(f"{type(self).__name__}: {sizes}; {self.num_tokens} tokens, longest {longest:,}")

    def part(self, name: str) -> TokenDataset:
        """The data set "train", "valid" or "test"."""
        self.setup()
        return self._parts[name]

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return self.part("train").sequences.num_tokens

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.part("train").sequences.num_classes

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups that accuracy is told for; of ListOps the root operators."""
        return self.part("train").sequences.group_names

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches in an order drawn anew for every epoch."""
        replicas, rank = processes_and_rank(self.trainer)
        dataset = self.part("train")
        sampler = BucketOrder(
            dataset, dataset.lengths, batch_size=self.batch_size, num_replicas=replicas, rank=rank, seed=self.seed
        )
        sampler.resume = self.resume
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> DataLoader[Any] | Sequence[Any]:
        """Validation batches; none where nothing is held back."""
        return self._loader(self._by_length(self.part("valid"))) if len(self.part("valid")) else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches."""
        return self._loader(self._by_length(self.part("test")))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Test batches, in the order of the data."""
        return self._loader(self.part("test"))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """As Lightning's; no layer waits for a GPU to say that the lengths fit, which is seen before they go there."""
        there = super().transfer_batch_to_device(batch, device, dataloader_idx)
        if isinstance(there, TokenBatch):
            remember_bounds(there.lengths, bounds_of(batch.lengths))
        return there

    @staticmethod
    def _by_length(dataset: TokenDataset) -> TokenDataset:
        """The same items, the longest first: less padding, and what does not fit into memory is known at once."""
        return TokenDataset(dataset.sequences, dataset.indices[np.argsort(-dataset.lengths, kind="stable")])
