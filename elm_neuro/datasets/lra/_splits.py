"""Which samples train, validate and test where the data set does not say."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from elm_neuro.datasets.lra._sequences import TokenSequences
from elm_neuro.datasets.lra._vocabulary import Convention, check_convention

SEED = 42  # of S4, S5 and Mega
Ints = NDArray[np.int64]


def random_parts(num_samples: int, sizes: dict[str, int], *, seed: int = SEED) -> dict[str, Ints]:
    """Samples in an order drawn by `seed`, cut one after the other: ``torch.utils.data.random_split``.

    Raises:
        ValueError: the sizes do not add up to `num_samples`.

    >>> random_parts(40, {"train": 36, "valid": 4})["valid"]
    array([30, 36,  1,  5])
    """
    if min(sizes.values()) < 0 or sum(sizes.values()) != num_samples:
        raise ValueError(f"sizes must not be negative and add up to {num_samples} samples, got {sizes}")
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed), device="cpu").numpy()
    return dict(zip(sizes, np.split(order, np.cumsum(list(sizes.values()))[:-1]), strict=True))


def parts_in_order(num_samples: int, sizes: dict[str, int]) -> dict[str, Ints]:
    """Samples as they come, cut one after the other."""
    bounds = np.cumsum(list(sizes.values()))[:-1]
    return dict(zip(sizes, np.split(np.arange(num_samples), bounds), strict=True))


def pathfinder_split(num_samples: int, convention: Convention) -> dict[str, Ints]:
    """80, 10 and 10 % that train, validate and test: "google" cuts the images as they come, the others draw.

    >>> {part: indices.size for part, indices in pathfinder_split(200_000, "s4").items()}
    {'train': 160000, 'valid': 20000, 'test': 20000}
    """
    check_convention(convention)
    tenth = int(0.1 * num_samples)
    sizes = {"train": num_samples - 2 * tenth, "valid": tenth, "test": tenth}
    return (parts_in_order if convention == "google" else random_parts)(num_samples, sizes)


def image_split(num_samples: int, convention: Convention) -> dict[str, Ints]:
    """90 % of the training images that train, 10 % that validate: "google" takes the last ones, the others draw."""
    check_convention(convention)
    tenth = int(0.1 * num_samples)
    sizes = {"train": num_samples - tenth, "valid": tenth}
    return (parts_in_order if convention == "google" else random_parts)(num_samples, sizes)


def held_out(sequences: TokenSequences, fraction: float, *, seed: int = SEED) -> dict[str, TokenSequences]:
    """A part "valid" of the samples drawn by `seed`, and the rest, "train".

    Raises:
        ValueError: `fraction` is not in [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"fraction must be in [0, 1), got {fraction}")
    size = int(fraction * len(sequences))
    parts = random_parts(len(sequences), {"train": len(sequences) - size, "valid": size}, seed=seed)
    return {name: sequences.subset(indices) for name, indices in parts.items()}
