"""Sequences of tokens of unequal lengths, one after the other in one array, with a label each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elm_neuro.datasets._items import indices_of, integers
from elm_neuro.datasets._processes import with_maps, without_maps


@dataclass(frozen=True, eq=False)
class TokenSequences:
    """Items of one or two sequences of token ids each.

    Item ``i`` has the sequences ``i * per_item`` to ``(i + 1) * per_item - 1``; sequence ``k`` is
    ``tokens[indptr[k] : indptr[k + 1]]``.

    Args:
        tokens: ids of all sequences, uint8 or uint16, in [0, num_tokens); an array on the disk will do.
        indptr: where each sequence begins and the last one ends, (num_items * per_item + 1,), int64.
        labels: class of each item, (num_items,), int64, in [0, num_classes).
        num_tokens: size of the vocabulary, the number of inputs of a network that takes one input a token.
        num_classes: number of classes.
        groups: what else is to be told apart in each item, such as its root operator, (num_items,), int64, an index
            into `group_names`, -1 for none; None where there is nothing.
        group_names: of these.
        per_item: 1, or 2 where items are pairs.

    Raises:
        ValueError: the arrays do not describe such items; the message says which rule broke.

    >>> sequences = TokenSequences.of([[3, 1], [2, 2, 0]], labels=[0, 1], num_tokens=4, num_classes=2)
    >>> sequences, sequences.sequence(1), sequences.lengths
    (TokenSequences(num_items=2, num_tokens=4, num_classes=2), array([2, 2, 0], dtype=uint8), array([2, 3]))
    """

    tokens: NDArray[np.unsignedinteger]
    indptr: NDArray[np.int64]
    labels: NDArray[np.int64]
    num_tokens: int
    num_classes: int
    groups: NDArray[np.int64] | None = None
    group_names: tuple[str, ...] = ()
    per_item: int = 1

    def __post_init__(self) -> None:
        if self.tokens.dtype not in (np.uint8, np.uint16) or self.tokens.ndim != 1:
            raise ValueError(
                f"tokens must be one array of uint8 or uint16, got {self.tokens.dtype} of shape {self.tokens.shape}"
            )
        if self.per_item not in (1, 2):
            raise ValueError(f"per_item must be 1 or 2, got {self.per_item}")
        object.__setattr__(self, "labels", integers("labels", self.labels, 0, self.num_classes, np.int64))
        object.__setattr__(self, "indptr", integers("indptr", self.indptr, 0, self.tokens.size + 1, np.int64))
        expected = len(self.labels) * self.per_item + 1
        if self.indptr.size != expected:
            raise ValueError(f"indptr must have num_items * per_item + 1 = {expected} entries, got {self.indptr.size}")
        if self.indptr[0] != 0 or self.indptr[-1] != self.tokens.size or (np.diff(self.indptr) < 0).any():
            raise ValueError(f"indptr must rise from 0 to the number of tokens, {self.tokens.size}, without falling")
        if self.tokens.size and (highest := int(self.tokens.max())) >= self.num_tokens:
            raise ValueError(f"tokens must be in [0, {self.num_tokens}), got {highest}")
        if self.groups is not None:
            groups = integers("groups", self.groups, -1, len(self.group_names), np.int64)
            if groups.size != len(self.labels):
                raise ValueError(f"groups must be one per item, {len(self.labels)}, got {groups.size}")
            object.__setattr__(self, "groups", groups)

    def __getstate__(self) -> dict[str, Any]:
        return without_maps(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(with_maps(state))

    @classmethod
    def of(
        cls,
        sequences: Sequence[ArrayLike],
        *,
        labels: ArrayLike,
        num_tokens: int,
        num_classes: int,
        groups: ArrayLike | None = None,
        group_names: tuple[str, ...] = (),
        per_item: int = 1,
    ) -> TokenSequences:
        """Of single sequences, in the smallest dtype that holds `num_tokens`."""
        dtype = np.uint8 if num_tokens <= 256 else np.uint16
        arrays = [np.asarray(sequence) for sequence in sequences]
        indptr = np.concatenate(([0], np.cumsum([array.size for array in arrays], dtype=np.int64))).astype(np.int64)
        flat = np.concatenate(arrays) if arrays else np.empty(0)
        if flat.size and not 0 <= flat.min() <= flat.max() < num_tokens:
            raise ValueError(f"sequences must be tokens in [0, {num_tokens}), got {flat.min()} to {flat.max()}")
        return cls(
            flat.astype(dtype),
            indptr,
            np.asarray(labels, dtype=np.int64),
            num_tokens,
            num_classes,
            None if groups is None else np.asarray(groups, dtype=np.int64),
            group_names,
            per_item,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each sequence, (num_items * per_item,)."""
        return np.diff(self.indptr)

    def sequence(self, k: int) -> NDArray[np.unsignedinteger]:
        """Tokens of sequence `k`.

        Raises:
            IndexError: there is no such sequence.
        """
        if not 0 <= k < self.indptr.size - 1:
            raise IndexError(f"k must be in [0, {self.indptr.size - 1}), got {k}")
        return self.tokens[self.indptr[k] : self.indptr[k + 1]]

    def subset(self, indices: ArrayLike) -> TokenSequences:
        """The items `indices`, in that order.

        Raises:
            ValueError: `indices` is not a list of integers in [-num_items, num_items).
        """
        chosen = indices_of(indices, len(self))
        rows = (chosen[:, None] * self.per_item + np.arange(self.per_item)).ravel()
        lengths = self.lengths[rows]
        indptr = np.concatenate(([0], np.cumsum(lengths)))
        places = np.repeat(self.indptr[:-1][rows] - indptr[:-1], lengths) + np.arange(indptr[-1])
        groups = None if self.groups is None else self.groups[chosen]
        return TokenSequences(
            self.tokens[places],
            indptr,
            self.labels[chosen],
            self.num_tokens,
            self.num_classes,
            groups,
            self.group_names,
            self.per_item,
        )

    @property
    def fingerprint(self) -> str:
        """To be cited: SHA-256, in hex, of labels, lengths and tokens, each as little-endian integers of 8, 8 and 2
        bytes.
        """
        digest = hashlib.sha256()
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(self.lengths, dtype="<i8").tobytes())
        for start in range(0, self.tokens.size, 1 << 22):
            digest.update(self.tokens[start : start + (1 << 22)].astype("<u2").tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        pairs = "" if self.per_item == 1 else f", per_item={self.per_item}"
        sizes = f"num_tokens={self.num_tokens}, num_classes={self.num_classes}"
        return f"TokenSequences(num_items={len(self)}, {sizes}{pairs})"
