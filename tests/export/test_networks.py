"""Spiking layers, networks of them and hosts' faces compute in onnxruntime what their own forward does in torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from elm_neuro import ALIF, ELM, LIF, BranchELM, SpikingELM

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)

FORMS = ["step", "sequence", "unrolled"]
NEAR = 1e-4  # a readout as near to its threshold may fall either way


def spikes_of(path: Path, x: Tensor) -> dict[str, Tensor]:
    """Outputs of a model of any form for a sequence (batch, time, ...) from zero states."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    dtype = np.float64 if x.dtype == torch.float64 else np.float32
    fed = {
        value.name: np.zeros([len(x), *value.shape[1:]], dtype) for value in session.get_inputs() if value.name != "x"
    }
    names = [value.name for value in session.get_outputs()]
    if len(session.get_inputs()[0].shape) == x.ndim:
        found = dict(zip(names, session.run(names, {"x": x.numpy(), **fed}), strict=True))
        return {name: torch.from_numpy(value) for name, value in found.items()}
    records: dict[str, list[Tensor]] = {name: [] for name in names}
    for x_t in x.unbind(1):
        found = dict(zip(names, session.run(names, {"x": x_t.numpy(), **fed}), strict=True))
        fed = {name: found[f"{name}_next"] for name in fed}
        for name in names:
            records[name].append(torch.from_numpy(found[name]))
    return {name: values[-1] if name.endswith("_next") else torch.stack(values, 1) for name, values in records.items()}


def written(module: nn.Module, path: Path, form: str, num_steps: int) -> Any:
    return export.to_onnx(module, path, form=form, num_steps=num_steps if form == "unrolled" else None)


@st.composite
def spiking(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 2**20)))
    if draw(st.booleans()):
        options = {
            "latency": draw(st.sampled_from([0.0, 1.0, 3.0])),
            "recurrent": draw(st.booleans()),
            "adaptive": draw(st.booleans()),
        }
        layer = ALIF(5, 4, tau_v=5.0, tau_a=20.0, b_init=0.5, **options)
        with torch.no_grad():
            layer.cell.weight *= 4.0
        return layer.double()
    population = draw(st.sampled_from([None, 3]))
    core = ELM(5, 2, num_memory=3, num_neuron=population, flatten_output=bool(population) and draw(st.booleans()))
    outputs = 2 if population is None or not core.config.flatten_output else 6
    threshold = draw(st.sampled_from([0.05, torch.linspace(-0.1, 0.2, outputs)]))
    return SpikingELM(
        core,
        threshold=threshold,
        reset=draw(st.sampled_from(["none", "subtract", "zero"])),
        graded_factor=draw(st.sampled_from([1.0, 2.0])),
    ).double()


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("form", FORMS)
def test_spikes_states_and_readouts_are_those_of_the_layer(tmp_path: Path, form: str, data: st.DataObject) -> None:
    layer = data.draw(spiking())
    batch, num_steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    x = torch.randn(batch, num_steps, 5, dtype=torch.float64)
    written(layer, tmp_path / "layer.onnx", form, num_steps)
    with torch.no_grad():
        spikes, state = layer(x)
    found = spikes_of(tmp_path / "layer.onnx", x)
    torch.testing.assert_close(found["y"], spikes)
    for name, value in found.items():
        if name.endswith("_next"):
            torch.testing.assert_close(value, getattr(state, name.removesuffix("_next")), rtol=1e-9, atol=1e-9)
    if "v" in found:
        torch.testing.assert_close(found["v"][:, -1], state.v, rtol=1e-9, atol=1e-9)


