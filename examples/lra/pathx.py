"""Pathfinder-X: whether two discs lie on one dashed curve, one pixel of 128 x 128 a step.

16,384 steps: the activations of most are computed anew in the backward pass.
Data: lra_release/pathfinder128, or: elm-neuro lra generate pathfinder --size 128 --out pathfinder128

    python examples/lra/pathx.py [--smoke]

With checkpoints: elm-neuro fit --config lra_pathx, or lra_pathx_lstm, or lra_pathx_stack.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from _common import run, token_network
from torch import nn

from elm_neuro.datasets.lra import write_pathfinder
from elm_neuro.training import PathfinderDataModule


def network(kind: str, num_tokens: int, size: int) -> nn.Module:
    return token_network(
        kind, num_tokens, 2, size, slowest=20000.0, slowest_lstm=20000.0, tau_s=150.0, recompute_every=128
    )


def made_up(folder: Path) -> Path:
    """Two lines of made-up grey, not curves: the generator takes a second for an image of this size."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, 128, 128)).astype(np.uint8)
    write_pathfinder(folder, images, [k % 2 for k in range(20)], [(1.8, 14, 4, 5, 1.5, 2, 1)] * 20)
    return folder


if __name__ == "__main__":
    run(
        "Pathfinder-X",
        __doc__,
        data=partial(PathfinderDataModule, size=128),
        made_up=made_up,
        network=network,
        source=("pathfinder128", "of the release, or generated"),
        epochs=300,
        batch=768,
        num_classes=2,
    )
