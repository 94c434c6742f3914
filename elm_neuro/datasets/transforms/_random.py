"""Where transforms take their randomness from: the sample, not the worker that happens to load it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class _Sample:
    epoch: int
    index: int
    training: bool
    drawn: int = 0  # transforms that have drawn for this sample


_SAMPLE: ContextVar[_Sample | None] = ContextVar("elm_neuro sample", default=None)


@contextmanager
def sample_key(epoch: int, index: int, *, training: bool = True) -> Iterator[None]:
    """Inside, transforms draw from (their seed, `epoch`, `index`, how many have drawn before them): the same in every
    process.

    A data set puts this around the transforms of item `index`. Outside, a transform takes a fresh start from torch's
    default generator each time, which ``torch.manual_seed`` sets and a DataLoader seeds anew in each worker.

    Args:
        epoch: not negative.
        index: not negative.
        training: what `InputDropout` goes by where it is not told.

    >>> from elm_neuro.datasets import EventDrop
    >>> times = np.arange(100), np.arange(100)
    >>> with sample_key(0, 7):
    ...     one = EventDrop(0.5)(times)[0]
    >>> with sample_key(0, 7):
    ...     two = EventDrop(0.5)(times)[0]
    >>> np.array_equal(one, two)
    True
    """
    token = _SAMPLE.set(_Sample(epoch, index, training))
    try:
        yield
    finally:
        _SAMPLE.reset(token)


def generator(seed: int) -> np.random.Generator:
    """The generator of a transform with `seed`, for this sample or, outside of `sample_key`, for this call."""
    sample = _SAMPLE.get()
    if sample is None:
        return np.random.default_rng((seed, int(torch.randint(2**62, (), device="cpu"))))
    sample.drawn += 1
    return np.random.default_rng((seed, sample.epoch, sample.index, sample.drawn))


def training() -> bool:
    """Whether this sample is for training; True outside of `sample_key`."""
    sample = _SAMPLE.get()
    return sample is None or sample.training
