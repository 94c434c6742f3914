"""Layers of LIF neurons on a GPU: right in several sizes, and at home in torch."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from elm_neuro import ALIF, LIF, ALIFState, SpikeEvents
from elm_neuro.functional import ATan, Boxcar, FastSigmoid, MultiGaussian, Sigmoid, Surrogate
from tests.gpu.checks import (
    assert_a_graph_repeats,
    assert_compiles_as_one_graph,
    assert_waits_for_nothing,
    assert_works_on_the_current_stream,
)
from tests.tolerances import assert_close

NUM_INPUT = 30


def small(kind: type[ALIF] = ALIF, num_neuron: int = 20, **options: Any) -> ALIF:
    generator = torch.Generator().manual_seed(0)
    settings: Any = {"latency": 3.0, "recurrent": True, "tau_v": 5.0, "surrogate": FastSigmoid(), **options}
    layer = kind(NUM_INPUT, num_neuron, backend="cuda", generator=generator, **settings)
    with torch.no_grad():  # a few per cent of spikes
        layer.cell.weight.mul_(4.0)
    return layer.cuda()


def spikes(batch: int = 3, num_steps: int = 70) -> torch.Tensor:
    return (torch.rand(batch, num_steps, NUM_INPUT, generator=torch.Generator().manual_seed(3)) < 0.2).float().cuda()


def everything(layer: ALIF, backend: str, x: Any, state: ALIFState | None, lengths: Any) -> list[torch.Tensor]:
    layer.backend = backend
    leaves = [*layer.parameters(), *([x] if isinstance(x, torch.Tensor) else []), *(state or ())]
    for leaf in leaves:
        leaf.grad = None
    found, after = layer(x, state, lengths)
    generator = torch.Generator().manual_seed(7)
    results = [found, *after]
    weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r) for r in results]
    torch.stack([(r * weight).sum() for r, weight in zip(results, weights, strict=True)]).sum().backward()
    return [r.detach() for r in results] + [
        torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone() for leaf in leaves
    ]


@pytest.mark.parametrize("given", ["frames", "events", "state and lengths"])
@pytest.mark.parametrize(
    ("kind", "latency", "num_neuron", "surrogate", "recurrent"),
    [
        (ALIF, 0.0, 1, FastSigmoid(), True),
        (ALIF, 3.0, 33, MultiGaussian(), True),
        (LIF, 20.0, 128, ATan(), True),
        (ALIF, 100.0, 300, Sigmoid(), True),
        (LIF, 2.0, 1024, Boxcar(), False),
    ],
)
def test_spikes_state_and_gradients_equal_the_reference(
    kind: type[ALIF], latency: float, num_neuron: int, surrogate: Surrogate, recurrent: bool, given: str
) -> None:
    layer = small(kind, num_neuron, latency=latency, surrogate=surrogate, recurrent=recurrent).double()
    x: Any = spikes().double()
    state = lengths = None
    if given == "state and lengths":
        generator = torch.Generator().manual_seed(5)
        zero = layer.initial_state(3)
        v, a = (torch.rand(part.shape, generator=generator).to(part) for part in zero[:2])
        state = ALIFState(v.requires_grad_(), a.requires_grad_(), zero.s.requires_grad_())
        lengths = torch.tensor([70, 0, 41], device="cuda")
    x = SpikeEvents.from_frames(x) if given == "events" else x.requires_grad_()
    found, wanted = (everything(layer, backend, x, state, lengths) for backend in ("cuda", "reference"))
    assert float(wanted[0].mean()) > 0.001
    for index, (result, right) in enumerate(zip(found, wanted, strict=True)):
        assert_close(result, right, dtype=torch.float64, scale=1.0 if index < 4 else 10.0)


@pytest.mark.parametrize("latency", [0.0, 3.0, 40.0])
def test_the_gradient_of_blocks_equals_that_of_torch(latency: float) -> None:
    layer = small(latency=latency, gradient="blocks", surrogate=MultiGaussian()).double()
    x, lengths = spikes().double().requires_grad_(), torch.tensor([70, 1, 41], device="cuda")
    found, wanted = (everything(layer, backend, x, None, lengths) for backend in ("cuda", "torch"))
    assert float(wanted[0].mean()) > 0.001
    for index, (result, right) in enumerate(zip(found, wanted, strict=True)):
        assert_close(result, right, dtype=torch.float64, scale=1.0 if index < 4 else 10.0)


def test_the_same_call_gives_the_same_bits_and_does_not_wait() -> None:
    layer, x = small(), spikes(8, 200)
    first = everything(layer, "cuda", x.requires_grad_(), None, None)
    assert_waits_for_nothing(layer, x)
    for one, other in zip(first, everything(layer, "cuda", x, None, None), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("events", [False, True])
def test_lengths_are_looked_at_once(events: bool) -> None:
    layer, x, lengths = small(), spikes(), torch.tensor([70, 0, 17], device="cuda")
    given: Any = SpikeEvents.from_frames(2 * x) if events else x  # with values
    call = partial(layer, lengths=lengths)
    call(given)[0].sum().backward()
    assert_waits_for_nothing(call, given)


def test_a_cuda_graph_repeats_the_pass() -> None:
    layer = small()
    assert_a_graph_repeats(layer, spikes, layer.cell.weight)


def test_work_goes_to_the_current_stream() -> None:
    assert_works_on_the_current_stream(small(), spikes)


def test_memory_that_runs_out_is_torchs_error() -> None:
    layer = small()
    with pytest.raises(torch.OutOfMemoryError):
        layer(torch.zeros(1, 1, NUM_INPUT, device="cuda").expand(4_000_000, 1000, NUM_INPUT))


def test_two_devices_each_have_their_kernels() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("no second GPU")
    found = small().to("cuda:1")(spikes().to("cuda:1"))[0]
    assert torch.equal(found.cpu(), small()(spikes())[0].cpu())


@pytest.mark.parametrize("given", ["frames", "events"])
def test_compiled_code_has_no_graph_break(given: str) -> None:
    x = spikes()
    assert_compiles_as_one_graph(small(), x if given == "frames" else SpikeEvents.from_frames(x))
