"""The native pass of LIF layers against the reference: drawn layers, inputs, states and lengths, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from elm_neuro import ALIF, LIF, ALIFState, SpikeEvents
from elm_neuro.backends.native import _library
from elm_neuro.backends.native._rows import rows
from elm_neuro.functional import ATan, MultiGaussian
from tests.backends.alif.cases import calls, everything
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(bool(_library.missing()), reason="no library")


@settings(max_examples=120, deadline=None)
@given(calls())
def test_equals_the_reference(call: tuple[ALIF, Any, ALIFState | None, Tensor | None]) -> None:
    layer, *arguments = call
    for result, wanted in zip(
        everything(layer, "native", *arguments), everything(layer, "reference", *arguments), strict=True
    ):
        assert_close(result, wanted, dtype=torch.float64, scale=10.0)


@settings(max_examples=120, deadline=None)
@given(calls("blocks"))
def test_equals_the_gradient_of_blocks_of_torch(call: tuple[ALIF, Any, ALIFState | None, Tensor | None]) -> None:
    layer, *arguments = call
    for result, wanted in zip(
        everything(layer, "native", *arguments), everything(layer, "torch", *arguments), strict=True
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


@pytest.mark.parametrize("shape", [(), (4, 1, 1), (4, 50, 1), (1, 50, 1), (1, 1, 33), (4, 1, 33)])
def test_an_expanded_gradient_is_as_good_as_its_copy_and_stays_small(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = ALIF(20, 33, latency=4.0, recurrent=True, backend="native").double()
    spikes, _ = layer((torch.rand(4, 50, 20) < 0.3).double())
    expanded = torch.randn(shape, dtype=torch.float64).expand(4, 50, 33)
    found, wanted = (
        torch.autograd.grad(spikes, list(layer.parameters()), one, retain_graph=True)
        for one in (expanded, expanded.contiguous())
    )
    assert any(bool(grad.any()) for grad in wanted)
    assert all(map(torch.equal, found, wanted))
    assert rows(expanded).untyped_storage().nbytes() <= 8 * 33 * max(1, expanded[..., 0].unique().numel())


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


@pytest.mark.parametrize("sigma", [1e-8, 0.05, 0.5, 20.0])
@pytest.mark.parametrize("s", [0.5, 2.0, 4.99, 5.0, 6.0, 40.0])
def test_the_slope_of_the_multi_gaussian_is_that_of_its_formula(s: float, sigma: float) -> None:
    """One step of neurons at rest whose membrane is their bias, which then has the slope as its gradient."""
    near = torch.linspace(-8.0, 8.0, 4001)
    bias = torch.cat([1.0 + sigma * near, 1.0 + s * sigma * near, torch.tensor([1.0, -1e30, 1e30])])
    surrogate = MultiGaussian(sigma=sigma, h=0.3, s=s, gamma=0.7)
    layer = ALIF(1, len(bias), latency=0.0, surrogate=surrogate, backend="native")
    with torch.no_grad():
        layer.cell.bias.copy_(bias)
    layer(torch.zeros(1, 1, 1))[0].sum().backward()

    def bell(x: Tensor, width: float) -> Tensor:
        return torch.exp(-0.5 * (x / width) ** 2) / (width * (2.0 * torch.pi) ** 0.5)

    x = (bias - 1.0).double()
    sides = bell(x - sigma, s * sigma) + bell(x + sigma, s * sigma)
    wanted = 0.7 * (1.3 * bell(x, sigma) - 0.3 * sides)
    assert layer.cell.bias.grad is not None
    height = wanted.abs().max()
    assert_close(layer.cell.bias.grad / height, wanted / height, dtype=torch.float32, scale=0.1)
