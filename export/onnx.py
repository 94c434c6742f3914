"""ONNX: a neuron's time step as standard operators, and the check that it computes what the neuron computes."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elm_neuro import ELM, ELMCell, ELMState, __version__
from elm_neuro.checkpoints import write_atomically
from elm_neuro.functional import branch_matrix
from elm_neuro.functional._elm import TANH_SCALE, TANH_SLOPE

try:
    import onnx
    import onnx.checker
    import onnx.numpy_helper
    import onnx.shape_inference
    import onnxruntime
    from onnx import TensorProto, helper
except ImportError as error:
    raise ImportError(f'elm_neuro.export needs {error.name or "onnx"}: pip install "elm-neuro[onnx]"') from error

FORMS = ("step",)
OPSET = 18
MIN_OPSET = 13  # older ones are not tested
NUM_STEPS = 32  # of a verification
CHUNK = 16  # steps after which a verification takes up the states of torch, so that chaos does not look like a fault
MAX_BYTES = 2**31 - 2**20  # of constants: protobuf ends at 2 GiB
_ELEMENT_TYPES = {torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE}
# Error allowed relative to the largest value: sums of about a thousand terms in another order.
_TOLERANCES = {torch.float32: 5e-6, torch.float64: 1e-13}
UNITS = {"delta_t": "ms", "tau_s": "ms", "tau_m_init": "ms", "tau_m_bounds": "ms", "x": "1", "y": "1", "b": "1", "m": "1"}

State = tuple[Tensor, ...]
Run = Callable[[nn.Module, Tensor, State], tuple[Tensor, State]]


class ExportError(ValueError):
    """A model cannot be written, or computes something else than the module it was made from."""


@dataclass(frozen=True)
class Step:
    """One time step of a module as an ONNX graph; shapes leave out the batch axis, which comes first."""

    nodes: list[onnx.NodeProto]
    constants: dict[str, Tensor]
    inputs: dict[str, tuple[int, ...]]  # the input first, then the states
    outputs: dict[str, tuple[int, ...]]  # the output first, then the states in the order of the inputs
    dtype: torch.dtype
    metadata: dict[str, str]
    run: Run  # the same in torch over a sequence, (module, x (batch, time, ...), states) -> (y (batch, time, ...), states)


class VerifyReport(NamedTuple):
    """How far onnxruntime and torch are apart."""

    errors: dict[str, float]  # largest absolute difference of each output
    tolerances: dict[str, float]  # what was allowed
    num_steps: int  # steps compared, over all sequences
    opset: int


@singledispatch
def lower_step(module: nn.Module, *, shared_input: bool = True) -> Step:
    """A module's time step as an ONNX graph; a further module registers itself with ``@lower_step.register``.

    Args:
        module: an ELM, BranchELM or ELMCell, or a module of a registered class.
        shared_input: the neurons of a population read one input.

    Raises:
        TypeError: the class is not registered.

    >>> [node.op_type for node in lower_step(ELM(3, 1, num_memory=2, num_mlp_layers=0)).nodes]
    ['Mul', 'Mul', 'Add', 'Mul', 'Concat', 'MatMul', 'Add', 'Tanh', 'Mul', 'Add', 'MatMul', 'Add']
    """
    known = sorted(kind.__name__ for kind in lower_step.registry if kind not in (object, nn.Module))
    hint = "; its .core is one, export that for the neuron alone" if isinstance(getattr(module, "core", None), (ELM, ELMCell)) else ""
    raise TypeError(f"module must be one of {', '.join(known)} or a subclass, got {type(module).__name__}{hint}")


@lower_step.register
def _(module: ELM, *, shared_input: bool = True) -> Step:
    return _lower_cell(module.cell, _run_neuron, shared_input)


@lower_step.register
def _(module: ELMCell, *, shared_input: bool = True) -> Step:
    return _lower_cell(module, _run_cell, shared_input)


def to_onnx(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    form: str = "step",
    opset: int = OPSET,
    shared_input: bool = True,
    verify: bool = True,
) -> VerifyReport | None:
    """Write a neuron as an ONNX model of standard operators, with its effective parameters as constants.

    The form "step" is one time step, ``y, b_next, m_next = model(x, b, m)``: start with zeros for b and m and feed the new states back.
    Axis 0 is the batch, of any size. Config, units and version are in the model's metadata.

    Args:
        module: an ELM, BranchELM or ELMCell in float32 or float64, with a population too.
        path: file to write; it is replaced only by a whole and, with `verify`, a verified one.
        form: "step".
        opset: version of the standard operators, from 13.
        shared_input: for a population, x is (batch, input_size) for all neurons, or with False (batch, num_neuron, input_size).
        verify: compare the model with the module in onnxruntime before writing.

    Returns:
        The report of :func:`verify`, None without it.

    Raises:
        TypeError: a module or dtype that cannot be exported.
        ValueError: form or opset is unknown.
        ExportError: the model is too large, or onnxruntime computes something else than the module.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = to_onnx(ELM(3, 1, num_memory=2), f"{folder}/neuron.onnx")
    >>> sorted(report.errors)
    ['b_next', 'm_next', 'y']
    """
    if form not in FORMS:
        raise ValueError(f'form must be "step", got {form!r}')
    newest = onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= opset <= newest:
        raise ValueError(f"opset must be from {MIN_OPSET} to {newest} (the newest of onnx {onnx.__version__}), got {opset}")
    step = lower_step(module, shared_input=shared_input)
    content = _model(step, opset).SerializeToString()
    report = _verified(content, module, step, num_steps=NUM_STEPS, seed=0) if verify else None
    write_atomically({Path(path): content})
    return report


def verify(path: str | os.PathLike[str], module: nn.Module, *, num_steps: int = NUM_STEPS, seed: int = 0) -> VerifyReport:
    """Compare an ONNX model with the module that it was made from.

    The file passes onnx's full check and strict shape inference; then onnxruntime runs it step by step, its states fed back, beside the
    module over whole chunks of up to 16 steps, each from where the module's last one ended: several batch sizes, random states to start
    with, sparse and dense inputs. Where a neuron amplifies rounding errors more is allowed: ten times what torch's own rounding makes,
    seen by running the module in float32 and in float64.

    Args:
        path: the model.
        module: what it was made from, with the same weights.
        num_steps: length of the longest sequence.
        seed: of the random inputs and states; torch's own random numbers are not touched.

    Raises:
        ValueError: the file is not an ONNX model, or num_steps is below 1.
        ExportError: it is not a model of this module, or an output is off by more than the tolerance; the message says which and by how much.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    content = Path(path).read_bytes()
    try:
        graph = onnx.load_model_from_string(content).graph
    except Exception as error:  # protobuf's own kinds
        raise ValueError(f"path must be an ONNX model, got {path}: {error}") from error
    ranks = [len(value.type.tensor_type.shape.dim) for value in graph.input if value.name == "x"]
    return _verified(content, module, lower_step(module, shared_input=ranks != [3]), num_steps=num_steps, seed=seed)


