"""The scan on NVIDIA GPUs: products over the whole sequence by cuBLAS, the memory recurrence by a kernel of its own.

As in :mod:`elm_neuro.backends.elm._torch`, routing, weights, branch sum and first layer are one matrix where all
branches share a time constant; the trace filter is part of the recurrence's kernel.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from elm_neuro.backends.cuda import _compile, _driver, _nvrtc
from elm_neuro.backends.cuda._input import discounted_sum, leaky_filter, project_events
from elm_neuro.backends.cuda._memory import Recurrence, memory_scan
from elm_neuro.backends.cuda._plans import MAX_MEMORY
from elm_neuro.backends.elm import _torch
from elm_neuro.backends.parts._projection import project as project_frames
from elm_neuro.backends.parts._recompute import in_parts
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMParameters, ELMState, branch_matrix, zero_state
from elm_neuro.functional._elm import BRANCH_ACTIVATIONS, linear

DTYPES = (torch.float32, torch.float64)


def missing() -> str | None:
    """What is missing for this backend to run here, or None."""
    if not torch.cuda.is_available():
        return "no NVIDIA GPU that torch can use"
    try:
        _compile.compiler()
        _driver.launcher()
    except (_nvrtc.CompileError, _driver.CudaError) as error:
        return str(error)
    return None


def refusal(x: Tensor | SpikeEvents, params: ELMParameters) -> str | None:
    """Why these inputs cannot run here, or None where they can."""
    kappa = params.kappa_m
    for tensor in (x.indptr if isinstance(x, SpikeEvents) else x, kappa):
        if tensor.device.type != "cuda":
            return f"it runs on NVIDIA GPUs, got {tensor.device}"
    return refused_sizes(params)


def refused_sizes(params: ELMParameters) -> str | None:
    """Why a neuron of these sizes cannot run, or None where it can."""
    kappa, hidden = params.kappa_m, len(params.mlp_weight) - 1
    if kappa.dtype not in DTYPES:
        return f"it runs in float32 and float64, got {kappa.dtype}"
    if hidden > 1:
        return f"it runs at most 1 hidden layer, got {hidden}"
    widest = max(kappa.shape[-1], params.mlp_weight[0].shape[-2])
    if widest > MAX_MEMORY:
        return f"it runs at most {MAX_MEMORY} memory or hidden units, got {widest}"
    return None


def scan(
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    state: ELMState | None,
    *,
    lengths: Tensor | None = None,
    recompute_every: int | None = None,
    sparse_input: str = "auto",
) -> tuple[Tensor, ELMState]:
    """Run the neuron over all time steps of `x`, (batch, time, ...); see :func:`elm_neuro.backends.scan`.

    Frames stay dense whatever `sparse_input` says.
    """
    if x.shape[0] * x.shape[1] == 0:
        state = zero_state(params, x.shape[0]) if state is None else state
        return _torch.scan(x, params, state, lengths=lengths, sparse_input=sparse_input)
    if recompute_every is not None:
        return in_parts(partial(scan, sparse_input=sparse_input), x, params, state, lengths, recompute_every)
    if lengths is not None:
        x = _torch.without_padding(x, lengths)
    device, dtype = params.kappa_m.device.type, params.kappa_m.dtype
    x = x if isinstance(x, SpikeEvents) else x.to(dtype)
    lowered = torch.autocast(device, enabled=torch.is_autocast_enabled(device))
    # only products over the whole sequence may be lowered: traces and memory may not
    with torch.autocast(device, enabled=False):
        through = _through_hidden if _torch.may_commute(params) else _through_branches
        operands, b = through(x, params, state, lengths, lowered)
        memory, m = memory_scan(operands, silu=params.activation == "silu")
    y = _readout(memory, params)
    if lengths is not None:
        y = torch.where(_torch.valid(lengths, y), y, 0.0)
    return y, ELMState(b, m)


def _readout(memory: Tensor, params: ELMParameters) -> Tensor:
    """Output of every step, (batch, time, [num_neuron,] output_size)."""
    if params.kappa_m.ndim == 1:
        return linear(memory[0], params.w_y, params.b_y)
    return linear(memory.permute(1, 2, 0, 3), params.w_y, params.b_y)


def _operands(
    params: ELMParameters,
    state: ELMState | None,
    lengths: Tensor | None,
    v: Tensor,
    f_0: Tensor | None,
    *,
    filtered: bool,
) -> Recurrence:
    num_branch = params.w_s.shape[-2]
    deep = len(params.mlp_weight) == 2
    return Recurrence(
        lengths=lengths,
        kappa_b=None if filtered else params.kappa_b,
        v=v,
        f_0=f_0,
        bias=None if filtered else params.mlp_bias[0],
        m_0=None if state is None else state.m,
        kappa=params.kappa_m,
        gain=params.gain,
        w_m=params.mlp_weight[0][..., num_branch:],
        weight=params.mlp_weight[1] if deep else None,
        layer_bias=params.mlp_bias[1] if deep else None,
    )


def _through_hidden(
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    state: ELMState | None,
    lengths: Tensor | None,
    lowered: torch.autocast,
) -> tuple[Recurrence, Tensor]:
    """What the recurrence works with where the filter follows the first layer, and the branch traces at each sample's end."""
    weight = params.mlp_weight[0][..., : params.w_s.shape[-2]]
    if params.routing is None:
        v = _project(x, weight * params.w_s.mT, lowered)
    else:
        to_branch = branch_matrix(params.w_s, params.routing, x.shape[-1])
        if weight.shape[-2] <= weight.shape[-1]:
            v = _project(x, weight @ to_branch, lowered)
        else:  # through the fewer branches
            v = _by_neuron(_project(x, to_branch, lowered), weight, lowered)
    f_0 = None if state is None else _torch.matvec(weight, state.b)
    total = discounted_sum(x, params.kappa_b, lengths)
    b = _torch.branch_traces(total, params, state, x.shape[1], lengths)
    return _operands(params, state, lengths, v, f_0, filtered=False), b


