"""The commands elm-neuro export and elm-neuro onnx, as a user calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from elm_neuro import ELM, BranchELM
from elm_neuro.checkpoints import from_pretrained, from_upstream, save_pretrained
from elm_neuro.cli import main

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_pretrained(BranchELM(6, 2, num_memory=3, num_branch=3, num_synapse_per_branch=4), tmp_path / "neuron")
    return tmp_path / "neuron"


def test_a_saved_neuron_is_exported_verified_and_run(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(saved), "--form", "sequence", "--runtime"]) == 0
    assert sorted(path.name for path in saved.glob("*.onnx")) == ["sequence.onnx"]
    assert (saved / "onnx_neuron.py").is_file()
    printed = capsys.readouterr().out
    assert "BranchELM, form sequence" in printed
    assert "onnxruntime against torch" in printed
    properties = {entry.key: entry.value for entry in onnx.load(str(saved / "sequence.onnx")).metadata_props}
    assert properties["elm_neuro.source"].startswith("model.safetensors sha256 ")

    x = np.random.default_rng(0).random((2, 9, 6), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    assert (
        main(
            ["onnx", "run", str(saved / "sequence.onnx"), str(tmp_path / "x.npy"), "--out", str(tmp_path / "whole.npz")]
        )
        == 0
    )
    whole = np.load(tmp_path / "whole.npz")
    with torch.no_grad():
        y, after = from_pretrained(saved)(torch.from_numpy(x))
    np.testing.assert_allclose(whole["y"], y, atol=1e-5)
    np.testing.assert_allclose(whole["m"], after.m, atol=1e-5)
    np.save(tmp_path / "x.npy", x[:, :4])
    first, last = tmp_path / "first.npz", tmp_path / "last.npz"
    assert main(["onnx", "run", str(saved / "sequence.onnx"), str(tmp_path / "x.npy"), "--out", str(first)]) == 0
    np.savez(tmp_path / "rest.npz", x=x[:, 4:], **{name: np.load(first)[name] for name in ("b", "m")})
    assert main(["onnx", "run", str(saved / "sequence.onnx"), str(tmp_path / "rest.npz"), "--out", str(last)]) == 0
    np.testing.assert_allclose(np.load(last)["y"], y[:, 4:], atol=1e-5)


def test_the_authors_checkpoint_is_exported_with_its_head(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "num_memory_10"
    shutil.copytree(shared / "data/checkpoints/num_memory_10", folder)
    assert main(["export", str(folder), "--head", "neuronio", "--out", str(tmp_path / "twin.onnx")]) == 0
    model = onnx.load(str(tmp_path / "twin.onnx"))
    assert [value.name for value in model.graph.output] == ["spike_probability", "soma_mv", "b_next", "m_next"]
    described = json.loads({entry.key: entry.value for entry in model.metadata_props}["elm_neuro.neurons"])[""]
    np.testing.assert_allclose(described["tau_m"], from_upstream(folder).cell.tau_m.detach(), rtol=1e-6)


def test_a_checkpoint_of_fit_is_exported_by_the_settings_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning")
    from elm_neuro.training import SequenceClassifier

    torch.manual_seed(0)
    net = SequenceClassifier(ELM(7, 3, num_memory=4, delta_t=10.0))
    torch.save(
        {"state_dict": {f"network.{name}": value for name, value in net.state_dict().items()}}, tmp_path / "best.ckpt"
    )
    assert main(["export", str(tmp_path / "best.ckpt")]) == 1
    assert "a checkpoint of elm-neuro fit needs its settings beside it, but there is no" in capsys.readouterr().err
    neuron = {
        "class_path": "elm_neuro.nn.ELM",
        "init_args": {"input_size": 7, "output_size": 3, "num_memory": 4, "delta_t": 10.0},
    }
    network = {"class_path": "elm_neuro.training.SequenceClassifier", "init_args": {"neuron": neuron}}
    settings = {"network": network, "num_classes": 3}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"model": settings}), encoding="utf-8")  # as runs before the recipes named their task
    assert main(["export", str(tmp_path / "best.ckpt")]) == 1
    assert "config.yaml: model must name its class by class_path, for example elm_neuro." in capsys.readouterr().err
    model = {"class_path": "elm_neuro.training.SpikeClassification", "init_args": settings}
    config.write_text(json.dumps({"model": model}), encoding="utf-8")
    assert main(["export", str(tmp_path / "best.ckpt"), "--form", "unrolled", "--num-steps", "5"]) == 0
    from elm_neuro.export.onnx_neuron import OnnxNeuron

    x = np.random.default_rng(0).random((2, 5, 7), dtype=np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(
            OnnxNeuron(tmp_path / "unrolled.onnx").run(x)[0]["y"], net(torch.from_numpy(x)), atol=1e-5
        )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_memory": 10**9}, "must have shape (1000000000,), as the settings say, got (4,)"),
        ({"input_size": 10**9}, "must have shape (1000000000, 1), as the settings say, got (7, 1)"),
        ({"num_memory": 5}, "must have shape (5,), as the settings say, got (4,)"),
        ({"num_mlp_layers": 2}, "mlp.1.weight must have shape (8, 8), as the settings say, got (4, 8)"),
    ],
)
def test_settings_that_ask_for_other_weights_are_refused_before_any_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sizes: dict[str, int], message: str
) -> None:
    pytest.importorskip("lightning")
    from elm_neuro.cli._settings import KEY
    from elm_neuro.training import SequenceClassifier

    net = SequenceClassifier(ELM(7, 3, num_memory=4))
    neuron = {"class_path": "elm_neuro.nn.ELM", "init_args": {"input_size": 7, "output_size": 3, "num_memory": 4}}
    neuron["init_args"] |= sizes  # type: ignore[operator]
    network = {"class_path": "elm_neuro.training.SequenceClassifier", "init_args": {"neuron": neuron}}
    model = {"class_path": "elm_neuro.training.SpikeClassification", "init_args": {"network": network}}
    weights = {f"network.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": weights, KEY: json.dumps({"model": model})}, tmp_path / "best.ckpt")
    assert main(["export", str(tmp_path / "best.ckpt")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("- a list", "must hold settings by their names, got list"),
        ("model: {class_path: os.system, init_args: {command: touch run}}", "os.system"),
        ("model: {class_path: torch.nn.Linear, init_args: {in_features: 1, out_features: 1}}", "torch.nn.Linear"),
        ("model: {class_path: elm_neuro.training.SpikeClassification, init_args: {networks: 1}}", "networks"),
        ("model: {class_path: elm_neuro.training.SpikeClassification, init_args: {network: os.system}}", "os.system"),
        ("trainer: {}", "must hold the settings of elm-neuro fit, got no model in it"),
        ("model: [", "must be YAML"),
    ],
)
def test_settings_that_build_no_module_of_lightning_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: str, message: str
) -> None:
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "best.ckpt")
    (tmp_path / "config.yaml").write_text(settings, encoding="utf-8")
    assert main(["export", "best.ckpt"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("elm-neuro: error: config.yaml")
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["step", "sequence", "unrolled"])
def test_a_model_is_timed(saved: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    length = ["--num-steps", "4"] if form == "unrolled" else []
    assert main(["export", str(saved), "--form", form, "--no-verify", *length]) == 0
    assert "not verified" in capsys.readouterr().out
    assert main(["onnx", "bench", str(saved / f"{form}.onnx"), "--repeats", "3", "--batch", "2", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["form"], found["batch"], found["num_steps"]) == (
        form,
        2,
        {"step": 1, "sequence": 100, "unrolled": 4}[form],
    )
    assert 0 < found["p5_ms"] <= found["median_ms"] <= found["p95_ms"] and found["bound"] is False
    arguments = ["onnx", "bench", str(saved / f"{form}.onnx"), "--repeats", "3", "--bound", "--provider", "cpu"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bound"] is True and found["provider"] == "CPUExecutionProvider"


@pytest.mark.parametrize("options", [[], ["--form", "sequence", "--time-first"]])
def test_a_model_of_a_fixed_batch_is_timed_with_it(
    saved: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    model = str(saved / "four.onnx")
    assert main(["export", str(saved), "--out", model, "--batch-size", "4", "--no-verify", *options]) == 0
    capsys.readouterr()
    assert main(["onnx", "bench", model, "--repeats", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["batch"] == 4
    assert main(["onnx", "bench", model, "--batch", "2"]) == 1
    assert "--batch must be 4, that of the model, got 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "SAVED", "--form", "unrolled"], 'num_steps must be given for the form "unrolled"'),
        (["export", "SAVED", "--opset", "5"], "opset must be from 17"),
        (["export", "SAVED", "--out", "FOLDER/none/x.onnx"], "there is no "),
        (["onnx", "run", "FOLDER/none.onnx", "x.npy"], "there is no "),
        (["onnx", "run", "MODEL", "FOLDER/none.npy"], "No such file"),
        (["onnx", "run", "MODEL", "MODEL"], "INPUT must be a .npy or .npz file of numbers"),
        (["onnx", "run", "MODEL", "EMPTY"], r"INPUT must hold x, got ['z']"),
        (["onnx", "run", "MODEL", "DAMAGED"], "damaged.npz: "),
        (
            ["onnx", "bench", "MODEL", "--repeats", "0"],
            "--batch, --num-steps and --repeats must be at least 1, got 1, 1 and 0",
        ),
        (["onnx", "bench", "MODEL", "--batch", "1000000000000"], "there is not enough memory: "),
        (["onnx", "bench", "MODEL", "--provider", "Nothing"], "providers must be of those in this onnxruntime"),
        (
            ["onnx", "bench", "MODEL", "--cuda-graph"],
            "device, tf32 and cuda_graph are options of CUDAExecutionProvider",
        ),
        (
            ["onnx", "run", "MODEL", "x.npy", "--tf32"],
            "device, tf32 and cuda_graph are options of CUDAExecutionProvider",
        ),
    ],
)
def test_what_does_not_fit_ends_in_one_line(
    saved: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["export", str(saved), "--no-verify"]) == 0
    np.savez(saved / "empty.npz", z=np.zeros(1))
    (saved / "damaged.npz").write_bytes((saved / "empty.npz").read_bytes()[:-10])
    places = {"SAVED": saved, "FOLDER": saved, "MODEL": saved / "step.onnx", "EMPTY": saved / "empty.npz"}
    places["DAMAGED"] = saved / "damaged.npz"
    for word, place in places.items():
        arguments = [argument.replace(word, str(place)) for argument in arguments]
    capsys.readouterr()
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("elm-neuro: error: ")
    assert message in error


def test_lengths_are_a_further_input(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(saved), "--form", "sequence", "--lengths"]) == 0
    from elm_neuro.export.onnx_neuron import OnnxNeuron

    model = OnnxNeuron(saved / "sequence.onnx")
    assert "lengths" in {one.name for one in model.session.get_inputs()}
    x, lengths = np.random.default_rng(0).random((2, 5, model.session.get_inputs()[0].shape[2])), np.array([5, 2])
    np.savez(saved / "x.npz", x=x, lengths=lengths)
    assert main(["onnx", "run", str(saved / "sequence.onnx"), str(saved / "x.npz"), "--out", str(saved / "y.npz")]) == 0
    np.testing.assert_array_equal(np.load(saved / "y.npz")["y"], model.run(x, lengths=lengths)[0]["y"])
    assert main(["onnx", "bench", str(saved / "sequence.onnx"), "--repeats", "2", "--num-steps", "5"]) == 0
    capsys.readouterr()
    assert main(["export", str(saved), "--lengths"]) == 1
    assert 'lengths must be False for the form "step"' in capsys.readouterr().err
