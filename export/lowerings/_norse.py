"""The faces of our neurons for norse and its networks, by their full names."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from elm_neuro import SpikingELM
from elm_neuro.export._graph import Graph
from elm_neuro.export._lowering import Lowering, Shape, Trace, check_plain, lowering_of, register
from elm_neuro.export._nodes import Value
from elm_neuro.export.lowerings._chain import Chain, in_order


class _Face(Lowering):
    """A norse face: its core, or with spiking=False the layer inside."""

    def core(self, module: Any) -> Any:
        """The layer whose outputs are the face's."""
        if module.spiking:
            return module.core
        check_plain(module.core, SpikingELM, "core")
        return module.core.core

    def input_shape(self, module: Any) -> Shape | None:
        return lowering_of(self.core(module), "core").input_shape(self.core(module))

    def lower(self, graph: Graph, module: Any, x: Value) -> Value:
        y = lowering_of(self.core(module), "core").lower(graph, self.core(module), x)
        if len(y.shape) < 2:
            return y
        flat = graph.add("Reshape", y.name, graph.integers(*[0] * y.lead, math.prod(y.shape)))
        return replace(y, name=flat, shape=(math.prod(y.shape),))

    def run(self, module: Any, x: Tensor, trace: Trace) -> Tensor:
        return lowering_of(self.core(module)).run(_BatchFirst(module, self.core(module)), x, trace)


class _BatchFirst(nn.Module):
    """A face that is called as the layer it stands for; all else that is asked of it is that layer's."""

    is_cell = False

    def __init__(self, face: Any, layer: Any) -> None:
        super().__init__()
        self.face, self.layer = face, layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.named_modules(*args, **kwargs)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        own = self.face.core.initial_state(x.shape[0])  # with spiking=False the face carries a threshold's states too
        after: Any = type(own)(*state, *own[len(state) :])
        if self.face.time_axes:
            y, after = self.face(x.transpose(0, 1), after)
            y = y.transpose(0, 1)
        else:
            outputs = []
            for x_t in x.unbind(1):
                y_t, after = self.face(x_t, after)
                outputs.append(y_t)
            y = torch.stack(outputs, dim=1)
        return y, type(state)(*after[: len(state)])


register("elm_neuro.adapters.norse.Layer", _Face())
register("elm_neuro.adapters.norse.Cell", _Face())
register("norse.torch.module.sequential.SequentialState", Chain(in_order, callable_whole=False))
