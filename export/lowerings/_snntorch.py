"""snnTorch's own neurons and the faces of ours for it, by their full names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from elm_neuro.export._graph import Graph
from elm_neuro.export._lowering import Lowering, Shape, Trace, lowering_of, register
from elm_neuro.export._nodes import ExportError, Value
from elm_neuro.export.lowerings._spiking import core_scope, fire


class _Face(Lowering):
    """A face: it holds its states in buffers or is given them, and takes a step (batch, input_size)."""

    def input_shape(self, module: Any) -> Shape | None:
        return lowering_of(module.core, "core").input_shape(module.core)

    def step(self, module: Any, x_t: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The module itself, of which this is the check's own copy: states go in and out by its buffers."""
        module.init_hidden, module.output = True, False
        for name, state in zip(module.state_names, states, strict=True):
            setattr(module, name, state)
        spikes: Tensor = module(x_t)
        return spikes, tuple(getattr(module, name) for name in module.state_names)


class _ELM(_Face):
    """The face of a layer whose readout fires; the reset goes by the last membrane."""

    def lower(self, graph: Graph, module: Any, x: Value) -> Value:
        for name, plain in (("state_quant", not module.state_quant), ("inhibition", not module.inhibition)):
            if not plain:
                raise ExportError(
                    f"{name} must be off to be exported, got {getattr(module, name)!r} in {type(module).__name__}"
                )
        with graph.scope(core_scope(module.core)):
            y = lowering_of(module.core, "core").lower(graph, module.core, x)
        return fire(graph, y, module.threshold, module.graded_spikes_factor, reset=module.reset_mechanism, state="mem")

    def run(self, module: Any, x: Tensor, trace: Trace) -> Tensor:
        batch, margin = x.shape[0], trace.margin
        with trace.scope(core_scope(module.core)):
            inner = trace.before(module.core.initial_state(batch))
        states = (*inner, trace.get("mem", batch, *module.output_shape, like=inner[0]))
        spikes, membranes = [], []
        for x_t in x.unbind(1):
            spikes_t, states = self.step(module, x_t, states)
            spikes.append(spikes_t.to(x.dtype))
            membranes.append(states[-1])
        v = torch.stack(membranes, dim=1)
        trace.fired(v - module.threshold)
        with trace.scope(core_scope(module.core)):  # spikes do not come back to it
            trace.keep(margin=margin, **dict(zip(inner._fields, states, strict=False)))
        trace.keep(mem=states[-1])
        trace.extra("v", v, margin=margin if module.reset_mechanism == "none" else trace.margin)
        return torch.stack(spikes, dim=1)


class _ELMSequence(_ELM):
    """The same, but the module takes sequences (time, batch, input_size)."""

    def step(self, module: Any, x_t: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        spikes, after = super().step(module, x_t[None], states)
        return spikes[0], after


class _ALIF(_Face):
    def lower(self, graph: Graph, module: Any, x: Value) -> Value:
        spikes = lowering_of(module.core, "core").lower(graph, module.core, x)
        factor = graph.constant("graded_factor", module.graded_spikes_factor)
        return replace(spikes, name=graph.add("Mul", spikes.name, factor))

    def run(self, module: Any, x: Tensor, trace: Trace) -> Tensor:
        before = trace.before(module.core.initial_state(x.shape[0]))
        states: tuple[Tensor, ...] = (before.s, before.a, before.v)
        spikes, distances = [], []
        with trace.watching(module) as seen:
            for x_t in x.unbind(1):
                spikes_t, states = self.step(module, x_t, states)
                spikes.append(spikes_t)
                distances.append(seen[-1])
        trace.fired(torch.stack(distances, dim=1))
        trace.keep(s=states[0], a=states[1], v=states[2])
        return torch.stack(spikes, dim=1)


class _Leaky(Lowering):
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
            ("reset_delay", getattr(module, "reset_delay", True)),
        ):
            if not plain:
                raise ExportError(
                    f"{name} must be as snnTorch has it by default to be exported, "
                    f"got {getattr(module, name)!r} in Leaky"
                )
        x = graph.time_first(x)
        state = graph.state("mem", *x.shape)
        limit, beta = graph.constant("threshold", module.threshold), graph.constant("beta", module.beta.clamp(0, 1))

        def step(i_t: str, states: dict[str, str]) -> tuple[str, dict[str, str]]:
            before = states["mem"]
            if module.reset_mechanism == "zero":
                before = graph.add("Mul", before, graph.add("Sub", graph.one(), graph.above(before, limit)))
            v = graph.add("Add", graph.add("Mul", before, beta), i_t)
            if module.reset_mechanism == "subtract":
                v = graph.add("Sub", v, graph.add("Mul", graph.above(states["mem"], limit), limit))
            return v, {"mem": v}

        v, after = graph.loop(x.name, {"mem": state}, step, reads=(None, *x.shape), gives=(None, *x.shape))
        graph.keep("mem", after["mem"])
        factor = graph.constant("graded_factor", module.graded_spikes_factor)
        return replace(x, name=graph.add("Mul", graph.above(v, limit), factor), spikes=True)

    def run(self, module: Any, x: Tensor, trace: Trace) -> Tensor:
        """The module itself, of which this is the check's own copy."""
        module.init_hidden = False
        mem, spikes, membranes = trace.get("mem", x.shape[0], *x.shape[2:], like=x), [], []
        for i_t in x.unbind(1):
            spikes_t, mem = module(i_t, mem)
            spikes.append(spikes_t.to(x.dtype))  # snnTorch's surrogates give float32
            membranes.append(mem)
        v = torch.stack(membranes, dim=1)
        trace.fired(v - module.threshold)
        trace.keep(mem=mem)
        return torch.stack(spikes, dim=1)


register("snntorch._neurons.leaky.Leaky", _Leaky())
register("elm_neuro.adapters.snntorch.ELM", _ELM())
register("elm_neuro.adapters.snntorch.ELMSequence", _ELMSequence())
register("elm_neuro.adapters.snntorch.ALIF", _ALIF())
