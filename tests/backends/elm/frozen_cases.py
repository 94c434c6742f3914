"""Neurons of which one thing alone learns, on any backend."""

from __future__ import annotations

from typing import Any

import torch

from elm_neuro import ELM, BranchELM, ELMState
from tests.tolerances import assert_close

KINDS: dict[str, Any] = {
    "ELM": {},
    "no hidden layer": {"num_mlp_layers": 0},
    "population": {"num_neuron": 2},
    "branch nonlinearity": {"branch_activation": "tanh"},
    "own time constants": {"tau_s": tuple(1.0 + i for i in range(9))},
    "branches": {"num_branch": 3, "num_synapse_per_branch": 4, "routing": "random"},
}

LEARNS = ["_proto_w_s", "_proto_tau_m", "mlp.0.weight", "w_y.bias", "x", "b", "m"]


def made(kind: str, backend: str) -> ELM:
    torch.manual_seed(0)
    of = BranchELM if kind == "branches" else ELM
    return of(9, 2, num_memory=3, backend=backend, **KINDS[kind]).double()


def hand_on(kind: str, density: float, num_steps: int, backend: str) -> None:
    """The state of a neuron whose readout alone learns, through three calls."""
    neuron = made(kind, backend)
    for name, parameter in neuron.named_parameters():
        parameter.requires_grad_("w_y" in name)
    state = None
    for _ in range(3):
        y, state = neuron((torch.rand(3, num_steps, 9) < density).double(), state)
        y.sum().backward()
        assert not state.b.requires_grad and not state.m.requires_grad


def learn_one_thing(kind: str, learns: str, num_steps: int, backend: str) -> None:
    """What has a graph and its gradient, held to the reference."""
    found = []
    for name in (backend, "reference"):
        neuron = made(kind, name)
        x = (torch.rand(3, num_steps, 9) < 0.3).double()
        state = ELMState(*(torch.randn_like(part) for part in neuron.initial_state(3)))
        leaves = {**dict(neuron.cell.named_parameters()), "x": x, **state._asdict()}
        for leaf in leaves.values():
            leaf.requires_grad_(False)
        leaves[learns].requires_grad_()
        y, after = neuron(x, state)
        loss = sum(part.square().sum() for part in (y, *after))
        assert isinstance(loss, torch.Tensor)
        found.append(
            (y.requires_grad, *(part.requires_grad for part in after), torch.autograd.grad(loss, leaves[learns])[0])
        )
    assert found[0][:3] == found[1][:3]
    assert_close(found[0][3], found[1][3])
