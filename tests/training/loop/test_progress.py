"""What a run says of the time that is left: by its epochs, or by the clock where that ends it sooner."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from elm_neuro.training import TimeBudget
from elm_neuro.training.loop._progress import EpochLines


class Plain(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.weight * batch[0].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.grid(every=2)
@pytest.mark.parametrize(
    ("clock", "epochs", "line"),
    [
        (None, 2, r"epoch 1 of 2: ; \d+ s, \d+ s left"),
        (lambda: TimeBudget(minutes=10.0, reserve_s=60.0), 10**9, r"epoch 1: ; \d+ s, 5[34]\d s left"),
        (lambda: Timer(duration="00:00:05:00"), 10**9, r"epoch 1: ; \d+ s, (29\d|300) s left"),
        (lambda: TimeBudget(minutes=600.0), 2, r"epoch 1 of 2: ; \d+ s, \d+ s left"),
    ],
)
def test_the_time_left_is_that_of_what_ends_the_run(
    make_trainer: Callable[..., Trainer],
    capsys: pytest.CaptureFixture[str],
    clock: Callable[[], object] | None,
    epochs: int,
    line: str,
) -> None:
    callbacks = [EpochLines(), *([] if clock is None else [clock()])]
    trainer = make_trainer(max_epochs=epochs, max_steps=4, callbacks=callbacks)
    trainer.fit(Plain(), DataLoader(TensorDataset(torch.ones(2)), batch_size=1))
    first = next(text for text in capsys.readouterr().err.splitlines() if text.startswith("epoch 1"))
    assert re.fullmatch(line, first), first
