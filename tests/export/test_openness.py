"""A neuron of someone else is exported after one `register`: alone, in networks, and in every wrapper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from elm_neuro import LIF, SpikingELM
from tests.toy_layer import ToyLayer, ToyState

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)
lowering = pytest.importorskip("elm_neuro.export._lowering", exc_type=ImportError)

FORMS = ["step", "sequence", "unrolled"]
INPUTS, OUTPUTS, STEPS, BATCH = 5, 4, 40, 3


class ToyLowering(export.Lowering):  # type: ignore[misc, name-defined]
    def lower(self, graph: Any, module: ToyLayer, x: Any) -> Any:
        current = replace(x, name=graph.linear("linear", x.name, module.linear.weight), shape=(module.output_size,))
        u, after = graph.leaky("u", current, torch.tensor(module.kappa), graph.state("u", module.output_size))
        graph.keep("u", after)
        return u


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "_REGISTRY", dict(lowering._REGISTRY))
    export.register(ToyLayer, ToyLowering())


@pytest.fixture
def toy() -> ToyLayer:
    torch.manual_seed(0)
    return ToyLayer(INPUTS, OUTPUTS, tau=8.0)


@pytest.fixture
def x() -> Tensor:
    return torch.poisson(torch.full((BATCH, STEPS, INPUTS), 0.7), generator=torch.Generator().manual_seed(1))


def through(path: Path, x: Tensor) -> Tensor:
    """A sequence (batch, time, input_size) from zero states through a model of any form."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    fed = {
        value.name: np.zeros([len(x), *value.shape[1:]], np.float32)
        for value in session.get_inputs()
        if value.name != "x"
    }
    if len(session.get_inputs()[0].shape) == 3:
        return torch.from_numpy(session.run(["y"], {"x": x.numpy(), **fed})[0])
    outputs = []
    for x_t in x.unbind(1):
        found = dict(zip(names, session.run(names, {"x": x_t.numpy(), **fed}), strict=True))
        fed = {name: found[f"{name}_next"] for name in fed}
        outputs.append(torch.from_numpy(found["y"]))
    return torch.stack(outputs, 1)


def written(module: nn.Module, path: Path, form: str) -> Any:
    return export.to_onnx(module, path, form=form, num_steps=STEPS if form == "unrolled" else None)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_exported_in_three_forms(tmp_path: Path, toy: ToyLayer, x: Tensor, form: str) -> None:
    report = written(toy, tmp_path / "toy.onnx", form)
    assert set(report.errors) == {"y", "u_next"}
    with torch.no_grad():
        torch.testing.assert_close(through(tmp_path / "toy.onnx", x), toy(x)[0])


@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_exported_with_a_threshold(tmp_path: Path, toy: ToyLayer, x: Tensor, form: str, reset: str) -> None:
    spiking = SpikingELM(toy, threshold=0.4, reset=reset)
    report = written(spiking, tmp_path / "toy.onnx", form)
    assert set(report.errors) == {"y", "v", "u_next"} | ({"s_next"} if reset != "none" else set())
    with torch.no_grad():
        expected = spiking(x)[0]
    assert torch.equal(through(tmp_path / "toy.onnx", x), expected) and 0 < float(expected.mean()) < 1


@pytest.mark.parametrize("form", FORMS)
def test_it_is_exported_in_a_network(tmp_path: Path, toy: ToyLayer, x: Tensor, form: str) -> None:
    lif = LIF(OUTPUTS, 6)
    with torch.no_grad():
        lif.cell.weight *= 4.0
    net = nn.Sequential(SpikingELM(toy, threshold=0.3), lif, nn.Linear(6, 2))
    assert {"0.u_next", "1.v_next"} < set(written(net, tmp_path / "net.onnx", form).errors)
    with torch.no_grad():
        expected = net[2](net[1](net[0](x)[0])[0])
    torch.testing.assert_close(through(tmp_path / "net.onnx", x), expected)


class Firing(ToyLayer):
    """The same, which fires where u is above 1; there is no surrogate whose calls could be watched."""

    emits_spikes = True

    def step(self, x_t: Tensor, state: ToyState) -> tuple[Tensor, ToyState]:
        u, after = super().step(x_t, state)
        return (u > 1.0).to(u.dtype), after


class FiringLowering(ToyLowering):
    def lower(self, graph: Any, module: ToyLayer, x: Any) -> Any:
        u = super().lower(graph, module, x)
        return replace(u, name=graph.above(u.name, graph.constant("threshold", torch.tensor(1.0))), spikes=True)


@pytest.mark.parametrize("kind", [None, "Cell", "Layer"])
@pytest.mark.parametrize("form", FORMS)
def test_one_that_spikes_by_itself_is_exported_alone_and_in_the_face_for_snntorch(
    tmp_path: Path, x: Tensor, form: str, kind: str | None
) -> None:
    torch.manual_seed(0)
    export.register(Firing, FiringLowering())
    firing = Firing(INPUTS, OUTPUTS, tau=8.0)
    module: nn.Module = firing
    if kind is not None:
        faces = pytest.importorskip("elm_neuro.adapters.snntorch", exc_type=ImportError)
        module = getattr(faces, kind)(firing, init_hidden=True)
    report = written(module, tmp_path / "firing.onnx", form)
    assert set(report.errors) == {"y", "u_next"}
    assert min(report.compared.values()) > 0
    with torch.no_grad():
        expected = firing(x)[0]
    assert torch.equal(through(tmp_path / "firing.onnx", x), expected) and 0 < float(expected.mean()) < 1


