"""What kernels read is what was meant: memory that the caller shares or changes, views that stand for negatives, passes
back under autocast.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from elm_neuro import ELM, LIF, BranchELM, SpikeEvents, SpikingELM, backends
from tests.backends.native_cases import native
from tests.backends.saved_tensors import LAYERS
from tests.tolerances import assert_close


def negative(value: float) -> torch.Tensor:
    """A view that stands for the negative of what lies in memory, contiguous."""
    view = torch.complex(torch.zeros(1), torch.tensor([-value])).conj().imag
    assert view.is_neg() and view.is_contiguous()
    return view


@native
@pytest.mark.parametrize("later", [[60, 60, 50], [30, 20, 30]])
@pytest.mark.parametrize("name", LAYERS)
def test_lengths_that_numpy_changes_before_the_way_back_are_those_of_the_way_there(name: str, later: Any) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[name](), (torch.rand(3, 30, 21) < 0.05).float()
    leaves, found = list(layer.parameters()), []
    for change in (False, True):
        lengths = np.array([30, 7, 12])
        y, _ = layer(x, None, lengths)
        if change:
            lengths[:] = later
        steps = torch.arange(1.0, 31.0).view(-1, *[1] * (y.ndim - 2))
        found.append(torch.autograd.grad((y * steps + y).sum(), leaves, allow_unused=True))
    for one, other in zip(*found, strict=True):
        if one is not None:
            assert_close(other, one)


@native
@pytest.mark.parametrize("make", [lambda: ELM(20, 3, num_memory=7), lambda: ELM(20, 3, num_memory=7, num_neuron=2)])
def test_the_way_back_of_a_step_under_autocast_is_the_references(make: Any) -> None:
    torch.manual_seed(0)
    layer, x, found = make(), torch.rand(3, 1, 20), []
    for name in ("reference", "native"):
        with backends.use(name):
            y, _ = layer(x)
        with torch.autocast("cpu"):
            found.append(torch.autograd.grad(y.square().sum(), list(layer.parameters()), allow_unused=True))
    for one, other in zip(*found, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(other, one, rtol=0.05, atol=0.01)  # of bfloat16


@native
@pytest.mark.parametrize("make", [lambda: ELM(3, 2, num_memory=4), lambda: LIF(3, 4)])
def test_values_of_events_that_stand_for_negatives(make: Any) -> None:
    torch.manual_seed(0)
    layer, rows, channel = make(), torch.tensor([0, 1, 1, 1]), torch.tensor([1])
    wanted, _ = layer(SpikeEvents(rows, channel, torch.tensor([5.0]), (1, 3, 3)))
    found, _ = layer(SpikeEvents(rows, channel, negative(5.0), (1, 3, 3)))
    assert_close(found, wanted)


@pytest.mark.parametrize("size", [4, 5])  # even and odd numbers of entries are looked at in other ways
def test_frames_that_stand_for_negatives_become_events(size: int) -> None:
    frames = torch.complex(torch.zeros(1, 3, size), torch.tensor([-1.0, 0, 0, -2, 0])[:size].expand(1, 3, size)).conj()
    events = SpikeEvents.from_frames(frames.imag)
    assert torch.equal(events.to_dense(), frames.imag)


@native
def test_a_threshold_that_stands_for_a_negative() -> None:
    torch.manual_seed(0)
    neuron = BranchELM(20, 3, 7, num_branch=3, num_synapse_per_branch=4, routing="random")
    layer, x = SpikingELM(neuron, threshold=0.1), torch.rand(2, 30, 20)
    wanted, _ = layer(x)
    layer.output.threshold = negative(0.1).squeeze()
    assert torch.equal(layer(x)[0], wanted)
