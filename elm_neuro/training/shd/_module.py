"""The LightningModule that trains a network of :mod:`elm_neuro.training` to name the class of a spike train."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from elm_neuro.events import SpikeEvents
from elm_neuro.training.loop._layers import check_time_steps, spikes_recorded, spiking_layers
from elm_neuro.training.loop._schedule import OptimizerName
from elm_neuro.training.loop._seeds import seed_of, seeded
from elm_neuro.training.loop._task import Task

Batch = tuple[SpikeEvents | Tensor, Tensor, Tensor]


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
    """Accuracy over a whole set of samples, over speakers seen and unseen in training, of each speaker, and of the best
    constant answer.

    A sample of two digits is seen where both speakers are, unseen where neither is, and counts for each of its speakers
    once.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.accuracy = nn.ModuleDict(
            {group: MulticlassAccuracy(num_classes, average="micro") for group in ("all", "seen", "unseen")}
        )
        self.confusion = MulticlassConfusionMatrix(num_classes)
        self.right, self.speakers = CatMetric(nan_strategy="disable"), CatMetric(nan_strategy="disable")

    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        speakers: Tensor,
        known: Tensor | None = None,
        familiar: Tensor | None = None,
    ) -> None:
        """Count a batch.

        Args:
            logits: (batch, class).
            labels: (batch,).
            speakers: (batch,), or (batch, 2) of two digits; -1 where unknown.
            known: speakers that are trained on; None where nobody knows.
            familiar: further speakers who are not unseen, for example because the checkpoint was chosen by them.
        """
        speakers = speakers.reshape(len(labels), -1)  # (batch, digit)
        groups = {"all": torch.ones_like(labels, dtype=torch.bool)}
        if known is not None:
            met = known if familiar is None else torch.cat((known, familiar))
            groups |= {"seen": torch.isin(speakers, known).all(1), "unseen": ~torch.isin(speakers, met).any(1)}
        for name, group in groups.items():
            if bool(group.any()):
                self.accuracy[name].update(logits[group], labels[group])  # type: ignore[operator]  # ModuleDict forgets its type
        self.confusion.update(logits, labels)
        self.right.update((logits.argmax(-1) == labels).float())
        pair = speakers if speakers.shape[1] == 2 else speakers.expand(-1, 2)
        self.speakers.update(pair.double())  # exact: a speaker is below 2**31

    def by_speaker(self) -> dict[int, tuple[float, int]]:
        """Accuracy and number of samples of each known speaker, ascending."""
        right, pair = self.right.compute().reshape(-1), self.speakers.compute().reshape(-1, 2).long()
        own = {speaker: (pair == speaker).any(1) for speaker in pair.unique().tolist() if speaker >= 0}
        return {speaker: (float(right[mask].mean()), int(mask.sum())) for speaker, mask in own.items()}

    def compute(self) -> dict[str, Tensor]:
        """Accuracy ("accuracy"; "accuracy_seen" and "accuracy_unseen" as far as there were such samples) and
        "majority".
        """
        figures = {}
        for name, metric in self.accuracy.items():
            if cast(MulticlassAccuracy, metric).update_called:
                figures["accuracy" if name == "all" else f"accuracy_{name}"] = metric.compute()  # type: ignore[operator]
        count = self.confusion.compute().sum(1).float()  # samples of each class
        return figures | {"majority": count.max() / count.sum()}

    def reset(self) -> None:
        """Forget all samples."""
        for metric in self.accuracy.values():
            metric.reset()  # type: ignore[operator]
        for other in (self.confusion, self.right, self.speakers):
            other.reset()