def mixed() -> nn.Sequential:
    torch.manual_seed(0)
    population = BranchELM(
        6, 1, num_memory=4, num_branch=3, num_synapse_per_branch=4, num_neuron=8, flatten_output=True
    )
    layers = [
        nn.Linear(12, 10),
        LIF(10, 6),
        SpikingELM(population, threshold=0.0, reset="subtract"),
        nn.Dropout(0.5),
        ALIF(8, 5),
        nn.Linear(5, 3),
        nn.SiLU(),
    ]
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, ALIF):
                layer.cell.weight *= 5.0
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("form", FORMS)
def test_a_network_that_mixes_them_all(tmp_path: Path, form: str) -> None:
    net = mixed().double()
    written(net, tmp_path / "net.onnx", form, 30)
    x = torch.randn(3, 30, 12, dtype=torch.float64)
    y = x
    with torch.no_grad():
        for layer in net:
            y = layer(y)
            y = y[0] if isinstance(y, tuple) else y
    found = spikes_of(tmp_path / "net.onnx", x)
    assert float(y.std()) > 0.01  # there are spikes on the way
    torch.testing.assert_close(found["y"], y)
    assert {"1.v_next", "2.b_next", "2.m_next", "2.s_next", "4.v_next", "4.a_next"} == {
        name for name in found if name.endswith("_next")
    }


@pytest.mark.parametrize(
    ("kind", "readout"),
    [
        *(
            (kind, readout)
            for kind in ("SequenceClassifier", "SpikingNetwork", "LIFNetwork")
            for readout in ("last", "mean")
        ),
        ("ALIFNetwork", "sum"),
    ],
)
def test_classifiers_of_training_give_their_logits(tmp_path: Path, kind: str, readout: str) -> None:
    training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)
    torch.manual_seed(0)
    x = (torch.rand(4, 45, 12) < 0.3).double()
    neuron = ELM(12 if kind == "SequenceClassifier" else 7, 5, num_memory=4)
    if kind == "SequenceClassifier":
        net: Any = training.SequenceClassifier(neuron, readout=readout)
    elif kind == "SpikingNetwork":
        net = training.SpikingNetwork(LIF(12, 7), neuron, readout=readout)
    elif kind == "ALIFNetwork":
        net = training.ALIFNetwork(ALIF(12, 7, recurrent=True, latency=2.0), ALIF(7, 6), output_size=5)
    else:
        net = training.LIFNetwork(LIF(12, 7), LIF(7, 6, recurrent=True), output_size=5)
        net.readout.readout = readout
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, ALIF):
                part.cell.weight *= 5.0
    net = net.double()
    for form in ("sequence", "unrolled"):
        written(net, tmp_path / "net.onnx", form, 45)
        with torch.no_grad():
            expected = net(x)
        torch.testing.assert_close(spikes_of(tmp_path / "net.onnx", x)["y"], expected)
    if readout != "mean":  # one step gives the answer so far
        written(net, tmp_path / "net.onnx", "step", 45)
        torch.testing.assert_close(spikes_of(tmp_path / "net.onnx", x)["y"][:, -1], expected)
    else:
        with pytest.raises(
            export.ExportError, match='a mean over time needs a whole sequence: form must be "sequence" or "unrolled"'
        ):
            written(net, tmp_path / "net.onnx", "step", 45)


@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
@pytest.mark.parametrize("form", FORMS)
def test_snntorch_faces_spike_alike(tmp_path: Path, form: str, reset: str) -> None:
    faces = pytest.importorskip("elm_neuro.adapters.snntorch", exc_type=ImportError)
    torch.manual_seed(0)
    first = faces.ELM(
        6,
        1,
        num_memory=4,
        num_neuron=5,
        threshold=0.02,
        reset_mechanism=reset,
        init_hidden=True,
        graded_spikes_factor=1.5,
    )
    last = faces.ALIF(5, 4, init_hidden=True)
    with torch.no_grad():
        last.core.cell.weight *= 5.0
    net = nn.Sequential(first, last, nn.Linear(4, 2)).double()
    x = torch.randn(3, 25, 6, dtype=torch.float64)
    written(net, tmp_path / "net.onnx", form, 25)
    faces.reset(net)
    with torch.no_grad():
        expected = torch.stack([net(x_t) for x_t in x.unbind(1)], 1)
    assert float(expected.std()) > 0
    torch.testing.assert_close(spikes_of(tmp_path / "net.onnx", x)["y"], expected)


