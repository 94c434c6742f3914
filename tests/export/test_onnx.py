"""The exported time step computes what the neuron computes, in onnxruntime, in onnx's reference evaluator, and by the paper's equations."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from elm_neuro import ELM, BranchELM, ELMConfig, ELMState, __version__
from elm_neuro.checkpoints import from_upstream
from tests import oracle
from tests.strategies import INPUT_SIZE, neurons
from tests.tolerances import TOLERANCES, assert_close

onnx = pytest.importorskip("onnx")
onnx_reference = pytest.importorskip("onnx.reference")
onnxruntime = pytest.importorskip("onnxruntime")
export = pytest.importorskip("elm_neuro.export")

STANDARD_OPERATORS = {"MatMul", "Mul", "Add", "Tanh", "Relu", "Sigmoid", "Concat", "Transpose", "Reshape"}


def stream(run: Any, x: Tensor, b: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run one step after the other over (batch, time, ...), states fed back."""
    outputs = []
    for x_t in x.unbind(1):
        y, b, m = run(["y", "b_next", "m_next"], {"x": x_t.numpy(), "b": b, "m": m})
        outputs.append(y)
    return np.stack(outputs, 1), b, m


def small(**options: Any) -> BranchELM:
    torch.manual_seed(0)
    return BranchELM(INPUT_SIZE, 2, num_memory=3, num_branch=3, num_synapse_per_branch=4, **options)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_neuron_streams_the_same_in_onnxruntime_and_the_reference_evaluator(tmp_path: Path, dtype: torch.dtype, data: st.DataObject) -> None:
    neuron = data.draw(neurons(dtype=dtype))
    shared_input = neuron.config.num_neuron is None or data.draw(st.booleans())
    own = () if shared_input else (neuron.config.num_neuron,)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    batch, num_steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    x = torch.randn(batch, num_steps, *own, INPUT_SIZE, generator=generator, dtype=dtype)
    state = ELMState(*(torch.randn(part.shape, generator=generator, dtype=dtype) for part in neuron.cell.initial_state(batch)))
    report = export.to_onnx(neuron, tmp_path / "step.onnx", shared_input=shared_input)
    assert set(report.errors) == {"y", "b_next", "m_next"}
    neuron.backend = "reference"
    with torch.no_grad():
        y, after = neuron(x, state)
    model = onnx.load(str(tmp_path / "step.onnx"))
    assert {node.op_type for node in model.graph.node} <= STANDARD_OPERATORS
    runtime = onnxruntime.InferenceSession(str(tmp_path / "step.onnx"), providers=["CPUExecutionProvider"])
    for run in (runtime.run, onnx_reference.ReferenceEvaluator(model).run):
        found = stream(run, x, state.b.numpy(), state.m.numpy())
        for actual, expected in zip(found, (y, *after), strict=True):
            assert_close(torch.from_numpy(actual), expected, dtype=dtype)


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("branch_activation", [None, "relu", "silu", "tanh"])
def test_the_model_follows_the_equations_of_the_paper(tmp_path: Path, variant: str, branch_activation: str | None) -> None:
    neuron = small(variant=variant, branch_activation=branch_activation, activation="silu", num_mlp_layers=2, tau_s=(2.0, 5.0, 9.0)).double()
    export.to_onnx(neuron, tmp_path / "step.onnx")
    run = onnxruntime.InferenceSession(str(tmp_path / "step.onnx"), providers=["CPUExecutionProvider"]).run
    x = torch.randn(2, 40, INPUT_SIZE, dtype=torch.float64)
    y, b, m = stream(run, x, np.zeros((2, 3)), np.zeros((2, 3)))
    for sample in range(2):
        expected = oracle.run(neuron.cell, x[sample].numpy())
        for actual, wanted in zip((y[sample], b[sample], m[sample]), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, atol=1e-12)


