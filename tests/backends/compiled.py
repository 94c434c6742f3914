"""Layers inside torch.compile, as one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from elm_neuro import ALIF, ELM, SpikeEvents
from elm_neuro.backends import network
from tests.backends import equal_cases
from tests.backends.alif import cases as alif_cases
from tests.backends.network import cases as network_cases
from tests.tolerances import assert_close


def as_one_graph(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    """`function`, compiled; a graph break is an error."""
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
