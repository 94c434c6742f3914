"""Layers whose saved tensors are kept elsewhere between forward and backward pass, and come back lying otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from elm_neuro import ALIF, ELM, BranchELM, ELMNetwork, SpikeEvents, SpikingELM
from tests.tolerances import assert_close

BRANCHES: dict[str, Any] = {"num_branch": 3, "num_synapse_per_branch": 4, "routing": "random"}
# sizes that fill no vector: rows of tables are padded
LAYERS: dict[str, Callable[[], Any]] = {
    "ELM": lambda: ELM(21, 3, num_memory=5),
    "no hidden layer": lambda: ELM(21, 3, num_memory=5, num_mlp_layers=0),
    "population": lambda: ELM(21, 3, num_memory=5, num_neuron=3),
    "BranchELM": lambda: BranchELM(21, 3, num_memory=3, **BRANCHES),
    "filter on branches": lambda: BranchELM(21, 3, num_memory=3, branch_activation="tanh", **BRANCHES),
    "recomputed": lambda: ELM(21, 3, num_memory=5, recompute_every=6),
    "ALIF": lambda: ALIF(21, 5, recurrent=True),
    "ALIF, blocks": lambda: ALIF(21, 5, recurrent=True, gradient="blocks"),
    "ELMNetwork": lambda: ELMNetwork(21, 5),
    "ELMNetwork with traces": lambda: ELMNetwork(21, 5, tau_b=5.0),
    "SpikingELM": lambda: SpikingELM(ELM(21, 3, num_memory=5), threshold=0.1),
}
HOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "copied": lambda tensor: tensor.clone(memory_format=torch.contiguous_format),
    "apart": lambda tensor: torch.stack((tensor, tensor), -1)[..., 0],
}
INPUTS = ["sparse", "events", "dense", "learned"]


def given(kind: str) -> Any:
    torch.manual_seed(1)
    x = torch.rand(3, 20, 21)
    if kind in ("sparse", "events"):
        x = (x < 0.05).float()
    return SpikeEvents.from_frames(x) if kind == "events" else x.requires_grad_(kind == "learned")


def gradients(layer: Any, x: Any) -> list[Tensor]:
    zeros = layer.initial_state(3)
    state = zeros._replace(**{name: getattr(zeros, name) + 0.25 for name in zeros._fields if name != "s"})
    y, after = layer(x, state, torch.tensor([20, 5, 0]))
    total = y.square().sum() + sum(part.square().sum() for part in after)
    leaves = [*layer.parameters(), *([x] if isinstance(x, Tensor) and x.requires_grad else [])]
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


def come_back_otherwise(name: str, kind: str, hook: str, backend: str) -> None:
    """The gradients are the same."""
    torch.manual_seed(0)
    layer, x = LAYERS[name](), given(kind)
    (layer.core if name == "SpikingELM" else layer).backend = backend
    wanted = gradients(layer, x)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, HOOKS[hook]):
        found = gradients(layer, x)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)
