"""A text as streams side by side, a stretch of each at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from elm_neuro.datasets._processes import with_maps, without_maps
from elm_neuro.datasets.enwik8._file import Bytes


class TextStretch(NamedTuple):
    """A batch: what is read, and what comes next."""

    tokens: Tensor  # (batch, time), int64: places of the bytes in the alphabet
    targets: Tensor  # (batch, time), int64: each one's successor
    begins: Tensor  # (), bool: whether the streams begin here, with no state from before


class TextStreams(Dataset[TextStretch]):
    """A text cut into `batch_size` streams of equal length, read side by side, `num_steps` bytes at a time: item k
    goes on where item k - 1 ended, so that states are carried from one to the next.

    What does not fill a stretch of every stream is left out: fewer than ``batch_size * (num_steps + 1)`` bytes.

    Args:
        text: its bytes.
        letters: the alphabet, ascending.
        batch_size: number of streams.
        num_steps: steps of a stretch.
        rank: of this process, which takes every ``replicas``-th stream.
        replicas: number of processes; `batch_size` is that of all of them.

    Raises:
        ValueError: the text is too short, or `batch_size` is not a multiple of `replicas`.

    >>> text = np.frombuffer(b"abcdefghij", dtype=np.uint8)
    >>> streams = TextStreams(text, text, batch_size=2, num_steps=2)
    >>> len(streams), streams[1].tokens.tolist(), streams[1].targets.tolist()
    (2, [[2, 3], [7, 8]], [[3, 4], [8, 9]])
    """

    def __init__(
        self, text: Bytes, letters: Bytes, *, batch_size: int, num_steps: int, rank: int = 0, replicas: int = 1
    ) -> None:
        for name, value in (("batch_size", batch_size), ("num_steps", num_steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if batch_size % replicas:
            raise ValueError(f"batch_size must be a multiple of the {replicas} processes, got {batch_size}")
        length = len(text) // batch_size
        if length < num_steps + 1:
            rule = f"at least {num_steps + 1} bytes for each of {batch_size} streams"
            raise ValueError(f"text must have {rule}, got {len(text)} in all")
        self.text, self.num_steps = text, num_steps
        self.starts = [stream * length for stream in range(rank, batch_size, replicas)]
        self.num_stretches = (length - 1) // num_steps
        self.place = np.full(256, -1, dtype=np.int64)
        self.place[letters] = np.arange(len(letters))

    def __getstate__(self) -> dict[str, Any]:
        return without_maps(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(with_maps(state))

    def __len__(self) -> int:
        """Number of stretches."""
        return self.num_stretches

    def __getitem__(self, index: int) -> TextStretch:
        """The stretch `index` of every stream.

        Raises:
            IndexError: there is none.
            ValueError: a byte is none of the alphabet.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must be from 0 to {len(self) - 1}, got {index}")
        offset = index * self.num_steps
        rows = np.stack([self.text[start + offset : start + offset + self.num_steps + 1] for start in self.starts])
        places = self.place[rows]
        if (unknown := rows[places < 0]).size:
            raise ValueError(f"text must hold bytes of its alphabet only, got {int(unknown[0])}")
        whole = torch.from_numpy(places)
        return TextStretch(whole[:, :-1], whole[:, 1:], torch.tensor(index == 0, device="cpu"))
