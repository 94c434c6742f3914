"""Gradients that cannot be differentiated again say so."""

from __future__ import annotations

import pytest
import torch

from elm_neuro import ELM, SpikeEvents
from tests.backends.equal_cases import FAST


@pytest.mark.parametrize("backend", FAST)
def test_second_derivatives_are_refused_clearly(backend: str) -> None:
    neuron = ELM(3, 1, num_memory=2, backend=backend)
    x = torch.rand(1, 4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(neuron(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='no second derivative; backend="reference" has'):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("given", ["frames", "events"])
def test_a_penalty_on_a_gradient_that_flows_from_a_constant_is_refused_too(backend: str, given: str) -> None:
    """The incoming gradient of a sum needs none itself: torch's own check would let the result pass as a constant."""
    neuron = ELM(3, 1, num_memory=2, backend=backend)
    neuron.cell.w_y.requires_grad_(False)
    x = torch.rand(1, 4, 3)
    y = neuron(SpikeEvents.from_frames(x) if given == "events" else x)[0]
    leaves = [p for p in neuron.parameters() if p.requires_grad]
    penalty = sum(g.square().sum() for g in torch.autograd.grad(y.sum(), leaves, create_graph=True))
    with pytest.raises(RuntimeError, match="no second derivative"):
        penalty.backward()  # type: ignore[union-attr]
