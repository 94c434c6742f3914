"""ListOps as published: three files of two columns, expressions with nested parentheses and what they evaluate to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets.lra._listops_trees import FIRST_OPERATOR, OPERATORS, TOKENS
from elm_neuro.datasets.lra._release import check_file, check_folder
from elm_neuro.datasets.lra._sequences import TokenSequences
from elm_neuro.datasets.lra._vocabulary import (
    Convention,
    Vocabulary,
    check_convention,
    mega_vocabulary,
    s4_vocabulary,
)
from elm_neuro.files import open_regular, whole_files

FILES = {"train": "basic_train.tsv", "valid": "basic_val.tsv", "test": "basic_test.tsv"}
HEADER = b"Source\tTarget"
MAX_LENGTH = {"google": 2000, "s4": 2048, "mega": 2002}
MAX_LINE = 1 << 24
LETTERS = {token.encode(): bytes([128 + code]) for code, token in enumerate(OPERATORS)}  # no ASCII
_CODES = bytes((b"0123456789]" + b"".join(LETTERS.values())).find(byte) % 256 for byte in range(256))
_PARENTHESES = b"() "
Expressions = tuple[list[NDArray[np.uint8]], list[int]]


def read_expressions(path: str | os.PathLike[str]) -> Expressions:
    """Tokens of each expression in a file, places in `TOKENS`, parentheses left out, and the targets.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not an expression of ListOps, a tab and a digit.
    """
    check_file(path, "ListOps")
    expressions: list[NDArray[np.uint8]] = []
    targets: list[int] = []
    with open_regular(path) as file:
        if (header := file.readline(MAX_LINE).rstrip(b"\r\n")) != HEADER:
            raise ValueError(f"{path} must begin with the line Source, tab, Target, got {header[:60]!r}")
        number = 1
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise ValueError(f"{path}, line {number} must have fewer than {MAX_LINE} bytes")
            if not line.strip() and not file.peek(1):
                break  # a blank line at the end
            columns = line.rstrip(b"\r\n").split(b"\t")
            if len(columns) != 2:
                raise ValueError(f"{path}, line {number} must have 2 columns, Source and Target, got {len(columns)}")
            try:
                expressions.append(tokens_of(columns[0]))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            if len(columns[1]) != 1 or not columns[1].isdigit():
                raise ValueError(f"{path}, line {number} must have a target from 0 to 9, got {columns[1][:20]!r}")
            targets.append(int(columns[1]))
    return expressions, targets


def tokens_of(source: bytes) -> NDArray[np.uint8]:
    """Tokens of an expression, places in `TOKENS`.

    Raises:
        ValueError: something in it is no token, or no blank stands between two.

    >>> tokens_of(b"( ( ( [MAX 3 ) 4 ) ] )")
    array([11,  3,  4, 10], dtype=uint8)
    """
    short = source
    for operator, letter in LETTERS.items():
        short = short.replace(operator, letter)
    codes = np.frombuffer(short.translate(_CODES, _PARENTHESES), dtype=np.uint8)
    spaced = short[1::2].count(b" ") == len(short) // 2 and len(short) % 2 == 1
    if not codes.size or int(codes.max()) >= len(TOKENS) or not spaced or not source.isascii():
        known = {name.encode() for name in (*TOKENS, "(", ")")}
        strange = next((word for word in source.split(b" ") if word not in known), b"")
        raise ValueError(
            f"an expression must be of the tokens ( ) {' '.join(TOKENS)} with a blank between two, got {strange[:20]!r}"
        )
    return codes


def listops_vocabulary(
    training: Iterable[NDArray[np.uint8]], convention: Convention = "mega", *, max_length: int | None = None
) -> Vocabulary:
    """Ids of ListOps' tokens.

    Args:
        training: expressions that frequencies are counted in; "google" needs none.
        convention: "google" (its order changes from run to run; ours is that of `TOKENS`, 17 ids with padding and one
            unknown), "s4" (18 ids) or "mega" (25 ids, the paper's input size).
        max_length: tokens of a sequence, an end included; None is the loader's: 2000, 2048 and 2002.
    """
    check_convention(convention)
    longest = MAX_LENGTH[convention] if max_length is None else max_length
    if convention == "google":
        table = np.arange(1, len(TOKENS) + 1, dtype=np.uint16)
        return Vocabulary(table, ("<pad>", *_names(), "<unk>"), longest)
    cut = longest - 1
    total = np.zeros(len(TOKENS), dtype=np.int64)
    for expression in training:
        total += np.bincount(expression[:cut], minlength=len(TOKENS))
    counts = {code: int(count) for code, count in enumerate(total) if count}
    names = _names()
    make = s4_vocabulary if convention == "s4" else mega_vocabulary
    return make(counts, names.__getitem__, max_length=longest)


def _names() -> list[str]:
    return ["X" if token == "]" else token for token in TOKENS]


def read_listops(
    folder: str | os.PathLike[str], convention: Convention = "mega", *, max_length: int | None = None
) -> dict[str, TokenSequences]:
    """The published data set: "train", "valid" and "test" (96,000, 2,000 and 2,000 sequences); groups are root
    operators.

    Args:
        folder: with basic_train.tsv, basic_val.tsv and basic_test.tsv.
        convention: whose ids: :func:`listops_vocabulary`.
        max_length: as there.

    Raises:
        FileNotFoundError: a file is not there; the message says where it comes from.
        ValueError: a file is not in the published layout.
    """
    check_convention(convention)
    check_folder(folder, "ListOps")
    read = {part: read_expressions(Path(folder) / name) for part, name in FILES.items()}
    vocabulary = listops_vocabulary(read["train"][0], convention, max_length=max_length)
    return {part: encoded(*expressions, vocabulary) for part, expressions in read.items()}


def encoded(expressions: list[NDArray[np.uint8]], targets: list[int], vocabulary: Vocabulary) -> TokenSequences:
    """Ids of expressions, with their targets and root operators."""
    roots = [int(expression[0]) - FIRST_OPERATOR for expression in expressions]
    groups = np.maximum(np.array(roots, dtype=np.int64), -1)
    return vocabulary.encode(expressions, targets, num_classes=10, groups=groups, group_names=OPERATORS)


def write_listops(path: str | os.PathLike[str], sequences: TokenSequences) -> None:
    r"""Write expressions as the published generator does: nested parentheses, a tab, \r\n at the ends of lines.

    Args:
        path: the file, written whole.
        sequences: their tokens are places in `TOKENS`, as :class:`MadeListOps` gives them.
    """
    with whole_files(path) as (temporary,), temporary.open("xb") as file:
        file.write(HEADER + b"\r\n")
        for k, label in enumerate(sequences.labels):
            file.write(printed(sequences.sequence(k)) + b"\t%d\r\n" % label)


def printed(tokens: NDArray[np.unsignedinteger]) -> bytes:
    """An expression with the published parentheses: an operator, its arguments and its end are put together in pairs
    from the left.

    >>> printed(np.array([11, 3, 4, 10], dtype=np.uint8))
    b'( ( ( [MAX 3 ) 4 ) ] )'
    """
    words: list[str] = []
    open_at: list[list[int]] = []  # of each operator that is not closed: its place in words, its arguments so far
    for token in tokens.tolist():
        if token >= FIRST_OPERATOR:
            open_at.append([len(words), 0])
            words.append(TOKENS[token])
            continue
        words.append(TOKENS[token])
        if token == len(TOKENS) - len(OPERATORS) - 1:  # the end
            place, arguments = open_at.pop()
            words[place] = "( " * (arguments + 1) + words[place]
            words[-1] += " )"
        if open_at:
            open_at[-1][1] += 1
            words[-1] += " )"
    return " ".join(words).encode()


def encode_made(sequences: TokenSequences, vocabulary: Vocabulary) -> TokenSequences:
    """Ids of made sequences, whose tokens are places in `TOKENS`, all at once.

    Raises:
        ValueError: one is longer than the vocabulary's `max_length` allows, with what is added.
    """
    longest = int(sequences.lengths.max(initial=0)) + vocabulary.num_added
    if longest > vocabulary.max_length:
        raise ValueError(f"max_length must be at least {longest} for these sequences, got {vocabulary.max_length}")
    ids = vocabulary.table[sequences.tokens].astype(np.uint8)
    ends = np.repeat(sequences.indptr[1:], vocabulary.end is not None)
    starts = np.repeat(sequences.indptr[:-1], vocabulary.start is not None)
    added = np.concatenate((np.full(starts.size, vocabulary.start or 0), np.full(ends.size, vocabulary.end or 0)))
    ids = np.insert(ids, np.concatenate((starts, ends)), added.astype(np.uint8))
    indptr = sequences.indptr + vocabulary.num_added * np.arange(sequences.indptr.size)
    return replace(sequences, tokens=ids, indptr=indptr, num_tokens=vocabulary.num_tokens)
