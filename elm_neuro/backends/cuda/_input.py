"""What arrives at a neuron: products with events, leaky integration, and the input summed to the end of a sequence."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import num_bytes
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._driver import Queue
from elm_neuro.backends.cuda._launch import Launch, address
from elm_neuro.backends.parts._traced import run_traced
from elm_neuro.backends.parts._twice import differentiable_once, saved_of

THREADS = 256
ARRANGE_THREADS = 512
MAX_SHARED_INPUTS = 48 * 1024 // 4 - ARRANGE_THREADS  # of which a block can count the events in shared memory
MAX_PARTS = 32  # of the samples, in the backward pass of a product with events
MOST_PARTS = 8  # that are left to be added up

_GATHER_BYTES = num_bytes("num_row num_part width begin end index value table out")
_FILTER_BYTES = num_bytes("num_steps width num_kappa v_batch v_time reverse v kappa initial out")
_ARRANGE_BYTES = num_bytes("num_steps num_input lengths kappa begin channel value cursor first row ordered total")
_GATHER_INPUTS_BYTES = num_bytes("batch num_input num_part width first row value table out")


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
            ("ELM_BYTES_ARRANGE", _ARRANGE_BYTES),
            ("ELM_BYTES_GATHERINPUTS", _GATHER_INPUTS_BYTES),
        ),
    )


class Events(NamedTuple):
    """Spikes as the kernels read them: the fields of SpikeEvents, contiguous, values in the dtype of the parameters."""

    begin: Tensor  # (batch * time + 1,), int64
    channel: Tensor  # (num_events,), int64
    value: Tensor | None  # (num_events,)


class Arranged(NamedTuple):
    """Events of each sample by input, earlier steps first."""

    order: Tensor  # int64: where those of each input begin, (batch, num_input + 1); sample * num_steps + step of each
    value: Tensor | None  # (num_events,)


def gather(queue: Queue, table: Tensor, events: Events, num_row: int) -> Tensor:
    """Sums of rows of `table`, (num_input, width), contiguous: of the channels of a row's events, (num_row, width)."""
    width = table.shape[1]
    out = table.new_empty(num_row, width)
    gathering(table.dtype, num_row, width)(
        queue, events.begin.data_ptr(), 0, events.channel.data_ptr(), address(events.value), table.data_ptr(),
        out.data_ptr(),
    )  # fmt: skip
    return out


