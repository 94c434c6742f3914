"""What arrives at the branches, and what leaves them for the first layer, where the filter runs on them."""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.functional import ELMParameters, branch_matrix
from elm_neuro.functional._elm import linear


def branch_table(params: ELMParameters, num_input: int) -> Tensor:
    """What an input adds to each branch, (1, num_input, all branches)."""
    routing = params.routing
    if routing is None:  # a branch an input
        routing = torch.arange(num_input, device=params.w_s.device).unsqueeze(-1)
    return branch_matrix(params.w_s, routing, num_input).movedim(-1, 0).flatten(1).unsqueeze(0)


def after_branches(traces: Tensor, params: ELMParameters, lowered: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Input half of the first layer with its bias, (..., hidden), and the memory's part of the layer's weight."""
    num_branch, weight, bias = params.w_s.shape[-2], params.mlp_weight[0], params.mlp_bias[0]
    from_branch, w_m = weight[..., :num_branch], weight[..., num_branch:]
    if lowered is None:
        return linear(traces, from_branch, bias), w_m
    u = linear(traces.to(lowered), from_branch.to(lowered), bias.to(lowered))
    return u.to(weight.dtype), w_m


def arrived_at_branches(frames: Tensor, params: ELMParameters, lowered: torch.dtype | None) -> Tensor:
    """Branch sums of dense frames, (batch, time, [num_neuron,] num_branch)."""
    if params.routing is None:
        return (frames.unsqueeze(2) if params.w_s.ndim == 3 and frames.ndim == 3 else frames) * params.w_s.squeeze(-1)
    matrix, x = branch_matrix(params.w_s, params.routing, frames.shape[-1]), frames
    if lowered is not None:
        matrix, x = matrix.to(lowered), x.to(lowered)
    if matrix.ndim == 2:
        return (x @ matrix.mT).to(frames.dtype)
    return torch.einsum("bti,nji->btnj" if x.ndim == 3 else "btni,nji->btnj", x, matrix).to(frames.dtype)


def fewer_branches(params: ELMParameters) -> bool:
    """Whether the product of dense frames is smaller on the branches than on the hidden units."""
    return params.routing is not None and params.mlp_weight[0].shape[-2] > params.w_s.shape[-2]
