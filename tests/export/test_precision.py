"""Lower precision: what it may cost, what its check sees, and that a sample depends on nothing but itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from elm_neuro import ALIF, ELM, LIF, BranchELM, SpikingELM

onnx = pytest.importorskip("onnx")
onnx_reference = pytest.importorskip("onnx.reference")
onnxruntime = pytest.importorskip("onnxruntime")
export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)

BRANCHES: dict[str, Any] = {"num_branch": 3, "num_synapse_per_branch": 4}


def loud(layer: Any) -> Any:
    with torch.no_grad():
        layer.cell.weight *= 5.0
    return layer


def population() -> BranchELM:
    return BranchELM(6, 2, num_memory=4, num_neuron=3, flatten_output=True, **BRANCHES)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "BranchELM": lambda: BranchELM(6, 2, num_memory=4, **BRANCHES),
    "population": population,
    "SpikingELM": lambda: SpikingELM(ELM(6, 5, num_memory=10), threshold=0.02, reset="subtract"),
    "LIF": lambda: loud(LIF(6, 20)),
    "ALIF": lambda: loud(ALIF(6, 20, recurrent=True)),
    "mixed": lambda: nn.Sequential(
        nn.Linear(6, 10), nn.ReLU(), loud(LIF(10, 20)), ELM(20, 8, num_memory=10), nn.Linear(8, 5)
    ),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def written(module: nn.Module, path: Path, precision: str, form: str = "sequence") -> Any:
    return export.to_onnx(module, path, form=form, num_steps=20 if form == "unrolled" else None, precision=precision)


def matrices(model: Any) -> list[Any]:
    return [
        constant
        for constant in model.graph.initializer
        if constant.name.rstrip("_").endswith(".weight") and len(constant.dims) >= 2
    ]


def corrupted(path: Path, how: str) -> Iterator[str]:
    """Write the model again, with a fault, and say where it is."""
    model = onnx.load(str(path))
    if how == "zeroed":
        for constant in matrices(model):
            constant.raw_data = bytes(len(constant.raw_data))
        onnx.save(model, str(path))
        yield "everywhere"
        return
    for constant in matrices(model):
        before = constant.raw_data
        array = onnx.numpy_helper.to_array(constant)
        constant.raw_data = array[..., ::-1, :].tobytes()  # inputs in the other order
        onnx.save(model, str(path))
        yield constant.name
        constant.raw_data = before


@pytest.mark.grid(every=4)
@pytest.mark.parametrize("form", ["step", "sequence", "unrolled"])
@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_output_is_compared_and_lies_within_its_bound(
    tmp_path: Path, name: str, precision: str, form: str
) -> None:
    report = written(made(name), tmp_path / "model.onnx", precision, form)
    assert report.silent == ()
    assert report.compared["y"] >= 20
    for output, error in report.errors.items():
        assert error <= report.tolerances[output]
        assert report.compared[output] > 0 or form == "unrolled"
    assert report == export.verify(tmp_path / "model.onnx", made(name))


@pytest.mark.grid(every=3)
@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_zero_are_refused(tmp_path: Path, name: str, precision: str) -> None:
    path = tmp_path / "model.onnx"
    for form in ("step", "sequence", "unrolled") if precision == "int8" else ("sequence",):
        written(made(name), path, precision, form)
        for _ in corrupted(path, "zeroed"):
            with pytest.raises(export.ExportError, match=r"got outputs that are off by .*% of its (spread|spikes)"):
                export.verify(path, made(name))


@pytest.mark.grid(every=3)
@pytest.mark.parametrize(("name", "precision"), [*((name, "int8") for name in NETWORKS), ("mixed", "float16")])
def test_one_matrix_that_is_swapped_is_refused(tmp_path: Path, name: str, precision: str) -> None:
    path = tmp_path / "model.onnx"
    written(made(name), path, precision)
    found = []
    for place in corrupted(path, "swapped"):
        with pytest.raises(export.ExportError, match="got outputs that are off by"):
            export.verify(path, made(name))
        found.append(place)
    assert len(found) >= 1


def test_a_fault_of_the_graph_is_not_taken_for_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model in full precision is checked first."""
    lowering = pytest.importorskip("elm_neuro.export.lowerings._elm", exc_type=ImportError)
    monkeypatch.setattr(lowering, "TANH_SLOPE", 0.6667)
    with pytest.raises(export.ExportError, match=r"off by .*m_next \d\.\d\de-\d\d \(allowed"):
        written(made("BranchELM"), tmp_path / "model.onnx", "int8")


