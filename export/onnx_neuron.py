"""Run an ONNX model of elm_neuro with NumPy and onnxruntime alone; this file needs nothing else and may be copied.

    from onnx_neuron import OnnxNeuron
    neuron = OnnxNeuron("neuron.onnx")
    outputs, state = neuron.run(x)                # a sequence, from zero states
    outputs, state = neuron.step(x_t, state)      # one time step (form "step")
    bound = neuron.bound(x)                       # buffers that stay where they are, on a GPU for instance
    outputs = bound.run()                         # what x holds now, from the states of the last call

A state is a dict of arrays; None stands for zeros. It is an input and an output: one model serves any number of
streams. The file is longer than others of elm_neuro because it travels alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnxruntime

__all__ = ["BoundNeuron", "OnnxNeuron"]

State = dict[str, "np.ndarray[Any, Any]"]
FORMS = ("step", "sequence", "unrolled")
DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64}
BYTES = (np.uint8, np.int8)
FRAMES: dict[str, Any] = {**DTYPES, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
LARGEST_STATE = 2**31 - 1  # entries along an axis
READOUTS = ("last", "mean", "whole")
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
SHORT = {"cpu": "CPUExecutionProvider", "cuda": CUDA, "tensorrt": TENSORRT}
PACKAGES = {
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
}


class OnnxNeuron:
    """A neuron, or a network of them, that :func:`elm_neuro.export.to_onnx` wrote.

    Args:
        path: the model.
        providers: onnxruntime's execution providers in order of preference, for example ``["CUDAExecutionProvider"]``
            or "cuda"; the CPU by default. One that is named has to be there.
        num_threads: threads of one call; onnxruntime's choice by default.
        check: refuse inputs and states that are not finite; of :meth:`bound`, arrays that are copied into its buffers.
        device: number of the GPU, for the CUDA provider.
        tf32: let the CUDA provider round products to TF32, its own default: faster, and off by 1e-3.
        cuda_graph: let the CUDA provider record a call of :meth:`bound` once and replay it; not for "sequence".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a model, a provider is not there, or an option is of another provider or form.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        providers: Sequence[str] | None = None,
        num_threads: int | None = None,
        check: bool = True,
        device: int = 0,
        tf32: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        self.path, self.check, self.device, self.cuda_graph = os.fspath(path), check, device, cuda_graph
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"path must be an ONNX model, but there is no {self.path}")
        named = ["cpu"] if providers is None else [providers] if isinstance(providers, str) else list(providers)
        wanted = [SHORT.get(name, name) for name in named]
        if not wanted:
            raise ValueError("providers must name one at least, got none")
        if CUDA not in wanted and (tf32 or cuda_graph or device):
            raise ValueError(f"device, tf32 and cuda_graph are options of {CUDA}, got providers {wanted}")
        there = onnxruntime.get_available_providers()
        for name in wanted:
            if name not in there:
                hint = f"; {name} comes with pip install {PACKAGES[name]}" if name in PACKAGES else ""
                raise ValueError(f"providers must be of those in this onnxruntime, {there}, got {name}{hint}")
        settings = {CUDA: cuda_settings(device=device, tf32=tf32, cuda_graph=cuda_graph)}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if num_threads is not None:
            if num_threads < 1:
                raise ValueError(f"num_threads must be at least 1, got {num_threads}")
            options.intra_op_num_threads = num_threads
        try:
            self.session = onnxruntime.InferenceSession(
                self.path, options, providers=[(name, settings.get(name, {})) for name in wanted]
            )
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
            # outputs without a time axis, and what they are of a sequence that takes several calls
            self.readouts: dict[str, str] = _readouts(json.loads(self.metadata["elm_neuro.readouts"]))
            if self.form not in FORMS:
                raise ValueError(f"form {self.form!r}")
            self.num_steps: int | None = self.options.get("num_steps")
            if (self.form == "unrolled") != (isinstance(self.num_steps, int) and self.num_steps > 0):
                raise ValueError(f"num_steps {self.num_steps!r} of the form {self.form!r}")
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"path must be a model of elm_neuro.export, got {self.path} without its metadata ({error!r})"
            ) from error
        if cuda_graph and self.form == "sequence":
            raise ValueError('cuda_graph needs a model of the form "step" or "unrolled", which have no loop inside')
        inputs = {value.name: value for value in self.session.get_inputs()}
        outputs = {value.name: value for value in self.session.get_outputs()}
        names, after = [*outputs], {f"{name}_next" for name in inputs}
        self.takes_lengths = "lengths" in inputs
        states = [name for name in inputs if name not in ("x", "lengths")]
        self.output_names = [name for name in names if name not in after]
        kinds = {outputs[name].type for name in names} | {inputs[name].type for name in states}
        sizes = [size for name in states for size in inputs[name].shape[1:]]
        if (
            "x" not in inputs
            or inputs["x"].type not in FRAMES
            or not set(self.readouts) <= set(self.output_names)
            or any(f"{name}_next" not in names for name in states)
            or len(kinds) != 1
            or not kinds <= set(DTYPES)
            or not all(isinstance(size, int) and 0 < size <= LARGEST_STATE for size in sizes)
        ):
            described = ", ".join(f"{name} {value.type} {value.shape}" for name, value in (inputs | outputs).items())
            raise ValueError(
                f"path must be a model of elm_neuro.export, got inputs {[*inputs]} and outputs {names} in {self.path}: "
                f"{described}"
            )
        self.x_dtype = FRAMES[inputs["x"].type]
        self.dtype = DTYPES[kinds.pop()]  # of outputs and states
        self.state_shapes = {name: tuple(inputs[name].shape[1:]) for name in states}
        self._names, self._x = names, tuple(inputs["x"].shape)
        self._shapes = {name: tuple(value.shape) for name, value in outputs.items()}
        self.batch_first: bool = self.options.get("batch_first", True)

    def initial_state(self, batch: int | None = None) -> State:
        """Zeros, one array (batch, ...) a state; by default of the batch that the model was exported for, or else 1."""
        batch = (self.options.get("batch_size") or 1) if batch is None else batch
        if isinstance(batch, bool) or not hasattr(batch, "__index__") or not 0 <= int(batch) <= LARGEST_STATE:
            raise ValueError(f"batch must be a number of samples, got {batch!r:.60}")
        return {name: np.zeros((batch, *shape), self.dtype) for name, shape in self.state_shapes.items()}

    def step(self, x: Any, state: State | None = None) -> tuple[State, State]:
        """One time step.

        Args:
            x: (batch, input_size); a batch of none gives outputs of none. Numbers of any dtype that are the same in
                the model's: a model with ``input_dtype="uint8"`` takes whole numbers from 0 to 255.
            state: before the step; None for zeros. It is not changed.

        Returns:
            Outputs by name, each (batch, ...), and the state after the step.

        Raises:
            ValueError: the model is not of the form "step", or `x` or a state has the wrong shape, dtype or a value
                that is not finite.
        """
        if self.form != "step":
            raise ValueError(f'step needs a model of the form "step", got {self.form!r}: use run')
        x = self._array("x", x, self._x, self.x_dtype)
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
            Outputs by name, each with the axes of `x`, and the state after the last step. A readout of the last step or
            of the mean has no time axis, and is that of all steps of this call.
        """
        time = 1 if self.batch_first else 0
        frames = self._array("x", x, self._whole(time), self.x_dtype)
        batch, num_steps = frames.shape[1 - time], frames.shape[time]
        width = {"step": 1, "sequence": max(num_steps, 1), "unrolled": self.num_steps or 1}[self.form]
        if num_steps % width:
            raise ValueError(f"x must have a multiple of the model's {width} steps, got {num_steps}")
        if num_steps > width and (whole := [name for name, kind in self.readouts.items() if kind == "whole"]):
            raise ValueError(f"x must have the model's {width} steps for {whole[0]}, a whole sequence, got {num_steps}")
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
        ends = np.full(batch, num_steps) if ends is None else ends
        outputs = {}
        for name in self.output_names:
            values = [found[name] for found in pieces]
            if name in self.readouts:
                outputs[name] = _of_all(values, ends, width, mean=self.readouts[name] == "mean")
            else:
                outputs[name] = (np.stack if self.form == "step" else np.concatenate)(values, axis=time)
        return outputs, state or {}

    def stream(self, frames: Any, state: State | None = None) -> Iterator[tuple[State, State]]:
        """Steps one after the other as `frames` gives them, each (batch, input_size): what :meth:`step` returns."""
        for x in frames:
            outputs, state = self.step(x, state)
            yield outputs, state

    def bound(self, x: Any, lengths: Any = None) -> BoundNeuron:
        """The model over buffers that stay where they are: nothing is copied between calls, neither frames nor states.

        Args:
            x: the buffer of the frames, of the model's `x_dtype` and contiguous: a tensor of torch on the device of the
                provider or on the CPU, or an array. Its shape is that of every call: (batch, input_size) for the form
                "step", else as for :meth:`run`; an unrolled model takes its own number of steps. An array for CUDA or
                TensorRT is copied to the device; of a tensor that lies elsewhere than the provider computes, each call
                copies frames and states, and `cuda_graph` takes none.
            lengths: as for :meth:`run`; the same in every call.

        Raises:
            ValueError: `x` has another shape or dtype, or does not lie in one piece.
        """
        return BoundNeuron(self, x, lengths)

    def _whole(self, time: int) -> tuple[int | str, ...]:
        """Shape of a sequence of any length."""
        if self.form == "step":
            return (*self._x[:1], "time", *self._x[1:]) if time else ("time", *self._x)
        return tuple("time" if axis == time else size for axis, size in enumerate(self._x))

    def _nothing(self, time: int, batch: int, num_steps: int) -> State:
        """Outputs where there are no steps or no samples, of which onnxruntime's operators make errors and worse."""
        if self.readouts and num_steps == 0:
            raise ValueError(f"x must have at least one step for {next(iter(self.readouts))}, got 0")
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
        least = 1 if self.readouts else 0  # of no steps there is no last one and no mean
        if array.size and not least <= array.min() <= array.max() <= num_steps:
            raise ValueError(f"lengths must be from {least} to {num_steps}, got {array.min()} to {array.max()}")
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
        if self.cuda_graph:
            raise ValueError(
                "a neuron with cuda_graph=True runs by bound(x): a graph replays calls on the same buffers"
            )
        fed = self._checked(state, x.shape[batch_axis])
        more = {} if lengths is None else {"lengths": lengths}
        found = dict(zip(self._names, self.session.run(self._names, {"x": x, **fed, **more}), strict=True))
        return {name: found[name] for name in self.output_names}, {name: found[f"{name}_next"] for name in fed}

    def _array(self, name: str, value: Any, shape: Sequence[int | str], dtype: Any = None) -> np.ndarray[Any, Any]:
        """`value` as an array of `dtype`, or the model's, where it has this shape; words stand for any size."""
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{name} must hold numbers, got {array.dtype}")
        array = _whole_bytes(name, array, dtype) if dtype in BYTES else np.ascontiguousarray(array, dtype=self.dtype)
        if array.ndim != len(shape) or any(
            isinstance(size, int) and size != got for size, got in zip(shape, array.shape, strict=True)
        ):
            raise ValueError(f"{name} must have shape ({', '.join(map(str, shape))}), got {array.shape}")
        if self.check and dtype not in BYTES and not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).sum())} values that are not")
        return array

    def __repr__(self) -> str:
        states = ", ".join(f"{name} {shape}" for name, shape in self.state_shapes.items())
        return (
            f"OnnxNeuron({self.path!r}, form={self.form!r}, x {self._x}, states {states}, "
            f"outputs {self.output_names}, {self.providers[0]})"
        )


