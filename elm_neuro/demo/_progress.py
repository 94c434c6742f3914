"""How far a demonstration is: bars on a terminal, lines as those of ``elm-neuro fit`` elsewhere."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from elm_neuro.training import SHDDataModule
from elm_neuro.training.loop._progress import EpochLines, Size


class Shown(Protocol):
    """What shows the progress, as a context that is entered while there is any."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> Any: ...

    def making(self, data: SHDDataModule) -> None:
        """Make synthetic recordings where they are not cached."""
        ...

    def training(self, title: str) -> list[Callback]:
        """What a Trainer needs to tell how far a network of that title is."""
        ...


def shown(console: Console) -> Shown:
    """Bars where `console` is a terminal, lines on standard error where it is none."""
    return Bars(console) if console.is_terminal else Lines()


class Lines:
    """A line an epoch."""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: Any) -> None: ...

    def making(self, data: SHDDataModule) -> None:
        """One line, and the recordings."""
        if data.synthetic:
            count = sum(map(len, data.synthetic))
            print(f"making {count:,} spoken digits, or reading them from the cache", file=sys.stderr, flush=True)  # noqa: T201  # it is for people
        data.prepare_data()

    def training(self, title: str) -> list[Callback]:
        """Size of the network, and its epochs."""
        return [Size(title), EpochLines(title)]


class Bars:
    """A bar for each network."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[accuracy]:<10}"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )

    def __enter__(self) -> Bars:
        self.progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.__exit__(*error)

    def making(self, data: SHDDataModule) -> None:
        """A bar over all recordings."""
        if not data.synthetic:
            return
        task = self.progress.add_task("making spoken digits", total=sum(map(len, data.synthetic)), accuracy="")
        before = 0
        for digits in data.synthetic:
            digits.recordings(lambda done, _, before=before: self.progress.update(task, completed=before + done))  # type: ignore[misc]
            before += len(digits)
            self.progress.update(task, completed=before)

    def training(self, title: str) -> list[Callback]:
        """A bar over all batches, with the accuracy on validation."""
        return [Bar(self.progress, self.progress.add_task(title, total=None, accuracy=""))]


class Bar(Callback):
    """Moves a task of a rich progress bar on with every batch."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what a resumed run has behind it."""
        self.progress.update(self.task, total=trainer.estimated_stepping_batches, completed=trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """One batch further."""
        self.progress.update(self.task, completed=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill it, also where nothing was left to resume."""
        self.progress.update(self.task, total=trainer.global_step, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the accuracy on the validation samples."""
        accuracy = trainer.callback_metrics.get("valid/accuracy")
        if accuracy is not None:
            self.progress.update(self.task, accuracy=f"valid {float(accuracy):.0%}")
