"""Pathfinder made here, in the layout of the release: folders of a thousand images, on several processes, taken up
again where it was stopped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from elm_neuro.datasets._counter import checked_seed
from elm_neuro.datasets._processes import worker_pool
from elm_neuro.datasets.lra._pathfinder_files import SUBSET, write_pathfinder
from elm_neuro.datasets.lra._pathfinder_made import draw_pathfinder, pathfinder_settings
from elm_neuro.files import json_object, leftovers, make_folder, remove, write_whole

BLOCK = 1000  # images of a folder
ABOUT = "generated.json"
Progress = Callable[[int, int], None]  # images that are there, of how many
Kind = tuple[int, int, int, int]  # size, seed, length of the curves, number of those that distract


def make_pathfinder(
    folder: str | os.PathLike[str],
    num_images: int,
    size: int = 32,
    *,
    seed: int = 0,
    contour_length: int = 14,
    num_distractors: int | None = None,
    num_workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Draw images 0 to ``num_images - 1`` of the endless list of `seed` and write them as the release has them.

    Image ``i`` depends on (seed, size, i) alone, whatever the number of processes; more images begin with the fewer
    ones. Called again after it was stopped, it goes on with the images that the metadata do not name yet; those that
    they name stay.

    Args:
        folder: to write into; curv_contour_length_14 is made in it.
        num_images: at least 1; the published set has 200,000.
        size: 32, 64 or 128.
        seed: in [0, 2**64).
        contour_length: paddles of the two curves; the published set has 14, shorter ones are easier.
        num_distractors: curves that distract; None is the published number.
        num_workers: processes.
        progress: called as ``progress(done, num_images)``.

    Raises:
        ValueError: an argument is out of range, or the folder holds images of another size or seed, or more of them.
        BlockingIOError: another process is writing into the folder.
        OSError: the folder cannot be written.
    """
    if num_images < 1 or num_workers < 1:
        raise ValueError(f"num_images and num_workers must be at least 1, got {num_images} and {num_workers}")
    settings = pathfinder_settings(size, contour_length=contour_length, num_distractors=num_distractors)
    place = Path(folder)
    make_folder(place, "folder")
    kind = (size, checked_seed(seed), settings.contour_length, settings.num_distractors)
    try:
        with FileLock(place / ".lock", timeout=0):
            _make(place, num_images, kind, num_workers, progress or (lambda *_: None))
    except Timeout as error:
        raise BlockingIOError(f"folder must be free, but another process is writing into {place}") from error


def _make(place: Path, num_images: int, kind: Kind, num_workers: int, report: Progress) -> None:
    _claim(place, dict(zip(("size", "seed", "contour_length", "num_distractors"), kind, strict=True)), num_images)
    for part in (place, place / SUBSET / "metadata"):
        for leftover in leftovers(part) if part.is_dir() else ():  # of a generator that was killed: the lock is ours
            remove(leftover)
    blocks = [(number, min(BLOCK, num_images - number * BLOCK)) for number in range(-(-num_images // BLOCK))]
    missing = [(number, count) for number, count in blocks if len(_images_in(place, number)) < count]
    done = sum(count for _, count in blocks) - sum(count for _, count in missing)
    report(done, num_images)
    if num_workers == 1 or len(missing) < 2:
        for number, count in missing:
            _write_block(place, number, count, kind)
            report(done := done + count, num_images)
        return
    with worker_pool(num_workers) as pool:
        futures = {pool.submit(_write_block, place, number, count, kind): count for number, count in missing}
        for future in as_completed(futures):
            future.result()
            report(done := done + futures[future], num_images)


def _claim(place: Path, about: dict[str, int], num_images: int) -> None:
    """Note what the folder is to hold; refuse it where it holds something else."""
    path = place / ABOUT
    if path.exists():
        if (before := json_object(path)) != about:
            raise ValueError(f"{place} must hold images of {about}, got {before}: another folder is needed")
    elif (place / SUBSET / "metadata").exists():
        raise ValueError(f"{place} must be empty or hold images that were generated, got others")
    else:
        write_whole({path: json.dumps(about).encode()})
    named = [file for file in (place / SUBSET / "metadata").glob("*.npy") if file.stem.isdigit()]
    if (num := sum(len(_lines(file)) for file in named)) > num_images:
        raise ValueError(
            f"{place} must hold no more than num_images = {num_images} images, got {num}: another folder is needed"
        )


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").splitlines() if path.is_file() else []


def _images_in(place: Path, number: int) -> list[str]:
    """Lines of the metadata of a block: none where it was stopped before they were written, or an image that they name
    is gone or was cut off: it has no bytes.
    """
    path, images = place / SUBSET / "metadata" / f"{number}.npy", place / SUBSET / "imgs" / str(number)
    lines = _lines(path)
    entries = os.scandir(images) if lines and images.is_dir() else ()
    there = {entry.name for entry in entries if entry.stat().st_size}
    return lines if all(f"sample_{index}.png" in there for index in range(len(lines))) else []


def _write_block(place: Path, number: int, count: int, kind: Kind) -> None:
    before = _images_in(place, number)
    if not before:
        shutil.rmtree(place / SUBSET / "imgs" / str(number), ignore_errors=True)  # half of it, perhaps
    size, seed, contour_length, num_distractors = kind
    options = {"seed": seed, "contour_length": contour_length, "num_distractors": num_distractors}
    drawings = [draw_pathfinder(number * BLOCK + index, size, **options) for index in range(len(before), count)]
    settings = pathfinder_settings(size, contour_length=contour_length)
    fields = [
        (
            settings.continuity,
            settings.contour_length,
            settings.distractor_length,
            settings.paddle_length,
            settings.paddle_thickness,
            drawing.margin,
            1,
        )
        for drawing in drawings
    ]
    images = np.stack([drawing.image for drawing in drawings])
    write_pathfinder(place, images, [drawing.label for drawing in drawings], fields, number=number, before=before)
