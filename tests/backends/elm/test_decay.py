"""The decay of the branch traces has a gradient too, though no layer of ours learns it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_neuro import ELM, SpikeEvents, backends
from tests.backends.equal_cases import BACKENDS, FAST, cases
from tests.tolerances import assert_close


@settings(max_examples=30, deadline=None)
@given(cases(), st.booleans())
def test_its_gradient_is_the_references(case: object, as_events: bool) -> None:
    neuron, x, state, lengths = case  # type: ignore[misc]
    kappa = neuron.cell.effective_parameters().kappa_b.detach()
    found = {}
    given: torch.Tensor | SpikeEvents = x.detach()
    if as_events and x.ndim == 3:
        given = SpikeEvents.from_frames(x.detach())
    for backend in BACKENDS:
        params = neuron.cell.effective_parameters()._replace(kappa_b=kappa.clone().requires_grad_())
        y, after = backends.scan(given, params, state, lengths=lengths, backend=backend)
        loss = y.sin().sum() + after.b.square().sum() + after.m.sum()
        leaves = [p for p in (params.kappa_b, params.kappa_m, params.w_s) if p.requires_grad]
        found[backend] = torch.autograd.grad(loss, leaves)
    for backend in FAST:
        for result, wanted in zip(found[backend], found["reference"], strict=True):
            assert_close(result, wanted, dtype=torch.float64, scale=10.0)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("steps", [1, 9])
def test_synaptic_time_constants_can_be_learned(backend: str, steps: int) -> None:
    grads = []
    for name in (backend, "reference"):
        torch.manual_seed(0)
        neuron = ELM(5, 2, num_memory=3, backend=name).double()
        neuron.cell.tau_s.requires_grad_()
        x = torch.rand(2, steps, 5, dtype=torch.float64)
        start = neuron.initial_state(2)
        start = start._replace(b=start.b + 1.0)
        neuron(x, start)[0].square().sum().backward()
        grads.append(neuron.cell.tau_s.grad)
    assert grads[1] is not None and bool(grads[1].all())
    assert_close(grads[0], grads[1], dtype=torch.float64)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("size", [1e3, 1e6, 1e8])
def test_gradients_of_saturated_units_in_single_precision(backend: str, size: float) -> None:
    """What is left of 1 - tanh^2 at its end must be nothing: it would be multiplied by the input."""
    torch.manual_seed(0)
    neuron = ELM(4, 1, num_memory=6, backend=backend)
    x = torch.randn(3, 6, 4) * size
    exact = ELM.from_config(neuron.config, backend="reference").double()
    exact.load_state_dict(neuron.state_dict())
    for layer, frames in ((neuron, x), (exact, x.double())):
        layer(frames)[0].sum().backward()
    for (name, p), wanted in zip(neuron.named_parameters(), exact.parameters(), strict=True):
        if p.grad is not None and wanted.grad is not None:
            error = (p.grad.double() - wanted.grad).abs().max() / wanted.grad.abs().max().clamp(min=1e-30)
            assert error < 1e-3, (name, float(error))
