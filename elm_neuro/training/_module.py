"""The LightningModule that trains a network of :mod:`elm_neuro.training` to name the class of a spike train."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from elm_neuro.events import SpikeEvents
from elm_neuro.nn import ALIF, ELM

Batch = tuple[SpikeEvents | Tensor, Tensor, Tensor]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax, "adamw": torch.optim.AdamW}


def drop_input(x: SpikeEvents | Tensor, p: float, *, generator: torch.Generator) -> SpikeEvents | Tensor:
    """Set each input to 0 with probability `p` and scale the others by ``1 / (1 - p)``.

    Args:
        x: frames, or events: then each event is dropped by itself, also where several share a channel and step.
        p: in [0, 1).
        generator: on the device of `x`.
    """
    if isinstance(x, SpikeEvents):
        return x.dropout(p, generator=generator)
    keep = torch.rand(x.shape, generator=generator, device=x.device) >= p
    return x * keep / (1.0 - p)


class Speakers(nn.Module):
    """Accuracy over a whole set of samples, over speakers seen and unseen in training, and that of the best constant answer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.accuracy = nn.ModuleDict({group: MulticlassAccuracy(num_classes, average="micro") for group in ("all", "seen", "unseen")})
        self.confusion = MulticlassConfusionMatrix(num_classes)

    def update(self, logits: Tensor, labels: Tensor, seen: Tensor | None) -> None:
        """Count a batch: logits (batch, class), labels (batch,), seen (batch,) bool or None where speakers are unknown."""
        groups = {"all": torch.ones_like(labels, dtype=torch.bool)} | ({} if seen is None else {"seen": seen, "unseen": ~seen})
        for name, group in groups.items():
            if bool(group.any()):
                self.accuracy[name].update(logits[group], labels[group])  # type: ignore[operator]  # ModuleDict forgets its type
        self.confusion.update(logits, labels)

    def compute(self) -> dict[str, Tensor]:
        """Accuracy ("accuracy"; "accuracy_seen" and "accuracy_unseen" as far as there were such samples) and "majority"."""
        found = {}
        for name, metric in self.accuracy.items():
            if cast(MulticlassAccuracy, metric).update_called:
                found["accuracy" if name == "all" else f"accuracy_{name}"] = metric.compute()  # type: ignore[operator]
        count = self.confusion.compute().sum(1).float()  # samples of each class
        return found | {"majority": count.max() / count.sum()}

    def reset(self) -> None:
        """Forget all samples."""
        for metric in self.accuracy.values():
            metric.reset()  # type: ignore[operator]
        self.confusion.reset()


class SpikeClassification(LightningModule):
    """Cross entropy on class logits, accuracy by speakers, cosine decay over the whole run.

    Logged: train/loss, train/accuracy, valid/… and test/… loss, accuracy, accuracy_seen, accuracy_unseen (speakers that are or are not
    trained on, where the data module has `seen_speakers`) and majority, the accuracy of the best constant answer.

    Args:
        network: maps x (batch, time, channel) or :class:`SpikeEvents` to logits (batch, num_classes).
        num_classes: number of classes.
        optimizer: "adam", "adamax" (the paper's for SHD) or "adamw".
        learning_rate: at the start; a cosine over all optimizer steps of the run takes it to 0.
        weight_decay: of the optimizer.
        input_dropout: probability with which an input is dropped in training, the others scaled up; never in evaluation.
        seed: of the dropout, which depends on (seed, optimizer step, process) alone, so that resuming changes nothing.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int = 20,
        optimizer: Literal["adam", "adamax", "adamw"] = "adam",
        learning_rate: float = 5e-4,
        weight_decay: float = 0.0,
        input_dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {sorted(OPTIMIZERS)}, got {optimizer!r}")
        if not (learning_rate > 0 and math.isfinite(learning_rate)):
            raise ValueError(f"learning_rate must be a finite number above 0, got {learning_rate}")
        if not 0.0 <= input_dropout < 1.0:
            raise ValueError(f"input_dropout must be in [0, 1), got {input_dropout}")
        self.network = network
        self.optimizer, self.learning_rate, self.weight_decay = optimizer, learning_rate, weight_decay
        self.input_dropout, self.seed = input_dropout, seed
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.evaluation = nn.ModuleDict({"valid": Speakers(num_classes), "test": Speakers(num_classes)})

    def setup(self, stage: str | None = None) -> None:
        """Refuse neurons whose time step is not the bin of the data module.

        Raises:
            ValueError: they differ.
        """
        bin_ms = getattr(getattr(getattr(self.trainer, "datamodule", None), "binning", None), "bin_ms", None)
        for name, neuron in self.network.named_modules():
            if isinstance(neuron, ELM | ALIF) and bin_ms is not None:
                delta_t = neuron.config.delta_t if isinstance(neuron, ELM) else neuron.delta_t
                if delta_t != bin_ms:
                    raise ValueError(f"network.{name} must have delta_t {bin_ms} ms, the bin of the data, got {delta_t} ms")

    def forward(self, x: SpikeEvents | Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    def _generator(self, device: torch.device) -> torch.Generator:
        counter = (self.global_step * self.trainer.world_size + self.global_rank) & 0xFFFFFFFF
        return torch.Generator(device).manual_seed((self.seed & 0x7FFFFFFF) << 32 | counter)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch, inputs dropped."""
        x, labels, _ = batch
        if self.input_dropout:
            x = drop_input(x, self.input_dropout, generator=self._generator(labels.device))
        logits = self(x)
        loss = F.cross_entropy(logits, labels)
        self.train_accuracy(logits, labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        return loss

    def _evaluate(self, batch: Batch, stage: str) -> None:
        x, labels, speakers = batch
        logits = self(x)
        known = getattr(getattr(self.trainer, "datamodule", None), "seen_speakers", None)
        seen = None if known is None or not len(known) else torch.isin(speakers, known.to(speakers.device))
        cast(Speakers, self.evaluation[stage]).update(logits, labels, seen)
        self.log(f"{stage}/loss", F.cross_entropy(logits, labels), batch_size=len(labels), sync_dist=True)

    def _conclude(self, stage: str) -> None:
        speakers = cast(Speakers, self.evaluation[stage])
        for name, value in speakers.compute().items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "accuracy")
        speakers.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch, without dropout."""
        self._evaluate(batch, "valid")

    def on_validation_epoch_end(self) -> None:
        """Log accuracies."""
        self._conclude("valid")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch, without dropout."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log accuracies."""
        self._conclude("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Probability of each class, (batch, num_classes)."""
        return self(batch[0]).softmax(-1)  # type: ignore[no-any-return]  # Lightning leaves __call__ untyped

    def configure_optimizers(self) -> Any:
        """The optimizer and its cosine decay, per step."""
        kind: Any = OPTIMIZERS[self.optimizer]
        optimizer = kind(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, int(self.trainer.estimated_stepping_batches)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
