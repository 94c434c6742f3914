"""Training that ends at a given time, with a learning rate that has come down to 0 by then."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

MEASURED = 20  # updates after which the number of all updates is estimated


class TimeBudget(Callback):
    """Ends training after some minutes, and lets the learning rate follow a cosine over this time, not over epochs.

    Time counts from the making of this callback, which comes before data are read, and goes on where a run is resumed:
    reading, compilation and validation are part of it. `reserve_s` is what is left for the last validation, the start
    of the program and a test. A line on standard error says how many updates are to be expected.

    Args:
        minutes: above 0.
        reserve_s: seconds at the end without training, less than the budget.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, minutes: float = 10.0, reserve_s: float = 60.0) -> None:
        if not (minutes > 0 and math.isfinite(minutes)):
            raise ValueError(f"minutes must be a finite number above 0, got {minutes}")
        if not 0 <= reserve_s < 60 * minutes:
            raise ValueError(f"reserve_s must be in [0, {60 * minutes}), got {reserve_s}")
        self.seconds = 60 * minutes - reserve_s
        self.before, self._start = 0.0, time.monotonic()
        self.updates: list[float] = []

    @property
    def elapsed(self) -> float:
        """Seconds of this run, the part before it was resumed included."""
        return self.before + time.monotonic() - self._start

    def time_remaining(self) -> float:
        """Seconds until training ends."""
        return self.seconds - self.elapsed

    def state_dict(self) -> dict[str, Any]:
        """The time that is spent."""
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.before = float(state_dict["elapsed"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a budget that is spent."""
        if self.elapsed >= self.seconds:
            raise ValueError(f"the run must have time left, got {self.elapsed:.0f} s of {self.seconds:.0f} s spent")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the learning rate, and end where the time is up."""
        share = min(self.elapsed / self.seconds, 1.0)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.get("initial_lr", group["lr"]) * 0.5 * (1.0 + math.cos(math.pi * share))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """End where the time is up; after some updates say how many there will be."""
        if len(self.updates) <= MEASURED:
            self.updates.append(self.elapsed)
            if len(self.updates) == MEASURED + 1 and trainer.is_global_zero:
                each = (self.updates[-1] - self.updates[MEASURED // 2]) / (MEASURED - MEASURED // 2)
                left = self.seconds - self.elapsed
                print(  # noqa: T201  # it is for people
                    f"{1000 * each:.0f} ms an update of {self._batch(trainer)}: about {left / each:,.0f} more in the "
                    f"{left:.0f} s that are left, less what validation takes",
                    file=sys.stderr,
                    flush=True,
                )
        if trainer.strategy.reduce_boolean_decision(self.elapsed >= self.seconds, all=False):
            trainer.should_stop = True

    @staticmethod
    def _batch(trainer: Trainer) -> str:
        size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
        return "a batch" if size is None else f"{size * trainer.world_size} sequences"
