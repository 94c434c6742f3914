from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from elm_neuro import BranchELM, SpikeEvents
from tests.tolerances import assert_close


def _neuron() -> BranchELM:
    return BranchELM(
        8, 2, num_memory=3, num_branch=2, num_synapse_per_branch=4, generator=torch.Generator().manual_seed(0)
    )


def _frames() -> torch.Tensor:
    return torch.poisson(torch.full((4, 30, 8), 0.3), generator=torch.Generator().manual_seed(1))


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    neuron = torch.nn.parallel.DistributedDataParallel(_neuron())
    part = _frames()[2 * rank : 2 * rank + 2]
    y, _ = neuron(SpikeEvents.from_frames(part) if rank else part)
    y.square().mean().backward()
    torch.save([p.grad for p in neuron.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_average_to_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    neuron = _neuron()
    neuron(_frames())[0].square().mean().backward()
    for rank in range(2):
        for p, grad in zip(neuron.parameters(), torch.load(tmp_path / f"{rank}.pt", weights_only=True), strict=True):
            assert p.grad is not None
            assert_close(grad, p.grad)
