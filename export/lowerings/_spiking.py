"""Any layer's readout against a threshold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from elm_neuro import SpikingELM
from elm_neuro.export._graph import Graph
from elm_neuro.export._lowering import Lowering, Shape, Trace, check_plain, lowering_of, register
from elm_neuro.export._nodes import ExportError, Value
from elm_neuro.nn import SpikeOutput

TAKEN = {"v", "s", "mem"}  # names of what a threshold adds to a layer


def core_scope(core: Any) -> str:
    """Where the states of a wrapped layer stand: beside those of the threshold, or apart where they share a name."""
    return "core" if TAKEN & set(core.state_type._fields) else ""


def emits_spikes(layer: Any) -> bool:
    """Whether what a layer gives is spikes already."""
    return bool(getattr(layer, "emits_spikes", False))


class _SpikingELM(Lowering):
    """A layer whose readout fires, with or without reset."""

    def input_shape(self, module: SpikingELM) -> Shape | None:
        return lowering_of(module.core, "core").input_shape(module.core)

    def lower(self, graph: Graph, module: SpikingELM, x: Value) -> Value:
        check_plain(module.output, SpikeOutput, "output of the neuron")
        output = module.output
        if output.stochastic:
            raise ExportError("spikes must be deterministic to be exported, got stochastic=True")
        with graph.scope(core_scope(module.core)):
            y = lowering_of(module.core, "core").lower(graph, module.core, x)
        return fire(graph, y, output.threshold, output.graded_factor, reset=output.reset, state="s")

    def before(self, module: SpikingELM, batch: int, trace: Trace) -> Any:
        zeros, core = module.initial_state(batch), module.core
        with trace.scope(core_scope(core)):
            inner = lowering_of(core, "core").before(core, batch, trace)
        own = [trace.get(name, *part.shape, like=part) for name, part in zip("vs", zeros[-2:], strict=True)]
        return type(zeros)(*inner, *own)

    def keep(self, module: SpikingELM, after: Any, trace: Trace, *, margin: Tensor | None = None) -> None:
        self._keep_core(module.core, after, trace, margin)
        trace.keep(margin=margin, s=after.s)

    def _keep_core(self, core: Any, after: Any, trace: Trace, margin: Tensor | None) -> None:
        with trace.scope(core_scope(core)):
            lowering_of(core, "core").keep(core, core.state_type(*after[:-2]), trace, margin=margin)

    def extras(self, module: SpikingELM, states: list[Any], trace: Trace, *, margin: Tensor) -> None:
        trace.extra("v", torch.stack([state.v for state in states], dim=1), margin=margin)

    def run(self, module: SpikingELM, x: Tensor, trace: Trace) -> Tensor:
        before = self.before(module, x.shape[0], trace)
        y, margin = None, trace.margin
        if not trace.watched:
            y, after = self.call(module, x, before)
        stepped, states = self.step_by_step(module, x, before, trace)
        y, after = (stepped, states[-1]) if y is None else (y, after)
        if emits_spikes(module.core):  # some that were counted are its own
            margin = trace.margin
        self._keep_core(module.core, after, trace, margin)  # those of the threshold do not come back to it
        trace.keep(s=after.s)
        self.extras(module, states, trace, margin=margin if module.output.reset == "none" else trace.margin)
        return y


def fire(graph: Graph, y: Value, threshold: Tensor, factor: Tensor | None, *, reset: str, state: str) -> Value:
    """Spikes of a readout y, times the graded factor.

    Args:
        graph: under construction.
        y: the readout.
        threshold: a number or one per output.
        factor: None for one.
        reset: "none", "subtract" or "zero".
        state: what is carried for the reset: "s" the last spikes, "mem" the last readout.
    """
    limit = graph.constant("threshold", threshold)
    if reset == "none":
        v = y
    else:
        y = graph.time_first(y)
        before = graph.state(state, *y.shape, spikes=state == "s")

        def step(y_t: str, states: dict[str, str]) -> tuple[str, dict[str, str]]:
            fired = states[state] if state == "s" else graph.above(states[state], limit)
            if reset == "subtract":
                v_t = graph.add("Sub", y_t, graph.add("Mul", fired, limit))
            else:
                v_t = graph.add("Mul", y_t, graph.add("Sub", graph.one(), fired))
            return v_t, {state: graph.above(v_t, limit) if state == "s" else v_t}

        name, after = graph.loop(y.name, {state: before}, step, reads=(None, *y.shape), gives=(None, *y.shape))
        v = replace(y, name=name)
        graph.keep(state, after[state])
    graph.extra("v", v)
    spikes = graph.above(v.name, limit)
    if factor is not None:
        spikes = graph.add("Mul", spikes, graph.constant("graded_factor", factor))
    return replace(v, name=spikes, spikes=True)


register(SpikingELM, _SpikingELM())