@pytest.mark.parametrize("name", ["num_memory_10", "num_memory_20"])
def test_the_authors_checkpoints_give_their_outputs_in_onnxruntime(shared: Path, tmp_path: Path, name: str) -> None:
    reference = np.load(shared / "data/neuronio/reference_outputs.npz")
    neuron = from_upstream(shared / "data/checkpoints" / name)
    export.to_onnx(neuron, tmp_path / "step.onnx")
    run = onnxruntime.InferenceSession(str(tmp_path / "step.onnx"), providers=["CPUExecutionProvider"]).run
    step, channel = reference["w0_input_t"].astype(int), reference["w0_input_ch"].astype(int)
    x = np.zeros((1, 1000, 1278), dtype=np.float32)
    np.add.at(x, (0, step, channel), np.where(channel < 639, 1.0, -1.0))
    zeros = neuron.cell.initial_state(1)
    y, _, _ = stream(run, torch.from_numpy(x), zeros.b.numpy(), zeros.m.numpy())
    # absolute, on logits of up to 10; the authors' own float32 and float64 differ by up to 1.2e-5
    np.testing.assert_allclose(y[0], reference[f"{name}_w0_logits"], atol=3e-5, rtol=0)


def test_a_cell_and_its_neuron_export_the_same_model(tmp_path: Path) -> None:
    neuron = small()
    export.to_onnx(neuron, tmp_path / "neuron.onnx")
    export.to_onnx(neuron.cell, tmp_path / "cell.onnx")
    assert (tmp_path / "neuron.onnx").read_bytes() == (tmp_path / "cell.onnx").read_bytes()


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_names_axes_opset_and_metadata_are_in_the_model(tmp_path: Path, opset: int) -> None:
    neuron = small(num_neuron=2, flatten_output=True)
    report = export.to_onnx(neuron, tmp_path / "step.onnx", opset=opset)
    assert report.opset == opset
    model = onnx.load(str(tmp_path / "step.onnx"))
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "x": ["batch", 6],
        "b": ["batch", 2, 3],
        "m": ["batch", 2, 3],
        "y": ["batch", 4],
        "b_next": ["batch", 2, 3],
        "m_next": ["batch", 2, 3],
    }
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["elm_neuro.version"] == __version__
    assert properties["elm_neuro.form"] == "step"
    assert ELMConfig.from_dict(json.loads(properties["elm_neuro.config"])) == neuron.config
    assert json.loads(properties["elm_neuro.units"])["delta_t"] == "ms"


def test_routing_weights_and_branch_sum_are_one_product(tmp_path: Path) -> None:
    step = export.lower_step(small())
    assert [node.op_type for node in step.nodes].count("MatMul") == 1 + 2 + 1  # inputs, MLP, readout
    assert step.constants["w_branch"].shape == (6, 3)


def test_time_major_neurons_and_training_mode_export_too(tmp_path: Path) -> None:
    export.to_onnx(small(batch_first=False).train(), tmp_path / "step.onnx")


def test_verification_leaves_the_random_numbers_and_the_module_alone(tmp_path: Path) -> None:
    neuron = small()
    before, state = torch.get_rng_state(), {name: tensor.clone() for name, tensor in neuron.state_dict().items()}
    first = export.to_onnx(neuron, tmp_path / "step.onnx")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in neuron.state_dict().items())
    assert export.verify(tmp_path / "step.onnx", neuron) == first
    assert export.verify(tmp_path / "step.onnx", neuron, num_steps=1, seed=3).num_steps == 1 + 2 + 5


def test_without_verification_there_is_no_report(tmp_path: Path) -> None:
    assert export.to_onnx(small(), tmp_path / "step.onnx", verify=False) is None
    assert max(export.verify(tmp_path / "step.onnx", small()).errors.values()) < TOLERANCES[torch.float32].atol


def test_a_model_of_other_weights_is_found_out_by_name_and_size(tmp_path: Path) -> None:
    neuron = small()
    export.to_onnx(neuron, tmp_path / "step.onnx")
    with torch.no_grad():
        neuron.cell.w_y.bias[0] += 1e-3
    with pytest.raises(
        export.ExportError, match=r"onnxruntime must compute what BranchELM computes, got outputs that are off by y 1\.0\de-03 \(allowed"
    ):
        export.verify(tmp_path / "step.onnx", neuron)


