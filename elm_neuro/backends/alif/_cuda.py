"""The layer by CUDA kernels: the input as one product of torch's, the recurrence in one launch a direction, the
gradient of the recurrent weights as one product over all steps after it.
"""

from __future__ import annotations

from functools import cache
from struct import pack, unpack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.alif._backend import ALIFBackend
from elm_neuro.backends.alif._kernels import reason_of_kernels
from elm_neuro.backends.alif._learned import AtRest, Learned, Ranges
from elm_neuro.backends.alif._reference import Reference
from elm_neuro.backends.cuda import _alif, _driver
from elm_neuro.backends.cuda._backend import CudaBackend
from elm_neuro.backends.cuda._input import Events, project_events
from elm_neuro.backends.cuda._launch import Launch, address
from elm_neuro.backends.cuda._surrogates import slope_words
from elm_neuro.backends.parts._lengths import without_padding
from elm_neuro.backends.parts._projection import project
from elm_neuro.backends.parts._surrogates import KERNEL_SURROGATES
from elm_neuro.backends.parts._twice import differentiable_once
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ALIFParameters, ALIFState, Surrogate

REFERENCE = Reference()


class Cuda(CudaBackend, ALIFBackend):
    """The kernels of :mod:`elm_neuro.backends.cuda`."""

    reads_learned = True

    def refusal(self, x: Tensor | SpikeEvents, params: ALIFParameters, state: ALIFState) -> str | None:
        if x.device != params.beta.device:
            return f"x must be on the parameters' device, {params.beta.device}, got {x.device}"
        if (reason := reason_of_kernels(params)) is not None:
            return reason
        if params.beta.shape[0] > _alif.MAX_NEURON:
            return f"it runs at most {_alif.MAX_NEURON} neurons, got {params.beta.shape[0]}"
        history = state.s.shape[1]
        if params.w_rec is not None and (most := _alif.max_history(params.beta.shape[0])) < history:
            latencies = f"latencies of at most {most - 1} steps in a recurrent layer of {params.beta.shape[0]} neurons"
            return f"its shared memory holds {latencies}, got {history - 1}"
        return self.refusal_of(params.beta)

    def scan(
        self,
        x: Tensor | SpikeEvents,
        weight: Tensor,
        bias: Tensor,
        params: ALIFParameters | Learned,
        state: ALIFState,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, ALIFState]:
        """As :meth:`ALIFBackend.scan`."""
        if x.shape[0] * x.shape[1] == 0:
            params = params.effective() if isinstance(params, Learned) else params
            state = state.spelled_out() if isinstance(state, AtRest) else state
            return REFERENCE.scan(x, weight, bias, params, state, lengths=lengths)
        params, ranges = params if isinstance(params, Learned) else (params, None)
        plan = Plan.of(params, ranges, (x.shape[0], x.shape[1], bias.shape[0], state.s.shape[1]), bias.dtype)
        if lengths is not None:
            x, lengths = _without_padding(x, lengths), lengths.contiguous()
        current = _arriving(x, weight, bias.dtype)  # (batch, time, output_size)
        before = (None, None, None) if isinstance(state, AtRest) else state
        p = None if params.b is None else params.p
        if torch.is_grad_enabled():
            _driver.expect(bias.device, *plan.backward.kernels)
        spikes, *after = _Pass.apply(plan, lengths, current, bias, params.beta, p, params.b, params.w_rec, *before)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return spikes, ALIFState(*after)


