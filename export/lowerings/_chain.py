"""Layers one after the other, and readouts of their sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from elm_neuro.export._graph import Graph
from elm_neuro.export._lowering import Lowering, Shape, Trace, lowering_of, num_neuron, register
from elm_neuro.export._nodes import ExportError, Value


class Chain(Lowering):
    """Layers one after the other.

    Args:
        parts: what a module holds, in order, by the names of their states.
        callable_whole: the module takes a sequence and gives its answer, from zero states: the check of a model calls
            it so. A Sequential of layers that return their states cannot.
    """

    def __init__(self, parts: Callable[[Any], dict[str, Any]], *, callable_whole: bool = True) -> None:
        self.parts, self.callable_whole = parts, callable_whole

    def input_shape(self, module: Any) -> Shape | None:
        for name, part in self.parts(module).items():
            shape = lowering_of(part, name).input_shape(part)
            if shape is not None:
                return shape
        return None

    def lower(self, graph: Graph, module: Any, x: Value) -> Value:
        for name, part in self.parts(module).items():
            with graph.scope(name):
                place = graph.scoped("").rstrip(".")
                first = graph.places.setdefault(id(part), place)
                if getattr(part, "init_hidden", False) and first != place:
                    raise ExportError(
                        f"{place} must be a module of its own, got that of {first}: it keeps one state for both"
                    )
                lowering = lowering_of(part, place)
                expected = lowering.input_shape(part)
                if expected is not None and not _fits(part, expected, x.shape):
                    raise ExportError(
                        f"{place} must read what the layer before it gives, {x.shape}, got a layer for {expected}"
                    )
                x = lowering.lower(graph, part, x)
        return x

    def run(self, module: Any, x: Tensor, trace: Trace) -> Tensor:
        y = x
        for name, part in self.parts(module).items():
            with trace.scope(name):
                y = lowering_of(part).run(part, y, trace)
        if not self.callable_whole or not trace.fresh:
            return y
        whole: Tensor = module(x)
        return torch.cat([y[:, :-1], whole[:, None]], dim=1) if trace.stepwise else whole


def _fits(layer: Any, expected: Shape, shape: Shape) -> bool:
    """Whether a layer reads input of this shape: one with states what it expects, or that for each of its neurons; one
    without may have any axes before the last.
    """
    if not hasattr(layer, "initial_state"):
        return shape[-1:] == expected[-1:]
    return shape in (expected, (num_neuron(layer), *expected))


def in_order(module: nn.Module) -> dict[str, nn.Module]:
    """Its parts by name, one that stands there twice at both places."""
    return {name: part for name, part in module._modules.items() if part is not None}


class Readout(nn.Module):
    """What is left of a sequence: its last step or the mean over its steps."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind


class _Readout(Lowering):
    def input_shape(self, module: Readout) -> None:
        return None

    def lower(self, graph: Graph, module: Readout, x: Value) -> Value:
        return graph.last_step(x) if module.kind == "last" else graph.mean(x)

    def run(self, module: Readout, x: Tensor, trace: Trace) -> Tensor:
        if module.kind == "mean":
            return x.mean(1)
        return x if trace.stepwise else x[:, -1]


register(Readout, _Readout())
register(nn.Sequential, Chain(in_order, callable_whole=False))
