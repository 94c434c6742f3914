"""A single step through the sequence call, with a table and without, is a step of the cell."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from elm_neuro import ELM, BranchELM, ELMState, SpikeEvents, SpikingELM, backends
from elm_neuro.backends.elm._native import MAX_BATCH_OF_A_STEP
from elm_neuro.functional import FastSigmoid
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


def some_silent(neuron: ELM) -> ELM:
    """With negative synapses: rectified, they neither hear nor learn."""
    with torch.no_grad():
        neuron.cell._proto_w_s += torch.randn_like(neuron.cell._proto_w_s)
    return neuron


@native
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("batch", [1, MAX_BATCH_OF_A_STEP, MAX_BATCH_OF_A_STEP + 1])
@pytest.mark.parametrize("given", ["frames", "learned frames", "events"])
def test_a_sequence_of_one_step_is_a_step_of_the_cell(options: dict[str, Any], batch: int, given: str) -> None:
    torch.manual_seed(0)
    kind = BranchELM if "num_branch" in options else ELM
    neuron = some_silent(kind(12, 2, num_memory=3, backend="native", **options).double())
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
    neuron = some_silent(kind(12, 2, num_memory=3, **options).double())
    x = torch.randn(3, 7, 12, dtype=torch.float64, requires_grad=True)
    grads = []
    for neuron.backend in ("native", "reference"):
        loss = getattr(neuron(x)[1], part).square().sum()
        leaves = [x, *neuron.parameters()]
        grads.append(torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True))
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs)


@native
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("given", ["learned", "effective"])
def test_a_step_is_differentiated_twice(options: dict[str, Any], given: str) -> None:
    torch.manual_seed(0)
    kind = BranchELM if "num_branch" in options else ELM
    neuron = some_silent(kind(12, 2, num_memory=3, **options).double())
    x = torch.randn(2, 1, 12, dtype=torch.float64, requires_grad=True)
    state = ELMState(*(torch.randn_like(part).requires_grad_() for part in neuron.initial_state(2)))
    leaves = [x, *state, *neuron.parameters()]
    found = []
    for backend in ("native", "reference"):
        params = neuron.cell.learned_parameters() if given == "learned" else neuron.cell.effective_parameters()
        y, after = backends.elm.scan(x, params, state, backend=backend)
        loss = y.square().sum() + after.b.pow(3).sum() + after.m.pow(3).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True, allow_unused=True)
        second = torch.autograd.grad(
            sum(g.square().sum() for g in first),  # type: ignore[arg-type]  # there are some
            leaves, materialize_grads=True, allow_unused=True,
        )  # fmt: skip
        found.append((*first, *second))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs)


@native
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("frozen", ["_proto_w_s", "_proto_tau_m", "mlp", "x and state"])
def test_of_what_is_frozen_a_step_gives_no_gradient(options: dict[str, Any], frozen: str) -> None:
    torch.manual_seed(0)
    kind = BranchELM if "num_branch" in options else ELM
    layer = SpikingELM(
        kind(12, 2, num_memory=3, **options), threshold=0.0, surrogate=FastSigmoid(), learn_threshold=True
    )
    layer = layer.double()
    some_silent(layer.core)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(frozen not in name)
    learns = frozen != "x and state"
    x = torch.randn(2, 1, 12, dtype=torch.float64, requires_grad=learns)
    state = type(layer.initial_state(2))(*(torch.randn_like(p).requires_grad_(learns) for p in layer.initial_state(2)))
    leaves = [leaf for leaf in (x, *state, *layer.parameters()) if leaf.requires_grad]
    found = []
    for layer.core.backend in ("native", "reference"):
        spikes, after = layer(x, state)
        loss = (spikes * torch.tensor([1.0, -2.0])).sum() + sum(part.square().sum() for part in after)
        grads = torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True)
        found.append((spikes, *after, *grads))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs)


@native
@pytest.mark.parametrize("num_steps", [1, 2])
def test_what_neurons_hear_in_common_has_the_same_gradient_with_any_threads(num_steps: int) -> None:
    """Neurons are shared out among threads: each adds to what all of them hear."""
    found = []
    for threads in (1, 4):
        torch.manual_seed(0)
        neuron = BranchELM(
            60, 1, 2, num_branch=100, num_synapse_per_branch=300, routing="random", num_neuron=150, backend="native"
        )
        assert neuron.cell._proto_w_s.numel() > 4e6  # less is one thread's work
        x = torch.rand(3, num_steps, 60, requires_grad=True)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            _, after = neuron(x)
            after.b.sum().backward()
        finally:
            torch.set_num_threads(before)
        found.append(x.grad)
    assert torch.equal(*found)  # type: ignore[arg-type]  # both are there
