"""The LightningModule that trains a layer to say which byte comes next."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from elm_neuro.datasets import TextStretch
from elm_neuro.events import SpikeEvents
from elm_neuro.training.loop._schedule import OptimizerName
from elm_neuro.training.loop._seeds import seed_of, seeded
from elm_neuro.training.loop._task import Task
from elm_neuro.training.networks._classifiers import checked_layer


def one_hot_events(tokens: Tensor, num_letters: int, scale: float) -> SpikeEvents:
    """Tokens (batch, time) as one event a step, of the value `scale`.

    >>> one_hot_events(torch.tensor([[2, 0]]), 3, 3.0).to_dense()
    tensor([[[0., 0., 3.],
             [3., 0., 0.]]])
    """
    number = tokens.numel()
    indptr = torch.arange(number + 1, device=tokens.device)
    value = None if scale == 1.0 else torch.full((number,), scale, device=tokens.device)
    return SpikeEvents(indptr, tokens.flatten(), value, (*tokens.shape, num_letters))


class ByteModel(Task):
    """Cross entropy of the next byte, in bits, over stretches of a text; the network's state is carried from one
    stretch to the next, without a gradient through the cut.

    Logged: train/bits, valid/bits and test/bits, bits per byte. A checkpoint holds the state of the training streams,
    so that a run that goes on reads on as one that never stopped.

    Args:
        network: a layer, :class:`elm_neuro.nn.Layer`, with an input and an output for each letter.
        optimizer: "adam" (the paper's), "adamax" or "adamw".
        learning_rate: at the start; a cosine over the whole run takes it to 0.
        weight_decay: of the optimizer.
        eps: what the optimizer adds to its denominator.
        warmup_steps: optimizer steps in which the rate rises from 0, before the cosine.
        input_scale: value of a letter's event (the paper's: 3).
        seed: of dropout.

    Raises:
        TypeError: `network` is no layer.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerName = "adam",
        learning_rate: float = 5e-4,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        warmup_steps: int = 0,
        input_scale: float = 3.0,
        seed: int = 0,
    ) -> None:
        checked_layer(network, "network")
        super().__init__(
            network,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            eps=eps,
            warmup_steps=warmup_steps,
        )
        if not (input_scale > 0 and math.isfinite(input_scale)):
            raise ValueError(f"input_scale must be a finite number above 0, got {input_scale}")
        self.input_scale, self.seed = input_scale, seed
        self.carried: dict[str, Any] = {}  # state of the streams of each stage
        self.bits = nn.ModuleDict({stage: MeanMetric() for stage in ("valid", "test")})

    def setup(self, stage: str | None = None) -> None:
        """Refuse a network that is not as wide as the alphabet.

        Raises:
            ValueError: it is not.
        """
        letters: int | None = getattr(getattr(self.trainer, "datamodule", None), "num_letters", None)
        network: Any = self.network
        if letters is not None and (network.input_size, network.output_size) != (letters, letters):
            sizes = f"{network.input_size} and {network.output_size}"
            raise ValueError(f"network must have an input and an output for each of {letters} letters, got {sizes}")

    def bits_of(self, batch: TextStretch, stage: str) -> Tensor:
        """Mean bits per byte of a stretch, read on from where the last one of that stage ended."""
        network: Any = self.network
        before = None if bool(batch.begins) else self.carried.get(stage)
        if before is not None:
            like = network.initial_state(len(batch.tokens))
            before = type(like)(*(part.to(own) for part, own in zip(before, like, strict=True)))
        logits, after = network(one_hot_events(batch.tokens, network.input_size, self.input_scale), before)
        self.carried[stage] = tuple(part.detach() for part in after)
        return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()) / math.log(2.0)

    def training_step(self, batch: TextStretch, batch_idx: int) -> Tensor:
        """Bits per byte of a stretch."""
        with seeded(seed_of(self, self.seed, batch_idx, stream=0), batch.tokens.device):
            loss = self.bits_of(batch, "train")
        self.log("train/bits", loss, prog_bar=True, batch_size=batch.tokens.numel(), sync_dist=True)
        return loss

    def evaluate(self, batch: TextStretch, stage: str) -> None:
        """Take in a stretch, without dropout."""
        self.bits[stage].update(self.bits_of(batch, stage), batch.tokens.numel())  # type: ignore[operator]

    def conclude(self, stage: str) -> None:
        """Log the figure."""
        self.log(f"{stage}/bits", self.bits[stage].compute(), prog_bar=True)  # type: ignore[operator]
        self.bits[stage].reset()  # type: ignore[operator]
        self.carried.pop(stage, None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the state of the training streams in, as plain tensors."""
        if "train" in self.carried:
            checkpoint["carried_state"] = [part.cpu() for part in self.carried["train"]]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where training was."""
        super().on_load_checkpoint(checkpoint)
        if (carried := checkpoint.get("carried_state")) is not None:
            self.carried["train"] = tuple(carried)
