"""What a test on token sequences found, as a file and as lines on the screen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from elm_neuro.files import write_whole
from elm_neuro.training.lra._groups import as_numbers
from elm_neuro.training.lra._module import TokenClassification


class TokenReport(Callback):
    """Writes what a test of :class:`TokenClassification` found into a folder, as evaluation.json, and prints it:
    accuracy beside those of the best constant answer and, on ListOps, of the best answer to each root operator.

    evaluation.json has the logged figures ("accuracy", "majority", "by_group", "loss"), accuracy and number of samples
    by length and by group, the confusion matrix (rows are classes, columns answers), and the checkpoint.

    Args:
        folder: made where it is not there.

    Raises:
        OSError: the file cannot be written.
        TypeError: another module was tested.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say once, before training, what is to be beaten."""
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if trainer.sanity_checking or "valid/by_group" not in figures or getattr(self, "_said", False):
            return
        self._said = True
        print(  # noqa: T201  # it is for people
            f"validation: the commonest answer scores {figures['valid/majority']:.1%}, the best answer to each root "
            f"operator {figures['valid/by_group']:.1%}",
            flush=True,
        )

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, complete or not at all, and print the figures."""
        if not isinstance(pl_module, TokenClassification) or pl_module.confusion is None:
            raise TypeError(f"TokenReport must go with a tested TokenClassification, got {type(pl_module).__name__}")
        self.folder.mkdir(parents=True, exist_ok=True)
        evaluation: dict[str, Any] = {
            name.removeprefix("test/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("test/")
        }
        by_length, by_group = as_numbers(pl_module.by_length), as_numbers(pl_module.by_group)
        evaluation |= {"lengths": by_length, "groups": by_group, "confusion": pl_module.confusion.tolist()}
        evaluation["checkpoint"] = None if trainer.ckpt_path is None else str(trainer.ckpt_path)
        write_whole({self.folder / "evaluation.json": json.dumps(evaluation, indent=2).encode() + b"\n"})
        print("\n".join(lines_of(evaluation)), flush=True)  # noqa: T201  # it is for people


def lines_of(evaluation: dict[str, Any]) -> list[str]:
    """An evaluation for people.

    >>> lines_of({"accuracy": 0.45, "majority": 0.168, "by_group": 0.361, "lengths": {}, "groups": {}})
    ['accuracy 45.0 %; the commonest answer 16.8 %; the best answer to each root operator 36.1 %']
    """
    line = f"accuracy {100 * evaluation['accuracy']:.1f} %; the commonest answer {100 * evaluation['majority']:.1f} %"
    if "by_group" in evaluation:
        line += f"; the best answer to each root operator {100 * evaluation['by_group']:.1f} %"
    lines = [line]
    for title, shares in (("length", evaluation["lengths"]), ("root operator", evaluation["groups"])):
        if len(shares) > 1:
            parts = [f"{name} {100 * one['accuracy']:.1f} % of {one['samples']}" for name, one in shares.items()]
            lines.append(f"by {title}: " + ", ".join(parts))
    return lines