class Model:
    """A model over sequences (batch, time, input_size), from zero states unless told otherwise."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = self.session.get_inputs(), [value.name for value in self.session.get_outputs()]

    def __call__(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        names = [value.name for value in self.inputs if value.name != "x"]
        if state is None:
            state = {value.name: np.zeros([len(x), *value.shape[1:]], np.float32) for value in self.inputs[1:]}
        found = dict(zip(self.outputs, self.session.run(self.outputs, {"x": x.numpy(), **state}), strict=True))
        return found["y"], {name: found[f"{name}_next"] for name in names}


@pytest.mark.parametrize("name", NETWORKS)
def test_in_int8_a_sample_depends_on_itself_and_its_past_alone(tmp_path: Path, name: str) -> None:
    written(made(name), tmp_path / "model.onnx", "int8")
    model, x = Model(tmp_path / "model.onnx"), torch.randn(4, 30, 6)
    y, end = model(x)
    loud_batch = torch.cat([x[:1], 100.0 * x[1:]])
    np.testing.assert_allclose(model(loud_batch)[0][0], y[0], atol=1e-5)  # another batch
    np.testing.assert_allclose(model(x[:1])[0][0], y[0], atol=1e-5)  # no batch
    other_future = torch.cat([x[:, :20], 100.0 * torch.randn(4, 10, 6)], dim=1)
    np.testing.assert_allclose(model(other_future)[0][:, :20], y[:, :20], atol=1e-5)
    pieces, state = [], None
    for piece in x.split([1, 7, 22], dim=1):
        part, state = model(piece.contiguous(), state)
        pieces.append(part)
    np.testing.assert_allclose(np.concatenate(pieces, 1), y, atol=1e-5)
    assert state is not None
    for field, value in end.items():
        np.testing.assert_allclose(state[field], value, atol=1e-5)


def test_int8_takes_a_quarter_of_the_space_and_rounds_each_output_by_its_own_scale(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(400, 300))
    with torch.no_grad():
        net[0].weight[0] *= 1e-3  # a small output beside large ones
    sizes = {}
    for precision in ("float32", "int8"):
        export.to_onnx(net, tmp_path / "model.onnx", precision=precision)
        sizes[precision] = (tmp_path / "model.onnx").stat().st_size
    assert sizes["int8"] < 0.27 * sizes["float32"]
    model = onnx.load(str(tmp_path / "model.onnx"))
    (stored,) = matrices(model)
    assert stored.data_type == onnx.TensorProto.INT8
    scale = next(constant for constant in model.graph.initializer if constant.name.endswith(".scale"))
    restored = onnx.numpy_helper.to_array(stored) * onnx.numpy_helper.to_array(scale)
    weight = net[0].weight.detach().numpy().T
    assert (np.abs(restored - weight) <= 0.5001 * np.abs(weight).max(0) / 127).all()


def test_int8_has_no_operator_that_looks_at_a_whole_batch(tmp_path: Path) -> None:
    for form in ("step", "sequence", "unrolled"):
        written(made("mixed"), tmp_path / "model.onnx", "int8", form)
        names = {node.op_type for node in onnx.load(str(tmp_path / "model.onnx")).graph.node}
        assert not [name for name in names if "Dynamic" in name or "Quantize" in name]


def test_bfloat16_says_that_the_cpu_cannot_load_it(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match="onnxruntime's CPU provider cannot load: it was verified with onnx's reference"
    ):
        report = written(made("BranchELM"), tmp_path / "model.onnx", "bfloat16")
    assert report.runtime == "onnx's reference evaluator"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export.to_onnx(made("BranchELM"), tmp_path / "model.onnx", precision="bfloat16", verify=False)


def half_products(graph: Any) -> Iterator[list[int]]:
    """Axes of every Transpose that a product reads, directly or through a Cast, in loops too."""
    made_by = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "MatMul":
            behind = made_by.get(node.input[0])
            if behind is not None and behind.op_type == "Cast":
                behind = made_by.get(behind.input[0])
            if behind is not None and behind.op_type == "Transpose":
                yield list(behind.attribute[0].ints)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from half_products(attribute.g)


@pytest.mark.grid(every=2)
@pytest.mark.parametrize("form", ["step", "sequence", "unrolled"])
@pytest.mark.parametrize("name", NETWORKS)
def test_float16_has_no_transpose_that_onnxruntime_would_swap_with_a_cast(tmp_path: Path, name: str, form: str) -> None:
    """It fuses Transpose, Cast and MatMul by putting a Cast of its own on the other side of the Transpose, and that
    node is without a version: the CUDA provider, which has MatMul in float16, then finds no kernel for it. See
    ReorderCastAndTranspose in onnxruntime's matmul_transpose_fusion.cc.
    """
    options: dict[str, Any] = {"shared_input": False} if name == "population" else {}
    export.to_onnx(
        made(name),
        tmp_path / "model.onnx",
        form=form,
        num_steps=20 if form == "unrolled" else None,
        precision="float16",
        **options,
    )
    model = onnx.load(str(tmp_path / "model.onnx"))
    fused = [perm for perm in half_products(model.graph) if perm.index(len(perm) - 1) >= len(perm) - 2]
    assert fused == []
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert casts and not {name for node in casts for name in node.input} & {c.name for c in model.graph.initializer}


@pytest.mark.parametrize("form", ["sequence", "unrolled"])
@pytest.mark.parametrize("name", ["LIF", "ALIF"])
def test_float16_spikes_run_on_the_cpu_as_the_reference_evaluator_says(tmp_path: Path, name: str, form: str) -> None:
    report = written(made(name), tmp_path / "model.onnx", "float16", form)
    assert report.errors["y"] < 0.05 and report.runtime == "onnxruntime"
    x = torch.randn(2, 20, 6)
    y, _ = Model(tmp_path / "model.onnx")(x)
    evaluator = onnx_reference.ReferenceEvaluator(onnx.load(str(tmp_path / "model.onnx")))
    zeros = {
        value.name: np.zeros([2, *value.shape[1:]], np.float32) for value in Model(tmp_path / "model.onnx").inputs[1:]
    }
    (expected,) = evaluator.run(["y"], {"x": x.numpy(), **zeros})
    assert (y != expected).mean() < 0.02 and y.any()
