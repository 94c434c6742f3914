"""Data and parameters over processes: each keeps its own hidden states, all have one routing, shards are gathered."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from elm_neuro import BranchELM
from tests.nn.conformance.kinds import FACES, INPUTS, LAYERS, frames, made, of_kinds, run
from tests.tolerances import assert_close


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@of_kinds(FACES)
def test_hidden_states_are_not_among_what_processes_broadcast(name: str) -> None:
    module: Any = made(name)
    before = {key for key, _ in module.named_buffers()}
    run(name, module)
    assert {key for key, _ in module.named_buffers()} == before
    assert not before & set(getattr(module, "state_names", ()))


def _rank(rank: int, folder: str) -> None:
    snn: Any = pytest.importorskip("elm_neuro.adapters.snntorch", exc_type=ImportError)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)  # routing and weights of its own, before they are made one
    net = nn.Sequential(
        BranchELM(INPUTS, 4, num_branch=2, num_synapse_per_branch=4, routing="random").cell,
    )
    face = snn.ELM(INPUTS, 2, num_memory=2, threshold=0.1, init_hidden=True, w_s_init=2.0)
    parallel, cell = DistributedDataParallel(face), DistributedDataParallel(net[0])
    x = frames()[rank : rank + 2]
    twin = copy.deepcopy(face)
    for x_t in x.unbind(1):
        assert_close(parallel(x_t), twin(x_t))
        assert_close(face.mem, twin.mem)
    y, _ = cell(frames()[:2, 0])
    torch.save((y.detach(), net[0].input_to_synapse_indices), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_weights_and_routing_and_no_hidden_states(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    (y, index), (other, theirs) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(index, theirs)
    assert_close(other, y)


@of_kinds({name: LAYERS[name] for name in ("ELM", "BranchELM", "LIF", "ALIF", "SpikingELM")})
def test_sharded_modules_inside_are_gathered_by_their_calls(name: str, alone: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    wanted = run(name, made(name))
    paths = [path for path, part in made(name).named_modules() if path and list(part.parameters())]
    paths = [path for path in paths if not path.endswith("mlp")]  # a list has no call
    for whole in (False, True):
        for path in paths:
            module: Any = made(name)
            fully_shard(module.get_submodule(path), mesh=mesh)
            if whole:
                fully_shard(module, mesh=mesh)
            y = run(name, module)
            assert_close(y, wanted)
            y.square().sum().backward()
    module = fully_shard(made(name), mesh=mesh)
    assert_close(run(name, module), wanted)


@of_kinds(
    {name: LAYERS[name] for name in ("ELM", "BranchELM", "population", "LIF", "ALIF", "SpikingELM") if name in LAYERS}
)
def test_sharded_parameters_of_lower_precision_are_those_of_such_a_module(name: str, alone: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    module = fully_shard(made(name), mesh=init_device_mesh("cpu", (1,)), mp_policy=policy)
    y, wanted = run(name, module), run(name, made(name).bfloat16())
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), wanted.float())
    y.float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


# torch warns of views that are given back, and of its own linear layers, whose random numbers it draws on a CPU
@of_kinds({name: make for name, make in LAYERS.items() if name not in ("flat population", "ELMNetworkClassifier")})
def test_sharded_modules_from_meta_are_drawn_anew(name: str, alone: None) -> None:
    """As FSDP2 has it: shards of nothing, then memory, then numbers."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with torch.device("meta"):
        module: Any = LAYERS[name]()
    module = fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        parameter.detach().fill_(torch.nan)
    module.apply(lambda part: part.reset_parameters() if hasattr(part, "reset_parameters") else None)
    assert all(bool(parameter.full_tensor().isfinite().all()) for parameter in module.parameters())
    assert bool(run(name, module).isfinite().all())
