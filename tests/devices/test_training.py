"""One step of each training module on every device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from elm_neuro import ELM, LIF, BranchELM, SpikeEvents

pytest.importorskip("lightning")
pytest.importorskip("h5py")
training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)

from lightning import Callback, Trainer  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from elm_neuro.datasets.lra import TokenBatch  # noqa: E402
from elm_neuro.training.loop._parcels import Receiving, Sent  # noqa: E402
from elm_neuro.training.loop._quiet import without_advice  # noqa: E402


def shd() -> tuple[Any, Any]:
    network = training.SpikingNetwork(
        LIF(20, 16, delta_t=50.0), ELM(16, 20, num_memory=6, delta_t=50.0), readout="mean"
    )
    x = SpikeEvents.from_frames((torch.rand(4, 20, 20) < 0.3).float())
    batch = (x, torch.tensor([0, 3, 7, 19]), torch.zeros(4, dtype=torch.int64))
    return training.SpikeClassification(network, input_dropout=0.2), batch


def neuronio() -> tuple[Any, Any]:
    network = BranchELM(1278, 2, 4, num_branch=45, num_synapse_per_branch=100)
    x = SpikeEvents.from_frames((torch.rand(2, 30, 1278) < 0.02).float())
    return training.NeuronIORegression(network, burn_in_ms=5), (x, (torch.rand(2, 30) < 0.1).float(), torch.rand(2, 30))


def lra() -> tuple[Any, Any]:
    network = training.TokenClassifier(ELM(25, 10, 5, tau_m_init=(1.0, 30.0)))
    tokens = torch.randint(0, 25, (3, 12), dtype=torch.uint8)
    return training.TokenClassification(network), TokenBatch(
        tokens, torch.tensor([12, 5, 1]), torch.tensor([1, 2, 3]), torch.full((3,), -1)
    )


class Watched(Callback):
    """Where the step was made, and its loss and gradients."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.loss, self.place = float(outputs["loss"]), module.device.type

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.grads = [p.grad.detach().cpu() for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("make", [shd, neuronio, lra])
def test_a_step_is_made_on_the_device(make: Any, device: torch.device) -> None:
    torch.manual_seed(0)
    module, batch = make()
    before = [p.detach().clone() for p in module.parameters()]
    watched, loader = Watched(), DataLoader([batch], batch_size=None)
    with without_advice():
        Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, max_steps=1,
            num_sanity_val_steps=0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[watched],
        ).fit(module, train_dataloaders=loader, val_dataloaders=loader)  # fmt: skip
    assert watched.place == device.type and 0 < watched.loss < 20
    assert watched.grads and all(bool(grad.isfinite().all()) for grad in watched.grads)
    assert any(not torch.equal(p.detach().cpu(), old) for p, old in zip(module.parameters(), before, strict=True))


class Frames(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((3, 1000, 1278), 2 - index, dtype=torch.int8) if index < 2 else torch.rand(3) + index


def beside_events(items: list[torch.Tensor]) -> tuple[torch.Tensor, SpikeEvents]:
    return items[0], SpikeEvents.from_frames(torch.ones(1, 2, 3))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_workers_arrive_where_the_device_copies_from(device: torch.device, num_workers: int) -> None:
    on_gpu = device.type == "cuda"
    loader = Receiving(
        Frames(), batch_size=1, collate_fn=Sent(beside_events),
        num_workers=num_workers, pin_memory=on_gpu,
    )  # fmt: skip
    for index, (x, events) in enumerate(loader):
        assert x.is_pinned() == events.channel.is_pinned() == on_gpu
        there = events.to(device)
        assert there.indptr.dtype == there.channel.dtype == torch.int64 and there.to_dense().sum() == 6
        assert x.dtype == (torch.int8 if index < 2 else torch.float32) and int(x.to(device).flatten()[0]) == (
            2 - index if index < 2 else index
        )
