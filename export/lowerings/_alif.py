"""Layers of LIF and adaptive LIF neurons, and their cells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from elm_neuro import ALIF, ALIFCell
from elm_neuro.export._graph import Graph
from elm_neuro.export._lowering import Lowering, register
from elm_neuro.export._nodes import ExportError, Value


class _ALIF(Lowering):
    """LIF and adaptive LIF neurons, as :func:`elm_neuro.functional.alif_step`."""

    def lower(self, graph: Graph, module: ALIF | ALIFCell, x: Value) -> Value:
        cell = module if isinstance(module, ALIFCell) else module.cell
        p, width, past = cell.effective_parameters(), cell.output_size, cell.latency_steps + 1
        graph.check(p.beta)
        if x.time is None and graph.form != "step":
            raise ExportError("a layer with states must not stand behind a readout that leaves no time steps")
        current = graph.linear("w_in", x.name, cell.weight, cell.bias, matrix=graph.form == "step")
        currents = graph.time_first(replace(x, name=current, shape=(width,)))
        states = {"v": graph.state("v", width)}
        if p.b is not None:
            states["a"] = graph.state("a", width)
        if p.w_rec is not None or past > 1:
            states["s"] = graph.state("s", past, width, spikes=True)
        one = graph.one()

        def step(i_t: str, before: dict[str, str]) -> tuple[str, dict[str, str]]:
            if p.w_rec is not None:
                arriving = graph.add("Gather", before["s"], graph.number(0), axis=1)
                i_t = graph.linear("w_rec", arriving, p.w_rec, i_t, matrix=True)
            if past > 1:
                recent = graph.add("Slice", before["s"], graph.integers(1), graph.integers(past), graph.integers(1))
                i_t = graph.add("Mul", i_t, graph.add("Sub", one, graph.largest(recent, axis=1)))
            v = graph.add("Add", graph.add("Mul", before["v"], graph.constant("beta", p.beta)), i_t)
            limit = (
                one if p.b is None else graph.add("Add", graph.add("Mul", before["a"], graph.constant("b", p.b)), one)
            )
            spikes = graph.above(v, limit)
            after = {"v": graph.add("Mul", v, graph.add("Sub", one, spikes))}
            if p.b is not None:
                after["a"] = graph.add("Add", graph.add("Mul", before["a"], graph.constant("p", p.p)), spikes)
            if "s" in before:
                newest = graph.add("Unsqueeze", spikes, graph.integers(1))
                after["s"] = newest if past == 1 else graph.add("Concat", recent, newest, axis=1)
            return spikes, after

        spikes, after = graph.loop(currents.name, states, step, reads=(None, width), gives=(None, width))
        for name, value in after.items():
            graph.keep(name, value)
        return replace(currents, name=spikes, spikes=True)

    def describe(self, module: ALIF | ALIFCell) -> dict[str, Any]:
        cell = module if isinstance(module, ALIFCell) else module.cell
        tau_v = -cell.delta_t / cell.effective_parameters().beta.detach().double().log()
        kind = "ALIF" if cell.adaptive else "LIF"
        return super().describe(module) | {"kind": kind, "delta_t": cell.delta_t, "tau_v": tau_v.cpu().tolist()}


register(ALIF, _ALIF())
register(ALIFCell, _ALIF())