def _lower_cell(cell: ELMCell, run: Run, shared_input: bool) -> Step:
    config = cell.config
    population = config.num_neuron is not None
    neurons = () if config.num_neuron is None else (config.num_neuron,)
    if not (population or shared_input):
        raise ValueError("shared_input must be True for a single neuron, got False")
    inputs = {"x": (config.input_size,) if shared_input else (*neurons, config.input_size)}
    inputs |= {"b": (*neurons, config.branches), "m": (*neurons, config.num_memory)}
    with torch.no_grad():
        p = cell.effective_parameters()
        graph = _Graph(p.kappa_m.dtype, population)
        x, b, m = (graph.neurons_first(name) if len(shape) == 2 else name for name, shape in inputs.items())
        if p.routing is None:
            drive = graph.add("Mul", x, graph.per_unit("w_s", p.w_s.squeeze(-1)))
        else:
            drive = graph.add("MatMul", x, graph.constant("w_branch", branch_matrix(p.w_s, p.routing, config.input_size).mT))
        decayed = graph.add("Mul", b, graph.constant("kappa_b", p.kappa_b))
        b_next = graph.add("Add", decayed, drive, out="b_next", last=not population)
        kept = graph.add("Mul", m, graph.per_unit("kappa_m", p.kappa_m))
        hidden = graph.add("Concat", graph.activated(b_next, config.branch_activation), kept, axis=-1)
        for i in range(config.num_mlp_layers):
            hidden = graph.activated(graph.linear(f"mlp_{i}", hidden, p.mlp_weight[i], p.mlp_bias[i]), config.activation)
        # the constants of the scaled tanh sit in the weights before it and in the gain after it
        proposal = graph.add("Tanh", graph.linear("mlp_out", hidden, p.mlp_weight[-1], p.mlp_bias[-1], scale=TANH_SLOPE))
        change = graph.add("Mul", proposal, graph.per_unit("gain", p.gain, scale=TANH_SCALE))
        m_next = graph.add("Add", kept, change, out="m_next", last=not population)
        y = graph.linear("w_y", m_next, p.w_y, p.b_y, out="y", last=not population)
    output = (*neurons, config.output_size)
    if config.num_neuron is not None:
        graph.add("Transpose", b_next, out="b_next", last=True, perm=[1, 0, 2])
        graph.add("Transpose", m_next, out="m_next", last=True, perm=[1, 0, 2])
        y = graph.add("Transpose", y, out="y", last=not config.flatten_output, perm=[1, 0, 2])
        if config.flatten_output:
            output = (config.num_neuron * config.output_size,)
            graph.constants["y_shape"] = torch.tensor([0, *output])  # 0: the batch axis as it comes
            graph.add("Reshape", y, "y_shape", out="y", last=True)
    return Step(
        nodes=graph.nodes,
        constants=graph.constants,
        inputs=inputs,
        outputs={"y": output, "b_next": inputs["b"], "m_next": inputs["m"]},
        dtype=graph.dtype,
        metadata={"elm_neuro.config": json.dumps(config.to_dict()), "elm_neuro.units": json.dumps(UNITS)},
        run=run,
    )


