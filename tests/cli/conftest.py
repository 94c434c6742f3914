from __future__ import annotations

import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Lightning switches Ctrl-C off for good once it was pressed, and its advice is not about our code."""
    if find_spec("lightning") is None:
        yield
        return
    from elm_neuro.training.loop._quiet import without_advice

    handler = signal.getsignal(signal.SIGINT)
    with without_advice():
        yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="session")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 samples of speakers 0 to 3."""
    pytest.importorskip("h5py")
    from elm_neuro.datasets import SpikeRecordings, write_shd

    rng = np.random.default_rng(0)
    labels = np.arange(80) % 20
    units = np.concatenate([rng.integers(0, 35, 40) + 35 * label for label in labels])
    times = (rng.uniform(0.0, 0.99, units.size).astype(np.float16).astype(np.float64) * 1e6).astype(np.int64)
    path = tmp_path_factory.mktemp("files") / "mine.h5"
    write_shd(path, SpikeRecordings(times, units, np.arange(81) * 40, labels, np.arange(80) // 20))
    return path
