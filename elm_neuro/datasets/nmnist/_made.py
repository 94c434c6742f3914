"""A stand-in for N-MNIST that needs no download: scikit-learn's digits before a camera made up here.

Each image moves through three saccades, the sides of a triangle, as in the recordings of Orchard et al. 2015; a pixel
gives an event where the logarithm of its brightness has changed by a threshold since its last one (Lichtsteiner,
Posch, Delbruck, IEEE J. Solid-State Circuits 43:566, 2008). An accuracy on it says nothing about N-MNIST.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from elm_neuro.datasets.nmnist._files import PARTS, SIDE, PixelEvents, recordings_in, write_nmnist_file
from elm_neuro.files import json_object, leftovers, remove, write_whole

ABOUT = "generated.json"
NUM_STEPS = 300  # ms: three saccades of 100 each
REACH = 3.0  # pixels, from the first corner of the triangle to the second
CORNERS = np.array([[0.0, 0.0], [0.5, 1.0], [1.0, 0.0], [0.0, 0.0]]) - [0.5, 0.5]
DARK = 0.15  # brightness of the background; that of ink is 1 more
THRESHOLD = 0.35  # of the logarithm of brightness
NOISE_HZ = 0.3  # events of a pixel that nothing caused
TRAIN_SHARE = 0.7  # of scikit-learn's images; the others are for the test set


def make_nmnist(
    folder: str | os.PathLike[str],
    num_train: int = 1000,
    num_test: int = 300,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a stand-in in N-MNIST's form: folders Train and Test with a folder a digit.

    A recording depends on (seed, part, its number) alone. What is there already is not made again, so that what was
    stopped goes on, and more recordings begin with the fewer ones.

    Args:
        folder: made where it is not there.
        num_train: training recordings, at least 10, their digits in turn.
        num_test: test recordings, of images that no training recording has.
        seed: of all random numbers.
        progress: called as ``progress(done, of)``.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: a number is below 10, or the folder holds recordings of another seed, more than are asked for, or
            others than are made here.
        BlockingIOError: another process is writing into the folder.
        OSError: a file cannot be written.
    """
    for name, num in (("num_train", num_train), ("num_test", num_test)):
        if num < 10:
            raise ValueError(f"{name} must be at least 10, one a digit, got {num}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(Path(folder, ".lock"), timeout=0):
            _make(Path(folder), {"train": num_train, "test": num_test}, seed, progress or (lambda *_: None))
    except Timeout as error:
        raise BlockingIOError(f"folder must be free, but another process is writing into {folder}") from error


def _make(folder: Path, numbers: dict[str, int], seed: int, report: Callable[[int, int], None]) -> None:
    _claim(folder, seed, numbers)
    images, labels = _digits()
    first_of_test = round(TRAIN_SHARE * len(labels))
    done = 0
    for stream, (part, num) in enumerate(numbers.items()):
        usable = np.arange(first_of_test) if part == "train" else np.arange(first_of_test, len(labels))
        of_digit = [usable[labels[usable] == digit] for digit in range(10)]
        for number in range(num):
            digit = number % 10
            place = folder / PARTS[part] / str(digit)
            place.mkdir(parents=True, exist_ok=True)
            path = place / f"{number:05d}.bin"
            if not path.exists() or not path.stat().st_size:  # none has no events: it was cut off
                random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, stream, number]))
                chosen = of_digit[digit][random.integers(of_digit[digit].size)]
                write_nmnist_file(path, *seen(images[chosen], random))
            report(done := done + 1, sum(numbers.values()))


def _claim(folder: Path, seed: int, numbers: dict[str, int]) -> None:
    """Note what the folder is to hold, without what killed writers left; refuse it where it holds something else."""
    digits = {part: [place for place in (folder / PARTS[part]).glob("*") if place.is_dir()] for part in numbers}
    there = {part: [file for place in places for file in recordings_in(place)] for part, places in digits.items()}
    path, about = folder / ABOUT, {"generator": "elm_neuro N-MNIST stand-in", "seed": seed}
    if path.exists():
        if (before := json_object(path)) != about:
            raise ValueError(f"{folder} must hold recordings of {about}, got {before}: another folder is needed")
    elif any(there.values()):
        raise ValueError(f"{folder} must be empty or hold recordings that were made here, got others")
    else:
        write_whole({path: json.dumps(about).encode()})
    for part, files in there.items():
        if len(files) > numbers[part]:
            raise ValueError(
                f"{folder} must hold no more than num_{part} = {numbers[part]} recordings, got {len(files)}: another "
                "folder is needed"
            )
    for place in (folder, *digits["train"], *digits["test"]):
        for leftover in leftovers(place):  # the lock is ours
            remove(leftover)


def seen(image: NDArray[np.float64], random: np.random.Generator) -> PixelEvents:
    """Events of the camera before an image (8, 8) of brightness 0 to 1.

    Args:
        image: as scikit-learn has them, divided by 16.
        random: source of where the image stands, of the times within a millisecond and of noise.
    """
    brightness = np.log(_moved(image, random.uniform(-2.0, 2.0, 2)) + DARK)
    last, caused = brightness[0].copy(), []
    for step in range(1, NUM_STEPS):
        change = brightness[step] - last
        for sign in (1, -1):
            where = np.argwhere(sign * change > THRESHOLD)
            last[tuple(where.T)] += sign * THRESHOLD
            caused.append(np.column_stack((np.full(len(where), step), where, np.full(len(where), sign > 0))))
    num_noise = random.poisson(NOISE_HZ * 1e-3 * NUM_STEPS * SIDE * SIDE)
    caused.append(random.integers([0, 0, 0, 0], [NUM_STEPS, SIDE, SIDE, 2], (num_noise, 4)))
    steps, rows, columns, brighter = np.concatenate(caused).T
    times = 1000 * steps + random.integers(0, 1000, steps.size)
    order = np.argsort(times, kind="stable")
    return PixelEvents(*(values[order].astype(np.int64) for values in (times, columns, rows, brighter)))


def _moved(image: NDArray[np.float64], offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """The image at each millisecond, (NUM_STEPS, 34, 34), read between its pixels."""
    along = np.linspace(0.0, 3.0, NUM_STEPS)
    path = np.stack([np.interp(along, np.arange(4), CORNERS[:, axis]) for axis in (0, 1)], axis=1) * REACH + offset
    middle = (SIDE - 1) / 2
    pixels = (np.arange(SIDE) - middle) / 12.0  # the eight pixels of an image fill 24 of the camera's
    grid = np.zeros((NUM_STEPS, SIDE, SIDE, 2))
    grid[..., 0] = pixels - path[:, None, None, 0] / 12.0
    grid[..., 1] = pixels[:, None] - path[:, None, None, 1] / 12.0
    whole = torch.from_numpy(np.ascontiguousarray(image)).expand(NUM_STEPS, 1, *image.shape)
    return F.grid_sample(whole, torch.from_numpy(grid), align_corners=False)[:, 0].numpy()


def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images (1797, 8, 8) of brightness 0 to 1, and their digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('the stand-in for N-MNIST needs scikit-learn: pip install "elm-neuro[data]"') from error
    loaded = load_digits()
    return np.asarray(loaded.images, dtype=np.float64) / 16.0, np.asarray(loaded.target, dtype=np.int64)
