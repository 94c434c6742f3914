"""An ONNX graph under construction: a layer says once what it computes, the form decides how time runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from elm_neuro.export._filter import Filters
from elm_neuro.export._nodes import ExportError, Value

FORMS = ("step", "sequence", "unrolled")
PRECISIONS = ("float32", "float16", "bfloat16", "int8")  # of the matrix products; int8 is that of the matrices alone
HALF_TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
LARGEST_INT8 = 127
MOST_JOINED = 32  # values by one Concat: beyond them onnxruntime's CUDA provider cannot record it into a CUDA graph

Sizes = tuple[int | None, ...]  # of a step's tensor, None for the batch axis
Body = Callable[[str, dict[str, str]], tuple[str, dict[str, str]]]
MaskedBody = Callable[[str, str | None, dict[str, str]], tuple[str, dict[str, str]]]


@dataclass(frozen=True)
class State:
    """What the model carries from call to call; the shape is without the batch axis, which comes first."""

    shape: tuple[int, ...]
    spikes: bool = False  # 0 or 1


class Graph(Filters):
    """Nodes, constants and states of one form.

    In the form "step" a loop's body stands in the graph as it is; in "sequence" it is the body of a Scan over
    time-first records; in "unrolled" it stands there `num_steps` times. All else is computed for all time steps at
    once.
    """

    def __init__(
        self,
        form: str,
        dtype: torch.dtype,
        *,
        opset: int,
        precision: str = "float32",
        num_steps: int | None = None,
        batch: int | str = "batch",
    ) -> None:
        super().__init__(form, dtype, opset=opset, num_steps=num_steps)
        self.precision, self.batch = precision, batch
        self.weights: list[onnx.NodeProto] = []  # nodes before all others: matrices from how they are stored
        self.states: dict[str, State] = {}
        self.finals: dict[str, str] = {}  # value of each state after the last step
        self.extras: dict[str, Value] = {}  # further outputs
        self.places: dict[int, str] = {}  # where each module stands first, by its id
        self.shapes: dict[str, list[int | str]] = {}  # of values whose shape a runtime cannot infer
        self.halves: set[str] = set()  # constants that are stored in the lower precision
        self.means: set[str] = set()  # values that are means over the steps of a sequence
        self._rounded: dict[str, str] = {}  # matrices by the name of what they are stored as

    def state(self, name: str, *shape: int, spikes: bool = False) -> str:
        r"""An input (batch, \*shape); :meth:`keep` names the value it has after the last step."""
        if self.scoped(name) in self.states:
            raise ExportError(f"states must have different names, got {self.scoped(name)} twice")
        self.states[self.scoped(name)] = State(shape, spikes)
        return self.scoped(name)

    def keep(self, name: str, value: str) -> None:
        self.finals[self.scoped(name)] = value

    def extra(self, name: str, value: Value) -> None:
        """A further output of the model, of its outermost layer only."""
        if not self._scope:
            self.extras[name] = value

    def linear(
        self, name: str, x: str, weight: Tensor, bias: Tensor | str | None = None, *, matrix: bool = False
    ) -> str:
        """``x @ weight.mT + bias`` in the chosen precision.

        Args:
            name: of the constants.
            x: the input's name.
            weight: ([num_neuron,] out, in).
            bias: ([num_neuron,] out), or the name of a value.
            matrix: `x` has two axes and so has the bias where it is a value: product and sum can be one operator.
        """
        added = self.per_unit(f"{name}.bias", bias) if isinstance(bias, Tensor) else bias
        half = HALF_TYPES.get(self.precision)
        w = self._matrix(f"{name}.weight", weight.mT)
        if half is None and matrix and added is not None:
            return self.add("Gemm", x, w, added)
        if half is None:
            product = self.add("MatMul", x, w)
        else:
            self.halves.add(w)
            product = self._half_product(x, w, half)
        return product if added is None else self.add("Add", product, added)

    def _half_product(self, x: str, w: str, half: int) -> str:
        """``x @ w`` in a lower precision.

        Where a Transpose leaves the last axis in the matrix, onnxruntime fuses it with the Cast and the MatMul behind
        it, by nodes for which its CUDA provider has no kernel and its CPU provider may crash: an axis that comes and
        goes keeps them apart.
        """
        perm = self.transposed.get(x, [])
        apart = len(perm) > 1 and perm.index(len(perm) - 1) >= len(perm) - 2
        x = self.add("Unsqueeze", x, self.integers(0)) if apart else x
        product = self.add("Cast", self.add("MatMul", self.add("Cast", x, to=half), w), to=self.kind)
        return self.add("Squeeze", product, self.integers(0)) if apart else product

    def _matrix(self, name: str, weight: Tensor) -> str:
        """A matrix ([num_neuron,] in, out); as int8 it has one scale an output, and a runtime unpacks it when it loads
        the model: nothing that flows is rounded, so that no sample feels another one or its own future.
        """
        if self.precision != "int8":
            return self.constant(name, weight)
        weight = weight.detach().cpu()
        scale = weight.abs().amax(-2, keepdim=True) / LARGEST_INT8
        scale = torch.where(scale > 0, scale, 1.0)
        stored = self.constant(name, (weight / scale).round().to(torch.int8))
        if stored not in self._rounded:
            scales = self.constant(
                f"{stored.removeprefix(self._scope)}.scale", scale.squeeze(-2) if scale.ndim == 2 else scale
            )
            nodes, self.nodes = self.nodes, self.weights
            self._rounded[stored] = self.add("Mul", self.add("Cast", stored, to=self.kind), scales)
            self.nodes = nodes
        return self._rounded[stored]

    def activated(self, x: str, activation: str | None) -> str:
        if activation is None:
            return x
        if activation == "silu":
            if self.kind == TensorProto.DOUBLE:
                # x (1 + tanh(x / 2)) / 2: onnxruntime before 1.31 fuses Mul and Sigmoid into what has no such kernel
                half = self.add("Mul", x, self.constant("half", torch.tensor(0.5, dtype=self.dtype)))
                return self.add("Mul", half, self.add("Add", self.one(), self.add("Tanh", half)))
            return self.add("Mul", x, self.add("Sigmoid", x))
        if activation == "relu_squared":
            positive = self.add("Relu", x)
            return self.add("Mul", positive, positive)
        operators = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
        if activation not in operators:
            known = sorted([*operators, "relu_squared", "silu"])
            raise ExportError(f"activation must be one of {known} to be exported, got {activation!r}")
        return self.add(operators[activation], x)

    def above(self, v: str, limit: str) -> str:
        """Spikes, 0 or 1, where `v` is above `limit`."""
        return self.add("Cast", self.add("Greater", v, limit), to=self.kind)

    def loop(
        self, u: str, states: dict[str, str], body: Body, *, reads: Sizes, gives: Sizes
    ) -> tuple[str, dict[str, str]]:
        r"""Run `body` over the steps of `u`, (time, \*reads); in the form "step" it is one, without the time axis.

        Where samples have lengths, each state stops at the end of its sample.

        Args:
            u: what the steps read.
            states: value before the first step of states that :meth:`state` has declared, by their names, each with
                its batch axis where `reads` has it.
            body: (u of a step, states) -> (record of the step, states).
            reads: shape of what a step reads, None for the batch axis.
            gives: shape of its record.

        Returns:
            The records, (time, \*gives), and the states after the last step.
        """
        if self.form == "step":
            return body(u, states)

        def step(u_t: str, valid: str | None, before: dict[str, str]) -> tuple[str, dict[str, str]]:
            with self.one_step(valid):
                record, after = body(u_t, before)
            if valid is None:
                return record, after
            return record, {
                name: self.add("Where", self._mask(valid, name, reads.index(None)), value, before[name])
                for name, value in after.items()
            }

        if self.form == "sequence":
            return self._scan(u, states, step)
        masks = [None] * (self.num_steps or 1) if self.valid is None else self._split(self.valid, (None,))
        records = []
        for u_t, valid in zip(self._split(u, reads), masks, strict=True):
            record, states = step(u_t, valid, states)
            records.append(record)
        return self._joined(records, gives), states

    def _mask(self, valid: str, name: str, batch_axis: int) -> str:
        """The mask of a step, (batch,), with the other axes of a state."""
        axes = [i for i in range(1 + len(self.states[self.scoped(name)].shape)) if i != batch_axis]
        return self.add("Unsqueeze", valid, self.integers(*axes))

    def _scan(self, u: str, states: dict[str, str], step: MaskedBody) -> tuple[str, dict[str, str]]:
        outside, self.nodes = self.nodes, []
        before = {name: self.fresh(f"{name}_before") for name in states}
        u_t, valid_t = self.fresh("u"), None if self.valid is None else self.fresh("valid")
        record, after = step(u_t, valid_t, before)
        after = {
            name: self.add("Identity", after[name]) if after[name] in before.values() else after[name]
            for name in states
        }
        record = self.add("Identity", record)  # outputs of a body are different values
        body, self.nodes = self.nodes, outside
        inputs = [helper.make_tensor_value_info(name, self.kind, None) for name in (*before.values(), u_t)]
        outputs = [helper.make_tensor_value_info(name, self.kind, None) for name in (*after.values(), record)]
        sequences = [u]
        if valid_t is not None and self.valid is not None:
            inputs.append(helper.make_tensor_value_info(valid_t, TensorProto.BOOL, None))
            sequences.append(self.valid)
        finals = {name: self.fresh(f"{name}_after") for name in states}
        records = self.fresh("records")
        node = helper.make_node(
            "Scan",
            [*states.values(), *sequences],
            [*finals.values(), records],
            name=self.fresh("scan"),
            body=helper.make_graph(body, self.fresh("step"), inputs, outputs),
            num_scan_inputs=len(sequences),
        )
        self.nodes.append(node)
        return records, finals

    def _split(self, u: str, sizes: Sizes) -> list[str]:
        """Each step without its time axis: one split of (time * first axis, ...), whose parts need nothing further."""
        num_steps = self.num_steps or 1
        if num_steps == 1:
            return [self.add("Squeeze", u, self.integers(0))]
        first, *rest = (-1 if size is None else size for size in sizes)
        merged = self.add("Reshape", u, self.integers(first if first < 0 else num_steps * first, *rest))
        names = [self.fresh("u") for _ in range(num_steps)]
        if u != self.valid:
            # named sizes: with unknown ones onnxruntime takes a time to load that grows with the square of the steps
            self.shapes |= {name: [self.batch if size is None else size for size in sizes] for name in names}
        count: dict[str, Any] = {"num_outputs": num_steps} if self.opset >= 18 else {}
        self.nodes.append(helper.make_node("Split", [merged], names, name=self.fresh("split"), axis=0, **count))
        return names

    def _joined(self, records: list[str], sizes: Sizes) -> str:
        """The steps' records with a time axis in front."""
        num_steps = len(records)
        if num_steps == 1:
            return self.add("Unsqueeze", records[0], self.integers(0))
        while len(records) > 1:
            groups = [records[i : i + MOST_JOINED] for i in range(0, len(records), MOST_JOINED)]
            records = [self.add("Concat", *group, axis=0) if len(group) > 1 else group[0] for group in groups]
        kept = (-1 if size is None else size for size in sizes)
        return self.add("Reshape", records[0], self.integers(num_steps, *kept))

    def largest(self, value: str, *, axis: int) -> str:
        """The largest entry along an axis, which goes."""
        if self.opset < 18:
            return self.add("ReduceMax", value, axes=[axis], keepdims=0)
        return self.add("ReduceMax", value, self.integers(axis), keepdims=0)

    def last_step(self, value: Value) -> Value:
        """The last step of a sequence, which has no time axis any more; where samples have lengths, each one's own."""
        if value.time is None:
            return value
        if self.valid is not None:
            lines = self._lines(value)
            zeros = self.add("Mul", self.add("Slice", lines, *(self.integers(i) for i in (0, 1, 2))), self.zero())
            return replace(value, name=self.at_end(lines, zeros, 3), time=None)
        axis = 0 if value.time == "first" else 1
        return replace(value, name=self.add("Gather", value.name, self.number(-1), axis=axis), time=None)

    def mean(self, value: Value) -> Value:
        """Mean over the steps of a sequence; where samples have lengths, over each one's own."""
        if value.time is None:
            raise ExportError(
                'a mean over time needs a whole sequence: form must be "sequence" or "unrolled", got "step"'
            )
        if self.valid is not None and self.lengths is not None:
            share = self.add("Div", self.one(), self.add("Cast", self.lengths, to=self.kind))
            mask = self.add("Cast", self.permuted(self.valid, 1, 0), to=self.kind)
            weights = self.add("Mul", mask, self.add("Unsqueeze", share, self.integers(1)))
            summed = self.add("MatMul", self._lines(value), self.add("Unsqueeze", weights, self.integers(2)))
            name = self.add("Squeeze", summed, self.integers(2))
        else:
            axis = 0 if value.time == "first" else 1
            name = self.add("ReduceMean", value.name, keepdims=0, axes=[axis]) if self.opset < 18 else (
                self.add("ReduceMean", value.name, self.integers(axis), keepdims=0))  # fmt: skip
        self.means.add(name)
        return replace(value, name=name, time=None)

    def _lines(self, value: Value) -> str:
        """Records (batch, channel, time)."""
        if len(value.shape) != 1:
            raise ExportError(f"a readout of samples with lengths must read channels, got {value.shape} a step")
        return self.add("Transpose", value.name, perm=[1, 2, 0] if value.time == "first" else [0, 2, 1])
