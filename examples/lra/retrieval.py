"""Retrieval: whether one paper cites the other, one letter a step, both read by one network.

Data: lra_release/tsv_data, of https://storage.googleapis.com/long-range-arena/lra_release.gz

    python examples/lra/retrieval.py [--smoke]

With checkpoints: elm-neuro fit --config lra_retrieval, or lra_retrieval_lstm, or lra_retrieval_stack.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _common import run, token_network
from torch import nn

from elm_neuro.training import RetrievalDataModule, TwoTowers


def network(kind: str, num_tokens: int, size: int) -> nn.Module:
    return TwoTowers(token_network(kind, num_tokens, 75, size, slowest=4000.0, slowest_lstm=8000.0))


def made_up(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for part, count in (("train", 80), ("eval", 16), ("test", 16)):
        rows = []
        for number, label in enumerate(random.integers(0, 2, count)):
            one, other = (f"a paper on topic {topic}" for topic in (number % 5, (number + 1 - label) % 5))
            rows.append(f"{label}.0\tP{number}\tW{number}\t{one}\t{other}\n")
        (folder / f"new_aan_pairs.{part}.tsv").write_text("".join(rows), encoding="utf-8")
    return folder


if __name__ == "__main__":
    run(
        "Retrieval",
        __doc__,
        data=RetrievalDataModule,
        made_up=made_up,
        network=network,
        source=("lra_release/tsv_data", "with new_aan_pairs.*.tsv"),
        epochs=150,
        batch=384,
        num_classes=2,
    )
