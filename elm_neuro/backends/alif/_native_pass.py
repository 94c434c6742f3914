"""The native pass over a sequence of a LIF layer, and its backward pass: ``native/alif.h`` says what they compute."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.native import _library
from elm_neuro.backends.native._events import Events
from elm_neuro.backends.native._rows import padded_table, rows
from elm_neuro.backends.parts._surrogates import in_numbers
from elm_neuro.backends.parts._twice import differentiable_once
from elm_neuro.functional import ALIFParameters, ALIFState


class Operands(NamedTuple):
    """The tensors of a pass; what arrives are the rows of `weight` of events, or `dense`."""

    begin: Tensor | None  # of Events
    end: Tensor | None
    channel: Tensor | None
    value: Tensor | None
    lengths: Tensor | None  # (batch,), int64
    weight: Tensor | None  # (num_neuron, input_size); the fields from here on are differentiated
    dense: Tensor | None  # (batch, time, num_neuron)
    bias: Tensor  # (num_neuron,), and so are the next three
    beta: Tensor
    p: Tensor | None
    b: Tensor | None  # None without adaptation
    w_rec: Tensor | None  # (to, from)
    v_0: Tensor  # (batch, num_neuron)
    a_0: Tensor
    s_0: Tensor  # (batch, latency + 1, num_neuron)

    def laid_out(self) -> Operands:
        """As the kernels read them: contiguous but for the rows of `dense`."""
        whole = Operands._make([tensor if tensor is None else tensor.contiguous() for tensor in self])
        return whole if self.dense is None else whole._replace(dense=rows(self.dense))

    @property
    def weights(self) -> list[Tensor]:
        """(num_neuron, sender): of inputs where there are events, then of the layer's own neurons."""
        return [weight for weight in (self.weight, self.w_rec) if weight is not None]

    def table(self) -> Tensor | None:
        """Room for the weights by sender, one after the other: a table (sender, num_neuron)."""
        num_sender = sum(weight.shape[1] for weight in self.weights)
        return padded_table(self.bias, 1, num_sender, self.bias.shape[0])[0] if num_sender else None


FIRST_DIFFERENTIATED = Operands._fields.index("weight")


class Plan(NamedTuple):
    """How a pass runs."""

    num_steps: int
    num_input: int
    latency: int
    surrogate: int
    settings: tuple[float, ...]
    detach_reset: bool
    detach_recurrent: bool
    blocks: bool  # the gradient of Blocks in place of the loop's

    @classmethod
    def of(cls, params: ALIFParameters, state: ALIFState, num_steps: int, num_input: int) -> Plan:
        return cls(
            num_steps, num_input, state.s.shape[1] - 1, *in_numbers(params.surrogate),
            params.detach_reset, params.detach_recurrent, params.gradient == "blocks",
        )  # fmt: skip

    def chunk(self, *, recurrent: bool) -> int:
        """Steps that a neuron runs through by itself: no spike of the layer reaches it before the latency is over."""
        most = _library.alif_chunk()
        return min(most, self.latency + 1) if recurrent else most


# As native/api.h has them.
STRETCH = 48  # steps of the way back at a time at most
ROWS, BLOCK_ROWS = 3, 6  # numbers of a neuron that are kept of each


