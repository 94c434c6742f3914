"""From a module to an ONNX model: inputs, outputs, states, metadata."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import onnx
import onnx.numpy_helper
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from elm_neuro import __version__
from elm_neuro.checkpoints import neuronio_head
from elm_neuro.export._graph import HALF_TYPES, Graph, State
from elm_neuro.export._lowering import Lowering, Trace, lowering_of, nearest, num_neuron
from elm_neuro.export._nodes import BYTE_TYPES, ELEMENT_TYPES, ExportError, Value
from elm_neuro.export._options import Options
from elm_neuro.functional import SOMA_BIAS_MV, SOMA_SCALE_MV

UNITS = {
    "delta_t": "ms",
    "tau_s": "ms",
    "tau_m": "ms",
    "tau_m_init": "ms",
    "tau_m_bounds": "ms",
    "soma_mv": "mV",
    "x": "1",
    "y": "1",
    "b": "1",
    "m": "1",
}


@dataclass
class Built:
    """An ONNX graph with its inputs and outputs, and the same computation in torch."""

    graph: Graph
    module: nn.Module
    options: Options
    x: Value
    outputs: dict[str, Value]  # what the network gives
    states: dict[str, State]  # inputs; each has an output name_next
    dtype: torch.dtype

    @property
    def sequential(self) -> bool:
        """The model takes sequences, not steps."""
        return self.options.form != "step"

    @property
    def frames_dtype(self) -> torch.dtype:
        """What the input x holds."""
        name = self.options.input_dtype
        return self.dtype if name is None else getattr(torch, name)

    @property
    def results(self) -> list[str]:
        """Names of all outputs."""
        return [*self.outputs, *(f"{name}_next" for name in self.states)]

    @property
    def readouts(self) -> dict[str, str]:
        """Outputs without a value for each step, and what they are of a sequence that comes in several calls: "last",
        that of the last call; "mean", that of all calls by their steps; "whole", not to be had from them.
        """
        means = self.graph.means
        return {
            name: "mean" if value.name in means else "whole" if means else "last"
            for name, value in self.outputs.items()
            if not self.timed(name)
        }

    @property
    def lowered(self) -> list[tuple[int, ...]]:
        """Shapes of the constants that are stored in the lower precision."""
        constants = self.graph.constants.items()
        return sorted(
            tuple(value.shape) for name, value in constants if value.dtype == torch.int8 or name in self.graph.halves
        )

    def timed(self, name: str) -> bool:
        """An output has a value for each step."""
        return name in self.outputs and (not self.sequential or self.outputs[name].time is not None)

    def run(self, module: nn.Module, x: Tensor, states: dict[str, Tensor], *, watched: bool = False) -> Found:
        """Outputs and next states of `module` in torch, x (batch, time, ...).

        Args:
            module: the module or a copy of it; states that it keeps itself change.
            x: of whole samples.
            states: before the first step, by their names in the model.
            watched: see also how near each step's spikes are to their thresholds.
        """
        trace = Trace(states, stepwise=not self.sequential, watched=watched)
        y = lowering_of(module).run(module, x, trace)
        outputs = {"y": y} if self.options.head is None else neuronio_head(y)._asdict()
        margins = dict.fromkeys(outputs, trace.margin) | trace.margins
        outputs |= {name: value for name, value in trace.extras.items() if name in self.outputs}
        outputs |= {f"{name}_next": value for name, value in trace.states.items()}
        return Found(outputs, margins, trace.num_spikes)


@dataclass
class Found:
    """What a module gave."""

    outputs: dict[str, Tensor]  # (batch, [time,] ...), the next states too
    margins: dict[str, Tensor]  # of each, (batch, time): the least distance to a threshold so far
    num_spikes: dict[str, int]  # of each layer that spikes, by its place


def build(module: nn.Module, options: Options, opset: int) -> Built:
    """Lower a module in one form."""
    dtype = _dtype(module)
    batch: int | str = "batch" if options.batch_size is None else options.batch_size
    graph = Graph(
        options.form, dtype, opset=opset, precision=options.precision, num_steps=options.num_steps, batch=batch
    )
    lowering = lowering_of(module)
    shape = lowering.input_shape(module)
    if shape is None:
        raise ExportError(f"module must have a layer that says how many inputs it reads, got {type(module).__name__}")
    if not options.shared_input:
        neurons = num_neuron(module)
        if neurons is None:
            raise ValueError("shared_input must be True for a single neuron, got False")
        shape = (neurons, *shape)
    time = None if options.form == "step" else "after" if options.batch_first else "first"
    x = Value("x", shape, time)
    frames = x if options.input_dtype is None else replace(x, name=graph.add("Cast", "x", to=graph.kind))
    with torch.no_grad():
        y = lowering.lower(graph, module, graph.cut(frames, "lengths") if options.lengths else frames)
    heads = {"y": y} | graph.extras if options.head is None else _neuronio(graph, y)
    outputs = {name: _laid_out(graph, value, time) for name, value in heads.items()}
    built = Built(graph, module, options, x, outputs, graph.states, dtype)
    _name_outputs(
        graph,
        {name: value.name for name, value in built.outputs.items()}
        | {f"{name}_next": graph.finals[name] for name in graph.states},
    )
    return built


def model_of(built: Built, *, source: str | None = None) -> onnx.ModelProto:
    """The ONNX model."""
    graph, options = built.graph, built.options
    nodes = _needed([*graph.weights, *graph.nodes], built.results)
    used = set(_used(nodes))
    constants = [_initializer(name, value, graph) for name, value in graph.constants.items() if name in used]
    values = {
        side: [
            helper.make_tensor_value_info(name.removeprefix(f"{side} "), kind, shape)
            for name, (kind, shape) in declared(built).items()
            if name.startswith(f"{side} ")
        ]
        for side in ("input", "output")
    }
    inner = [helper.make_tensor_value_info(name, graph.kind, shape) for name, shape in graph.shapes.items()]
    operators = helper.make_opsetid("", graph.opset)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            f"elm_neuro_{options.form}",
            values["input"],
            values["output"],
            initializer=constants,
            value_info=inner,
        ),
        opset_imports=[operators],
        ir_version=helper.find_min_ir_version_for([operators]),
        producer_name="elm_neuro",
        producer_version=__version__,
        doc_string=f"{_WORDS[options.form]}: start with zeros for the states and feed them back, name_next -> name.",
    )
    words = {
        "version": __version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "form": options.form,
        "options": options.to_json(),
        "readouts": json.dumps(built.readouts),
    }
    words |= _description(built.module) | ({} if source is None else {"source": source})
    helper.set_model_props(model, {f"elm_neuro.{key}": value for key, value in words.items()})
    return model


def declared(built: Built) -> dict[str, tuple[int, tuple[int | str, ...]]]:
    """Element type and shape of every "input name" and "output name", with the names of the axes whose size is free."""
    options, kind = built.options, built.graph.kind
    batch: int | str = "batch" if options.batch_size is None else options.batch_size
    steps: int | str = "time" if options.num_steps is None else options.num_steps
    lead = {None: (batch,), "after": (batch, steps), "first": (steps, batch)}
    frames = kind if options.input_dtype is None else int(BYTE_TYPES[options.input_dtype])
    values: dict[str, tuple[int, tuple[int | str, ...]]] = {"input x": (frames, (*lead[built.x.time], *built.x.shape))}
    if options.lengths:
        values["input lengths"] = TensorProto.INT64, (batch,)
    values |= {f"input {name}": (kind, (batch, *state.shape)) for name, state in built.states.items()}
    values |= {f"output {name}": (kind, (*lead[value.time], *value.shape)) for name, value in built.outputs.items()}
    return values | {f"output {name}_next": (kind, (batch, *state.shape)) for name, state in built.states.items()}


_WORDS = {"step": "One time step", "sequence": "A sequence of any length", "unrolled": "A sequence of fixed length"}


def _dtype(module: nn.Module) -> torch.dtype:
    found = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    if not found:
        raise TypeError(f"module must have parameters to be exported, got {type(module).__name__}")
    if len(found) > 1:
        raise TypeError(
            f"module must hold parameters of one dtype to be exported, got {' and '.join(sorted(map(str, found)))}"
        )
    dtype = found.pop()
    if dtype not in ELEMENT_TYPES:
        raise TypeError(f"module must hold float32 or float64 parameters to be exported, got {dtype}")
    if any(parameter.is_meta for parameter in module.parameters()):
        raise TypeError(f"module must hold numbers to be exported, got {type(module).__name__} on the device meta")
    return dtype


def _laid_out(graph: Graph, value: Value, time: str | None) -> Value:
    """An output with its time axis where the input has it, and zeros past the end of each sample."""
    value = graph.masked(value)
    if value.time in (None, time):
        return value
    order = (1, 0, *range(2, 2 + len(value.shape)))
    return replace(value, name=graph.permuted(value.name, *order), time=time)


def _neuronio(graph: Graph, y: Value) -> dict[str, Value]:
    """Spike probability and somatic voltage, as :func:`elm_neuro.checkpoints.neuronio_head`."""
    if y.shape != (2,):
        raise ExportError(f'module must have two outputs, spike logit and soma, for head="neuronio", got {y.shape}')
    logit, soma = (graph.add("Gather", y.name, graph.number(i), axis=y.lead) for i in range(2))
    scaled = graph.add("Mul", soma, graph.constant("soma_scale", torch.tensor(SOMA_SCALE_MV, dtype=graph.dtype)))
    voltage = graph.add("Add", scaled, graph.constant("soma_bias", torch.tensor(SOMA_BIAS_MV, dtype=graph.dtype)))
    return {"spike_probability": Value(graph.add("Sigmoid", logit), (), y.time), "soma_mv": Value(voltage, (), y.time)}


def _name_outputs(graph: Graph, outputs: dict[str, str]) -> None:
    """Give values their names as outputs; one that is an input, or an output already, gets a node that copies it."""
    produced = {name for node in graph.nodes for name in node.output}
    names: dict[str, str] = {}
    for output, value in outputs.items():
        if value in produced and value not in names:
            names[value] = output
        else:
            graph.nodes.append(
                helper.make_node("Identity", [names.get(value, value)], [output], name=f"output_{output}")
            )
    for node in graph.nodes:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]


def _needed(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs depend on."""
    wanted, needed = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted.update(_used([node]))
    return needed[::-1]


