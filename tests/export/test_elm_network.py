"""The ELM Network as ONNX models: its layer and the whole, in every form, against the frozen run of the authors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elm_neuro import ELMNetwork, ELMNetworkClassifier
from tests.backends.network.frozen import NAMES
from tests.nn.test_network import published

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)
SMALL: dict[str, Any] = {"num_branch": 3, "num_synapse_per_branch": 4, "tau_m_init": (1.0, 20.0), "input_scale": 1.0}


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def zeros(model: Any, batch: int) -> dict[str, Any]:
    """The states of a model before the first step."""
    return {
        one.name: np.zeros((batch, *one.shape[1:]), np.float64)
        for one in model.get_inputs()
        if one.name not in ("x", "lengths")
    }


@pytest.mark.parametrize("form", ["step", "sequence"])
@pytest.mark.parametrize("name", NAMES)
def test_the_published_network_in_onnxruntime(name: str, form: str, shared: Path, tmp_path: Path) -> None:
    network, frozen = published(shared, name)
    if "mask.hidden.input" in frozen.data:
        with pytest.raises(export.ExportError, match="module must be in evaluation mode where it drops inputs"):
            export.to_onnx(network, tmp_path / "model.onnx", form=form)
        wanted = network.eval()(frozen.x)[0].detach().numpy()
    else:
        wanted = frozen.data["logits"]
    export.to_onnx(network.eval(), tmp_path / "model.onnx", form=form)
    model = session(tmp_path / "model.onnx")
    x, fed = frozen.data["x"].astype(np.float64), zeros(model, 3)
    outputs = [one.name for one in model.get_outputs()]
    if form == "sequence":
        found = dict(zip(outputs, model.run(outputs, {"x": x, **fed}), strict=True))["y"]
    else:
        steps = []
        for t in range(x.shape[1]):
            given = dict(zip(outputs, model.run(outputs, {"x": x[:, t], **fed}), strict=True))
            steps.append(given["y"])
            fed = {name: given[f"{name}_next"] for name in fed}
        found = np.stack(steps, 1)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", ["step", "sequence", "unrolled"])
@pytest.mark.parametrize(
    "options",
    [
        {"output": "spike", "tau_b": 5.0, "num_mlp_layers": 2, "binarize": True},
        {"output": "identity", "tau_high_pass": None, "num_mlp_layers": 0, "activation": "silu"},
        {"recurrent_fraction": 0.0, "num_mlp_layers": 0, "tau_b": 5.0, "activation": "relu"},
    ],
)
def test_layers_of_every_kind_are_verified(form: str, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = ELMNetwork(6, 4, 3, **SMALL | {"binarize": False} | options)
    num_steps = 5 if form == "unrolled" else None
    report = export.to_onnx(layer, tmp_path / "model.onnx", form=form, num_steps=num_steps)
    assert {"y", "m_next"} <= set(report.errors)
    assert ("a_next" in report.errors) == (layer.config.recurrent_fraction != 0.0)
    if form != "step":
        export.to_onnx(layer, tmp_path / "model.onnx", form=form, num_steps=num_steps, lengths=True)


@pytest.mark.parametrize(
    "options", [{"precision": "int8"}, {"input_dtype": "uint8"}, {"batch_first": False}, {"batch_size": 2}]
)
def test_the_classifier_of_training_is_exported(options: dict[str, Any], tmp_path: Path) -> None:
    training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)
    torch.manual_seed(0)
    network = training.SequenceClassifier(ELMNetworkClassifier(6, 3, 4, 3, binarize=True, **SMALL))
    report = export.to_onnx(network, tmp_path / "model.onnx", form="sequence", **options)
    assert "y" in report.errors


def test_metadata_say_times(tmp_path: Path) -> None:
    layer = ELMNetwork(6, 4, 3, **SMALL)
    export.to_onnx(layer, tmp_path / "model.onnx")
    words = session(tmp_path / "model.onnx").get_modelmeta().custom_metadata_map
    told = json.loads(words["elm_neuro.neurons"])[""]
    assert told["kind"] == "ELMNetwork" and told["config"]["tau_high_pass"] == 5.0
    np.testing.assert_allclose(told["tau_m"], layer.tau_m, rtol=1e-6)
