"""The neuron of the live page, against the paper's equations in double precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from live_neuron import LiveNeuron
from live_site import published

from elm_neuro import BranchELM, nn
from elm_neuro.export import to_onnx
from tests.live.paper import Change, published_tau_m, run, spikes

NAME = "num_memory_20"
WITHIN = 1e-5  # of the spike probability, what the page promises
STRETCH = np.linspace(0.1, 10.0, 20)
CHANGES = {
    "published": {},
    "slower": {0: Change(tau_s=20.0, stretch=10.0)},
    "faster": {0: Change(tau_s=0.5, stretch=0.1)},
    "each unit its own": {0: Change(stretch=STRETCH)},
    "branches cut": {0: Change(cut=(0, 17, 44))},
    "changed while it lives": {250: Change(tau_s=3.0, stretch=STRETCH, cut=(2, 30)), 500: Change()},
}


def states(change: Change) -> dict[str, torch.Tensor]:
    """The inputs of the model that say so."""
    cut = torch.zeros(1, 45)
    cut[0, list(change.cut)] = 1.0
    stretch_m = torch.tensor(np.log(np.ones(20) * change.stretch), dtype=torch.float32)[None]
    return {"stretch_b": torch.tensor([[change.tau_s / 5.0]]).log(), "stretch_m": stretch_m, "cut": cut}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    path = tmp_path_factory.mktemp("live") / "step.onnx"
    to_onnx(LiveNeuron(published()), path, head="neuronio", batch_size=1)
    return onnxruntime.InferenceSession(str(path))


def live_through(model: onnxruntime.InferenceSession, x: np.ndarray, changes: dict[int, Change]) -> np.ndarray:
    """Spike probability and voltage of each step, (time, 2)."""
    feeds = {one.name: np.zeros(one.shape, np.float32) for one in model.get_inputs()}
    names = [one.name for one in model.get_outputs()]
    outputs = []
    for step, x_t in enumerate(x.astype(np.float32)):
        if step in changes:
            feeds |= {name: value.numpy() for name, value in states(changes[step]).items()}
        after = dict(zip(names, model.run(None, feeds | {"x": x_t[None]}), strict=True))
        feeds |= {name: after[f"{name}_next"] for name in feeds if name != "x"}
        outputs.append((after["spike_probability"][0], after["soma_mv"][0]))
    return np.array(outputs)


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_exported_step_is_the_papers_neuron_with_these_time_constants_and_branches(
    live: Path, model: onnxruntime.InferenceSession, changes: dict[int, Change]
) -> None:
    x = spikes(1000, seed=len(changes))
    probability, soma = run(live / "model" / NAME, x, changes)
    came = live_through(model, x, changes)
    assert probability.max() > 1e-4
    np.testing.assert_allclose(came[:, 0], probability, rtol=0, atol=WITHIN)
    np.testing.assert_allclose(came[:, 1], soma, rtol=0, atol=1e-3)


def test_the_papers_loop_gives_the_authors_own_numbers(live: Path, shared: Path) -> None:
    recorded = np.load(shared / "data/neuronio/reference_outputs.npz")
    x = np.zeros((1000, 1278))
    channel = recorded["w0_input_ch"].astype(int)
    np.add.at(x, (recorded["w0_input_t"].astype(int), channel), np.where(channel < 639, 1.0, -1.0))
    probability, soma = run(live / "model" / NAME, x, {})
    logits = recorded["num_memory_20_w0_logits_f64"]
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logits[:, 0])), rtol=0, atol=1e-9)
    np.testing.assert_allclose(soma, 10 * logits[:, 1] - 67.7, rtol=0, atol=1e-7)


def test_with_zeros_the_module_is_the_neuron_it_was_made_of() -> None:
    core = published()
    x = torch.tensor(spikes(200, seed=3), dtype=torch.float32)[None]
    with torch.no_grad():
        torch.testing.assert_close(LiveNeuron(core)(x)[0], core(x)[0], rtol=1e-4, atol=1e-4)


def test_each_sample_has_its_own_time_constants_and_cuts() -> None:
    module = LiveNeuron(published())
    x = torch.tensor(spikes(60, seed=4), dtype=torch.float32)[None]
    changed = states(Change(tau_s=9.0, stretch=STRETCH, cut=(5,)))
    with torch.no_grad():
        alone = module(x, module.initial_state(1)._replace(**changed))[0]
        both = {name: torch.cat([torch.zeros_like(value), value]) for name, value in changed.items()}
        together = module(x.expand(2, -1, -1), module.initial_state(2)._replace(**both))[0]
        plain = module(x)[0]
    torch.testing.assert_close(together, torch.cat([plain, alone]), rtol=1e-5, atol=1e-5)


def test_it_keeps_the_protocol_of_a_layer() -> None:
    module = LiveNeuron(published())
    assert nn.is_layer(module)
    with pytest.raises(ValueError, match=r"state.cut must have shape \(2, 45\), got \(1, 45\)"):
        module.check_state(module.initial_state(2)._replace(cut=torch.zeros(1, 45)), 2)


def test_time_constants_are_those_of_the_file(live: Path) -> None:
    torch.testing.assert_close(
        published().cell.tau_m.detach().double(), torch.from_numpy(published_tau_m(live / "model" / NAME)),
        rtol=1e-6, atol=0.0,
    )  # fmt: skip


def test_another_kind_of_neuron_is_refused() -> None:
    with pytest.raises(ValueError, match="core must be a single v1 neuron with routing and one tau_s"):
        LiveNeuron(BranchELM(10, 2, num_branch=5, num_synapse_per_branch=4, variant="v2"))


def test_whole_sequences_are_exported_too(tmp_path: Path) -> None:
    report = to_onnx(LiveNeuron(published()), tmp_path / "neuron.onnx", form="sequence", head="neuronio")
    assert report is not None
    assert max(report.errors.values()) < 1e-4
