from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elm_neuro.datasets import SpikeRecordings


@pytest.fixture
def digits_folder(shared: Path) -> Path:
    """The spoken digits beside the repository."""
    return shared / "data" / "spoken_digits"


@pytest.fixture
def recordings() -> SpikeRecordings:
    """Six samples on the grid of float16 seconds, the fourth without a spike."""
    rng = np.random.default_rng(7)
    count = np.array([300, 1, 40, 0, 500, 120])
    seconds = rng.uniform(0.0, 1.3, count.sum()).astype(np.float16)
    times = np.floor(seconds.astype(np.float64) * 1e6).astype(np.int64)
    units = rng.integers(0, 700, count.sum())
    units[:50] = units[50:100]
    times[:50] = times[50:100]  # the same channel and time twice
    return SpikeRecordings(
        times,
        units,
        np.concatenate(([0], np.cumsum(count))),
        np.array([3, 0, 19, 7, 7, 12]),
        np.array([0, 4, 5, 0, 2, 4]),
    )


@pytest.fixture
def neuronio_folder(shared: Path) -> Path:
    """Two real files of NeuronIO beside the repository."""
    return shared / "data" / "neuronio"
