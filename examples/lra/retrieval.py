"""Retrieval: whether one paper cites the other, one letter a step, both read by one network.

Data: lra_release/tsv_data, of https://storage.googleapis.com/long-range-arena/lra_release.gz

    python examples/lra/retrieval.py [--smoke]

With checkpoints: elm-neuro fit --config lra_retrieval, or lra_retrieval_lstm, or lra_retrieval_stack.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from lightning import Trainer, seed_everything
from torch import nn

from elm_neuro import ELM
from elm_neuro.training import (
    ResidualStack,
    RetrievalDataModule,
    TokenClassification,
    TokenClassifier,
    TokenLSTM,
    TwoTowers,
    num_parameters,
)
from elm_neuro.training import quiet as quiet_notes


def network(kind: str, num_tokens: int, size: int) -> nn.Module:
    """The paper's ELM neuron or Chrono-LSTM of `size` units, or a residual stack."""
    times = {"tau_s": 5.0, "tau_m_init": (1.0, 4000.0), "tau_m_bounds": (1.0, 4000.0)}
    if kind == "lstm":
        return TwoTowers(TokenLSTM(num_tokens, 75, size, timescales=(1.0, 8000.0)))
    if kind == "stack":
        layers = [ELM(size // 2, 2 * (size // 2), size // 3, **times) for _ in range(4)]
        return TwoTowers(ResidualStack(layers, num_tokens=num_tokens, num_classes=75, dropout=0.1))
    return TwoTowers(TokenClassifier(ELM(num_tokens, 75, size, learn_w_s=False, **times)))


def made_up(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 80), ("eval", 16), ("test", 16)):
        rows = []
        for number, label in enumerate(random.integers(0, 2, count)):
            one, other = (f"a paper on topic {topic}" for topic in (number % 5, (number + 1 - label) % 5))
            rows.append(f"{label}.0\tP{number}\tW{number}\t{one}\t{other}\n")
        (folder / f"new_aan_pairs.{part}.tsv").write_text("".join(rows), encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="lra_release/tsv_data", help="with new_aan_pairs.*.tsv")
    parser.add_argument("--network", choices=["elm", "lstm", "stack"], default="elm")
    parser.add_argument("--epochs", type=int, default=150, help="the paper's: 150")
    parser.add_argument("--batch", type=int, default=384, help="the paper's: 384")
    parser.add_argument("--smoke", action="store_true", help="made-up data and a small network, in seconds")
    options = parser.parse_args()
    if options.smoke:
        options.folder, options.epochs, options.batch = made_up(Path("lra_retrieval_smoke")), 1, 8
    seed_everything(0, verbose=False)
    data = RetrievalDataModule(options.folder, batch_size=options.batch)
    rate = 2e-4 if options.network == "elm" else 1e-3
    model = TokenClassification(
        network(options.network, data.num_tokens, 8 if options.smoke else 150), num_classes=2, learning_rate=rate
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "auto"}
    trainer = Trainer(max_epochs=options.epochs, enable_progress_bar=not options.smoke, devices=1, **quiet)
    trainer.fit(model, datamodule=data)
    (figures,) = trainer.test(model, datamodule=data, verbose=False)
    print(f"Retrieval: test accuracy {figures['test/accuracy']:.1%} with {num_parameters(model.network):,} parameters")
    print(f"the commonest answer: {figures['test/majority']:.1%}")


if __name__ == "__main__":
    with quiet_notes():
        main()
