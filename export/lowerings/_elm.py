"""ELM and Branch-ELM neurons, their cells and populations of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from elm_neuro import ELM, ELMCell, ELMConfig
from elm_neuro.export._graph import Graph
from elm_neuro.export._lowering import Lowering, check_plain, register
from elm_neuro.export._nodes import ExportError, Value
from elm_neuro.functional import ELMParameters, branch_matrix
from elm_neuro.functional._elm import TANH_SCALE, TANH_SLOPE
from elm_neuro.nn._cell import Affine

SMALLEST_GAIN = 1e-6  # below it the memory is not scaled by its gain


class _ELM(Lowering):
    """ELM, Branch-ELM and populations, equations 1 to 4 of arXiv:2306.16922: all but the memory's loop is done for all
    steps at once.
    """

    def lower(self, graph: Graph, module: ELM | ELMCell, x: Value) -> Value:
        cell = module if isinstance(module, ELMCell) else module.cell
        for name, part in (*cell.mlp.named_children(), ("w_y", cell.w_y)):
            check_plain(part, Affine, f"{name} of the neuron")
        config, p = cell.config, cell.effective_parameters()
        graph.check(p.kappa_m)
        neurons = () if config.num_neuron is None else (config.num_neuron,)
        x = _neurons_first(graph, x, neurons)
        b, m = graph.state("b", *neurons, config.branches), graph.state("m", *neurons, config.num_memory)
        if neurons:
            b, m = (graph.add("Transpose", state, perm=[1, 0, 2]) for state in (b, m))
        # the constants of the scaled tanh sit in the weights before it and in the gain after it
        weights, biases = [*p.mlp_weight], [*p.mlp_bias]
        weights[-1], biases[-1] = TANH_SLOPE * weights[-1], TANH_SLOPE * biases[-1]
        gain, size = TANH_SCALE * p.gain, weights[0].shape[-2]
        # the loop then runs on memory / gain, which spares a product; a single number would be fused by onnxruntime, in
        # single precision
        scaled = gain.numel() > 1 and bool((gain > SMALLEST_GAIN).all())
        unit = gain if scaled else torch.ones_like(gain)
        from_memory = weights[0][..., config.branches :] * (p.kappa_m * unit).unsqueeze(-2)

        from_branches, b_after = _from_branches(graph, config, p, x, b, weights[0][..., : config.branches], biases[0])
        start = graph.add("Div", m, graph.per_unit("unit", unit)) if scaled else m

        def step(u_t: str, states: dict[str, str]) -> tuple[str, dict[str, str]]:
            hidden = graph.linear("core", states["m"], from_memory, u_t, matrix=not neurons)
            for i, (weight, bias) in enumerate(zip(weights[1:], biases[1:], strict=True), start=1):
                hidden = graph.activated(hidden, config.activation)
                hidden = graph.linear(f"mlp_{i}", hidden, weight, bias, matrix=not neurons)
            change = graph.add("Tanh", hidden)
            change = change if scaled else graph.add("Mul", change, graph.per_unit("gain", gain))
            decayed = graph.add("Mul", states["m"], graph.per_unit("kappa_m", p.kappa_m))
            after = graph.add("Add", decayed, change)
            return after, {"m": after}

        records, last = graph.loop(
            from_branches, {"m": start}, step, reads=(*neurons, None, size), gives=(*neurons, None, config.num_memory)
        )
        m_after = graph.add("Mul", last["m"], graph.per_unit("unit", unit)) if scaled else last["m"]
        y = graph.linear("w_y", records, p.w_y * unit.unsqueeze(-2), p.b_y, matrix=not neurons and graph.form == "step")
        out = Value(y, (config.output_size,), None if graph.form == "step" else "first")
        if neurons:
            b_after, m_after = (graph.add("Transpose", state, perm=[1, 0, 2]) for state in (b_after, m_after))
            lead = out.lead
            y = graph.add("Transpose", y, perm=[0, 2, 1, 3][: lead + 2] if lead == 2 else [1, 0, 2])
            out = replace(out, name=y, shape=(*neurons, config.output_size))
            if config.flatten_output:
                width = neurons[0] * config.output_size
                out = replace(out, name=graph.add("Reshape", y, graph.integers(*[0] * lead, width)), shape=(width,))
        graph.keep("b", b_after)
        graph.keep("m", m_after)
        return out

    def describe(self, module: ELM | ELMCell) -> dict[str, Any]:
        cell = module if isinstance(module, ELMCell) else module.cell
        tau = {"tau_s": cell.tau_s, "tau_m": cell.tau_m}
        return super().describe(module) | {name: value.detach().double().cpu().tolist() for name, value in tau.items()}

    def call(self, module: ELM | ELMCell, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if module.config.batch_first:
            return super().call(module, x, state)
        y, after = super().call(module, x.transpose(0, 1), state)
        return y.transpose(0, 1), after


def _neurons_first(graph: Graph, x: Value, neurons: tuple[int, ...]) -> Value:
    """The input of a population with its axis of neurons before the batch; of a single neuron as it comes."""
    if x.time is None and graph.form != "step":
        raise ExportError("a layer with states must not stand behind a readout that leaves no time steps")
    if not neurons:
        return x
    if len(x.shape) == 2:
        order = [1, 0, 2] if x.time is None else [1, 2, 0, 3] if x.time == "after" else [0, 2, 1, 3]
        return replace(x, name=graph.add("Transpose", x.name, perm=order), time=None if x.time is None else "first")
    x = graph.time_first(x)
    name = x.name if x.time is None else graph.add("Unsqueeze", x.name, graph.integers(1))
    return replace(x, name=name)


def _from_branches(
    graph: Graph, config: ELMConfig, p: ELMParameters, x: Value, b: str, weight: Tensor, bias: Tensor
) -> tuple[str, str]:
    """What the branches give to the first layer, (time, [num_neuron,] batch, out), and their traces at the end."""
    neurons = () if config.num_neuron is None else (config.num_neuron,)
    matrix = not neurons and graph.form == "step"
    if p.routing is None:
        summed = graph.add("Mul", x.name, graph.per_unit("w_s", p.w_s.squeeze(-1)))
    else:
        summed = graph.linear("w_s", x.name, branch_matrix(p.w_s, p.routing, config.input_size))
    synaptic = Value(summed, (*neurons, config.branches), x.time)
    commuting = config.branch_activation is None and p.kappa_b.ndim == 0
    whole = graph.form != "step" and graph.valid is None
    if commuting and whole and not neurons and config.branches >= 2 * weight.shape[-2]:
        # filter and first layer commute: fewer channels to filter; the branches themselves are needed at the end only
        projected = replace(synaptic, name=graph.linear("u", summed, weight), shape=tuple(weight.shape[-2:-1]))
        filtered, _ = graph.leaky("trace", projected, p.kappa_b, graph.linear("u", b, weight))
        late, left = graph.discounted_sum("trace", synaptic, p.kappa_b)
        b_after = graph.add("Add", graph.add("Mul", b, left), late)
        return graph.add("Add", filtered.name, graph.constant("u.bias", bias)), b_after
    filtered, b_after = graph.leaky("trace", synaptic, p.kappa_b, b)
    active = graph.activated(filtered.name, config.branch_activation)
    return graph.linear("u", active, weight, bias, matrix=matrix), b_after


register(ELM, _ELM())
register(ELMCell, _ELM())
