"""Training on token sequences in two processes: they share every epoch, and agree on weights and accuracies."""

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

from elm_neuro import ELM
from elm_neuro.datasets.lra import ListOpsSettings, make_listops
from elm_neuro.training import ListOpsDataModule, TokenClassification, TokenClassifier
from tests.training.processes import two_processes


def _fit(
    folder: Path, batch_size: int, accumulate: int, **options: Any
) -> tuple[TokenClassification, Any, list[bytes]]:
    """Two epochs and a validation; the valid figures and every training sequence that came."""
    seen: list[bytes] = []

    class Recorder(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.extend(row[:length].numpy().tobytes() for row, length in zip(*batch[:2], strict=True))

    torch.manual_seed(0)
    model = TokenClassification(TokenClassifier(ELM(25, 10, 5, tau_m_init=(1.0, 30.0))), learning_rate=1e-2)
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        callbacks=[Recorder()],
        **quiet,
        **options,
    )
    trainer.fit(model, datamodule=ListOpsDataModule(folder / "made", cache_dir=folder, batch_size=batch_size))
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return model, figures, seen


def _worker(rank: int, folder: str, port: int) -> None:
    warnings.simplefilter("ignore")
    model, figures, seen = _fit(Path(folder), 10, 2, devices=2, strategy=two_processes(rank, port))
    torch.save((model.state_dict(), figures, seen), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_that_accumulate_share_every_epoch_and_learn_as_one(tmp_path: Path) -> None:
    make_listops(200, ListOpsSettings(max_depth=4, max_args=4, min_length=5, max_length=30)).save(tmp_path / "made")
    mp.spawn(_worker, args=(str(tmp_path), find_free_network_port()), nprocs=2)
    (first, figures, one), (second, others, two) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)
    )
    alone, expected, seen = _fit(tmp_path, 20, 2, devices=1)
    assert len(seen) == 320 and len(set(seen[:160])) == 160  # every sequence once an epoch
    assert (one, two) == (seen[0::2], seen[1::2])
    assert figures == others  # the training loss too: that of both
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=1e-4), name
    for name, parameter in alone.state_dict().items():
        if isinstance(parameter, torch.Tensor):
            assert torch.equal(first[name], second[name]), name
            np.testing.assert_allclose(first[name], parameter, rtol=1e-3, atol=2e-5, err_msg=name)
