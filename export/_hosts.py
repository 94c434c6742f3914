"""Layers of hosts, their faces here, and the networks of training, as the export lowers them: known by full names, none is imported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from elm_neuro.export._graph import ExportError, Graph, Value
from elm_neuro.export._lowering import Chain, Lowering, Readout, Shape, Trace, fire, lowering_of, register


class _LeakyReadout:
    """Leaky integrators without spikes, averaged over time or read at its end."""

    def input_shape(self, module: Any) -> Shape:
        return (module.linear.in_features,)

    def lower(self, graph: Graph, module: Any, x: Value) -> Value:
        beta = module.beta.clamp(0.001, 0.999)
        start = graph.state("v", module.linear.out_features)
        current = graph.linear("linear", x.name, module.linear.weight, module.linear.bias, matrix=graph.form == "step")
        driven = graph.add("Mul", current, graph.constant("share", 1.0 - beta))
        v, last = graph.leaky("v", replace(x, name=driven, shape=(module.linear.out_features,)), beta, start)
        graph.keep("v", last)
        return graph.last_step(v) if module.readout == "last" else graph.mean(v)

    def run(self, module: Any, x: Tensor, trace: Trace) -> Tensor:
        beta, v = module.beta.clamp(0.001, 0.999), trace.get("v", x.shape[0], module.linear.out_features, like=x)
        records = []
        for current in module.linear(x).unbind(1):
            v = beta * v + (1.0 - beta) * current
            records.append(v)
        trace.keep(v=v)
        if module.readout == "mean":
            return torch.stack(records, dim=1).mean(1)
        return torch.stack(records, dim=1) if trace.stepwise else v


class _SnnTorchELM:
    """The snnTorch face of an ELM: the same, but the reset goes by the last membrane."""

    def input_shape(self, module: Any) -> Shape:
        return (module.core.config.input_size,)

    def lower(self, graph: Graph, module: Any, x: Value) -> Value:
        for name, plain in (("state_quant", not module.state_quant), ("inhibition", not module.inhibition)):
            if not plain:
                raise ExportError(
                    f"{name} must be off to be exported, got {getattr(module, name)!r} in {type(module).__name__}"
                )
        y = lowering_of(module.core).lower(graph, module.core, x)
        return fire(graph, y, module.threshold, module.graded_spikes_factor, reset=module.reset_mechanism, state="mem")

    def run(self, module: Any, x: Tensor, trace: Trace) -> Tensor:
        y = lowering_of(module.core).run(module.core, x, trace)
        mem, records = trace.get("mem", y.shape[0], *y.shape[2:], like=y), []
        for y_t in y.unbind(1):
            mem = module._after_reset(y_t, mem)
            records.append(mem)
        v = torch.stack(records, dim=1)
        trace.fired(v - module.threshold)
        trace.extra("v", v)
        trace.keep(mem=mem)
        return module.fire(v)  # type: ignore[no-any-return]


class _SnnTorchALIF:
    def input_shape(self, module: Any) -> Shape:
        return (module.core.input_size,)

    def lower(self, graph: Graph, module: Any, x: Value) -> Value:
        spikes = lowering_of(module.core).lower(graph, module.core, x)
        return replace(
            spikes, name=graph.add("Mul", spikes.name, graph.constant("graded_factor", module.graded_spikes_factor))
        )

    def run(self, module: Any, x: Tensor, trace: Trace) -> Tensor:
        spikes: Tensor = lowering_of(module.core).run(module.core, x, trace) * module.graded_spikes_factor
        return spikes


class _SnnTorchLeaky:
    r"""snnTorch's own leaky integrate-and-fire neurons, one an input.

    :math:`v_t = \beta v_{t-1} + i_t - \theta [v_{t-1} > \theta]`, or with a reset to zero
    :math:`v_t = \beta v_{t-1} [v_{t-1} \le \theta] + i_t`.
    """

    def input_shape(self, module: Any) -> None:
        return None

    def lower(self, graph: Graph, module: Any, x: Value) -> Value:
        for name, plain in (
            ("state_quant", not module.state_quant),
            ("inhibition", not module.inhibition),
            ("reset_delay", module.reset_delay),
        ):
            if not plain:
                raise ExportError(
                    f"{name} must be as snnTorch has it by default to be exported, got {getattr(module, name)!r} in Leaky"
                )
        x = graph.time_first(x)
        state = graph.state("mem", *x.shape)
        limit, beta = graph.constant("threshold", module.threshold), graph.constant("beta", module.beta.clamp(0, 1))

        def above(v: str) -> str:
            return graph.add("Cast", graph.add("Greater", v, limit), to=graph.kind)

        def step(i_t: str, states: dict[str, str]) -> tuple[str, dict[str, str]]:
            before = states["mem"]
            if module.reset_mechanism == "zero":
                before = graph.add(
                    "Mul",
                    before,
                    graph.add("Sub", graph.constant("one", torch.ones((), dtype=graph.dtype)), above(before)),
                )
            v = graph.add("Add", graph.add("Mul", before, beta), i_t)
            if module.reset_mechanism == "subtract":
                v = graph.add("Sub", v, graph.add("Mul", above(states["mem"]), limit))
            return v, {"mem": v}

        v, after = graph.loop(x.name, {"mem": state}, step, reads=(None, *x.shape), gives=(None, *x.shape))
        graph.keep("mem", after["mem"])
        return replace(x, name=graph.add("Mul", above(v), graph.constant("graded_factor", module.graded_spikes_factor)))

    def run(self, module: Any, x: Tensor, trace: Trace) -> Tensor:
        mem, beta, records = trace.get("mem", x.shape[0], *x.shape[2:], like=x), module.beta.clamp(0, 1), []
        for i_t in x.unbind(1):
            fired = (mem > module.threshold).to(mem.dtype)
            if module.reset_mechanism == "zero":
                mem = beta * (1.0 - fired) * mem + i_t
            else:
                mem = beta * mem + i_t - (fired * module.threshold if module.reset_mechanism == "subtract" else 0.0)
            records.append(mem)
        v = torch.stack(records, dim=1)
        trace.fired(v - module.threshold)
        trace.keep(mem=mem)
        return (v > module.threshold).to(v.dtype) * module.graded_spikes_factor  # type: ignore[no-any-return]


class _NorseFace:
    """A norse face: its core, or with spiking=False the neuron inside."""

    def _core(self, module: Any) -> nn.Module:
        core: nn.Module = module.core if module.spiking else module.core.core
        return core

    def input_shape(self, module: Any) -> Shape | None:
        return lowering_of(self._core(module)).input_shape(self._core(module))

    def lower(self, graph: Graph, module: Any, x: Value) -> Value:
        return lowering_of(self._core(module)).lower(graph, self._core(module), x)

    def run(self, module: Any, x: Tensor, trace: Trace) -> Tensor:
        return lowering_of(self._core(module)).run(self._core(module), x, trace)


def _classifier(module: Any) -> dict[str, Any]:
    hidden = {} if getattr(module, "hidden", None) is None else {"hidden": module.hidden}
    return {**hidden, "neuron": module.neuron, "readout": Readout(module.readout)}


_KINDS: dict[str, Lowering] = {
    "elm_neuro.training.networks._classifiers.SequenceClassifier": Chain(_classifier),
    "elm_neuro.training.networks._classifiers.LIFNetwork": Chain(
        lambda m: {"hidden": m.hidden, "recurrent": m.recurrent, "readout": m.readout}
    ),
    "elm_neuro.training.networks._classifiers.LeakyReadout": _LeakyReadout(),
    "snntorch._neurons.leaky.Leaky": _SnnTorchLeaky(),
    "elm_neuro.adapters.snntorch.ELM": _SnnTorchELM(),
    "elm_neuro.adapters.snntorch.ALIF": _SnnTorchALIF(),
    "elm_neuro.adapters.norse._Face": _NorseFace(),
}
for _name, _lowering in _KINDS.items():
    register(_name, _lowering)
