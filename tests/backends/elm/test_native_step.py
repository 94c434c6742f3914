"""A single step through the sequence call, with a table and without, is a step of the cell."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from elm_neuro import ELM, BranchELM, ELMState, SpikeEvents
from elm_neuro.backends.elm._native import MAX_BATCH_OF_A_STEP
from tests.backends.native_cases import native
from tests.tolerances import assert_close

BRANCHES: dict[str, Any] = {"num_branch": 5, "num_synapse_per_branch": 4, "routing": "random"}
OPTIONS: dict[str, dict[str, Any]] = {
    "ELM": {},
    "linear": {"num_mlp_layers": 0},
    "branches": BRANCHES,
    "branches, own routing": BRANCHES | {"num_neuron": 3},
    "population": {"num_neuron": 2, "activation": "silu"},
    "own time constants": {"tau_s": tuple(1.0 + i for i in range(12))},
    "branch nonlinearity": {"branch_activation": "tanh"},
}


@native
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("batch", [1, MAX_BATCH_OF_A_STEP, MAX_BATCH_OF_A_STEP + 1])
@pytest.mark.parametrize("given", ["frames", "learned frames", "events"])
def test_a_sequence_of_one_step_is_a_step_of_the_cell(options: dict[str, Any], batch: int, given: str) -> None:
    torch.manual_seed(0)
    kind = BranchELM if "num_branch" in options else ELM
    neuron = kind(12, 2, num_memory=3, backend="native", **options).double()
    frame = ((torch.rand(batch, 12) < 0.4) * torch.randn(batch, 12)).double().requires_grad_(given == "learned frames")
    x: Any = frame.unsqueeze(1) if given != "events" else SpikeEvents.from_frames(frame.unsqueeze(1))
    leaves = [*neuron.parameters(), *([frame] if frame.requires_grad else [])]
    start = ELMState(*(torch.randn_like(part).requires_grad_() for part in neuron.initial_state(batch)))
    for state in (None, start):
        y, after = neuron(x, state)
        expected, end = neuron.step(frame, state)
        assert_close(y[:, 0], expected)
        for part, wanted in zip(after, end, strict=True):
            assert_close(part, wanted)
        inputs = leaves + list(state or ())
        for outputs, others in (((y, *after), (expected, *end)), ((after.b,), (end.b,)), ((after.m,), (end.m,))):
            ours, theirs = (
                torch.autograd.grad(
                    sum(part.square().sum() for part in parts), inputs, retain_graph=True, materialize_grads=True,
                    allow_unused=True,
                )
                for parts in (outputs, others)
            )  # fmt: skip
            for grad, wanted in zip(ours, theirs, strict=True):
                assert_close(grad, wanted)
        with torch.no_grad():
            assert_close(neuron(x, state)[0][:, 0], expected)


@native
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("part", ["b", "m"])
def test_a_loss_of_the_last_state_alone_is_differentiated(options: dict[str, Any], part: str) -> None:
    torch.manual_seed(0)
    kind = BranchELM if "num_branch" in options else ELM
    neuron = kind(12, 2, num_memory=3, **options).double()
    x = torch.randn(3, 7, 12, dtype=torch.float64, requires_grad=True)
    grads = []
    for neuron.backend in ("native", "reference"):
        loss = getattr(neuron(x)[1], part).square().sum()
        leaves = [x, *neuron.parameters()]
        grads.append(torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True))
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs)
