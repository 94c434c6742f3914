"""The runtime that needs NumPy and onnxruntime only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from elm_neuro import ELM, LIF
from tests.export.branched import FORMS, SOURCE, loaded, neuron, written

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)


@pytest.fixture(scope="module")
def runtime() -> Any:
    return loaded()


def test_it_imports_nothing_else() -> None:
    found = set(re.findall(r"^(?:import|from) ([\w.]+)", SOURCE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert found == {"__future__", "json", "os", "sys", "collections.abc", "typing", "numpy", "onnxruntime"}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_sequence_runs_alike_in_every_form_and_goes_on(
    tmp_path: Path, runtime: Any, form: str, batch_first: bool
) -> None:
    model = runtime(written(tmp_path / "neuron.onnx", form, batch_first=batch_first), num_threads=1)
    x = torch.randn(2, 30, 6)
    frames = x if batch_first else x.transpose(0, 1)
    time = 1 if batch_first else 0
    with torch.no_grad():
        y, after = neuron()(x)
    y = y if batch_first else y.transpose(0, 1)
    first, state = model.run(np.take(frames.numpy(), range(20), axis=time))
    second, state = model.run(np.take(frames.numpy(), range(20, 30), axis=time), state)
    np.testing.assert_allclose(np.concatenate([first["y"], second["y"]], axis=time), y, atol=1e-5)
    for name, value in after._asdict().items():
        np.testing.assert_allclose(state[name], value, atol=1e-5)


def test_steps_are_the_sequence_and_leave_the_given_state_alone(tmp_path: Path, runtime: Any) -> None:
    model = runtime(written(tmp_path / "neuron.onnx", "step"))
    x = np.random.default_rng(0).random((2, 9, 6))
    state = model.initial_state(2)
    kept = {name: value.copy() for name, value in state.items()}
    found, end = model.run(x, state)
    steps = list(model.stream(x.swapaxes(0, 1), state))
    for t, (outputs, _) in enumerate(steps):
        np.testing.assert_array_equal(outputs["y"], found["y"][:, t])
    last = steps[-1][1]
    for name in kept:
        np.testing.assert_array_equal(state[name], kept[name])
        np.testing.assert_array_equal(last[name], end[name])
    with torch.no_grad():
        np.testing.assert_allclose(found["y"], neuron()(torch.from_numpy(x).float())[0], atol=1e-5)


def test_a_network_and_a_head_have_their_outputs_by_name(tmp_path: Path, runtime: Any) -> None:
    torch.manual_seed(0)
    export.to_onnx(
        nn.Sequential(LIF(6, 4), ELM(4, 2, num_memory=3)),
        tmp_path / "net.onnx",
        form="sequence",
        head="neuronio",
        verify=False,
    )
    model = runtime(tmp_path / "net.onnx")
    outputs, state = model.run(np.ones((1, 5, 6), dtype=np.int8))
    assert {name: value.shape for name, value in outputs.items()} == {"spike_probability": (1, 5), "soma_mv": (1, 5)}
    assert sorted(state) == ["0.v", "1.b", "1.m"]
    assert "form='sequence'" in repr(model)


def test_the_last_step_of_a_classifier_is_one_output(tmp_path: Path, runtime: Any) -> None:
    training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)
    torch.manual_seed(0)
    net = training.SequenceClassifier(ELM(6, 3, num_memory=3))
    export.to_onnx(net, tmp_path / "net.onnx", form="unrolled", num_steps=5, verify=False)
    x = np.random.default_rng(0).random((2, 15, 6), dtype=np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(runtime(tmp_path / "net.onnx").run(x)[0]["y"], net(torch.from_numpy(x)), atol=1e-5)


def test_it_lies_beside_the_model_on_request(tmp_path: Path) -> None:
    written(tmp_path / "neuron.onnx", "step", runtime=True)
    assert (tmp_path / "onnx_neuron.py").read_bytes() == SOURCE.read_bytes()


def test_models_of_others_are_refused(tmp_path: Path, runtime: Any) -> None:
    import onnx

    with pytest.raises(FileNotFoundError, match=r"there is no .*none\.onnx"):
        runtime(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\xff" * 50)
    with pytest.raises(ValueError, match=r"path must be an ONNX model that onnxruntime can load, got .*broken\.onnx"):
        runtime(tmp_path / "broken.onnx")
    model = onnx.load(str(written(tmp_path / "neuron.onnx", "step")))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "bare.onnx"))
    with pytest.raises(
        ValueError, match=r"path must be a model of elm_neuro\.export, got .*bare\.onnx without its metadata"
    ):
        runtime(tmp_path / "bare.onnx")
    model = onnx.load(str(tmp_path / "neuron.onnx"))
    next(entry for entry in model.metadata_props if entry.key == "elm_neuro.options").value = '{"form": "loop"}'
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(
        ValueError, match=r"path must be a model of elm_neuro\.export, got .*other\.onnx without its metadata"
    ):
        runtime(tmp_path / "other.onnx")
    model = onnx.load(str(tmp_path / "neuron.onnx"))
    del model.graph.output[2]  # m_next
    onnx.save(model, str(tmp_path / "less.onnx"))
    with pytest.raises(ValueError, match=r"got inputs \['x', 'b', 'm'\] and outputs \['y', 'b_next'\]"):
        runtime(tmp_path / "less.onnx")
    with pytest.raises(ValueError, match="providers must name one at least, got none"):
        runtime(tmp_path / "neuron.onnx", providers=[])


def test_a_readout_of_a_whole_sequence_is_not_had_in_pieces(tmp_path: Path, runtime: Any) -> None:
    import onnx

    training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)
    path, x = tmp_path / "net.onnx", np.zeros((2, 10, 6), np.float32)
    export.to_onnx(training.SequenceClassifier(ELM(6, 3, num_memory=3)), path, form="unrolled", num_steps=5)
    model = onnx.load(str(path))
    for value in ('{"y": "whole"}', '["y"]'):  # as files have it that do not say of what kind it is
        next(entry for entry in model.metadata_props if entry.key == "elm_neuro.readouts").value = value
        onnx.save(model, str(path))
        assert runtime(path).run(x[:, :5])[0]["y"].shape == (2, 3)
        with pytest.raises(ValueError, match="x must have the model's 5 steps for y, a whole sequence, got 10"):
            runtime(path).run(x)


@pytest.mark.parametrize(
    ("x", "state", "message"),
    [
        (np.zeros((1, 5, 7)), None, r"x must have shape \(batch, time, 6\), got \(1, 5, 7\)"),
        (np.zeros((5, 6)), None, r"x must have shape \(batch, time, 6\), got \(5, 6\)"),
        (np.full((1, 5, 6), np.nan), None, "x must be finite, got 30 values that are not"),
        (np.full((1, 5, 6), "a"), None, "x must hold numbers, got <U1"),
        (
            np.zeros((2, 5, 6)),
            {"b": np.zeros((1, 3)), "m": np.zeros((2, 3))},
            r"state b must have shape \(2, 3\), got \(1, 3\)",
        ),
        (np.zeros((2, 5, 6)), {"b": np.zeros((2, 3))}, r"state must hold \['b', 'm'\], got \['b'\]"),
        (np.zeros((2, 5, 6)), (1, 2), r"state must hold \['b', 'm'\], got tuple"),
        (np.zeros((2, 5, 6)), {"b": np.full((2, 3), np.inf), "m": np.zeros((2, 3))}, "state b must be finite, got 6"),
    ],
)
def test_inputs_that_do_not_fit_are_named(tmp_path: Path, runtime: Any, x: Any, state: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runtime(written(tmp_path / "neuron.onnx", "sequence")).run(x, state)


def test_calls_that_do_not_fit_are_named(tmp_path: Path, runtime: Any) -> None:
    unrolled = runtime(written(tmp_path / "unrolled.onnx", "unrolled"))
    with pytest.raises(ValueError, match="x must have a multiple of the model's 10 steps, got 15"):
        unrolled.run(np.zeros((1, 15, 6)))
    with pytest.raises(ValueError, match="step needs a model of the form \"step\", got 'unrolled': use run"):
        unrolled.step(np.zeros((1, 6)))
    with pytest.raises(ValueError, match=r"providers must be of those in this onnxruntime, .*, got NoneSuch$"):
        runtime(tmp_path / "unrolled.onnx", providers=["NoneSuch"])
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(
            ValueError, match="got CUDAExecutionProvider; CUDAExecutionProvider comes with pip install onnxruntime-gpu"
        ):
            runtime(tmp_path / "unrolled.onnx", providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(ValueError, match="num_threads must be at least 1, got 0"):
        runtime(tmp_path / "unrolled.onnx", num_threads=0)


def test_zeros_are_of_the_batch_that_the_model_takes(tmp_path: Path, runtime: Any) -> None:
    model = runtime(written(tmp_path / "neuron.onnx", "step", batch_size=3))
    assert model.step(np.zeros((3, 6)), model.initial_state())[0]["y"].shape == (3, 2)
    assert model.initial_state(2)["m"].shape == (2, 3)
