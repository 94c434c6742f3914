"""Run an ONNX model of elm_neuro with NumPy and onnxruntime alone; this file needs nothing else and may be copied.

    from onnx_neuron import OnnxNeuron
    neuron = OnnxNeuron("neuron.onnx")
    outputs, state = neuron.run(x)                # a sequence, from zero states
    outputs, state = neuron.step(x_t, state)      # one time step (form "step")

A state is a dict of arrays; None stands for zeros. It is an input and an output: one model serves any number of
streams.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnxruntime

__all__ = ["OnnxNeuron"]

State = dict[str, "np.ndarray[Any, Any]"]
FORMS = ("step", "sequence", "unrolled")
DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64}
PACKAGES = {
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
}


class OnnxNeuron:
    """A neuron, or a network of them, that :func:`elm_neuro.export.to_onnx` wrote.

    Args:
        path: the model.
        providers: onnxruntime's execution providers in order of preference, for example ``["CUDAExecutionProvider"]``;
            the CPU by default. One that is named has to be there.
        num_threads: threads of one call; onnxruntime's choice by default.
        check: refuse inputs and states that are not finite.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a model, or a provider is not there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        providers: Sequence[str] | None = None,
        num_threads: int | None = None,
        check: bool = True,
    ) -> None:
        self.path, self.check = os.fspath(path), check
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"path must be an ONNX model, but there is no {self.path}")
        wanted = (
            ["CPUExecutionProvider"]
            if providers is None
            else [providers]
            if isinstance(providers, str)
            else list(providers)
        )
        there = onnxruntime.get_available_providers()
        for name in wanted:
            if name not in there:
                hint = f"; {name} comes with pip install {PACKAGES[name]}" if name in PACKAGES else ""
                raise ValueError(f"providers must be of those in this onnxruntime, {there}, got {name}{hint}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if num_threads is not None:
            if num_threads < 1:
                raise ValueError(f"num_threads must be at least 1, got {num_threads}")
            options.intra_op_num_threads = num_threads
        try:
            self.session = onnxruntime.InferenceSession(self.path, options, providers=wanted)
        except Exception as error:  # onnxruntime has a dozen kinds
            raise ValueError(
                f"path must be an ONNX model that onnxruntime can load, got {self.path}: {error}"
            ) from error
        self.providers: list[str] = self.session.get_providers()
        if providers is not None and self.providers[0] != wanted[0]:  # onnxruntime falls back to the CPU without a word
            raise ValueError(
                f"providers must work here, got {wanted[0]}, which onnxruntime could not start; its log says why"
            )
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        try:
            self.options: dict[str, Any] = json.loads(self.metadata["elm_neuro.options"])
            self.form: str = self.options["form"]
            if self.form not in FORMS:
                raise ValueError(f"form {self.form!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"path must be a model of elm_neuro.export, got {self.path} without its metadata"
            ) from error
        inputs = {value.name: value for value in self.session.get_inputs()}
        names = [value.name for value in self.session.get_outputs()]
        after = {f"{name}_next" for name in inputs}
        states = [name for name in inputs if name != "x"]
        if "x" not in inputs or any(f"{name}_next" not in names for name in states) or inputs["x"].type not in DTYPES:
            raise ValueError(
                f"path must be a model of elm_neuro.export, got inputs {[*inputs]} and outputs {names} in {self.path}"
            )
        self.dtype = DTYPES[inputs["x"].type]
        self.state_shapes = {name: tuple(inputs[name].shape[1:]) for name in states}
        self.output_names = [name for name in names if name not in after]
        self._names, self._x = names, tuple(inputs["x"].shape)
        self.num_steps: int | None = self.options.get("num_steps")
        self.batch_first: bool = self.options.get("batch_first", True)

    def initial_state(self, batch: int = 1) -> State:
        """Zeros, one array (batch, ...) a state."""
        return {name: np.zeros((batch, *shape), self.dtype) for name, shape in self.state_shapes.items()}

    def step(self, x: Any, state: State | None = None) -> tuple[State, State]:
        """One time step.

        Args:
            x: (batch, input_size).
            state: before the step; None for zeros. It is not changed.

        Returns:
            Outputs by name, each (batch, ...), and the state after the step.

        Raises:
            ValueError: the model is not of the form "step", or `x` or a state has the wrong shape, dtype or a value
                that is not finite.
        """
        if self.form != "step":
            raise ValueError(f'step needs a model of the form "step", got {self.form!r}: use run')
        return self._call(self._array("x", x, self._x), state, batch_axis=0)

    def run(self, x: Any, state: State | None = None) -> tuple[State, State]:
        """A sequence, whatever the form: of any length, in the form "unrolled" a multiple of its `num_steps`.

        Args:
            x: (batch, time, input_size), or time first where the model was exported with ``batch_first=False``.
            state: before the first step; None for zeros.

        Returns:
            Outputs by name, each with the axes of `x`, and the state after the last step.
        """
        time = 1 if self.batch_first else 0
        if self.form == "sequence":
            return self._call(self._array("x", x, self._x), state, batch_axis=1 - time)
        if self.form == "step":
            batch = self._x[:1]
            x = self._array(
                "x", x, (*batch, "time", *self._x[1:]) if self.batch_first else ("time", *batch, *self._x[1:])
            )
            pieces = [np.take(x, t, axis=time) for t in range(x.shape[time])]
        else:
            length = self.num_steps or 1
            free = tuple("time" if axis == time else size for axis, size in enumerate(self._x))
            x = self._array("x", x, free)
            if x.shape[time] % length:
                raise ValueError(f"x must have a multiple of the model's {length} steps, got {x.shape[time]}")
            pieces = np.split(x, x.shape[time] // length, axis=time)
        records: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in self.output_names}
        for piece in pieces:
            found, state = self._call(
                np.ascontiguousarray(piece), state, batch_axis=0 if self.form == "step" else 1 - time
            )
            for name, value in found.items():
                records[name].append(value)
        state = state or {}
        if self.form == "step":
            return {name: np.stack(values, axis=time) for name, values in records.items()}, state
        whole = {value.name for value in self.session.get_outputs() if self.num_steps in value.shape}
        return {
            name: np.concatenate(values, axis=time) if name in whole else values[-1] for name, values in records.items()
        }, state

    def stream(self, frames: Any, state: State | None = None) -> Iterator[tuple[State, State]]:
        """Steps one after the other as `frames` gives them, each (batch, input_size): what :meth:`step` returns."""
        for x in frames:
            outputs, state = self.step(x, state)
            yield outputs, state

    def _call(self, x: np.ndarray[Any, Any], state: State | None, *, batch_axis: int) -> tuple[State, State]:
        if 0 in x.shape:
            raise ValueError(f"x must not be empty, got shape {x.shape}")
        batch = x.shape[batch_axis]
        if state is None:
            state = self.initial_state(batch)
        elif not isinstance(state, dict) or set(state) != set(self.state_shapes):
            got = sorted(state) if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"state must hold {sorted(self.state_shapes)}, got {got}")
        fed = {
            name: self._array(f"state {name}", state[name], (batch, *shape))
            for name, shape in self.state_shapes.items()
        }
        found = dict(zip(self._names, self.session.run(self._names, {"x": x, **fed}), strict=True))
        return {name: found[name] for name in self.output_names}, {name: found[f"{name}_next"] for name in fed}

    def _array(self, name: str, value: Any, shape: Sequence[int | str]) -> np.ndarray[Any, Any]:
        """`value` as an array of the model's dtype, where it has this shape; words stand for any size."""
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{name} must hold numbers, got {array.dtype}")
        array = np.ascontiguousarray(array, dtype=self.dtype)
        if array.ndim != len(shape) or any(
            isinstance(size, int) and size != got for size, got in zip(shape, array.shape, strict=True)
        ):
            raise ValueError(f"{name} must have shape ({', '.join(map(str, shape))}), got {array.shape}")
        if self.check and not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).sum())} values that are not")
        return array

    def __repr__(self) -> str:
        states = ", ".join(f"{name} {shape}" for name, shape in self.state_shapes.items())
        return (
            f"OnnxNeuron({self.path!r}, form={self.form!r}, x {self._x}, states {states}, "
            f"outputs {self.output_names}, {self.providers[0]})"
        )
