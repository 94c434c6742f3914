"""The classifiers of training, by their full names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from elm_neuro.export._graph import Graph
from elm_neuro.export._lowering import Lowering, Shape, Trace, check_plain, register
from elm_neuro.export._nodes import Value
from elm_neuro.export.lowerings._chain import Chain, Readout

_MODULE = "elm_neuro.training.networks._classifiers"
BETA_RANGE = (0.001, 0.999)


class _LeakyReadout(Lowering):
    """Leaky integrators without spikes, averaged or summed over time or read at its end."""

    def input_shape(self, module: Any) -> Shape:
        return (module.linear.in_features,)

    def lower(self, graph: Graph, module: Any, x: Value) -> Value:
        check_plain(module.linear, torch.nn.Linear, "linear of the readout")
        beta, width = module.beta.clamp(*BETA_RANGE), module.linear.out_features
        start = graph.state("v", width)
        current = graph.linear("linear", x.name, module.linear.weight, module.linear.bias, matrix=graph.form == "step")
        summed = module.readout == "sum"
        entering = current if summed else graph.add("Mul", current, graph.constant("share", 1.0 - beta))
        v, last = graph.leaky("v", replace(x, name=entering, shape=(width,)), beta, start)
        graph.keep("v", last)
        if summed:  # an integrator that forgets nothing
            v, last = graph.leaky("total", v, torch.ones_like(beta), graph.state("total", width))
            graph.keep("total", last)
            return graph.last_step(v)
        return graph.last_step(v) if module.readout == "last" else graph.mean(v)

    def run(self, module: Any, x: Tensor, trace: Trace) -> Tensor:
        """From zero states the module itself; it does not say where its membranes end, and starts at zero always."""
        beta, v = module.beta.clamp(*BETA_RANGE), trace.get("v", x.shape[0], module.linear.out_features, like=x)
        summed, records = module.readout == "sum", []
        for current in module.linear(x).unbind(1):
            v = beta * v + (current if summed else (1.0 - beta) * current)
            records.append(v)
        trace.keep(v=v)
        if summed:
            total = trace.get("total", x.shape[0], module.linear.out_features, like=x)
            records = list((total.unsqueeze(1) + torch.stack(records, dim=1).cumsum(1)).unbind(1))
            v = records[-1]
            trace.keep(total=v)
        if trace.stepwise:
            return torch.stack(records, dim=1)
        if trace.fresh:
            y: Tensor = module(x)
            return y
        return torch.stack(records, dim=1).mean(1) if module.readout == "mean" else v


def _classifier(module: Any) -> dict[str, Any]:
    hidden = {} if getattr(module, "hidden", None) is None else {"hidden": module.hidden}
    return {**hidden, "neuron": module.neuron, "readout": Readout(module.readout).train(module.training)}


def _lif_network(module: Any) -> dict[str, Any]:
    return {"hidden": module.hidden, "recurrent": module.recurrent, "readout": module.readout}


def _alif_network(module: Any) -> dict[str, Any]:
    return {"first": module.first, "second": module.second, "readout": module.readout}


register(f"{_MODULE}.SequenceClassifier", Chain(_classifier))
register(f"{_MODULE}.SpikingNetwork", Chain(_classifier))
register(f"{_MODULE}.LIFNetwork", Chain(_lif_network))
register("elm_neuro.training.networks._alif.ALIFNetwork", Chain(_alif_network))
register(f"{_MODULE}.LeakyReadout", _LeakyReadout())
