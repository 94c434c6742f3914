"""Ids of tokens as three published loaders give them: "google", "s4" and "mega".

Sources: google-research/long-range-arena at cd31e5c, HazyResearch/state-spaces at 307f11b (S5 has the same settings),
facebookresearch/mega at aeaa4b4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elm_neuro.datasets.lra._sequences import TokenSequences

Convention: TypeAlias = Literal["google", "s4", "mega"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
UNKNOWN = 0xFFFF  # in a table: this symbol has no id
Codes = NDArray[np.unsignedinteger[Any]]


def check_convention(convention: str) -> None:
    """Refuse a name that is none.

    Raises:
        ValueError: it is none of `CONVENTIONS`.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Which id each symbol of a text has, and how a sequence of them is cut and closed.

    Args:
        table: id by symbol code (a byte, a code point, or a token of ListOps), uint16, `UNKNOWN` for none.
        symbols: name of each id; ids without a name are not in use.
        max_length: longest sequence, start and end included; what is longer is cut.
        start: id put in front, or None.
        end: id put behind, or None.
        unknown: id of symbols that have none, or None where such a symbol is an error.
    """

    table: NDArray[np.uint16]
    symbols: tuple[str, ...]
    max_length: int
    start: int | None = None
    end: int | None = None
    unknown: int | None = None

    def __post_init__(self) -> None:
        if self.max_length <= self.num_added:
            raise ValueError(f"max_length must be above {self.num_added}, got {self.max_length}")

    @property
    def num_tokens(self) -> int:
        """Number of ids."""
        return len(self.symbols)

    @property
    def num_added(self) -> int:
        """Ids that are no symbols of the text: start and end."""
        return (self.start is not None) + (self.end is not None)

    def ids(self, codes: Codes) -> NDArray[np.uint16]:
        """Ids of a sequence of symbol codes, cut, started and ended; one padding where nothing is left.

        Raises:
            ValueError: a symbol has no id.
        """
        cut = codes[: self.max_length - self.num_added]
        ids = self.table[cut] if not cut.size or int(cut.max()) < self.table.size else _looked_up(self.table, cut)
        strange = ids == UNKNOWN
        if strange.any():
            if self.unknown is None:
                raise ValueError(f"symbols must be in the vocabulary, got the code {int(cut[strange][0])}")
            ids = np.where(strange, np.uint16(self.unknown), ids)
        around = [[] if one is None else [one] for one in (self.start, self.end)]
        whole = np.concatenate((np.array(around[0], np.uint16), ids, np.array(around[1], np.uint16)))
        return whole if whole.size else np.zeros(1, dtype=np.uint16)

    def encode(
        self,
        texts: Iterable[Codes],
        labels: ArrayLike,
        *,
        num_classes: int,
        groups: ArrayLike | None = None,
        group_names: tuple[str, ...] = (),
        per_item: int = 1,
    ) -> TokenSequences:
        """Many sequences, with their labels."""
        return TokenSequences.of(
            [self.ids(text) for text in texts],
            labels=labels,
            num_tokens=self.num_tokens,
            num_classes=num_classes,
            groups=groups,
            group_names=group_names,
            per_item=per_item,
        )


def _looked_up(table: NDArray[np.uint16], codes: Codes) -> NDArray[np.uint16]:
    known = np.minimum(codes, table.size - 1)
    return np.where(codes < table.size, table[known], np.uint16(UNKNOWN))


def bytes_vocabulary(max_length: int) -> Vocabulary:
    """Google's of texts: the id of a byte is the byte + 1, 0 pads."""
    table = np.arange(1, 257, dtype=np.uint16)
    return Vocabulary(table, ("<pad>", *(f"{byte:02x}" for byte in range(256))), max_length)


def s4_vocabulary(
    counts: dict[int, int], name: Callable[[int], str], *, max_length: int, min_count: int = 1
) -> Vocabulary:
    """S4's: padding, unknown and end, then the symbols of the training texts by falling frequency, ties by their names.

    Args:
        counts: how often each symbol code occurs in the training texts, as far as these are read.
        name: of a code.
        max_length: with the end.
        min_count: rarer symbols are unknown.
    """
    symbols = ("<pad>", "<unk>", "<eos>")
    frequent = [code for code in _by_frequency(counts, name) if counts[code] >= min_count]
    return Vocabulary(_table(frequent, len(symbols)), (*symbols, *map(name, frequent)), max_length, end=2, unknown=1)


def mega_vocabulary(
    counts: dict[int, int],
    name: Callable[[int], str],
    *,
    max_length: int,
    size: int | None = None,
    classify_by_start: bool = False,
) -> Vocabulary:
    """Mega's, fairseq's dictionary: start, padding, end and unknown, then as S4's, filled up to a multiple of 8; the
    last id, a start to classify by, is put in front only where that is asked for.

    Args:
        counts: as in :func:`s4_vocabulary`.
        name: of a code.
        max_length: with all that is added.
        size: ids without the last one; what does not fit is unknown. None for the next multiple of 8.
        classify_by_start: put the last id in front.
    """
    symbols = ("<s>", "<pad>", "</s>", "<unk>")
    chosen = _by_frequency(counts, name)[: None if size is None else size - len(symbols)]
    used = (*symbols, *map(name, chosen))
    filled = -(-len(used) // 8) * 8 if size is None else size
    names = (*used, *(f"madeupword{i:04d}" for i in range(filled - len(used))), "<CLS>")
    return Vocabulary(
        _table(chosen, len(symbols)),
        names,
        max_length,
        start=filled if classify_by_start else None,
        end=2,
        unknown=3,
    )


def _by_frequency(counts: dict[int, int], name: Callable[[int], str]) -> list[int]:
    return sorted(counts, key=lambda code: (-counts[code], name(code)))


def _table(codes: Sequence[int], first: int) -> NDArray[np.uint16]:
    table = np.full(max(codes, default=0) + 1, UNKNOWN, dtype=np.uint16)
    table[list(codes)] = np.arange(first, first + len(codes))
    return table
