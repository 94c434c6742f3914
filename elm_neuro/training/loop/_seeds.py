"""Seeds of what is drawn in a training step, so that a run that goes on draws what one never stopped would have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning import LightningModule

from elm_neuro.datasets import splitmix64


def seed_of(module: LightningModule, seed: int, batch_idx: int, *, stream: int) -> int:
    """Of this batch of this optimizer step in this process; mixed, because torch's CPU generators take in the low 32
    bits of a seed only.

    Args:
        module: in training.
        seed: of the run.
        batch_idx: of the batch; where gradients are accumulated, several belong to one optimizer step.
        stream: what is drawn, so that two things do not draw the same.
    """
    trainer = module.trainer
    batches = trainer.accumulate_grad_batches
    counter = (module.global_step * batches + batch_idx % batches) * trainer.world_size + module.global_rank
    return int(splitmix64(int(splitmix64(seed & 0xFFFFFFFFFFFFFFFF, stream)), counter))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators of the CPU and of `device` begin at `seed` inside, and are as before after it."""
    gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if gpu else []):
        # torch.manual_seed would also seed a GPU that is not there, for which it writes out the stack
        (torch.manual_seed if gpu else torch.default_generator.manual_seed)(seed)
        yield
