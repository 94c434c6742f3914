"""Runs over SHD and SHD-Adding that were broken off in the middle of an epoch go on as ones that were not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from elm_neuro.datasets import SpikeRecordings, write_shd
from elm_neuro.nn import ELM
from elm_neuro.training import Binning, SequenceClassifier, SHDAddingDataModule, SHDDataModule, SpikeClassification

BINNING = Binning(bin_ms=100.0, pool=35)
NUM_BATCHES = 8  # of both epochs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    times = rng.integers(0, 1_000_000, 240 * 30)
    path = tmp_path_factory.mktemp("resuming") / "train.h5"
    labels = np.arange(240) % 20
    write_shd(path, SpikeRecordings(times, rng.integers(0, 700, times.size), np.arange(241) * 30, labels, labels // 2))
    return path


@pytest.fixture(params=["SHD", "SHD-Adding"])
def data(request: pytest.FixtureRequest, files: Path) -> Callable[[], SHDDataModule]:
    """32 samples an epoch, 8 of a batch."""
    if request.param == "SHD":
        chosen = files.with_name("few.h5")
        from elm_neuro.datasets import read_shd

        if not chosen.exists():
            write_shd(chosen, read_shd(files).subset(np.arange(0, 224, 7)))
        return lambda: SHDDataModule(chosen, files, valid=0.0, binning=BINNING, batch_size=8)
    return lambda: SHDAddingDataModule(files, num_pairs=(32, 8, 8), binning=BINNING, batch_size=8)


class Recorder(Callback):
    """The inputs of every batch that is trained on, and a power cut."""

    def __init__(self, cut: int | None = None) -> None:
        self.batches: list[bytes] = []
        self.cut = cut

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.cut:
            raise InterruptedError
        self.batches.append(batch[0].to_dense().numpy().tobytes())


def fit(
    make_trainer: Callable[..., Trainer], data: SHDDataModule, ckpt_path: Path | None = None, **options: Any
) -> Any:
    seed_everything(0, verbose=False)
    network = SequenceClassifier(ELM(20, 20, num_memory=4, delta_t=100.0))
    model = SpikeClassification(network, learning_rate=1e-2, input_dropout=0.2)
    trainer = make_trainer(**{"max_epochs": 2, "limit_val_batches": 0, "enable_checkpointing": True, **options})
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=ckpt_path and True)
    return model.network.state_dict()


def keep(folder: Path) -> list[Callback]:
    """last.ckpt at the end of an epoch, however it ended, and every second batch."""
    options: list[dict[str, Any]] = [{"save_on_train_epoch_end": True}, {"every_n_train_steps": 2}]
    return [ModelCheckpoint(folder, "last", enable_version_counter=False, **option) for option in options]


@pytest.mark.parametrize("end", [2, 4, 6])
@pytest.mark.parametrize("how", ["killed", "max_steps"])
def test_no_batch_is_lost_or_repeated(
    make_trainer: Callable[..., Trainer], data: Callable[[], SHDDataModule], tmp_path: Path, how: str, end: int
) -> None:
    whole, first, rest = Recorder(), Recorder(end if how == "killed" else None), Recorder()
    never = fit(make_trainer, data(), callbacks=[whole])
    assert len(set(whole.batches)) == len(whole.batches) == NUM_BATCHES
    if how == "killed":
        with pytest.raises(InterruptedError):
            fit(make_trainer, data(), callbacks=[first, *keep(tmp_path)])
    else:
        fit(make_trainer, data(), max_steps=end, callbacks=[first, *keep(tmp_path)])
    resumed = fit(make_trainer, data(), tmp_path / "last.ckpt", callbacks=[rest, *keep(tmp_path)])
    assert first.batches + rest.batches == whole.batches
    for name, value in never.items():
        assert torch.equal(value, resumed[name]), name
