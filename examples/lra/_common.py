"""What the scripts of this folder share: the three networks, the options, and training and test."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything
from torch import nn

from elm_neuro import ELM
from elm_neuro.training import (
    ResidualStack,
    TokenClassification,
    TokenClassifier,
    TokenDataModule,
    TokenLSTM,
    num_parameters,
    quiet,
)

SILENT = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "auto"}


def token_network(
    kind: str, num_tokens: int, num_outputs: int, size: int, *, slowest: float, slowest_lstm: float, **options: Any
) -> nn.Module:
    """The paper's ELM neuron ("elm") or Chrono-LSTM ("lstm") of `size` units, or a residual stack of ELM layers
    ("stack"); time constants reach up to `slowest` ms, a step is 1 ms.
    """
    times = {"tau_s": 5.0, "tau_m_init": (1.0, slowest), "tau_m_bounds": (1.0, slowest), **options}
    if kind == "lstm":
        return TokenLSTM(num_tokens, num_outputs, size, timescales=(1.0, slowest_lstm))
    if kind == "stack":
        layers = [ELM(size // 2, 2 * (size // 2), size // 3, **times) for _ in range(4)]
        return ResidualStack(layers, num_tokens=num_tokens, num_classes=num_outputs, dropout=0.1)
    return TokenClassifier(ELM(num_tokens, num_outputs, size, learn_w_s=False, **times))


def run(
    task: str,
    doc: str | None,
    *,
    data: Callable[..., TokenDataModule],
    made_up: Callable[[Path], Path],
    network: Callable[[str, int, int], nn.Module],
    source: tuple[str, str],
    epochs: int,
    batch: int,
    num_classes: int,
) -> None:
    """Read the command line, train, test, print.

    Args:
        task: its name.
        doc: of the script, which explains it.
        data: of (source, batch_size=...).
        made_up: writes a little data into a folder and says what `data` is to read.
        network: of (kind, number of tokens, size).
        source: where the data are by default, and what they are.
        epochs: the paper's.
        batch: the paper's.
        num_classes: answers.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=source[0], help=source[1])
    parser.add_argument("--network", choices=["elm", "lstm", "stack"], default="elm")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"the paper's: {epochs}")
    parser.add_argument("--batch", type=int, default=batch, help=f"the paper's: {batch}")
    parser.add_argument("--smoke", action="store_true", help="made-up data and a small network, in seconds")
    options = parser.parse_args()
    if options.smoke:
        folder = Path(f"lra_{task.lower()}_smoke")
        folder.mkdir(exist_ok=True)
        options.source, options.epochs, options.batch = made_up(folder), 1, 8
    seed_everything(0, verbose=False)
    with quiet():
        tokens = data(options.source, batch_size=options.batch)
        model = TokenClassification(
            network(options.network, tokens.num_tokens, 8 if options.smoke else 150),
            num_classes=num_classes,
            learning_rate=2e-4 if options.network == "elm" else 1e-3,
        )
        trainer = Trainer(max_epochs=options.epochs, enable_progress_bar=not options.smoke, devices=1, **SILENT)
        trainer.fit(model, datamodule=tokens)
        (figures,) = trainer.test(model, datamodule=tokens, verbose=False)
    print(f"{task}: test accuracy {figures['test/accuracy']:.1%} with {num_parameters(model.network):,} parameters")
    roots = f"; the best to each root: {figures['test/by_group']:.1%}" if "test/by_group" in figures else ""
    print(f"the commonest answer: {figures['test/majority']:.1%}{roots}")
