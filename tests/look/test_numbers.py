"""The numbers behind the figures, against the module run with a spike more and without, and its parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from elm_neuro import ALIF, ELM, LIF, BranchELM, ELMCell, ELMNetwork, SpikeEvents, SpikingELM
from elm_neuro.look import Part, branch_fields, parts_of, poisson_drive, spike_responses, time_constants
from tests.toy_layer import ToyLayer


def part_of(module: nn.Module, neuron: int = 0) -> Part:
    (part,) = parts_of(module, neuron=neuron)
    return part


def with_and_without(module: Any, x: Tensor, moment: int, channel: int, value: float, steps: int) -> Tensor:
    """Outputs of the module run on x with a spike more, less those of x, (time, output)."""
    more = x.clone()
    more[0, moment, channel] += value
    with torch.no_grad():
        return (module(more)[0] - module(x)[0])[0, moment : moment + steps]


def noise(num_channels: int, num_steps: int = 60, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.poisson(torch.full((1, num_steps, num_channels), 0.1, dtype=torch.float64), generator=generator)


@pytest.mark.parametrize("events", [False, True])
def test_a_response_is_the_module_with_a_spike_more_less_the_module_without(events: bool) -> None:
    """Windows that do not overlap, equal weights on each branch: a spike on an input is one on its branch alone."""
    torch.manual_seed(0)
    neuron = BranchELM(12, 3, 6, num_branch=4, num_synapse_per_branch=3, routing="window", tau_s=(2.0, 5.0, 9.0, 0.001))
    neuron = neuron.double()
    with torch.no_grad():
        neuron.cell._proto_w_s.copy_(torch.tensor([0.3, 0.7, 1.1, 0.2])[:, None].expand(4, 3))
    x = noise(12)
    found = spike_responses(part_of(neuron), SpikeEvents.from_frames(x) if events else x, num_steps=20, num_moments=3)
    assert found.kind == "branch" and found.signs == (1.0,) and found.moments.tolist() == [15, 27, 40]
    np.testing.assert_allclose(found.weight, [[0.3, 0.7, 1.1, 0.2]], rtol=1e-6)
    for branch in range(4):
        runs = [with_and_without(neuron, x, moment, 3 * branch + 1, 1.0, 20) for moment in (15, 27, 40)]
        np.testing.assert_allclose(found.change[0, branch], torch.stack(runs).mean(0), rtol=1e-9, atol=1e-12)
    assert np.abs(found.change).max() > 1e-3


def test_excitatory_and_inhibitory_spikes_have_their_sign_and_their_own_mean_weight() -> None:
    torch.manual_seed(1)
    neuron = BranchELM(8, 2, 5, num_branch=4, num_synapse_per_branch=2, routing="neuronio").double()
    weights = torch.arange(1.0, 9.0).view(4, 2) / 4  # an excitatory and an inhibitory synapse on each branch
    with torch.no_grad():
        neuron.cell._proto_w_s.copy_(weights)
    x = noise(8)
    found = spike_responses(part_of(neuron), x, num_steps=15, num_moments=1)
    assert found.signs == (1.0, -1.0)
    np.testing.assert_allclose(found.weight, weights.T)
    for branch in range(4):
        for sign, channel in ((0, branch), (1, 4 + branch)):
            expected = with_and_without(neuron, x, 15, channel, (1.0, -1.0)[sign], 15)
            np.testing.assert_allclose(found.change[sign, branch], expected, rtol=1e-9, atol=1e-12)


def test_branches_that_overlap_get_a_spike_of_their_mean_weight_alone() -> None:
    """Against the equations written out in a loop."""
    torch.manual_seed(2)
    neuron = BranchELM(10, 1, 4, num_branch=3, num_synapse_per_branch=6, routing="random").double()
    with torch.no_grad():
        neuron.cell._proto_w_s.uniform_(-0.2, 1.0)
    x = noise(10, 30)
    found = spike_responses(part_of(neuron), x, num_steps=12, num_moments=1)
    index, weights = neuron.cell.input_to_synapse_indices, neuron.w_s.detach()
    (first, second), w_y, b_y = neuron.cell.mlp, neuron.cell.w_y.weight.detach(), neuron.cell.w_y.bias.detach()
    kappa_m, kappa_b = torch.exp(-1.0 / neuron.tau_m.detach()), math.exp(-1.0 / 5.0)

    def run(branch: int | None) -> Tensor:
        b, m, outputs = torch.zeros(3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), []
        for step, x_t in enumerate(x[0]):
            b = kappa_b * b + (weights * x_t[index]).sum(-1)
            if step == 7 and branch is not None:
                b[branch] += weights[branch].mean()
            hidden = torch.relu(first.weight @ torch.cat((b, kappa_m * m)) + first.bias)
            m = kappa_m * m + 5.0 * (1 - kappa_m) * 1.7159 * torch.tanh((second.weight @ hidden + second.bias) * 2 / 3)
            outputs.append(w_y @ m + b_y)
        return torch.stack(outputs)[7:19].detach()

    assert found.moments.tolist() == [7]
    for branch in range(3):
        np.testing.assert_allclose(found.change[0, branch], run(branch) - run(None), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("flatten", [False, True])
def test_one_neuron_of_a_population_is_looked_at(flatten: bool) -> None:
    torch.manual_seed(3)
    neurons = ELM(5, 2, 3, num_neuron=4, flatten_output=flatten).double()
    x = noise(5)
    found = spike_responses(part_of(neurons, neuron=2), x, num_steps=10, num_moments=1)
    for channel in range(5):
        y = with_and_without(neurons, x, 15, channel, 1.0, 10).reshape(10, 4, 2)
        np.testing.assert_allclose(found.change[0, channel], y[:, 2], rtol=1e-9, atol=1e-12)
    assert time_constants(part_of(neurons, neuron=2))["tau_m"] == pytest.approx(neurons.tau_m[2].detach().numpy())
    fields = branch_fields(part_of(neurons, neuron=2))
    assert fields is not None and fields.shape == (1, 5)


def test_of_a_network_what_each_neuron_reads_of_inputs_and_neurons_and_what_a_spike_changes() -> None:
    torch.manual_seed(6)
    layer = ELMNetwork(
        5, 4, 3, num_branch=2, num_synapse_per_branch=7, tau_b=4.0, tau_high_pass=50.0, binarize=False
    ).double()
    part = part_of(layer)
    expected = np.zeros((4, 9))
    for (neuron, branch, synapse), source in np.ndenumerate(layer.wiring.numpy()):
        expected[neuron, source] += layer.w_s[neuron, branch, synapse].item()
    np.testing.assert_allclose(branch_fields(part), expected, rtol=1e-12)
    assert expected[:, 5:].any() and not part.is_elm
    times = time_constants(part)
    np.testing.assert_allclose(times["tau_m"], layer.tau_m.detach().flatten())
    assert times["tau_b"].tolist() == [4.0] and times["tau_high_pass"].tolist() == [50.0]
    x = noise(5)
    found = spike_responses(part, x, num_steps=20, num_moments=2)
    assert found.kind == "input" and found.watched == "readout"
    for channel in range(5):
        runs = [with_and_without(layer, x, moment, channel, 1.0, 20) for moment in found.moments]
        np.testing.assert_allclose(found.change[0, channel], torch.stack(runs).mean(0), rtol=1e-9, atol=1e-12)
    assert set(time_constants(part_of(ELMNetwork(5, 4, 3, tau_high_pass=None)))) == {"tau_m"}


@pytest.mark.parametrize(
    "make", [lambda: ToyLayer(6, 3), lambda: ELMCell(6, 2, num_memory=3), lambda: ELM(6, 2, 3, batch_first=False)]
)
def test_other_layers_are_run_as_they_are(make: Any) -> None:
    torch.manual_seed(4)
    layer, x = make().double(), noise(6)
    found = spike_responses(part_of(layer), x, num_steps=10, num_moments=2)

    def run(x: Tensor) -> Tensor:
        state, outputs = layer.initial_state(1), []
        for x_t in x.unbind(1):
            y_t, state = layer.step(x_t, state)
            outputs.append(y_t)
        return torch.stack(outputs, 1).detach()

    assert found.kind == "input"
    for channel in range(6):
        runs = []
        for moment in found.moments.tolist():
            more = x.clone()
            more[0, moment, channel] += 1.0
            runs.append((run(more) - run(x))[0, moment : moment + 10])
        np.testing.assert_allclose(found.change[0, channel], torch.stack(runs).mean(0), rtol=1e-7, atol=1e-12)


def test_of_neurons_that_spike_the_membranes_are_watched() -> None:
    layer = LIF(4, 3, tau_v=20.0).double()
    with torch.no_grad():
        layer.cell.weight.abs_().mul_(0.1)  # under the threshold, so that the membrane is linear
    found = spike_responses(part_of(layer), torch.zeros(1, 40, 4, dtype=torch.float64), num_steps=8, num_moments=2)
    assert found.watched == "v"
    beta = math.exp(-1.0 / 20.0)
    expected = layer.cell.weight.detach().numpy().T[:, None, :] * (beta ** np.arange(8))[None, :, None]
    np.testing.assert_allclose(found.change[0], expected, rtol=1e-6)


def test_time_constants_are_those_of_the_parameters() -> None:
    neuron = ELM(3, 1, 4, tau_m_init=(2.0, 80.0), tau_s=(1.0, 2.0, 3.0)).double()
    times = time_constants(part_of(neuron))
    np.testing.assert_allclose(times["tau_m"], neuron.tau_m.detach().numpy(), rtol=0)
    np.testing.assert_allclose(times["tau_m"], np.geomspace(2.0, 80.0, 4), rtol=1e-6)
    np.testing.assert_array_equal(times["tau_s"], [1.0, 2.0, 3.0])
    times = time_constants(part_of(ALIF(3, 2, tau_v=12.0, tau_a=150.0, delta_t=2.0).double()))
    assert times["tau_v"] == pytest.approx([12.0] * 2) and times["tau_a"] == pytest.approx([150.0] * 2, rel=1e-5)
    assert set(time_constants(part_of(LIF(3, 2)))) == {"tau_v"}
    assert time_constants(part_of(ToyLayer(3, 2))) == {}


@pytest.mark.parametrize("routing", ["random", "window", "neuronio", None])
def test_receptive_fields_are_the_sum_of_each_branchs_weights(routing: str | None) -> None:
    torch.manual_seed(5)
    synapses = 2 if routing is None else 4
    neuron = BranchELM(6, 2, 3, num_branch=3, num_synapse_per_branch=synapses, routing=routing)
    with torch.no_grad():
        neuron.cell._proto_w_s.uniform_(-0.3, 1.0)
    fields = branch_fields(part_of(SpikingELM(neuron)))  # of the layer inside
    expected = np.zeros((3, 6))
    for branch in range(3):
        for slot, channel in enumerate(neuron.cell.input_to_synapse_indices[branch].tolist()):
            if channel >= 0:
                expected[branch, channel] += neuron.w_s[branch, slot].item()
    np.testing.assert_allclose(fields, expected, rtol=1e-6)  # type: ignore[arg-type]
    lif = LIF(6, 4)
    np.testing.assert_array_equal(branch_fields(part_of(lif)), lif.cell.weight.detach())  # type: ignore[arg-type]


@pytest.mark.parametrize("copied", [False, True])
def test_receptive_fields_of_an_average_of_buffers_are_those_of_the_neurons(copied: bool) -> None:
    torch.manual_seed(7)
    neuron = BranchELM(900, 2, 3, num_branch=9, num_synapse_per_branch=100, routing="window")
    expected = branch_fields(part_of(neuron))
    average = AveragedModel(neuron, use_buffers=True, avg_fn=get_ema_avg_fn(0.9))  # type: ignore[no-untyped-call]
    for _ in range(5):
        average.update_parameters(neuron)
    looked_at: Any = average.module
    if copied:  # as Lightning does it, which no counter of writes sees
        looked_at = neuron
        for own, other in zip(neuron.buffers(), average.module.buffers(), strict=True):
            own.data.copy_(other.data)
    assert (looked_at.cell.input_to_synapse_indices != torch.arange(900).view(9, 100)).any()  # moved by the average
    np.testing.assert_allclose(branch_fields(part_of(looked_at)), expected, rtol=1e-5)  # type: ignore[arg-type]


def test_made_input_is_poisson_and_the_same_for_a_seed() -> None:
    drive = poisson_drive(1278, 1.0, num_excitatory=639, duration_ms=2000.0, rate_hz=20.0, seed=3)
    assert drive.events.shape == (1, 2000, 1278) and "20 Hz" in drive.what and "seed 3" in drive.what
    expected = 1278 * 2 * 20
    assert abs(drive.events.num_events - expected) < 5 * math.sqrt(expected)
    assert torch.equal(drive.events.value, torch.where(drive.events.channel < 639, 1.0, -1.0))
    again = poisson_drive(1278, 1.0, num_excitatory=639, duration_ms=2000.0, rate_hz=20.0, seed=3)
    assert torch.equal(again.events.channel, drive.events.channel)
    other = poisson_drive(1278, 1.0, num_excitatory=639, duration_ms=2000.0, rate_hz=20.0, seed=4)
    assert other.events.num_events != drive.events.num_events


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), 1001.0])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate must be above 0 and at most a spike a step, 1000 Hz, got "):
        poisson_drive(3, 1.0, rate_hz=rate)


@pytest.mark.parametrize("duration", [0.5, 1.0, -3.0, float("nan"), float("inf"), 1e12])
def test_a_duration_that_is_none_is_refused(duration: float) -> None:
    with pytest.raises(
        ValueError, match=r"duration must be at least two time steps, 2 ms, and at most 20000 ms .*, got "
    ):
        poisson_drive(3, 1.0, duration_ms=duration)


def test_what_holds_no_layer_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"must be or hold a layer as elm_neuro\.nn\.Layer describes it, got LSTM without"
    ):
        parts_of(nn.LSTM(3, 2))
    with pytest.raises(ValueError, match=r"neuron must be in \[0, 4\), got 4"):
        parts_of(ELM(3, 1, 2, num_neuron=4), neuron=4)
    with pytest.raises(ValueError, match="x must have at least two steps and those that are followed, 10, got 5"):
        spike_responses(part_of(ELM(3, 1, 2)), torch.zeros(1, 5, 3), num_steps=10)
