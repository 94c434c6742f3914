"""Gather, weights and branch sum of all neurons as one linear map of the sources."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from elm_neuro.functional import NetworkParams, NetworkRule

MOST_ENTRIES = 1 << 27  # of the dense map from sources to branches: half a GB in float32


def reason_of_sources(params: NetworkParams, input_size: int) -> str | None:
    """Why there is no such map of a layer; None where there is."""
    num_neuron = params.bias.shape[0]
    entries = num_neuron * params.num_branch * (input_size + num_neuron)
    if entries <= MOST_ENTRIES:
        return None
    return f"it makes one matrix of sources by branches, of at most {MOST_ENTRIES} entries, got {entries}"


def read_inputs(params: NetworkParams, input_size: int) -> Tensor:
    """Which inputs some neuron reads, (input_size,): a product meets the others with weights of 0, and NaN times 0 is
    NaN.
    """
    read = torch.zeros(input_size + params.bias.shape[0], dtype=torch.bool, device=params.index.device)
    return read.index_fill(0, params.index.flatten(), True)[:input_size]


class Sources(NamedTuple):
    """What sources add to a neuron's rows in a step: to its branches, or, without a trace, to the first layer of its
    MLP.
    """

    of_input: Tensor  # (num_neuron * rows, input_size)
    of_neurons: Tensor  # (num_neuron, num_neuron * rows), from the activity one step before
    constant: Tensor  # (num_neuron * rows,) or ()
    shape: tuple[int, int]  # num_neuron, rows

    @classmethod
    def of(cls, params: NetworkParams, rule: NetworkRule, input_size: int) -> Sources:
        """The maps of a layer."""
        num_neuron = params.w_s.shape[0]
        num_branch, num_source = params.num_branch, input_size + num_neuron
        begins = torch.arange(0, num_neuron * num_branch * num_source, num_source, device=params.w_s.device)
        place = (begins.unsqueeze(1) + params.index.view(num_neuron * num_branch, -1)).flatten()
        table = params.w_s.new_zeros(num_neuron * num_branch * num_source)
        weights = rule.input_scale * params.w_s.flatten()
        if table.is_cuda:  # where index_add has no fixed order
            table = table.index_put((place,), weights, accumulate=True)
        else:
            table = table.index_add(0, place, weights)
        table = table.view(num_neuron, num_branch, num_source)
        constant = table.new_zeros(())
        if params.kappa_b is None:
            table = params.mlp_weight[0][..., :num_branch] @ table
            constant = params.mlp_bias[0].flatten()
        rows = table.shape[1]
        flat = table.flatten(0, 1)
        return cls(flat[:, :input_size], flat[:, input_size:].mT.contiguous(), constant, (num_neuron, rows))
