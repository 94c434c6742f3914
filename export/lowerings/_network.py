"""The ELM Network: recurrent layers of ELM neurons, and such a layer with its readout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onnx import TensorProto
from torch import Tensor

from elm_neuro import ELMNetwork, ELMNetworkClassifier
from elm_neuro.backends.network._sources import Sources
from elm_neuro.export._graph import Graph
from elm_neuro.export._lowering import Lowering, check_plain, register
from elm_neuro.export._nodes import ExportError, Value
from elm_neuro.export.lowerings._chain import Chain
from elm_neuro.functional import NetworkParams
from elm_neuro.functional._elm import TANH_SCALE, TANH_SLOPE
from elm_neuro.nn._cell import Affine


class _Network(Lowering):
    """:func:`elm_neuro.functional.network_step`: what the input adds is one product of all steps, the layer a loop with
    the axis of neurons before the batch.
    """

    def lower(self, graph: Graph, module: ELMNetwork, x: Value) -> Value:
        for name, part in module.mlp.named_children():
            check_plain(part, Affine, f"mlp.{name} of the layer")
        config, p = module.config, module.effective_parameters()
        graph.check(p.kappa_m)
        # the constants of the scaled tanh sit in the weights before it and in the gain after it
        (*weights, weight), (*biases, bias) = p.mlp_weight, p.mlp_bias
        p = p._replace(
            mlp_weight=(*weights, TANH_SLOPE * weight), mlp_bias=(*biases, TANH_SLOPE * bias), gain=TANH_SCALE * p.gain
        )
        if x.time is None and graph.form != "step":
            raise ExportError("a layer with states must not stand behind a readout that leaves no time steps")
        if module.training and (config.input_dropout or config.recurrent_dropout):
            raise ExportError("module must be in evaluation mode where it drops inputs: call module.eval()")
        sources = Sources.of(p, config.rule(module.surrogate), config.input_size)
        entering = _entering(graph, x, sources, binary=bool(config.binarize))
        recurrent = int(p.index.max()) >= config.input_size
        states = {"a": graph.state("a", config.output_size)} if recurrent else {}
        if p.kappa_b is not None:
            states["b"] = graph.state("b", config.output_size, config.num_branch)
        states["m"] = graph.state("m", config.output_size, config.num_memory)
        if p.kappa_r is not None:
            states["r"] = graph.state("r", config.output_size)
        turn = {"a": [1, 0], "b": [1, 0, 2], "m": [1, 0, 2], "r": [1, 0]}
        before = {name: graph.add("Transpose", state, perm=turn[name]) for name, state in states.items()}

        def step(u_t: str, now: dict[str, str]) -> tuple[str, dict[str, str]]:
            return _step(graph, module, p, sources, u_t, now)

        sizes = config.output_size, None
        records, last = graph.loop(
            entering.name, before, step, reads=(*sizes, sources.shape[1]), gives=(config.output_size, None)
        )
        for name, value in last.items():
            graph.keep(name, graph.add("Transpose", value, perm=turn[name]))
        lead = 0 if graph.form == "step" else 1
        y = graph.add("Transpose", records, perm=[1, 0] if not lead else [0, 2, 1])
        time = "first" if lead else None
        return Value(y, (config.output_size,), time, spikes=config.output == "spike")

    def describe(self, module: ELMNetwork) -> dict[str, Any]:
        tau_m: list[Any] = module.tau_m.detach().double().cpu().tolist()
        return super().describe(module) | {"tau_m": tau_m}


def _entering(graph: Graph, x: Value, sources: Sources, *, binary: bool) -> Value:
    """What the input adds to the rows of the neurons, ([time,] num_neuron, batch, rows)."""
    name, shape = x.name, sources.shape
    if binary:
        name = graph.add("Cast", graph.add("Cast", name, to=TensorProto.BOOL), to=graph.kind)
    constant = sources.constant if sources.constant.ndim else None
    added = graph.linear("w_in", name, sources.of_input, constant, matrix=x.time is None)
    lead = 1 if x.time is None else 2
    split = graph.add("Reshape", added, graph.integers(*[0] * lead, *shape))
    order = [1, 0, 2] if x.time is None else [1, 2, 0, 3] if x.time == "after" else [0, 2, 1, 3]
    turned = graph.add("Transpose", split, perm=order)
    return replace(x, name=turned, shape=shape, time=None if x.time is None else "first")


def _step(
    graph: Graph, module: ELMNetwork, p: NetworkParams, sources: Sources, z: str, before: dict[str, str]
) -> tuple[str, dict[str, str]]:
    """Activity (num_neuron, batch) and the states after a step, from what the input adds."""
    config, after = module.config, {}
    if "a" in before:
        fed_back = graph.linear("w_rec", graph.add("Transpose", before["a"], perm=[1, 0]), sources.of_neurons.mT)
        split = graph.add("Reshape", fed_back, graph.integers(0, *sources.shape))
        z = graph.add("Add", z, graph.add("Transpose", split, perm=[1, 0, 2]))
    of_branches, of_memory = p.mlp_weight[0].split([config.num_branch, config.num_memory], dim=-1)
    if p.kappa_b is not None:
        decayed = graph.add("Mul", before["b"], graph.per_unit("kappa_b", p.kappa_b))
        after["b"] = graph.add("Add", decayed, z)
        z = graph.linear("branches", after["b"], of_branches, p.mlp_bias[0])
    hidden = graph.linear("core", before["m"], of_memory * p.kappa_m.unsqueeze(-2), z)
    for i, (weight, bias) in enumerate(zip(p.mlp_weight[1:], p.mlp_bias[1:], strict=True), start=1):
        hidden = graph.linear(f"mlp_{i}", graph.activated(hidden, config.activation), weight, bias)
    change = graph.add("Mul", graph.add("Tanh", hidden), graph.per_unit("gain", p.gain))
    after["m"] = graph.add("Add", graph.add("Mul", before["m"], graph.per_unit("kappa_m", p.kappa_m)), change)
    y = graph.add("Squeeze", graph.linear("w_y", after["m"], p.w_y.unsqueeze(-2)), graph.integers(2))

    def column(name: str, value: Tensor) -> str:
        return graph.constant(name, value.unsqueeze(-1))

    if p.kappa_r is not None:
        mean = graph.add("Mul", before["r"], column("kappa_r", p.kappa_r))
        after["r"] = graph.add("Add", mean, graph.add("Mul", y, column("one_less_kappa_r", 1.0 - p.kappa_r)))
        y = graph.add("Sub", y, after["r"])
    a = graph.add("Add", y, column("bias", p.bias))
    if config.output == "relu":
        a = graph.add("Relu", a)
    elif config.output == "spike":
        a = graph.above(a, graph.zero())
    return a, after | ({"a": a} if "a" in before else {})


def _classifier(module: ELMNetworkClassifier) -> dict[str, Any]:
    linear = {} if module.linear is None else {"linear": module.linear}
    return {"hidden": module.hidden, "readout": module.readout, **linear}


register(ELMNetwork, _Network())
register(ELMNetworkClassifier, Chain(_classifier, callable_whole=False))