def saved_size(operands: Operands, plan: Plan) -> int:
    """Entries that the backward pass reads, as ``elm_alif_saved`` says; sizes may be left open by compiled code."""
    (batch, num_neuron), dtype, recurrent = operands.v_0.shape, operands.bias.dtype, operands.w_rec is not None
    chunk = plan.chunk(recurrent=recurrent)
    stretch = chunk if recurrent and not plan.detach_recurrent else STRETCH // chunk * chunk
    rows = -(-plan.num_steps // stretch) * (BLOCK_ROWS if plan.blocks else ROWS)
    words = (plan.latency + 1 + plan.num_steps) * -(-num_neuron // 64) if recurrent else 0
    return batch * (rows * _library.padded(dtype, int(num_neuron)) + words * (8 // dtype.itemsize))


def run(operands: Operands, plan: Plan) -> tuple[Tensor, ALIFState] | None:
    """Spikes and the state after each sample's last step; None where a remembered spike is neither 0 nor 1."""
    if torch.is_grad_enabled():
        spikes, *state = _Pass.apply(plan, *operands)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    else:
        spikes, *state, _ = forward(operands.laid_out(), plan, save=False)
    return None if spikes.shape[0] != operands.v_0.shape[0] else (spikes, ALIFState(*state))


class _Pass(Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        operands = Operands._make(tensors).laid_out()
        spikes, v, a, s, saved = forward(operands, plan, save=any(ctx.needs_input_grad))
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(spikes, saved, *operands)
        return spikes, v, a, s

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        spikes, saved, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[1 + FIRST_DIFFERENTIATED :]
        # as the kernels read them, wherever they have been kept in between
        operands = Operands._make(tensors).laid_out()
        found = backward(operands, ctx.plan, rows(spikes), saved.contiguous(), grads, needed)
        return (None,) * (1 + FIRST_DIFFERENTIATED) + found


def forward(operands: Operands, plan: Plan, *, save: bool) -> tuple[Tensor, ...]:
    """Spikes, state and what the backward pass reads; spikes of no sample where the state's are none."""
    like, (batch, num_neuron) = operands.bias, operands.v_0.shape
    args, _alive = _arguments(operands, plan)
    spikes = _library.large(like, batch * plan.num_steps * num_neuron).view(batch, plan.num_steps, num_neuron)
    state = [torch.empty_like(part) for part in (operands.v_0, operands.a_0, operands.s_0)]
    is_double = like.dtype == torch.float64
    saved = _library.large(like, _library.library().elm_alif_saved(is_double, ctypes.byref(args)) if save else 0)
    args.spikes, args.spikes_batch, args.spikes_time = spikes.data_ptr(), *spikes.stride()[:2]
    args.v_last, args.a_last, args.s_last = (part.data_ptr() for part in state)
    args.saved = saved.data_ptr() if save else None
    status = _call(_library.library().elm_alif_forward, args, like)
    if status & 1:
        raise MemoryError(f"no memory for a layer of {num_neuron} neurons")
    return spikes[:0] if status else spikes, *state, saved


def backward(
    operands: Operands,
    plan: Plan,
    spikes: Tensor,
    saved: Tensor,
    grads: tuple[Tensor | None, ...],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the operands from `weight` on."""
    like, wanted = operands.bias, Operands(*(False,) * FIRST_DIFFERENTIATED, *needed)  # type: ignore[arg-type]
    if operands.channel is not None:
        _check_events(operands, plan)
    args, _alive = _arguments(operands, plan)
    args.spikes, args.spikes_batch, args.spikes_time = spikes.data_ptr(), *spikes.stride()[:2]
    args.saved = saved.data_ptr()
    grad_spikes = None if grads[0] is None else rows(grads[0])
    if grad_spikes is not None:
        args.grad_spikes, args.grad_batch, args.grad_time = grad_spikes.data_ptr(), *grad_spikes.stride()[:2]
    of_state = [None if grad is None else grad.contiguous() for grad in grads[1:]]
    args.grad_v_last, args.grad_a_last, args.grad_s_last = map(_library.address, of_state)

    def room(tensor: Tensor | None, want: object = True) -> Tensor | None:
        return None if tensor is None or not want else tensor.new_empty(tensor.shape)

    table = operands.table() if wanted.weight or wanted.w_rec else None
    dense = room(operands.dense, wanted.dense)
    bias, beta, p, b = (room(tensor) for tensor in (operands.bias, operands.beta, operands.p, operands.b))
    v_0, a_0, s_0 = (
        room(tensor, want)
        for tensor, want in ((operands.v_0, wanted.v_0), (operands.a_0, wanted.a_0), (operands.s_0, wanted.s_0))
    )
    args.grad_table, args.grad_dense = _library.address(table), _library.address(dense)
    args.grad_v_0, args.grad_a_0, args.grad_s_0 = map(_library.address, (v_0, a_0, s_0))
    args.grad_bias, args.grad_beta, args.grad_p, args.grad_b = map(_library.address, (bias, beta, p, b))
    if _call(_library.library().elm_alif_backward, args, like):
        raise MemoryError(f"no memory for the gradients of a layer of {like.shape[0]} neurons")
    weight = None if table is None or operands.weight is None else table[: operands.weight.shape[1]].t()
    w_rec = None if table is None or operands.w_rec is None else table[-operands.w_rec.shape[1] :].t()
    return weight, dense, bias, beta, p, b, w_rec, v_0, a_0, s_0


def _check_events(operands: Operands, plan: Plan) -> None:
    """Refuse events that were changed since the forward pass, where autograd could not see it."""
    begin, end, channel, value = operands[:4]
    if begin is None or end is None or channel is None:
        raise RuntimeError("events without rows")
    shape = operands.v_0.shape[0], plan.num_steps, plan.num_input
    Events(begin, end, channel, value, shape).check()


def _arguments(operands: Operands, plan: Plan) -> tuple[_library.AlifArgs, Tensor | None]:
    """Arguments of either pass, and the table, which must outlive the call."""
    (batch, num_neuron), w_rec = operands.v_0.shape, operands.w_rec
    num_input = 0 if operands.weight is None else plan.num_input
    args = _library.AlifArgs(
        batch, plan.num_steps, num_neuron, num_input, plan.latency, plan.chunk(recurrent=w_rec is not None)
    )
    args.surrogate, args.blocks = plan.surrogate, plan.blocks
    args.detach_reset, args.detach_recurrent = plan.detach_reset, plan.detach_recurrent
    for index, setting in enumerate(plan.settings):
        args.setting[index] = setting
    table = operands.table()
    if table is not None:
        table.copy_(torch.cat([weight.detach().t() for weight in operands.weights]))
    if operands.channel is not None:
        args.wide = operands.channel.dtype == torch.int64
        args.begin, args.end = _library.address(operands.begin), _library.address(operands.end)
        args.channel, args.value = operands.channel.data_ptr(), _library.address(operands.value)
    elif operands.dense is not None:
        args.dense, args.dense_batch, args.dense_time = operands.dense.data_ptr(), *operands.dense.stride()[:2]
    args.table, args.lengths = _library.address(table), _library.address(operands.lengths)
    args.bias, args.beta, args.p, args.b, args.w_rec, args.v_0, args.a_0, args.s_0 = map(
        _library.address, operands[Operands._fields.index("bias") :]
    )
    return args, table


def _call(call: _library.Call, args: _library.AlifArgs, like: Tensor) -> int:
    threads = _library.threads_for(20.0 * args.batch * args.num_steps * args.num_neuron)
    return int(call(like.dtype == torch.float64, threads, ctypes.byref(args)))