def _through_branches(
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    state: ELMState | None,
    lengths: Tensor | None,
    lowered: torch.autocast,
) -> tuple[Recurrence, Tensor]:
    """The same where branches have their own time constants or a nonlinearity, or are fewer than the hidden units."""
    if params.routing is None and isinstance(x, Tensor):
        arrived = (x.unsqueeze(2) if params.w_s.ndim == 3 and x.ndim == 3 else x) * params.w_s.squeeze(-1)
    else:
        routing = torch.arange(x.shape[-1], device=x.device).unsqueeze(-1) if params.routing is None else params.routing
        arrived = _project(x, branch_matrix(params.w_s, routing, x.shape[-1]), lowered)
    b_0 = zero_state(params, x.shape[0]).b if state is None else state.b
    traces = leaky_filter(arrived, params.kappa_b, b_0)
    b = _torch.last_valid(traces, lengths, b_0)
    if params.branch_activation is not None:
        traces = BRANCH_ACTIVATIONS[params.branch_activation](traces)
    with lowered:
        u = linear(traces, params.mlp_weight[0][..., : params.w_s.shape[-2]], params.mlp_bias[0])
    return _operands(params, state, lengths, u.to(traces.dtype), None, filtered=True), b


def _project(x: Tensor | SpikeEvents, weight: Tensor, lowered: torch.autocast) -> Tensor:
    """``x @ weight.mT`` for every time step, (batch, time, [num_neuron,] channel), in the dtype of `weight`."""
    if isinstance(x, SpikeEvents):
        return project_events(x, weight)
    with lowered:
        return project_frames(x, weight).to(weight.dtype)


def _by_neuron(v: Tensor, weight: Tensor, lowered: torch.autocast) -> Tensor:
    """The product where each neuron has its own input already."""
    with lowered:
        product = v @ weight.mT if weight.ndim == 2 else torch.einsum("btnj,nhj->btnh", v, weight)
    return product.to(weight.dtype)
