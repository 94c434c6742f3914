"""The LightningModule that trains a network to name the class of a token sequence."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from elm_neuro.datasets.lra import TokenBatch
from elm_neuro.training.loop._backward import BackwardHere
from elm_neuro.training.loop._layers import check_time_steps
from elm_neuro.training.loop._sampling import count_epochs_rightly
from elm_neuro.training.loop._schedule import OptimizerName, check_optimizer, optimizer_and_cosine
from elm_neuro.training.loop._seeds import seed_of, seeded
from elm_neuro.training.lra._groups import AnswersByGroup, Share


class TokenClassification(BackwardHere):
    """Cross entropy at the last token, cosine decay over the whole run, accuracy by length and by group.

    Logged: train/loss, train/accuracy, valid/… and test/… loss, accuracy, majority (accuracy of the best constant
    answer) and, where items have groups, by_group (that of the best answer to each group: on ListOps to each root
    operator, 36.1 % of the published distribution, which most transformers of the benchmark do not get beyond). After
    a test `by_length` and `by_group` give accuracy and number of samples, and `confusion`, (class, answer), counts
    samples.

    Args:
        network: maps tokens (batch, time) and lengths (batch,) to logits (batch, num_classes).
        num_classes: number of classes.
        optimizer: "adam" (the paper's), "adamax" or "adamw".
        learning_rate: at the start; a cosine over all optimizer steps of `max_epochs` takes it to 0.
        weight_decay: of the optimizer.
        step_ms: time step of a token, which the neurons must have. The paper does not say; its time constants go up to
            the length of the sequences in ms.
        seed: of dropout in the network, which depends on (seed, optimizer step, batch of it, process) alone, so that
            resuming changes nothing.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int = 10,
        optimizer: OptimizerName = "adam",
        learning_rate: float = 2e-4,
        weight_decay: float = 0.0,
        step_ms: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_optimizer(optimizer, learning_rate)
        self.network, self.num_classes = network, num_classes
        self.optimizer, self.learning_rate, self.weight_decay = optimizer, learning_rate, weight_decay
        self.step_ms, self.seed = step_ms, seed
        self.by_length: dict[str, Share] = {}
        self.by_group: dict[str, Share] = {}
        self.confusion: Tensor | None = None
        self.train_accuracy = MulticlassAccuracy(
            num_classes, average="micro", validate_args=False
        )  # its checks wait for a GPU
        self.evaluation = nn.ModuleDict({"valid": AnswersByGroup(), "test": AnswersByGroup()})

    def setup(self, stage: str | None = None) -> None:
        """Refuse neurons whose time step is not that of a token.

        Raises:
            ValueError: they differ.
        """
        check_time_steps(self.network, self.step_ms, "the step of a token")

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        logits: Tensor = self.network(tokens, lengths)
        return logits

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        with seeded(seed_of(self, self.seed, batch_idx, stream=0), batch.labels.device):
            logits = self(batch.tokens, batch.lengths)
        loss = F.cross_entropy(logits, batch.labels)
        self.train_accuracy.update(logits, batch.labels)
        size = len(batch.labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True, batch_size=size)
        return loss

    def _evaluate(self, batch: TokenBatch, stage: str) -> None:
        logits = self(batch.tokens, batch.lengths)
        cast(AnswersByGroup, self.evaluation[stage]).update(logits, batch.labels, batch.lengths, batch.groups)
        self.log(f"{stage}/loss", F.cross_entropy(logits, batch.labels), batch_size=len(batch.labels), sync_dist=True)

    def _conclude(self, stage: str) -> None:
        answers = cast(AnswersByGroup, self.evaluation[stage])
        for name, value in answers.compute().items():
            self.log(f"{stage}/{name}", value, prog_bar=name != "majority")
        if stage == "test":
            names = getattr(getattr(self.trainer, "datamodule", None), "group_names", ())
            self.by_length, self.by_group = answers.by_length(), answers.by_group(names)
            self.confusion = answers.confusion(self.num_classes)
        answers.reset()

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Count a batch, without dropout."""
        self._evaluate(batch, "valid")

    def on_validation_epoch_end(self) -> None:
        """Log accuracy and what needs no network."""
        self._conclude("valid")

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Count a batch, without dropout."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log accuracy and what needs no network."""
        self._conclude("test")

    def predict_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Probability of each class, (batch, num_classes)."""
        logits: Tensor = self(batch.tokens, batch.lengths)
        return logits.softmax(-1)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where training was."""
        count_epochs_rightly(checkpoint)

    def configure_optimizers(self) -> Any:
        """The optimizer and its cosine decay, per step."""
        return optimizer_and_cosine(
            self, optimizer=self.optimizer, learning_rate=self.learning_rate, weight_decay=self.weight_decay
        )