def test_a_model_of_other_sizes_is_refused(tmp_path: Path) -> None:
    export.to_onnx(small(), tmp_path / "step.onnx")
    with pytest.raises(export.ExportError, match=r"the model must have the inputs of the module.*'m': \('tensor\(float\)', \(4,\)\)"):
        export.verify(tmp_path / "step.onnx", ELM(INPUT_SIZE, 2, num_memory=4))
    with pytest.raises(export.ExportError, match=r"tensor\(double\)"):
        export.verify(tmp_path / "step.onnx", small().double())


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step.onnx"
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match=r"path must be an ONNX model, got .*step\.onnx"):
        export.verify(path, small())
    path.write_bytes(b"")
    with pytest.raises(export.ExportError, match="the model must pass onnx's checker"):
        export.verify(path, small())


def test_a_failed_verification_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export.to_onnx(small(), tmp_path / "step.onnx")
    before = (tmp_path / "step.onnx").read_bytes()
    monkeypatch.setattr(sys.modules["elm_neuro.export.onnx"], "TANH_SLOPE", 0.6)
    with pytest.raises(export.ExportError, match=r"off by .*m_next"):
        export.to_onnx(small(), tmp_path / "step.onnx")
    assert (tmp_path / "step.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["step.onnx"]


class Face(nn.Module):
    def __init__(self, core: ELM) -> None:
        super().__init__()
        self.core = core


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"form": "sequence"}, ValueError, r'form must be "step", got .sequence.'),
        ({"form": "unrolled"}, ValueError, r'form must be "step", got .unrolled.'),
        ({"opset": 12}, ValueError, r"opset must be from 13 to \d+ \(the newest of onnx .*\), got 12"),
        ({"opset": 999}, ValueError, r"got 999"),
        ({"shared_input": False}, ValueError, "shared_input must be True for a single neuron, got False"),
        ({"module": nn.Linear(2, 2)}, TypeError, r"module must be one of ELM, ELMCell\b.* or a subclass, got Linear"),
        ({"module": Face(ELM(2, 1, num_memory=2))}, TypeError, r"got Face; its \.core is one"),
        ({"module": ELM(2, 1, num_memory=2).half()}, TypeError, r"float32 or float64 parameters to be exported, got torch\.float16"),
        ({"module": ELM(2, 1, num_memory=2).bfloat16()}, TypeError, r"got torch\.bfloat16"),
    ],
)
def test_what_cannot_be_exported_is_named(tmp_path: Path, arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        export.to_onnx(**({"module": small(), "path": tmp_path / "step.onnx"} | arguments))
    assert not list(tmp_path.iterdir())


def test_parameters_of_two_dtypes_are_named(tmp_path: Path) -> None:
    neuron = small()
    neuron.cell.w_y.double()
    with pytest.raises(TypeError, match=r"one dtype to be exported, got torch\.float64 for w_y\.weight beside torch\.float32"):
        export.to_onnx(neuron, tmp_path / "step.onnx")


def test_verify_needs_a_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        export.verify(tmp_path / "step.onnx", small(), num_steps=0)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*missing"):
        export.to_onnx(small(), tmp_path / "missing" / "step.onnx", verify=False)


def test_a_module_can_register_itself() -> None:
    class Wrapped(Face):
        pass

    export.lower_step.register(Wrapped, lambda module, *, shared_input=True: export.lower_step(module.core, shared_input=shared_input))
    assert export.lower_step(Wrapped(small())).inputs == export.lower_step(small()).inputs


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in [name for name in sys.modules if name.startswith("elm_neuro.export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf'elm_neuro\.export needs {missing}: pip install "elm-neuro\[onnx\]"'):
        importlib.import_module("elm_neuro.export")
