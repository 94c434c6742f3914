"""Training on NeuronIO in two processes: they share every epoch, and agree on the weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from elm_neuro.nn import BranchELM
from elm_neuro.training import NeuronIODataModule, NeuronIORegression
from tests.datasets.neuronio.neuronio_files import made, write
from tests.training.processes import two_processes


def _module(folder: Path, batch_size: int) -> NeuronIODataModule:
    return NeuronIODataModule(
        folder / "kaggle",
        cache_dir=folder / "cache",
        num_batches=(24 // batch_size, 1, 1),
        batch_size=batch_size,
        window_ms=60,
        skip_ms=20,
    )


def _fit(folder: Path, batch_size: int, **options: Any) -> tuple[NeuronIORegression, list[bytes]]:
    """Two epochs, and the voltage of every window that came."""
    seen: list[bytes] = []

    class Recorder(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.extend(row.numpy().tobytes() for row in batch[2])

    torch.manual_seed(0)
    model = NeuronIORegression(
        BranchELM(1278, 2, 4, num_branch=45, num_synapse_per_branch=100), burn_in_ms=20, optimizer="adam"
    )
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_epochs=2, limit_val_batches=0, callbacks=[Recorder()], **quiet, **options)
    trainer.fit(model, datamodule=_module(folder, batch_size))
    return model, seen


def _worker(rank: int, folder: str, port: int) -> None:
    warnings.simplefilter("ignore")
    model, seen = _fit(Path(folder), 2, devices=2, strategy=two_processes(rank, port))
    torch.save((model.state_dict(), seen), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_share_every_epoch_and_learn_as_one(tmp_path: Path) -> None:
    for i, name in enumerate(("full_ergodic_train_batch_2", "full_ergodic_train_batch_1")):
        write(tmp_path / "kaggle" / name / f"sim__{i}.p", made(2, 150, seed=i))
    mp.spawn(_worker, args=(str(tmp_path), find_free_network_port()), nprocs=2)
    (first, one), (second, two) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone, seen = _fit(tmp_path, 4, devices=1)
    assert len(seen) == 48 and len(set(seen)) > 30  # two epochs of 24 windows, at random out of 142
    assert (one, two) == (seen[0::2], seen[1::2])  # every window once, in one of the two
    for name, value in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        np.testing.assert_allclose(
            first[name], value, rtol=1e-3, atol=2e-5, err_msg=name
        )  # Adam divides by what is summed in another order
