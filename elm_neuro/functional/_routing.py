"""Which input each synapse of a Branch-ELM reads. Upstream's names and rules: ``modeling_utils.py`` at 52e68a6."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

ROUTINGS = ("random", "window", "neuronio")


def routing_index(
    routing: str | None,
    input_size: int,
    num_branch: int,
    num_synapse_per_branch: int,
    *,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Input index of each synapse, -1 for an empty slot.

    - None: synapse j reads input j; needs ``num_branch * num_synapse_per_branch == input_size``.
    - "random": each synapse draws one input, uniformly and with replacement.
    - "window": branch j reads consecutive inputs from ``j * ceil(input_size / num_branch)``; slots past the last input
      stay empty.
    - "neuronio": "window" over interleaved inputs (excitatory 0, inhibitory 0, excitatory 1, ...), the first half of
      the inputs being excitatory and the second half inhibitory, as in NeuronIO.

    Args:
        routing: None, "random", "window" or "neuronio".
        input_size: number of inputs.
        num_branch: number of branches.
        num_synapse_per_branch: synapses on each branch.
        shuffle: permute the inputs first (the paper's ablation of the inputs' order, figure S5).
        generator: source of the random numbers; torch's global one by default.

    Returns:
        (num_branch, num_synapse_per_branch), int64.

    Raises:
        ValueError: the sizes do not fit the routing.

    >>> routing_index("window", 5, 2, 4)
    tensor([[ 0,  1,  2,  3],
            [ 3,  4, -1, -1]])
    >>> routing_index("neuronio", 4, 2, 2)
    tensor([[0, 2],
            [1, 3]])
    """
    shape = (num_branch, num_synapse_per_branch)
    if routing == "random":
        return torch.randint(input_size, shape, generator=generator)
    if routing is None:
        if num_branch * num_synapse_per_branch != input_size:
            got = f"{num_branch} * {num_synapse_per_branch} for {input_size}"
            raise ValueError(f"num_branch * num_synapse_per_branch must equal input_size without routing, got {got}")
        index = torch.arange(input_size).view(shape)
    elif routing in ("window", "neuronio"):
        index = _windows(input_size, *shape)
        if routing == "neuronio":
            index = _interleaved(input_size)[index.clamp(min=0)].where(index >= 0, index)
    else:
        raise ValueError(f"routing must be None, one of {ROUTINGS} or an index tensor, got {routing!r}")
    if shuffle:
        index = torch.randperm(input_size, generator=generator)[index.clamp(min=0)].where(index >= 0, index)
    return index


def _windows(input_size: int, num_branch: int, num_synapse_per_branch: int) -> Tensor:
    stride = math.ceil(input_size / num_branch)
    if stride > num_synapse_per_branch:
        rule = f"at least ceil(input_size / num_branch) = {stride} so that windows leave out no input"
        raise ValueError(f"num_synapse_per_branch must be {rule}, got {num_synapse_per_branch}")
    index = torch.arange(num_branch)[:, None] * stride + torch.arange(num_synapse_per_branch)
    empty = int((index[:, 0] >= input_size).sum())
    if empty:
        warnings.warn(
            f"{empty} of {num_branch} branches start past the last of {input_size} inputs and stay empty", stacklevel=4
        )
    return index.where(index < input_size, torch.full_like(index, -1))


def _interleaved(input_size: int) -> Tensor:
    if input_size % 2:
        raise ValueError(
            f'input_size must be even for routing "neuronio" (excitatory and inhibitory halves), got {input_size}'
        )
    return torch.arange(input_size).view(2, -1).T.flatten()


def check_routing_index(index: Tensor, input_size: int, shape: tuple[int, ...], num_neuron: int | None) -> Tensor:
    """An index tensor given by a user, as int64, or a ValueError that says which rule it breaks."""
    allowed = [shape] if num_neuron is None else [shape, (num_neuron, *shape)]
    if tuple(index.shape) not in allowed:
        raise ValueError(f"routing must have shape {' or '.join(map(str, allowed))}, got {tuple(index.shape)}")
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ValueError(f"routing must hold integers, got {index.dtype}")
    low, high = int(index.min()), int(index.max())
    if low < -1 or high >= input_size:
        raise ValueError(
            f"routing must hold input indices in [0, {input_size}) or -1 for an empty slot, got {low} to {high}"
        )
    return index.long().clone()


def branch_input(x: Tensor, w_s: Tensor, routing: Tensor | None) -> Tensor:
    r"""Weighted input of each branch, :math:`\sum_{j \in \text{branch}} w_{s,j}\, x_{r(j)}`.

    Args:
        x: input, (..., input_size), or (..., num_neuron, input_size) where the weights have a neuron axis.
        w_s: synaptic weights, not negative, ([num_neuron,] num_branch, num_synapse_per_branch).
        routing: input index of each synapse, ([num_neuron,] num_branch, num_synapse_per_branch), -1 where empty; None
            when every input is its own branch.

    Returns:
        (..., [num_neuron,] num_branch).

    >>> branch_input(torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(2, 2), torch.tensor([[0, 1], [2, -1]]))
    tensor([[3., 4.]])
    """
    if routing is None:
        return x * w_s.squeeze(-1)
    occupied = w_s * (routing >= 0)
    index = routing.clamp(min=0)
    if index.ndim == 3:  # every neuron its own routing
        flat = index.flatten(1)
        synapse = x.gather(-1, flat.expand(*x.shape[:-2], *flat.shape)).view(*x.shape[:-1], *index.shape[1:])
    else:
        synapse = x[..., index]
    return (synapse * occupied).sum(-1)


def branch_matrix(w_s: Tensor, routing: Tensor, input_size: int) -> Tensor:
    """Routing, weights and branch sum as one matrix, so that ``branch_input(x, ...) == x @ branch_matrix(...).mT``.

    Returns:
        ([num_neuron,] num_branch, input_size).

    >>> branch_matrix(torch.full((2, 2), 0.5), torch.tensor([[0, 0], [2, -1]]), 3)
    tensor([[1.0000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000]])
    """
    index = routing.expand(w_s.shape)
    matrix = w_s.new_zeros(*w_s.shape[:-1], input_size)
    return matrix.scatter_add(-1, index.clamp(min=0), w_s * (index >= 0))
