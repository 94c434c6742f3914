"""Random trees of ListOps by the published procedure, level by level over many trees at once: tokens and answers.

Source: Nangia & Bowman 2018, arXiv:1804.06028, as in google-research/long-range-arena at cd31e5c,
``lra_benchmarks/data/listops.py``. At a depth below `max_depth` a node is an operator with probability 1/4, else a
digit; at `max_depth` it is a digit. An operator has 2 to `max_args` arguments and is MIN, MAX, MED (the median,
rounded down) or SM (the sum modulo 10). The random numbers are ours: word ``n`` of tree ``t`` is output ``t * 2**20 +
n`` of SplitMix64 in state `seed`, where ``n`` counts the nodes of a tree level by level. A word w decides all of its
node:

- an operator where ``w >> 62`` is 0; which one is ``(w >> 60) & 3``, in the order of `OPERATORS`, with
  ``2 + ((w & (2**32 - 1)) * (max_args - 1) >> 32)`` arguments;
- else the digit ``(w & (2**32 - 1)) * 10 >> 32``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets._counter import checked_seed, splitmix64

OPERATORS = ("[MAX", "[MED", "[MIN", "[SM")
TOKENS = (*"0123456789", "]", *OPERATORS)  # a token's number is its place here
CLOSE, FIRST_OPERATOR = 10, 11
MAX_NODES = 1 << 20  # of a tree: its words in the stream
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ListOpsSettings:
    """Which trees there are; the defaults are those of the published data set, "listops-1000".

    Args:
        max_depth: depth at which every node is a digit; operators nest ``max_depth - 1`` deep.
        max_args: largest number of arguments of an operator, at least 2.
        min_length: sequences have more tokens than this,
        max_length: and fewer than this. Parentheses are no tokens.
        seed: in [0, 2**64).

    Raises:
        TypeError: a setting is no integer.
        ValueError: it is out of range.
    """

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_depth", "max_args", "min_length", "max_length", "seed"):
            if not hasattr(number := getattr(self, name), "__index__") or isinstance(number, bool):
                raise TypeError(f"{name} must be an integer, got {number!r}")
        if self.max_depth < 1:
            raise ValueError(f"max_depth must be at least 1, got {self.max_depth}")
        if not 2 <= self.max_args <= 1000:
            raise ValueError(f"max_args must be in [2, 1000], got {self.max_args}")
        if not 0 <= self.min_length < self.max_length - 1:
            raise ValueError(
                "min_length must not be negative and leave a length below max_length, got "
                f"{self.min_length} and {self.max_length}"
            )
        if self.max_length > MAX_NODES:
            raise ValueError(f"max_length must be at most {MAX_NODES}, got {self.max_length}")
        checked_seed(self.seed)


class Level(NamedTuple):
    """The nodes of many trees at one depth, tree after tree."""

    tree: Ints  # whose node it is, rising
    parent: Ints  # place in the level above
    value: Ints  # a digit, or the token of an operator
    num_args: Ints  # 0 of a digit


def accepted(settings: ListOpsSettings, start: int, stop: int) -> Ints:
    """Numbers of the trees among `start` to `stop` (exclusive) whose sequences have an allowed length.

    >>> accepted(ListOpsSettings(max_depth=5, max_args=5, min_length=10, max_length=60), 0, 40)
    array([2, 4])
    """
    numbers = np.arange(start, stop, dtype=np.int64)
    length = np.zeros(numbers.size, dtype=np.int64)
    for level in _levels(settings, numbers, drop=True):
        length += np.bincount(level.tree, weights=1 + (level.num_args > 0), minlength=numbers.size).astype(np.int64)
        pending = np.bincount(level.tree, weights=level.num_args, minlength=numbers.size).astype(np.int64)
        length[length + pending >= settings.max_length] = settings.max_length  # as _levels drops them
    return numbers[(length > settings.min_length) & (length < settings.max_length)]


def grown(settings: ListOpsSettings, numbers: Ints) -> tuple[NDArray[np.uint8], Ints]:
    """Tokens of the trees `numbers` one after the other, and where each begins and the last ends.

    >>> settings = ListOpsSettings(max_depth=5, max_args=5, min_length=10, max_length=60)
    >>> tokens, indptr = grown(settings, np.array([2]))
    >>> " ".join(TOKENS[token] for token in tokens)
    '[MIN 9 [SM 5 3 8 ] 5 1 3 ]'
    """
    levels = _levels(settings, numbers, drop=False)
    sizes = _sizes(levels)
    indptr = np.concatenate(([0], np.cumsum(sizes[0])))
    tokens = np.empty(indptr[-1], dtype=np.uint8)
    place = indptr[:-1]
    for depth, level in enumerate(levels):
        operator = level.num_args > 0
        tokens[place] = level.value
        tokens[(place + sizes[depth] - 1)[operator]] = CLOSE
        if depth + 1 < len(levels):  # arguments stand behind their operator, one after the other
            before = np.cumsum(sizes[depth + 1]) - sizes[depth + 1]
            offset = np.zeros(place.size, dtype=np.int64)
            offset[operator] = place[operator] + 1 - before[_first_arguments(level)]
            place = offset[levels[depth + 1].parent] + before
    return tokens, indptr


def answers(settings: ListOpsSettings, numbers: Ints) -> Ints:
    """What the trees `numbers` evaluate to.

    >>> answers(ListOpsSettings(max_depth=5, max_args=5, min_length=10, max_length=60), np.array([2]))
    array([1])
    """
    levels = _levels(settings, numbers, drop=False)
    results = levels[-1].value if levels else np.empty(0, dtype=np.int64)
    for level in levels[-2::-1]:
        arguments, results = results, level.value.copy()
        for token, evaluate in zip(range(FIRST_OPERATOR, len(TOKENS)), EVALUATE, strict=True):
            chosen = np.flatnonzero(level.value == token)
            if not chosen.size:
                continue
            counts = level.num_args[chosen]
            of_chosen = np.repeat(level.value[level.num_args > 0] == token, level.num_args[level.num_args > 0])
            results[chosen] = evaluate(arguments[of_chosen], np.cumsum(counts) - counts, counts)
    return results


def _levels(settings: ListOpsSettings, numbers: Ints, *, drop: bool) -> list[Level]:
    """The levels of the trees `numbers`; `drop` leaves trees out once they are known to be too long.

    Raises:
        ValueError: without `drop`, one of them is.
    """
    levels: list[Level] = []
    tree, parent = np.arange(numbers.size), np.zeros(numbers.size, dtype=np.int64)
    nodes_before = np.zeros(numbers.size, dtype=np.int64)  # nodes of each tree above the level
    for depth in range(1, settings.max_depth + 1):
        if not tree.size:
            break
        count = np.bincount(tree, minlength=numbers.size)
        rank = np.arange(tree.size) - np.repeat(np.cumsum(count) - count, count)
        words = splitmix64(settings.seed, (numbers[tree] * MAX_NODES + nodes_before[tree] + rank).astype(np.uint64))
        low = words & np.uint64(2**32 - 1)
        value = (low * np.uint64(10) >> np.uint64(32)).astype(np.int64)
        num_args = np.zeros(tree.size, dtype=np.int64)
        if depth < settings.max_depth:
            operator = np.flatnonzero(words < np.uint64(2**62))
            value[operator] = FIRST_OPERATOR + (words[operator] >> np.uint64(60)).astype(np.int64)
            more = low[operator] * np.uint64(settings.max_args - 1) >> np.uint64(32)
            num_args[operator] = 2 + more.astype(np.int64)
        levels.append(Level(tree, parent, value, num_args))
        nodes_before += count
        fits = nodes_before + np.bincount(tree, weights=num_args, minlength=numbers.size) < settings.max_length
        if not drop and not fits.all():  # before it is built: a stranger's file may name any tree
            raise ValueError(
                f"tree {numbers[~fits][0]} must have fewer than {settings.max_length} tokens, got more: it is none of "
                "those that are accepted"
            )
        parent = np.repeat(np.arange(tree.size), num_args)
        if drop:
            parent = parent[fits[tree[parent]]]
        tree = tree[parent]
    return levels


def _first_arguments(level: Level) -> Ints:
    """Place in the level below of each operator's first argument."""
    num_args = level.num_args[level.num_args > 0]
    return np.asarray(np.cumsum(num_args) - num_args)