class _Graph:
    """Nodes and constants under construction. In a population every tensor inside has its neuron axis first: one matrix product a neuron."""

    def __init__(self, dtype: torch.dtype, population: bool) -> None:
        if dtype not in _ELEMENT_TYPES:
            raise TypeError(f"module must hold float32 or float64 parameters to be exported, got {dtype}")
        self.dtype, self.population = dtype, population
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Tensor] = {}

    def add(self, op: str, *inputs: str, out: str = "", last: bool = False, **attributes: Any) -> str:
        """Append a node; its output is called `out` where it is the `last` of that name, an output of the graph."""
        name = out if last else f"{out or op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"{op}_{len(self.nodes)}", **attributes))
        return name

    def constant(self, name: str, tensor: Tensor, *, scale: float = 1.0) -> str:
        if tensor.dtype != self.dtype:
            raise TypeError(f"module must hold parameters of one dtype to be exported, got {tensor.dtype} for {name} beside {self.dtype}")
        self.constants[name] = (tensor.double() * scale).to(self.dtype).cpu()
        return name

    def per_unit(self, name: str, tensor: Tensor, *, scale: float = 1.0) -> str:
        """A constant ([num_neuron,] unit), with room for the batch axis before the units."""
        return self.constant(name, tensor.unsqueeze(-2) if self.population else tensor, scale=scale)

    def neurons_first(self, name: str) -> str:
        return self.add("Transpose", name, perm=[1, 0, 2])

    def linear(self, name: str, x: str, weight: Tensor, bias: Tensor, *, scale: float = 1.0, out: str = "", last: bool = False) -> str:
        product = self.add("MatMul", x, self.constant(f"{name}.weight", weight.mT, scale=scale))
        return self.add("Add", product, self.per_unit(f"{name}.bias", bias, scale=scale), out=out, last=last)

    def activated(self, x: str, activation: str | None) -> str:
        if activation is None:
            return x
        if activation == "silu":
            return self.add("Mul", x, self.add("Sigmoid", x))
        operators = {"relu": "Relu", "tanh": "Tanh"}
        if activation not in operators:
            raise ExportError(f"activation must be relu, silu or tanh to be exported, got {activation!r}")
        return self.add(operators[activation], x)


def _model(step: Step, opset: int) -> onnx.ModelProto:
    size = sum(constant.numel() * constant.element_size() for constant in step.constants.values())
    if size > MAX_BYTES:
        raise ExportError(f"module must have at most {MAX_BYTES} bytes of constants (the limit of one ONNX file), got {size}")
    kind = _ELEMENT_TYPES[step.dtype]
    constants = [onnx.numpy_helper.from_array(constant.contiguous().numpy(), name) for name, constant in step.constants.items()]
    inputs = [helper.make_tensor_value_info(name, kind, ["batch", *shape]) for name, shape in step.inputs.items()]
    outputs = [helper.make_tensor_value_info(name, kind, ["batch", *shape]) for name, shape in step.outputs.items()]
    graph = helper.make_graph(step.nodes, "elm_neuro_step", inputs, outputs, initializer=constants)
    operators = helper.make_opsetid("", opset)
    model = helper.make_model(
        graph,
        opset_imports=[operators],
        ir_version=helper.find_min_ir_version_for([operators]),
        producer_name="elm_neuro",
        producer_version=__version__,
        doc_string="One time step: start with zeros for the states and feed them back, x_next -> x.",
    )
    helper.set_model_props(model, {"elm_neuro.version": __version__, "elm_neuro.form": "step", **step.metadata})
    return model


