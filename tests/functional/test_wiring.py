from __future__ import annotations

import pytest
import torch

from elm_neuro.functional import full_wiring, random_wiring, small_world_wiring, window_wiring
from elm_neuro.functional._wiring import WIRINGS, check_wiring

SHAPE = (30, 10)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_random_synapses_draw_neurons_as_often_as_they_should(fraction: float) -> None:
    """Binomial: 28,800 draws, within five standard deviations; sources of a kind equally likely."""
    index = random_wiring(700, 96, SHAPE, recurrent_fraction=fraction, generator=torch.Generator().manual_seed(3))
    assert index.shape == (96, *SHAPE) and index.dtype == torch.int64
    recurrent = index >= 700
    num, variance = index.numel(), index.numel() * fraction * (1 - fraction)
    assert abs(int(recurrent.sum()) - fraction * num) <= 5 * variance**0.5
    for chosen, low, size in ((index[~recurrent], 0, 700), (index[recurrent], 700, 96)):
        if chosen.numel():
            count = torch.bincount(chosen - low, minlength=size).double()
            expected = chosen.numel() / size
            assert float(((count - expected) ** 2 / expected).sum()) < size + 6 * (2 * size) ** 0.5  # chi squared


def test_the_same_generator_draws_the_same_wiring() -> None:
    for name, draw in WIRINGS.items():
        shape = (2, 5) if name == "full" else (4, 3)
        one, two = (
            draw(6, 4, shape, recurrent_fraction=0.5, generator=torch.Generator().manual_seed(1)) for _ in range(2)
        )
        assert torch.equal(one, two)
        assert check_wiring(one, 6, (4, *shape)).shape == (4, *shape)


def test_windows_are_consecutive_inputs_in_order_and_near_neighbours() -> None:
    index = window_wiring(40, 5, (4, 6), recurrent_fraction=1 / 3)
    inputs, neurons = index[..., :4], index[..., 4:] - 40
    start = inputs[..., 0].flatten()
    assert torch.equal(start, torch.arange(20) * 2)  # 20 branches, spread over 40 inputs
    assert bool((((inputs[..., 1:] - inputs[..., :-1]) % 40) == 1).all())
    for neuron in range(5):
        distance = (neurons[neuron].flatten() - neuron) % 5
        assert distance.tolist() == [1, 4, 2, 3, 3, 2, 4, 1]  # 1, -1, 2, -2, ... on a ring of 5


def test_rewiring_moves_the_share_it_should_and_keeps_kinds() -> None:
    ring = window_wiring(700, 96, SHAPE, recurrent_fraction=0.3)
    for rewiring in (0.0, 0.2, 1.0):
        index = small_world_wiring(
            700, 96, SHAPE, recurrent_fraction=0.3, rewiring=rewiring, generator=torch.Generator().manual_seed(5)
        )
        assert torch.equal(index < 700, ring < 700)
        share = float((index != ring).double().mean())
        assert abs(share - rewiring) < 0.02  # a moved one may fall on its place
    with pytest.raises(ValueError, match=r"must be the 10 sources of wiring full .* got 4 \* 3"):
        full_wiring(6, 4, (4, 3), recurrent_fraction=0.5)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), r"wiring must have shape .* = \(2, 3, 1\), got \(2, 3\)"),
        (torch.zeros(2, 3, 1), r"wiring must hold integers, got torch\.float32"),
        (torch.full((2, 3, 1), -1), "wiring must hold sources from 0 to 5"),
        (torch.full((2, 3, 1), 6), "got 6 to 6"),
    ],
)
def test_indices_that_do_not_fit_are_refused(index: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_wiring(index, 4, (2, 3, 1))
    with pytest.raises(TypeError, match="wiring must give a tensor, got list"):
        check_wiring([[0]], 4, (2, 3, 1))
