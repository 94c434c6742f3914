"""Batches of sequences of different length, and sequences and batches that hold nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from elm_neuro import ALIF, ELM, LIF, BranchELM, SpikingELM
from elm_neuro.nn import last_output

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)
onnx_neuron = pytest.importorskip("elm_neuro.export.onnx_neuron", exc_type=ImportError)

NUM_STEPS = 37
LENGTHS = torch.tensor([37, 1, 0, 20, 33])
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def spiking(layer: Any) -> Any:
    with torch.no_grad():
        layer.cell.weight *= 5.0
    return layer


def population() -> BranchELM:
    return BranchELM(6, 1, num_memory=3, num_branch=3, num_synapse_per_branch=4, num_neuron=2, flatten_output=True)


LAYERS: dict[str, Any] = {
    "ELM": lambda: ELM(6, 2, num_memory=3),
    "wide ELM": lambda: ELM(40, 2, num_memory=3),
    "tau per branch": lambda: BranchELM(
        6, 2, num_memory=3, num_branch=3, num_synapse_per_branch=4, tau_s=(2.0, 5.0, 9.0)
    ),
    "population": population,
    "spiking population": lambda: SpikingELM(population(), threshold=0.02, reset="subtract"),
    "SpikingELM": lambda: SpikingELM(ELM(6, 2, num_memory=3), threshold=0.02),
    "LIF": lambda: spiking(LIF(6, 4)),
    "ALIF": lambda: spiking(ALIF(6, 4, recurrent=True, latency=2.0)),
}


def runtime(folder: Path, module: nn.Module, form: str, **options: Any) -> Any:
    steps = NUM_STEPS if form == "unrolled" else None
    export.to_onnx(module, folder / "model.onnx", form=form, num_steps=steps, **options)
    return onnx_neuron.OnnxNeuron(folder / "model.onnx", check=False)


def made(name: str) -> Any:
    torch.manual_seed(0)
    return LAYERS[name]().eval()


@pytest.mark.grid(every=2)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("form", ["sequence", "unrolled"])
@pytest.mark.parametrize("name", LAYERS)
def test_states_stop_where_a_sample_ends_and_outputs_are_zero_past_it(
    tmp_path: Path, name: str, form: str, batch_first: bool
) -> None:
    layer = made(name)
    model = runtime(tmp_path, layer, form, lengths=True, batch_first=batch_first)
    x = torch.randn(5, NUM_STEPS, layer.input_size)
    start = layer.initial_state(5)
    start = type(start)(*(torch.rand_like(part) if field != "s" else part for field, part in start._asdict().items()))
    with torch.no_grad():
        y, after = layer(x, start, LENGTHS)
    spoiled = x.masked_fill((torch.arange(NUM_STEPS) >= LENGTHS[:, None])[..., None], torch.nan)
    frames = spoiled if batch_first else spoiled.transpose(0, 1)
    state = {field: getattr(start, field).numpy() for field in model.state_shapes}
    outputs, end = model.run(frames.numpy(), state, LENGTHS.numpy())
    found = torch.from_numpy(outputs["y"])
    torch.testing.assert_close(found if batch_first else found.transpose(0, 1), y, **TOLERANCE)
    for field, part in end.items():
        torch.testing.assert_close(torch.from_numpy(part), getattr(after, field), **TOLERANCE)
    assert not np.isnan(np.concatenate([value.ravel() for value in outputs.values()])).any()


@pytest.mark.parametrize("form", ["sequence", "unrolled"])
def test_a_network_of_them(tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), spiking(LIF(8, 10)), SpikingELM(ELM(10, 3, num_memory=4), threshold=0.02)]
    model = runtime(tmp_path, nn.Sequential(*layers), form, lengths=True)
    x = torch.randn(5, NUM_STEPS, 6)
    outputs, end = model.run(x.numpy(), lengths=LENGTHS.numpy())
    with torch.no_grad():
        for i, length in enumerate(LENGTHS.tolist()):
            current = layers[0](x[i : i + 1, :length])
            spikes, lif = layers[1](current)
            y, elm = layers[2](spikes)
            torch.testing.assert_close(torch.from_numpy(outputs["y"][i, :length]), y[0], **TOLERANCE)
            assert not outputs["y"][i, length:].any()
            torch.testing.assert_close(torch.from_numpy(end["1.v"][i]), lif.v[0], **TOLERANCE)
            torch.testing.assert_close(torch.from_numpy(end["2.m"][i]), elm.m[0], **TOLERANCE)


@pytest.mark.grid(every=2)
@pytest.mark.parametrize("kind", ["SequenceClassifier", "SpikingNetwork", "LIFNetwork"])
@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("form", ["sequence", "unrolled"])
def test_a_readout_takes_each_samples_own_steps(tmp_path: Path, form: str, readout: str, kind: str) -> None:
    training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)
    torch.manual_seed(0)
    if kind == "SequenceClassifier":
        net: Any = training.SequenceClassifier(ELM(6, 3, num_memory=4), readout=readout)
    elif kind == "SpikingNetwork":
        net = training.SpikingNetwork(spiking(LIF(6, 7)), ELM(7, 3, num_memory=4), readout=readout)
    else:
        net = training.LIFNetwork(spiking(LIF(6, 7)), spiking(LIF(7, 6, recurrent=True)), output_size=3)
        net.readout.readout = readout
    model = runtime(tmp_path, net, form, lengths=True)
    x, lengths = torch.randn(5, NUM_STEPS, 6), LENGTHS.clamp(min=1)
    outputs, _ = model.run(x.numpy(), lengths=lengths.numpy())
    for i, length in enumerate(lengths.tolist()):
        with torch.no_grad():
            expected = net(x[i : i + 1, :length])[0]
        torch.testing.assert_close(torch.from_numpy(outputs["y"][i]), expected, **TOLERANCE)


def test_the_input_is_there_on_request_only_and_not_for_steps(tmp_path: Path) -> None:
    neuron = made("ELM")
    model = runtime(tmp_path, neuron, "sequence")
    assert not model.takes_lengths
    with pytest.raises(ValueError, match="lengths need a model that was exported with lengths=True"):
        model.run(np.zeros((1, 5, 6)), lengths=[3])
    model = runtime(tmp_path, neuron, "sequence", lengths=True)
    declared = {value.name: value for value in onnx.load(str(tmp_path / "model.onnx")).graph.input}
    assert declared["lengths"].type.tensor_type.elem_type == onnx.TensorProto.INT64
    with pytest.raises(ValueError, match="lengths must be from 0 to 5, got 3 to 6"):
        model.run(np.zeros((2, 5, 6)), lengths=[3, 6])
    with pytest.raises(ValueError, match=r"lengths must be 2 whole numbers, got int64 of shape \(3,\)"):
        model.run(np.zeros((2, 5, 6)), lengths=[3, 3, 3])
    x = np.random.default_rng(0).random((2, 5, 6), dtype=np.float32)
    np.testing.assert_array_equal(model.run(x)[0]["y"], model.run(x, lengths=[5, 5])[0]["y"])
    with pytest.raises(ValueError, match='lengths must be False for the form "step"'):
        export.to_onnx(neuron, tmp_path / "step.onnx", lengths=True)


def test_an_unrolled_model_takes_lengths_over_several_calls(tmp_path: Path) -> None:
    neuron = made("ELM")
    export.to_onnx(neuron, tmp_path / "model.onnx", form="unrolled", num_steps=10, lengths=True)
    x, lengths = torch.randn(4, 30, 6), torch.tensor([30, 11, 10, 0])
    outputs, end = onnx_neuron.OnnxNeuron(tmp_path / "model.onnx").run(x.numpy(), lengths=lengths.numpy())
    with torch.no_grad():
        y, after = neuron(x, None, lengths)
    torch.testing.assert_close(torch.from_numpy(outputs["y"]), y, **TOLERANCE)
    torch.testing.assert_close(torch.from_numpy(end["m"]), after.m, **TOLERANCE)


def test_a_classifier_in_pieces_gives_the_answer_of_each_samples_end(tmp_path: Path) -> None:
    training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)
    torch.manual_seed(0)
    net = training.SequenceClassifier(ELM(6, 10, num_memory=4))  # as many classes as steps
    export.to_onnx(net, tmp_path / "model.onnx", form="unrolled", num_steps=10, lengths=True)
    x, lengths = torch.randn(4, 30, 6), torch.tensor([30, 11, 10, 3])
    outputs, _ = onnx_neuron.OnnxNeuron(tmp_path / "model.onnx").run(x.numpy(), lengths=lengths.numpy())
    with torch.no_grad():
        expected = last_output(net.neuron(x, None, lengths)[0], lengths)
    torch.testing.assert_close(torch.from_numpy(outputs["y"]), expected, **TOLERANCE)


@pytest.mark.parametrize("given", [None, [30, 11, 10, 3]])
def test_a_mean_in_pieces_is_that_of_all_of_each_samples_steps(tmp_path: Path, given: list[int] | None) -> None:
    training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)
    torch.manual_seed(0)
    classifier = training.SequenceClassifier(ELM(6, 3, num_memory=4), readout="mean")
    control = training.LIFNetwork(LIF(6, 5), LIF(5, 4, recurrent=True), output_size=3)  # the mean of its integrators
    x = (torch.rand(4, 30, 6) < 0.5).float()
    for index, net in enumerate((classifier, control)):
        path = tmp_path / f"{index}.onnx"
        export.to_onnx(net, path, form="unrolled", num_steps=10, lengths=given is not None)
        outputs, _ = onnx_neuron.OnnxNeuron(path).run(x.numpy(), lengths=given)
        with torch.no_grad():
            expected = torch.cat([net(x[i : i + 1, :end]) for i, end in enumerate(given or [30] * 4)])
        torch.testing.assert_close(torch.from_numpy(outputs["y"]), expected, **TOLERANCE)


@pytest.mark.grid(every=2)
@pytest.mark.parametrize(("batch_size", "num_steps"), [(0, 0), (0, NUM_STEPS), (3, 0)])
@pytest.mark.parametrize(
    ("form", "lengths"), [("step", False), ("sequence", False), ("sequence", True), ("unrolled", True)]
)
@pytest.mark.parametrize("name", ["wide ELM", "spiking population", "ALIF"])
def test_no_steps_leave_the_state_and_no_samples_give_none(
    tmp_path: Path, name: str, form: str, num_steps: int, batch_size: int, lengths: bool
) -> None:
    layer = made(name)
    steps = NUM_STEPS if form == "unrolled" else None
    export.to_onnx(layer, tmp_path / "model.onnx", form=form, num_steps=steps, lengths=lengths, verify=False)
    model = onnx_neuron.OnnxNeuron(tmp_path / "model.onnx")
    x = torch.randn(batch_size, num_steps, layer.input_size)
    start = layer.initial_state(batch_size)
    start = type(start)(*(torch.rand_like(part) if field != "s" else part for field, part in start._asdict().items()))
    state = {field: getattr(start, field).numpy() for field in model.state_shapes}
    outputs, end = model.run(x.numpy(), state)
    with torch.no_grad():
        y, after = layer(x, start)
    assert outputs["y"].shape == y.shape
    torch.testing.assert_close(torch.from_numpy(outputs["y"]), y, **TOLERANCE)
    for field, part in end.items():
        torch.testing.assert_close(torch.from_numpy(part), getattr(after, field), **TOLERANCE)


def test_a_readout_of_no_steps_is_refused(tmp_path: Path) -> None:
    training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)
    net = training.SequenceClassifier(ELM(6, 3, num_memory=4))
    for form in ("sequence", "unrolled"):
        with pytest.raises(ValueError, match="x must have at least one step for y, got 0"):
            runtime(tmp_path, net, form).run(np.zeros((2, 0, 6)))
        with pytest.raises(ValueError, match="lengths must be from 1 to 37, got 0 to 10"):
            runtime(tmp_path, net, form, lengths=True).run(np.zeros((2, 37, 6)), lengths=[0, 10])


@pytest.mark.parametrize("name", ["snnTorch", "norse"])
def test_faces_have_lengths_too(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_memory": 3, "threshold": 0.02}
    if name == "snnTorch":
        face: Any = pytest.importorskip("elm_neuro.adapters.snntorch", exc_type=ImportError).ELMSequence(
            6, 2, **options
        )
    else:
        face = pytest.importorskip("elm_neuro.adapters.norse", exc_type=ImportError).ELM(6, 2, **options)
    model = runtime(tmp_path, face, "sequence", lengths=True)
    x = torch.randn(5, NUM_STEPS, 6)
    outputs, _ = model.run(x.numpy(), lengths=LENGTHS.numpy())
    for i, length in enumerate(LENGTHS.tolist()):
        with torch.no_grad():
            found = face(x[i : i + 1, :length].transpose(0, 1))
            spikes: Tensor = found[0] if isinstance(found, tuple) else found
        assert torch.equal(torch.from_numpy(outputs["y"][i, :length]), spikes[:, 0])
        assert not outputs["y"][i, length:].any()


@pytest.mark.parametrize("name", ["ELM", "wide ELM", "LIF", "SpikingELM"])
def test_onnxruntime_alone_says_that_it_has_no_empty_sequences(tmp_path: Path, name: str) -> None:
    layer = made(name)
    model = runtime(tmp_path, layer, "sequence")
    state = {field: getattr(layer.initial_state(2), field).numpy() for field in model.state_shapes}
    with pytest.raises(Exception, match="Non-zero status code"):
        model.session.run(["y"], {"x": np.zeros((2, 0, layer.input_size), np.float32), **state})
