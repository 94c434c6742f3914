"""Batches of token sequences, and how they reach a neuron: as spikes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from elm_neuro.datasets._items import Items, collate, index_of, indices_of
from elm_neuro.datasets.lra._sequences import TokenSequences
from elm_neuro.events import SpikeEvents


class TokenBatch(NamedTuple):
    """Sequences of a batch, shorter ones padded with zeros at the end."""

    tokens: Tensor  # (batch * per_item, time), uint8 or uint16
    lengths: Tensor  # (batch * per_item,), int64
    labels: Tensor  # (batch,), int64
    groups: Tensor  # (batch,), int64, -1 for none


class TokenDataset(Dataset[TokenBatch]):
    """Some items of :class:`TokenSequences` by their places: item ``i`` is a batch of one.

    Use ``DataLoader(dataset, batch_size=32, collate_fn=TokenDataset.collate)``: PyTorch then fetches whole batches at
    once.

    Args:
        sequences: all items.
        indices: those to use, in that order; None uses all.

    Raises:
        ValueError: `indices` is not a list of integers in [-num_items, num_items).

    >>> dataset = TokenDataset(TokenSequences.of([[3, 1], [2, 2, 0]], labels=[0, 1], num_tokens=4, num_classes=2))
    >>> dataset.batch([0, 1]).tokens
    tensor([[3, 1, 0],
            [2, 2, 0]], dtype=torch.uint8)
    """

    def __init__(self, sequences: TokenSequences, indices: ArrayLike | None = None) -> None:
        self.sequences = sequences
        num = len(sequences)
        self.indices: NDArray[np.int64] = np.arange(num) if indices is None else indices_of(indices, num)

    def __len__(self) -> int:
        return self.indices.size

    def __getitem__(self, index: int) -> TokenBatch:
        return self.batch([index_of(index, len(self))])

    def __getitems__(self, indices: Sequence[int]) -> Sequence[TokenBatch]:
        """The items `indices`, not yet fetched: `collate` fetches them in one go."""
        return Items(self, indices)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each item, (num_items,)."""
        return self.sequences.labels[self.indices]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each item, of both sequences of a pair together, (num_items,)."""
        whole = self.sequences.lengths.reshape(-1, self.sequences.per_item).sum(1)
        return np.asarray(whole[self.indices])

    def batch(self, indices: ArrayLike) -> TokenBatch:
        """The items `indices` of this data set as one batch.

        Raises:
            ValueError: `indices` is not a list of integers in [-num_items, num_items), or is empty.
        """
        items = self.indices[indices_of(indices, len(self))]
        if not items.size:
            raise ValueError("indices must hold at least one item, got none")
        sequences, per_item = self.sequences, self.sequences.per_item
        rows = (items[:, None] * per_item + np.arange(per_item)).ravel()
        starts, lengths = sequences.indptr[rows], sequences.indptr[rows + 1] - sequences.indptr[rows]
        padded = np.zeros((rows.size, max(int(lengths.max()), 1)), dtype=sequences.tokens.dtype)
        for row, start, length in zip(padded, starts.tolist(), lengths.tolist(), strict=True):
            row[:length] = sequences.tokens[start : start + length]
        groups = np.full(items.size, -1) if sequences.groups is None else sequences.groups[items]
        return TokenBatch(
            torch.from_numpy(padded),
            torch.from_numpy(np.maximum(lengths, 1)),  # an empty sequence is one padding
            torch.from_numpy(sequences.labels[items]),
            torch.from_numpy(groups),
        )

    @staticmethod
    def collate(items: Sequence[TokenBatch]) -> TokenBatch:
        """Items put into one batch, as a ``collate_fn``; those that a DataLoader fetched together are fetched at once.

        Raises:
            ValueError: `items` is empty.
        """
        if isinstance(items, Items):
            whole: TokenBatch = collate(items)
            return whole
        if not items:
            raise ValueError("items must hold at least one item, got none")
        time = max(item.tokens.shape[1] for item in items)
        padded = [torch.nn.functional.pad(item.tokens, (0, time - item.tokens.shape[1])) for item in items]
        rest = (torch.cat(column) for column in list(zip(*items, strict=True))[1:])
        return TokenBatch(torch.cat(padded), *rest)


def token_events(tokens: Tensor, num_tokens: int) -> SpikeEvents:
    """One spike a step on the input of its token, on the device of `tokens`: one-hot vectors that are nowhere stored.

    Padding spikes, too; a neuron that is given the sequences' lengths takes no notice of it.

    Args:
        tokens: (batch, time), any integers in [0, num_tokens).
        num_tokens: number of inputs.

    >>> token_events(torch.tensor([[3, 1]], dtype=torch.uint8), 4).to_dense()
    tensor([[[0., 0., 0., 1.],
             [0., 1., 0., 0.]]])
    """
    batch, time = tokens.shape
    indptr = torch.arange(batch * time + 1, device=tokens.device)
    return SpikeEvents(indptr, tokens.reshape(-1).to(torch.int64), None, (batch, time, num_tokens))
