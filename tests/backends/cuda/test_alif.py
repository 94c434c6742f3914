"""The layer's kernels, run on the CPU, against the reference: drawn layers, inputs, states and lengths, both ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from elm_neuro import ALIF, LIF, ALIFState, SpikeEvents
from elm_neuro.backends.cuda import _alif, _compile
from elm_neuro.functional import FastSigmoid
from tests.backends.alif import test_published
from tests.backends.alif.cases import calls, everything
from tests.backends.cuda.fake_driver import FakeDriver
from tests.tolerances import assert_close


def equals(oracle: str, call: tuple[ALIF, Any, ALIFState | None, Tensor | None]) -> None:
    layer, *arguments = call
    found, wanted = (everything(layer, backend, *arguments) for backend in ("cuda", oracle))
    assert torch.equal(found[0], wanted[0])
    for result, right in zip(found, wanted, strict=True):
        assert_close(result, right, dtype=torch.float64, scale=10.0)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=calls())
def test_equals_the_reference(fake_driver: FakeDriver, call: tuple[ALIF, Any, ALIFState | None, Tensor | None]) -> None:
    equals("reference", call)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=calls("blocks"))
def test_equals_the_gradient_of_blocks_of_torch(
    fake_driver: FakeDriver, call: tuple[ALIF, Any, ALIFState | None, Tensor | None]
) -> None:
    equals("torch", call)
    assert "elm_alif_blocks_backward" in [name for name, *_ in fake_driver.launched]


def in_several_orders(fake_driver: FakeDriver, gradient: str = "loop") -> list[Tensor]:
    torch.manual_seed(0)
    detached = gradient == "blocks"
    layer = ALIF(20, 64, latency=2.0, recurrent=True, detach_recurrent=detached, gradient=gradient).double()
    with torch.no_grad():
        layer.cell.weight.mul_(4)
        assert layer.cell.w_rec is not None
        layer.cell.w_rec.copy_(0.4 * torch.randn(64, 64))
    x = (torch.rand(2, 40, 20) < 0.3).double()
    found = []
    for seed in range(4):
        fake_driver.seed = seed
        results = everything(layer, "cuda", x, None, None)
        assert results[0].any()
        found.append(torch.cat([result.flatten() for result in results]).nan_to_num(1e9))
    return found


@pytest.mark.parametrize("gradient", ["loop", "blocks"])
def test_the_order_of_the_threads_changes_nothing(fake_driver: FakeDriver, gradient: str) -> None:
    first, *others = in_several_orders(fake_driver, gradient)
    assert all(torch.equal(other, first) for other in others)


@pytest.mark.parametrize(
    "barrier",
    ["if (a.by_sender) __syncthreads();", "if (a.w_rec) __syncthreads();"],
)
def test_a_missing_barrier_is_found(fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, barrier: str) -> None:
    def forget() -> None:
        for known in (_alif.program, _alif.forward, _alif.backward):
            known.cache_clear()

    texts = dict(_compile.sources())
    assert barrier in texts["alif.cuh"]
    texts["alif.cuh"] = texts["alif.cuh"].replace(barrier, "")
    monkeypatch.setattr(_compile, "sources", lambda: texts)
    forget()
    try:
        first, *others = in_several_orders(fake_driver)
        found = not all(torch.equal(other, first) for other in others)
    except ValueError as error:  # a row of spikes that nobody has written yet
        found = "NaN" in str(error)
    forget()
    assert found


@pytest.mark.parametrize("recurrent", [False, True])
def test_what_is_learned_outside_its_range_has_no_gradient(fake_driver: FakeDriver, recurrent: bool) -> None:
    torch.manual_seed(1)
    layer = ALIF(4, 8, latency=2.0, recurrent=recurrent).double()
    with torch.no_grad():
        layer.cell.weight.mul_(6)
        layer.cell.beta.copy_(torch.tensor([1.5, 0.999, 0.9, 0.001, 0.0, -0.5, 0.5, 0.8]))
        assert layer.cell.p is not None and layer.cell.b is not None
        layer.cell.p.copy_(torch.tensor([1.5, 0.999, -0.999, -2.0, 0.0, -0.5, 0.5, 0.8]))
        layer.cell.b.copy_(torch.tensor([0.5, 0.001, -0.001, 0.0, 1.0, -0.5, -2.0, 3.0]))
    x = (torch.rand(3, 40, 4) < 0.5).double()
    found, wanted = (everything(layer, backend, x, None, None) for backend in ("cuda", "reference"))
    assert found[0].any()
    for result, right in zip(found, wanted, strict=True):
        assert_close(result, right, dtype=torch.float64, scale=10.0)
    names = [name for name, _ in layer.named_parameters()]
    of = dict(zip(names, found[-len(names) :], strict=True))
    assert of["cell.beta"].count_nonzero() <= 5 and not of["cell.beta"][[0, 4, 5]].any()
    assert not of["cell.p"][[0, 3, 4]].any() and not of["cell.b"][[3, 6, 7]].any()


@pytest.mark.parametrize("gradient", ["loop", "blocks"])
def test_second_derivatives_are_those_of_torch(fake_driver: FakeDriver, gradient: str) -> None:
    torch.manual_seed(2)
    layer = ALIF(4, 6, latency=2.0, recurrent=True, gradient=gradient).double()
    with torch.no_grad():
        layer.cell.weight.mul_(6)
    x = (torch.rand(2, 20, 4) < 0.5).double()

    def twice(backend: str) -> list[Tensor]:
        layer.backend = backend
        weights = [layer.cell.weight, layer.cell.beta, layer.cell.b, layer.cell.bias]
        first = torch.autograd.grad((layer(x)[0] * torch.arange(20.0).unsqueeze(-1)).sum(), weights, create_graph=True)
        return [*first, *torch.autograd.grad(sum(one.square().sum() for one in first), weights)]

    for found, wanted in zip(twice("cuda"), twice("torch"), strict=True):
        assert_close(found, wanted, dtype=torch.float64, scale=10.0)


@pytest.mark.parametrize("gradient", ["loop", "blocks"])
def test_gradients_of_spikes_come_as_they_lie(fake_driver: FakeDriver, gradient: str) -> None:
    torch.manual_seed(3)
    layer = ALIF(4, 6, latency=2.0, recurrent=True, gradient=gradient).double()
    with torch.no_grad():
        layer.cell.weight.mul_(6)
    x = (torch.rand(3, 20, 4) < 0.5).double()
    by_neuron, by_step = torch.randn(2, 6, dtype=torch.float64), torch.randn(20, 3, 6, dtype=torch.float64)
    for upstream in (by_neuron[0].expand(3, 20, 6), by_step.transpose(0, 1), by_step[:, :, :1].transpose(0, 1)):
        found = []
        for layer.backend in ("cuda", "torch"):
            found.append(torch.autograd.grad(layer(x)[0], list(layer.parameters()), upstream.expand(3, 20, 6)))
        for result, right in zip(*found, strict=True):
            assert_close(result, right, dtype=torch.float64, scale=10.0)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_layer_at_rest_gives_a_state_of_its_own(fake_driver: FakeDriver, adaptive: bool) -> None:
    for backend in ("cuda", "reference", "torch"):
        for num_steps in (0, 1, 5):
            layer = (ALIF if adaptive else LIF)(3, 1, latency=2.0, backend=backend)
            _, state = layer(torch.rand(1, num_steps, 3))
            places = {part.untyped_storage().data_ptr() for part in state}
            assert len(places) == 3 and [part.shape for part in state] == [(1, 1), (1, 1), (1, 3, 1)]
            for part in state:
                part.detach().add_(1)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the profiler, on what it keeps of one run and the next
def test_a_pass_asks_little_of_the_host(fake_driver: FakeDriver) -> None:
    layer = ALIF(12, 8, latency=2.0, recurrent=True, backend="cuda")
    x, upstream = (torch.rand(4, 30, 12) < 0.1).float(), torch.ones(4, 30, 8)

    def both() -> None:
        layer.zero_grad()
        layer(x)[0].backward(upstream)

    both()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        both()
    events = [event for event in profiled.events() if event.name.startswith("aten::")]
    outer = [e.name for e in events if e.cpu_parent is None or not e.cpu_parent.name.startswith("aten::")]
    looked = 9  # at membrane, adaptation and b, for a NaN: on the CPU alone
    assert len(outer) <= 40 + looked, outer


@pytest.mark.parametrize("method", ["seq", "blocks"])
@pytest.mark.parametrize("name", test_published.NAMES)
def test_the_published_loop_and_blocks(fake_driver: FakeDriver, shared: Path, name: str, method: str) -> None:
    test_published.test_the_published_loop_and_blocks(name, "frames", method, "cuda", shared)


def test_what_it_cannot_run_is_refused_by_name(fake_driver: FakeDriver) -> None:
    layer = LIF(3, 2, surrogate=lambda x: (x > 0).to(x.dtype), backend="cuda")
    with pytest.raises(ValueError, match='"cuda" cannot run this: it knows the surrogates ATan, '):
        layer(torch.rand(1, 4, 3))
    with pytest.raises(ValueError, match="it runs at most 1024 neurons, got 1025"):
        LIF(3, 1025, backend="cuda")(torch.rand(1, 4, 3))


def test_a_latency_beyond_shared_memory_goes_torchs_way(fake_driver: FakeDriver) -> None:
    layer = ALIF(3, 1000, latency=352.0, recurrent=True, backend="cuda")
    x = torch.rand(1, 4, 3)
    with pytest.raises(ValueError, match="at most 351 steps in a recurrent layer of 1000 neurons, got 352"):
        layer(x)
    layer.backend = "auto"
    spikes = layer(x)[0]
    assert not fake_driver.launched
    layer.backend = "torch"
    assert torch.equal(spikes, layer(x)[0])


def test_the_longest_latencies_fit_into_what_every_device_gives(fake_driver: FakeDriver) -> None:
    fake_driver.properties = replace(fake_driver.properties, shared_bytes=48 * 1024)
    for num_neuron in (1, 33, 250, 300, 1000):
        latency = _alif.max_history(num_neuron) - 1
        layer = ALIF(2, num_neuron, latency=float(latency), recurrent=True, backend="cuda")
        layer(torch.rand(1, 3, 2))
        latency = min(latency, 40)  # as long a chunk
        ALIF(2, num_neuron, latency=float(latency), recurrent=True, backend="cuda").double()(
            torch.rand(1, 3, 2).double()
        )
    assert len(fake_driver.launched) >= 10


def test_every_neuron_may_fire_at_once(fake_driver: FakeDriver) -> None:
    torch.manual_seed(3)
    for num_neuron, latency in ((65, 2.0), (40, 0.0), (33, 20.0)):
        layer = ALIF(2, num_neuron, latency=latency, recurrent=True).double()
        with torch.no_grad():
            layer.cell.weight.fill_(5.0)
        x = torch.rand(2, 50, 2).double().round()
        found, wanted = (everything(layer, backend, x, None, None) for backend in ("cuda", "reference"))
        assert bool((found[0].sum(2) == num_neuron).any())
        for result, right in zip(found, wanted, strict=True):
            assert_close(result, right, dtype=torch.float64, scale=10.0)


def test_settings_of_a_surrogate_are_not_compiled(fake_driver: FakeDriver) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 9, 3).double()
    before = None
    for scale in (5.0, 7.0, 25.0):  # as where the slope is annealed
        layer = ALIF(3, 4, surrogate=FastSigmoid(scale)).double()
        found, wanted = (everything(layer, backend, x, None, None) for backend in ("cuda", "reference"))
        for result, right in zip(found, wanted, strict=True):
            assert_close(result, right, dtype=torch.float64, scale=10.0)
        known = len(fake_driver._libraries)
        assert before in (None, known)
        before = known


def test_values_past_a_samples_end_say_nothing(fake_driver: FakeDriver) -> None:
    frames, found = torch.ones(2, 5, 3), []
    lengths = torch.tensor([5, 2])
    for past in (0.5, float("nan")):
        frames[1, 2:] = past
        layer = ALIF(3, 4, recurrent=True, backend="cuda", generator=torch.Generator().manual_seed(0))
        spikes, state = layer(SpikeEvents.from_frames(frames), None, lengths)
        (spikes.sum() + state.v.sum()).backward()
        found.append([spikes.detach(), state.v.detach(), *(p.grad for p in layer.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
