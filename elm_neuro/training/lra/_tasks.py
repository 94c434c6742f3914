"""Lightning data modules of Long Range Arena, one a task: what is read or made, and how it is cached."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

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
from elm_neuro.training.lra._data import PathLike, TokenDataModule


class ListOpsDataModule(TokenDataModule):
    """ListOps: the published files, or a file of ``elm-neuro lra generate listops``.

    Args:
        source: folder with basic_train.tsv, basic_val.tsv and basic_test.tsv, or a generated file, of which the last
            ones validate and test.
        convention: whose ids: "mega" (25 inputs, the paper's), "s4" or "google".
        max_length: of a sequence; None is the loader's.
        num_held_out: of a generated file, sequences that validate, and as many that test; of fewer than 20,000 a tenth.
        batch_size: as in :class:`TokenDataModule`, like all that follow.
        num_workers: processes that load; 0 loads in this one, None has two where a GPU trains.
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
        num_workers: int | None = None,
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
        num_workers: processes that load; 0 loads in this one, None has two where a GPU trains.
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
        num_workers: int | None = None,
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
        num_workers: processes that load; 0 loads in this one, None has two where a GPU trains.
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
        num_workers: int | None = None,
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
        num_workers: processes that load; 0 loads in this one, None has two where a GPU trains.
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
        num_workers: int | None = None,
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
        num_workers: processes that load; 0 loads in this one, None has two where a GPU trains.
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
        num_workers: int | None = None,
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
        num_workers: processes that load; 0 loads in this one, None has two where a GPU trains.
        seed: of the training order.
    """

    network_settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, batch_size: int = 32, num_workers: int | None = None, seed: int = 0) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, cache_dir=None)

    def read(self) -> dict[str, TokenDataset]:
        """The three parts."""
        return _whole(read_digits())


def _whole(parts: dict[str, TokenSequences]) -> dict[str, TokenDataset]:
    return {name: TokenDataset(sequences) for name, sequences in parts.items()}
