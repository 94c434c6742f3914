"""Layers of torch without states."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from elm_neuro.export._graph import Graph
from elm_neuro.export._lowering import Lowering, Shape, Trace, register
from elm_neuro.export._nodes import ExportError, Value


class Stateless(Lowering):
    """A layer whose call takes x alone, and any number of axes before the last."""

    def run(self, module: nn.Module, x: Tensor, trace: Trace) -> Tensor:
        y: Tensor = module(x)
        return y


class _Linear(Stateless):
    def input_shape(self, module: nn.Linear) -> Shape:
        return (module.in_features,)

    def lower(self, graph: Graph, module: nn.Linear, x: Value) -> Value:
        y = graph.linear("linear", x.name, module.weight, module.bias, matrix=x.time is None and len(x.shape) == 1)
        return replace(x, name=y, shape=(*x.shape[:-1], module.out_features), spikes=False)


class Pointwise(Stateless):
    """A layer that is one function of every number, or in evaluation none."""

    def __init__(self, activation: str | None) -> None:
        self.activation = activation

    def input_shape(self, module: nn.Module) -> None:
        return None

    def lower(self, graph: Graph, module: nn.Module, x: Value) -> Value:
        if module.training and self.activation is None and not isinstance(module, nn.Identity):
            raise ExportError(
                "module must be in evaluation mode where it drops inputs, got "
                f"{type(module).__name__} in training: call module.eval()"
            )
        return replace(x, name=graph.activated(x.name, self.activation), spikes=False)


register(nn.Linear, _Linear())
for _kind, _activation in ((nn.ReLU, "relu"), (nn.SiLU, "silu"), (nn.Tanh, "tanh"), (nn.Sigmoid, "sigmoid")):
    register(_kind, Pointwise(_activation))
for _nothing in (nn.Identity, nn.Dropout, nn.Dropout1d, nn.AlphaDropout, nn.FeatureAlphaDropout):
    register(_nothing, Pointwise(None))
