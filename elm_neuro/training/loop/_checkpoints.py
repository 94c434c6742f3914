"""Checkpoints that are written whole and hold weights only, one of them when the system ends a run."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO

from elm_neuro.checkpoints._load import load_weights
from elm_neuro.files import naming, whole_files

PROBE = 1 << 16  # bytes for which there is no room on a full disk


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
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError:  # of a full disk, in which torch names neither file nor reason: the system does
                with naming(target), temporary.open("ab") as file:
                    file.write(bytes(PROBE))
                raise

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Weights, settings and state of training, nothing else, whatever is asked.

        Raises:
            FileNotFoundError: there is no such file, or `path` is an address.
            ValueError: it is damaged, or holds more than that.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f"a checkpoint must be a file on this machine, got {os.fspath(path)}")
        try:
            checkpoint: dict[str, Any] = load_weights(path)
        except ValueError as error:
            raise ValueError(
                f"a checkpoint must be whole, of weights and settings, got {path}, which {error}"
            ) from error
        return checkpoint


TERMINATED = 128 + signal.SIGTERM  # what a shell gives for a command that SIGTERM ended


class KeepOnTermination(Callback):
    """On SIGTERM, as a batch system sends it, finishes the batch, or the validation of the epoch, writes a checkpoint
    and ends the process with status 143.

    Args:
        path: of the checkpoint, in the place of the one before.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.asked = Path(path), False
        self._before: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the signal from here on, in place of Lightning's handler, which ends with status 0 and no checkpoint."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """End here if the signal came; after the last batch, at the end of the epoch."""
        if self._asked(trainer) and not trainer.is_last_batch:
            self._end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End here if the signal came."""
        if self._asked(trainer):
            self._end(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the signal to who had it."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the signal to who had it."""
        self._restore()

    def _note(self, *_: Any) -> None:
        self.asked = True

    def _asked(self, trainer: Trainer) -> bool:
        """Whether any process got the signal: they end at the same batch."""
        return bool(trainer.strategy.reduce_boolean_decision(self.asked, all=False))

    def _end(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
        raise SystemExit(TERMINATED)

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
