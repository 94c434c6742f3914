"""Branch traces by the native kernels: what arrives at each step, as events or dense, integrated over time.

Only for branches with time constants or a nonlinearity of their own: elsewhere this is part of
:mod:`elm_neuro.backends.elm._native_pass`.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.native import _library
from elm_neuro.backends.native._events import Events
from elm_neuro.backends.native._rows import padded_table, rows, with_padded_rows
from elm_neuro.backends.parts._filter import decay_gradient
from elm_neuro.backends.parts._traced import run_traced
from elm_neuro.backends.parts._twice import differentiable_once, saved_of
from elm_neuro.events import SpikeEvents


def filtered_events(events: Events, table: Tensor, kappa: Tensor, initial: Tensor | None) -> Tensor:
    r"""Sums of the events' rows of a table, integrated over time: :math:`f_t = \kappa f_{t-1} + v_t`.

    Args:
        events: their rows of `table` add up to v.
        table: (1, input_size, width).
        kappa: decay per step, (width,).
        initial: f before the first step, (batch, width), or None for zeros.

    Returns:
        (batch, time, width).
    """
    out: Tensor = _Filter.apply(events, table, None, kappa, initial)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return out


def filtered(dense: Tensor, kappa: Tensor, initial: Tensor | None) -> Tensor:
    """The same of dense input, (batch, time, width)."""
    if torch.compiler.is_compiling():
        return filtered_inside(None, None, dense, kappa, initial)
    out: Tensor = _Filter.apply(None, None, dense, kappa, initial)  # type: ignore[no-untyped-call]
    return out


def filtered_inside(
    x: SpikeEvents | None, table: Tensor | None, dense: Tensor | None, kappa: Tensor, initial: Tensor | None
) -> Tensor:
    """The same inside compiled code, of events, which have their values in the dtype of `kappa`, or dense input."""
    events = (None, None, None) if x is None else (x.indptr, x.channel, x.value)
    arriving = x if dense is None else dense
    if arriving is None:
        raise RuntimeError("nothing arrives")
    return run_traced("native.filter", [*events, table, dense, kappa, initial], arriving.shape[:3], ())[0]


class Wanted(NamedTuple):
    """Which gradients are asked for."""

    table: bool
    dense: bool
    initial: bool


class _Filter(Function):
    @staticmethod
    def forward(
        ctx: Any,
        events: Events | None,
        table: Tensor | None,
        dense: Tensor | None,
        kappa: Tensor,
        initial: Tensor | None,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.shape = None if events is None else events.shape
        out = forward(events, table, dense, kappa, initial)
        before = (initial, out) if ctx.needs_input_grad[3] else (None, None)
        ctx.save_for_backward(kappa, *before, *(() if events is None else events[:4]))
        return out

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        kappa, initial_f, out, *arrays = saved_of(ctx)
        _, table, dense, decay, initial = ctx.needs_input_grad
        events = Events._make((*arrays, ctx.shape)) if arrays else None
        if events is not None:
            events.check()
        wanted = Wanted(table, dense or decay, initial)
        grad_table, grad_dense, grad_initial = backward(events, grad_out, kappa, wanted)
        grad_decay = None if not decay or grad_dense is None else decay_gradient(grad_dense, kappa, initial_f, out)
        return None, grad_table, grad_dense if dense else None, grad_decay, grad_initial


def forward(
    events: Events | None, table: Tensor | None, dense: Tensor | None, kappa: Tensor, initial: Tensor | None
) -> Tensor:
    kappa, initial = kappa.contiguous(), None if initial is None else initial.contiguous()
    arriving: Events | Tensor | None = events if dense is None else dense
    if arriving is None:
        raise RuntimeError("nothing arrives")
    out = kappa.new_empty(*arriving.shape[:2], kappa.shape[0])
    args = _arguments(events, out, kappa)
    if table is not None:
        table = with_padded_rows(table)
        args.table, args.table_row = table.data_ptr(), _library.padded(table.dtype, table.shape[2])
    if dense is not None:
        dense = rows(dense)
        args.dense, args.dense_batch, args.dense_time = dense.data_ptr(), dense.stride(0), dense.stride(1)
    args.out, args.initial = out.data_ptr(), _library.address(initial)
    _call(_library.library().elm_filter_forward, events, out, args)
    return out


def backward(
    events: Events | None, grad_out: Tensor, kappa: Tensor, wanted: Wanted
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of table, dense and initial, where wanted."""
    kappa, grad_out = kappa.contiguous(), rows(grad_out)
    batch, num_steps, width = grad_out.shape
    grad_table = None
    if wanted.table and events is not None:
        grad_table = padded_table(kappa, 1, events.shape[2], width, zero=True)
    grad_dense = kappa.new_empty(batch, num_steps, width) if wanted.dense else None
    grad_initial = kappa.new_empty(batch, width) if wanted.initial else None
    args = _arguments(events, grad_out, kappa)
    args.dense_batch, args.dense_time, args.grad_out = grad_out.stride(0), grad_out.stride(1), grad_out.data_ptr()
    args.grad_table, args.table_row = _library.address(grad_table), _library.padded(kappa.dtype, width)
    args.grad_dense, args.grad_initial = _library.address(grad_dense), _library.address(grad_initial)
    _call(_library.library().elm_filter_backward, events, grad_out, args)
    return grad_table, grad_dense, grad_initial


def _arguments(events: Events | None, out: Tensor, kappa: Tensor) -> _library.FilterArgs:
    args = _library.FilterArgs(*out.shape, 0, 0 if events is None else events.shape[2])
    args.kappa = kappa.data_ptr()
    if events is not None:
        args.wide = events.channel.dtype == torch.int64
        args.begin, args.end = events.begin.data_ptr(), events.end.data_ptr()
        args.channel, args.value = events.channel.data_ptr(), _library.address(events.value)
    return args


def _call(call: _library.Call, events: Events | None, out: Tensor, args: _library.FilterArgs) -> None:
    work = out.numel() + (0.0 if events is None else float(events.channel.shape[0] * out.shape[-1]))
    if call(out.dtype == torch.float64, _library.threads_for(work), ctypes.byref(args)):
        raise MemoryError(f"no memory for a row of {out.shape[-1]} branches")
