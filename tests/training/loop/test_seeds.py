"""What is drawn in training steps: anew in every batch, the same again in the same run, and nobody else's numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from elm_neuro.training.loop._seeds import seed_of, seeded


class Draws(LightningModule):
    """Keeps what it draws; learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.drawn = nn.Parameter(torch.zeros(())), []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with seeded(seed_of(self, 7, batch_idx, stream=1), self.weight.device):
            self.drawn.append(float(torch.rand(())))
        return self.weight * batch[0].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_batch_draws_anew_where_gradients_are_accumulated_too(
    make_trainer: Callable[..., Trainer], accumulate: int
) -> None:
    def run() -> list[float]:
        module = Draws()
        trainer = make_trainer(max_epochs=2, accumulate_grad_batches=accumulate)
        trainer.fit(module, DataLoader(TensorDataset(torch.ones(7)), batch_size=1))
        return module.drawn

    drawn = run()
    assert len(drawn) == len(set(drawn)) == 14
    assert run() == drawn


def test_what_is_drawn_inside_changes_nothing_outside() -> None:
    before = torch.get_rng_state()
    with seeded(3, torch.device("cpu")):
        inside = torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(inside, torch.rand(2, generator=torch.Generator().manual_seed(3)))


def test_streams_differ_in_the_bits_that_a_generator_takes_in(make_trainer: Callable[..., Trainer]) -> None:
    module = Draws()
    module.trainer = make_trainer()
    seeds = {seed_of(module, 0, 0, stream=stream) & 0xFFFFFFFF for stream in range(100)}
    assert len(seeds) == 100