@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
@pytest.mark.parametrize("form", FORMS)
def test_snntorchs_own_leaky_neurons_stand_beside_them(tmp_path: Path, form: str, reset: str) -> None:
    snntorch, faces = (
        pytest.importorskip("snntorch"),
        pytest.importorskip("elm_neuro.adapters.snntorch", exc_type=ImportError),
    )
    torch.manual_seed(0)
    leaky = snntorch.Leaky(torch.linspace(0.5, 0.95, 5), threshold=0.3, reset_mechanism=reset, init_hidden=True)
    net = nn.Sequential(nn.Linear(6, 5), leaky, faces.ELM(5, 2, num_memory=3, threshold=0.05, init_hidden=True))
    x = torch.randn(3, 25, 6)  # snnTorch's surrogates give float32
    written(net, tmp_path / "net.onnx", form, 25)
    faces.reset(net)
    with torch.no_grad():
        expected = torch.stack([net(x_t) for x_t in x.unbind(1)], 1)
        hidden = leaky.mem
    found = spikes_of(tmp_path / "net.onnx", x)
    assert float(expected.std()) > 0
    torch.testing.assert_close(found["y"], expected)
    torch.testing.assert_close(found["1.mem_next"], hidden, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("form", FORMS)
def test_spikes_that_meet_a_threshold_exactly_are_compared(tmp_path: Path, form: str, reset: str) -> None:
    snntorch = pytest.importorskip("snntorch")
    torch.manual_seed(0)
    leaky = snntorch.Leaky(0.5, threshold=1.0, reset_mechanism=reset, init_hidden=True)  # the first spike is a tie
    net = nn.Sequential(SpikingELM(ELM(60, 100, num_memory=8), threshold=0.1), leaky)
    x = (torch.rand(2, 25, 60) < 0.3).float()
    report = export.to_onnx(net, tmp_path / "net.onnx", form=form, num_steps=25 if form == "unrolled" else None)
    assert report.num_undecided < report.num_steps / 2  # all but a few of them where a tie is taken for undecided
    with torch.no_grad():
        inner = net[0](x)[0]
        leaky.mem = torch.zeros(())
        expected = torch.stack([leaky(spikes_t) for spikes_t in inner.unbind(1)], 1)
    first = inner.cumsum(1) == 1.0
    assert bool((first & (inner > 0)).any())
    assert not expected[first & (inner > 0)].any()
    assert bool(expected.any())
    torch.testing.assert_close(spikes_of(tmp_path / "net.onnx", x)["y"], expected)


def test_a_leaky_neuron_that_resets_at_once_is_refused(tmp_path: Path) -> None:
    snntorch = pytest.importorskip("snntorch")
    net = nn.Sequential(nn.Linear(6, 5), snntorch.Leaky(0.9, reset_delay=False))
    with pytest.raises(
        export.ExportError, match="reset_delay must be as snnTorch has it by default to be exported, got False in Leaky"
    ):
        export.to_onnx(net, tmp_path / "net.onnx")


def test_an_snntorch_sequence_is_the_same_neuron(tmp_path: Path) -> None:
    faces = pytest.importorskip("elm_neuro.adapters.snntorch", exc_type=ImportError)
    torch.manual_seed(0)
    face, x = (
        faces.ELMSequence(6, 2, num_memory=4, threshold=0.02, reset_mechanism="subtract").double(),
        torch.randn(25, 3, 6, dtype=torch.float64),
    )
    export.to_onnx(face, tmp_path / "net.onnx", form="sequence", batch_first=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    zeros = {value.name: np.zeros([3, *value.shape[1:]]) for value in session.get_inputs()[1:]}
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(session.run(["y"], {"x": x.numpy(), **zeros})[0]), face(x))


@pytest.mark.parametrize("option", [{"inhibition": True}, {"state_quant": lambda x: x}])
def test_what_snntorch_adds_and_onnx_has_not_is_named(tmp_path: Path, option: dict[str, Any]) -> None:
    faces = pytest.importorskip("elm_neuro.adapters.snntorch", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # snnTorch calls its inhibition unstable
        face = faces.ELM(3, 2, num_memory=2, **option)
    with pytest.raises(export.ExportError, match=rf"{next(iter(option))} must be off to be exported, got .* in ELM"):
        export.to_onnx(face, tmp_path / "net.onnx")


@pytest.mark.parametrize("form", FORMS)
def test_norse_faces_spike_alike(tmp_path: Path, form: str) -> None:
    faces, norse = (
        pytest.importorskip("elm_neuro.adapters.norse", exc_type=ImportError),
        pytest.importorskip("norse.torch"),
    )
    torch.manual_seed(0)
    net = norse.SequentialState(
        faces.ELM(6, 1, num_memory=4, num_neuron=5, threshold=0.02, reset="zero"),
        faces.ALIF(5, 4),
        faces.ELM(4, 2, num_memory=3, spiking=False),
    )
    with torch.no_grad():
        net[1].core.cell.weight *= 5.0
    net, x = net.double(), torch.randn(3, 25, 6, dtype=torch.float64)
    written(net, tmp_path / "net.onnx", form, 25)
    with torch.no_grad():
        expected, _ = net(x.transpose(0, 1))
    torch.testing.assert_close(spikes_of(tmp_path / "net.onnx", x)["y"], expected.transpose(0, 1))


def test_a_model_of_which_no_spike_can_be_compared_is_refused(tmp_path: Path) -> None:
    """A readout so near its threshold that rounding decides."""
    neuron = SpikingELM(ELM(3, 1, num_memory=2), threshold=0.0)
    with torch.no_grad():
        neuron.core.cell.w_y.weight.zero_()
        neuron.core.cell.w_y.bias.fill_(1e-6)
    with pytest.raises(
        export.ExportError, match=r"y must be compared at 10 steps or more, got 0 of \d+: at the others"
    ):
        export.to_onnx(neuron, tmp_path / "neuron.onnx")
    with torch.no_grad():
        neuron.core.cell.w_y.bias.fill_(1.0)
    report = export.to_onnx(neuron, tmp_path / "neuron.onnx")
    assert report.num_undecided == 0
    assert report.compared["y"] == report.num_steps > 0
    with torch.no_grad():
        neuron.core.cell.w_y.bias.zero_()  # which no rounding moves
    assert export.to_onnx(neuron, tmp_path / "neuron.onnx").num_undecided == 0


def test_the_report_says_how_much_was_compared_and_which_layers_were_silent(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loud, silent = LIF(6, 40), LIF(40, 3)
    with torch.no_grad():
        silent.cell.weight.zero_()
    net = nn.Sequential(loud, silent)
    report = export.to_onnx(net, tmp_path / "net.onnx", form="sequence")
    assert report.silent == ("1",)
    assert report.compared["y"] == 3 * (report.num_steps - report.num_undecided)


def test_a_wrong_threshold_is_found_out(tmp_path: Path) -> None:
    neuron = SpikingELM(ELM(3, 1, num_memory=2), threshold=0.05)
    export.to_onnx(neuron, tmp_path / "neuron.onnx", form="sequence")
    with torch.no_grad():
        neuron.output.threshold -= 10.0
    with pytest.raises(export.ExportError, match=r"off by y 1\.00e\+00"):
        export.verify(tmp_path / "neuron.onnx", neuron)


@pytest.mark.parametrize("reset", ["none", "subtract"])
def test_the_readout_beside_the_spikes_is_compared_too(tmp_path: Path, reset: str) -> None:
    """Spikes far below their threshold show nothing of a readout that is off."""
    neuron = SpikingELM(ELM(3, 1, num_memory=2), threshold=100.0, reset=reset)
    assert 0 < export.to_onnx(neuron, tmp_path / "neuron.onnx", form="sequence").errors["v"] < 1e-5
    with torch.no_grad():
        neuron.core.cell.w_y.bias += 0.1
    with pytest.raises(export.ExportError, match=r"off by v 1\.00e-01"):
        export.verify(tmp_path / "neuron.onnx", neuron)
