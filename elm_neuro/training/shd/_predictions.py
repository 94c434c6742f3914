"""What `elm-neuro predict` leaves behind: a table of class probabilities."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from elm_neuro.files import whole_files


class PredictionWriter(BasePredictionWriter):
    """Writes the probabilities of :class:`SpikeClassification` as comma-separated values, complete or not at all.

    One row a sample in the order of the data set: its index, the most probable class, the probability of each class.

    Args:
        path: the file; its folder is made. With several processes each writes its own part, with ``-rank1`` and so on
            in the name.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(write_interval="epoch")
        self.path = Path(path)

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Write the table."""
        probability = torch.cat(list(predictions)).float().cpu().numpy()  # (sample, class)
        index = np.concatenate([np.asarray(batch) for batch in batch_indices[0]])
        table = np.column_stack((index, probability.argmax(1), probability))
        header = ",".join(["sample", "class", *(f"p{label}" for label in range(probability.shape[1]))])
        path = self.path.with_stem(f"{self.path.stem}-rank{trainer.global_rank}") if trainer.global_rank else self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        formats = ["%d", "%d", *["%.6g"] * probability.shape[1]]
        with whole_files(path) as (temporary,):
            np.savetxt(temporary, table, fmt=formats, delimiter=",", header=header, comments="")
