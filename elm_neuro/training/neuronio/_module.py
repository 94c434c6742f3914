"""Training on NeuronIO: spike logit and voltage of a cortical neuron, at every step of a window."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import CatMetric, ExplainedVariance, MeanSquaredError
from torchmetrics.functional.classification import binary_auroc

from elm_neuro.datasets.neuronio._simulations import SOMA_SCALE_MV
from elm_neuro.events import SpikeEvents
from elm_neuro.training.loop._layers import check_time_steps
from elm_neuro.training.loop._schedule import OptimizerName
from elm_neuro.training.loop._task import Task

Batch = tuple[SpikeEvents | Tensor, Tensor, Tensor]


class NeuronIOLoss(NamedTuple):
    """What training brings down, and its halves."""

    loss: Tensor  # 0.5 * bce + 0.5 * mse
    bce: Tensor  # of the spike, nats a step
    mse: Tensor  # of the voltage, (10 mV)^2


def neuronio_loss(y: Tensor, spikes: Tensor, soma: Tensor, *, burn_in: int = 150) -> NeuronIOLoss:
    """Half the cross entropy of the spikes and half the squared error of the voltage, without the first steps of each
    window.

    Source: Spieler et al. 2023, arXiv:2306.16922, appendix B, which leaves out a burn-in of 150 ms; upstream
    ``neuronio_train_utils.py`` at 52e68a6 takes the whole window, ``burn_in=0``.

    Args:
        y: outputs, (batch, time, 2), logit of a spike and voltage as :func:`elm_neuro.datasets.soma_target`.
        spikes: 0 or 1, (batch, time).
        soma: :func:`elm_neuro.datasets.soma_target`, (batch, time).
        burn_in: number of steps left out.

    Raises:
        ValueError: the shapes do not fit, or the burn-in leaves no step.

    >>> neuronio_loss(torch.zeros(1, 4, 2), torch.zeros(1, 4), torch.ones(1, 4), burn_in=2).loss
    tensor(0.8466)
    """
    if y.ndim != 3 or y.shape[-1] != 2 or spikes.shape != y.shape[:-1] or soma.shape != spikes.shape:
        raise ValueError(
            f"y must be (batch, time, 2), spikes and soma (batch, time), got {tuple(y.shape)}, {tuple(spikes.shape)}, "
            f"{tuple(soma.shape)}"
        )
    if not 0 <= burn_in < y.shape[1]:
        raise ValueError(f"burn_in must be in [0, {y.shape[1]}) steps, got {burn_in}")
    bce = F.binary_cross_entropy_with_logits(y[:, burn_in:, 0], spikes[:, burn_in:])
    mse = F.mse_loss(y[:, burn_in:, 1], soma[:, burn_in:])
    return NeuronIOLoss(0.5 * bce + 0.5 * mse, bce, mse)


class _Evaluation(nn.Module):
    """Figures over all windows: loss, error and explained variance of the voltage, AUC where there is a spike."""

    def __init__(self) -> None:
        super().__init__()
        self.mse, self.explained = MeanSquaredError(), ExplainedVariance()
        self.logit, self.spikes = CatMetric(nan_strategy="disable"), CatMetric(nan_strategy="disable")

    def update(self, y: Tensor, spikes: Tensor, soma: Tensor) -> None:
        y = y.detach().float()
        self.mse.update(y[..., 1].flatten(), soma.flatten())
        self.explained.update(y[..., 1].flatten(), soma.flatten())
        self.logit.update(y[..., 0].flatten())
        self.spikes.update(spikes.flatten())

    def compute(self) -> dict[str, Tensor]:
        figures = {
            "soma_RMSE": SOMA_SCALE_MV * self.mse.compute().sqrt(),
            "soma_explained_variance_percent": 100.0 * torch.as_tensor(self.explained.compute()),
        }
        logit, spikes = torch.as_tensor(self.logit.compute()), torch.as_tensor(self.spikes.compute()).long()
        if 0 < int(spikes.sum()) < spikes.numel():
            figures["AUC"] = binary_auroc(torch.sigmoid(logit.double()), spikes)
        return figures

    def reset(self) -> None:
        for metric in (self.mse, self.explained, self.logit, self.spikes):
            metric.reset()


class NeuronIORegression(Task):
    """Loss of :func:`neuronio_loss`, cosine decay over the whole run.

    Logged: train/loss, train/bce, train/mse; valid/… and test/… loss, soma_RMSE in mV and
    soma_explained_variance_percent (as the network says them, nothing aligned) and AUC (where the windows hold a
    spike), all without the burn-in. The published protocol is another: :func:`elm_neuro.training.evaluate_neuronio`.

    Args:
        network: maps frames or :class:`SpikeEvents` (batch, time, 1278) to outputs (batch, time, 2), alone or before a
            state.
        optimizer: "adam" (the paper's), "adamax" or "adamw".
        learning_rate: at the start; a cosine over all optimizer steps of `max_epochs` takes it to 0, or of `max_steps`
            without a `max_epochs`.
        weight_decay: of the optimizer.
        burn_in_ms: how much of each window does not count; 150 in the paper, 0 in the authors' code.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerName = "adam",
        learning_rate: float = 5e-4,
        weight_decay: float = 0.0,
        burn_in_ms: int = 150,
    ) -> None:
        super().__init__(network, optimizer=optimizer, learning_rate=learning_rate, weight_decay=weight_decay)
        if burn_in_ms < 0:
            raise ValueError(f"burn_in_ms must not be negative, got {burn_in_ms}")
        self.burn_in_ms = burn_in_ms
        self.evaluation = nn.ModuleDict({"valid": _Evaluation(), "test": _Evaluation()})

    def setup(self, stage: str | None = None) -> None:
        """Refuse neurons whose time step is not the data's 1 ms, and windows without a step that counts.

        Raises:
            ValueError: they are.
        """
        check_time_steps(self.network, 1, "the step of NeuronIO")
        window = getattr(getattr(self.trainer, "datamodule", None), "window_ms", None)
        if window is not None and window <= self.burn_in_ms:
            raise ValueError(f"burn_in_ms must be below window_ms = {window}, got {self.burn_in_ms}")

    def forward(self, x: SpikeEvents | Tensor) -> Tensor:
        y = self.network(x)
        return y if isinstance(y, Tensor) else y[0]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        x, spikes, soma = batch
        losses = neuronio_loss(self(x), spikes, soma, burn_in=self.burn_in_ms)
        for name, value in losses._asdict().items():
            self.log(
                f"train/{name}",
                value,
                on_step=False,
                on_epoch=True,
                prog_bar=name == "loss",
                batch_size=len(spikes),
                sync_dist=True,
            )
        return losses.loss

    def evaluate(self, batch: Batch, stage: str) -> None:
        """Take in a batch, without dropout."""
        x, spikes, soma = batch
        y = self(x)
        loss = neuronio_loss(y, spikes, soma, burn_in=self.burn_in_ms).loss
        self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=len(spikes), sync_dist=True)
        skip = slice(self.burn_in_ms, None)
        self.evaluation[stage].update(y[:, skip], spikes[:, skip], soma[:, skip])  # type: ignore[operator]

    def conclude(self, stage: str) -> None:
        """Log the figures."""
        evaluation: Any = self.evaluation[stage]
        for name, value in evaluation.compute().items():
            self.log(f"{stage}/{name}", value)
        evaluation.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Outputs, (batch, time, 2)."""
        return self(batch[0])  # type: ignore[no-any-return]  # Lightning leaves __call__ untyped
