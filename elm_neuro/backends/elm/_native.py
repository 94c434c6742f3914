"""The reformulation of :mod:`elm_neuro.backends.elm._torch` with compiled pieces: what arrives, the recurrence and the
readout in one pass.

What has no compiled piece (branch nonlinearities, products of dense frames) is torch's.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from elm_neuro.backends.elm import _torch
from elm_neuro.backends.elm._backend import ELMBackend
from elm_neuro.backends.elm._native_op import run_compiled
from elm_neuro.backends.elm._native_pass import Operands, Way, run
from elm_neuro.backends.elm._native_table import first_layer
from elm_neuro.backends.native import _library
from elm_neuro.backends.native._events import DTYPES, Events, searched
from elm_neuro.backends.native._filter import drive
from elm_neuro.backends.parts._lengths import last_valid, valid, without_padding
from elm_neuro.backends.parts._projection import discounted_sum
from elm_neuro.backends.parts._recompute import in_parts
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMParameters, ELMState, branch_matrix, zero_state
from elm_neuro.functional._elm import BRANCH_ACTIVATIONS, linear


class Native(ELMBackend):
    """The kernels of :mod:`elm_neuro.backends.native`."""

    name = "native"
    recomputes = traceable = True

    @property
    def about(self) -> str:
        return f"compiled kernels for the CPU ({_library.instruction_set()}), float32 and float64"

    def missing(self) -> str | None:
        return _library.missing()

    def refusal_of(self, parameter: Tensor) -> str | None:
        if parameter.device.type != "cpu":
            return f"it runs on the CPU, got {parameter.device}"
        return None if parameter.dtype in DTYPES else f"it runs in float32 and float64, got {parameter.dtype}"

    def refusal(self, x: Tensor | SpikeEvents, params: ELMParameters) -> str | None:
        device = x.device
        if device.type != "cpu":
            return f"it runs on the CPU, got {device}"
        num_layer = len(params.mlp_weight) - 1
        if num_layer > _library.MAX_LAYERS:
            return f"it runs at most {_library.MAX_LAYERS} hidden layers, got {num_layer}"
        if num_layer > 1 and len({weight.shape[-2] for weight in params.mlp_weight[:-1]}) > 1:
            return "its hidden layers have one width"
        return self.refusal_of(params.kappa_m)

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
        return scan(x, params, state, lengths=lengths, recompute_every=recompute_every, sparse_input=sparse_input)


def scan(
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    state: ELMState | None,
    *,
    lengths: Tensor | None = None,
    recompute_every: int | None = None,
    sparse_input: str = "auto",
) -> tuple[Tensor, ELMState]:
    """Run the neuron over all time steps of `x`, (batch, time, ...); see :func:`elm_neuro.backends.scan`."""
    if x.shape[0] * x.shape[1] == 0:
        state = zero_state(params, x.shape[0]) if state is None else state
        return _torch.reformulated_scan(x, params, state, lengths, sparse_input)
    lengths = None if lengths is None else lengths.contiguous()
    commutes = _torch.may_commute(params)
    if recompute_every is not None and not commutes:
        return in_parts(partial(scan, sparse_input=sparse_input), x, params, state, lengths, recompute_every)
    lowered = torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu"))
    with torch.autocast(
        "cpu", enabled=False
    ):  # as in the torch backend, only products over the whole sequence may be lowered
        compiling = torch.compiler.is_compiling()  # there the number of events must not be looked at
        if lengths is not None and not commutes:
            x = without_padding(x, lengths)
        events = None if compiling else Events.of(x, params.kappa_m.dtype, sparse_input)
        if events is None and isinstance(x, Tensor):
            x = x.to(params.kappa_m.dtype)
            if lengths is not None and commutes:  # of events the pass itself reads no padding
                x = torch.where(valid(lengths, x), x, 0.0)
            # dense frames go where the product is smaller
            sparse = compiling and searched(x, sparse_input)
            commutes = commutes and (
                sparse or params.routing is None or params.mlp_weight[0].shape[-2] <= params.w_s.shape[-2]
            )
            if recompute_every is not None and not commutes:
                with lowered:
                    return in_parts(partial(scan, sparse_input="off"), x, params, state, lengths, recompute_every)
        through = _through_hidden if commutes else _through_branches
        given, b = through(x, events, params, state, lengths, lowered, sparse_input)
        silu = params.activation == "silu"
        if compiling:
            y, m = run_compiled(given, silu=silu, sparse_input=sparse_input)
        else:
            y, m = run(
                given, Way.of(x.shape[0], x.shape[1], params.kappa_m, silu=silu, every=recompute_every, lowered=lowered)
            )
    return (y.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else y), ELMState(b, m)


def _operands(
    params: ELMParameters,
    state: ELMState | None,
    lengths: Tensor | None,
    w_m: Tensor,
    *,
    events: Events | None = None,
    x: Tensor | SpikeEvents | None = None,
    table: Tensor | None = None,
    dense: Tensor | None = None,
    start: Tensor | None = None,
    filtered: bool = False,
) -> Operands:
    layers = tuple(tensor for layer in zip(params.mlp_weight[1:], params.mlp_bias[1:], strict=True) for tensor in layer)
    found: tuple[Tensor | None, ...] = (None,) * 4 if events is None else events[:4]
    frames = x if events is None and dense is None and isinstance(x, Tensor) else None
    kappa_b, bias = (params.kappa_b, params.mlp_bias[0]) if filtered else (None, None)
    memory = None if state is None else state.m, params.kappa_m, params.gain, w_m, params.w_y, params.b_y
    return Operands._make([*found, lengths, kappa_b, frames, table, dense, start, bias, *memory, layers])


def _through_hidden(
    x: Tensor | SpikeEvents,
    events: Events | None,
    params: ELMParameters,
    state: ELMState | None,
    lengths: Tensor | None,
    lowered: torch.autocast,
    sparse_input: str,
) -> tuple[Operands, Tensor]:
    """What the pass works with where the filter may follow the first layer, and the branch traces after each sample's last step."""
    num_branch = params.w_s.shape[-2]
    table, w_m = first_layer(params.mlp_weight[0], params.w_s, params.routing, x.shape[-1])
    start = None if state is None else _torch.matvec(params.mlp_weight[0][..., :num_branch], state.b)
    dense = None
    if torch.compiler.is_compiling() and isinstance(x, Tensor) and not searched(x, sparse_input):
        with lowered:
            dense = torch.einsum("bti,nih->btnh" if x.ndim == 3 else "btni,nih->btnh", x, table).to(x.dtype)
        dense = dense if params.kappa_m.ndim == 2 else dense.squeeze(2)
    if events is not None:
        total = events.discounted_sum(params.kappa_b, lengths)
    elif (
        isinstance(x, Tensor) and torch.compiler.is_compiling()
    ):  # over all steps: how far back the sum reaches is not known there
        age = torch.arange(x.shape[1] - 1, -1, -1, device=x.device)
        total = torch.einsum("t,bt...->b...", params.kappa_b.double().pow(age).to(x.dtype), x)
    else:
        total = discounted_sum(x, params.kappa_b, lengths)
    given = _operands(
        params,
        state,
        lengths,
        w_m,
        events=events,
        x=x,
        table=None if dense is not None else table,
        dense=dense,
        start=start,
        filtered=True,
    )
    return given, _torch.branch_traces(total, params, state, x.shape[1], lengths)


