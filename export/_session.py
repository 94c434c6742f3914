"""A model in onnxruntime, once it is known to be valid and to have the inputs and outputs of its module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.reference
import onnx.shape_inference
import onnxruntime
import torch
from torch import Tensor

from elm_neuro.export._model import Built, declared
from elm_neuro.export._nodes import ExportError
from elm_neuro.export.onnx_neuron import CUDA, SHORT, cuda_settings

REFERENCE = "onnx's reference evaluator"

Feed = dict[str, np.ndarray[Any, Any]]
Run = Callable[[Feed], dict[str, np.ndarray[Any, Any]]]


class Session:
    """A model that is called with tensors (batch, time, ...), whatever its form and layout.

    Raises:
        ExportError: onnx's full check or onnxruntime refuses it, or its inputs and outputs are not the module's.
    """

    def __init__(self, model: bytes | Path, built: Built, provider: str = "cpu") -> None:
        self.built = built
        try:
            self.opset, found = _checked(model)
            self._runs, self.runtime = _runner(model, built, provider)
        except ExportError:
            raise
        except Exception as error:  # onnx and onnxruntime have a dozen kinds
            raise ExportError(
                f"the model must pass onnx's checker and load in onnxruntime, got {type(error).__name__}: {error}"
            ) from error
        wanted = declared(built)
        if found != wanted:
            raise ExportError(f"the model must have the inputs and outputs of the module, {_difference(wanted, found)}")

    def run(self, x: Tensor, states: dict[str, Tensor], lengths: Tensor | None = None) -> dict[str, Tensor]:
        """Outputs by name, (batch, [time,] ...), and the next states; `x` has the dtype of the model's input."""
        fed = {name: state.cpu().numpy() for name, state in states.items()}
        if self.built.sequential:
            return self._sequence(x, fed if lengths is None else fed | {"lengths": lengths.numpy()})
        steps: dict[str, list[Tensor]] = {name: [] for name in self.built.outputs}
        for x_t in x.unbind(1):
            after = self._run({"x": x_t.numpy(), **fed})
            fed = {name: after[f"{name}_next"] for name in fed}
            for name, records in steps.items():
                records.append(torch.from_numpy(after[name]))
        outputs = {name: torch.stack(records, dim=1) for name, records in steps.items()}
        return outputs | {f"{name}_next": torch.from_numpy(value) for name, value in fed.items()}

    def _run(self, fed: Feed) -> Feed:
        """One call of the model."""
        try:
            return self._runs(fed)
        except Exception as error:
            raise ExportError(
                f"the model must run in {self.runtime}, got {type(error).__name__} for inputs of the shapes "
                f"{ {name: value.shape for name, value in fed.items()} }: {error}"
            ) from error

    def _sequence(self, x: Tensor, fed: Feed) -> dict[str, Tensor]:
        batch_first = self.built.options.batch_first
        frames = x if batch_first else x.transpose(0, 1)
        values = self._run({"x": np.ascontiguousarray(frames.numpy()), **fed})
        outputs = {name: torch.from_numpy(value) for name, value in values.items()}
        if not batch_first:
            outputs |= {name: outputs[name].transpose(0, 1) for name in self.built.outputs if self.built.timed(name)}
        return outputs


def _checked(model: bytes | Path) -> tuple[int, dict[str, tuple[int, tuple[int | str, ...]]]]:
    """Version of the operators; element type and shape of every input and output."""
    loaded = (
        onnx.load_model_from_string(model)
        if isinstance(model, bytes)
        else onnx.load(str(model), load_external_data=False)
    )
    onnx.checker.check_model(loaded if isinstance(model, bytes) else str(model), full_check=True)
    if isinstance(model, bytes):
        onnx.shape_inference.infer_shapes(loaded, check_type=True, strict_mode=True, data_prop=True)
    values = {
        f"{side} {value.name}": (
            value.type.tensor_type.elem_type,
            tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
        )
        for side, some in (("input", loaded.graph.input), ("output", loaded.graph.output))
        for value in some
    }
    return next(entry.version for entry in loaded.opset_import if entry.domain == ""), values


def _difference(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    def words(values: dict[str, Any]) -> str:
        return (
            ", ".join(
                f"{name} {onnx.TensorProto.DataType.Name(kind)} {shape}" for name, (kind, shape) in values.items()
            )
            or "none"
        )

    missing, other = ({k: v for k, v in a.items() if b.get(k) != v} for a, b in ((wanted, found), (found, wanted)))
    return f"{words(missing)}; got {words(other)}"


def _runner(model: bytes | Path, built: Built, provider: str) -> tuple[Run, str]:
    names, content = built.results, model if isinstance(model, bytes) else str(model)
    on_cpu = "CPUExecutionProvider"
    name, there = SHORT.get(provider, provider), onnxruntime.get_available_providers()
    if name not in there:
        raise ExportError(f"provider must be of those in this onnxruntime, {there}, got {name}")
    settings = {CUDA: cuda_settings(device=0, tf32=False, cuda_graph=False)}
    if built.options.precision == "bfloat16":
        if name == on_cpu and CUDA in there:  # the CPU has no kernels for it
            name = CUDA
        if name == on_cpu:
            loaded = onnx.load_model_from_string(content) if isinstance(content, bytes) else content
            evaluator = onnx.reference.ReferenceEvaluator(loaded)
            return lambda feed: dict(zip(names, evaluator.run(names, feed), strict=True)), REFERENCE
    providers = [(one, settings.get(one, {})) for one in dict.fromkeys((name, on_cpu))]
    session = onnxruntime.InferenceSession(content, _quiet(), providers=providers)
    if session.get_providers()[0] != name:  # onnxruntime falls back to the CPU without a word
        raise ExportError(f"provider must work here, got {name}, which onnxruntime could not start; its log says why")
    return lambda feed: dict(
        zip(names, session.run(names, feed), strict=True)
    ), "onnxruntime" if name == on_cpu else f"onnxruntime ({name})"


def _quiet() -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options
