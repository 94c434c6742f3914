"""Lightning data module of NeuronIO: windows for training, validation and test, from converted files or straight from
the pickles.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from elm_neuro.datasets import NeuronIODataset, convert_neuronio, split_files
from elm_neuro.datasets.neuronio._convert import converted_names
from elm_neuro.datasets.neuronio._store import converted_files
from elm_neuro.datasets.neuronio._windows import SPLITS, Output
from elm_neuro.files import cache_folder
from elm_neuro.training.loop._sampling import InListOrder, ResumesInEpoch, check_loading, parts_of, processes_and_rank

STREAM = 1_000_003  # between the seeds of the parts


class NeuronIODataModule(ResumesInEpoch):
    """Batches of :class:`elm_neuro.datasets.NeuronIODataset`: (input, spikes, soma).

    The windows of an epoch depend on (seed, epoch) alone: they are the same for any number of workers, and a run that
    is resumed from a checkpoint, in the middle of an epoch too, goes on with the next one. Validation and test windows
    are the same in every epoch.

    Args:
        data: folder of files that ``elm-neuro neuronio convert`` made, or of pickles: these are converted into
            `cache_dir` the first time.
        train: names of files or folders in `data` to train on, with wildcards such as "full_ergodic_train_batch_*";
            None takes what Kaggle's folders are for: ``full_ergodic_train_batch_2`` to ``_10``.
        valid: to validate on; None takes ``full_ergodic_train_batch_1``.
        test: to test on; None takes ``Data_test``.
        num_batches: of an epoch, of the validation and of the test, over all processes; the paper's epoch has 11,400.
        batch_size: windows of a batch, 8 in the paper.
        window_ms: length of a window.
        skip_ms: how much of the start of each simulation is never in a window.
        output: "events", or dense frames: "int8", which become floating on the device, or "frames".
        num_workers: processes that load; 0 loads in this one, None has two where a GPU trains.
        seed: of the windows.
        cache_dir: where pickles are converted to; ``$XDG_CACHE_HOME/elm_neuro/neuronio`` or
            ``~/.cache/elm_neuro/neuronio`` by default.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it for a part that is used.
        ValueError: an argument is out of range, or a file is damaged.
    """

    network_settings: ClassVar[tuple[str, ...]] = ("window_ms", "skip_ms")  # what `test` takes from a checkpoint
    collate = staticmethod(NeuronIODataset.collate)

    def __init__(
        self,
        data: str | os.PathLike[str],
        *,
        train: list[str] | None = None,
        valid: list[str] | None = None,
        test: list[str] | None = None,
        num_batches: tuple[int, int, int] = (11_400, 300, 300),
        batch_size: int = 8,
        window_ms: int = 500,
        skip_ms: int = 500,
        output: Output = "events",
        num_workers: int | None = None,
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        check_loading(batch_size, num_workers)
        if len(num_batches) != 3 or min(num_batches) < 1:
            raise ValueError(
                f"num_batches must be three numbers of at least 1, for training, validation and test, got {num_batches}"
            )
        if not Path(data).is_dir():
            raise FileNotFoundError(f"data must be a folder of NeuronIO files, got {data}, which is none")
        # from other folders too
        self.data, self.patterns = Path(os.path.abspath(data)), {"train": train, "valid": valid, "test": test}
        self.num_batches, self.batch_size, self.window_ms, self.skip_ms = (
            tuple(num_batches),
            batch_size,
            window_ms,
            skip_ms,
        )
        self.output, self.num_workers, self.seed, self.cache_dir = (
            output,
            num_workers,
            seed,
            cache_dir and os.path.abspath(cache_dir),
        )
        self._parts: dict[str, NeuronIODataset] = {}

    def prepare_data(self) -> None:
        """Convert pickles into the cache where there are no converted files, in one process only."""
        if not converted_files(self.data):
            rank_zero_info(f"Converting the pickles of {self.data} into {self._cache()}, once")
            convert_neuronio([self.data], self._cache(), num_workers=max(1, self.num_workers or 0))

    def _cache(self) -> Path:
        folder = cache_folder("neuronio") if self.cache_dir is None else Path(self.cache_dir)
        folder = folder / hashlib.sha256(str(self.data.resolve()).encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def files(self, part: str) -> list[Path]:
        """The converted files of "train", "valid" or "test".

        Raises:
            FileNotFoundError: there are none.
        """
        root = self.data if converted_files(self.data) else self._cache()
        patterns = self.patterns[part]
        if patterns is None:
            files = split_files(root)[part]
        else:
            matched = {path for pattern in patterns for path in root.rglob(pattern)}
            files = sorted({file for path in matched for file in converted_files(path)})
        if root != self.data:  # of pickles that are still there
            there = {root / name for name in converted_names([self.data])}
            files = [file for file in files if file in there]
        if not files:
            wanted = " or ".join(SPLITS[part]) if patterns is None else ", ".join(patterns)
            raise FileNotFoundError(f"{part} needs NeuronIO files in {wanted}, got none in {root}")
        return files

    def part(self, name: str) -> NeuronIODataset:
        """The data set "train", "valid" or "test"."""
        if name not in self._parts:
            number = list(SPLITS).index(name)
            self._parts[name] = NeuronIODataset(
                self.files(name),
                num_windows=self.num_batches[number] * self.batch_size,
                window_ms=self.window_ms,
                skip_ms=self.skip_ms,
                output=self.output,
                seed=self.seed + number * STREAM,
            )
        return self._parts[name]

    def setup(self, stage: str | None = None) -> None:
        """Open the files that `stage` needs."""
        for name in parts_of(stage):
            if name == "train" or self._has(name):
                self.part(name)

    def _has(self, name: str) -> bool:
        """Whether there is anything to validate on: an empty list says that there is not to be."""
        return self.patterns[name] != []

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches, those of the epoch in their order."""
        replicas, rank = processes_and_rank(self.trainer)
        dataset = self.part("train")
        sampler = InListOrder(dataset, num_replicas=replicas, rank=rank, shuffle=False)
        sampler.resume, sampler.batch_size = self.resume, self.batch_size
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> DataLoader[Any] | Sequence[Any]:
        """Validation batches; none where `valid` is an empty list."""
        return self._loader(self.part("valid")) if self._has("valid") else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches."""
        return self._loader(self.part("test"))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Test batches."""
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Frames of int8 become floating once they are on the device."""
        x, *rest = batch
        return (x.to(rest[0].dtype), *rest) if isinstance(x, Tensor) and x.dtype == torch.int8 else batch
