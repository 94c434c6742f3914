"""The check of a model: onnxruntime beside torch, over random lengths, batches and states."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.checker
import onnx.shape_inference
import onnxruntime
import torch
from torch import Tensor

from elm_neuro.export._graph import ExportError
from elm_neuro.export._model import Built, shapes_of

NUM_STEPS = 32
CHUNK = 16  # steps after which the states of torch are taken up, so that chaos does not look like a fault
# Error allowed relative to the largest value: sums of about a thousand terms in another order.
TOLERANCES = {torch.float32: 5e-6, torch.float64: 1e-13}
LOWER = {"float16": 1e-2, "bfloat16": 1e-1, "int8": 1.0}  # of lower precisions; what it was is in the report
NEAR = 20.0  # tolerances from its threshold within which a spike may fall either way
KINDS = {torch.float32: "tensor(float)", torch.float64: "tensor(double)"}

Feed = dict[str, np.ndarray[Any, Any]]
Run = Callable[[Feed], dict[str, np.ndarray[Any, Any]]]


class VerifyReport(NamedTuple):
    """How far onnxruntime and torch are apart."""

    errors: dict[str, float]  # largest absolute difference of each output
    tolerances: dict[str, float]  # what was allowed
    num_steps: int  # steps compared, over all sequences
    opset: int
    num_undecided: int = 0  # steps left out, for a spike so near its threshold that rounding decides, or after one
    form: str = "step"
    precision: str = "float32"
    runtime: str = "onnxruntime"


@torch.no_grad()
def compare(model: bytes | Path, built: Built, *, num_steps: int, seed: int) -> VerifyReport:
    """Run a model beside the module it was built from.

    Args:
        model: the file, or what is in it.
        built: what it should compute.
        num_steps: length of the longest sequence; the form "unrolled" has its own.
        seed: of the random inputs and states.

    Raises:
        ExportError: the file is not a model of this module, or an output is off by more than the tolerance.
    """
    session = Session(model, built)
    module, options, dtype = built.module, built.options, built.dtype
    # torch's own rounding error, from the same network in the other precision
    other = torch.float64 if dtype == torch.float32 else torch.float32
    share = min(1.0, torch.finfo(dtype).eps / torch.finfo(other).eps)
    twin = copy.deepcopy(module).to(other)
    generator = torch.Generator().manual_seed(seed)
    device = next(module.parameters()).device
    relative = LOWER.get(options.precision, TOLERANCES[dtype])
    errors, tolerances = dict.fromkeys(built.results, 0.0), dict.fromkeys(built.results, relative)
    total, undecided = 0, 0
    cases = (
        ((1, 0.05), (2, 0.5), (5, 1.0))
        if options.batch_size is None
        else ((options.batch_size, 0.05), (options.batch_size, 1.0))
    )
    for batch, density in cases:
        left = num_steps if batch == 1 else int(torch.randint(1, num_steps + 1, (), generator=generator))
        left = left if options.num_steps is None else options.num_steps
        states = {
            name: _random_state(batch, state, dtype, generator).to(device) for name, state in built.states.items()
        }
        while left:
            length = (
                int(torch.randint(1, min(left, CHUNK) + 1, (), generator=generator))
                if options.num_steps is None
                else left
            )
            left -= length
            x = torch.randn(batch, length, *built.x.shape, generator=generator)
            x = (x * (torch.rand(x.shape, generator=generator) < density)).to(dtype)
            found = session.run(x, states)
            expected, margin = built.run(module, x.to(device), states)
            rounded, _ = built.run(twin, x.to(device, other), {name: state.to(other) for name, state in states.items()})
            decided = (margin.expand(batch, length) > NEAR * relative).cumprod(1).bool()
            total, undecided = total + batch * length, undecided + int((~decided).sum())
            for name in built.results:
                one, want, two = (part.double().cpu() for part in (found[name], expected[name], rounded[name]))
                mask = _mask(
                    decided,
                    want,
                    timed=name in built.outputs and (built.outputs[name].time is not None or options.form == "step"),
                )
                if not bool(mask.any()):
                    continue
                want_ = want[mask]
                errors[name] = _larger(errors[name], float((one[mask] - want_).abs().max()))
                own = share * float((two[mask] - want_).abs().max())
                tolerances[name] = max(tolerances[name], relative * max(1.0, float(want_.abs().max())) + 10.0 * own)
            states = {name: expected[f"{name}_next"] for name in states}
    wrong = [
        f"{name} {error:.2e} (allowed {tolerances[name]:.2e})"
        for name, error in errors.items()
        if not error <= tolerances[name]
    ]
    if wrong:
        raise ExportError(
            f"{session.runtime} must compute what {type(module).__name__} computes, got outputs that are off by {', '.join(wrong)}"
        )
    return VerifyReport(
        errors, tolerances, total, session.opset, undecided, options.form, options.precision, session.runtime
    )


def _random_state(batch: int, state: Any, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(batch, *state.shape, generator=generator)
    return (drawn > 1.0).to(dtype) if state.spikes else drawn.to(dtype)


def _mask(decided: Tensor, value: Tensor, *, timed: bool) -> Tensor:
    """What can be compared: up to the first undecided step, or samples that have none."""
    return decided if timed else decided.all(1)


def _larger(one: float, other: float) -> float:
    return one if one > other or one != one else other  # a NaN stays


class Session:
    """A model in onnxruntime, once it is known to be valid and to have the inputs and outputs of the module."""

    def __init__(self, model: bytes | Path, built: Built) -> None:
        self.built = built
        try:
            self.opset, declared = _checked(model)
            self._run, self.runtime = _runner(model, built)
        except Exception as error:  # onnx and onnxruntime have a dozen kinds
            raise ExportError(
                f"the model must pass onnx's checker and load in onnxruntime, got {type(error).__name__}: {error}"
            ) from error
        wanted = _declared(built)
        if declared != wanted:
            raise ExportError(
                f"the model must have the inputs and outputs of the module, {_difference(wanted, declared)}"
            )

    def run(self, x: Tensor, states: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, (batch, time, ...), and the next states."""
        options = self.built.options
        fed = {name: state.cpu().numpy() for name, state in states.items()}
        if options.form != "step":
            frames = x if options.batch_first else x.transpose(0, 1)
            found = {
                name: torch.from_numpy(value)
                for name, value in self._run({"x": np.ascontiguousarray(frames.numpy()), **fed}).items()
            }
            if not options.batch_first:
                found |= {
                    name: found[name].transpose(0, 1)
                    for name, value in self.built.outputs.items()
                    if value.time is not None
                }
            return found
        steps: dict[str, list[Tensor]] = {name: [] for name in self.built.outputs}
        for x_t in x.unbind(1):
            after = self._run({"x": x_t.numpy(), **fed})
            fed = {name: after[f"{name}_next"] for name in fed}
            for name, records in steps.items():
                records.append(torch.from_numpy(after[name]))
        found = {name: torch.stack(records, dim=1) for name, records in steps.items()}
        return found | {f"{name}_next": torch.from_numpy(value) for name, value in fed.items()}


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


