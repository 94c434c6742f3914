"""The exact reformulation in plain PyTorch: everything but the memory recurrence is computed for all time steps at
once.

With one time constant per branch the trace filter commutes with the routing, the branch sum and, where all branches
share the time constant and have no nonlinearity of their own, with the input half of the first MLP layer. What is left
is :func:`memory_scan`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.backends.elm._backend import ELMBackend
from elm_neuro.backends.elm._torch_memory import memory_scan
from elm_neuro.backends.parts._filter import leaky_filter
from elm_neuro.backends.parts._lengths import cut_at, last_valid, without_padding
from elm_neuro.backends.parts._projection import discounted_sum, project, sparse_where_faster
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMParameters, ELMState, branch_input, branch_matrix, zero_state
from elm_neuro.functional._elm import BRANCH_ACTIVATIONS, linear


class Torch(ELMBackend):
    """The reformulation."""

    name = "torch"
    about = "the exact reformulation in plain PyTorch with a hand-written backward pass, any device"

    def scan(
        self,
        x: Tensor | SpikeEvents,
        params: ELMParameters,
        state: ELMState | None,
        *,
        lengths: Tensor | None = None,
        sparse_input: str = "auto",
        recompute_every: int | None = None,
    ) -> tuple[Tensor, ELMState]:
        """As :meth:`ELMBackend.scan`."""
        state = zero_state(params, x.shape[0]) if state is None else state
        return reformulated_scan(x, params, state, lengths, sparse_input)


def reformulated_scan(
    x: Tensor | SpikeEvents, params: ELMParameters, state: ELMState, lengths: Tensor | None, sparse_input: str
) -> tuple[Tensor, ELMState]:
    """Run the neuron over all time steps of `x`, (batch, time, ...)."""
    if x.shape[1] == 0:
        return params.b_y.expand(x.shape[0], 0, *params.b_y.shape), state  # nothing, with a graph as any readout
    if lengths is not None:
        x = without_padding(x, lengths)
    if sparse_input == "auto":
        x = sparse_where_faster(x, min(params.mlp_weight[0].shape[-2], params.w_s.shape[-2]))
    elif sparse_input == "on" and isinstance(x, Tensor):
        x = SpikeEvents.from_frames(x)
    x = x if isinstance(x, SpikeEvents) else x.to(state.b.dtype)
    device = state.m.device.type
    lowered = torch.autocast(device, enabled=torch.is_autocast_enabled(device))
    first_layer = _through_hidden if filters_commute(params) else _through_branches
    with torch.autocast(
        device, enabled=False
    ):  # only the products over the whole sequence may be lowered: traces and memory may not
        u, b = first_layer(x, params, state, lengths, lowered)
        memory = memory_scan(u, state.m, params)
    y = linear(memory, params.w_y, params.b_y).transpose(0, 1)
    return cut_at(lengths, y), ELMState(b, last_valid(memory.transpose(0, 1), lengths, state.m))


def filters_commute(params: ELMParameters) -> bool:
    """Whether the trace filter may follow the first MLP layer, and does so on no more channels than there are
    branches.
    """
    return may_commute(params) and params.mlp_weight[0].shape[-2] <= params.w_s.shape[-2]


def may_commute(params: ELMParameters) -> bool:
    """Whether the trace filter may follow the first MLP layer: all branches share their time constant and have no
    nonlinearity.
    """
    return params.kappa_b.ndim == 0 and params.branch_activation is None


def _through_hidden(
    x: Tensor | SpikeEvents, params: ELMParameters, state: ELMState, lengths: Tensor | None, lowered: torch.autocast
) -> tuple[Tensor, Tensor]:
    """Input half of the first MLP layer with its bias, (batch, time, [num_neuron,] hidden), and the branch traces after
    the last step.

    Routing, weights, branch sum and layer are one matrix, and the filter runs on the hidden units.
    """
    weight, bias = params.mlp_weight[0][..., : params.w_s.shape[-2]], params.mlp_bias[0]
    to_branch = None if params.routing is None else branch_matrix(params.w_s, params.routing, x.shape[-1])
    to_hidden = weight * params.w_s.mT if to_branch is None else weight @ to_branch
    with lowered:
        v = project(x, to_hidden)
    u = leaky_filter(v.to(state.b.dtype), params.kappa_b, matvec(weight, state.b)) + bias

    total = discounted_sum(x, params.kappa_b, lengths)
    return u, branch_traces(total, params, state, x.shape[1], lengths)


def branch_traces(
    total: Tensor, params: ELMParameters, state: ELMState | None, num_steps: int, lengths: Tensor | None
) -> Tensor:
    """Branch traces at each sample's end, (batch, [num_neuron,] num_branch), from the discounted sum of its input."""
    if params.w_s.ndim == 3 and total.ndim == 2:  # input shared by the neurons of a population
        total = total.unsqueeze(1).expand(-1, params.w_s.shape[0], -1)
    arrived = branch_input(total, params.w_s, params.routing)
    if state is None:
        return arrived
    age = num_steps if lengths is None else lengths.view(-1, *[1] * (arrived.ndim - 1))
    return params.kappa_b**age * state.b + arrived


def _through_branches(
    x: Tensor | SpikeEvents, params: ELMParameters, state: ELMState, lengths: Tensor | None, lowered: torch.autocast
) -> tuple[Tensor, Tensor]:
    """The same where branches have their own time constants or a nonlinearity, or are fewer than the hidden units:
    the filter runs on them.
    """
    if params.routing is None and isinstance(x, Tensor):
        arrived = (x.unsqueeze(2) if params.w_s.ndim == 3 and x.ndim == 3 else x) * params.w_s.squeeze(-1)
    else:
        routing = torch.arange(x.shape[-1], device=x.device).unsqueeze(-1) if params.routing is None else params.routing
        matrix = branch_matrix(params.w_s, routing, x.shape[-1])
        with lowered:
            arrived = project(x, matrix).to(state.b.dtype)
    traces = leaky_filter(arrived, params.kappa_b, state.b)
    b = last_valid(traces, lengths, state.b)
    if params.branch_activation is not None:
        traces = BRANCH_ACTIVATIONS[params.branch_activation](traces)
    with lowered:
        u = linear(traces, params.mlp_weight[0][..., : params.w_s.shape[-2]], params.mlp_bias[0])
    return u.to(state.b.dtype), b


def matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """``matrix @ vector`` for ([num_neuron,] out, in) and (batch, [num_neuron,] in)."""
    if matrix.ndim == 2:
        return vector @ matrix.mT
    return torch.einsum("noi,bni->bno", matrix, vector)
