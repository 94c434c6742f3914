"""The scan on NVIDIA GPUs: products over the whole sequence by cuBLAS, the memory recurrence by a kernel of its own.

As in :mod:`elm_neuro.backends.elm._torch`, routing, weights, branch sum and first layer are one matrix where all
branches share a time constant; the trace filter is part of the recurrence's kernel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from elm_neuro.backends.cuda import _frames
from elm_neuro.backends.cuda._backend import CudaBackend
from elm_neuro.backends.cuda._input import Events, leaky_filter, project_events
from elm_neuro.backends.cuda._plans import MAX_COLUMNS, MAX_MEMORY, MAX_NEURONS
from elm_neuro.backends.elm import _torch
from elm_neuro.backends.elm._backend import LearnedBackend
from elm_neuro.backends.elm._cuda_op import run_as_operator
from elm_neuro.backends.elm._cuda_operands import Operands, Options
from elm_neuro.backends.elm._cuda_pass import run
from elm_neuro.backends.elm._learned import Learned, Timescales, parts_of
from elm_neuro.backends.parts._bytes import holds_bytes
from elm_neuro.backends.parts._lengths import last_valid, without_padding
from elm_neuro.backends.parts._projection import project as project_frames
from elm_neuro.backends.parts._untraced import untraced
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMParameters, ELMState, branch_matrix, zero_state
from elm_neuro.functional._elm import BRANCH_ACTIVATIONS, linear

run_plainly = untraced(_torch.reformulated_scan)


class Cuda(CudaBackend, LearnedBackend):
    """The kernels of :mod:`elm_neuro.backends.cuda`."""

    traceable = True
    takes_bytes = True

    def refusal(self, x: Tensor | SpikeEvents, params: ELMParameters) -> str | None:
        kappa, weights, shape = params.kappa_m, params.mlp_weight, params.kappa_m.shape
        if x.device != kappa.device:
            return f"x must be on the parameters' device, {kappa.device}, got {x.device}"
        if len(weights) > 2:
            return f"it runs at most 1 hidden layer, got {len(weights) - 1}"
        widest = max(shape[-1], weights[0].shape[-2])
        if widest > MAX_MEMORY:
            return f"it runs at most {MAX_MEMORY} memory or hidden units, got {widest}"
        if len(shape) == 2 and shape[0] > MAX_NEURONS:
            return f"it runs populations of at most {MAX_NEURONS} neurons, got {shape[0]}"
        columns = max(math.prod(x.shape[2:]), math.prod(params.w_s.shape[:-1]))
        if columns > MAX_COLUMNS:
            return f"it runs at most {MAX_COLUMNS} inputs or branches, over all neurons, got {columns}"
        if params.kappa_b.requires_grad and torch.is_grad_enabled():
            return "it has no gradient of the branches' decay, which requires one"
        return self.refusal_of(kappa)

    def scan(
        self,
        x: Tensor | SpikeEvents,
        params: ELMParameters | Learned,
        state: ELMState | None,
        *,
        lengths: Tensor | None = None,
        sparse_input: str = "auto",
        recompute_every: int | None = None,
    ) -> tuple[Tensor, ELMState]:
        """As :meth:`LearnedBackend.scan`. Frames stay dense whatever `sparse_input` says."""
        return _in_dtype_of_autocast(x, *parts_of(params), state, lengths)

    def takes_learned(self, x: Tensor | SpikeEvents, params: ELMParameters, lengths: Tensor | None) -> bool:
        return _is_one_pass(x, params)


def _is_one_pass(x: Tensor | SpikeEvents, params: ELMParameters) -> bool:
    """Whether all between input and output runs in one pass: the filter follows the first layer, and there is input."""
    if x.shape[0] * x.shape[1] == 0 or not _torch.may_commute(params):
        return False
    # by cuBLAS, whose time is that of the product's size
    multiplied = isinstance(x, Tensor) and not holds_bytes(x) and params.routing is not None
    return not (multiplied and params.mlp_weight[0].shape[-2] > params.w_s.shape[-2])


def _in_dtype_of_autocast(
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    timescales: Timescales | None,
    state: ELMState | None,
    lengths: Tensor | None,
) -> tuple[Tensor, ELMState]:
    """The scan; with `timescales` of parameters as a neuron learns them, in one pass."""
    if x.shape[0] * x.shape[1] == 0:
        state = zero_state(params, x.shape[0]) if state is None else state
        return run_plainly(x, params, state, lengths, "off")
    device = params.kappa_m.device.type
    if not torch.is_autocast_enabled(device):
        return _scan(x, params, timescales, state, lengths, None)
    # as in the torch backend, only products over the whole sequence may be lowered
    dtype = torch.get_autocast_dtype(device)
    lowered = dtype if params.kappa_m.dtype == torch.float32 else None
    with torch.autocast(device, enabled=False):
        y, state = _scan(x, params, timescales, state, lengths, lowered)
    return y.to(dtype), state


def _scan(
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    timescales: Timescales | None,
    state: ELMState | None,
    lengths: Tensor | None,
    lowered: torch.dtype | None,
) -> tuple[Tensor, ELMState]:
    dtype = params.kappa_m.dtype
    events = None
    if isinstance(x, SpikeEvents):
        events = Events(x.indptr, x.channel, None if x.value is None else x.value.to(dtype))
    elif not holds_bytes(x):
        x = x if x.dtype is dtype else x.to(dtype)
        if lengths is not None:
            x = without_padding(x, lengths)
    options = Options(x.shape[1], x.shape[-1], params.activation == "silu", lowered, timescales)
    b_0, m_0 = (None, None) if state is None else state
    w1, b1 = params.mlp_weight[0], params.mlp_bias[0]
    w2, b2 = (params.mlp_weight[1], params.mlp_bias[1]) if len(params.mlp_weight) == 2 else (None, None)
    if timescales is None and not _is_one_pass(x, params):
        v, b = _through_branches(x, events, params, state, lengths, lowered)
        w_m = w1[..., params.w_s.shape[-2] :]
        operands = Operands(
            lengths, None, None, None, params.kappa_b, None, None, v, None, w_m, None, params.kappa_m, params.gain, w2,
            b2, params.w_y, params.b_y, None, m_0,
        )  # fmt: skip
        y, _, m = _run(operands, options)
        return y, ELMState(b, m)
    begin, channel, value = (None, None, None) if events is None else events
    frames = x if isinstance(x, Tensor) else None
    operands = Operands(
        lengths, begin, channel, value, params.kappa_b, params.routing, frames, None, params.w_s, w1, b1,
        params.kappa_m, None if timescales else params.gain, w2, b2, params.w_y, params.b_y, b_0, m_0,
    )  # fmt: skip
    y, b, m = _run(operands, options, x if isinstance(x, SpikeEvents) else None)
    return y, ELMState(b, m)


def _run(operands: Operands, options: Options, events: SpikeEvents | None = None) -> tuple[Tensor, Tensor, Tensor]:
    if torch.compiler.is_compiling():
        return run_as_operator(operands, options)
    return run(operands, options, events)


def _through_branches(
    x: Tensor | SpikeEvents,
    events: Events | None,
    params: ELMParameters,
    state: ELMState | None,
    lengths: Tensor | None,
    lowered: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """What arrives at the first layer's outputs, and the branch traces at each sample's end, where branches have their
    own time constants or a nonlinearity, or are fewer than the hidden units: the filter runs on them.
    """
    dtype, num_branch = params.kappa_m.dtype, params.w_s.shape[-2]
    if params.routing is None and isinstance(x, Tensor):
        x = x.to(dtype)
        arrived = (x.unsqueeze(2) if params.w_s.ndim == 3 and x.ndim == 3 else x) * params.w_s.squeeze(-1)
    else:
        routing = torch.arange(x.shape[-1], device=x.device).unsqueeze(-1) if params.routing is None else params.routing
        matrix = branch_matrix(params.w_s, routing, x.shape[-1])
        if holds_bytes(x):
            arrived = _frames.project(x, matrix)
        elif isinstance(x, Tensor):
            with _lowering(x, lowered):
                arrived = project_frames(x, matrix).to(dtype)
        else:
            if events is None:
                raise RuntimeError("events are missing")
            sizes = x.shape[0], x.shape[1], x.shape[-1]
            arrived = project_events(events, sizes, matrix, params.kappa_m.detach().flatten()[:1])
    b_0 = zero_state(params, x.shape[0]).b if state is None else state.b
    traces = leaky_filter(arrived, params.kappa_b, b_0)
    b = last_valid(traces, lengths, b_0)
    if params.branch_activation is not None:
        traces = BRANCH_ACTIVATIONS[params.branch_activation](traces)
    with _lowering(traces, lowered):
        v = linear(traces, params.mlp_weight[0][..., :num_branch], params.mlp_bias[0])
    return v.to(dtype), b


def _lowering(like: Tensor, lowered: torch.dtype | None) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=lowered is not None, dtype=lowered)
