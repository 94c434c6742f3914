"""What arrives at a neuron: products with events, leaky integration, and the input summed to the end of a sequence."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import addresses, structure
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.parts._once import differentiable_once
from elm_neuro.events import SpikeEvents

THREADS = 256
EVENTS_OF_PART = 64  # of one input that one thread adds up in the backward pass

GatherArgs = structure("GatherArgs", "num_row num_part width", "begin end index value table out")
FilterArgs = structure("FilterArgs", "num_steps width num_kappa v_batch v_time reverse", "v kappa initial out")
DiscountArgs = structure(
    "DiscountArgs", "num_steps num_input x_batch x_time", "lengths kappa x begin channel value total"
)
SIZES = {
    "ELM_BYTES_GATHER": ctypes.sizeof(GatherArgs),
    "ELM_BYTES_FILTER": ctypes.sizeof(FilterArgs),
    "ELM_BYTES_DISCOUNT": ctypes.sizeof(DiscountArgs),
}


def program(dtype: torch.dtype) -> Program:
    """The source of these kernels for numbers of this type."""
    double = dtype == torch.float64
    return Program(
        "input.cuh", (("ELM_REAL", "double" if double else "float"), ("ELM_DOUBLE", int(double)), *SIZES.items())
    )


def _launch(kernel: str, grid: tuple[int, int], args: ctypes.Structure, like: Tensor, shared_bytes: int = 0) -> None:
    _driver.launcher().launch(program(like.dtype), kernel, grid, THREADS, shared_bytes, args, like.device)


def project_events(x: SpikeEvents, weight: Tensor) -> Tensor:
    """As :func:`elm_neuro.backends.project`, of events: (batch, time, [num_neuron,] channel)."""
    value = None if x.value is None else x.value.to(weight.dtype)
    flat: Tensor = _EventProjection.apply(weight.flatten(0, -2), x.indptr, x.channel, value)  # type: ignore[no-untyped-call]
    return flat.view(x.batch, x.num_steps, *weight.shape[:-1])


class _EventProjection(Function):
    """Rows of the transposed weight added up per time step; the backward pass is the same sum over the transposed events."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, indptr: Tensor, channel: Tensor, value: Tensor | None) -> Tensor:
        ctx.save_for_backward(indptr, channel, value)
        ctx.num_channels = weight.shape[1]
        return gather(weight.t().contiguous(), indptr.contiguous(), channel.contiguous(), value)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        indptr, channel, value = ctx.saved_tensors
        num_channels, num_events = ctx.num_channels, channel.shape[0]
        # short keys take fewer rounds of the sort; no call here waits for the device
        keys = channel.to(torch.int16 if num_channels <= torch.iinfo(torch.int16).max else torch.int32)
        keys, order = torch.sort(keys, stable=True)
        row = torch.arange(indptr.shape[0] - 1, device=indptr.device)
        row = torch.repeat_interleave(row, indptr.diff(), output_size=num_events)
        inputs = torch.arange(num_channels + 1, dtype=keys.dtype, device=keys.device)
        begin = torch.searchsorted(keys, inputs)
        parts = max(1, min(64, num_events // max(1, num_channels * EVENTS_OF_PART)))
        of_event = None if value is None else value[order]
        grad_weight = gather(grad.contiguous(), begin, row[order], of_event, parts)
        return grad_weight.t(), None, None, None


def gather(table: Tensor, begin: Tensor, index: Tensor, value: Tensor | None, parts: int = 1) -> Tensor:
    """Sums of rows of `table`, (any, width): of row r those numbered ``index[begin[r] : begin[r + 1]]``, times `value`.

    Args:
        table: contiguous.
        begin: (num_row + 1,), int64.
        index: (num_events,), int64.
        value: (num_events,), or None where all are 1.
        parts: threads that share a row.

    Returns:
        (num_row, width).
    """
    num_row, width = begin.shape[0] - 1, table.shape[1]
    out = table.new_empty(parts, num_row, width)
    args = GatherArgs(num_row, parts, width, *addresses(begin, None, index, value, table, out))
    if out.numel():
        _launch("elm_gather", (-(-num_row * width // THREADS), parts), args, table)
    return out[0] if parts == 1 else out.sum(0)


def leaky_filter(v: Tensor, kappa: Tensor, initial: Tensor | None) -> Tensor:
    """As :func:`elm_neuro.backends.parts._filter.leaky_filter`; `initial` may be None for zeros."""
    filtered: Tensor = _LeakyFilter.apply(v, kappa, initial)  # type: ignore[no-untyped-call]
    return filtered


class _LeakyFilter(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, kappa: Tensor, initial: Tensor | None) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.has_initial = initial is not None
        return _integrate(v, kappa, initial, reverse=False)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
        (kappa,) = ctx.saved_tensors
        grad_v = _integrate(grad, kappa, None, reverse=True)
        return grad_v, None, kappa * grad_v[:, 0] if ctx.has_initial else None


def _integrate(v: Tensor, kappa: Tensor, initial: Tensor | None, *, reverse: bool) -> Tensor:
    flat = v.flatten(2)
    flat = flat if flat.stride(2) == 1 else flat.contiguous()
    batch, num_steps, width = flat.shape
    out, kappa = flat.new_empty(flat.shape), kappa.to(v.dtype).contiguous()
    initial = None if initial is None else initial.contiguous()
    args = FilterArgs(
        num_steps, width, kappa.numel(), flat.stride(0), flat.stride(1), reverse, *addresses(flat, kappa, initial, out)
    )
    _launch("elm_filter", (batch, -(-width // THREADS)), args, flat)
    return out.view(v.shape)


def discounted_sum(x: Tensor | SpikeEvents, kappa: Tensor, lengths: Tensor | None) -> Tensor:
    """As :func:`elm_neuro.backends.parts._projection.discounted_sum`: (batch, ..., input_size)."""
    if isinstance(x, SpikeEvents):
        return _discounted(x, kappa, lengths)
    total: Tensor = _DiscountedSum.apply(x, kappa, lengths)  # type: ignore[no-untyped-call]
    return total


class _DiscountedSum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kappa: Tensor, lengths: Tensor | None) -> Tensor:
        ctx.save_for_backward(kappa, lengths)
        ctx.num_steps = x.shape[1]
        ctx.set_materialize_grads(False)
        return _discounted(x, kappa, lengths)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
        if grad is None or not ctx.needs_input_grad[0]:
            return None, None, None
        kappa, lengths = ctx.saved_tensors
        step = torch.arange(ctx.num_steps, device=grad.device)
        age = (ctx.num_steps if lengths is None else lengths.unsqueeze(1)) - 1 - step
        discount = (kappa.double() ** age.clamp(min=0) * (age >= 0)).to(grad.dtype)
        return discount.view(-1, ctx.num_steps, *[1] * (grad.ndim - 1)) * grad.unsqueeze(1), None, None


def _discounted(x: Tensor | SpikeEvents, kappa: Tensor, lengths: Tensor | None) -> Tensor:
    lengths = None if lengths is None else lengths.contiguous()
    kappa = kappa.contiguous()
    if isinstance(x, SpikeEvents):
        total = kappa.new_empty(x.batch, x.num_channels)
        value = None if x.value is None else x.value.to(kappa.dtype).contiguous()
        begin, channel = x.indptr.contiguous(), x.channel.contiguous()
        where = addresses(lengths, kappa, None, begin, channel, value, total)
        args = DiscountArgs(x.num_steps, x.num_channels, 0, 0, *where)
        room = THREADS * (kappa.element_size() + 4)
        _launch("elm_discount_events", (x.batch, 1), args, kappa, room)
        return total
    flat = x.flatten(2)
    flat = flat if flat.stride(2) == 1 else flat.contiguous()
    total = flat.new_empty(flat.shape[0], flat.shape[2])
    where = addresses(lengths, kappa, flat, None, None, None, total)
    args = DiscountArgs(flat.shape[1], flat.shape[2], flat.stride(0), flat.stride(1), *where)
    _launch("elm_discount_frames", (flat.shape[0], -(-flat.shape[2] // THREADS)), args, flat)
    return total.view(x.shape[0], *x.shape[2:])
