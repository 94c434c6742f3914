"""ListOps: what nested operations on digits come to, a token a step.

Sequences of about 1,000 tokens, ten answers.
Data: lra_release/listops-1000, or: elm-neuro lra generate listops --out listops.safetensors

    python examples/lra/listops.py [--smoke]

With checkpoints: elm-neuro fit --config lra_listops, or lra_listops_lstm, or lra_listops_stack.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning import Trainer, seed_everything
from torch import nn

from elm_neuro import ELM
from elm_neuro.datasets.lra import ListOpsSettings, make_listops
from elm_neuro.training import (
    ListOpsDataModule,
    ResidualStack,
    TokenClassification,
    TokenClassifier,
    TokenLSTM,
    num_parameters,
)
from elm_neuro.training import quiet as quiet_notes


def network(kind: str, num_tokens: int, size: int) -> nn.Module:
    """The paper's ELM neuron or Chrono-LSTM of `size` units, or a residual stack."""
    times = {"tau_s": 5.0, "tau_m_init": (1.0, 2000.0), "tau_m_bounds": (1.0, 2000.0)}
    if kind == "lstm":
        return TokenLSTM(num_tokens, 10, size, timescales=(1.0, 4000.0))
    if kind == "stack":
        layers = [ELM(size // 2, 2 * (size // 2), size // 3, **times) for _ in range(4)]
        return ResidualStack(layers, num_tokens=num_tokens, num_classes=10, dropout=0.1)
    return TokenClassifier(ELM(num_tokens, 10, size, learn_w_s=False, **times))


def made_up(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    settings = ListOpsSettings(max_depth=4, max_args=4, min_length=5, max_length=30)
    make_listops(200, settings).save(folder / "listops.safetensors")
    return folder / "listops.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="listops.safetensors", help="folder of the release, or a generated file")
    parser.add_argument("--network", choices=["elm", "lstm", "stack"], default="elm")
    parser.add_argument("--epochs", type=int, default=150, help="the paper's: 150")
    parser.add_argument("--batch", type=int, default=384, help="the paper's: 384")
    parser.add_argument("--smoke", action="store_true", help="made-up data and a small network, in seconds")
    options = parser.parse_args()
    if options.smoke:
        options.source, options.epochs, options.batch = made_up(Path("lra_listops_smoke")), 1, 8
    seed_everything(0, verbose=False)
    data = ListOpsDataModule(options.source, batch_size=options.batch)
    rate = 2e-4 if options.network == "elm" else 1e-3
    model = TokenClassification(
        network(options.network, data.num_tokens, 8 if options.smoke else 150), num_classes=10, learning_rate=rate
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "auto"}
    trainer = Trainer(max_epochs=options.epochs, enable_progress_bar=not options.smoke, devices=1, **quiet)
    trainer.fit(model, datamodule=data)
    (figures,) = trainer.test(model, datamodule=data, verbose=False)
    print(f"ListOps: test accuracy {figures['test/accuracy']:.1%} with {num_parameters(model.network):,} parameters")
    print(
        f"the commonest answer: {figures['test/majority']:.1%}; the best to each root: {figures['test/by_group']:.1%}"
    )


if __name__ == "__main__":
    with quiet_notes():
        main()
