"""Every operator of the exported graphs is one that GPU runtimes have: a list taken from their own support tables,
checked against the graphs.

Nothing here runs on a GPU. What the lists say:

- onnxruntime's CUDA provider has every operator of all three forms, in float32, float64 and float16 products, at opsets
  17 and 18. From opset 19 on the operators in NO_CUDA_KERNEL have a newer version than its kernel, and onnxruntime
  takes a kernel without an upper bound for its own version only: these nodes run on the CPU. For a Scan that is the
  whole loop.
- TensorRT 10 has every operator of all three forms for opsets 9 to 20; TensorRT 11 takes opsets up to 25. A Scan
  becomes a loop of its own and is supported in float32, float16 and bfloat16; onnxruntime does not record CUDA graphs
  of models with control flow. DOUBLE is cast to float.
- int8 is that of the stored matrices alone, which a Cast and a Mul unpack before anything else: both are constants by
  the time a model runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from elm_neuro import ALIF, ELM, LIF, BranchELM, SpikingELM  # noqa: E402
from elm_neuro.export import to_onnx  # noqa: E402

FORMS = ("step", "sequence", "unrolled")
FLOATS = {"float", "double", "float16"}
ALL_FLOATS = FLOATS | {"bfloat16"}
INTEGERS = {"int32", "int64"}
ANY = ALL_FLOATS | INTEGERS | {"bool"}
STORED = ANY | {"int8", "uint8"}

# Kernels of the CUDA provider: first and last version of the operator (None: no upper bound), element types of the
# data. Source: github.com/microsoft/onnxruntime at 001d12d, docs/OperatorKernels.md, "Operators implemented by
# CUDAExecutionProvider", ai.onnx; of every operator the rows from version 11 on, of the types those that the exported
# graphs can have.
Kernels = list[tuple[int, int | None, set[str]]]
CUDA: dict[str, Kernels] = {
    "Add": [(14, None, ALL_FLOATS | INTEGERS)],
    "Cast": [(13, 18, STORED), (19, 20, STORED), (21, 22, STORED), (23, None, STORED)],
    "Concat": [(13, None, ANY)],
    "Div": [(14, None, ALL_FLOATS | INTEGERS)],
    "Gather": [(13, None, ANY)],
    "Gemm": [(13, None, ALL_FLOATS)],
    "Greater": [(13, None, FLOATS | INTEGERS)],
    "Identity": [(14, 18, ANY), (19, None, ANY)],
    "Less": [(13, None, FLOATS | INTEGERS)],
    "MatMul": [(13, None, ALL_FLOATS)],
    "Max": [(13, None, ALL_FLOATS | INTEGERS)],
    "Mod": [(13, None, ALL_FLOATS | INTEGERS)],
    "Mul": [(14, None, ALL_FLOATS | INTEGERS)],
    "Pad": [(13, 17, FLOATS | {"bool"}), (18, None, FLOATS | {"bool"})],
    "Pow": [(15, None, ALL_FLOATS | INTEGERS)],
    "Range": [(11, None, {"float", "double"} | INTEGERS)],
    "ReduceMax": [(1, 17, FLOATS | INTEGERS), (18, None, FLOATS | INTEGERS)],
    "ReduceMean": [(1, 17, FLOATS | {"int32"}), (18, None, FLOATS | {"int32"})],
    "Relu": [(14, None, ALL_FLOATS)],
    "Reshape": [(14, 18, ANY), (19, 20, ANY), (21, 22, ANY), (23, None, ANY)],
    "Scan": [(16, 18, ANY), (19, None, ANY)],
    "Shape": [(15, 18, ANY), (19, 20, ANY), (21, 22, ANY), (23, None, ANY)],
    "Sigmoid": [(13, None, ALL_FLOATS)],
    "Slice": [(13, None, ANY)],
    "Split": [(13, 17, ANY), (18, None, ANY)],
    "Squeeze": [(13, 20, ANY), (21, 22, ANY), (23, None, ANY)],
    "Sub": [(14, None, ALL_FLOATS | INTEGERS)],
    "Tanh": [(13, None, ALL_FLOATS)],
    "Transpose": [(13, 20, ANY), (21, 22, ANY), (23, None, ANY)],
    "Unsqueeze": [(13, 20, ANY), (21, 22, ANY), (23, None, ANY)],
    "Where": [(16, None, ALL_FLOATS | INTEGERS)],
}
NO_CUDA_KERNEL: dict[int, dict[str, set[str]]] = {  # by opset and form
    17: {},
    18: {},
    20: {"step": {"ReduceMax"}, "sequence": {"Pad", "ReduceMax"}, "unrolled": {"Pad", "ReduceMax"}},
    21: {"step": {"ReduceMax"}, "sequence": {"Identity", "Pad", "ReduceMax", "Scan"}, "unrolled": {"Pad", "ReduceMax"}},
}

# Operators of TensorRT and the types it gives them ("FP32, FP16, BF16" and further).
# Source: github.com/onnx/onnx-tensorrt at 96e7811, docs/operators.md, "TensorRT 10.0 supports operators in the
# inclusive range of opset 9 to opset 20"; opsets 9 to 25 for TensorRT 11:
# docs.nvidia.com/deeplearning/tensorrt/latest/reference/onnx-opset-guide.html.
RT_FLOATS = {"float", "float16", "bfloat16"}
RT_NUMBERS = RT_FLOATS | INTEGERS
RT_ANY = RT_NUMBERS | {"bool"}
TENSORRT: dict[str, set[str]] = {
    **dict.fromkeys(
        [
            "Add",
            "Div",
            "Greater",
            "Less",
            "Max",
            "Mod",
            "Mul",
            "Pad",
            "Range",
            "ReduceMax",
            "ReduceMean",
            "Relu",
            "Sub",
        ],
        RT_NUMBERS,
    ),
    "Cast": RT_ANY | {"uint8"},
    **dict.fromkeys(
        [
            "Concat",
            "Gather",
            "Identity",
            "Reshape",
            "Shape",
            "Slice",
            "Split",
            "Squeeze",
            "Transpose",
            "Unsqueeze",
            "Where",
        ],
        RT_ANY,
    ),
    **dict.fromkeys(["Gemm", "MatMul", "Pow", "Scan", "Sigmoid", "Tanh"], RT_FLOATS),
}
TENSORRT_OPSETS = {10: range(9, 21), 11: range(9, 26)}
CONSTANT_AXES = {
    "Pad": 3,
    "ReduceMax": 1,
    "ReduceMean": 1,
    "Slice": 3,
    "Squeeze": 1,
    "Unsqueeze": 1,
}  # input that must be an initializer

SMALL: dict[str, Any] = {"num_branch": 3, "num_synapse_per_branch": 4}
NETWORKS: dict[str, Any] = {
    "ELM": lambda: ELM(5, 2, 4),
    "ELM, wide": lambda: ELM(30, 2, 4),  # its filter runs behind the first layer
    "ELM, linear": lambda: ELM(5, 2, 4, num_mlp_layers=0),
    "BranchELM": lambda: BranchELM(8, 2, 4, **SMALL),
    "BranchELM, tanh branches": lambda: BranchELM(8, 2, 4, **SMALL, branch_activation="tanh", activation="silu"),
    "BranchELM, tau per branch": lambda: BranchELM(8, 2, 4, **SMALL, tau_s=[2.0, 5.0, 9.0], num_mlp_layers=2),
    "population": lambda: BranchELM(8, 2, 4, **SMALL, num_neuron=3, flatten_output=True),
    "spiking": lambda: SpikingELM(BranchELM(8, 2, 4, **SMALL), threshold=0.3, graded_factor=2.0),
    "spiking, subtract": lambda: SpikingELM(BranchELM(8, 2, 4, **SMALL, num_neuron=3), threshold=0.3, reset="subtract"),
    "spiking, zero": lambda: SpikingELM(BranchELM(8, 2, 4, **SMALL), threshold=0.3, reset="zero"),
    "LIF": lambda: LIF(5, 3),
    "ALIF": lambda: ALIF(5, 3, recurrent=True),
    "ALIF, latency": lambda: ALIF(5, 3, recurrent=True, latency=3.0),
    "mixed": lambda: nn.Sequential(
        nn.Linear(6, 5), nn.SiLU(), LIF(5, 8), SpikingELM(BranchELM(8, 4, 4, **SMALL)), LIF(4, 3), nn.Linear(3, 2)
    ),
}


class Use(NamedTuple):
    """An operator of a graph, its version and the element types of its data."""

    op: str
    version: int
    types: frozenset[str]
    constant_axes: bool


def uses(model: Any, opset: int) -> Iterator[Use]:
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    yield from _uses(inferred.graph, opset, {}, set())


def _uses(graph: Any, opset: int, outer: dict[str, int], constants: set[str]) -> Iterator[Use]:
    kinds = outer | {
        value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)
    }
    kinds |= {value.name: value.data_type for value in graph.initializer}
    constants = constants | {value.name for value in graph.initializer}
    for node in graph.node:
        data = node.input[1:] if node.op_type == "Where" else node.input[:1]
        types = frozenset(onnx.TensorProto.DataType.Name(kinds[name]).lower() for name in data)
        place = CONSTANT_AXES.get(node.op_type)
        axes = place is None or len(node.input) <= place or node.input[place] in constants
        version = onnx.defs.get_schema(node.op_type, opset, node.domain).since_version
        yield Use(node.op_type, version, types, axes)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _uses(attribute.g, opset, kinds, constants)


def exported(
    folder: Path,
    name: str,
    form: str,
    opset: int,
    *,
    precision: str = "float32",
    dtype: torch.dtype = torch.float32,
    lengths: bool = False,
    input_dtype: str | None = None,
) -> list[Use]:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "form": form,
        "num_steps": 37 if form == "unrolled" else None,
        "opset": opset,
        "precision": precision,
        "lengths": lengths,
        "input_dtype": input_dtype,
    }
    to_onnx(NETWORKS[name]().eval().to(dtype), folder / "model.onnx", **options, verify=False)
    return list(uses(onnx.load(folder / "model.onnx"), opset))


def in_cuda(use: Use) -> bool:
    """As onnxruntime's registry matches: a kernel without an upper bound serves the version it was written for."""
    return any(
        use.types <= types and (first == use.version or (last is not None and first <= use.version <= last))
        for first, last, types in CUDA.get(use.op, [])
    )


