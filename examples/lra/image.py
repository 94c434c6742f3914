"""Image: what a photograph of 32 x 32 shows, one pixel of 16 grey levels a step.

Data: cifar-10-batches-py, of https://www.cs.toronto.edu/~kriz/cifar.html, or folders of PNG files.

    python examples/lra/image.py [--smoke]

With checkpoints: elm-neuro fit --config lra_image, or lra_image_lstm, or lra_image_stack.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _common import run, token_network
from PIL import Image
from torch import nn

from elm_neuro.training import ImageDataModule


def network(kind: str, num_tokens: int, size: int) -> nn.Module:
    return token_network(kind, num_tokens, 10, size, slowest=1000.0, slowest_lstm=2000.0)


def made_up(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 2)):
        for label in range(10):
            (folder / part / str(label)).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                shade = random.integers(20 * label, 20 * label + 70, (32, 32, 3))
                Image.fromarray(shade.astype(np.uint8)).save(folder / part / str(label) / f"{number}.png")
    return folder


if __name__ == "__main__":
    run(
        "Image",
        __doc__,
        data=ImageDataModule,
        made_up=made_up,
        network=network,
        source=("cifar-10-batches-py", "of pickles, PNG or parquet files"),
        epochs=300,
        batch=384,
        num_classes=10,
    )
