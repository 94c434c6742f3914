"""An ONNX graph under construction: a layer says once what it computes, the form decides how time runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

try:
    import onnx
    import onnxruntime  # noqa: F401  # named here where it is missing
    from onnx import TensorProto, helper
except ImportError as error:
    raise ImportError(f'elm_neuro.export needs {error.name or "onnx"}: pip install "elm-neuro[onnx]"') from error

FORMS = ("step", "sequence", "unrolled")
PRECISIONS = ("float32", "float16", "bfloat16")  # of the matrix products
ELEMENT_TYPES = {torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE}
HALF_TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
BLOCK = 32  # steps that the trace filter takes at once

Sizes = tuple[int | None, ...]  # of a step's tensor, None for the batch axis
Body = Callable[[str, dict[str, str]], tuple[str, dict[str, str]]]


class ExportError(ValueError):
    """A model cannot be written, or computes something else than the module it was made from."""


@dataclass(frozen=True)
class Value:
    """What flows between layers: its name, its shape without batch and time, and whether time comes first, after the batch, or not at all."""

    name: str
    shape: tuple[int, ...]
    time: str | None = "after"  # "after" the batch axis, "first", or None

    @property
    def lead(self) -> int:
        """Axes before the shape."""
        return 1 if self.time is None else 2


@dataclass(frozen=True)
class State:
    """What the model carries from call to call; the shape is without the batch axis, which comes first."""

    shape: tuple[int, ...]
    spikes: bool = False  # 0 or 1


class Scoped:
    """Names by the place of their layer in the network."""

    _scope = ""

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of states and constants within begin with `name` and a dot."""
        before = self._scope
        self._scope = f"{before}{name}."
        try:
            yield
        finally:
            self._scope = before

    def scoped(self, name: str) -> str:
        return self._scope + name


