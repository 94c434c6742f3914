"""Which parts of the data a stage needs, and in which order an epoch takes its items."""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from torch.utils.data import DistributedSampler

PARTS = ("train", "valid", "test")
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


class InListOrder(DistributedSampler[Any]):
    """The items in their order; Lightning's call at the start of an epoch moves the data set's list on to that
    epoch.
    """

    def set_epoch(self, epoch: int) -> None:
        """Move sampler and data set on."""
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)  # type: ignore[attr-defined]  # data sets with a list of their own for each epoch
