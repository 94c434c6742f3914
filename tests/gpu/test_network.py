"""Layers of ELM neurons that read one another on a GPU: right in several sizes, and at home in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from elm_neuro import ELMNetwork, ELMNetworkClassifier, SpikeEvents, backends
from tests.gpu.checks import (
    assert_a_graph_repeats,
    assert_compiles_as_one_graph,
    assert_waits_for_nothing,
    assert_works_on_the_current_stream,
)
from tests.tolerances import assert_close

NUM_INPUT = 30


def small(num_neuron: int = 20, num_memory: int = 5, **options: Any) -> ELMNetwork:
    settings: Any = {"num_branch": 6, "num_synapse_per_branch": 4, "tau_high_pass": 5.0} | options
    generator = torch.Generator().manual_seed(0)
    return ELMNetwork(NUM_INPUT, num_neuron, num_memory, backend="cuda", generator=generator, **settings).cuda()


def spikes(batch: int = 3, num_steps: int = 70) -> Tensor:
    return (torch.rand(batch, num_steps, NUM_INPUT, generator=torch.Generator().manual_seed(3)) < 0.2).float().cuda()


def everything(layer: ELMNetwork, backend: str, x: Any, state: Any = None, lengths: Any = None) -> list[Tensor]:
    """Activity, state and all gradients."""
    layer.backend = backend
    leaves = [*layer.parameters(), *([x] if isinstance(x, Tensor) and x.requires_grad else []), *(state or ())]
    activity, after = layer(x, state, lengths)
    generator = torch.Generator().manual_seed(7)
    results = [activity, *after]
    weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r) for r in results]
    total = torch.stack([(r * weight).sum() for r, weight in zip(results, weights, strict=True)]).sum()
    grads = torch.autograd.grad(total, leaves, allow_unused=True)
    filled = [torch.zeros_like(one) if grad is None else grad for one, grad in zip(leaves, grads, strict=True)]
    return [result.detach() for result in results] + filled


@pytest.mark.parametrize("given", ["frames", "events", "state and lengths"])
@pytest.mark.parametrize(
    ("num_neuron", "num_memory", "options"),
    [
        (1, 1, {"num_mlp_layers": 0}),
        (33, 5, {"output": "spike", "tau_b": 5.0}),
        (96, 5, {"num_branch": 30, "num_synapse_per_branch": 10}),
        (57, 9, {"num_branch": 30, "num_synapse_per_branch": 10, "activation": "silu"}),
        (1100, 3, {"output": "identity", "activation": "relu", "tau_high_pass": None, "num_branch": 2}),
        (300, 7, {"recurrent_fraction": 0.0, "num_mlp_layers": 2}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_activity_state_and_gradients_equal_the_reference(
    num_neuron: int, num_memory: int, options: dict[str, Any], given: str, dtype: torch.dtype
) -> None:
    if dtype == torch.float32 and options.get("output") == "spike":
        pytest.skip("an argument within a rounding of 0 is a spike or none")
    if num_neuron > 1024 and torch.cuda.get_device_properties(0).shared_memory_per_block_optin < 200_000:
        pytest.skip("a device of little shared memory")
    results = []
    for backend, number in (("cuda", dtype), ("reference", torch.float64)):
        layer = small(num_neuron, num_memory, **options).to(number)
        x: Any = spikes(3, 25).to(number)
        state = lengths = None
        if given == "state and lengths":
            generator = torch.Generator().manual_seed(5)
            zero = layer.initial_state(3)
            parts = [torch.rand(part.shape, generator=generator).to(part).requires_grad_() for part in zero]
            state, lengths = type(zero)(*parts), torch.tensor([25, 0, 11], device="cuda")
        x = SpikeEvents.from_frames(x) if given == "events" else x.requires_grad_()
        results.append(everything(layer, backend, x, state, lengths))
    for index, (found, wanted) in enumerate(zip(*results, strict=True)):
        assert_close(found.double(), wanted, dtype=dtype, scale=1.0 if index < 5 else 10.0)


def test_dropout_and_penalties_are_torchs() -> None:
    torch.manual_seed(0)
    network = ELMNetworkClassifier(NUM_INPUT, 4, 12, num_branch=6, num_synapse_per_branch=4).double().cuda().train()
    grads = []
    for backend in ("cuda", "torch"):
        torch.manual_seed(1)
        with backends.use(backend):
            logits, _ = network(spikes().double())
            grads.append(torch.autograd.grad(logits.square().sum(), list(network.parameters()), allow_unused=True))
    for found, wanted in zip(*grads, strict=True):
        if wanted is not None:
            assert_close(found, wanted, dtype=torch.float64, scale=10.0)


def test_auto_is_cuda_on_the_gpu() -> None:
    assert backends.resolve("auto", torch.ones(1, device="cuda"), operator="network") == "cuda"
    assert not backends.available("network")["cuda"].startswith("cannot run")


def test_a_pass_waits_for_nothing_and_repeats_to_the_last_bit() -> None:
    layer = small()
    for x in (spikes(8, 200), SpikeEvents.from_frames(spikes(8, 200))):
        first = everything(layer, "cuda", x)
        assert_waits_for_nothing(layer, x)
        for one, other in zip(first, everything(layer, "cuda", x), strict=True):
            assert torch.equal(one, other)


def test_a_cuda_graph_repeats_the_pass() -> None:
    layer = small()
    assert_a_graph_repeats(layer, spikes, layer.w_s)


def test_work_goes_to_the_current_stream() -> None:
    assert_works_on_the_current_stream(small(), spikes)


def test_memory_that_runs_out_is_torchs_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        small()(torch.zeros(1, 1, NUM_INPUT, device="cuda").expand(4_000_000, 1000, NUM_INPUT))


def test_two_devices_each_have_their_kernels() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("no second GPU")
    found = small().to("cuda:1")(spikes().to("cuda:1"))[0]
    assert torch.equal(found.cpu(), small()(spikes())[0].cpu())


@pytest.mark.parametrize("given", ["frames", "events"])
def test_compiled_code_has_no_graph_break(given: str) -> None:
    x = spikes()
    assert_compiles_as_one_graph(small(), x if given == "frames" else SpikeEvents.from_frames(x))
