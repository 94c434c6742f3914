"""Progress where there is no terminal to draw a bar on: in files, pipes and batch systems."""

from __future__ import annotations

import sys
import time

from lightning import Callback, LightningModule, Trainer

SHOWN = ("train/loss", "train/accuracy", "valid/loss", "valid/accuracy")


class Size(Callback):
    """One line on standard error: what is trained, and how many parameters it has.

    Args:
        title: what the network is called; its class where that is empty.
    """

    def __init__(self, title: str = "") -> None:
        self.title = title

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line."""
        if trainer.is_global_zero:
            counts = [(one.numel(), one.requires_grad) for one in pl_module.parameters()]
            trained, total = sum(count for count, trains in counts if trains), sum(count for count, _ in counts)
            network = self.title or type(getattr(pl_module, "network", pl_module)).__name__
            of = "" if trained == total else f", {trained:,} of them trained"
            print(f"{network}: {total:,} parameters{of}", file=sys.stderr, flush=True)  # noqa: T201  # it is for people


class EpochLines(Callback):
    """One line an epoch on standard error: epoch, metrics, seconds, and when the rest will be done.

    Args:
        title: said before the epoch, where several networks are trained.
    """

    def __init__(self, title: str = "") -> None:
        self.title = title

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start, self._first = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line."""
        if sys.stdout.isatty() or not trainer.is_global_zero:
            return
        done, total = trainer.current_epoch + 1, trainer.max_epochs
        spent = time.monotonic() - self._start
        metrics = [
            f"{name} {float(trainer.callback_metrics[name]):.4g}" for name in SHOWN if name in trainer.callback_metrics
        ]
        of, left = "", _time_remaining(trainer)
        if total and total > 0:
            by_epochs = spent / (done - self._first) * (total - done)
            if left is None or by_epochs <= left:
                of, left = f" of {total}", by_epochs
        until = "" if left is None else f", {max(left, 0.0):.0f} s left"
        line = f"{self.title and self.title + ', '}epoch {done}{of}: {', '.join(metrics)}; {spent:.0f} s{until}"
        print(line, file=sys.stderr, flush=True)  # noqa: T201  # it is for people


def _time_remaining(trainer: Trainer) -> float | None:
    """Seconds until a callback ends the run by the clock, as Lightning's Timer (``--trainer.max_time``) and TimeBudget
    do; None where none does.
    """
    clocks = [callback.time_remaining() for callback in trainer.callbacks if hasattr(callback, "time_remaining")]  # type: ignore[attr-defined]
    return min((seconds for seconds in clocks if seconds is not None), default=None)
