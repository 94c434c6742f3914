"""Image: what a photograph of 32 x 32 shows, one pixel of 16 grey levels a step.

Data: cifar-10-batches-py, of https://www.cs.toronto.edu/~kriz/cifar.html, or folders of PNG files.

    python examples/lra/image.py [--smoke]

With checkpoints: elm-neuro fit --config lra_image, or lra_image_lstm, or lra_image_stack.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from lightning import Trainer, seed_everything
from PIL import Image
from torch import nn

from elm_neuro import ELM
from elm_neuro.training import (
    ImageDataModule,
    ResidualStack,
    TokenClassification,
    TokenClassifier,
    TokenLSTM,
    num_parameters,
)
from elm_neuro.training import quiet as quiet_notes


def network(kind: str, num_tokens: int, size: int) -> nn.Module:
    """The paper's ELM neuron or Chrono-LSTM of `size` units, or a residual stack."""
    times = {"tau_s": 5.0, "tau_m_init": (1.0, 1000.0), "tau_m_bounds": (1.0, 1000.0)}
    if kind == "lstm":
        return TokenLSTM(num_tokens, 10, size, timescales=(1.0, 2000.0))
    if kind == "stack":
        layers = [ELM(size // 2, 2 * (size // 2), size // 3, **times) for _ in range(4)]
        return ResidualStack(layers, num_tokens=num_tokens, num_classes=10, dropout=0.1)
    return TokenClassifier(ELM(num_tokens, 10, size, learn_w_s=False, **times))


def made_up(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 2)):
        for label in range(10):
            (folder / part / str(label)).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                shade = random.integers(20 * label, 20 * label + 70, (32, 32, 3))
                Image.fromarray(shade.astype(np.uint8)).save(folder / part / str(label) / f"{number}.png")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="cifar-10-batches-py", help="of pickles, PNG or parquet files")
    parser.add_argument("--network", choices=["elm", "lstm", "stack"], default="elm")
    parser.add_argument("--epochs", type=int, default=300, help="the paper's: 300")
    parser.add_argument("--batch", type=int, default=384, help="the paper's: 384")
    parser.add_argument("--smoke", action="store_true", help="made-up data and a small network, in seconds")
    options = parser.parse_args()
    if options.smoke:
        options.folder, options.epochs, options.batch = made_up(Path("lra_image_smoke")), 1, 8
    seed_everything(0, verbose=False)
    data = ImageDataModule(options.folder, batch_size=options.batch)
    rate = 2e-4 if options.network == "elm" else 1e-3
    model = TokenClassification(
        network(options.network, data.num_tokens, 8 if options.smoke else 150), num_classes=10, learning_rate=rate
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "auto"}
    trainer = Trainer(max_epochs=options.epochs, enable_progress_bar=not options.smoke, devices=1, **quiet)
    trainer.fit(model, datamodule=data)
    (figures,) = trainer.test(model, datamodule=data, verbose=False)
    print(f"Image: test accuracy {figures['test/accuracy']:.1%} with {num_parameters(model.network):,} parameters")
    print(f"the commonest answer: {figures['test/majority']:.1%}")


if __name__ == "__main__":
    with quiet_notes():
        main()