def cuda_settings(*, device: int, tf32: bool, cuda_graph: bool) -> dict[str, str]:
    """Options of the CUDA provider, whose own default is TF32."""
    return {"device_id": str(device), "use_tf32": str(int(tf32)), "enable_cuda_graph": str(int(cuda_graph))}


def _readouts(said: Any) -> dict[str, str]:
    """What the metadata say of readouts; earlier files have a list of names and do not say of what kind they are."""
    found = dict.fromkeys(said, "whole") if isinstance(said, list) else said
    if not isinstance(found, dict) or not all(kind in READOUTS for kind in found.values()):
        raise ValueError(f"readouts {said!r}")
    return found


def _of_all(
    values: list[np.ndarray[Any, Any]], ends: np.ndarray[Any, Any], width: int, *, mean: bool
) -> np.ndarray[Any, Any]:
    """A readout of all steps of each sample, from those of every `width` steps: the mean, or that of the last step."""
    records, begins = np.stack(values), width * np.arange(len(values))[:, None]  # (call, batch, ...)
    steps = np.clip(ends - begins, 0, width)  # of each sample in each call
    found: np.ndarray[Any, Any] = records[(steps > 0).sum(0) - 1, np.arange(records.shape[1])]
    if mean:
        share = (steps / ends).astype(records.dtype).reshape(*steps.shape, *[1] * (records.ndim - 2))
        found = np.where(share > 0, records * share, 0.0).sum(0, dtype=records.dtype)  # a call without steps gives NaN
    return found


