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
            self.readouts: list[str] = json.loads(self.metadata["elm_neuro.readouts"])  # outputs without a time axis
            if self.form not in FORMS:
                raise ValueError(f"form {self.form!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"path must be a model of elm_neuro.export, got {self.path} without its metadata"
            ) from error
        inputs = {value.name: value for value in self.session.get_inputs()}
        names = [value.name for value in self.session.get_outputs()]
        after = {f"{name}_next" for name in inputs}
        self.takes_lengths = "lengths" in inputs
        states = [name for name in inputs if name not in ("x", "lengths")]
        if "x" not in inputs or any(f"{name}_next" not in names for name in states) or inputs["x"].type not in DTYPES:
            raise ValueError(
                f"path must be a model of elm_neuro.export, got inputs {[*inputs]} and outputs {names} in {self.path}"
            )
        self.dtype = DTYPES[inputs["x"].type]
        self.state_shapes = {name: tuple(inputs[name].shape[1:]) for name in states}
        self.output_names = [name for name in names if name not in after]
        self._names, self._x = names, tuple(inputs["x"].shape)
        self._shapes = {value.name: tuple(value.shape) for value in self.session.get_outputs()}
        self.num_steps: int | None = self.options.get("num_steps")
        self.batch_first: bool = self.options.get("batch_first", True)

    def initial_state(self, batch: int = 1) -> State:
        """Zeros, one array (batch, ...) a state."""
        return {name: np.zeros((batch, *shape), self.dtype) for name, shape in self.state_shapes.items()}

    def step(self, x: Any, state: State | None = None) -> tuple[State, State]:
        """One time step.

        Args:
            x: (batch, input_size); a batch of none gives outputs of none.
            state: before the step; None for zeros. It is not changed.

        Returns:
            Outputs by name, each (batch, ...), and the state after the step.

        Raises:
            ValueError: the model is not of the form "step", or `x` or a state has the wrong shape, dtype or a value
                that is not finite.
        """
        if self.form != "step":
            raise ValueError(f'step needs a model of the form "step", got {self.form!r}: use run')
        x = self._array("x", x, self._x)
        if x.shape[0] == 0:
            return {name: value[:, 0] for name, value in self._nothing(1, 0, 1).items()}, self._checked(state, 0)
        return self._call(x, state, batch_axis=0)

    def run(self, x: Any, state: State | None = None, lengths: Any = None) -> tuple[State, State]:
        """A sequence, whatever the form: of any length, in the form "unrolled" a multiple of its `num_steps`.

        Args:
            x: (batch, time, input_size), or time first where the model was exported with ``batch_first=False``.
            state: before the first step; None for zeros.
            lengths: number of steps of each sample, (batch,), for a model that was exported with ``lengths=True``;
                outputs are zero past them, and states stop there. None for all.

        Returns:
            Outputs by name, each with the axes of `x`, and the state after the last step.
        """
        time = 1 if self.batch_first else 0
        frames = self._array("x", x, self._whole(time))
        batch, num_steps = frames.shape[1 - time], frames.shape[time]
        width = {"step": 1, "sequence": max(num_steps, 1), "unrolled": self.num_steps or 1}[self.form]
        if num_steps % width:
            raise ValueError(f"x must have a multiple of the model's {width} steps, got {num_steps}")
        ends = self._lengths(lengths, batch, num_steps)
        if num_steps == 0 or batch == 0:
            return self._nothing(time, batch, num_steps), self._checked(state, batch)
        pieces = []
        for begin in range(0, num_steps, width):
            piece = np.take(frames, range(begin, begin + width), axis=time)
            if self.form == "step":
                piece = np.squeeze(piece, axis=time)
            here = None if ends is None else np.clip(ends - begin, 0, width)
            found, state = self._call(
                np.ascontiguousarray(piece), state, batch_axis=0 if self.form == "step" else 1 - time, lengths=here
            )
            pieces.append(found)
        last = np.full(batch, len(pieces) - 1) if ends is None else np.maximum(ends - 1, 0) // width
        outputs = {}
        for name in self.output_names:
            values = [found[name] for found in pieces]
            if name in self.readouts:
                outputs[name] = np.stack(values)[last, np.arange(batch)]
            else:
                outputs[name] = (np.stack if self.form == "step" else np.concatenate)(values, axis=time)
        return outputs, state or {}

    def stream(self, frames: Any, state: State | None = None) -> Iterator[tuple[State, State]]:
        """Steps one after the other as `frames` gives them, each (batch, input_size): what :meth:`step` returns."""
        for x in frames:
            outputs, state = self.step(x, state)
            yield outputs, state

    def _whole(self, time: int) -> tuple[int | str, ...]:
        """Shape of a sequence of any length."""
        if self.form == "step":
            return (*self._x[:1], "time", *self._x[1:]) if time else ("time", *self._x)
        return tuple("time" if axis == time else size for axis, size in enumerate(self._x))

    def _nothing(self, time: int, batch: int, num_steps: int) -> State:
        """Outputs where there are no steps or no samples, of which onnxruntime's operators make errors and worse."""
        if self.readouts and num_steps == 0:
            raise ValueError(f"x must have at least one step for {self.readouts[0]}, got 0")
        lead = (batch, num_steps) if time else (num_steps, batch)
        shapes = {name: self._shapes[name][1 if self.form == "step" else 2 :] for name in self.output_names}
        shapes |= {name: self._shapes[name][1:] for name in self.readouts}
        return {
            name: np.zeros((*((batch,) if name in self.readouts else lead), *shape), self.dtype)
            for name, shape in shapes.items()
        }

    def _lengths(self, lengths: Any, batch: int, num_steps: int) -> np.ndarray[Any, Any] | None:
        """Number of steps of each sample as the model takes it; None where it takes none."""
        if lengths is None:
            return np.full(batch, num_steps, np.int64) if self.takes_lengths else None
        if not self.takes_lengths:
            raise ValueError("lengths need a model that was exported with lengths=True")
        array = np.asarray(lengths)
        if array.dtype.kind not in "iu" or array.shape != (batch,):
            raise ValueError(f"lengths must be {batch} whole numbers, got {array.dtype} of shape {array.shape}")
        if array.size and not 0 <= array.min() <= array.max() <= num_steps:
            raise ValueError(f"lengths must be from 0 to {num_steps}, got {array.min()} to {array.max()}")
        return array.astype(np.int64)

    def _checked(self, state: State | None, batch: int) -> State:
        """`state` as arrays of the right shapes; zeros for None."""
        if state is None:
            return self.initial_state(batch)
        if not isinstance(state, dict) or set(state) != set(self.state_shapes):
            got = sorted(state) if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"state must hold {sorted(self.state_shapes)}, got {got}")
        return {
            name: self._array(f"state {name}", state[name], (batch, *shape))
            for name, shape in self.state_shapes.items()
        }

    def _call(
        self,
        x: np.ndarray[Any, Any],
        state: State | None,
        *,
        batch_axis: int,
        lengths: np.ndarray[Any, Any] | None = None,
    ) -> tuple[State, State]:
        fed = self._checked(state, x.shape[batch_axis])
        more = {} if lengths is None else {"lengths": lengths}
        found = dict(zip(self._names, self.session.run(self._names, {"x": x, **fed, **more}), strict=True))
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
