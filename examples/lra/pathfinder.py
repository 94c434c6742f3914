"""Pathfinder: whether two discs lie on one dashed curve, one pixel of 32 x 32 a step.

Data: lra_release/pathfinder32, or: elm-neuro lra generate pathfinder --out pathfinder32

    python examples/lra/pathfinder.py [--smoke]

With checkpoints: elm-neuro fit --config lra_pathfinder, or lra_pathfinder_lstm, or lra_pathfinder_stack.
"""

from __future__ import annotations

from pathlib import Path

from _common import run, token_network
from torch import nn

from elm_neuro.datasets.lra import make_pathfinder
from elm_neuro.training import PathfinderDataModule


def network(kind: str, num_tokens: int, size: int) -> nn.Module:
    return token_network(kind, num_tokens, 2, size, slowest=1000.0, slowest_lstm=2000.0)


def made_up(folder: Path) -> Path:
    make_pathfinder(folder, 60, 32)
    return folder


if __name__ == "__main__":
    run(
        "Pathfinder",
        __doc__,
        data=PathfinderDataModule,
        made_up=made_up,
        network=network,
        source=("pathfinder32", "of the release, or generated"),
        epochs=300,
        batch=384,
        num_classes=2,
    )
