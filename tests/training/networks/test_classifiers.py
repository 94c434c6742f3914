from __future__ import annotations

import pytest
import torch

from elm_neuro import ALIF, ELM, LIF, ALIFCell, BranchELM, ELMCell, SpikeEvents
from elm_neuro.training import ALIFNetwork, LeakyReadout, LIFNetwork, SequenceClassifier, SpikingNetwork, num_parameters


def frames(batch: int = 3, num_steps: int = 12, channels: int = 70) -> torch.Tensor:
    return torch.poisson(torch.full((batch, num_steps, channels), 0.3), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "neuron",
    [
        ELM(70, 20, num_memory=5),
        BranchELM(70, 20, num_memory=5, num_branch=7, num_synapse_per_branch=10, routing="window"),
    ],
)
def test_logits_are_the_last_output_or_the_mean_of_all(neuron: ELM) -> None:
    x = frames()
    y, _ = neuron(x)
    torch.testing.assert_close(SequenceClassifier(neuron)(x), y[:, 11], rtol=0, atol=0)
    torch.testing.assert_close(
        SequenceClassifier(neuron, readout="mean")(x), sum(y.unbind(1)) / 12, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "network",
    [
        SequenceClassifier(ELM(70, 20, num_memory=5)),
        SpikingNetwork(ALIF(70, 16), ELM(16, 20, num_memory=5)),
        LIFNetwork(LIF(70, 16), LIF(16, 12, recurrent=True), output_size=20),
        ALIFNetwork(ALIF(70, 16, recurrent=True), ALIF(16, 12, recurrent=True), output_size=20),
    ],
)
def test_events_and_frames_give_the_same_logits_and_every_parameter_learns(network: torch.nn.Module) -> None:
    x = frames()
    logits = network(x)
    assert logits.shape == (3, 20)
    torch.testing.assert_close(network(SpikeEvents.from_frames(x)), logits, rtol=1e-4, atol=1e-5)
    logits.logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_elm_reads_the_spikes_of_the_hidden_layer() -> None:
    hidden, neuron = LIF(70, 16), ELM(16, 20, num_memory=5)
    spikes, _ = hidden(frames())
    torch.testing.assert_close(SpikingNetwork(hidden, neuron)(frames()), neuron(spikes)[0][:, -1], rtol=0, atol=0)


def test_leaky_readout_is_the_mean_of_a_leaky_integrator() -> None:
    readout = LeakyReadout(6, 4, delta_t=10.0, tau_v=35.0).double()
    spikes = frames(2, 30, 6).double()
    beta = torch.exp(torch.tensor(-10.0 / 35.0))  # float32, as the parameter is made
    v, total = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    for s in spikes.unbind(1):
        v = beta.double() * v + (1 - beta.double()) * (s @ readout.linear.weight.T + readout.linear.bias)
        total += v
    torch.testing.assert_close(readout(spikes), total / 30, rtol=1e-6, atol=1e-8)


def test_blocks_readout_is_the_sum_of_a_leaky_integrator_without_gain() -> None:
    readout = LeakyReadout(6, 4, delta_t=10.0, tau_v=35.0, readout="sum").double()
    spikes = frames(2, 30, 6).double()
    v, total = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    for s in spikes.unbind(1):
        v = readout.beta.detach() * v + s @ readout.linear.weight.T + readout.linear.bias
        total += v
    torch.testing.assert_close(readout(spikes), total, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("target", [2_000, 5_876, 20_011, 42_324, 182_420])
def test_the_control_has_the_parameters_of_the_network_it_is_compared_with(target: int) -> None:
    network = LIFNetwork.matching(target, input_size=140, output_size=20, delta_t=10.0, tau_v=20.0)
    assert abs(sum(parameter.numel() for parameter in network.parameters()) / target - 1) <= 0.02
    assert network.hidden.output_size == pytest.approx(network.recurrent.output_size, rel=0.12)


def test_num_parameters_leaves_out_what_is_not_trained() -> None:
    # 100 memory units, an MLP 800-200-100, a readout 100-20 and no w_s: the paper's ELM on SHD
    assert num_parameters(ELM(700, 20, num_memory=100, learn_w_s=False)) == 100 + 801 * 200 + 201 * 100 + 101 * 20


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="second must have input_size 5 to read first, got 3"):
        ALIFNetwork(ALIF(4, 5), ALIF(3, 2), output_size=2)
    with pytest.raises(ValueError, match=r"second must have the delta_t of first, 1.0 ms, got 2.0 ms"):
        ALIFNetwork(ALIF(4, 5), ALIF(5, 2, delta_t=2.0), output_size=2)
    with pytest.raises(ValueError, match=r"readout must be one of \['last', 'mean'\], got 'max'"):
        SequenceClassifier(ELM(3, 2), readout="max")
    with pytest.raises(ValueError, match="neuron must be a single one"):
        SequenceClassifier(ELM(3, 2, num_neuron=4))
    with pytest.raises(ValueError, match="neuron must take sequences, got ELMCell, which takes one step"):
        SequenceClassifier(ELMCell(3, 2))
    with pytest.raises(ValueError, match="hidden must take sequences, got ALIFCell, which takes one step"):
        SpikingNetwork(ALIFCell(4, 3), ELM(3, 2))
    with pytest.raises(ValueError, match="neuron must have input_size 5 to read hidden, got 3"):
        SpikingNetwork(LIF(4, 5), ELM(3, 2))
    with pytest.raises(ValueError, match=r"neuron must have the delta_t of hidden, 10.0 ms, got 1.0 ms"):
        SpikingNetwork(LIF(4, 3, delta_t=10.0), ELM(3, 2))
    with pytest.raises(ValueError, match="recurrent must have input_size 5 to read hidden, got 3"):
        LIFNetwork(LIF(4, 5), LIF(3, 2, recurrent=True), output_size=2)
    with pytest.raises(ValueError, match="recurrent must be a layer with recurrent=True"):
        LIFNetwork(LIF(4, 5), LIF(5, 2), output_size=2)
    with pytest.raises(
        ValueError, match="target must be a number of parameters that two LIF layers meet within 2%, got 100"
    ):
        LIFNetwork.matching(100, input_size=140, output_size=20, delta_t=10.0, tau_v=20.0)
