from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightning")
pytest.importorskip("h5py")

from lightning import Trainer

from elm_neuro.datasets import SpikeRecordings, write_shd
from elm_neuro.training.loop._quiet import without_advice


@pytest.fixture(autouse=True)
def _lightning_advice() -> Iterator[None]:
    """Lightning's advice is not about our code; all other warnings stay errors."""
    with without_advice():
        yield


def made(num_samples: int, speakers: list[int], seed: int) -> SpikeRecordings:
    """Samples whose class shows in the channels that fire; classes and speakers take turns, class 0 occurs most
    often.
    """
    rng = np.random.default_rng(seed)
    labels = np.where(np.arange(num_samples) % 5 == 0, 0, np.arange(num_samples) % 20)
    units = np.concatenate([rng.integers(0, 35, 40) + 35 * label for label in labels])
    seconds = rng.uniform(0.0, 0.99, units.size).astype(np.float16)
    times = (seconds.astype(np.float64) * 1e6).astype(np.int64)
    who = np.array([speakers[(i // 7) % len(speakers)] for i in range(num_samples)])
    return SpikeRecordings(times, units, np.arange(num_samples + 1) * 40, labels, who)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A training file of speakers 0 to 3 and a test file of speakers 2, 3 and 8, who is unseen."""
    folder = tmp_path_factory.mktemp("shd")
    write_shd(folder / "train.h5", made(90, [0, 1, 2, 3], 1))
    write_shd(folder / "test.h5", made(53, [2, 3, 8], 2))
    return folder / "train.h5", folder / "test.h5"


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    def make(**options: Any) -> Trainer:
        quiet = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        return Trainer(**{"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, **quiet, **options})

    return make
