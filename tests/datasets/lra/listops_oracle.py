"""A parser of ListOps that shares nothing with the generator: a stack of operators over words."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def evaluate(words: Sequence[str]) -> int:
    """The answer of an expression of words such as ``[MAX``, ``7`` and ``]``, brackets balanced."""
    stack: list[tuple[str, list[int]]] = []
    for position, word in enumerate(words):
        if word.startswith("["):
            stack.append((word, []))
            continue
        if word == "]":
            name, arguments = stack.pop()
            assert len(arguments) >= 2
            value = {
                "[MAX": max,
                "[MIN": min,
                "[MED": lambda values: int(statistics.median(values)),
                "[SM": lambda values: sum(values) % 10,
            }[name](arguments)
        else:
            value = int(word)
        if not stack:
            assert position == len(words) - 1
            return value
        stack[-1][1].append(value)
    raise AssertionError("an operator is not closed")


def depth(words: Sequence[str]) -> int:
    """How deep operators nest."""
    level = deepest = 0
    for word in words:
        level += word.startswith("[") - (word == "]")
        deepest = max(deepest, level)
    return deepest
