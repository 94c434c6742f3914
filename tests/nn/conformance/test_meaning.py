"""A state dict is of the settings it was made with, and is not taken for others."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elm_neuro import ALIF, ELM, LIF, BranchELM, ELMCell, SpikeEvents, SpikingELM, suggest
from elm_neuro.functional import ATan, FastSigmoid
from elm_neuro.nn import ALIFConfig, ELMConfig, SpikeOutput
from tests.nn.conformance.kinds import EVERY, OURS, frames, made, of_kinds, run

CONTRADICTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "tau_m_bounds": (
        {},
        {"tau_m_bounds": (0.1, 3000.0)},
        r"tau_m_bounds must be .*\[0\.1, 3000\.0\], got .*\[0\.1, 1500",
    ),
    "tau_m_init": (
        {"tau_m_init": (1.0, 50.0)},
        {},
        r"tau_m_bounds must be .*\[0\.1, 1500\.0\], got .*\[0\.1, 500\.0\]",
    ),
    "delta_t": (
        {"delta_t": 2.0},
        {},
        r"delta_t must be that of the module, 1\.0, got numbers that were made with 2\.0",
    ),
    "lambda_": ({"lambda_": 2.5}, {}, r"lambda_ must be .*5\.0, got .*2\.5"),
    "variant": ({"variant": "v2"}, {}, r"variant must be .*'v1', got .*'v2'"),
    "activation": ({"activation": "silu"}, {}, r"activation must be .*'relu', got .*'silu'"),
    "branch_activation": ({"branch_activation": "tanh"}, {}, r"branch_activation must be .*None, got .*'tanh'"),
}


@pytest.mark.parametrize("setting", CONTRADICTIONS)
@pytest.mark.parametrize("strict", [True, False])
def test_numbers_of_other_settings_are_refused_and_none_is_taken(setting: str, strict: bool) -> None:
    theirs, ours, message = CONTRADICTIONS[setting]
    source, target = ELM(4, 2, num_memory=3, **theirs), ELM(4, 2, num_memory=3, **ours)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    for net, state in (
        (target, source.state_dict()),
        (nn.Sequential(nn.Linear(4, 4), target), nn.Sequential(nn.Linear(4, 4), source).state_dict()),
        (SpikingELM(target), SpikingELM(source).state_dict()),
    ):
        with pytest.raises(RuntimeError, match=message):
            net.load_state_dict(state, strict=strict)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    state = {name: value for name, value in source.state_dict().items() if not name.endswith("_extra_state")}
    with pytest.warns(UserWarning, match="the state dict does not say of which variant, delta_t"):
        target.load_state_dict(state)


def test_the_settings_of_alifs_thresholds_and_faces_count_too() -> None:
    norse = pytest.importorskip("elm_neuro.adapters.norse", exc_type=ImportError)
    snn = pytest.importorskip("elm_neuro.adapters.snntorch", exc_type=ImportError)
    for source, target, message in (
        (ALIF(3, 2, delta_t=2.0), ALIF(3, 2), "delta_t must be .*1.0, got .*2.0"),
        (LIF(3, 2, latency=3.0), LIF(3, 2), "latency_steps must be .*0, got .*3"),
        (SpikeOutput(reset="zero"), SpikeOutput(), "reset must be .*'none', got .*'zero'"),
        (SpikingELM(ELM(3, 2), stochastic=True), SpikingELM(ELM(3, 2)), "stochastic must be .*False, got .*True"),
        (norse.ELM(3, 2, dt=0.002), norse.ELM(3, 2), "delta_t must be .*1.0, got .*2.0"),
        (norse.ALIFCell(3, 2, dt=0.002), norse.ALIFCell(3, 2), "delta_t must be .*1.0, got .*2.0"),
        (snn.ELM(3, 2, lambda_=2.0), snn.ELM(3, 2), "lambda_ must be .*5.0, got .*2.0"),
        (ELMCell(3, 2, delta_t=0.5), ELMCell(3, 2), "delta_t must be .*1.0, got .*0.5"),
    ):
        with pytest.raises(RuntimeError, match=message):
            target.load_state_dict(source.state_dict())


@of_kinds(EVERY)
def test_the_same_settings_load_however_the_state_dict_travelled(name: str, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    module = made(name)
    wanted = run(name, module)

    class Wrapper(nn.Module):  # DistributedDataParallel's prefix
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.module = inside

    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    safetensors.save_file(module.state_dict(), tmp_path / "a.safetensors")
    prefixed = Wrapper(module).state_dict()
    for state in (
        torch.load(file, weights_only=True),
        safetensors.load_file(tmp_path / "a.safetensors"),
        {key.removeprefix("module."): value for key, value in prefixed.items()},
        {key: value.clone() for key, value in module.state_dict().items()},
    ):
        other = EVERY[name]()
        other.load_state_dict(state)
        assert torch.equal(run(name, other), wanted)
    nested = nn.Sequential(nn.Identity(), Wrapper(EVERY[name]()))
    nested.load_state_dict(nn.Sequential(nn.Identity(), Wrapper(module)).state_dict())
    assert torch.equal(run(name, nested[1].module), wanted)


@of_kinds(OURS)
def test_old_state_dicts_load_with_a_warning(name: str) -> None:
    module, other = made(name), OURS[name]()
    old = {key: value for key, value in module.state_dict().items() if not key.endswith("_extra_state")}
    with pytest.warns(UserWarning, match="from before elm_neuro 0.2"):
        other.load_state_dict(old)
    assert torch.equal(run(name, other), run(name, module))


def test_settings_that_cannot_be_read_are_an_error() -> None:
    neuron = ELM(3, 2, num_memory=2)
    for damaged in (
        torch.zeros(3),
        torch.tensor([300]),
        torch.zeros(0, dtype=torch.int64),
        "settings",
        torch.tensor(7),
    ):
        with pytest.raises(RuntimeError, match=r"cell\._extra_state must be the settings of an ELMCell"):
            neuron.load_state_dict(neuron.state_dict() | {"cell._extra_state": damaged})
    deep = torch.tensor(list(("[" * 60000).encode()))
    with pytest.raises(RuntimeError, match=r"cell\._extra_state must be the settings"):
        neuron.load_state_dict(neuron.state_dict() | {"cell._extra_state": deep})
    assert json.loads(bytes(neuron.state_dict()["cell._extra_state"].tolist()))["delta_t"] == 1.0


def test_a_part_of_a_state_dict_without_a_neuron_says_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 3), ELM(3, 2, num_memory=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.load_state_dict({"0.weight": torch.zeros(3, 3)}, strict=False)


@of_kinds(OURS)
def test_states_load_as_weights_only(name: str) -> None:
    module: Any = made(name)
    if name.startswith(("snnTorch", "spikingjelly")):
        return
    state = (module(frames()[:, 0]) if getattr(module, "is_cell", False) or "Cell" in name else module(frames()))[1]
    file = io.BytesIO()
    torch.save({"state": state}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["state"]
    assert type(loaded) is type(state)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(loaded, state, strict=True))


def test_configurations_surrogates_and_events_load_as_weights_only_and_checked() -> None:
    events = SpikeEvents.from_frames(torch.ones(1, 2, 3) * 2)
    configs = [
        ELMConfig(input_size=3, output_size=1, tau_s=(1.0, 2.0, 3.0)),
        ALIFConfig(input_size=3, output_size=1, surrogate=FastSigmoid(25.0)),
        SpikingELM(ELM(3, 2), surrogate=ATan(3.0), threshold=torch.ones(2)).config,
    ]

    def through(value: Any) -> Any:
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    assert through(configs) == configs
    assert torch.equal(through(events).to_dense(), events.to_dense())
    vars(configs[0]).update(num_memory=-4)
    with pytest.raises(Exception, match="num_memory must be at least 1, got -4"):
        through(configs[0])
    vars(events).update(channel=torch.full_like(events.channel, 7))
    with pytest.raises(Exception, match=r"channel must be in \[0, 3\), got 7"):
        through(events)


def test_settings_from_suggest_are_the_same_in_every_process() -> None:
    settings: dict[str, Any] = suggest(delta_t=10.0, num_steps=100)
    one, two = BranchELM(8, 2, num_branch=2, num_synapse_per_branch=4, **settings), None
    two = BranchELM(8, 2, num_branch=2, num_synapse_per_branch=4, **settings)
    two.load_state_dict(one.state_dict())
    value: Tensor
    for key, value in two.state_dict().items():
        assert torch.equal(value, one.state_dict()[key])
