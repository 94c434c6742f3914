"""Items of a data set by index: checked, fetched one by one or together, and put into one batch."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from elm_neuro.events import SpikeEvents

Item = TypeVar("Item")
ItemOut = TypeVar("ItemOut", covariant=True)
BatchOut = TypeVar("BatchOut", covariant=True)


class Batched(Protocol[ItemOut, BatchOut]):
    """A data set that makes a whole batch at once for less than its items one by one."""

    def __getitem__(self, index: int) -> ItemOut: ...

    def batch(self, indices: ArrayLike) -> BatchOut: ...


class Items(Sequence[Item], Generic[Item]):
    """Items of a data set by index, made when they are looked at: what ``__getitems__`` hands to `collate`."""

    def __init__(self, dataset: Batched[Item, Any], indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.dataset[i] for i in self.indices[index]]
        return self.dataset[self.indices[index]]


def collate(items: Sequence[Any]) -> Any:
    """Items put into one batch, a column each; :class:`Items` are made together by their data set.

    Raises:
        ValueError: `items` is empty.
    """
    if isinstance(items, Items):
        return items.dataset.batch(items.indices)
    if not items:
        raise ValueError("items must hold at least one item, got none")
    return tuple(_together(column) for column in zip(*items, strict=True))


def _together(column: Sequence[Any]) -> SpikeEvents | Tensor:
    if isinstance(column[0], SpikeEvents):
        return SpikeEvents.collate(column)
    return torch.stack(list(column)) if isinstance(column[0], Tensor) else torch.tensor(column, device="cpu")


def index_of(index: int, size: int) -> int:
    """`index`, counted from the end where it is negative, as one in [0, size).

    Raises:
        IndexError: there is no such item.
        TypeError: `index` is no integer.
    """
    try:
        place = operator.index(index)
    except TypeError as error:
        raise TypeError(f"index must be an integer, got {index!r}") from error
    if not -size <= place < size:
        raise IndexError(f"index must be in [{-size}, {size}), got {place}")
    return place % size


def indices_of(indices: ArrayLike, size: int) -> NDArray[np.int64]:
    """`indices`, counted from the end where they are negative, as ones in [0, size).

    Raises:
        ValueError: `indices` is not a list of integers in [-size, size).
    """
    array = np.asarray(indices)
    array = integers("indices", array.astype(np.int64) if array.size == 0 else array, -size, size, np.int64)
    return np.where(array < 0, array + size, array)


def integers(name: str, values: ArrayLike, low: int, high: int, dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """`values`, (any number,), as `dtype`, once all of them are known to be integers in [low, high).

    Raises:
        ValueError: they are not.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {array.shape}")
    if array.dtype.kind not in "ui":
        raise ValueError(f"{name} must be integers, got dtype {array.dtype}")
    if array.size and (array.min() < low or array.max() >= high):
        wrong = array.min() if array.min() < low else array.max()
        raise ValueError(f"{name} must be in [{low}, {high}), got {int(wrong)}")
    return array.astype(dtype, copy=False)
