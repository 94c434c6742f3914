"""What is no number, or none that there can be: in one step as in a sequence, and in an ELM Network's penalties."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from elm_neuro import ALIF, ELM, ELMNetwork, SpikingELM


def spiking_network() -> ELMNetwork:
    return ELMNetwork(3, 4, binarize=False, output="spike")


MAKE = {
    "ELM": lambda: ELM(3, 2, 2),
    "SpikingELM": lambda: SpikingELM(ELM(3, 2, 2), threshold=-5.0),
    "ELMNetwork": spiking_network,
    "ALIF": lambda: ALIF(3, 2),
}


# of an infinite input an ELM's tanh makes a number
@pytest.mark.parametrize(
    ("name", "bad"), [*((name, math.nan) for name in MAKE), ("ELMNetwork", math.inf), ("ALIF", math.inf)]
)
def test_one_step_refuses_what_a_sequence_of_one_refuses(name: str, bad: float) -> None:
    """A threshold would take what is no number for no spike."""
    torch.manual_seed(0)
    layer, x = MAKE[name](), torch.ones(2, 3)
    x[1, 2] = bad
    for call in (lambda: layer(x[:, None]), lambda: layer.step(x, layer.initial_state(2))):
        with pytest.raises(ValueError, match="x must be finite, got"):
            call()


@pytest.mark.parametrize("spiking", [False, True])
def test_an_overflow_is_named(spiking: bool) -> None:
    neuron = ELM(3, 2, 2)
    torch.nn.init.constant_(neuron.cell.mlp[0].weight, math.inf)
    layer = SpikingELM(neuron, threshold=-5.0) if spiking else neuron
    for call in (lambda: layer(torch.ones(1, 4, 3)), lambda: layer.step(torch.ones(1, 3), layer.initial_state(1))):
        with pytest.raises(ValueError, match="must be finite and not so large that they overflow"):
            call()


@pytest.mark.parametrize("lengths", [[-3, 60], [3], [3.5, 2.0], [True, False]])
def test_penalties_refuse_lengths_that_no_sequence_has(lengths: list[Any]) -> None:
    network, given = spiking_network(), torch.tensor(lengths)
    with pytest.raises(ValueError, match="lengths must be"):
        network.activity_penalty(torch.rand(2, 6, 4), given)
    with pytest.raises(ValueError, match="lengths must be"):
        network.mlp_penalty(torch.rand(2, 4), 6, given)


@pytest.mark.parametrize("num_steps", [-1, 2.5, math.nan, None])
def test_penalties_refuse_what_is_no_number_of_steps(num_steps: Any) -> None:
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 0, got"):
        spiking_network().mlp_penalty(torch.rand(2, 4), num_steps)