class Graph(Scoped):
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
        self.form, self.dtype, self.opset, self.precision, self.num_steps, self.batch = (
            form,
            dtype,
            opset,
            precision,
            num_steps,
            batch,
        )
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Tensor] = {}
        self.states: dict[str, State] = {}
        self.finals: dict[str, str] = {}  # value of each state after the last step
        self.extras: dict[str, Value] = {}  # further outputs
        self.shapes: dict[str, list[int | str]] = {}  # of values whose shape a runtime cannot infer
        self.halves: set[str] = set()  # constants that are stored in the lower precision
        self._count = 0

    @property
    def kind(self) -> int:
        """ONNX's number of the dtype."""
        return int(ELEMENT_TYPES[self.dtype])

    def check(self, parameter: Tensor) -> None:
        """Refuse parameters of another dtype than the model's."""
        if parameter.dtype != self.dtype:
            raise TypeError(
                f"module must hold parameters of one dtype to be exported, got {parameter.dtype} beside {self.dtype}"
            )

    def fresh(self, word: str) -> str:
        self._count += 1
        return f"{self._scope}{word}_{self._count}"

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output, and return the output's name."""
        name = self.fresh(op.lower())
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Tensor) -> str:
        """Floating numbers in the model's dtype, whole ones as int64."""
        name = self.scoped(name)
        if value.dtype in (torch.float16, torch.bfloat16) or (
            value.is_floating_point() and value.dtype not in ELEMENT_TYPES
        ):
            raise TypeError(
                f"module must hold float32 or float64 parameters to be exported, got {value.dtype} for {name}"
            )
        value = value.detach().cpu()
        value = value.to(self.dtype) if value.is_floating_point() else value
        known = self.constants.get(name)
        if known is not None and not (known.shape == value.shape and torch.equal(known, value)):
            return self.constant(f"{name.removeprefix(self._scope)}_", value)
        self.constants[name] = value
        return name

    def integers(self, *values: int) -> str:
        return self.constant(
            f"integers_{'_'.join(map(str, values))}".replace("-", "minus"), torch.tensor(values, dtype=torch.int64)
        )

    def number(self, value: int) -> str:
        """A whole number without axes."""
        return self.constant(f"integer_{value}".replace("-", "minus"), torch.tensor(value))

    def state(self, name: str, *shape: int, spikes: bool = False) -> str:
        r"""An input (batch, \*shape); :meth:`keep` names the value it has after the last step."""
        self.states[self.scoped(name)] = State(shape, spikes)
        return self.scoped(name)

    def keep(self, name: str, value: str) -> None:
        self.finals[self.scoped(name)] = value

    def extra(self, name: str, value: Value) -> None:
        """A further output of the model, of its outermost layer only."""
        if not self._scope:
            self.extras[name] = value

    def permuted(self, value: str, *order: int) -> str:
        return value if order == tuple(range(len(order))) else self.add("Transpose", value, perm=list(order))

    def time_first(self, value: Value) -> Value:
        if value.time != "after":
            return value
        name = self.permuted(value.name, 1, 0, *range(2, 2 + len(value.shape)))
        return replace(value, name=name, time="first")

    def per_unit(self, name: str, value: Tensor) -> str:
        """A constant ([num_neuron,] unit), with room for the batch axis before the units."""
        return self.constant(name, value.unsqueeze(-2) if value.ndim == 2 else value)

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
        if half is None and matrix and added is not None:
            return self.add("Gemm", x, self.constant(f"{name}.weight", weight.mT), added)
        w = self.constant(f"{name}.weight", weight.mT)
        if half is None:
            product = self.add("MatMul", x, w)
        else:
            self.halves.add(w)
            product = self.add("Cast", self.add("MatMul", self.add("Cast", x, to=half), w), to=self.kind)
        return product if added is None else self.add("Add", product, added)

    def activated(self, x: str, activation: str | None) -> str:
        if activation is None:
            return x
        if activation == "silu":
            return self.add("Mul", x, self.add("Sigmoid", x))
        operators = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
        if activation not in operators:
            raise ExportError(
                f"activation must be one of {sorted([*operators, 'silu'])} to be exported, got {activation!r}"
            )
        return self.add(operators[activation], x)

    def loop(
        self, u: str, states: dict[str, str], body: Body, *, reads: Sizes, gives: Sizes
    ) -> tuple[str, dict[str, str]]:
        r"""Run `body` over the steps of `u`, (time, \*reads); in the form "step" it is one, without the time axis.

        Args:
            u: what the steps read.
            states: value of each before the first step.
            body: (u of a step, states) -> (record of the step, states).
            reads: shape of what a step reads, None for the batch axis.
            gives: shape of its record.

        Returns:
            The records, (time, \*gives), and the states after the last step.
        """
        if self.form == "step":
            return body(u, states)
        if self.form == "sequence":
            return self._scan(u, states, body)
        records = []
        for u_t in self._split(u, reads):
            record, states = body(u_t, states)
            records.append(record)
        return self._joined(records, gives), states

    def _scan(self, u: str, states: dict[str, str], body: Body) -> tuple[str, dict[str, str]]:
        outside, self.nodes = self.nodes, []
        before = {name: self.fresh(f"{name}_before") for name in states}
        u_t = self.fresh("u")
        record, after = body(u_t, before)
        after = {
            name: self.add("Identity", value) if value in before.values() else value for name, value in after.items()
        }
        record = self.add("Identity", record)  # outputs of a body are different values
        kind = self.kind
        inputs, outputs = ([helper.make_tensor_value_info(name, kind, None) for name in names] for names in (
            [*before.values(), u_t], [*(after[name] for name in states), record],
        ))  # fmt: skip
        step = helper.make_graph(self.nodes, self.fresh("step"), inputs, outputs)
        self.nodes = outside
        finals = {name: self.fresh(f"{name}_after") for name in states}
        records = self.fresh("records")
        node = helper.make_node(
            "Scan",
            [*states.values(), u],
            [*finals.values(), records],
            name=self.fresh("scan"),
            body=step,
            num_scan_inputs=1,
        )
        self.nodes.append(node)
        return records, finals

    def _split(self, u: str, sizes: Sizes) -> list[str]:
        """Each step without its time axis: one split of (time * first axis, ...), whose parts need no further operator."""
        num_steps = self.num_steps or 1
        if num_steps == 1:
            return [self.add("Squeeze", u, self.integers(0))]
        first, *rest = (-1 if size is None else size for size in sizes)
        merged = self.add("Reshape", u, self.integers(first if first < 0 else num_steps * first, *rest))
        names = [self.fresh("u") for _ in range(num_steps)]
        # named sizes: with unknown ones onnxruntime takes a time to load that grows with the square of the steps
        self.shapes |= {name: [self.batch if size is None else size for size in sizes] for name in names}
        count: dict[str, Any] = {"num_outputs": num_steps} if self.opset >= 18 else {}
        self.nodes.append(helper.make_node("Split", [merged], names, name=self.fresh("split"), axis=0, **count))
        return names

    def _joined(self, records: list[str], sizes: Sizes) -> str:
        """The steps' records with a time axis in front."""
        if len(records) == 1:
            return self.add("Unsqueeze", records[0], self.integers(0))
        merged = self.add("Concat", *records, axis=0)
        return self.add(
            "Reshape", merged, self.integers(len(records), *(-1 if size is None else size for size in sizes))
        )

    def leaky(self, name: str, drive: Value, kappa: Tensor, start: str) -> tuple[Value, str]:
        r"""First-order filter :math:`b_t = \kappa b_{t-1} + u_t` along time, without a loop, and its last value.

        Within blocks of 32 steps it is the product with a triangular matrix of powers of kappa, and so is what a block
        hands on.

        Args:
            name: of the constants.
            drive: u, (batch, time, channel) or (time, batch, channel); a population has an axis after the time, time
                first.
            kappa: one, or one per channel.
            start: b before the first step.
        """
        if self.form == "step":
            kept = self.add("Mul", start, self.constant(f"{name}.kappa", kappa))
            after = self.add("Add", kept, drive.name)
            return replace(drive, name=after), after
        rank = 1 + drive.lead + (len(drive.shape) - 1)
        axis = 0 if drive.time == "first" else 1
        others = [i for i in range(rank) if i != axis]
        lines = self.permuted(drive.name, *others, axis)  # (..., channel, time)
        size = BLOCK if self.num_steps is None else min(BLOCK, self.num_steps)
        whole = self.num_steps is not None and self.num_steps % size == 0
        if not whole:
            lines = self.add("Pad", lines, self._padding(drive.name, axis, rank, size))
        keep = [0] * (rank - 1)
        blocks = self.add("Reshape", lines, self.integers(*keep, -1, size))
        k = kappa.detach().double().cpu()
        per_channel = k.ndim > 0
        k = k[:, None, None] if per_channel else k
        i = torch.arange(size, dtype=torch.float64)
        within = torch.where(i[None, :] >= i[:, None], k ** (i[None, :] - i[:, None]).clamp(min=0), 0.0)  # [from, to]
        inside = self.add("MatMul", blocks, self.constant(f"{name}.within", within))
        number = None if self.num_steps is None else -(-self.num_steps // size)
        first = self.add("Unsqueeze", start, self.integers(rank - 1))  # (..., channel, 1)
        carried = first
        if number != 1:
            ends = self.add("Gather", inside, self.number(size - 1), axis=rank)  # (..., channel, block)
            entering = self.add(
                "Concat",
                first,
                self.add("Slice", ends, self.integers(0), self.integers(-1), self.integers(rank - 1)),
                axis=rank - 1,
            )
            across = self._across(name, k, size, number, ends, rank)
            if per_channel:
                entering = self.add("Unsqueeze", entering, self.integers(rank - 1))
                carried = self.add("Squeeze", self.add("MatMul", entering, across), self.integers(rank - 1))
            else:
                carried = self.add("MatMul", entering, across)
        powers = self.constant(f"{name}.powers", k ** (i + 1.0))
        faded = self.add("Mul", self.add("Unsqueeze", carried, self.integers(rank)), powers)
        lines = self.add("Reshape", self.add("Add", inside, faded), self.integers(*keep, -1))
        if not whole:
            length = (
                self.add("Shape", drive.name, start=axis, end=axis + 1)
                if self.num_steps is None
                else self.integers(self.num_steps)
            )
            lines = self.add("Slice", lines, self.integers(0), length, self.integers(rank - 1))
        last = self.add("Gather", lines, self.number(-1), axis=rank - 1)
        return replace(drive, name=self.add("Transpose", lines, perm=[rank - 1, *range(rank - 1)]), time="first"), last

    def _padding(self, drive: str, axis: int, rank: int, size: int) -> str:
        """Zeros after the end of the last axis, up to whole blocks."""
        if self.num_steps is not None:
            return self.integers(*[0] * (2 * rank - 1), -self.num_steps % size)
        # size - 1 - (T + size - 1) mod size, without a remainder of negative numbers, on which runtimes differ
        later = self.add("Add", self.add("Shape", drive, start=axis, end=axis + 1), self.integers(size - 1))
        missing = self.add("Sub", self.integers(size - 1), self.add("Mod", later, self.integers(size)))
        return self.add("Concat", self.integers(*[0] * (2 * rank - 1)), missing, axis=0)

    def _across(self, name: str, k: Tensor, size: int, number: int | None, ends: str, rank: int) -> str:
        """What is left of a block's start (row) at the start of later blocks (column)."""
        if number is not None:
            i = torch.arange(number, dtype=torch.float64)
            return self.constant(
                f"{name}.across",
                torch.where(i[None, :] >= i[:, None], k ** (size * (i[None, :] - i[:, None]).clamp(min=0)), 0.0),
            )
        count = self.add("Squeeze", self.add("Shape", ends, start=rank - 1, end=rank))
        steps = self.add("Range", self.number(0), count, self.number(1))
        later = self.add(
            "Sub", self.add("Unsqueeze", steps, self.integers(0)), self.add("Unsqueeze", steps, self.integers(1))
        )
        distance = self.add("Cast", self.add("Mul", later, self.number(size)), to=self.kind)
        zero = self.constant("zero", torch.zeros((), dtype=self.dtype))
        left = self.add("Pow", self.constant(f"{name}.kappa", k), self.add("Max", distance, zero))
        return self.add("Where", self.add("Less", later, self.number(0)), zero, left)

    def discounted_sum(self, name: str, x: Value, kappa: Tensor) -> tuple[str, str]:
        r"""The sum over time :math:`\sum_t \kappa^{T-1-t} x_t`, (batch, channel), and :math:`\kappa^T`."""
        frames = x.name if x.time == "after" else self.add("Transpose", x.name, perm=[1, 0, 2])
        if self.num_steps is not None:
            left = torch.arange(self.num_steps, -1, -1, dtype=torch.float64)
            weights = self.constant(f"{name}.discount", (kappa.detach().double().cpu() ** left[1:])[None])
            rest = self.constant(f"{name}.left", kappa.detach().double().cpu() ** left[0])
        else:
            count = self.add("Squeeze", self.add("Shape", frames, start=1, end=2))
            base = self.constant(f"{name}.kappa", kappa)
            later = self.add("Range", self.add("Sub", count, self.number(1)), self.number(-1), self.number(-1))
            weights = self.add(
                "Unsqueeze", self.add("Pow", base, self.add("Cast", later, to=self.kind)), self.integers(0)
            )
            rest = self.add("Pow", base, self.add("Cast", count, to=self.kind))
        return self.add("Squeeze", self.add("MatMul", weights, frames), self.integers(1)), rest

    def largest(self, value: str, *, axis: int) -> str:
        """The largest entry along an axis, which goes."""
        if self.opset < 18:
            return self.add("ReduceMax", value, axes=[axis], keepdims=0)
        return self.add("ReduceMax", value, self.integers(axis), keepdims=0)

    def last_step(self, value: Value) -> Value:
        """The last step of a sequence, which has no time axis any more."""
        if value.time is None:
            return value
        return replace(
            value,
            name=self.add("Gather", value.name, self.number(-1), axis=0 if value.time == "first" else 1),
            time=None,
        )

    def mean(self, value: Value) -> Value:
        """Mean over the steps of a sequence."""
        if value.time is None:
            raise ExportError(
                'a mean over time needs a whole sequence: form must be "sequence" or "unrolled", got "step"'
            )
        axis = 0 if value.time == "first" else 1
        name = self.add("ReduceMean", value.name, keepdims=0, axes=[axis]) if self.opset < 18 else (
            self.add("ReduceMean", value.name, self.integers(axis), keepdims=0))  # fmt: skip
        return replace(value, name=name, time=None)