class SpikeClassification(Task):
    """Cross entropy on class logits, accuracy by speakers, cosine decay over the whole run.

    Logged: train/loss, train/accuracy, valid/… and test/… loss, accuracy, accuracy_seen, accuracy_unseen (speakers that
    are or are not trained on, where the data module has `seen_speakers`) and majority, the accuracy of the best
    constant answer; with a penalty on spikes train/spikes, their mean per neuron and step; with `penalties`
    train/activity and train/mlp. After a test `confusion`,
    (class, answer), counts samples, and `by_speaker` gives (accuracy, number of samples) of each speaker.

    Args:
        network: maps x (batch, time, channel) or :class:`SpikeEvents` to logits (batch, num_classes).
        num_classes: number of classes.
        optimizer: "adam", "adamax" (the paper's for SHD) or "adamw".
        learning_rate: at the start; a cosine over all optimizer steps of `max_epochs` takes it to 0, or of `max_steps`
            without a `max_epochs`.
        weight_decay: of the optimizer.
        eps: what the optimizer adds to its denominator.
        input_dropout: probability with which an input is dropped in training, the others scaled up; never in
            evaluation.
        spike_l1: weight of the penalty on spikes, the mean over samples, steps and the neurons of all layers that
            spike, which is their l1 norm per neuron and step (the paper's LIF network on SHD: 0.01, over what it takes
            the norm is not stated).
        penalties: weight of each penalty of the network's own, by its name (:attr:`ELMNetworkClassifier.penalties`: the
            published weights are 0.2 of "activity" and 0.002 of "mlp").
        label_smoothing: share of the target that is spread over all classes, in training only.
        warmup_steps: optimizer steps in which the learning rate rises from 0, before the cosine.
        seed: of all dropout, which depends on (seed, optimizer step, batch of it, process) alone, so that resuming
            changes nothing.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int = 20,
        optimizer: OptimizerName = "adam",
        learning_rate: float = 5e-4,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        input_dropout: float = 0.0,
        spike_l1: float = 0.0,
        penalties: dict[str, float] | None = None,
        label_smoothing: float = 0.0,
        warmup_steps: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            network,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            eps=eps,
            warmup_steps=warmup_steps,
        )
        if not 0.0 <= input_dropout < 1.0:
            raise ValueError(f"input_dropout must be in [0, 1), got {input_dropout}")
        if not (spike_l1 >= 0 and math.isfinite(spike_l1)):
            raise ValueError(f"spike_l1 must be a finite number, not negative, got {spike_l1}")
        if spike_l1 and not spiking_layers(network):
            raise ValueError(f"spike_l1 must be 0 where network has no layer that spikes, got {spike_l1}")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.input_dropout, self.spike_l1, self.seed = input_dropout, spike_l1, seed
        self.penalties, self.label_smoothing = _checked_penalties(network, penalties or {}), label_smoothing
        self.confusion: Tensor | None = None
        self.by_speaker: dict[int, tuple[float, int]] = {}
        self.train_loss = MeanMetric(nan_strategy="disable")
        # the loss has refused what is no class
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self._logged = False  # whether this epoch's two metrics are
        self.evaluation = nn.ModuleDict({"valid": Speakers(num_classes), "test": Speakers(num_classes)})

    def setup(self, stage: str | None = None) -> None:
        """Refuse neurons whose time step is not the bin of the data module.

        Raises:
            ValueError: they differ.
        """
        binning = getattr(getattr(self.trainer, "datamodule", None), "binning", None)
        if binning is not None:
            check_time_steps(self.network, binning.bin_ms, "the bin of the data")

    def forward(self, x: SpikeEvents | Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch, inputs dropped."""
        x, labels, _ = batch
        device = labels.device
        if self.input_dropout:
            seed = seed_of(self, self.seed, batch_idx, stream=0)
            x = drop_input(x, self.input_dropout, generator=torch.Generator(device).manual_seed(seed))
        with seeded(seed_of(self, self.seed, batch_idx, stream=1), device), spikes_recorded(self.network) as spikes:
            logits, penalties = self.network.forward_with_penalties(x) if self.penalties else (self(x), {})  # type: ignore[operator]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self._count(loss, logits, labels)
        if self.spike_l1:
            count = sum(layer[0, 0].numel() for layer in spikes)  # neurons
            rate = torch.stack([layer.abs().mean() * (layer[0, 0].numel() / count) for layer in spikes]).sum()
            self.log("train/spikes", rate, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
            loss = loss + self.spike_l1 * rate
        for name, weight in self.penalties.items():
            self.log(
                f"train/{name}", penalties[name], on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True
            )
            loss = loss + weight * penalties[name]
        return loss

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take in a training batch; the metrics are logged once an epoch: with every batch takes as long as a layer."""
        self.train_loss.update(loss.detach().expand(len(labels)))  # torchmetrics 1.9 forgets weights beside "disable"
        self.train_accuracy.update(logits.detach(), labels)
        if not self._logged:
            self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
            self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
            self._logged = True

    def on_train_epoch_start(self) -> None:
        """Begin this epoch's metrics anew."""
        self.train_loss.reset()
        self.train_accuracy.reset()
        self._logged = False

    def evaluate(self, batch: Batch, stage: str) -> None:
        """Take in a batch, without dropout."""
        x, labels, speakers = batch
        logits = self(x)
        data = getattr(self.trainer, "datamodule", None)
        known: Tensor | None = getattr(data, "seen_speakers", None)
        familiar: Tensor | None = getattr(data, "validation_speakers", None) if stage == "test" else None
        known, familiar = (
            None if group is None or not len(group) else group.to(speakers.device) for group in (known, familiar)
        )
        cast(Speakers, self.evaluation[stage]).update(logits, labels, speakers, known, familiar)
        self.log(f"{stage}/loss", F.cross_entropy(logits, labels), batch_size=len(labels), sync_dist=True)

    def conclude(self, stage: str) -> None:
        """Log the figures."""
        speakers = cast(Speakers, self.evaluation[stage])
        for name, value in speakers.compute().items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "accuracy")
        if stage == "test":
            self.confusion, self.by_speaker = speakers.confusion.compute().cpu(), speakers.by_speaker()
        speakers.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Probability of each class, (batch, num_classes)."""
        return self(batch[0]).softmax(-1)  # type: ignore[no-any-return]  # Lightning leaves __call__ untyped


def _checked_penalties(network: nn.Module, weights: dict[str, float]) -> dict[str, float]:
    """Weights of penalties that the network has.

    Raises:
        ValueError: it has none of that name, or a weight is no finite number, not negative.
    """
    known: tuple[str, ...] = getattr(network, "penalties", ())
    for name, weight in weights.items():
        if name not in known:
            raise ValueError(f"penalties must name some of {list(known)}, which network has, got {name!r}")
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"penalties must have finite weights, not negative, got {name} {weight}")
    return {name: weight for name, weight in weights.items() if weight}
