"""Handwritten digits pixel by pixel: an image task that needs no download. They come with scikit-learn."""

from __future__ import annotations

import numpy as np

from elm_neuro.datasets.lra._pathfinder_files import image_sequences
from elm_neuro.datasets.lra._sequences import TokenSequences
from elm_neuro.datasets.lra._splits import random_parts

NUM_LEVELS = 17  # 0 to 16


def read_digits() -> dict[str, TokenSequences]:
    """8 x 8 images of the ten digits, 64 steps of 17 levels: 1,257 "train", 180 "valid" and 360 "test", drawn by seed
    42.

    Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository, by way of
    ``sklearn.datasets.load_digits``. It is no task of Long Range Arena.

    Raises:
        ImportError: scikit-learn is not installed.

    >>> read_digits()["test"]
    TokenSequences(num_items=360, num_tokens=17, num_classes=10)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('the sequential digits need scikit-learn: pip install "elm-neuro[data]"') from error
    loaded = load_digits()
    tokens, labels = np.asarray(loaded.data).astype(np.uint8), np.asarray(loaded.target).astype(np.int64)
    sequences = image_sequences(tokens, labels, NUM_LEVELS, 10)
    num = len(sequences)
    sizes = {"train": num - 180 - 360, "valid": 180, "test": 360}
    return {part: sequences.subset(indices) for part, indices in random_parts(num, sizes).items()}
