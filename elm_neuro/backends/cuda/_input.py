"""What arrives at a neuron: products with events, leaky integration, and the input summed to the end of a sequence."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import Arguments, structure
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.parts._twice import differentiable_once

THREADS = 256
ARRANGE_THREADS = 512
MAX_SHARED_INPUTS = 48 * 1024 // 4 - ARRANGE_THREADS  # of which a block can count the events in shared memory
MAX_PARTS = 32  # of the samples, in the backward pass of a product with events

GATHER, _GATHER_BYTES = structure("num_row num_part width begin end index value table out")
FILTER, _FILTER_BYTES = structure("num_steps width num_kappa v_batch v_time reverse v kappa initial out")
DISCOUNT, _DISCOUNT_BYTES = structure("num_steps num_input x_batch x_time lengths kappa x total")
ARRANGE, _ARRANGE_BYTES = structure(
    "num_steps num_input lengths kappa begin channel value cursor first row ordered total"
)
GATHER_INPUTS, _GATHER_INPUTS_BYTES = structure("batch num_input num_part width first row value table out")


@cache
def program(dtype: torch.dtype) -> Program:
    """The source of these kernels for numbers of this type."""
    double = dtype == torch.float64
    return Program(
        "input.cuh",
        (
            ("ELM_REAL", "double" if double else "float"),
            ("ELM_DOUBLE", int(double)),
            ("ELM_BYTES_GATHER", _GATHER_BYTES),
            ("ELM_BYTES_FILTER", _FILTER_BYTES),
            ("ELM_BYTES_DISCOUNT", _DISCOUNT_BYTES),
            ("ELM_BYTES_ARRANGE", _ARRANGE_BYTES),
            ("ELM_BYTES_GATHERINPUTS", _GATHER_INPUTS_BYTES),
        ),
    )


def _launch(
    kernel: str, grid: tuple[int, int], args: Arguments, like: Tensor, threads: int = THREADS, shared: int = 0
) -> None:
    _driver.launcher().launch(program(like.dtype), kernel, grid, threads, shared, args, like.device)


class Events(NamedTuple):
    """Spikes as the kernels read them: the fields of SpikeEvents, contiguous, values in the dtype of the parameters."""

    begin: Tensor  # (batch * time + 1,), int64
    channel: Tensor  # (num_events,), int64
    value: Tensor | None  # (num_events,)


class Arranged(NamedTuple):
    """Events of each sample by input, earlier steps first."""

    first: Tensor  # (batch, num_input + 1), int64: where those of each input begin
    row: Tensor  # (num_events,), int64: sample * num_steps + step
    value: Tensor | None  # (num_events,)


def gather(table: Tensor, events: Events, num_row: int) -> Tensor:
    """Sums of rows of `table`, (num_input, width), contiguous: of the channels of a row's events, (num_row, width)."""
    width = table.shape[1]
    out = table.new_empty(num_row, width)
    if out.numel():
        args = GATHER(num_row, 1, width, events.begin, None, events.channel, events.value, table, out)
        _launch("elm_gather", (-(-num_row * width // THREADS), 1), args, table)
    return out


def arrange(
    events: Events, sizes: tuple[int, int, int], kappa: Tensor, lengths: Tensor | None
) -> tuple[Arranged, Tensor]:
    """Events of each sample by input, and each input summed over time, discounted to the sample's end, (batch,
    num_input).

    Args:
        events: of a batch.
        sizes: batch, number of steps, number of inputs.
        kappa: discount of one step, ().
        lengths: number of valid steps of each sample, (batch,), or None; events past them are left out.
    """
    batch, num_steps, num_input = sizes
    first = events.channel.new_empty(batch, num_input + 1)
    row = torch.empty_like(events.channel)
    value = None if events.value is None else torch.empty_like(events.value)
    total = kappa.new_empty(batch, num_input)
    shared, cursor = 4 * (ARRANGE_THREADS + num_input), None
    if num_input > MAX_SHARED_INPUTS:
        shared, cursor = 4 * ARRANGE_THREADS, row.new_empty(batch, num_input, dtype=torch.int32)
    args = ARRANGE(
        num_steps,
        num_input,
        lengths,
        kappa,
        events.begin,
        events.channel,
        events.value,
        cursor,
        first,
        row,
        value,
        total,
    )
    _launch("elm_arrange", (batch, 1), args, kappa, ARRANGE_THREADS, shared)
    return Arranged(first, row, value), total


def gather_inputs(table: Tensor, events: Arranged) -> Tensor:
    """Sums over the events of each input of rows of `table`, (batch * time, width), contiguous: parts to be added up,
    (num_part, num_input, width).
    """
    batch, num_input, width = events.first.shape[0], events.first.shape[1] - 1, table.shape[1]
    parts = min(batch, MAX_PARTS)
    out = table.new_empty(parts, num_input, width)
    args = GATHER_INPUTS(batch, num_input, parts, width, events.first, events.row, events.value, table, out)
    _launch("elm_gather_inputs", (-(-num_input * width // THREADS), parts), args, table)
    return out.sum(0, keepdim=True) if parts > 8 else out


class _EventProjection(Function):
    """A product with events by itself, for what does not run in one pass."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        begin: Tensor,
        channel: Tensor,
        value: Tensor | None,
        kappa: Tensor,
        sizes: tuple[int, int, int],
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(begin, channel, value, kappa)
        ctx.sizes = sizes
        return gather(weight.t().contiguous(), Events(begin, channel, value), sizes[0] * sizes[1])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        begin, channel, value, kappa = ctx.saved_tensors
        arranged, _ = arrange(Events(begin, channel, value), ctx.sizes, kappa, None)
        return gather_inputs(grad.contiguous(), arranged).sum(0).t(), None, None, None, None, None


def project_events(events: Events, sizes: tuple[int, int, int], weight: Tensor, kappa: Tensor) -> Tensor:
    """As :func:`elm_neuro.backends.project`, of events: (batch, time, [num_neuron,] channel); `kappa` is any number."""
    flat: Tensor = _EventProjection.apply(weight.flatten(0, -2), *events, kappa, sizes)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return flat.view(*sizes[:2], *weight.shape[:-1])


def leaky_filter(v: Tensor, kappa: Tensor, initial: Tensor | None) -> Tensor:
    """As :func:`elm_neuro.backends.parts._filter.leaky_filter`; `initial` may be None for zeros."""
    filtered: Tensor = _LeakyFilter.apply(v, kappa, initial)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return filtered


class _LeakyFilter(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, kappa: Tensor, initial: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
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
    args = FILTER(
        num_steps, width, kappa.numel(), flat.stride(0), flat.stride(1), int(reverse), flat, kappa, initial, out
    )
    _launch("elm_filter", (batch, -(-width // THREADS)), args, flat)
    return out.view(v.shape)


def discounted_sum(x: Tensor, kappa: Tensor, lengths: Tensor | None) -> Tensor:
    """As :func:`elm_neuro.backends.parts._projection.discounted_sum`, of frames: (batch, ..., input_size)."""
    flat = x.flatten(2)
    flat = flat if flat.stride(2) == 1 else flat.contiguous()
    total = flat.new_empty(flat.shape[0], flat.shape[2])
    args = DISCOUNT(flat.shape[1], flat.shape[2], flat.stride(0), flat.stride(1), lengths, kappa, flat, total)
    _launch("elm_discount_frames", (flat.shape[0], -(-flat.shape[2] // THREADS)), args, flat)
    return total.view(x.shape[0], *x.shape[2:])
