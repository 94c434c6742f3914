"""Checkpoints that are written whole, hold weights only, and say by which settings they were trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from elm_neuro.files import whole_files


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints in files of this machine, each complete or what it was before, wherever TMPDIR lies; loading one runs
    nothing of it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: it cannot be written; the message names it, and the one before is still there.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_files(target) as (temporary,):
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Weights, settings and state of training, nothing else, whatever is asked.

        Raises:
            FileNotFoundError: there is no such file, or `path` is an address.
            pickle.UnpicklingError: it holds more than that.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f"a checkpoint must be a file on this machine, got {os.fspath(path)}")
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return checkpoint
