"""Retrieval: whether one scientific paper cites the other, from the text of both."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from elm_neuro.datasets.lra._release import check_file, check_folder
from elm_neuro.datasets.lra._sequences import TokenSequences
from elm_neuro.datasets.lra._text import Undecodable, codes_of, text_vocabulary
from elm_neuro.datasets.lra._vocabulary import Codes, Convention, check_convention
from elm_neuro.files import open_regular

FILES = {
    "train": "new_aan_pairs.train.tsv",
    "valid": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
COLUMNS = ("label", "id1", "id2", "text1", "text2")
MAX_LENGTH = {"google": 4000, "s4": 4000, "mega": 4002}
FIRST_BYTES = 10_000  # what Google keeps of a text before it takes ids
MEGA_SIZE = 104
MAX_LINE = 1 << 26
Pair = tuple[int, bytes, bytes]


def read_pairs(path: str | os.PathLike[str], *, quoting: bool = False) -> list[Pair]:
    """Label and both texts of each pair in a file.

    Args:
        path: of a tab-separated file without header: label, two names, two texts.
        quoting: read as S4 and S5 do, with quotes as of spreadsheets: a text that begins with one swallows what
            follows, lines and all, up to the next quote; missing columns are empty texts. By default a quote is a
            character, as Google reads.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has another number of columns, or a label that is not 0 or 1, or is too long.
    """
    return list(_pairs(path, quoting))


def _pairs(path: str | os.PathLike[str], quoting: bool) -> Iterator[Pair]:
    check_file(path, "Retrieval")
    for number, columns in enumerate(_quoted(path) if quoting else _lines(path), start=1):
        if quoting:
            columns += [b""] * (len(COLUMNS) - len(columns))
        if len(columns) != len(COLUMNS):
            raise ValueError(
                f"{path}, row {number} must have {len(COLUMNS)} columns ({', '.join(COLUMNS)}), got {len(columns)}"
            )
        if not re.fullmatch(rb"[01](\.0*)?", columns[0]):
            raise ValueError(f"{path}, row {number} must have a label of 0 or 1, got {columns[0][:20]!r}")
        yield int(columns[0][:1]), columns[3], columns[4]


def _lines(path: str | os.PathLike[str]) -> Iterator[list[bytes]]:
    with open_regular(path) as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise ValueError(f"{path}, row {number} must have fewer than {MAX_LINE} bytes")
            yield line.rstrip(b"\n").removesuffix(b"\r").split(b"\t")


def _quoted(path: str | os.PathLike[str]) -> Iterator[list[bytes]]:
    with io.TextIOWrapper(open_regular(path), "utf-8", "surrogateescape", newline="") as file:
        rows = csv.reader(_text_lines(path, file), delimiter="\t")
        limit = csv.field_size_limit(MAX_LINE)
        try:
            for row in rows:
                yield [field.encode("utf-8", errors="surrogateescape") for field in row]
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {rows.line_num} must end a text of at most {MAX_LINE} bytes: {error}"
            ) from error
        finally:
            csv.field_size_limit(limit)


def _text_lines(path: str | os.PathLike[str], file: TextIO) -> Iterator[str]:
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise ValueError(f"{path} must have lines of fewer than {MAX_LINE} bytes")
        yield line


def read_retrieval(
    folder: str | os.PathLike[str],
    convention: Convention = "mega",
    *,
    max_length: int | None = None,
    quoting: bool = False,
    undecodable: Undecodable = "refuse",
) -> dict[str, TokenSequences]:
    """Pairs of "train", "valid" and "test"; ``per_item`` is 2.

    Args:
        folder: tsv_data.
        convention: "google": the first 10,000 bytes, then 4,000 of them, the id is the byte + 1 (its loader refuses an
            empty text; here it is one padding). "s4": characters of the training texts, an end, 4000 in all. "mega":
            104 ids and one more, the paper's 105 inputs, an end, 4002 in all.
        max_length: of a sequence, an end included; None is the loader's.
        quoting: as in :func:`read_pairs`.
        undecodable: as in :func:`elm_neuro.datasets.lra.read_text`.

    Raises:
        FileNotFoundError: a file is not there; the message says where it comes from.
        ValueError: a file is not in the published layout.
    """
    check_convention(convention)
    check_folder(folder, "Retrieval")
    longest = MAX_LENGTH[convention] if max_length is None else max_length
    for name in FILES.values():
        check_file(Path(folder) / name, "Retrieval")
    cut = min(longest, FIRST_BYTES) if convention == "google" else longest
    codes: dict[str, list[Codes]] = {part: [] for part in FILES}
    labels: dict[str, list[int]] = {part: [] for part in FILES}
    for part, name in FILES.items():
        for row, (label, *texts) in enumerate(_pairs(Path(folder) / name, quoting), start=1):
            codes[part] += [codes_of(f"{name}, row {row}", text, convention, cut, undecodable) for text in texts]
            labels[part].append(label)
    vocabulary = text_vocabulary(codes["train"], convention, longest, min_count=1, mega_size=MEGA_SIZE)
    return {part: vocabulary.encode(codes[part], labels[part], num_classes=2, per_item=2) for part in FILES}