def _through_branches(
    x: Tensor | SpikeEvents,
    events: Events | None,
    params: ELMParameters,
    state: ELMState | None,
    lengths: Tensor | None,
    lowered: torch.autocast,
    sparse_input: str,
) -> tuple[Operands, Tensor]:
    """The same where the filter runs on the branches; inside torch.compile frames stay dense here."""
    shape, num_input = params.w_s.shape[:-1], x.shape[-1]  # ([num_neuron,] num_branch)
    decay, b_0 = params.kappa_b.expand(shape).flatten(), None if state is None else state.b.flatten(1)
    if events is None and isinstance(x, Tensor):
        if params.routing is None:
            arrived = (x.unsqueeze(2) if len(shape) == 2 and x.ndim == 3 else x) * params.w_s.squeeze(-1)
        else:
            matrix = branch_matrix(params.w_s, params.routing, num_input)
            with lowered:
                arrived = (
                    x @ matrix.mT
                    if matrix.ndim == 2
                    else torch.einsum("bti,nji->btnj" if x.ndim == 3 else "btni,nji->btnj", x, matrix)
                )
            arrived = arrived.to(x.dtype)
        flat = drive(None, None, arrived.flatten(2), decay, b_0)
    else:
        routing = torch.arange(num_input).unsqueeze(-1) if params.routing is None else params.routing
        table = branch_matrix(params.w_s, routing, num_input).movedim(-1, 0).flatten(1)
        flat = drive(events, table.unsqueeze(0), None, decay, b_0)
    traces = flat.view(*flat.shape[:2], *shape)
    b = last_valid(traces, lengths, flat.new_zeros(x.shape[0], *shape) if state is None else state.b)
    if params.branch_activation is not None:
        traces = BRANCH_ACTIVATIONS[params.branch_activation](traces)
    num_branch = shape[-1]
    with lowered:
        u = linear(traces, params.mlp_weight[0][..., :num_branch], params.mlp_bias[0])
    return _operands(params, state, lengths, params.mlp_weight[0][..., num_branch:], dense=u.to(flat.dtype)), b
