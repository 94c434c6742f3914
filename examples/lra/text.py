"""Text: whether a film review is good or bad, one letter a step.

Data: aclImdb, of https://ai.stanford.edu/~amaas/data/sentiment

    python examples/lra/text.py [--smoke]

With checkpoints: elm-neuro fit --config lra_text, or lra_text_lstm, or lra_text_stack.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _common import run, token_network
from torch import nn

from elm_neuro.training import TextDataModule


def network(kind: str, num_tokens: int, size: int) -> nn.Module:
    return token_network(kind, num_tokens, 2, size, slowest=4000.0, slowest_lstm=8000.0)


def made_up(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for label, word in (("neg", "dull "), ("pos", "fine ")):
            (folder / part / label).mkdir(parents=True, exist_ok=True)
            for number in range(40):
                text = "A film that is " + word * int(random.integers(1, 9))
                (folder / part / label / f"{number}_{1 if label == 'neg' else 10}.txt").write_text(
                    text, encoding="utf-8"
                )
    return folder


if __name__ == "__main__":
    run(
        "Text",
        __doc__,
        data=TextDataModule,
        made_up=made_up,
        network=network,
        source=("aclImdb", "with train and test"),
        epochs=150,
        batch=384,
        num_classes=2,
    )