def _whole_bytes(name: str, array: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    """`array` as bytes, which must be able to hold its numbers."""
    with np.errstate(invalid="ignore"):
        found = np.ascontiguousarray(array, dtype=dtype)
    if array.dtype != found.dtype and (found != array).any():
        limits = np.iinfo(dtype)
        raise ValueError(f"{name} must hold whole numbers from {limits.min} to {limits.max}, got others")
    return found


class BoundNeuron:
    """A neuron over buffers of its own, made by :meth:`OnnxNeuron.bound`. It is one stream of calls: states stay
    inside, on the device, and go on from call to call.

    States have two places, which a call reads and writes by turns: none is ever copied, and the addresses of a call are
    those of the last but one, as CUDA graphs need.
    """

    def __init__(self, neuron: OnnxNeuron, x: Any, lengths: Any = None) -> None:
        self.neuron = neuron
        time = 1 if neuron.batch_first else 0
        step = neuron.form == "step"
        shape = neuron._x if step else neuron._whole(time)
        got, dtype = tuple(x.shape), str(x.dtype).removeprefix("torch.")
        if len(got) != len(shape) or any(isinstance(n, int) and n != m for n, m in zip(shape, got, strict=True)):
            raise ValueError(f"x must have shape ({', '.join(map(str, shape))}), got {got}")
        if dtype != np.dtype(neuron.x_dtype).name:
            raise ValueError(f"x must hold {np.dtype(neuron.x_dtype).name} as the model does, got {dtype}")
        if not (x.flags.c_contiguous if isinstance(x, np.ndarray) else x.is_contiguous()):
            raise ValueError("x must be contiguous: the model reads it where it lies")
        batch = got[0] if step else got[1 - time]
        steps = 1 if step else got[time]
        if 0 in got or steps != (neuron.num_steps or steps):
            raise ValueError(f"x must have samples and {neuron.num_steps or 'at least 1'} steps, got shape {got}")
        ends = neuron._lengths(lengths, batch, steps)
        on_device = isinstance(x, np.ndarray) and neuron.providers[0] in (CUDA, TENSORRT)
        self.x = onnxruntime.OrtValue.ortvalue_from_numpy(x, "cuda", neuron.device) if on_device else x
        # onnxruntime copies inputs that lie elsewhere than it computes when they are bound, not when it runs
        there = ("cuda", neuron.device) if neuron.providers[0] in (CUDA, TENSORRT) else ("cpu", 0)
        known = neuron.providers[0] in SHORT.values()
        self._elsewhere = not on_device and (not known or _place(self.x, neuron.device)[:2] != there)
        if neuron.cuda_graph and self._elsewhere:
            raise ValueError(f"x must be on cuda:{neuron.device} for cuda_graph, got a tensor on {x.device}")
        lead = (batch,) if step else (batch, steps) if time else (steps, batch)
        shapes = {name: (*lead, *neuron._shapes[name][len(lead) :]) for name in neuron.output_names}
        shapes |= {name: (batch, *neuron._shapes[name][1:]) for name in neuron.readouts}
        self.outputs = {name: self._empty(shape) for name, shape in shapes.items()}
        self._lengths = ends  # it must live as long as it is bound
        self._states = [
            {name: self._empty((batch, *shape)) for name, shape in neuron.state_shapes.items()} for _ in range(2)
        ]
        self._bindings = [self._binding(*pair) for pair in (self._states, self._states[::-1])]
        self._options = [_replayed() for _ in range(2)] if neuron.cuda_graph else [None, None]
        self._turn = 0
        self.reset()

    @property
    def state(self) -> dict[str, Any]:
        """After the last call, by name: of the kind of `x`. It is overwritten by the call after the next."""
        return self._states[self._turn]

    def reset(self, state: dict[str, Any] | None = None) -> None:
        """Begin a new sequence: from zeros, or from the arrays or tensors of `state`."""
        own = self.state
        if state is not None and set(state) != set(own):
            raise ValueError(f"state must hold {sorted(own)}, got {sorted(state)}")
        for name, buffer in own.items():
            zeros = np.zeros(_shape(buffer), self.neuron.dtype)
            given = zeros if state is None else state[name]
            _fill(f"state {name}", buffer, given, self.neuron.dtype, check=self.neuron.check)

    def run(self, x: Any = None) -> dict[str, Any]:
        """Outputs by name, of the kind of `x`, each in the same place in every call: what the next call overwrites.

        Args:
            x: copied into the buffer first; None for what it holds now.
        """
        if x is not None:
            _fill("x", self.x, x, self.neuron.x_dtype, check=self.neuron.check)
        if (torch := sys.modules.get("torch")) is not None and getattr(self.x, "is_cuda", False):
            torch.cuda.current_stream(self.x.device).synchronize()  # onnxruntime has a stream of its own
        if self._elsewhere:
            self._bindings[self._turn] = self._binding(self.state, self._states[1 - self._turn])
        self.neuron.session.run_with_iobinding(self._bindings[self._turn], self._options[self._turn])
        self._turn = 1 - self._turn
        return self.outputs

    def _empty(self, shape: tuple[int, ...]) -> Any:
        """A buffer for outputs or states of the kind of `x`, where `x` is."""
        if _is_ort(self.x):
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                shape, self.neuron.dtype, "cuda", self.neuron.device
            )
        if isinstance(self.x, np.ndarray):
            return np.empty(shape, self.neuron.dtype)
        return self.x.new_empty(shape, dtype=getattr(sys.modules["torch"], np.dtype(self.neuron.dtype).name))

    def _binding(self, before: dict[str, Any], after: dict[str, Any]) -> Any:
        binding = self.neuron.session.io_binding()
        inputs = {"x": self.x, **before} | ({} if self._lengths is None else {"lengths": self._lengths})
        for name, buffer in inputs.items():
            kind = {"lengths": np.int64, "x": self.neuron.x_dtype}.get(name, self.neuron.dtype)
            device, index, address = _place(buffer, self.neuron.device)
            binding.bind_input(name, device, index, kind, _shape(buffer), address)
        for name, buffer in {**self.outputs, **{f"{name}_next": state for name, state in after.items()}}.items():
            device, index, address = _place(buffer, self.neuron.device)
            binding.bind_output(name, device, index, self.neuron.dtype, _shape(buffer), address)
        return binding


