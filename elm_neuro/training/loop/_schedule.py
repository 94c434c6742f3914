"""Optimizers by their names, and the cosine over a whole run that takes their learning rate to 0."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import torch
from lightning import LightningModule, Trainer
from torch.optim.lr_scheduler import LRScheduler

from elm_neuro.nn import parameter_groups

OptimizerName: TypeAlias = Literal["adam", "adamax", "adamw"]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
}


def check_optimizer(optimizer: str, learning_rate: float, eps: float = 1e-8) -> None:
    """Refuse an optimizer that has no entry in `OPTIMIZERS`, and a learning rate or eps that is no finite number
    above 0.

    Raises:
        ValueError: one of them is.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {sorted(OPTIMIZERS)}, got {optimizer!r}")
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ValueError(f"learning_rate must be a finite number above 0, got {learning_rate}")
    if not (eps > 0 and math.isfinite(eps)):
        raise ValueError(f"eps must be a finite number above 0, got {eps}")


def optimizer_and_cosine(
    module: LightningModule,
    *,
    optimizer: str,
    learning_rate: float,
    weight_decay: float,
    eps: float = 1e-8,
    warmup_steps: int = 0,
) -> dict[str, Any]:
    """What ``configure_optimizers`` gives back: an optimizer of all parameters, and its cosine decay, per step.

    Args:
        module: in a Trainer that is about to fit it.
        optimizer: a name in `OPTIMIZERS`.
        learning_rate: at the start.
        weight_decay: of the optimizer; time constants, synaptic weights and thresholds have none
            (:func:`elm_neuro.nn.parameter_groups`).
        eps: what the optimizer adds to its denominator.
        warmup_steps: optimizer steps in which the rate rises to `learning_rate`.
    """
    make: Any = OPTIMIZERS[optimizer]
    chosen = make(parameter_groups(module, weight_decay), lr=learning_rate, weight_decay=weight_decay, eps=eps)
    schedule = CosineDecay(chosen, num_steps(module.trainer), warmup_steps)
    return {"optimizer": chosen, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def num_steps(trainer: Trainer) -> int:
    """Optimizer steps of all epochs, or of `max_steps` where the epochs are not limited.

    Where `max_steps` cuts epochs short the decay stays that of the epochs, so that the run can be resumed.
    """
    estimated, epochs, batches = trainer.estimated_stepping_batches, trainer.max_epochs, trainer.num_training_batches
    if epochs is None or epochs < 0 or math.isinf(batches):
        return max(1, int(estimated))
    return max(1, epochs * math.ceil(batches / trainer.accumulate_grad_batches))


class CosineDecay(LRScheduler):
    r"""The learning rate times :math:`\tfrac12 (1 + \cos(\pi t / T))` at step t of T, and 0 from there on.

    With W steps to warm up it is :math:`t / W` of the rate before step W, and the cosine takes the steps from W to T.
    In closed form, and T is that of the run at hand: a run that is resumed with more epochs follows the longer cosine.

    Args:
        optimizer: whose rates fall.
        num_steps: T.
        warmup_steps: W.

    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    >>> schedule, rates = CosineDecay(optimizer, 2), []
    >>> for _ in range(4):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 6))
    ...     optimizer.step()
    ...     schedule.step()
    >>> rates
    [2.0, 1.0, 0.0, 0.0]
    """

    def __init__(self, optimizer: torch.optim.Optimizer, num_steps: int, warmup_steps: int = 0) -> None:
        self.num_steps, self.warmup_steps = num_steps, warmup_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Rate of each group of parameters."""
        step, warmup = self.last_epoch, self.warmup_steps
        if step < warmup:
            share = step / warmup
        else:
            share = 0.5 + 0.5 * math.cos(math.pi * min((step - warmup) / max(self.num_steps - warmup, 1), 1.0))
        return [rate * share for rate in self.base_lrs]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from that step, towards the end of this run."""
        super().load_state_dict({**state_dict, "num_steps": self.num_steps, "warmup_steps": self.warmup_steps})
