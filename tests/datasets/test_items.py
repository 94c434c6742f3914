"""Indices of items: whole numbers of any library, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from elm_neuro.datasets._items import index_of
from elm_neuro.datasets.lra import TokenDataset, TokenSequences


@pytest.mark.parametrize("index", [-2, np.int64(1), np.uint8(1), torch.tensor(1)])
def test_whole_numbers_of_any_library_are_indices(index: Any) -> None:
    assert index_of(index, 3) == 1 and type(index_of(index, 3)) is int


@pytest.mark.parametrize("index", [0.5, 2.9, 1.0, np.float32(1.0), torch.tensor(1.0), "1", None, slice(0, 1)])
def test_what_is_no_whole_number_is_refused(index: Any) -> None:
    dataset = TokenDataset(TokenSequences.of([[1], [2], [3]], labels=[0, 1, 0], num_tokens=4, num_classes=2))
    with pytest.raises(TypeError, match="index must be an integer, got "):
        dataset[index]


@pytest.mark.parametrize("index", [3, -4, 2**70])
def test_places_beyond_the_ends_are_refused(index: int) -> None:
    with pytest.raises(IndexError, match=rf"index must be in \[-3, 3\), got {index}"):
        index_of(index, 3)
