"""Accuracy over a whole set of sequences, by their lengths and by their groups, beside answers that need no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import CatMetric


class Share(NamedTuple):
    """Accuracy over some sequences, and their number."""

    accuracy: float
    samples: int


class AnswersByGroup(nn.Module):
    """Collects answers; of a pair of texts the longer one counts."""

    def __init__(self) -> None:
        super().__init__()
        self.answers, self.labels, self.lengths, self.groups = (CatMetric(nan_strategy="disable") for _ in range(4))

    def update(self, logits: Tensor, labels: Tensor, lengths: Tensor, groups: Tensor) -> None:
        """Count a batch.

        Args:
            logits: (batch, class).
            labels: (batch,).
            lengths: (batch,) or (2 * batch,).
            groups: (batch,), -1 for none.
        """
        self.answers.update(logits.argmax(-1).double())  # exact: all are small integers
        self.labels.update(labels.double())
        self.lengths.update(lengths.reshape(len(labels), -1).amax(1).double())
        self.groups.update(groups.double())

    def _columns(self) -> list[Tensor]:
        metrics = (self.answers, self.labels, self.lengths, self.groups)
        return [metric.compute().reshape(-1).long().cpu() for metric in metrics]

    def compute(self) -> dict[str, float]:
        """The figures "accuracy" and "majority", the accuracy of the best constant answer; where there are groups also
        "by_group", that of the best answer to each group, in ListOps to each root operator.
        """
        answers, labels, _, groups = self._columns()
        figures = {"accuracy": _mean(answers == labels), "majority": _best(labels) / len(labels)}
        if bool((groups >= 0).any()):
            figures["by_group"] = sum(_best(labels[groups == group]) for group in groups.unique()) / len(labels)
        return figures

    def by_length(self, num_buckets: int = 8) -> dict[str, Share]:
        """Accuracy by length, in buckets of about as many sequences; one where all are equally long."""
        answers, labels, lengths, _ = self._columns()
        shares_of_all = torch.linspace(0, 1, num_buckets + 1, dtype=torch.float64, device=lengths.device)
        edges = torch.quantile(lengths.double(), shares_of_all).ceil().long().unique()
        if len(edges) == 1:
            edges = torch.stack((edges[0], edges[0] + 1))
        edges[-1] = lengths.max() + 1
        shares = {}
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            chosen = (lengths >= low) & (lengths < high)
            if bool(chosen.any()):
                shares[f"{low}-{high - 1}"] = Share(_mean((answers == labels)[chosen]), int(chosen.sum()))
        return shares

    def by_group(self, names: Sequence[str]) -> dict[str, Share]:
        """Accuracy of each group that occurs, by its name."""
        answers, labels, _, groups = self._columns()
        present = [group for group in groups.unique().tolist() if group >= 0]
        return {
            names[group] if group < len(names) else str(group): Share(
                _mean((answers == labels)[groups == group]), int((groups == group).sum())
            )
            for group in present
        }

    def confusion(self, num_classes: int) -> Tensor:
        """Samples by class and answer, (class, answer)."""
        answers, labels, _, _ = self._columns()
        return torch.bincount(labels * num_classes + answers, minlength=num_classes**2).view(num_classes, num_classes)

    def reset(self) -> None:
        """Forget all sequences."""
        for metric in (self.answers, self.labels, self.lengths, self.groups):
            metric.reset()


def _mean(right: Tensor) -> float:
    return float(right.double().mean())


def _best(labels: Tensor) -> int:
    return int(torch.bincount(labels).max())


def as_numbers(shares: dict[str, Share]) -> dict[str, dict[str, Any]]:
    """For JSON."""
    return {name: share._asdict() for name, share in shares.items()}