_graphs = iter(range(1, sys.maxsize))  # numbers of recorded calls


def _replayed() -> Any:
    """Options of a call that is recorded under a number of its own."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(next(_graphs)))
    return options


def _is_ort(buffer: Any) -> bool:
    return isinstance(buffer, onnxruntime.OrtValue)


def _shape(buffer: Any) -> tuple[int, ...]:
    return tuple(buffer.shape() if _is_ort(buffer) else buffer.shape)


def _place(buffer: Any, number: int) -> tuple[str, int, int]:
    """Device, its number and the address of a buffer; `number` is that of the values of onnxruntime."""
    if isinstance(buffer, np.ndarray):
        return "cpu", 0, buffer.ctypes.data
    if _is_ort(buffer):
        device = buffer.device_name().lower()
        return device, 0 if device == "cpu" else number, buffer.data_ptr()
    return buffer.device.type, buffer.device.index or 0, buffer.data_ptr()


def _fill(name: str, buffer: Any, value: Any, dtype: Any, *, check: bool) -> None:
    shape = np.shape(value)
    if shape != _shape(buffer):
        raise ValueError(f"{name} must have shape {_shape(buffer)}, got {shape}")
    if not hasattr(value, "device") or isinstance(value, np.ndarray):  # to look at a tensor would wait for its device
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{name} must hold numbers, got {array.dtype}")
        if check and not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).sum())} values that are not")
    if dtype in BYTES:  # numbers of other kinds may not fit, and looking would wait for the device
        got = str(getattr(value, "dtype", "other numbers")).removeprefix("torch.")
        if got not in (np.dtype(dtype).name, "bool"):
            raise ValueError(f"{name} must hold {np.dtype(dtype).name} as the model does, got {got}")
    if _is_ort(buffer):
        buffer.update_inplace(np.ascontiguousarray(value, dtype=dtype))
    elif isinstance(buffer, np.ndarray):
        buffer[...] = value
    else:
        torch = sys.modules["torch"]
        with torch.no_grad():
            buffer.copy_(value if isinstance(value, torch.Tensor) else torch.as_tensor(value))
