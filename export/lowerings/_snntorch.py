"""snnTorch's own neurons and the faces of ours for it, by their full names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from elm_neuro.export._graph import Graph
from elm_neuro.export._lowering import Lowering, Shape, Trace, lowering_of, register
from elm_neuro.export._nodes import ExportError, Value
from elm_neuro.export.lowerings._spiking import core_scope, emits_spikes, fire


class _Face(Lowering):
    """A face of any layer: one that spikes by itself, or one behind a threshold, whose reset goes by the last membrane.

    It holds its states in buffers or is given them, and takes steps (batch, input_size).
    """

    def input_shape(self, module: Any) -> Shape | None:
        return lowering_of(module.core, "core").input_shape(module.core)

    def lower(self, graph: Graph, module: Any, x: Value) -> Value:
        for name, plain in (("state_quant", not module.state_quant), ("inhibition", not module.inhibition)):
            if not plain:
                raise ExportError(
                    f"{name} must be off to be exported, got {getattr(module, name)!r} in {type(module).__name__}"
                )
        lowering = lowering_of(module.core, "core")
        if emits_spikes(module.core):
            y = lowering.lower(graph, module.core, x)
            factor = graph.constant("graded_factor", module.graded_spikes_factor)
            return replace(y, name=graph.add("Mul", y.name, factor))
        with graph.scope(core_scope(module.core)):
            y = lowering.lower(graph, module.core, x)
        return fire(graph, y, module.threshold, module.graded_spikes_factor, reset=module.reset_mechanism, state="mem")

    def step(self, module: Any, x_t: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The module itself, of which this is the check's own copy: states go in and out by its buffers."""
        module.init_hidden, module.output = True, False
        for name, state in zip(module.state_names, states, strict=True):
            setattr(module, name, state)
        spikes: Tensor = module(x_t)
        return spikes, tuple(getattr(module, name) for name in module.state_names)

    def run(self, module: Any, x: Tensor, trace: Trace) -> Tensor:
        core, margin, emits = module.core, trace.margin, emits_spikes(module.core)
        lowering, scope = lowering_of(core, "core"), "" if emits else core_scope(core)
        with trace.scope(scope):
            inner = lowering.before(core, x.shape[0], trace)
        states = tuple(inner[place] for place in module._order)
        if not emits:
            states = (*states, trace.get("mem", x.shape[0], *module.output_shape, like=inner[0]))
        spikes, after = [], []
        with trace.watching(core) as watch:
            for x_t in x.unbind(1):
                spikes_t, states = self.step(module, x_t, states)
                spikes.append(spikes_t.to(x.dtype))
                after.append(states)
                watch.step()
        membranes = torch.stack([states[-1] for states in after], dim=1)
        if not emits or not watch.steps:  # a layer of one's own may have no surrogate to watch
            trace.fired(membranes - module.threshold)
        of_core = [type(inner)(*module._core_state(states)) for states in after]
        with trace.scope(scope):  # spikes of a threshold do not come back to the layer before it
            lowering.keep(core, of_core[-1], trace, margin=None if emits else margin)
        if emits:
            lowering.extras(core, of_core, trace, margin=trace.margin)
        else:
            trace.keep(mem=states[-1])
            free = module.reset_mechanism == "none"
            trace.extra("v", membranes, margin=margin if free else trace.margin)
        return torch.stack(spikes, dim=1)


class _Sequence(_Face):
    """The same, of which the module takes sequences (time, batch, input_size)."""

    def step(self, module: Any, x_t: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        spikes, after = super().step(module, x_t[None], states)
        return spikes[0], after


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


_FACES = "elm_neuro.adapters.snntorch"

register("snntorch._neurons.leaky.Leaky", _Leaky())
for _name in ("Cell", "ELM", "ALIF"):
    register(f"{_FACES}.{_name}", _Face())
register(f"{_FACES}.Layer", _Sequence())
