"""Layers inside torch.compile, as one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from elm_neuro import ALIF, ELM, LIF, BranchELM, ELMNetwork, SpikeEvents, SpikingELM
from elm_neuro.backends import network
from elm_neuro.backends.parts._untraced import COMPILES
from tests.backends import equal_cases
from tests.backends.alif import cases as alif_cases
from tests.backends.network import cases as network_cases
from tests.tolerances import assert_close

REASON = "torch.compile looks into layers from torch 2.13 on"
looked_into = pytest.mark.skipif(not COMPILES, reason=REASON)


def as_one_graph(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    """`function`, compiled; a graph break is an error."""
    if not COMPILES:
        pytest.skip(REASON)
    torch._dynamo.reset()
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, **{"backend": "aot_eager"} | how)
    return compiled


class Compiled:
    """A layer whose calls are compiled, otherwise itself."""

    def __init__(self, layer: Any) -> None:
        vars(self)["layer"] = layer
        vars(self)["call"] = as_one_graph(lambda *inputs: layer(*inputs))

    def __call__(self, *inputs: Any) -> Any:
        return self.call(*inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.layer, name, value)


def elm_is_the_same(
    backend: str, case: tuple[ELM, Tensor, Any, Any], *, events: bool, recompute_every: int | None, sparse_input: str
) -> None:
    """A neuron, both ways."""
    neuron, x, state, lengths = case
    if sparse_input == "on" and (events or x.ndim != 3 or x.requires_grad):
        sparse_input = "auto"
    neuron.sparse_input, neuron.recompute_every = sparse_input, recompute_every
    arriving: Any = SpikeEvents.from_frames(x) if events and x.ndim == 3 else x
    wanted = equal_cases.everything(neuron, backend, arriving, state, lengths)
    found = equal_cases.everything(Compiled(neuron), backend, arriving, state, lengths)  # type: ignore[arg-type]
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)


def alif_is_the_same(backend: str, call: tuple[ALIF, Any, Any, Any]) -> None:
    """A LIF layer, both ways."""
    layer, *arguments = call
    wanted = alif_cases.everything(layer, backend, *arguments)
    found = alif_cases.everything(Compiled(layer), backend, *arguments)  # type: ignore[arg-type]
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)


def network_is_the_same(backend: str, call: network_cases.Call) -> None:
    """A layer of ELM neurons, both ways."""
    scan = as_one_graph(lambda *inputs, **options: network.scan(*inputs, **options))
    wanted = network_cases.everything(call, backend)
    for one, other in zip(network_cases.everything(call, backend, scan), wanted, strict=True):
        assert_close(one, other)


LAYERS: dict[str, Callable[[], Any]] = {
    "ELM": lambda: ELM(12, 3, num_memory=4),
    "BranchELM": lambda: BranchELM(12, 3, num_memory=4, num_branch=3, num_synapse_per_branch=4, routing="random"),
    "SpikingELM": lambda: SpikingELM(ELM(12, 3, num_memory=4), threshold=0.1),
    "LIF": lambda: LIF(12, 5),
    "ALIF": lambda: ALIF(12, 5, recurrent=True, surrogate=None),
    "ELMNetwork": lambda: ELMNetwork(12, 4),
}


def spikes(batch: int = 3, num_steps: int = 20) -> torch.Tensor:
    return (torch.rand(batch, num_steps, 12) < 0.1).float()


def total(layer: torch.nn.Module, *inputs: Any) -> torch.Tensor:
    y, after = layer(*inputs)
    return y.square().sum() + sum(part.sum() for part in after)  # type: ignore[no-any-return]


def is_compiled_once(layer: torch.nn.Module, given: str) -> None:
    """A training step, for all sizes after the first, whose numbers torch takes for constants; the same numbers."""
    graphs = CompileCounterWithBackend("aot_eager")
    step = as_one_graph(lambda *inputs: total(layer, *inputs), backend=graphs)
    leaves = list(layer.parameters())
    for batch, num_steps in ((3, 20), (4, 25), (5, 9), (2, 31), (16, 8), (7, 2)):
        x = spikes(batch, num_steps)
        arriving: Any = SpikeEvents.from_frames(x) if given == "events" else x
        losses = step(arriving), total(layer, arriving)
        for one, other in zip(*(torch.autograd.grad(loss, leaves, allow_unused=True) for loss in losses), strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert_close(one, other)
    assert graphs.frame_count == 2


def call_of(layer: Any, x: Any) -> tuple[Any, ...]:
    """What torch's operator is called with where compiled code calls this layer."""
    recorded: list[tuple[Any, ...]] = []
    operator = torch.ops.elm_neuro.run_pass

    def record(tensors: Any, *how: Any) -> Any:
        leaves = [one.detach().requires_grad_(one.requires_grad) for one in tensors]
        recorded.append((leaves, [int(size) for size in how[0]], *how[1:]))
        return operator(tensors, *how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops.elm_neuro, "run_pass", record)
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        layer(x)
    return recorded[-1]


class Output(torch.nn.Module):
    """Without the state."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layer = LAYERS[name]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)[0]
        return y