def _run_neuron(module: nn.Module, x: Tensor, states: State) -> tuple[Tensor, State]:
    if not isinstance(module, ELM) or module.config.batch_first:
        return module(x, ELMState(*states))  # type: ignore[no-any-return]
    y, after = module(x.transpose(0, 1), ELMState(*states))
    return y.transpose(0, 1), after


def _run_cell(module: nn.Module, x: Tensor, states: State) -> tuple[Tensor, State]:
    outputs = []
    for x_t in x.unbind(1):
        y_t, states = module(x_t, ELMState(*states))
        outputs.append(y_t)
    return torch.stack(outputs, dim=1), states


@torch.no_grad()
def _verified(content: bytes, module: nn.Module, step: Step, *, num_steps: int, seed: int) -> VerifyReport:
    session, opset = _session(content, step)
    # torch's own rounding error, from the same neuron in the other precision
    other = torch.float64 if step.dtype == torch.float32 else torch.float32
    share = min(1.0, torch.finfo(step.dtype).eps / torch.finfo(other).eps)
    twin = copy.deepcopy(module).to(other)
    generator = torch.Generator().manual_seed(seed)
    device = next(module.parameters()).device
    errors, tolerances, total = dict.fromkeys(step.outputs, 0.0), dict.fromkeys(step.outputs, _TOLERANCES[step.dtype]), 0
    for batch, density in ((1, 0.05), (2, 0.5), (5, 1.0)):
        left = num_steps if batch == 1 else int(torch.randint(1, num_steps + 1, (), generator=generator))
        total += batch * left
        states: State = tuple(torch.randn(batch, *shape, generator=generator).to(device, step.dtype) for shape in list(step.inputs.values())[1:])
        while left:
            length = int(torch.randint(1, min(left, CHUNK) + 1, (), generator=generator))
            left -= length
            x = torch.randn(batch, length, *step.inputs["x"], generator=generator)
            x = (x * (torch.rand(x.shape, generator=generator) < density)).to(step.dtype)
            found = _streamed(session, step, x, states)
            y_other, rounded = step.run(twin, x.to(device, other), tuple(state.to(other) for state in states))
            y, states = step.run(module, x.to(device), states)
            for name, one, expected, two in zip(step.outputs, found, (y, *states), (y_other, *rounded), strict=True):
                expected = expected.double().cpu()
                errors[name] = _larger(errors[name], float((one.double() - expected).abs().max()))
                own = share * float((two.double().cpu() - expected).abs().max())
                size = max(1.0, float(expected.abs().max()))
                tolerances[name] = max(tolerances[name], _TOLERANCES[step.dtype] * size + 10.0 * own)
    wrong = [f"{name} {error:.2e} (allowed {tolerances[name]:.2e})" for name, error in errors.items() if not error <= tolerances[name]]
    if wrong:
        raise ExportError(f"onnxruntime must compute what {type(module).__name__} computes, got outputs that are off by {', '.join(wrong)}")
    return VerifyReport(errors, tolerances, total, opset)


def _streamed(session: Any, step: Step, x: Tensor, states: State) -> tuple[Tensor, ...]:
    """Output of all steps and the states after the last, one step at a time with the states fed back."""
    first, *names = step.inputs
    fed = {name: state.cpu().numpy() for name, state in zip(names, states, strict=True)}
    frames = []
    for x_t in x.unbind(1):
        y_t, *after = session.run(list(step.outputs), {first: x_t.numpy(), **fed})
        fed = dict(zip(names, after, strict=True))
        frames.append(torch.from_numpy(y_t))
    return torch.stack(frames, dim=1), *(torch.from_numpy(state) for state in fed.values())


def _larger(one: float, other: float) -> float:
    return one if one > other or one != one else other  # a NaN stays


def _session(content: bytes, step: Step) -> tuple[Any, int]:
    """The model in onnxruntime, once it is known to be valid and to have this step's inputs and outputs."""
    try:
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnx and onnxruntime have a dozen kinds
        raise ExportError(f"the model must pass onnx's checker and load in onnxruntime, got {type(error).__name__}: {error}") from error
    kind = {torch.float32: "tensor(float)", torch.float64: "tensor(double)"}[step.dtype]
    for side, expected, found in (("inputs", step.inputs, session.get_inputs()), ("outputs", step.outputs, session.get_outputs())):
        wanted = {name: (kind, shape) for name, shape in expected.items()}
        got = {value.name: (value.type, tuple(value.shape[1:])) for value in found}
        if got != wanted:
            raise ExportError(f"the model must have the {side} of the module, {wanted}, got {got}")
    return session, next(entry.version for entry in model.opset_import if entry.domain == "")
