"""The layer by native kernels: what arrives, through the events of sparse input, and the recurrence in one pass,
forward and backward; frames that are not sparse meet the weights in one product of torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.backends.alif._backend import ALIFBackend
from elm_neuro.backends.alif._kernels import reason_of_kernels
from elm_neuro.backends.alif._native_op import SPARSE_DENSITY, run_as_operator
from elm_neuro.backends.alif._native_pass import Operands, Plan, run
from elm_neuro.backends.alif._reference import Reference
from elm_neuro.backends.native._backend import NativeBackend
from elm_neuro.backends.native._events import Events, searched
from elm_neuro.backends.parts._lengths import own, valid, without_padding
from elm_neuro.backends.parts._projection import project
from elm_neuro.backends.parts._untraced import untraced
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ALIFParameters, ALIFState

run_plainly = untraced(Reference().scan)


class Native(NativeBackend, ALIFBackend):
    """The kernels of :mod:`elm_neuro.backends.native`."""

    traceable = True

    def refusal(self, x: Tensor | SpikeEvents, params: ALIFParameters, state: ALIFState) -> str | None:
        if x.device.type != "cpu":
            return f"it runs on the CPU, got {x.device}"
        return reason_of_kernels(params) or self.refusal_of(params.beta)

    def scan(
        self,
        x: Tensor | SpikeEvents,
        weight: Tensor,
        bias: Tensor,
        params: ALIFParameters,
        state: ALIFState,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, ALIFState]:
        """As :meth:`ALIFBackend.scan`."""
        batch, num_steps = x.shape[:2]
        if batch * num_steps == 0:
            return run_plainly(x, weight, bias, params, state, lengths=lengths)
        dtype = bias.dtype
        lengths = None if lengths is None else own(lengths)
        if torch.compiler.is_compiling():
            return _traced(x, weight, bias, params, state, lengths)
        if isinstance(x, SpikeEvents):
            events: Events | None = Events.of(x, dtype)
        else:
            events = Events.searched_for(x, dtype, "auto", SPARSE_DENSITY)
        if events is None and lengths is not None:
            x = without_padding(x, lengths)
        begin, end, channel, value = (None,) * 4 if events is None else events[:4]
        dense = project(x, weight).to(dtype) if events is None else None
        operands = _operands((begin, end, channel, value), lengths, weight, dense, bias, params, state)
        found = run(operands, Plan.of(params, state, num_steps, x.shape[2]))
        if found is None:  # the state remembers what is no spike
            return run_plainly(x, weight, bias, params, state, lengths=lengths)
        return found


def _traced(
    x: Tensor | SpikeEvents,
    weight: Tensor,
    bias: Tensor,
    params: ALIFParameters,
    state: ALIFState,
    lengths: Tensor | None,
) -> tuple[Tensor, ALIFState]:
    """The scan inside compiled code, which must not look at how many events there are."""
    begin, channel, value, frames, dense = None, None, None, None, None
    if isinstance(x, SpikeEvents):
        begin, channel, value = x.indptr, x.channel, None if x.value is None else x.value.to(bias.dtype)
    else:
        frames = x if lengths is None else torch.where(valid(lengths, x), x, 0.0)
        if searched(frames, "auto") and not torch.is_autocast_enabled("cpu"):
            frames = frames.to(bias.dtype)
        else:
            dense, frames = project(frames, weight).to(bias.dtype), None
    operands = _operands((begin, None, channel, value), lengths, weight, dense, bias, params, state)
    spikes, *after = run_as_operator(operands, frames, Plan.of(params, state, x.shape[1], x.shape[2]))
    return spikes, ALIFState(*after)


def _operands(
    events: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    lengths: Tensor | None,
    weight: Tensor,
    dense: Tensor | None,
    bias: Tensor,
    params: ALIFParameters,
    state: ALIFState,
) -> Operands:
    """The operands of a pass in which this arrives: without `dense`, by the rows of the weight."""
    return Operands(
        *events, lengths,
        weight=weight if dense is None else None, dense=dense, bias=bias, beta=params.beta,
        p=None if params.b is None else params.p, b=params.b, w_rec=params.w_rec,
        v_0=state.v, a_0=state.a, s_0=state.s,
    )  # fmt: skip
