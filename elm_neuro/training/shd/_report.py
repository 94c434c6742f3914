"""What a test says: accuracy per speaker, the confusion matrix, and intervals over the seeds of several runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from elm_neuro import plotting
from elm_neuro.files import write_whole
from elm_neuro.training.shd._module import SpikeClassification

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)


class Interval(NamedTuple):
    """Mean of several runs and half the width of its confidence interval; NaN where there is one run only."""

    mean: float
    half: float

    def __str__(self) -> str:
        spread = "" if math.isnan(self.half) else f" ± {100 * self.half:.1f}"
        return f"{100 * self.mean:.1f}{spread} %"


def seed_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    r"""Student's t interval of the mean of `values`, one a seed: :math:`\bar v \pm t_{n-1} s / \sqrt n`.

    Args:
        values: at least one, finite.
        level: confidence in (0, 1).

    Raises:
        ValueError: no value, one that is not finite, or `level` is out of range.

    >>> print(seed_interval([0.70, 0.72, 0.74]))
    72.0 ± 5.0 %
    """
    runs = np.asarray(values, dtype=np.float64)
    if runs.ndim != 1 or not runs.size or not np.isfinite(runs).all():
        raise ValueError(f"values must be finite numbers, at least one, got {list(values)}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be in (0, 1), got {level}")
    mean = float(runs.mean())
    if runs.size == 1:
        return Interval(mean, math.nan)
    return Interval(mean, t_quantile(level, runs.size - 1) * float(runs.std(ddof=1)) / math.sqrt(runs.size))


def t_quantile(level: float, df: int) -> float:
    r"""The t for which Student's distribution with `df` degrees of freedom has :math:`P(|T| \le t)` = `level`.

    With :math:`t = \sqrt{df} \tan\theta` that probability is :math:`\int_0^\theta \cos^{df-1}` over the same up to
    :math:`\pi/2` (Abramowitz & Stegun, 26.7.3); Gauss-Legendre integration and bisection find it to about ten digits
    for up to a thousand degrees.

    >>> round(t_quantile(0.95, 4), 4)
    2.7764
    """

    def area(theta: float) -> float:
        return float(theta / 2 * (WEIGHTS * np.cos(theta / 2 * (NODES + 1)) ** (df - 1)).sum())

    low, high, whole = 0.0, math.pi / 2, area(math.pi / 2)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if area(middle) < level * whole else (low, middle)
    return math.sqrt(df) * math.tan(low)


class TestReport(Callback):
    """Writes what a test of :class:`SpikeClassification` found into a folder: evaluation.json, confusion.png and
    confusion.pdf.

    evaluation.json has the logged figures ("accuracy", "accuracy_seen", "accuracy_unseen", "majority", "loss"),
    accuracy and number of samples of each speaker, the confusion matrix (rows are classes, columns answers), the
    checkpoint, and the fingerprint of the list where the data have one.

    Args:
        folder: made where it is not there.
        names: of the classes; those of the data by default.

    Raises:
        OSError: the files cannot be written.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, folder: str | os.PathLike[str], names: list[str] | None = None) -> None:
        self.folder, self.names = Path(folder), names

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files, each complete or not at all."""
        if not isinstance(pl_module, SpikeClassification) or pl_module.confusion is None:
            raise TypeError(f"TestReport must go with a tested SpikeClassification, got {type(pl_module).__name__}")
        self.folder.mkdir(parents=True, exist_ok=True)
        evaluation: dict[str, Any] = {
            name.removeprefix("test/"): float(v)
            for name, v in trainer.callback_metrics.items()
            if name.startswith("test/")
        }
        evaluation["speakers"] = {
            str(who): {"accuracy": right, "samples": num} for who, (right, num) in pl_module.by_speaker.items()
        }
        evaluation["confusion"] = pl_module.confusion.tolist()
        evaluation["checkpoint"] = None if trainer.ckpt_path is None else str(trainer.ckpt_path)
        evaluation["lists"] = getattr(getattr(trainer, "datamodule", None), "fingerprints", {})
        write_whole({self.folder / "evaluation.json": json.dumps(evaluation, indent=2).encode() + b"\n"})
        data = getattr(trainer, "datamodule", None)
        names = self.names or getattr(data, "class_names", None)
        if names is not None and len(names) != len(pl_module.confusion):  # classes of another task
            names = None
        figure = plotting.confusion_matrix(pl_module.confusion, names=names, title=name_of(pl_module.network))
        if tested_on := getattr(data, "tested_on", None):
            plotting.note(figure, tested_on)
        plotting.save(figure, self.folder / "confusion")


def name_of(network: nn.Module) -> str:
    """What a figure calls a network: its class, and the neuron in it."""
    neuron = getattr(network, "neuron", None)
    inside = f" with {type(neuron).__name__}" if isinstance(neuron, nn.Module) else ""
    return f"{type(network).__name__}{inside}"