def _used(nodes: Any) -> Any:
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            yield from _used(attribute.g.node)


def _initializer(name: str, value: Tensor, graph: Graph) -> onnx.TensorProto:
    value = value.contiguous()
    if name not in graph.halves:
        return onnx.numpy_helper.from_array(value.numpy(), name)
    if graph.precision == "float16":
        return onnx.numpy_helper.from_array(value.half().numpy(), name)
    content = value.bfloat16().view(torch.int16).numpy().tobytes()
    return helper.make_tensor(name, HALF_TYPES["bfloat16"], list(value.shape), content, raw=True)


def _description(module: nn.Module) -> dict[str, str]:
    """Configuration and time constants of every layer of neurons, by its name in the network."""
    told: dict[str, dict[str, Any]] = {}
    for name, part in module.named_modules():
        is_layer = hasattr(getattr(part, "config", None), "to_dict") and not hasattr(part, "core")
        inside = any(name.startswith(f"{outer}." if outer else "") for outer in told)  # a cell, told of with its layer
        if is_layer and not inside:
            known = nearest(type(part))
            told[name] = (Lowering() if known is None else known[1]).describe(part)
    words = {"units": json.dumps(UNITS), "neurons": json.dumps(told)}
    return words | ({"config": json.dumps(told[""]["config"])} if "" in told else {})


def size_of(built: Built) -> int:
    """Bytes of the constants."""
    half = built.graph.halves
    return sum(
        math.prod(value.shape) * (2 if name in half else value.element_size())
        for name, value in built.graph.constants.items()
    )
