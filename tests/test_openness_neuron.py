"""A neuron of someone else, in no file of the package: made spiking, wrapped by the hosts' faces, saved and loaded."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from elm_neuro import LIF, SpikeEvents, SpikingELM, pretrained
from elm_neuro.checkpoints import from_pretrained, save_pretrained
from elm_neuro.functional import ATan
from elm_neuro.nn import check_layer, is_layer
from tests.tolerances import assert_close
from tests.toy_layer import ToyLayer, filtered, spikes_in

INPUTS, OUTPUTS, STEPS, BATCH = 5, 4, 12, 3


@pytest.fixture
def toy() -> ToyLayer:
    torch.manual_seed(0)
    return ToyLayer(INPUTS, OUTPUTS, tau=8.0)


@pytest.fixture
def registered() -> Any:
    yield pretrained.register(ToyLayer)
    pretrained._kinds._KINDS.pop("ToyLayer")


def test_it_keeps_the_protocol(toy: ToyLayer) -> None:
    assert is_layer(toy)
    check_layer(toy)


@pytest.mark.parametrize("reset", ["none", "subtract"])
def test_it_is_made_to_spike(toy: ToyLayer, reset: str) -> None:
    spiking, x = SpikingELM(toy, threshold=0.4, reset=reset), spikes_in(BATCH, STEPS, INPUTS)
    spikes, state = spiking(x)
    u, s = filtered(toy, x).detach(), torch.zeros(BATCH, OUTPUTS)
    for t in range(STEPS):
        v = u[:, t] - (0.4 * s if reset == "subtract" else 0.0)
        s = (v > 0.4).float()
        assert torch.equal(spikes[:, t], s)
    assert 0.0 < float(spikes.detach().mean()) < 1.0
    assert_close(state.v, v)
    assert_close(state.u, u[:, -1])
    spikes.sum().backward()
    assert toy.linear.weight.grad is not None and bool(toy.linear.weight.grad.any())


def test_its_state_is_carried_over_a_split_by_steps_and_past_the_end_of_a_sample(toy: ToyLayer) -> None:
    spiking, x = SpikingELM(toy, threshold=0.4, reset="zero"), spikes_in(BATCH, STEPS, INPUTS)
    whole, end = spiking(x)
    first, state = spiking(x[:, :5])
    rest, last = spiking(SpikeEvents.from_frames(x[:, 5:]), state)
    assert torch.equal(torch.cat([first, rest], 1), whole)
    stepped = spiking.initial_state(BATCH)
    for x_t in x.unbind(1):
        _, stepped = spiking.step(x_t, stepped)
    cut, after = spiking(x, lengths=torch.tensor([STEPS, 5, 0]))
    assert not cut[1, 5:].any() and not cut[2].any()
    for one, two, three, four, zero in zip(end, last, stepped, after, spiking.initial_state(1), strict=True):
        assert_close(two, one)
        assert_close(three, one)
        assert_close(four[0], one[0])
        assert torch.equal(four[2], zero[0])
    assert_close(after.u[1], state.u[1])


def test_its_spiking_state_pickles_and_copies(toy: ToyLayer) -> None:
    spiking = SpikingELM(toy, threshold=0.4)
    state = spiking.initial_state(2)
    assert state._fields == ("u", "v", "s")
    for other in (pickle.loads(pickle.dumps(state)), copy.deepcopy(state)):
        assert type(other) is type(state) and all(torch.equal(a, b) for a, b in zip(other, state, strict=True))
    twin = pickle.loads(pickle.dumps(spiking))
    x = spikes_in(1, 4, INPUTS)
    assert torch.equal(twin(x)[0], spiking(x)[0])


@pytest.mark.parametrize("sequence", [False, True])
def test_snntorch_takes_it_beside_its_own_neurons(toy: ToyLayer, sequence: bool) -> None:
    snn = pytest.importorskip("snntorch")
    from elm_neuro.adapters import snntorch as faces

    plain, x = SpikingELM(toy, threshold=0.4, surrogate=ATan(), reset="subtract"), spikes_in(STEPS, BATCH, INPUTS)
    make = faces.Layer if sequence else faces.Cell
    face = make(copy.deepcopy(toy), threshold=0.4, reset_mechanism="subtract", init_hidden=True)
    leaky = snn.Leaky(0.9, init_hidden=True)
    spikes = face(x) if sequence else torch.stack([face(x_t) for x_t in x])
    out = torch.stack([leaky(s_t) for s_t in spikes])
    out.sum().backward()
    expected = plain(x.transpose(0, 1))[0].transpose(0, 1)
    expected.backward(_gradient_through_leaky(snn, expected))
    assert torch.equal(spikes, expected) and expected.any()
    assert_close(face.core.linear.weight.grad, toy.linear.weight.grad)
    assert face.state_names == ("u", "mem") and face.u.shape == face.mem.shape == (BATCH, OUTPUTS)
    faces.reset(nn.Sequential(face, leaky))
    assert face.mem.numel() == 0


def _gradient_through_leaky(snn: Any, spikes: torch.Tensor) -> torch.Tensor:
    leaf, leaky = spikes.detach().clone().requires_grad_(), snn.Leaky(0.9, init_hidden=True)
    return torch.autograd.grad(torch.stack([leaky(s_t) for s_t in leaf]).sum(), leaf)[0]


def test_snntorch_hands_its_states_from_step_to_step(toy: ToyLayer) -> None:
    pytest.importorskip("snntorch")
    from elm_neuro.adapters import snntorch as faces

    face, x = faces.Cell(toy, threshold=0.4), spikes_in(STEPS, BATCH, INPUTS)
    states = face.reset_mem()
    for x_t in x:
        spk, *states = face(x_t, *states)
    spikes, end = SpikingELM(toy, threshold=0.4)(x.transpose(0, 1))
    assert torch.equal(spk, spikes[:, -1])
    assert_close(states[0], end.u)
    assert_close(states[1], end.v)
    with pytest.raises(ValueError, match=r"u must have shape \(3, 4\), got \(2, 4\)"):
        face(x[0], states[0][:2], states[1])


@pytest.mark.parametrize("sequence", [False, True])
def test_norse_takes_it_beside_its_own_neurons(toy: ToyLayer, sequence: bool) -> None:
    norse = pytest.importorskip("norse.torch")
    from elm_neuro.adapters import norse as faces

    if sequence:
        face = faces.Layer(toy, threshold=0.4)
        net = norse.SequentialState(face, norse.LIFRecurrent(OUTPUTS, 3), norse.LI())
    else:
        face = faces.Cell(toy, threshold=0.4)
        net = norse.SequentialState(face, norse.LIFRecurrentCell(OUTPUTS, 3), norse.LICell())

    def run(x: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        if sequence:
            return net(x, state)  # type: ignore[no-any-return]
        steps = []
        for x_t in x:
            y_t, state = net(x_t, state)
            steps.append(y_t)
        return torch.stack(steps), state

    x = spikes_in(STEPS, BATCH, INPUTS)
    whole, end = run(x)
    first, state = run(x[:5])
    rest, last = run(x[5:], state)
    assert_close(torch.cat([first, rest]), whole)
    assert end[0].v.shape == (BATCH, OUTPUTS)
    assert_close(end[0].v, last[0].v)
    spikes = face(x)[0] if sequence else norse.Lift(face)(x)[0]
    assert torch.equal(spikes, SpikingELM(toy, threshold=0.4)(x.transpose(0, 1))[0].transpose(0, 1))
    spikes.sum().backward()
    assert toy.linear.weight.grad is not None and bool(toy.linear.weight.grad.any())
    assert face.dt == 0.001


def test_norse_reads_its_output_as_a_current(toy: ToyLayer) -> None:
    pytest.importorskip("norse.torch")
    from elm_neuro.adapters import norse as faces

    x = spikes_in(STEPS, BATCH, INPUTS)
    out, state = faces.Layer(toy, spiking=False)(x)
    assert_close(out.transpose(0, 1), filtered(toy, x.transpose(0, 1)))
    assert torch.equal(state.v, out[-1])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda toy: toy,
        lambda toy: SpikingELM(toy, threshold=0.25, learn_threshold=True, reset="zero", surrogate=ATan(3.0)),
        lambda toy: nn.Sequential(toy, nn.Linear(OUTPUTS, 6), nn.ReLU(), LIF(6, 2)),
    ],
)
def test_it_is_saved_and_loaded_after_one_register(
    toy: ToyLayer, registered: Any, tmp_path: Path, wrap: Callable[[ToyLayer], nn.Module]
) -> None:
    module = wrap(toy).double()
    save_pretrained(module, tmp_path)
    before = torch.get_rng_state()
    loaded = from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before) and type(loaded) is type(module)
    for (name, ours), (other, theirs) in zip(module.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other and torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    x = spikes_in(BATCH, STEPS, INPUTS).double()
    if not isinstance(module, nn.Sequential):
        assert loaded.config == module.config
        assert torch.equal(loaded(x)[0], module(x)[0])


def test_unless_it_is_registered_it_is_not_saved_and_the_known_classes_are_named(toy: ToyLayer, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"module must be one of ALIF, .*ELM.*, got ToyLayer"):
        save_pretrained(toy, tmp_path)
    with pytest.raises(TypeError, match=r"module 0 must be one of ALIF, .*, got ToyLayer"):
        save_pretrained(nn.Sequential(toy), tmp_path)


def test_a_folder_of_an_unknown_class_names_those_that_are_known(toy: ToyLayer, tmp_path: Path) -> None:
    pretrained.register(ToyLayer)
    try:
        save_pretrained(SpikingELM(toy), tmp_path)
    finally:
        pretrained._kinds._KINDS.pop("ToyLayer")
    with pytest.raises(ValueError, match=r"class must be one of ALIF, .*SpikingELM, Tanh, got 'ToyLayer'"):
        from_pretrained(tmp_path)


def test_a_folder_whose_tensors_are_not_those_of_its_config_is_refused(
    toy: ToyLayer, registered: Any, tmp_path: Path
) -> None:
    save_pretrained(toy, tmp_path)
    path = tmp_path / "config.json"
    for values, message in (
        ({"output_size": 10**9}, r"linear\.weight must have shape \(1000000000, 5\) to fit its config, got \(4, 5\)"),
        ({"input_size": 10**30}, "must hold the tensors of its config|int too large|Overflow"),
        ({"spy": 1}, "unexpected keyword argument 'spy'"),
    ):
        config = json.loads(path.read_text())
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
        config["config"] |= values
        (tmp_path / "other" / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            from_pretrained(tmp_path / "other")


def test_a_class_that_cannot_be_saved_is_not_registered() -> None:
    class NoConfig(nn.Module):
        pass

    with pytest.raises(TypeError, match=r"NoConfig must have config_type, .*, from_config to be saved"):
        pretrained.register(NoConfig)

    class ELM(ToyLayer):
        pass

    with pytest.raises(ValueError, match="ELM must be the name of one class"):
        pretrained.register(ELM)
