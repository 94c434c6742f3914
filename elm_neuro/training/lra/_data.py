"""Lightning data modules of Long Range Arena: what is read or made, how it is cached, in which order it trains."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from elm_neuro.datasets.lra import (
    Convention,
    MadeListOps,
    TokenDataset,
    TokenSequences,
    cached,
    content_key,
    held_out,
    pathfinder_split,
    read_digits,
    read_image,
    read_listops,
    read_pathfinder,
    read_retrieval,
    read_text,
)
from elm_neuro.datasets.lra._listops_file import encode_made, listops_vocabulary
from elm_neuro.datasets.lra._release import check_folder
from elm_neuro.datasets.lra._vocabulary import check_convention
from elm_neuro.training.loop._sampling import Resumable, ResumesInEpoch, processes_and_rank
from elm_neuro.training.lra._sampling import BucketOrder

PathLike = str | os.PathLike[str]


class TokenDataModule(ResumesInEpoch):
    """Training, validation and test batches of token sequences: the base of those that follow.

    Batches are :class:`elm_neuro.datasets.lra.TokenBatch`. The order of the training items depends on (seed, epoch)
    alone, so that a resumed run goes on as one that was never stopped, in the middle of an epoch too; those of a batch
    are about equally long. What was read from files is kept in a cache by their content and the settings.

    Args:
        batch_size: items of a batch in each process; the last batch may be smaller, none is dropped.
        num_workers: processes that load.
        seed: of the training order.
        cache_dir: folder of the cache; None is ``elm_neuro/lra`` in ``$XDG_CACHE_HOME`` or else ``~/.cache``.

    Raises:
        ValueError: `batch_size` is not at least 1.
    """

    network_settings: ClassVar[tuple[str, ...]] = ("convention", "max_length")

    def __init__(self, *, batch_size: int, num_workers: int, seed: int, cache_dir: PathLike | None) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
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
        return self._loader(dataset, sampler, Resumable)

    def val_dataloader(self) -> DataLoader[Any] | Sequence[Any]:
        """Validation batches; none where nothing is held back."""
        return self._loader(self._by_length(self.part("valid"))) if len(self.part("valid")) else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches."""
        return self._loader(self._by_length(self.part("test")))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Test batches, in the order of the data."""
        return self._loader(self.part("test"))

    @staticmethod
    def _by_length(dataset: TokenDataset) -> TokenDataset:
        """The same items, the longest first: less padding, and what does not fit into memory is known at once."""
        return TokenDataset(dataset.sequences, dataset.indices[np.argsort(-dataset.lengths, kind="stable")])

    def _loader(
        self, dataset: TokenDataset, sampler: BucketOrder | None = None, kind: type[DataLoader[Any]] = DataLoader
    ) -> DataLoader[Any]:
        return kind(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=TokenDataset.collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


class ListOpsDataModule(TokenDataModule):
    """ListOps: the published files, or a file of ``elm-neuro lra generate listops``.

    Args:
        source: folder with basic_train.tsv, basic_val.tsv and basic_test.tsv, or a generated file, of which the last
            ones validate and test.
        convention: whose ids: "mega" (25 inputs, the paper's), "s4" or "google".
        max_length: of a sequence; None is the loader's.
        num_held_out: of a generated file, sequences that validate, and as many that test; of fewer than 20,000 a tenth.
        batch_size: as in :class:`TokenDataModule`, like all that follow.
        num_workers: processes that load.
        seed: of the training order.
        cache_dir: folder of the cache.
    """

    def __init__(
        self,
        source: PathLike,
        *,
        convention: Convention = "mega",
        max_length: int | None = None,
        num_held_out: int = 2000,
        batch_size: int = 384,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: PathLike | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, cache_dir=cache_dir)
        check_convention(convention)
        if num_held_out < 1:
            raise ValueError(f"num_held_out must be at least 1, got {num_held_out}")
        self.source, self.convention, self.max_length = Path(source), convention, max_length
        self.num_held_out = num_held_out

    def read(self) -> dict[str, TokenDataset]:
        """The three parts."""
        settings = {"convention": self.convention, "max_length": self.max_length}
        if self.source.is_file():
            key = content_key([self.source], {**settings, "held_out": self.num_held_out})
            return _whole(cached("listops", key, self._made, self.cache_dir))
        check_folder(self.source, "ListOps")
        key = content_key(sorted(self.source.glob("basic_*.tsv")), settings)
        return _whole(
            cached(
                "listops",
                key,
                lambda: read_listops(self.source, self.convention, max_length=self.max_length),
                self.cache_dir,
            )
        )

    def _made(self) -> dict[str, TokenSequences]:
        made = MadeListOps.load(self.source)
        num = len(made)
        held_back = min(self.num_held_out, num // 10)
        if held_back < 1:
            raise ValueError(f"{self.source} must have at least 10 sequences to hold some back, got {num}")
        bounds = (0, num - 2 * held_back, num - held_back, num)
        parts = [made.sequences(first, last) for first, last in zip(bounds[:-1], bounds[1:], strict=True)]
        vocabulary = listops_vocabulary([parts[0].tokens], self.convention, max_length=self.max_length)
        encoded = [encode_made(part, vocabulary) for part in parts]
        return dict(zip(("train", "valid", "test"), encoded, strict=True))


class TextDataModule(TokenDataModule):
    """Film reviews, good or bad, as bytes or characters: :func:`elm_neuro.datasets.lra.read_text`.

    Args:
        folder: aclImdb.
        convention: whose ids: "mega" (169 inputs, the paper's), "s4" or "google".
        max_length: of a sequence; None is the loader's.
        valid: share of the training samples that validate, drawn by seed 42; 0 validates on the test set, as all three
            loaders do.
        undecodable: "refuse" or "replace" bytes that are no UTF-8.
        batch_size: as in :class:`TokenDataModule`, like all that follow.
        num_workers: processes that load.
        seed: of the training order.
        cache_dir: folder of the cache.
    """

    network_settings: ClassVar[tuple[str, ...]] = ("convention", "max_length", "valid")

    def __init__(
        self,
        folder: PathLike,
        *,
        convention: Convention = "mega",
        max_length: int | None = None,
        valid: float = 0.1,
        undecodable: str = "refuse",
        batch_size: int = 384,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: PathLike | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, cache_dir=cache_dir)
        check_convention(convention)
        if not 0.0 <= valid < 1.0:
            raise ValueError(f"valid must be in [0, 1), got {valid}")
        self.folder, self.convention, self.max_length = Path(folder), convention, max_length
        self.valid, self.undecodable = valid, undecodable

    def read(self) -> dict[str, TokenDataset]:
        """The three parts."""
        check_folder(self.folder, "Text")
        settings = {"convention": self.convention, "max_length": self.max_length, "undecodable": self.undecodable}
        folders = [self.folder / part / name for part in ("train", "test") for name in ("neg", "pos")]
        key = content_key([folder for folder in folders if folder.is_dir()], settings)
        read = cached(
            "text",
            key,
            lambda: read_text(
                self.folder,
                self.convention,
                max_length=self.max_length,
                undecodable="replace" if self.undecodable == "replace" else "refuse",
            ),
            self.cache_dir,
        )
        if not self.valid:
            return _whole({"train": read["train"], "valid": read["test"], "test": read["test"]})
        return _whole(held_out(read["train"], self.valid) | {"test": read["test"]})


class RetrievalDataModule(TokenDataModule):
    """Pairs of papers, of which one cites the other or not: :func:`elm_neuro.datasets.lra.read_retrieval`.

    Args:
        folder: tsv_data.
        convention: whose ids: "mega" (105 inputs, the paper's), "s4" or "google".
        max_length: of a sequence; None is the loader's.
        quoting: read quotes as S4 and S5 do, which swallows rows.
        undecodable: "refuse" or "replace" bytes that are no UTF-8.
        batch_size: pairs of a batch; as in :class:`TokenDataModule`, like all that follow.
        num_workers: processes that load.
        seed: of the training order.
        cache_dir: folder of the cache.
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        convention: Convention = "mega",
        max_length: int | None = None,
        quoting: bool = False,
        undecodable: str = "refuse",
        batch_size: int = 384,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: PathLike | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, cache_dir=cache_dir)
        check_convention(convention)
        self.folder, self.convention, self.max_length = Path(folder), convention, max_length
        self.quoting, self.undecodable = quoting, undecodable

    def read(self) -> dict[str, TokenDataset]:
        """The three parts."""
        check_folder(self.folder, "Retrieval")
        settings = {
            "convention": self.convention,
            "max_length": self.max_length,
            "quoting": self.quoting,
            "undecodable": self.undecodable,
        }
        key = content_key(sorted(self.folder.glob("new_aan_pairs.*.tsv")), settings)
        return _whole(
            cached(
                "retrieval",
                key,
                lambda: read_retrieval(
                    self.folder,
                    self.convention,
                    max_length=self.max_length,
                    quoting=self.quoting,
                    undecodable="replace" if self.undecodable == "replace" else "refuse",
                ),
                self.cache_dir,
            )
        )


class ImageDataModule(TokenDataModule):
    """CIFAR-10 in grey, pixel by pixel: :func:`elm_neuro.datasets.lra.read_image`.

    Args:
        folder: cifar-10-batches-py, or a folder of PNG or parquet files.
        convention: how colours become grey, and which images validate.
        num_levels: grey levels, 16 in the paper, or 256.
        batch_size: as in :class:`TokenDataModule`, like all that follow.
        num_workers: processes that load.
        seed: of the training order.
        cache_dir: folder of the cache.
    """

    network_settings: ClassVar[tuple[str, ...]] = ("convention", "num_levels")

    def __init__(
        self,
        folder: PathLike,
        *,
        convention: Convention = "mega",
        num_levels: int = 16,
        batch_size: int = 384,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: PathLike | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, cache_dir=cache_dir)
        check_convention(convention)
        self.folder, self.convention, self.num_levels = Path(folder), convention, num_levels

    def read(self) -> dict[str, TokenDataset]:
        """The three parts."""
        check_folder(self.folder, "Image")
        key = content_key([self.folder], {"convention": self.convention, "num_levels": self.num_levels})
        return _whole(
            cached(
                "image",
                key,
                lambda: read_image(self.folder, self.convention, num_levels=self.num_levels),
                self.cache_dir,
            )
        )


class PathfinderDataModule(TokenDataModule):
    """Pathfinder pixel by pixel, from the release or of ``elm-neuro lra generate pathfinder``:
    :func:`elm_neuro.datasets.lra.read_pathfinder`.

    Args:
        folder: pathfinder32 or pathfinder128.
        size: of the images' sides: 32, 64, or 128 of Pathfinder-X.
        convention: which images validate and test: "google" as they come, "s4" and "mega" drawn by seed 42.
        num_levels: grey levels; None for the paper's: 16, or 8 of Pathfinder-X.
        batch_size: as in :class:`TokenDataModule`, like all that follow.
        num_workers: processes that load.
        seed: of the training order.
        cache_dir: folder of the cache.
    """

    network_settings: ClassVar[tuple[str, ...]] = ("size", "convention", "num_levels")

    def __init__(
        self,
        folder: PathLike,
        *,
        size: int = 32,
        convention: Convention = "mega",
        num_levels: int | None = None,
        batch_size: int = 384,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: PathLike | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, cache_dir=cache_dir)
        check_convention(convention)
        self.folder, self.size, self.convention, self.num_levels = Path(folder), size, convention, num_levels

    def read(self) -> dict[str, TokenDataset]:
        """The three parts."""
        check_folder(self.folder, "Pathfinder")
        key = content_key([self.folder], {"size": self.size, "num_levels": self.num_levels})
        images = cached(
            "pathfinder",
            key,
            lambda: {"all": read_pathfinder(self.folder, self.size, num_levels=self.num_levels)},
            self.cache_dir,
        )["all"]
        split = pathfinder_split(len(images), self.convention)
        return {name: TokenDataset(images, indices) for name, indices in split.items()}


class SequentialDigitsDataModule(TokenDataModule):
    """Handwritten digits pixel by pixel, of scikit-learn: :func:`elm_neuro.datasets.lra.read_digits`.

    Args:
        batch_size: as in :class:`TokenDataModule`, like all that follow.
        num_workers: processes that load.
        seed: of the training order.
    """

    network_settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, batch_size: int = 32, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, cache_dir=None)

    def read(self) -> dict[str, TokenDataset]:
        """The three parts."""
        return _whole(read_digits())


def _whole(parts: dict[str, TokenSequences]) -> dict[str, TokenDataset]:
    return {name: TokenDataset(sequences) for name, sequences in parts.items()}
