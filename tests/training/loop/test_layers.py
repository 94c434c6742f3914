"""Which layers training asks for their spikes and time steps: any that say so, of whoever wrote them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from elm_neuro import ALIF, ELM, LIF, SpikingELM
from elm_neuro.training import LSTMClassifier
from elm_neuro.training.loop._layers import check_time_steps, spikes_recorded, spiking_layers
from tests.toy_layer import ToyLayer


class ToySpikes(ToyLayer):
    emits_spikes = True


def test_layers_that_spike_say_so_and_their_parts_are_not_counted_again() -> None:
    lif, alif, spiking, toy = LIF(3, 4), ALIF(4, 2), SpikingELM(ELM(2, 2, num_memory=2)), ToySpikes(2, 2)
    network = nn.ModuleList([lif, alif, spiking, ELM(2, 1, num_memory=2), toy, nn.Linear(2, 2)])
    assert spiking_layers(network) == [lif, alif, spiking, toy]
    assert spiking_layers(lif) == [lif]


def test_what_spiking_layers_emit_is_recorded_inside_the_block_only() -> None:
    toy, lif = ToySpikes(3, 2), LIF(2, 4)
    network = nn.ModuleList([toy, lif])
    x = torch.ones(5, 6, 3)
    with spikes_recorded(network) as spikes:
        y, _ = toy(x)
        z, _ = lif(y)
    toy(x)
    assert [record.shape for record in spikes] == [(5, 6, 2), (5, 6, 4)]
    assert spikes[0] is y
    assert spikes[1] is z


def test_time_steps_are_those_of_the_data() -> None:
    check_time_steps(nn.ModuleList([ELM(3, 2, delta_t=10.0), ToyLayer(3, 2, delta_t=10.0)]), 10.0, "the bin")
    with pytest.raises(ValueError, match=r"network.0 must have delta_t 20.0 ms, the bin, got 10.0 ms"):
        check_time_steps(nn.ModuleList([ToyLayer(3, 2, delta_t=10.0)]), 20.0, "the bin")
    check_time_steps(LSTMClassifier(3, 2, 4, delta_t=10.0), 20.0, "the bin")  # nothing in it depends on the step
    with pytest.raises(ValueError, match=r"network must have delta_t 20.0 ms"):
        check_time_steps(LSTMClassifier(3, 2, 4, delta_t=10.0, timescales=(20.0, 100.0)), 20.0, "the bin")