def _declared(built: Built) -> dict[str, tuple[int, tuple[int | str, ...]]]:
    return {name: (built.graph.kind, shape) for name, shape in shapes_of(built).items()}


def _difference(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    def words(values: dict[str, Any]) -> str:
        return (
            ", ".join(
                f"{name} {onnx.TensorProto.DataType.Name(kind)} {shape}" for name, (kind, shape) in values.items()
            )
            or "none"
        )

    return f"{words({k: v for k, v in wanted.items() if found.get(k) != v})}; got {words({k: v for k, v in found.items() if wanted.get(k) != v})}"


def _runner(model: bytes | Path, built: Built) -> tuple[Run, str]:
    names = built.results
    content = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(content, _quiet(), providers=["CPUExecutionProvider"])
    except Exception as error:
        if built.options.precision != "bfloat16" or "NOT_IMPLEMENTED" not in str(error):
            raise
        import onnx.reference  # this onnxruntime has no kernels for it on a CPU

        evaluator = onnx.reference.ReferenceEvaluator(
            onnx.load_model_from_string(content) if isinstance(content, bytes) else content
        )
        return lambda feed: dict(zip(names, evaluator.run(names, feed), strict=True)), "onnx's reference evaluator"
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True)), "onnxruntime"


def _quiet() -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options
