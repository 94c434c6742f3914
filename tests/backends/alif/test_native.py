"""The native pass of LIF layers against the reference: drawn layers, inputs, states and lengths, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elm_neuro import ALIF, LIF, ALIFState, SpikeEvents
from elm_neuro.backends.native import _library
from elm_neuro.functional import ATan, Boxcar, FastSigmoid, MultiGaussian, Sigmoid
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(bool(_library.missing()), reason="no library")


@st.composite
def layers(draw: st.DrawFn) -> ALIF:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    num_input, num_neuron = draw(st.sampled_from([1, 5, 20])), draw(st.sampled_from([1, 3, 16, 17, 33, 40]))
    layer: ALIF = draw(st.sampled_from([ALIF, LIF]))(
        num_input,
        num_neuron,
        latency=float(draw(st.sampled_from([0, 1, 4, 20, 100]))),
        recurrent=draw(st.booleans()),
        surrogate=draw(st.sampled_from([FastSigmoid(), ATan(), Boxcar(), MultiGaussian(), Sigmoid()])),
        detach_reset=draw(st.booleans()),
        detach_recurrent=draw(st.booleans()),
        tau_v=5.0,
        generator=generator,
    )
    with torch.no_grad():
        layer.cell.weight.mul_(4)
        layer.cell.bias.add_(0.2)
        if layer.cell.w_rec is not None:
            layer.cell.w_rec.copy_(0.4 * torch.randn(num_neuron, num_neuron, generator=generator))
    return layer.double()


@st.composite
def calls(draw: st.DrawFn) -> tuple[ALIF, Tensor | SpikeEvents, ALIFState | None, Tensor | None]:
    layer = draw(layers())
    batch, num_steps = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 5, 31, 32, 33, 70]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    x = (uniform(batch, num_steps, layer.input_size) < 0.4) * uniform(batch, num_steps, layer.input_size)
    state = None
    if draw(st.booleans()):
        remembered = (uniform(batch, layer.cell.latency_steps + 1, layer.output_size) < 0.1).double()
        parts = uniform(batch, layer.output_size) * 2 - 1, uniform(batch, layer.output_size), remembered
        state = ALIFState(*(part.requires_grad_() for part in parts))
    lengths = torch.randint(0, num_steps + 1, (batch,), generator=generator) if draw(st.booleans()) else None
    as_events = draw(st.booleans())
    return layer, SpikeEvents.from_frames(x) if as_events else x.requires_grad_(draw(st.booleans())), state, lengths


def everything(layer: ALIF, backend: str, x: Any, state: ALIFState | None, lengths: Tensor | None) -> list[Tensor]:
    layer.backend = backend
    leaves = [*layer.parameters(), *([x] if isinstance(x, Tensor) and x.requires_grad else []), *(state or ())]
    spikes, after = layer(x, state, lengths)
    generator = torch.Generator().manual_seed(7)
    weighted = [(r * torch.randn(r.shape, generator=generator, dtype=r.dtype)).sum() for r in (spikes, *after)]
    grads = torch.autograd.grad(torch.stack(weighted).sum(), leaves, allow_unused=True)
    filled = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, grads, strict=True)]
    return [r.detach() for r in (spikes, *after)] + filled


@settings(max_examples=120, deadline=None)
@given(calls())
def test_equals_the_reference(call: tuple[ALIF, Any, ALIFState | None, Tensor | None]) -> None:
    layer, *arguments = call
    for result, wanted in zip(
        everything(layer, "native", *arguments), everything(layer, "reference", *arguments), strict=True
    ):
        assert_close(result, wanted, dtype=torch.float64, scale=10.0)


def test_it_is_what_auto_runs_and_spikes_are_many() -> None:
    """The cases above are no proof where nothing fires."""
    torch.manual_seed(0)
    layer = ALIF(20, 33, latency=4.0, recurrent=True)
    with torch.no_grad():
        layer.cell.weight.mul_(4)
    x = (torch.rand(3, 200, 20) < 0.3).float()
    spikes, _ = layer(x)
    assert 0.02 < float(spikes.detach().mean()) < 0.5
    layer.backend = "native"
    assert torch.equal(spikes, layer(x)[0])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing_forward_and_little_backward(threads: int) -> None:
    torch.manual_seed(0)
    layer = ALIF(30, 40, latency=3.0, recurrent=True, backend="native").double()
    x = (torch.rand(7, 900, 30) < 0.2).double()
    before, found = torch.get_num_threads(), []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            found.append(everything(layer, "native", x, None, None))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    for result, wanted in zip(found[1], found[0], strict=True):
        assert_close(result, wanted, dtype=torch.float64)


def test_a_remembered_spike_that_is_none_goes_the_references_way() -> None:
    layer = LIF(3, 2, latency=2.0, backend="native").double()
    start = layer.initial_state(1)
    start = start._replace(s=torch.full_like(start.s, 0.25))
    x = torch.rand(1, 9, 3, dtype=torch.float64) * 4
    results = [
        everything(layer, backend, x, ALIFState(*(part.requires_grad_() for part in start)), None)
        for backend in ("native", "reference")
    ]
    for result, wanted in zip(*results, strict=True):
        assert_close(result, wanted, dtype=torch.float64)


def test_another_surrogate_is_refused_by_name_and_left_to_the_reference_by_auto() -> None:
    layer = LIF(3, 2, surrogate=lambda x: (x > 0).to(x.dtype), backend="native")
    with pytest.raises(ValueError, match='"native" cannot run this: it knows the surrogates ATan, '):
        layer(torch.rand(1, 4, 3))
    layer.backend = "auto"
    assert layer(torch.rand(1, 4, 3))[0].shape == (1, 4, 2)


def test_second_derivatives() -> None:
    found = []
    for backend in ("native", "reference"):
        torch.manual_seed(0)
        layer = ALIF(5, 4, recurrent=True, surrogate=ATan(), backend=backend).double()
        x = (torch.rand(2, 30, 5) < 0.5).double()
        leaves = list(layer.parameters())
        first = torch.autograd.grad(layer(x)[0].sin().sum(), leaves, create_graph=True)
        penalty = torch.stack([grad.square().sum() for grad in first]).sum()
        found.append(torch.autograd.grad(penalty, leaves, allow_unused=True))
    for result, wanted in zip(*found, strict=True):
        torch.testing.assert_close(result, wanted)


def test_events_changed_after_they_were_made_are_refused() -> None:
    x = SpikeEvents.from_frames((torch.rand(2, 6, 40) < 0.3).float())
    layer = LIF(40, 3, backend="native")
    spikes = layer(x)[0]
    x.channel.numpy()[3] = 40
    with pytest.raises(ValueError, match="changed after it had been made"):
        spikes.sum().backward()
    with pytest.raises(ValueError, match="changed after it had been made"):
        layer(x)