def _sizes(levels: list[Level]) -> list[Ints]:
    """Number of tokens of each node and all below it, level by level."""
    sizes = [np.ones(level.tree.size, dtype=np.int64) for level in levels]
    for depth in range(len(levels) - 2, -1, -1):
        operator = levels[depth].num_args > 0
        sizes[depth][operator] += 1 + np.add.reduceat(sizes[depth + 1], _first_arguments(levels[depth]))
    return sizes


def _median(values: Ints, first: Ints, counts: Ints) -> Ints:
    """Of consecutive groups of digits: the middle one, or the mean of the two middle ones rounded down."""
    group = np.repeat(np.arange(counts.size, dtype=np.int32), counts)
    ordered = np.sort(group * 16 + values.astype(np.int32)) & 15
    return np.asarray((ordered[first + (counts - 1) // 2] + ordered[first + counts // 2]) // 2, dtype=np.int64)


# of the arguments of many operators, where each one's begin, and their numbers; in the order of OPERATORS
EVALUATE: tuple[Callable[[Ints, Ints, Ints], Ints], ...] = (
    lambda values, first, _: np.maximum.reduceat(values, first),
    _median,
    lambda values, first, _: np.minimum.reduceat(values, first),
    lambda values, first, _: np.add.reduceat(values, first) % 10,
)
