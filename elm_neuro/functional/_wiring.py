"""Which source each synapse of a recurrent layer reads: an input, or a neuron of the layer one step before."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Wiring(Protocol):
    """Draws the sources of a layer: what :class:`elm_neuro.nn.ELMNetwork` takes as `wiring`, beside names and indices.

    A source is an input, 0 to input_size - 1, or input_size + neuron.
    """

    def __call__(
        self,
        input_size: int,
        num_neuron: int,
        shape: tuple[int, int],
        *,
        recurrent_fraction: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Sources (num_neuron, num_branch, num_synapse_per_branch), int64, for `shape` (num_branch,
        num_synapse_per_branch).
        """
        ...


def random_wiring(
    input_size: int,
    num_neuron: int,
    shape: tuple[int, int],
    *,
    recurrent_fraction: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Every synapse draws its source by itself, with replacement: a neuron with probability `recurrent_fraction`, which
    may be its own, else an input.

    Source: ``elm_modeling_utils.random_connect`` of arXiv:2605.12049's code at 5cbf4e2.

    >>> random_wiring(5, 2, (3, 4), recurrent_fraction=0.0).max() < 5
    tensor(True)
    """
    size = (num_neuron, *shape)
    inputs = torch.randint(input_size, size, generator=generator)
    neurons = torch.randint(num_neuron, size, generator=generator) + input_size
    return torch.where(torch.rand(size, generator=generator) < recurrent_fraction, neurons, inputs)


def window_wiring(
    input_size: int,
    num_neuron: int,
    shape: tuple[int, int],
    *,
    recurrent_fraction: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A map of the inputs: the branches of all neurons read windows of consecutive inputs, spread evenly in their
    order, and of each branch the last ``round(recurrent_fraction * num_synapse_per_branch)`` synapses the nearest
    neighbours of the neuron on a ring. Nothing is drawn.

    >>> window_wiring(6, 2, (2, 3), recurrent_fraction=0.34)
    tensor([[[0, 1, 7],
             [1, 2, 7]],
    <BLANKLINE>
            [[3, 4, 6],
             [4, 5, 6]]])
    """
    num_branch, num_synapse = shape
    num_recurrent = round(recurrent_fraction * num_synapse)
    branch = torch.arange(num_neuron * num_branch).view(num_neuron, num_branch, 1)
    start = branch * input_size // (num_neuron * num_branch)
    inputs = (start + torch.arange(num_synapse - num_recurrent)) % input_size
    order = torch.arange(num_branch * num_recurrent).view(num_branch, num_recurrent)
    offset = (order // 2 + 1) * torch.where(order % 2 == 0, 1, -1)  # 1, -1, 2, -2, ... neurons away
    neurons = (torch.arange(num_neuron)[:, None, None] + offset) % num_neuron
    return torch.cat([inputs, neurons + input_size], dim=-1)


def small_world_wiring(
    input_size: int,
    num_neuron: int,
    shape: tuple[int, int],
    *,
    recurrent_fraction: float,
    generator: torch.Generator | None = None,
    rewiring: float = 0.1,
) -> Tensor:
    """:func:`window_wiring` with each synapse moved, with probability `rewiring`, to any source of the same kind.

    As Watts and Strogatz, Nature 393 (1998), do it to the edges of a ring: few long ways between neighbourhoods.

    >>> small_world_wiring(6, 2, (2, 3), recurrent_fraction=0.34, rewiring=0.0)[0].tolist()
    [[0, 1, 7], [1, 2, 7]]
    """
    index = window_wiring(input_size, num_neuron, shape, recurrent_fraction=recurrent_fraction)
    inputs = torch.randint(input_size, index.shape, generator=generator)
    neurons = torch.randint(num_neuron, index.shape, generator=generator) + input_size
    moved = torch.rand(index.shape, generator=generator) < rewiring
    return torch.where(moved, torch.where(index < input_size, inputs, neurons), index)


def full_wiring(
    input_size: int,
    num_neuron: int,
    shape: tuple[int, int],
    *,
    recurrent_fraction: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Every neuron reads every source once, in their order: all inputs, then all neurons.

    Raises:
        ValueError: its synapses are not as many as there are sources.

    >>> full_wiring(4, 2, (2, 3), recurrent_fraction=0.33)[1]
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    num_source = input_size + num_neuron
    if shape[0] * shape[1] != num_source:
        rule = f"must be the {num_source} sources of wiring full ({input_size} inputs and {num_neuron} neurons)"
        raise ValueError(f"num_branch * num_synapse_per_branch {rule}, got {shape[0]} * {shape[1]}")
    return torch.arange(num_source).view(shape).repeat(num_neuron, 1, 1)


WIRINGS: dict[str, Wiring] = {
    "random": random_wiring,
    "window": window_wiring,
    "small_world": small_world_wiring,
    "full": full_wiring,
}


def check_wiring(index: object, input_size: int, shape: tuple[int, int, int], name: str = "wiring") -> Tensor:
    """The sources of a layer's synapses, as int64 of their own.

    Args:
        index: what was given or drawn.
        input_size: number of inputs.
        shape: (num_neuron, num_branch, num_synapse_per_branch).
        name: of the argument, for the message.

    Raises:
        TypeError: it is no tensor.
        ValueError: it breaks a rule; the message says which.

    >>> check_wiring(torch.tensor([[[0, 3]]]), 2, (1, 1, 2))
    Traceback (most recent call last):
    ValueError: wiring must hold sources from 0 to 2 (2 inputs, then 1 neurons), got 0 to 3
    """
    if not isinstance(index, Tensor):
        raise TypeError(f"{name} must give a tensor, got {type(index).__name__}")
    if tuple(index.shape) != shape:
        axes = "(num_neuron, num_branch, num_synapse_per_branch)"
        raise ValueError(f"{name} must have shape {axes} = {shape}, got {tuple(index.shape)}")
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ValueError(f"{name} must hold integers, got {index.dtype}")
    low, high = (int(end) for end in index.aminmax())
    if low < 0 or high >= input_size + shape[0]:
        rule = f"from 0 to {input_size + shape[0] - 1} ({input_size} inputs, then {shape[0]} neurons)"
        raise ValueError(f"{name} must hold sources {rule}, got {low} to {high}")
    return index.long().clone()
