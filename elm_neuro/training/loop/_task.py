"""What the LightningModules of all tasks share: the network, its optimizer, and the rhythm of an evaluation."""

from __future__ import annotations

from typing import Any

from torch import nn

from elm_neuro.training.loop._backward import BackwardHere
from elm_neuro.training.loop._sampling import count_epochs_rightly
from elm_neuro.training.loop._schedule import OptimizerName, check_optimizer, optimizer_and_cosine


class Task(BackwardHere):
    """A network and how it is optimized. A task adds its ``training_step``, and for each `stage`, "valid" or "test",

    - ``evaluate(batch, stage)``: take in a batch, without dropout;
    - ``conclude(stage)``: log the figures over all batches, and forget them.

    Args:
        network: what is trained.
        optimizer: "adam", "adamax" or "adamw".
        learning_rate: at the start; a cosine over the run takes it to 0.
        weight_decay: of the optimizer.
        eps: what the optimizer adds to its denominator.
        warmup_steps: optimizer steps in which the learning rate rises from 0, before the cosine.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerName,
        learning_rate: float,
        weight_decay: float,
        eps: float = 1e-8,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        check_optimizer(optimizer, learning_rate, eps)
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
        self.network = network
        self.optimizer, self.learning_rate = optimizer, learning_rate
        self.weight_decay, self.eps, self.warmup_steps = weight_decay, eps, warmup_steps

    def evaluate(self, batch: Any, stage: str) -> None:
        """Take in a batch."""
        raise NotImplementedError

    def conclude(self, stage: str) -> None:
        """Log the figures."""
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Take in a batch."""
        self.evaluate(batch, "valid")

    def on_validation_epoch_end(self) -> None:
        """Log the figures."""
        self.conclude("valid")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Take in a batch."""
        self.evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the figures."""
        self.conclude("test")

    def configure_optimizers(self) -> Any:
        """The optimizer and its cosine decay, per step."""
        return optimizer_and_cosine(
            self,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            eps=self.eps,
            warmup_steps=self.warmup_steps,
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where training was."""
        count_epochs_rightly(checkpoint)
