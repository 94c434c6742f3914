"""The layer by CUDA kernels: the input as one product of torch's, the recurrence in one launch a direction, the
gradient of the recurrent weights as one product over all steps after it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.alif._backend import ALIFBackend
from elm_neuro.backends.alif._kernels import reason_of_kernels
from elm_neuro.backends.alif._reference import Reference
from elm_neuro.backends.alif._torch import remembered
from elm_neuro.backends.cuda import _alif
from elm_neuro.backends.cuda._backend import CudaBackend
from elm_neuro.backends.cuda._input import Events, project_events
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
        params: ALIFParameters,
        state: ALIFState,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, ALIFState]:
        """As :meth:`ALIFBackend.scan`."""
        if x.shape[0] * x.shape[1] == 0:
            return REFERENCE.scan(x, weight, bias, params, state, lengths=lengths)
        plan = Plan.of(params, state.s.shape[1])
        if lengths is not None:
            x, lengths = without_padding(x, lengths), lengths.contiguous()
        current = _arriving(x, weight, bias.dtype) + bias  # (batch, time, output_size)
        past = state.s
        p = None if params.b is None else params.p
        operands = (lengths, current, params.beta, p, params.b, params.w_rec, state.v, state.a, past)
        if torch.is_grad_enabled():
            _alif.expect(plan.kernel_backward, plan.surrogate, current)
        spikes, v, a = _Pass.apply(plan, *operands)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        last = spikes if lengths is not None else spikes[:, -past.shape[1] :]
        return spikes, ALIFState(v, a, remembered(past, last, lengths))


def _arriving(x: Tensor | SpikeEvents, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Products with the input; of events in sums of their own: torch's bag of embeddings takes several times as long
    backward.
    """
    if not isinstance(x, SpikeEvents):
        return project(x, weight).to(dtype)
    events = Events(x.indptr, x.channel, None if x.value is None else x.value.to(dtype))
    sizes = x.shape[0], x.shape[1], x.shape[-1]
    weight = weight.to(dtype)
    return project_events(events, sizes, weight, weight.detach().flatten()[:1])


class Plan(NamedTuple):
    """How a pass runs."""

    history: int  # latency + 1
    chunk: int  # steps between barriers
    surrogate: int  # its kind, as native/api.h numbers them
    slope: Surrogate
    through_reset: bool
    through_recurrence: bool
    blocks: bool  # the gradient of Blocks in place of the loop's

    @classmethod
    def of(cls, params: ALIFParameters, history: int) -> Plan:
        surrogate: Any = params.surrogate
        kind = KERNEL_SURROGATES[type(surrogate)]
        return cls(
            history, _alif.chunk_of(history), kind, surrogate, not params.detach_reset, not params.detach_recurrent,
            params.gradient == "blocks",
        )  # fmt: skip

    @property
    def kernel_backward(self) -> str:
        """Name of the backward pass's kernel."""
        return "elm_alif_blocks_backward" if self.blocks else "elm_alif_backward"


class _Pass(Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, lengths: Tensor | None, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        tensors = tuple(None if one is None else one.detach().contiguous() for one in tensors)
        current, beta, p, b, w_rec, v_0, a_0, s_0 = tensors
        if current is None or v_0 is None or a_0 is None or s_0 is None:
            raise RuntimeError("a pass without input or state")
        batch, num_steps, num_neuron = current.shape
        # step k is left without input by the spikes s_0[k + 1:]
        blocked = s_0[:, 1:].flip(1).cummax(1).values.flip(1).clamp_(min=0).contiguous() if plan.history > 1 else None
        by_sender = None if w_rec is None else w_rec.t().contiguous()
        spikes, v, a = torch.empty_like(current), torch.empty_like(v_0), torch.empty_like(a_0)
        save = any(ctx.needs_input_grad)
        kept = [torch.empty_like(current) for _ in range(3)] if save else [None] * 3
        threads = _alif.threads_for(num_neuron)
        code = _alif.program(current.dtype, threads, plan.surrogate)
        args = _alif.FORWARD(
            num_steps, num_neuron, plan.history, plan.chunk, int(plan.blocks), lengths, current, beta, p, b,
            by_sender, v_0, a_0, s_0, blocked, spikes, v, a, *kept,
        )  # fmt: skip
        shared_bytes = 0 if w_rec is None else _alif.shared_bytes(num_neuron, plan.history)
        _alif.launch("elm_alif", code, batch, threads, shared_bytes, args, current)
        ctx.plan, ctx.code = plan, code
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(lengths, spikes, beta, p, b, w_rec, v_0, s_0, *kept)
        return spikes, v, a

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        lengths, spikes, beta, p, b, w_rec, v_0, s_0, *kept = ctx.saved_tensors
        plan: Plan = ctx.plan
        batch, num_steps, num_neuron = spikes.shape
        given = [None if grad is None else grad.contiguous() for grad in grads]
        grad_current = torch.empty_like(spikes)
        v, a, *sums = (torch.empty_like(v_0) for _ in range(5))
        fed_back = w_rec if plan.through_recurrence else None
        args = _alif.BACKWARD(
            num_steps, num_neuron, plan.history, plan.chunk, int(plan.through_reset), lengths, beta, p, b, fed_back,
            v_0, spikes, *kept, *given, grad_current, v, a, *sums, *slope_words(plan.slope),
        )  # fmt: skip
        threads = _alif.threads_for(num_neuron)
        _alif.launch(plan.kernel_backward, ctx.code, batch, threads, 0, args, spikes)
        of_beta, of_p, of_b = (part.sum(0) for part in sums)
        of_w_rec = of_s_0 = None
        if w_rec is not None:
            arriving = torch.cat([s_0, spikes], 1)[:, :num_steps]
            of_w_rec = grad_current.flatten(0, 1).t() @ arriving.flatten(0, 1)
        if fed_back is not None:
            first = min(plan.history, num_steps)
            of_s_0 = torch.zeros_like(s_0)
            of_s_0[:, :first] = grad_current[:, :first] @ fed_back
        adaptive = b is not None
        return (
            None, None, grad_current, of_beta, of_p if adaptive else None, of_b if adaptive else None, of_w_rec,
            v, a, of_s_0,
        )  # fmt: skip
