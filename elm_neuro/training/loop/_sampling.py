"""Which parts of the data a stage needs, in which order an epoch takes its items, and where a resumed one goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from multiprocessing import get_all_start_methods, get_start_method
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from elm_neuro.training.loop._parcels import Receiving, Sent

PARTS = ("train", "valid", "test")
WORKERS_OF_A_GPU = 2  # benchmarks/feed_speed.py
PARTS_OF_STAGE = {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",), "predict": ("test",)}


def parts_of(stage: str | None) -> tuple[str, ...]:
    """The parts of the data that a stage of Lightning's needs; None, or a stage that is not known, needs all.

    >>> parts_of("fit")
    ('train', 'valid')
    """
    name: str = getattr(stage, "value", stage) or ""  # a member of Lightning's enumeration, or its name
    return PARTS_OF_STAGE.get(name, PARTS)


def processes_and_rank(trainer: Trainer | None) -> tuple[int, int]:
    """How many processes share an epoch, and which of them this is."""
    return (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)


def check_loading(batch_size: int, num_workers: int | None) -> None:
    """Refuse batches of nothing, and fewer than no processes.

    Raises:
        ValueError: one is out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"num_workers must be None or at least 0, got {num_workers}")


class ResumesInEpoch(LightningDataModule):
    """Data whose epochs are the same in every run, and which a resumed run goes on with at the batch after the last
    one: the sampler of its training batches is given where that is.
    """

    batch_size: int
    num_workers: int | None  # processes that load; None: as many as are worth it
    collate: ClassVar[Callable[..., Any]]  # puts items of its data sets into a batch
    resume = (0, 0)  # epoch, batches of it that are done

    def state_dict(self) -> dict[str, Any]:
        """Where training is: the epoch, and how many of its batches are done."""
        if self.trainer is None:
            return {}
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return {"epoch": self.trainer.current_epoch, "batches": progress.processed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.resume = (int(state_dict.get("epoch", 0)), int(state_dict.get("batches", 0)))

    def _loader(self, dataset: Dataset[Any], sampler: DistributedSampler[Any] | None = None) -> DataLoader[Any]:
        """Batches in the order of the data set, or, in training, of a sampler."""
        kind, num_workers = Receiving if sampler is None else Resumable, self._workers()
        return kind(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=Sent(type(self).collate),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _workers(self) -> int:
        """None is two where a GPU trains: a narrow neuron takes a batch in the time in which one process loads half of
        the next. Where processes are not forked they run a script's main module again, so that it has to ask for them.
        """
        if self.num_workers is not None:
            return self.num_workers
        method = get_start_method(allow_none=True) or get_all_start_methods()[0]
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return WORKERS_OF_A_GPU if on_gpu and method == "fork" else 0


def count_epochs_rightly(checkpoint: dict[str, Any]) -> None:
    """Correct what a checkpoint of a run over :class:`ResumesInEpoch` says of its epochs, before it is gone on with.

    Lightning 2.6 has an epoch that was cut off, by ``max_steps`` or otherwise, as done; and under ``max_steps`` it
    takes the end of an epoch, saved before all is counted, for the end of the next one too.

    Args:
        checkpoint: as a module's ``on_load_checkpoint`` gets it.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    places = [
        state for state in checkpoint.values() if isinstance(state, dict) and {"epoch", "batches"} <= state.keys()
    ]
    if not places or not loop:
        return
    batches = loop["epoch_loop.batch_progress"]
    cut_off = not batches["is_last_batch"]
    for counts in loop["epoch_progress"].values():  # of this run, and of all
        if counts["processed"] == counts["started"] == counts["ready"] == counts["completed"] + 1:
            counts["processed" if cut_off else "completed"] += -1 if cut_off else 1
    if not cut_off and len(set(loop["epoch_progress"]["current"].values())) == 1:
        batches.update(current=dict.fromkeys(batches["current"], 0), is_last_batch=False)


class Remaining(DistributedSampler[Any]):
    """Items without the batches that a resumed epoch has behind it."""

    resume = (0, 0)
    batch_size = 1

    def __iter__(self) -> Iterator[Any]:
        epoch, batches = self.resume
        items = list(super().__iter__())
        return iter(items[batches * self.batch_size if self.epoch == epoch else 0 :])


class InListOrder(Remaining):
    """The items in their order; Lightning's call at the start of an epoch moves the data set's list on to that
    epoch.
    """

    def set_epoch(self, epoch: int) -> None:
        """Move sampler and data set on."""
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)  # type: ignore[attr-defined]  # data sets with a list of their own for each epoch


class Resumable(Receiving):
    """Tells Lightning that it can go on in the middle of an epoch; where that is, the data module knows."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""