@pytest.mark.parametrize("kind", ["Cell", "Layer"])
def test_one_that_never_spikes_by_itself_is_reported_silent(tmp_path: Path, kind: str) -> None:
    export.register(Firing, FiringLowering())
    faces = pytest.importorskip("elm_neuro.adapters.snntorch", exc_type=ImportError)
    firing = Firing(INPUTS, OUTPUTS, tau=8.0)
    nn.init.zeros_(firing.linear.weight)
    report = written(getattr(faces, kind)(firing, init_hidden=True), tmp_path / "firing.onnx", "step")
    assert report.silent == ("module",)


@pytest.mark.parametrize("kind", ["Cell", "Layer"])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_exported_in_the_face_for_snntorch(
    tmp_path: Path, toy: ToyLayer, x: Tensor, form: str, kind: str
) -> None:
    faces = pytest.importorskip("elm_neuro.adapters.snntorch", exc_type=ImportError)
    face = getattr(faces, kind)(toy, threshold=0.4, reset_mechanism="subtract", init_hidden=True)
    report = written(face, tmp_path / "face.onnx", form)
    assert set(report.errors) == {"y", "v", "u_next", "mem_next"}
    assert face.mem.numel() == 0  # the check has run a copy
    with torch.no_grad():
        frames = x.transpose(0, 1)
        expected = face(frames) if kind == "Layer" else torch.stack([face(x_t) for x_t in frames])
    assert torch.equal(through(tmp_path / "face.onnx", x), expected.transpose(0, 1)) and expected.any()


@pytest.mark.parametrize("spiking", [True, False])
@pytest.mark.parametrize("kind", ["Cell", "Layer"])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_exported_in_the_face_for_norse(
    tmp_path: Path, toy: ToyLayer, x: Tensor, form: str, kind: str, spiking: bool
) -> None:
    faces, norse = (
        pytest.importorskip("elm_neuro.adapters.norse", exc_type=ImportError),
        pytest.importorskip("norse.torch"),
    )
    face = getattr(faces, kind)(toy, **({"threshold": 0.4} if spiking else {"spiking": False}))
    report = written(face, tmp_path / "face.onnx", form)
    assert set(report.errors) == ({"y", "v", "u_next"} if spiking else {"y", "u_next"})
    with torch.no_grad():
        expected = (face if kind == "Layer" else norse.Lift(face))(x.transpose(0, 1))[0]
    torch.testing.assert_close(through(tmp_path / "face.onnx", x), expected.transpose(0, 1))


def test_its_configuration_is_in_the_metadata(tmp_path: Path, toy: ToyLayer) -> None:
    import json

    import onnx

    export.to_onnx(SpikingELM(toy), tmp_path / "toy.onnx", verify=False)
    words = {entry.key: entry.value for entry in onnx.load(str(tmp_path / "toy.onnx")).metadata_props}
    assert json.loads(words["elm_neuro.neurons"]) == {"core": {"kind": "ToyLayer", "config": toy.config.to_dict()}}


def test_a_layer_whose_states_have_the_names_of_a_thresholds_keeps_its_own_apart(tmp_path: Path, x: Tensor) -> None:
    torch.manual_seed(0)
    lif = LIF(INPUTS, OUTPUTS)
    with torch.no_grad():
        lif.cell.weight *= 6.0
    spiking = SpikingELM(lif, threshold=0.5, reset="subtract")
    report = export.to_onnx(spiking, tmp_path / "twice.onnx", form="sequence")
    assert set(report.errors) == {"y", "v", "core.v_next", "s_next"}
    with torch.no_grad():
        assert torch.equal(through(tmp_path / "twice.onnx", x), spiking(x)[0])


@pytest.mark.parametrize(
    "wrap", [lambda toy: toy, SpikingELM, lambda toy: nn.Sequential(nn.Linear(5, 5), toy)], ids=["alone", "core", "net"]
)
def test_a_layer_of_which_nothing_is_known_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: ToyLayer, wrap: Callable[[ToyLayer], nn.Module]
) -> None:
    monkeypatch.setattr(lowering, "_REGISTRY", {k: v for k, v in lowering._REGISTRY.items() if "ToyLayer" not in k})
    with pytest.raises(
        TypeError, match=r"must be of a kind that is registered .* got ToyLayer: elm_neuro\.export\.register"
    ):
        export.to_onnx(wrap(toy), tmp_path / "toy.onnx")


@pytest.mark.parametrize("name", lowering.registered())
def test_every_name_that_is_registered_is_that_of_a_class(name: str) -> None:
    """Classes of hosts and of training are known by strings, which no tool renames."""
    module, _, kind = name.rpartition(".")
    found = pytest.importorskip(module, reason=f"{module.partition('.')[0]} is not installed")
    assert isinstance(getattr(found, kind), type)
    assert f"{getattr(found, kind).__module__}.{getattr(found, kind).__qualname__}" == name
