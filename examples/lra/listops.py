"""ListOps: what nested operations on digits come to, a token a step.

Sequences of about 1,000 tokens, ten answers.
Data: lra_release/listops-1000, or: elm-neuro lra generate listops --out listops.safetensors

    python examples/lra/listops.py [--smoke]

With checkpoints: elm-neuro fit --config lra_listops, or lra_listops_lstm, or lra_listops_stack.
"""

from __future__ import annotations

from pathlib import Path

from _common import run, token_network
from torch import nn

from elm_neuro.datasets.lra import ListOpsSettings, make_listops
from elm_neuro.training import ListOpsDataModule


def network(kind: str, num_tokens: int, size: int) -> nn.Module:
    return token_network(kind, num_tokens, 10, size, slowest=2000.0, slowest_lstm=4000.0)


def made_up(folder: Path) -> Path:
    settings = ListOpsSettings(max_depth=4, max_args=4, min_length=5, max_length=30)
    make_listops(200, settings).save(folder / "listops.safetensors")
    return folder / "listops.safetensors"


if __name__ == "__main__":
    run(
        "ListOps",
        __doc__,
        data=ListOpsDataModule,
        made_up=made_up,
        network=network,
        source=("listops.safetensors", "folder of the release, or a generated file"),
        epochs=150,
        batch=384,
        num_classes=10,
    )
