"""Text classification: film reviews as bytes or characters, good or bad."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from elm_neuro.datasets.lra._release import check_folder
from elm_neuro.datasets.lra._sequences import TokenSequences
from elm_neuro.datasets.lra._vocabulary import (
    Codes,
    Convention,
    Vocabulary,
    bytes_vocabulary,
    check_convention,
    mega_vocabulary,
    s4_vocabulary,
)
from elm_neuro.files import listing, read_file

CLASSES = ("neg", "pos")
MAX_LENGTH = {"google": 4000, "s4": 4096, "mega": 4002}
MIN_COUNT = 15  # of a character, for S4
MEGA_SIZE = 168  # ids before the last one
MAX_BYTES = 1 << 24  # of a review
_NAME = re.compile(r"(\d+)_(\d+)\.txt")
Undecodable = Literal["refuse", "replace"]


def read_text(
    folder: str | os.PathLike[str],
    convention: Convention = "mega",
    *,
    max_length: int | None = None,
    undecodable: Undecodable = "refuse",
) -> dict[str, TokenSequences]:
    """Reviews of "train" and "test" (25,000 each, as published), by their class and their number.

    Everything but ``{train,test}/{pos,neg}/NUMBER_RATING.txt`` is left alone. The data set has no validation part: all
    three loaders validate on the test set; :func:`elm_neuro.datasets.lra.held_out` takes a part of the training set.

    Args:
        folder: aclImdb.
        convention: "google": bytes, the id is the byte + 1, 257 ids (its paper: 4000 of them, its base configuration
            1000). "s4": characters that occur 15 times or more in training, an end, at most 4096. "mega": 168 ids and
            one more, the paper's 169 inputs, an end, at most 4002; its data are not to be had, so that ids go by
            frequency as its dictionary would give them.
        max_length: of a sequence, an end included; None is the loader's.
        undecodable: whether bytes that are no UTF-8 are refused or replaced by U+FFFD; to "google" all bytes are good.

    Raises:
        FileNotFoundError: a folder is not there, or holds no reviews; the message says where they come from.
        ValueError: a file cannot be read as text, or is a link that leads out of the folder.
    """
    check_convention(convention)
    check_folder(folder, "Text")
    longest = MAX_LENGTH[convention] if max_length is None else max_length
    read = {part: _reviews(Path(folder), part) for part in ("train", "test")}
    codes = {
        part: [codes_of(path, read_file(path, MAX_BYTES), convention, longest, undecodable) for path, _ in reviews]
        for part, reviews in read.items()
    }
    vocabulary = text_vocabulary(codes["train"], convention, longest, min_count=MIN_COUNT, mega_size=MEGA_SIZE)
    return {
        part: vocabulary.encode(codes[part], [label for _, label in reviews], num_classes=2)
        for part, reviews in read.items()
    }


def review_files(folder: str | os.PathLike[str], part: str) -> list[Path]:
    """The reviews of a part, in the order that :func:`read_text` gives them."""
    return [path for path, _ in _reviews(Path(folder), part)]


def _reviews(folder: Path, part: str) -> list[tuple[Path, int]]:
    reviews: list[tuple[Path, int]] = []
    for label, name in enumerate(CLASSES):
        place = folder / part / name
        check_folder(place, "Text")
        numbered = [(match, path) for path in place.iterdir() if (match := _NAME.fullmatch(path.name))]
        for _, path in numbered:
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
                raise ValueError(f"{path} must lie in {folder}, got a link that leads out of it")
        if not numbered:
            raise FileNotFoundError(f"{place} must hold reviews named NUMBER_RATING.txt, got {listing(place)}")
        reviews += [(path, label) for _, path in sorted(numbered, key=lambda one: (int(one[0][1]), int(one[0][2])))]
    return reviews


def codes_of(
    place: object, raw: bytes, convention: Convention, max_length: int, undecodable: Undecodable = "refuse"
) -> Codes:
    """The beginning of a text as bytes, or as code points.

    Args:
        place: of the text, for the message.
        raw: its bytes.
        convention: "google" takes bytes.
        max_length: of the beginning; all of the text is looked at.
        undecodable: as in :func:`read_text`.

    Raises:
        ValueError: it is no UTF-8.
    """
    if convention == "google":
        return np.frombuffer(raw[:max_length], dtype=np.uint8)
    try:
        text = raw.decode("utf-8", errors="replace" if undecodable == "replace" else "strict")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place} must be UTF-8 for convention {convention!r}, got byte {raw[error.start]:#04x} at {error.start}; "
            'undecodable="replace" puts U+FFFD in its place'
        ) from error
    text = text[:max_length]
    return np.frombuffer(text.encode(), np.uint8) if text.isascii() else np.frombuffer(text.encode("utf-32-le"), "<u4")


def text_vocabulary(
    training: Iterable[Codes], convention: Convention, max_length: int, *, min_count: int, mega_size: int
) -> Vocabulary:
    """Ids of bytes or code points, by their frequency in the beginnings of the training texts that are read."""
    if convention == "google":
        return bytes_vocabulary(max_length)
    counts: Counter[int] = Counter()
    for codes in training:
        values, numbers = np.unique(codes[: max_length - 1], return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    if convention == "s4":
        return s4_vocabulary(counts, chr, max_length=max_length, min_count=min_count)
    return mega_vocabulary(counts, chr, max_length=max_length, size=mega_size)