def _without_padding(x: Tensor | SpikeEvents, lengths: Tensor) -> Tensor | SpikeEvents:
    """As :func:`without_padding`, without waiting for the device to say which events are left. The kernels read no
    current past a sample's end and give it a gradient of 0, so that only values that are no numbers would be seen.
    """
    if isinstance(x, Tensor):
        return without_padding(x, lengths)
    if x.value is None:
        return x
    row = x.rows()
    value = torch.where(row % x.num_steps < lengths[row // x.num_steps], x.value, 0.0)
    return SpikeEvents(x.indptr, x.channel, value, x.shape)


def _arriving(x: Tensor | SpikeEvents, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Products with the input; of events in sums of their own: torch's bag of embeddings takes several times as long
    backward.
    """
    if not isinstance(x, SpikeEvents):
        current = project(x, weight)
        return current if current.dtype == dtype else current.to(dtype)
    events = Events(x.indptr, x.channel, None if x.value is None else x.value.to(dtype))
    sizes = x.shape[0], x.shape[1], x.shape[-1]
    weight = weight.to(dtype)
    return project_events(events, sizes, weight, weight.detach().flatten()[:1])


class Plan(NamedTuple):
    """How a pass runs."""

    sizes: _alif.Sizes
    slope: Surrogate
    forward: Launch
    backward: Launch
    through_recurrence: bool

    @classmethod
    def of(
        cls, params: ALIFParameters, ranges: Ranges | None, sizes: tuple[int, int, int, int], dtype: torch.dtype
    ) -> Plan:
        """Of a pass of these numbers of samples, steps, neurons and steps that a state remembers."""
        surrogate: Any = params.surrogate
        of = _alif.Sizes(dtype, *sizes, KERNEL_SURROGATES[type(surrogate)], params.gradient == "blocks", _words(ranges))
        recurrent = params.w_rec is not None
        through = recurrent and not params.detach_recurrent
        backward = _alif.backward(of, through, not params.detach_reset)
        return cls(of, surrogate, _alif.forward(of, recurrent), backward, through)


@cache
def _words(ranges: Ranges | None) -> tuple[int, ...]:
    """Ranges as the kernels read them: whether there are any, then the bits of float64 numbers."""
    bounds = (0.0,) * 6 if ranges is None else (*ranges.beta, *ranges.p, *ranges.b)
    return int(ranges is not None), *unpack("6q", pack("6d", *bounds))


class _Pass(Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, lengths: Tensor | None, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        tensors = tuple([None if one is None else one.contiguous() for one in tensors])
        current, bias, beta, p, b, w_rec, v_0, a_0, s_0 = tensors
        if current is None:
            raise RuntimeError("a pass without input")
        batch, _, num_neuron = current.shape
        history, empty = plan.sizes.history, current.new_empty
        # step k is left without input by the spikes s_0[k + 1:]
        blocked = None
        if s_0 is not None and history > 1:
            blocked = s_0[:, 1:].flip(1).cummax(1).values.flip(1).clamp_(min=0).contiguous()
        by_sender = None if w_rec is None else w_rec.t().contiguous()
        spikes, v, a = torch.empty_like(current), empty(batch, num_neuron), empty(batch, num_neuron)
        s = empty(batch, history, num_neuron)
        kept = empty(2 if b is None else 3, *current.shape) if any(ctx.needs_input_grad) else None
        plan.forward(
            _driver.launcher().queue(current.device),
            *map(address, (lengths, current, bias, beta, p, b, by_sender, v_0, a_0, s_0, blocked, spikes, v, a, s)),
            *_parts(kept),
        )
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(lengths, spikes, beta, p, b, w_rec, v_0, s_0, kept)
        return spikes, v, a, s

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        lengths, spikes, beta, p, b, w_rec, v_0, s_0, kept = ctx.saved_tensors
        plan: Plan = ctx.plan
        batch, num_steps, num_neuron = spikes.shape
        of_spikes, *of_state = grads
        of_state = [None if grad is None else grad.contiguous() for grad in of_state]
        fed_back = w_rec if plan.through_recurrence else None
        of_current, sums = torch.empty_like(spikes), spikes.new_empty(batch, 4, num_neuron)
        of_v = of_a = of_s = None
        if v_0 is not None:
            of_v, of_a, of_s = torch.empty_like(v_0), torch.empty_like(v_0), torch.empty_like(s_0)
        plan.backward(
            _driver.launcher().queue(spikes.device),
            *map(address, (lengths, beta, p, b, fed_back, v_0, spikes)), *_parts(kept),
            *map(address, (of_spikes, *of_state, of_current, of_v, of_a, of_s, sums)),
            *((0, 0, 0) if of_spikes is None else of_spikes.stride()), *slope_words(plan.slope),
        )  # fmt: skip
        of_beta, of_p, of_b, of_bias = sums.sum(0).unbind()
        of_w_rec = None if w_rec is None else _of_w_rec(of_current, spikes, s_0, plan.sizes.history)
        if fed_back is not None and of_s is not None:
            first = min(plan.sizes.history, num_steps)
            of_s[:, :first] += of_current[:, :first] @ fed_back
        adaptive = b is not None
        return (
            None, None, of_current, of_bias, of_beta, of_p if adaptive else None, of_b if adaptive else None, of_w_rec,
            of_v, of_a, of_s,
        )  # fmt: skip


def _parts(kept: Tensor | None) -> tuple[int, int, int]:
    """Addresses of membrane, adaptation and what the input is multiplied by; 0 for those that are not there."""
    if kept is None:
        return 0, 0, 0
    begin, size = kept.data_ptr(), kept.stride(0) * kept.element_size()
    return begin, 0 if kept.shape[0] == 2 else begin + 2 * size, begin + size


def _of_w_rec(of_current: Tensor, spikes: Tensor, s_0: Tensor | None, history: int) -> Tensor:
    """Gradient of the recurrent weights: the spikes of history steps before each step, those of the state before the
    first ones.
    """
    found = _outer(of_current[:, history:], spikes[:, :-history])
    return found if s_0 is None else found + _outer(of_current[:, :history], s_0[:, : spikes.shape[1]])


def _outer(to: Tensor, sent: Tensor) -> Tensor:
    """Sum over samples and steps of outer products: sample by sample without a copy, where their sums take no more room
    than a copy would.
    """
    if to.shape[1] >= to.shape[2]:
        return torch.bmm(to.mT, sent).sum(0)
    return to.flatten(0, 1).t() @ sent.flatten(0, 1)
