"""Pathfinder-X: whether two discs lie on one dashed curve, one pixel of 128 x 128 a step.

16,384 steps: the activations of most are computed anew in the backward pass.
Data: lra_release/pathfinder128, or: elm-neuro lra generate pathfinder --size 128 --out pathfinder128

    python examples/lra/pathx.py [--smoke]

With checkpoints: elm-neuro fit --config lra_pathx, or lra_pathx_lstm, or lra_pathx_stack.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from lightning import Trainer, seed_everything
from torch import nn

from elm_neuro import ELM
from elm_neuro.datasets.lra import write_pathfinder
from elm_neuro.training import (
    PathfinderDataModule,
    ResidualStack,
    TokenClassification,
    TokenClassifier,
    TokenLSTM,
    num_parameters,
)
from elm_neuro.training import quiet as quiet_notes


def network(kind: str, num_tokens: int, size: int) -> nn.Module:
    """The paper's ELM neuron or Chrono-LSTM of `size` units, or a residual stack."""
    times = {"tau_s": 150.0, "tau_m_init": (1.0, 20000.0), "tau_m_bounds": (1.0, 20000.0), "recompute_every": 128}
    if kind == "lstm":
        return TokenLSTM(num_tokens, 2, size, timescales=(1.0, 20000.0))
    if kind == "stack":
        layers = [ELM(size // 2, 2 * (size // 2), size // 3, **times) for _ in range(4)]
        return ResidualStack(layers, num_tokens=num_tokens, num_classes=2, dropout=0.1)
    return TokenClassifier(ELM(num_tokens, 2, size, learn_w_s=False, **times))


def made_up(folder: Path) -> Path:
    """Two lines of made-up grey, not curves: the generator takes a second for an image of this size."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, 128, 128)).astype(np.uint8)
    write_pathfinder(folder, images, [k % 2 for k in range(20)], [(1.8, 14, 4, 5, 1.5, 2, 1)] * 20)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="pathfinder128", help="of the release, or generated")
    parser.add_argument("--network", choices=["elm", "lstm", "stack"], default="elm")
    parser.add_argument("--epochs", type=int, default=300, help="the paper's: 300")
    parser.add_argument("--batch", type=int, default=768, help="the paper's: 768")
    parser.add_argument("--smoke", action="store_true", help="made-up data and a small network, in seconds")
    options = parser.parse_args()
    if options.smoke:
        options.folder, options.epochs, options.batch = made_up(Path("lra_pathx_smoke")), 1, 8
    seed_everything(0, verbose=False)
    data = PathfinderDataModule(options.folder, batch_size=options.batch, size=128)
    rate = 2e-4 if options.network == "elm" else 1e-3
    model = TokenClassification(
        network(options.network, data.num_tokens, 8 if options.smoke else 150), num_classes=2, learning_rate=rate
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "auto"}
    trainer = Trainer(max_epochs=options.epochs, enable_progress_bar=not options.smoke, devices=1, **quiet)
    trainer.fit(model, datamodule=data)
    (figures,) = trainer.test(model, datamodule=data, verbose=False)
    print(
        f"Pathfinder-X: test accuracy {figures['test/accuracy']:.1%} with {num_parameters(model.network):,} parameters"
    )
    print(f"the commonest answer: {figures['test/majority']:.1%}")


if __name__ == "__main__":
    with quiet_notes():
        main()
