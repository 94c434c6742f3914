"""All layers keep one protocol: the same parts, the same treatment of states and of samples that end early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from elm_neuro import (
    ALIF,
    ELM,
    LIF,
    ALIFCell,
    BranchELM,
    ELMCell,
    ELMNetwork,
    ELMNetworkClassifier,
    SpikeEvents,
    SpikingELM,
)
from elm_neuro.nn import check_layer, is_layer, output_shape
from tests.layers import LAYERS as EVERY_LAYER
from tests.layers import NETWORK
from tests.tolerances import assert_close
from tests.toy_layer import ToyLayer

INPUTS = 6
BRANCHES: dict[str, Any] = {"num_memory": 3, "num_branch": 2, "num_synapse_per_branch": 4, "routing": "random"}
LAYERS: dict[str, Callable[[], Any]] = {
    "ELM": lambda: ELM(INPUTS, 2, num_memory=3, w_s_init=2.0),
    "BranchELM": lambda: BranchELM(INPUTS, 2, **BRANCHES),
    "population": lambda: ELM(INPUTS, 2, num_memory=3, num_neuron=3),
    "flat population": lambda: ELM(INPUTS, 2, num_memory=3, num_neuron=3, flatten_output=True),
    "LIF": lambda: LIF(INPUTS, 4, tau_v=30.0),
    "ALIF": lambda: ALIF(INPUTS, 4, recurrent=True, latency=2.0),
    "ELMNetwork": lambda: ELMNetwork(INPUTS, 4, **NETWORK),
    "ELMNetwork, spikes": lambda: ELMNetwork(INPUTS, 4, output="spike", tau_b=5.0, **NETWORK),
    "ELMNetworkClassifier": lambda: ELMNetworkClassifier(INPUTS, 2, 4, **NETWORK),
    "SpikingELM": lambda: SpikingELM(ELM(INPUTS, 2, num_memory=3, w_s_init=2.0), threshold=0.1, reset="subtract"),
    "spiking ALIF": lambda: SpikingELM(ALIF(INPUTS, 4, tau_v=30.0), threshold=0.5, reset="zero"),
    "spiking toy": lambda: SpikingELM(ToyLayer(INPUTS, 4), threshold=0.3, reset="subtract"),
}
CELLS: dict[str, Callable[[], Any]] = {
    "ELMCell": lambda: ELMCell(INPUTS, 2, num_memory=3),
    "population": lambda: ELMCell(INPUTS, 2, num_memory=3, num_neuron=3, flatten_output=True),
    "ALIFCell": lambda: ALIFCell(INPUTS, 4, recurrent=True, latency=2.0),
    "spiking ELMCell": lambda: SpikingELM(ELMCell(INPUTS, 2, num_memory=3), threshold=0.1, reset="zero"),
}


def spikes_in(*shape: int) -> torch.Tensor:
    return torch.poisson(torch.full(shape, 0.8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_have_all_parts_and_give_what_they_say(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    check_layer(layer)
    assert is_layer(layer) and layer.input_size == INPUTS and layer.delta_t == 1.0
    y, state = layer(spikes_in(3, 7, INPUTS))
    assert y.shape == (3, 7, *output_shape(layer))
    assert type(state) is layer.state_type and layer.check_state(state, 3) == state
    if name != "spiking toy":  # the configuration of its core is known to who registers it
        assert type(layer.config).from_dict(layer.config.to_dict()) == layer.config


@pytest.mark.parametrize("name", LAYERS)
def test_steps_are_the_sequence_and_carry_the_state(name: str) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[name](), spikes_in(3, 9, INPUTS)
    whole, end = layer(x)
    state, steps = layer.initial_state(3), []
    for x_t in x.unbind(1):
        y_t, state = layer.step(x_t, state)
        steps.append(y_t)
    assert_close(torch.stack(steps, 1), whole)
    for ours, theirs in zip(state, end, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("events", [False, True])
def test_samples_that_end_early_are_those_that_are_as_short(name: str, events: bool) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[name]().double(), spikes_in(3, 9, INPUTS).double()
    lengths = torch.tensor([9, 4, 0])
    start = layer.state_type(*(torch.rand_like(part) for part in layer.initial_state(3)))
    padded = x.clone()
    for sample, length in enumerate(lengths.tolist()):
        padded[sample, length:] = 3.0 if events else torch.nan if "toy" not in name else 3.0
    y, end = layer(SpikeEvents.from_frames(padded) if events else padded, start, lengths)
    for sample, length in enumerate(lengths.tolist()):
        alone = layer.state_type(*(part[sample : sample + 1] for part in start))
        expected, after = layer(x[sample : sample + 1, :length], alone)
        assert_close(y[sample : sample + 1, :length], expected)
        assert not y[sample, length:].any()
        for ours, theirs in zip(end, after, strict=True):
            assert_close(ours[sample : sample + 1], theirs)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_a_layer_of_one_step(name: str) -> None:
    torch.manual_seed(0)
    cell, x = CELLS[name](), spikes_in(3, INPUTS)
    assert is_layer(cell) and cell.is_cell
    start = cell.state_type(*(torch.rand_like(part) for part in cell.initial_state(3)))
    y, after = cell(x, start)
    assert y.shape == (3, *output_shape(cell))
    x[1] = torch.nan
    cut, kept = cell(x, start, torch.tensor([1, 0, 1]))
    assert_close(cut[::2], y[::2])
    assert not cut[1].any()
    for part, whole, before in zip(kept, after, start, strict=True):
        assert_close(part[::2], whole[::2])
        assert torch.equal(part[1], before[1])
    with pytest.raises(ValueError, match="lengths must be between 0 and the 1 steps of x, got 0 to 2"):
        cell(x, start, torch.tensor([1, 0, 2]))


@pytest.mark.parametrize("name", LAYERS)
def test_states_that_do_not_fit_are_named(name: str) -> None:
    layer, x = LAYERS[name](), spikes_in(2, 3, INPUTS)
    state = layer.initial_state(2)
    for field in state._fields:
        part = getattr(state, field)
        with pytest.raises(ValueError, match=r"state\.\w+ must have shape"):
            layer(x, state._replace(**{field: part[:1]}))
    with pytest.raises((TypeError, ValueError)):
        layer(x, state[:-1])


@pytest.mark.parametrize("name", ["ELM", "ALIF", "ELMNetwork", "SpikingELM", "spiking ALIF"])
def test_inputs_and_lengths_that_do_not_fit_are_named_alike(name: str) -> None:
    layer = LAYERS[name]()
    for x, message in (
        (torch.zeros(2, 3, 5), r"x must have shape \(batch, time, 6\), got \(2, 3, 5\)"),
        (torch.zeros(2, 3, INPUTS, dtype=torch.float64), "x must have dtype torch.float32 like the parameters"),
        ([[0.0]], "x must be a tensor or SpikeEvents, got list"),
        (SpikeEvents.from_frames(torch.ones(2, 3, 5)), "x must have 6 channels"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            layer(x)
    for lengths, message in (
        (torch.tensor([3.0, 1.0]), r"lengths must be integers of shape \(2,\), got torch.float32"),
        (torch.tensor([4, 1]), "lengths must be between 0 and the 3 steps of x, got 1 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(torch.zeros(2, 3, INPUTS), lengths=lengths)


def test_a_time_first_neuron_is_no_core() -> None:
    with pytest.raises(ValueError, match="core must be batch first, got batch_first=False"):
        SpikingELM(ELM(3, 2, batch_first=False))


@pytest.mark.parametrize("kind", [ELM, ALIF, ELMNetwork])
def test_a_backend_is_checked_where_it_is_assigned(kind: Any) -> None:
    layer = kind(3, 2)
    layer.backend = "reference"
    assert layer.backend == "reference"
    with pytest.raises(ValueError, match='backend must be "auto" or one of'):
        layer.backend = "quick"
    assert layer.backend == "reference"


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("name", EVERY_LAYER)
def test_the_output_of_nothing_has_a_graph_as_any_other(name: str, backend: str) -> None:
    for shape in ((3, 0, 6), (0, 5, 6)):
        layer: Any = EVERY_LAYER[name]()
        for module in layer.modules():
            if hasattr(type(module), "backend"):
                module.backend = backend
        y = layer(torch.zeros(shape))[0]
        assert y.shape[:2] == shape[:2]
        y.sum().backward()
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in layer.parameters())
