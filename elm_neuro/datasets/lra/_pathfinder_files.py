"""Pathfinder as published: folders of PNG files, and text files that say what each shows."""

from __future__ import annotations

import io
import os
import tokenize
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from elm_neuro.datasets.lra._grey import to_levels
from elm_neuro.datasets.lra._png import read_png
from elm_neuro.datasets.lra._release import check_folder
from elm_neuro.datasets.lra._sequences import TokenSequences
from elm_neuro.files import listing, naming, read_file, write_whole

SUBSET = "curv_contour_length_14"  # the hardest one, which all loaders take
FIELDS = (
    "subdir", "file", "index", "label", "continuity", "contour_length", "distractor_length", "paddle_length",
    "paddle_thickness", "margin", "num_contrasts",
)  # fmt: skip
MAX_BYTES = 1 << 28
Progress = Callable[[int, int], None]


class Shown(NamedTuple):
    """A line of the metadata: an image and its label."""

    path: Path
    label: int


def pathfinder_images(folder: str | os.PathLike[str]) -> list[Shown]:
    """Images and labels as the metadata say, file after file by their numbers.

    Args:
        folder: pathfinder32 or pathfinder128, or the folder curv_contour_length_14 in it.

    Raises:
        FileNotFoundError: a folder is not there; the message says where it comes from.
        ValueError: metadata are not in the published layout, or name one image twice.
    """
    check_folder(folder, "Pathfinder")
    place = Path(folder)
    place = place / SUBSET if (place / SUBSET).is_dir() else place
    if not (place / "metadata").is_dir() or not (place / "imgs").is_dir():
        raise FileNotFoundError(f"{place} must hold imgs and metadata, or {SUBSET} with both, got {listing(place)}")
    files = sorted((path for path in (place / "metadata").glob("*.npy") if path.stem.isdigit()), key=_number)
    if not files:
        raise FileNotFoundError(f"{place / 'metadata'} must hold files 0.npy, 1.npy, ..., got none")
    shown = [one for path in files for one in _read_metadata(path, place)]
    twice = {one.path for one in shown}
    if len(twice) != len(shown):
        raise ValueError(f"metadata in {place} must name each image once, got {len(shown)} lines for {len(twice)}")
    return shown


def _number(path: Path) -> int:
    return int(path.stem)


def _read_metadata(path: Path, place: Path) -> Iterator[Shown]:
    for number, fields in enumerate(_rows(path), start=1):
        if len(fields) != len(FIELDS):
            raise ValueError(
                f"{path}, line {number} must have {len(FIELDS)} fields ({' '.join(FIELDS)}), got {len(fields)}"
            )
        subdir, name, _, label = fields[:4]
        image = place / subdir / name
        if Path(subdir).is_absolute() or ".." in Path(subdir).parts or Path(name).name != name:
            raise ValueError(f"{path}, line {number} must name an image in {place}, got {subdir}/{name}")
        if label not in ("0", "1"):
            raise ValueError(f"{path}, line {number} must have a label of 0 or 1, got {label[:20]!r}")
        yield Shown(image, int(label))


def _rows(path: Path) -> Iterator[Sequence[str]]:
    """Fields of each line: of a text, as released, or of what ``np.save`` wrote, as the generator leaves it."""
    raw = read_file(path, MAX_BYTES)
    if not raw.startswith(b"\x93NUMPY"):
        try:
            text = raw.decode("ascii")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} must be ASCII text, or an array that np.save wrote: {error}") from error
        yield from (line.split() for line in text.splitlines() if line.strip())
        return
    try:
        array = np.load(io.BytesIO(raw), allow_pickle=False)
        if array.ndim != 2 or array.dtype.kind != "U":
            raise ValueError(f"got {array.dtype} of shape {array.shape}")
        codes = np.ascontiguousarray(array).view(f"{array.dtype.byteorder}u4")
        if codes.size and int(codes.max()) > 127:
            raise ValueError(f"got the code point {int(codes.max()):#x}, which is no ASCII")
    except (ValueError, EOFError, SyntaxError, TypeError, MemoryError, OverflowError, tokenize.TokenError) as error:
        raise ValueError(f"{path} must hold rows of texts: {error}") from error
    yield from array.tolist()


def read_pathfinder(
    folder: str | os.PathLike[str], size: int, *, num_levels: int | None = None, progress: Progress | None = None
) -> TokenSequences:
    """All images, row by row from the top, in the order of the metadata: :func:`pathfinder_split` cuts them.

    Args:
        folder: as in :func:`pathfinder_images`.
        size: of their sides.
        num_levels: grey levels; None for the paper's: 16, or 8 of images of 128 and more.
        progress: called as ``progress(done, total)``.

    Raises:
        FileNotFoundError: a folder or an image that the metadata name is not there.
        ValueError: metadata or an image are damaged, or an image has another size.
    """
    levels = paper_levels(size) if num_levels is None else num_levels
    shown = pathfinder_images(folder)
    tokens = np.empty((len(shown), size * size), dtype=np.uint8)
    for row, (path, _) in enumerate(shown):
        tokens[row] = to_levels(read_png(path, size, "L"), levels).ravel()
        if progress is not None:
            progress(row + 1, len(shown))
    return image_sequences(tokens, np.array([one.label for one in shown], dtype=np.int64), levels, 2)


def paper_levels(size: int) -> int:
    """Grey levels that the paper bins images of this size to."""
    return 8 if size >= 128 else 16


def image_sequences(
    tokens: NDArray[np.uint8], labels: NDArray[np.int64], num_levels: int, num_classes: int
) -> TokenSequences:
    """Images of one size, (num_images, pixels), as sequences of levels."""
    num, pixels = tokens.shape
    return TokenSequences(
        np.ascontiguousarray(tokens).reshape(-1), np.arange(num + 1) * pixels, labels, num_levels, num_classes
    )


def write_pathfinder(
    folder: str | os.PathLike[str],
    images: NDArray[np.uint8],
    labels: Sequence[int],
    fields: Sequence[Sequence[object]],
    *,
    number: int = 0,
    before: Sequence[str] = (),
) -> None:
    """Write images in the layout of the release; the metadata come last, so that images that they do not name are not
    whole.

    Args:
        folder: pathfinder32, for example; folders in it are made.
        images: grey values, (num_images, size, size).
        labels: of each.
        fields: the last seven of `FIELDS`, of each.
        number: of the folder of images and the file of metadata.
        before: lines of the metadata of images that are there, whose numbers come first.

    Raises:
        OSError: they cannot be written.
    """
    place = Path(folder) / SUBSET
    directory = f"imgs/{number}"
    for path in (place / directory, place / "metadata"):
        path.mkdir(parents=True, exist_ok=True)
    lines = list(before)
    for index, (image, label, rest) in enumerate(zip(images, labels, fields, strict=True), start=len(before)):
        name, content = f"sample_{index}.png", io.BytesIO()
        Image.fromarray(image).save(content, format="PNG")
        path = place / directory / name
        with naming(path):
            path.write_bytes(content.getvalue())
        lines.append(" ".join(map(str, (directory, name, index, label, *rest))))
    write_whole({place / "metadata" / f"{number}.npy": ("\n".join(lines) + "\n").encode()})