@lru_cache(maxsize=256)
def gathering(dtype: torch.dtype, num_row: int, width: int) -> Launch:
    """What :func:`gather` launches, with the addresses of begin, none, channel, value or none, table and sums."""
    grid = -(-num_row * width // THREADS), 1
    return Launch(program(dtype), "elm_gather", grid, THREADS, _GATHER_BYTES, (num_row, 1, width))


def arrange(
    queue: Queue,
    events: Events,
    sizes: tuple[int, int, int],
    dtype: torch.dtype,
    kappa: int,
    lengths: Tensor | None,
    total: int,
) -> Arranged:
    """Events of each sample by input; each input summed over time, discounted to the sample's end, goes to `total`.

    Args:
        queue: of the device.
        events: of a batch.
        sizes: batch, number of steps, number of inputs.
        dtype: of the two that are given by their address.
        kappa: discount of one step, ().
        lengths: number of valid steps of each sample, (batch,), or None; events past them are left out.
        total: (batch, num_input).
    """
    batch, _, num_input = sizes
    num_first = batch * (num_input + 1)
    order = events.channel.new_empty(num_first + events.channel.shape[0])
    value = None if events.value is None else torch.empty_like(events.value)
    cursor = order.new_empty(batch, num_input, dtype=torch.int32) if num_input > MAX_SHARED_INPUTS else None
    first = order.data_ptr()
    _arrange(dtype, *sizes)(
        queue, address(lengths), kappa, events.begin.data_ptr(), events.channel.data_ptr(),
        address(events.value), address(cursor), first, first + 8 * num_first, address(value), total,
    )  # fmt: skip
    return Arranged(order, value)


@lru_cache(maxsize=256)
def _arrange(dtype: torch.dtype, batch: int, num_steps: int, num_input: int) -> Launch:
    shared = 4 * (ARRANGE_THREADS + (num_input if num_input <= MAX_SHARED_INPUTS else 0))
    numbers = num_steps, num_input
    return Launch(program(dtype), "elm_arrange", (batch, 1), ARRANGE_THREADS, _ARRANGE_BYTES, numbers, shared)


def num_parts(batch: int) -> int:
    """In how many parts :func:`gather_inputs` gives its sums."""
    parts = min(batch, MAX_PARTS)
    return parts if parts <= MOST_PARTS else 1


def gather_inputs(queue: Queue, table: Tensor, arranged: Arranged, batch: int, num_input: int) -> Tensor:
    """Sums over the events of each input of rows of `table`, (batch * time, width), contiguous: parts to be added up,
    (num_part, num_input, width).
    """
    width, num_part, first = table.shape[1], min(batch, MAX_PARTS), arranged.order.data_ptr()
    out = table.new_empty(num_part, num_input, width)
    gathering_inputs(table.dtype, batch, num_input, num_part, width)(
        queue, first, first + 8 * batch * (num_input + 1), address(arranged.value), table.data_ptr(),
        out.data_ptr(),
    )  # fmt: skip
    return out.sum(0, keepdim=True) if num_part > MOST_PARTS else out


@lru_cache(maxsize=256)
def gathering_inputs(dtype: torch.dtype, batch: int, num_input: int, num_part: int, width: int) -> Launch:
    """What :func:`gather_inputs` launches, with the addresses of both parts of order, of value or none, of table and
    sums.
    """
    grid, numbers = (-(-num_input * width // THREADS), num_part), (batch, num_input, num_part, width)
    return Launch(program(dtype), "elm_gather_inputs", grid, THREADS, _GATHER_INPUTS_BYTES, numbers)


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
        queue = _driver.launcher().queue(weight.device)
        return gather(queue, weight.t().contiguous(), Events(begin, channel, value), sizes[0] * sizes[1])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        begin, channel, value, kappa = saved_of(ctx)
        return of_projected(grad, Events(begin, channel, value), ctx.sizes, kappa), None, None, None, None, None


def of_projected(grad: Tensor, events: Events, sizes: tuple[int, int, int], kappa: Tensor) -> Tensor:
    """Gradient of the weight in :func:`project_events`."""
    batch, _, num_input = sizes
    total = kappa.new_empty(batch, num_input)  # which nobody reads
    queue = _driver.launcher().queue(grad.device)
    arranged = arrange(queue, events, sizes, kappa.dtype, kappa.data_ptr(), None, total.data_ptr())
    return gather_inputs(queue, grad.contiguous(), arranged, batch, num_input).sum(0).t()


def project_events(events: Events, sizes: tuple[int, int, int], weight: Tensor, kappa: Tensor) -> Tensor:
    """As :func:`elm_neuro.backends.project`, of events: (batch, time, [num_neuron,] channel); `kappa` is any number."""
    if torch.compiler.is_compiling():
        flat = run_traced("cuda.events", [*events, weight.flatten(0, -2)], sizes, ())[0]
    else:
        flat = _EventProjection.apply(weight.flatten(0, -2), *events, kappa, sizes)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return flat.view(*sizes[:2], *weight.shape[:-1])


def leaky_filter(v: Tensor, kappa: Tensor, initial: Tensor | None) -> Tensor:
    """As :func:`elm_neuro.backends.parts._filter.leaky_filter`; `initial` may be None for zeros."""
    if torch.compiler.is_compiling():
        return run_traced("cuda.filter", [v, kappa, initial], (v.shape[0],), ())[0]
    filtered: Tensor = _LeakyFilter.apply(v, kappa, initial)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return filtered


class _LeakyFilter(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, kappa: Tensor, initial: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(kappa)
        ctx.has_initial = initial is not None
        return integrate(v, kappa, initial, reverse=False)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
        (kappa,) = ctx.saved_tensors
        grad_v = integrate(grad, kappa, None, reverse=True)
        return grad_v, None, kappa * grad_v[:, 0] if ctx.has_initial else None


def integrate(v: Tensor, kappa: Tensor, initial: Tensor | None, *, reverse: bool) -> Tensor:
    """The filter, or with `reverse` from the last step to the first."""
    flat = rows_of(v)
    batch, num_steps, width = flat.shape
    out, kappa = flat.new_empty(flat.shape), kappa.to(v.dtype).contiguous()
    initial = None if initial is None else initial.contiguous()
    numbers = num_steps, width, kappa.numel(), *flat.stride()[:2], int(reverse)
    grid = batch, -(-width // THREADS)
    launch = Launch(program(v.dtype), "elm_filter", grid, THREADS, _FILTER_BYTES, numbers)
    launch(_driver.launcher().queue(flat.device), flat.data_ptr(), kappa.data_ptr(), address(initial), out.data_ptr())
    return out.view(v.shape)


def rows_of(x: Tensor) -> Tensor:
    """Frames as (batch, time, all inputs), whose rows are contiguous."""
    flat = x if x.ndim == 3 else x.flatten(2)
    return flat if flat.stride(2) == 1 else flat.contiguous()
