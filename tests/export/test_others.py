"""Models of strangers, to the check and to the runtime: what their metadata, states and constants claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from elm_neuro import ELM
from tests.export.branched import neuron, written

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)
OnnxNeuron = pytest.importorskip("elm_neuro.export.onnx_neuron", exc_type=ImportError).OnnxNeuron


def changed(path: Path, key: str, **values: Any) -> None:
    """Write other metadata into a model."""
    model = onnx.load(str(path))
    entry = next(entry for entry in model.metadata_props if entry.key == f"elm_neuro.{key}")
    entry.value = json.dumps(json.loads(entry.value) | values)
    onnx.save(model, str(path))


@pytest.mark.parametrize(
    "values",
    [
        {"form": "unrolled", "num_steps": 10**11},  # steps that would take all memory
        {"form": "unrolled", "num_steps": 0},
        {"form": "unrolled", "num_steps": "abc"},
        {"precision": "foo"},
        {"input_dtype": "float8"},
        {"batch_first": "no"},
        {"head": []},
        {"unknown": 1},
    ],
)
def test_options_of_others_are_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    path = tmp_path / "step.onnx"
    export.to_onnx(neuron(), path, verify=False)
    changed(path, "options", **values)
    with pytest.raises(ValueError, match=r"path must be an ONNX model of elm_neuro\.export, got .* its metadata"):
        export.verify(path, neuron())


@pytest.mark.parametrize("precision", ["int8", "float16", "bfloat16"])
def test_a_model_is_not_let_off_by_a_precision_that_it_does_not_have(tmp_path: Path, precision: str) -> None:
    path = tmp_path / "step.onnx"
    export.to_onnx(neuron(), path, verify=False)
    changed(path, "options", precision=precision)
    with pytest.raises(export.ExportError, match=rf"must store \d matrices in {precision}, .*, got 0 of the shapes"):
        export.verify(path, neuron())


def test_a_model_must_say_what_its_readouts_are(tmp_path: Path) -> None:
    training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)
    path, net = tmp_path / "net.onnx", training.SequenceClassifier(ELM(3, 2, num_memory=2), readout="mean")
    export.to_onnx(net, path, form="sequence")
    export.verify(path, net)
    changed(path, "readouts", y="last")
    with pytest.raises(export.ExportError, match=r'must say of its readouts {"y": "mean"}, got {"y": "last"}'):
        export.verify(path, net)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("readouts", "null"),
        ("readouts", "3"),
        ("readouts", '["z"]'),
        ("readouts", '{"y": "sum"}'),
        ("readouts", "[" * 100_000),
        ("options", "[]"),
        ("options", '{"form": "unrolled"}'),
        ("options", '{"form": "unrolled", "num_steps": 0}'),
        ("options", '{"form": "unrolled", "num_steps": "3"}'),
        ("options", '{"form": "step", "num_steps": 3}'),
    ],
)
def test_metadata_of_others_are_refused(tmp_path: Path, key: str, value: str) -> None:
    model = onnx.load(str(written(tmp_path / "neuron.onnx", "step")))
    next(entry for entry in model.metadata_props if entry.key == f"elm_neuro.{key}").value = value
    onnx.save(model, str(tmp_path / "neuron.onnx"))
    with pytest.raises(ValueError, match=r"path must be a model of elm_neuro\.export, got .*neuron\.onnx"):
        OnnxNeuron(tmp_path / "neuron.onnx")


@pytest.mark.parametrize(("kind", "size"), [("INT64", 3), ("FLOAT", "any"), ("FLOAT", 2**40), ("DOUBLE", 3)])
def test_states_of_others_are_refused(tmp_path: Path, kind: str, size: int | str) -> None:
    whole = onnx.load(str(written(tmp_path / "neuron.onnx", "step")))
    element = getattr(onnx.TensorProto, kind)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 6])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 6])
    states = [onnx.helper.make_tensor_value_info(name, element, ["batch", size]) for name in ("m", "m_next")]
    nodes = [onnx.helper.make_node("Identity", ["x"], ["y"]), onnx.helper.make_node("Identity", ["m"], ["m_next"])]
    graph = onnx.helper.make_graph(nodes, "other", [x, states[0]], [y, states[1]])
    model = onnx.helper.make_model(graph, opset_imports=whole.opset_import, ir_version=whole.ir_version)
    model.metadata_props.extend(whole.metadata_props)
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(
        ValueError, match=r"got inputs \['x', 'm'\] and outputs \['y', 'm_next'\] in .*: x tensor\(float"
    ):
        OnnxNeuron(tmp_path / "other.onnx")
