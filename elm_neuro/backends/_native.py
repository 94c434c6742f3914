"""The reformulation of :mod:`elm_neuro.backends._torch` with compiled pieces: events, trace filter, memory recurrence, forward and backward.

What has no compiled piece (branch nonlinearities, dense products, the readout) is torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.backends import _library, _torch
from elm_neuro.backends._compiled_drive import DTYPES, Events, drive, drive_frames, first_layer, searched
from elm_neuro.backends._compiled_memory import memory_scan
from elm_neuro.backends._projection import discounted_sum
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMParameters, ELMState, branch_matrix
from elm_neuro.functional._elm import BRANCH_ACTIVATIONS, linear


def refuses(like: Tensor) -> bool:
    """Whether parameters on this device, of this dtype, cannot run natively."""
    return like.device.type != "cpu" or like.dtype not in DTYPES


def refusal(x: Tensor | SpikeEvents, params: ELMParameters) -> str | None:
    """Why these inputs cannot run natively, or None where they can."""
    for tensor in (x.indptr if isinstance(x, SpikeEvents) else x, params.kappa_m):
        if tensor.device.type != "cpu":
            return f"it runs on the CPU, got {tensor.device}"
    if params.kappa_m.dtype not in DTYPES:
        return f"it runs in float32 and float64, got {params.kappa_m.dtype}"
    if len(params.mlp_weight) - 1 > _library.MAX_LAYERS:
        return f"it runs at most {_library.MAX_LAYERS} hidden layers, got {len(params.mlp_weight) - 1}"
    if len({weight.shape[-2] for weight in params.mlp_weight[:-1]}) > 1:
        return "its hidden layers have one width"
    return None


def scan(
    x: Tensor | SpikeEvents, params: ELMParameters, state: ELMState, *, lengths: Tensor | None = None, sparse_input: str = "auto"
) -> tuple[Tensor, ELMState]:
    """Run the neuron over all time steps of `x`, (batch, time, ...); see :func:`elm_neuro.backends.scan`."""
    if x.shape[0] * x.shape[1] == 0:
        return _torch.scan(x, params, state, lengths=lengths, sparse_input=sparse_input)
    if lengths is not None:
        x = _torch.without_padding(x, lengths)
    lowered = torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu"))
    with torch.autocast("cpu", enabled=False):  # as in the torch backend, only products over the whole sequence may be lowered
        compiling = torch.compiler.is_compiling()  # there the number of events must not be looked at
        events = None if compiling else Events.of(x, params.kappa_m.dtype, sparse_input)
        if events is None and isinstance(x, Tensor):
            x = x.to(params.kappa_m.dtype)
        through = _through_hidden if _torch.filters_commute(params) else _through_branches
        u, w_m, b = through(x, events, params, state, lengths, lowered, sparse_input)
        memory = memory_scan(u, state.m, w_m, params)
    y = linear(memory, params.w_y, params.b_y)
    return _torch.cut_at(lengths, y, memory, b, state.m)


def _through_hidden(
    x: Tensor | SpikeEvents,
    events: Events | None,
    params: ELMParameters,
    state: ELMState,
    lengths: Tensor | None,
    lowered: torch.autocast,
    sparse_input: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Input half of the first layer with its bias, the memory's half of its weight, and the branch traces after the last step."""
    num_branch, bias = params.w_s.shape[-2], params.mlp_bias[0]
    weight = params.mlp_weight[0][..., :num_branch]
    if params.routing is None:
        to_branch = None
        table, w_m = first_layer(params.mlp_weight[0], params.w_s.squeeze(-1))
    else:
        to_branch = branch_matrix(params.w_s, params.routing, x.shape[-1])
        table = (to_branch.mT @ weight.mT).movedim(-2, 0).flatten(1)
        w_m = params.mlp_weight[0][..., num_branch:]
    start = _torch.matvec(weight, state.b)
    u = _driven(x, events, table, params.kappa_b, start, bias, lowered, sparse_input)

    if events is not None:
        total = events.discounted_sum(params.kappa_b, lengths)
    elif isinstance(x, Tensor) and torch.compiler.is_compiling():  # over all steps: how far back the sum reaches is not known there
        age = torch.arange(x.shape[1] - 1, -1, -1, device=x.device)
        total = torch.einsum("t,bt...->b...", params.kappa_b.double().pow(age).to(x.dtype), x)
    else:
        total = discounted_sum(x, params.kappa_b, lengths)
    return u, w_m, _torch.branch_traces(total, to_branch, params, state, x.shape[1], lengths)


def _through_branches(
    x: Tensor | SpikeEvents,
    events: Events | None,
    params: ELMParameters,
    state: ELMState,
    lengths: Tensor | None,
    lowered: torch.autocast,
    sparse_input: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same where the filter runs on the branches."""
    num_branch = params.w_s.shape[-2]
    if params.routing is None and events is None and isinstance(x, Tensor) and sparse_input != "on":
        arrived = (x.unsqueeze(2) if params.w_s.ndim == 3 and x.ndim == 3 else x) * params.w_s.squeeze(-1)
        decay = params.kappa_b.expand(state.b.shape[1:]).flatten()
        traces = drive(None, None, arrived.flatten(2), decay, state.b.flatten(1), None).view(arrived.shape)
    else:
        routing = torch.arange(x.shape[-1]).unsqueeze(-1) if params.routing is None else params.routing
        table = branch_matrix(params.w_s, routing, x.shape[-1]).movedim(-1, 0).flatten(1)
        traces = _driven(x, events, table, params.kappa_b, state.b, None, lowered, sparse_input)
    b = _torch.last_valid(traces, lengths, state.b)
    if params.branch_activation is not None:
        traces = BRANCH_ACTIVATIONS[params.branch_activation](traces)
    with lowered:
        u = linear(traces, params.mlp_weight[0][..., :num_branch], params.mlp_bias[0])
    return u.to(state.b.dtype), params.mlp_weight[0][..., num_branch:], b


def _driven(
    x: Tensor | SpikeEvents,
    events: Events | None,
    table: Tensor,
    kappa: Tensor,
    initial: Tensor,
    bias: Tensor | None,
    lowered: torch.autocast,
    sparse_input: str,
) -> Tensor:
    """``x @ table``, filtered, plus `bias`: (batch, time, [num_neuron,] channel) for a table (input_size, num_neuron * channel)."""
    decay, start, offset = kappa.expand(initial.shape[1:]).flatten(), initial.flatten(1), None if bias is None else bias.flatten()
    if events is not None or not isinstance(x, Tensor):
        u = drive(events, table, None, decay, start, offset)
    elif torch.compiler.is_compiling() and searched(x, sparse_input):
        u = drive_frames(x, table, decay, start, offset, sparse_input)
    else:
        with lowered:
            if x.ndim == 4:
                v = torch.einsum("btni,inc->btnc", x, table.view(table.shape[0], x.shape[2], -1)).flatten(2)
            elif x.stride(0) < x.stride(1):  # time first: rows in the order in which they lie
                v = (x.transpose(0, 1) @ table).transpose(0, 1)
            else:
                v = x @ table
        u = drive(None, None, v.to(initial.dtype), decay, start, offset)
    return u.view(*u.shape[:2], *initial.shape[1:])
