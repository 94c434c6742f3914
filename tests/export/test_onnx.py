"""What to_onnx writes and verify finds: names, metadata, files, and what is refused."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from elm_neuro import ALIF, ELM, BranchELM, ELMConfig, SpikingELM, __version__
from elm_neuro.checkpoints import save_pretrained
from tests.strategies import INPUT_SIZE
from tests.tolerances import TOLERANCES

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)


def small(**options: Any) -> BranchELM:
    torch.manual_seed(0)
    return BranchELM(INPUT_SIZE, 2, num_memory=3, num_branch=3, num_synapse_per_branch=4, **options)


def test_a_cell_and_its_neuron_export_the_same_model(tmp_path: Path) -> None:
    neuron = small()
    export.to_onnx(neuron, tmp_path / "neuron.onnx")
    export.to_onnx(neuron.cell, tmp_path / "cell.onnx")
    neuron_model, cell_model = (onnx.load(str(tmp_path / f"{name}.onnx")) for name in ("neuron", "cell"))
    assert neuron_model.graph == cell_model.graph


@pytest.mark.parametrize("opset", [17, 21, 26])
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
    described = json.loads(properties["elm_neuro.neurons"])[""]
    np.testing.assert_allclose(described["tau_m"], neuron.cell.tau_m.detach(), rtol=1e-6)
    assert described["tau_s"] == 5.0
    assert json.loads(properties["elm_neuro.units"])["delta_t"] == "ms"


def test_routing_weights_and_branch_sum_are_one_product(tmp_path: Path) -> None:
    export.to_onnx(small(), tmp_path / "step.onnx", verify=False)
    model = onnx.load(str(tmp_path / "step.onnx"))
    assert sorted(node.op_type for node in model.graph.node if node.op_type in ("MatMul", "Gemm")) == ["Gemm"] * 4 + [
        "MatMul"
    ]
    assert [list(constant.dims) for constant in model.graph.initializer if constant.name == "w_s.weight"] == [[6, 3]]


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
        export.ExportError,
        match=r"onnxruntime must compute what BranchELM computes, got outputs that are off by y 1\.0\de-03 \(allowed",
    ):
        export.verify(tmp_path / "step.onnx", neuron)


def test_a_model_of_other_sizes_is_refused(tmp_path: Path) -> None:
    export.to_onnx(small(), tmp_path / "step.onnx")
    with pytest.raises(
        export.ExportError,
        match=r"the inputs and outputs of the module, .*input m FLOAT \('batch', 4\).*; got .*\('batch', 3\)",
    ):
        export.verify(tmp_path / "step.onnx", ELM(INPUT_SIZE, 2, num_memory=4))
    with pytest.raises(export.ExportError, match=r"DOUBLE"):
        export.verify(tmp_path / "step.onnx", small().double())


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step.onnx"
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match=r"path must be an ONNX model, got .*step\.onnx"):
        export.verify(path, small())
    path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"path must be an ONNX model of elm_neuro\.export, got .* without its metadata"
    ):
        export.verify(path, small())
    with pytest.raises(FileNotFoundError):
        export.verify(tmp_path / "none.onnx", small())
    export.to_onnx(small(), path)
    model = onnx.load(str(path))
    del model.graph.node[3]
    onnx.save(model, str(path))
    with pytest.raises(export.ExportError, match="the model must pass onnx's checker"):
        export.verify(path, small())


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    export.to_onnx(
        small(), tmp_path / "net.onnx", form="unrolled", num_steps=np.int64(3), batch_size=np.int32(2),
        opset=np.int64(18), lengths=np.bool_(True),
    )  # fmt: skip
    export.verify(tmp_path / "net.onnx", small(), num_steps=np.int64(4))


def test_a_head_has_its_constants_in_the_modules_precision(tmp_path: Path) -> None:
    export.to_onnx(small().double(), tmp_path / "net.onnx", head="neuronio")  # verified to 1e-13


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("prepare", ["used", "pruned", "old norm"])
def test_a_module_is_exported_as_training_leaves_it(tmp_path: Path, prepare: str) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [ALIF(4, 3), nn.Linear(3, 3)]
    if prepare == "used":
        snn = pytest.importorskip("snntorch")
        layers = [nn.Linear(4, 3), snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True)]
    elif prepare == "pruned":
        nn.utils.prune.l1_unstructured(layers[0].cell, "weight", 0.3)
        nn.utils.prune.l1_unstructured(layers[1], "weight", 0.3)
    else:
        layers = [ALIF(4, 3), nn.utils.weight_norm(nn.Linear(3, 3))]
        nn.utils.weight_norm(layers[0].cell, "weight")
    net = nn.Sequential(*layers)
    out = net(torch.rand(2, 4)) if prepare == "used" else layers[1](layers[0](torch.rand(2, 5, 4))[0])
    assert out.requires_grad or prepare == "used"
    assert export.to_onnx(net, tmp_path / "net.onnx") is not None


def test_a_failed_verification_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export.to_onnx(small(), tmp_path / "step.onnx")
    before = (tmp_path / "step.onnx").read_bytes()
    monkeypatch.setattr(sys.modules["elm_neuro.export.lowerings._elm"], "TANH_SLOPE", 0.6)
    with pytest.raises(export.ExportError, match=r"off by .*m_next"):
        export.to_onnx(small(), tmp_path / "step.onnx")
    assert (tmp_path / "step.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["step.onnx"]


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUT_SIZE, 2)

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * self.layer(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"form": "loop"}, ValueError, r"form must be one of \['step', 'sequence', 'unrolled'\], got 'loop'"),
        (
            {"form": "unrolled"},
            ValueError,
            r'num_steps must be given for the form "unrolled", and for no other, got None',
        ),
        ({"num_steps": 3}, ValueError, r"and for no other, got 3 for 'step'"),
        ({"form": "unrolled", "num_steps": 0}, ValueError, "num_steps must be from 1 to 10000, got 0"),
        ({"form": "unrolled", "num_steps": 10**6}, ValueError, r'got 1000000: the form "sequence" takes any length'),
        ({"opset": "18"}, TypeError, "opset must be an integer, got '18'"),
        ({"form": "unrolled", "num_steps": 2.5}, TypeError, r"num_steps must be an integer, got 2\.5"),
        ({"batch_size": True}, TypeError, "batch_size must be an integer, got True"),
        ({"opset": 16}, ValueError, r"opset must be from 17 to \d+ \(the newest of onnx .*\), got 16"),
        ({"opset": 999}, ValueError, r"got 999"),
        ({"opset": 27}, ValueError, "opset must be from 17 to 26 .*, got 27"),
        ({"lengths": "no", "form": "sequence"}, TypeError, "lengths must be True or False, got 'no'"),
        ({"batch_first": "no"}, TypeError, "batch_first must be True or False, got 'no'"),
        ({"module": ELM(2, 1, num_memory=2).to("meta")}, TypeError, "must hold numbers to be exported, got ELM on the"),
        ({"precision": "int4"}, ValueError, r"precision must be one of .*, got 'int4'"),
        (
            {"precision": "float16", "module": ELM(2, 1, num_memory=2).double()},
            ValueError,
            "must be float32 for a module in torch.float64, got 'float16'",
        ),
        ({"head": "softmax"}, ValueError, r"head must be None or one of \['neuronio'\], got 'softmax'"),
        (
            {"head": "neuronio", "module": ELM(2, 3, num_memory=2)},
            export.ExportError,
            r'two outputs.* for head="neuronio", got \(3,\)',
        ),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"source": "/nowhere"}, ValueError, "source must be a file or a folder with one of .*, got /nowhere"),
        ({"shared_input": False}, ValueError, "shared_input must be True for a single neuron, got False"),
        (
            {"module": Own()},
            TypeError,
            r"module must be of a kind that is registered \(.*ELM.*\).*, got Own: elm_neuro\.export\.register",
        ),
        (
            {"module": nn.Sequential(nn.Linear(2, 2), Own())},
            TypeError,
            r"1 of the module must be of a kind that is registered.*got Own",
        ),
        (
            {"module": nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 2))},
            export.ExportError,
            r"1 must read what the layer before it gives, \(3,\), got a layer for",
        ),
        ({"module": nn.Sequential(nn.ReLU())}, TypeError, "module must have parameters to be exported, got Sequential"),
        (
            {"module": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))},
            export.ExportError,
            r"evaluation mode .*, got Dropout in training: call module\.eval",
        ),
        (
            {"module": SpikingELM(ELM(2, 1, num_memory=2), stochastic=True)},
            export.ExportError,
            "deterministic to be exported, got stochastic=True",
        ),
        (
            {"module": ELM(2, 1, num_memory=2).half()},
            TypeError,
            r"float32 or float64 parameters to be exported, got torch\.float16",
        ),
        ({"module": ELM(2, 1, num_memory=2).bfloat16()}, TypeError, r"got torch\.bfloat16"),
    ],
)
def test_what_cannot_be_exported_is_named(
    tmp_path: Path, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        export.to_onnx(**({"module": small(), "path": tmp_path / "step.onnx"} | arguments))
    assert not list(tmp_path.iterdir())


def test_parameters_of_two_dtypes_are_named(tmp_path: Path) -> None:
    neuron = small()
    neuron.cell.w_y.double()
    with pytest.raises(TypeError, match=r"one dtype to be exported, got torch\.float32 and torch\.float64"):
        export.to_onnx(neuron, tmp_path / "step.onnx")


def test_verify_needs_a_step(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"num_steps must be an integer, got 2\.5"):
        export.verify(tmp_path / "none.onnx", small(), num_steps=2.5)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        export.verify(tmp_path / "step.onnx", small(), num_steps=0)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*missing"):
        export.to_onnx(small(), tmp_path / "missing" / "step.onnx", verify=False)


class _Doubled:
    def input_shape(self, module: Own) -> tuple[int, ...]:
        return (module.layer.in_features,)

    def lower(self, graph: Any, module: Own, x: Any) -> Any:
        y = graph.linear("layer", x.name, 2.0 * module.layer.weight, 2.0 * module.layer.bias)
        return export.Value(y, (2,), x.time)

    def run(self, module: Own, x: Tensor, trace: Any) -> Tensor:
        return module(x)  # type: ignore[no-any-return]


def test_a_kind_of_layer_can_register_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys.modules["elm_neuro.export._lowering"],
        "_REGISTRY",
        dict(sys.modules["elm_neuro.export._lowering"]._REGISTRY),
    )
    export.register(Own, _Doubled())
    report = export.to_onnx(nn.Sequential(Own(), ALIF(2, 3)), tmp_path / "net.onnx", form="sequence")
    assert set(report.errors) == {"y", "1.v_next", "1.a_next"}


def test_the_source_is_in_the_metadata(tmp_path: Path) -> None:
    neuron = small()
    save_pretrained(neuron, tmp_path / "neuron")
    export.to_onnx(neuron, tmp_path / "step.onnx", source=tmp_path / "neuron")
    properties = {entry.key: entry.value for entry in onnx.load(str(tmp_path / "step.onnx")).metadata_props}
    expected = hashlib.sha256((tmp_path / "neuron/model.safetensors").read_bytes()).hexdigest()
    assert properties["elm_neuro.source"] == f"model.safetensors sha256 {expected}"


@pytest.mark.parametrize("form", ["step", "sequence"])
def test_constants_too_large_for_one_file_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    torch.manual_seed(0)
    neuron = ELM(200, 2, num_memory=20)
    export.to_onnx(neuron, tmp_path / "whole.onnx", form=form)
    monkeypatch.setattr(sys.modules["elm_neuro.export.onnx"], "MAX_BYTES", 1000)
    report = export.to_onnx(neuron, tmp_path / "apart.onnx", form=form)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apart.onnx", "apart.onnx.data", "whole.onnx"]
    assert (tmp_path / "apart.onnx").stat().st_size < (tmp_path / "whole.onnx").stat().st_size / 2
    assert report == export.verify(tmp_path / "apart.onnx", neuron) == export.verify(tmp_path / "whole.onnx", neuron)
    with pytest.raises(FileNotFoundError, match=r"there is no .*missing"):
        export.to_onnx(neuron, tmp_path / "missing" / "apart.onnx")


def test_two_files_stay_as_they_were_where_the_check_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    neuron = ELM(200, 2, num_memory=20)
    monkeypatch.setattr(sys.modules["elm_neuro.export.onnx"], "MAX_BYTES", 1000)
    export.to_onnx(neuron, tmp_path / "apart.onnx")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(sys.modules["elm_neuro.export.lowerings._elm"], "TANH_SLOPE", 0.6)
    with pytest.raises(export.ExportError, match=r"off by .*m_next"):
        export.to_onnx(neuron, tmp_path / "apart.onnx")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in [name for name in sys.modules if name.startswith("elm_neuro.export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf'elm_neuro\.export needs {missing}: pip install "elm-neuro\[onnx\]"'):
        importlib.import_module("elm_neuro.export")


def test_verify_takes_a_provider_and_has_cuda_compute_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = importlib.import_module("elm_neuro.export._session")
    real, asked = onnxruntime.InferenceSession, []

    def on_the_cpu(content: Any, options: Any, providers: list[Any]) -> Any:
        asked.append(providers)
        found = real(content, options, providers=["CPUExecutionProvider"])
        found.get_providers = lambda: [name for name, _ in providers][not works :]
        return found

    neuron, path, works = small(), tmp_path / "step.onnx", True
    export.to_onnx(neuron, path, verify=False)
    assert export.verify(path, neuron, provider="cpu").runtime == "onnxruntime"
    with pytest.raises(export.ExportError, match=r"provider must be of those in this onnxruntime, .*, got Nothing"):
        export.verify(path, neuron, provider="Nothing")
    fake = type("Fake", (), {"SessionOptions": onnxruntime.SessionOptions, "InferenceSession": on_the_cpu})
    fake.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(session, "onnxruntime", fake)
    assert export.verify(path, neuron, provider="cuda").runtime == "onnxruntime (CUDAExecutionProvider)"
    exact = {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "0"}
    assert asked == [[("CUDAExecutionProvider", exact), ("CPUExecutionProvider", {})]]
    works = False
    with pytest.raises(export.ExportError, match="provider must work here, got CUDAExecutionProvider"):
        export.verify(path, neuron, provider="cuda")