@pytest.mark.parametrize("opset", sorted(NO_CUDA_KERNEL))
@pytest.mark.parametrize("form", FORMS)
def test_every_operator_has_a_cuda_kernel_or_is_named_as_having_none(tmp_path: Path, form: str, opset: int) -> None:
    missing = {use.op for name in NETWORKS for use in exported(tmp_path, name, form, opset) if not in_cuda(use)}
    assert missing == NO_CUDA_KERNEL[opset].get(form, set())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("float16", torch.float32),
        ("bfloat16", torch.float32),
        ("int8", torch.float32),
        ("float32", torch.float64),
    ],
)
def test_lower_and_double_precision_have_cuda_kernels_too(
    tmp_path: Path, form: str, precision: str, dtype: torch.dtype
) -> None:
    found = [
        use
        for name in ("BranchELM", "population", "mixed")
        for use in exported(tmp_path, name, form, 18, precision=precision, dtype=dtype)
    ]
    assert {use.op for use in found if not in_cuda(use)} == set()


@pytest.mark.parametrize("form", ["sequence", "unrolled"])
def test_models_that_take_lengths_have_kernels_too(tmp_path: Path, form: str) -> None:
    found = [use for name in NETWORKS for use in exported(tmp_path, name, form, 18, lengths=True)]
    assert {use.op for use in found if not in_cuda(use)} == set()
    assert {use.op for use in found if not use.types <= TENSORRT.get(use.op, set())} == set()
    assert {use.op for use in found if not use.constant_axes} == set()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("input_dtype", ["uint8", "int8"])
