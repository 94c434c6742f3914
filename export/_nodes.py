"""Nodes, constants and names of an ONNX graph under construction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

ELEMENT_TYPES = {torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE}
BYTE_TYPES = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8}  # that frames may have instead


class ExportError(ValueError):
    """A model cannot be written, or computes something else than the module it was made from."""


@dataclass(frozen=True)
class Value:
    """What flows between layers: its name, its shape without batch and time, and whether time comes first, after the
    batch, or not at all.
    """

    name: str
    shape: tuple[int, ...]
    time: str | None = "after"  # "after" the batch axis, "first", or None
    spikes: bool = False  # 0 or a factor

    @property
    def lead(self) -> int:
        """Axes before the shape."""
        return 1 if self.time is None else 2


class Scoped:
    """Names by the place of their layer in the network."""

    _scope = ""

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of states and constants within begin with `name` and a dot; an empty name changes nothing."""
        before = self._scope
        self._scope = f"{before}{name}." if name else before
        try:
            yield
        finally:
            self._scope = before

    def scoped(self, name: str) -> str:
        return self._scope + name


class Nodes(Scoped):
    """A list of nodes with constants that stand once.

    Args:
        dtype: of the model, float32 or float64.
        opset: version of the standard operators.
    """

    def __init__(self, dtype: torch.dtype, opset: int) -> None:
        self.dtype, self.opset = dtype, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Tensor] = {}
        self.transposed: dict[str, list[int]] = {}  # axes of what a Transpose gives
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
        if op == "Transpose":
            self.transposed[name] = list(attributes["perm"])
        return name

    def constant(self, name: str, value: Tensor) -> str:
        """Floating numbers in the model's dtype, whole ones as they are."""
        name = self.scoped(name)
        if value.is_floating_point() and value.dtype not in ELEMENT_TYPES:
            raise TypeError(
                f"module must hold float32 or float64 parameters to be exported, got {value.dtype} for {name}"
            )
        value = value.detach().cpu()
        value = value.to(self.dtype) if value.is_floating_point() else value
        known = self.constants.get(name)
        if known is not None and not (
            known.dtype == value.dtype and known.shape == value.shape and torch.equal(known, value)
        ):
            return self.constant(f"{name.removeprefix(self._scope)}_", value)
        self.constants[name] = value
        return name

    def one(self) -> str:
        """1 in the model's dtype."""
        return self.constant("one", torch.ones((), dtype=self.dtype))

    def zero(self) -> str:
        """0 in the model's dtype."""
        return self.constant("zero", torch.zeros((), dtype=self.dtype))

    def integers(self, *values: int) -> str:
        return self.constant(
            f"integers_{'_'.join(map(str, values))}".replace("-", "minus"), torch.tensor(values, dtype=torch.int64)
        )

    def number(self, value: int) -> str:
        """A whole number without axes."""
        return self.constant(f"integer_{value}".replace("-", "minus"), torch.tensor(value))

    def size(self, value: str, axis: int) -> str:
        """Size of one axis, (1,)."""
        return self.add("Shape", value, start=axis, end=axis + 1)

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
