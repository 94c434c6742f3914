"""Modules one after the other: what stands where, and what fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elm_neuro import ALIF, ELM, LIF, SpikingELM
from tests.export.test_networks import FORMS, export, onnx, spikes_of, written


def test_layers_with_states_stand_before_a_readout(tmp_path: Path) -> None:
    training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)
    net = nn.Sequential(training.SequenceClassifier(ELM(3, 2, num_memory=2)), LIF(2, 2))
    with pytest.raises(export.ExportError, match="a layer with states must not stand behind a readout"):
        export.to_onnx(net, tmp_path / "net.onnx", form="sequence")


@pytest.mark.parametrize("form", ["sequence", "unrolled"])
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (lambda: (ELM(4, 2, num_memory=2, num_neuron=3), ELM(2, 2, num_memory=2)), r"\(3, 2\), got a layer for \(2,\)"),
        (lambda: (ELM(4, 2, num_memory=2, num_neuron=3), ALIF(2, 2)), r"\(3, 2\), got a layer for \(2,\)"),
        (
            lambda: (ELM(4, 2, num_memory=2, num_neuron=3), ELM(2, 2, num_memory=2, num_neuron=4)),
            r"\(3, 2\), got a layer for \(2,\)",
        ),
        (lambda: (ELM(4, 2, num_memory=2), ELM(3, 2, num_memory=2)), r"\(2,\), got a layer for \(3,\)"),
    ],
)
def test_layers_that_do_not_fit_are_named(tmp_path: Path, form: str, layers: Any, message: str) -> None:
    net = nn.Sequential(*layers())
    with pytest.raises(export.ExportError, match=f"1 must read what the layer before it gives, {message}"):
        export.to_onnx(net, tmp_path / "net.onnx", form=form, num_steps=5 if form == "unrolled" else None, verify=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["step", "sequence"])
def test_populations_read_what_populations_give(tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(ELM(4, 2, num_memory=2, num_neuron=3), nn.Linear(2, 5), ELM(5, 2, num_memory=2, num_neuron=3))
    export.to_onnx(net, tmp_path / "net.onnx", form=form)
    spiking = SpikingELM(ELM(5, 2, num_memory=3, num_neuron=3), threshold=0.05)
    export.to_onnx(spiking, tmp_path / "own.onnx", form=form, shared_input=False)
    x = onnx.load(str(tmp_path / "own.onnx")).graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_value for axis in x][-2:] == [3, 5]


def in_turn(net: nn.Module, x: Tensor) -> Tensor:
    """A chain by hand: each layer where it stands, from zero states."""
    for part in net._modules.values():
        found = in_turn(part, x) if isinstance(part, nn.Sequential) else part(x)  # type: ignore[misc]
        x = found[0] if isinstance(found, tuple) else found
    return x


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["function", "linear", "neuron", "spikes", "nested"])
def test_a_module_that_stands_twice_is_computed_twice(tmp_path: Path, name: str, form: str) -> None:
    torch.manual_seed(0)
    tanh, linear, neuron, spikes = nn.Tanh(), nn.Linear(4, 4), ELM(4, 4, num_memory=2), LIF(4, 4)
    nn.init.uniform_(spikes.cell.weight, 0.0, 3.0)
    net = {
        "function": lambda: nn.Sequential(neuron, tanh, linear, tanh),
        "linear": lambda: nn.Sequential(neuron, linear, tanh, linear),
        "neuron": lambda: nn.Sequential(neuron, linear, neuron),
        "spikes": lambda: nn.Sequential(spikes, linear, spikes),
        "nested": lambda: nn.Sequential(neuron, nn.Sequential(tanh, linear, tanh), tanh),
    }[name]()
    x = torch.rand(3, 12, 4)
    with torch.no_grad():
        expected, once = in_turn(net, x), in_turn(nn.Sequential(*net.children()), x)
    assert float((expected - once).abs().max()) > 0.01 or name == "nested"
    written(net, tmp_path / "net.onnx", form, 12)
    torch.testing.assert_close(spikes_of(tmp_path / "net.onnx", x)["y"], expected, rtol=0.0, atol=1e-5)


def test_a_module_that_keeps_one_state_for_two_places_is_refused(tmp_path: Path) -> None:
    snntorch = pytest.importorskip("snntorch")
    leaky = snntorch.Leaky(0.9, init_hidden=True)
    net = nn.Sequential(nn.Linear(3, 4), leaky, nn.Linear(4, 4), leaky)
    with pytest.raises(
        export.ExportError, match="3 must be a module of its own, got that of 1: it keeps one state for both"
    ):
        export.to_onnx(net, tmp_path / "net.onnx")


def fires(layer: Any) -> Any:
    """LIF neurons that fire often."""
    nn.init.uniform_(layer.cell.weight, 0.0, 2.0)
    return layer


def face(library: str, kind: str, core: Any) -> Any:
    return getattr(pytest.importorskip(f"elm_neuro.adapters.{library}", exc_type=ImportError), kind)(core)


# networks and the names of their states in a model
AGAIN: dict[str, tuple[Any, str]] = {
    "LIF twice": (
        lambda: SpikingELM(SpikingELM(fires(LIF(4, 3, latency=1.0)), threshold=0.5), threshold=0.5),
        "core.core.s core.core.v",
    ),
    "ELM twice": (
        lambda: SpikingELM(SpikingELM(ELM(4, 3, num_memory=3), threshold=0.02, reset="zero"), threshold=0.5),
        "core.b core.m core.s",
    ),
    "ALIF thrice": (
        lambda: SpikingELM(
            SpikingELM(SpikingELM(fires(ALIF(4, 3, latency=2.0)), threshold=0.5), threshold=0.3, reset="subtract"),
            threshold=0.2,
            reset="zero",
        ),
        "core.core.core.a core.core.core.s core.core.core.v core.s s",
    ),
    "cell of an ELM": (lambda: face("snntorch", "Cell", SpikingELM(ELM(4, 3, num_memory=3), threshold=0.02)), "b m"),
    "cell of an ALIF twice": (
        lambda: face(
            "snntorch",
            "Cell",
            SpikingELM(SpikingELM(fires(ALIF(4, 3, latency=1.0)), threshold=0.5), threshold=0.5, reset="subtract"),
        ),
        "core.core.a core.core.s core.core.v s",
    ),
    "snnTorch": (
        lambda: face("snntorch", "Layer", SpikingELM(fires(LIF(4, 3, latency=1.0)), threshold=0.5)),
        "core.s core.v",
    ),
    "norse": (
        lambda: face("norse", "Layer", SpikingELM(fires(LIF(4, 3, latency=1.0)), threshold=0.4, reset="subtract")),
        "core.s core.v s",
    ),
    "chain": (
        lambda: nn.Sequential(
            SpikingELM(SpikingELM(fires(LIF(4, 3, latency=1.0)), threshold=0.5), threshold=0.5), ELM(3, 2, num_memory=2)
        ),
        "0.core.core.s 0.core.core.v 1.b 1.m",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", AGAIN)
def test_what_spikes_is_made_to_spike_again(tmp_path: Path, name: str, form: str) -> None:
    """Each threshold's states have names of their own, however deep, and faces of other libraries carry them."""
    torch.manual_seed(0)
    make, names = AGAIN[name]
    net, x = make(), (torch.rand(3, 12, 4) < 0.5).float()
    layer = net if isinstance(net, (SpikingELM, nn.Sequential)) else net.core
    with torch.no_grad():
        expected = in_turn(net, x) if isinstance(net, nn.Sequential) else layer(x)[0]
    assert bool(expected.any())
    report = written(net, tmp_path / "net.onnx", form, 12)
    assert not report.silent
    found = spikes_of(tmp_path / "net.onnx", x)
    torch.testing.assert_close(found["y"], expected, rtol=0.0, atol=1e-5)
    assert {name for name in found if name.endswith("_next")} == {f"{name}_next" for name in names.split()}


def test_a_threshold_that_is_never_reached_is_named_beside_what_it_stands_behind(tmp_path: Path) -> None:
    net = nn.Sequential(
        SpikingELM(SpikingELM(fires(LIF(4, 3, latency=1.0)), threshold=0.5), threshold=2.0), nn.Linear(3, 2)
    )
    assert written(net, tmp_path / "net.onnx", "step", 12).silent == ("0",)
    net = nn.Sequential(
        SpikingELM(SpikingELM(fires(LIF(4, 3, latency=1.0)), threshold=1.0), threshold=0.5), nn.Linear(3, 2)
    )
    assert written(net, tmp_path / "net.onnx", "step", 12).silent == ("0.core", "0")