def test_frames_of_bytes_have_kernels_too(tmp_path: Path, form: str, input_dtype: str) -> None:
    found = [use for name in NETWORKS for use in exported(tmp_path, name, form, 18, input_dtype=input_dtype)]
    assert {use.op for use in found if not in_cuda(use)} == set()
    beyond = {use.types for use in found if not use.types <= TENSORRT.get(use.op, set())}
    assert beyond == (set() if input_dtype == "uint8" else {frozenset({"int8"})})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_operator_is_one_of_tensorrt_with_constant_axes(tmp_path: Path, name: str, form: str) -> None:
    found = exported(tmp_path, name, form, max(TENSORRT_OPSETS[10]))
    assert {use.op for use in found if not use.types <= TENSORRT.get(use.op, set())} == set()
    assert {use.op for use in found if not use.constant_axes} == set()


def test_only_the_sequence_form_has_control_flow(tmp_path: Path) -> None:
    for name in NETWORKS:
        for form in ("step", "unrolled"):
            assert not {"Scan", "Loop", "If"} & {use.op for use in exported(tmp_path, name, form, 18)}
        assert {"Scan", "Loop", "If"} & {use.op for use in exported(tmp_path, name, "sequence", 18)} <= {"Scan"}


def test_the_lists_hold_no_operator_that_is_not_used(tmp_path: Path) -> None:
    used = {use.op for name in NETWORKS for form in FORMS for use in exported(tmp_path, name, form, 18)}
    assert used | {"ReduceMean"} == set(CUDA) == set(TENSORRT)  # ReduceMean is the classifiers' readout
