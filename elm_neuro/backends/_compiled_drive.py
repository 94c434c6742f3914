"""What reaches the first layer, compiled: events summed over the rows of a table and integrated over time, dense frames searched for events."""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from elm_neuro.backends import _library
from elm_neuro.events import SpikeEvents

# Dense frames are run as events where fewer of their entries than this are spikes; looking for them gives up as soon as there are more.
# Measured for 20 to 100 memory units: events win up to 0.2 or 0.45, but room for that many costs page faults where there are few.
SPARSE_DENSITY = 0.1
SPARSE_INPUTS = 64
DTYPES = (torch.float32, torch.float64)


class Events(NamedTuple):
    """Events of a batch as the library reads them: those of row ``sample * num_steps + step`` are entries begin[row] : end[row]."""

    begin: Tensor  # (batch * num_steps,), int64; a view where `end` continues it
    end: Tensor
    channel: Tensor  # (num_events,), int32 or int64
    value: Tensor | None  # (num_events,)
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, x: Tensor | SpikeEvents, dtype: torch.dtype, sparse_input: str = "auto") -> Events | None:
        """The events of `x` where it is sparse, else None; `sparse_input` as in :func:`elm_neuro.backends.scan`."""
        if isinstance(x, SpikeEvents):
            value = None if x.value is None else x.value.to(dtype).contiguous()
            indptr = x.indptr.contiguous()
            return cls(indptr[:-1], indptr[1:], x.channel.contiguous(), value, x.shape)
        if not searched(x, sparse_input):
            return None
        x = x if x.dtype in DTYPES else x.to(dtype)
        events = cls.compacted(x, dtype)
        return cls.compacted(x, dtype, density=1.0) if events is None and sparse_input == "on" else events

    @classmethod
    def compacted(cls, x: Tensor, dtype: torch.dtype, density: float = SPARSE_DENSITY) -> Events | None:
        """The events of dense frames, or None where there are more than `density` of the entries."""
        x = x if x.stride(2) == 1 else x.contiguous()
        batch, num_steps, num_input = x.shape
        parts = min(_library.threads_for(x.numel()), batch)
        room = math.ceil(density * (x.numel() / parts if density < 1.0 else -(-batch // parts) * num_steps * num_input))
        begin, end = torch.empty(2, batch * num_steps, dtype=torch.int64).unbind()
        channel, value = torch.empty(parts * room, dtype=torch.int32), x.new_empty(parts * room)
        args = _library.FramesArgs(batch, num_steps, num_input, x.stride(0), x.stride(1), room, parts)
        args.frames, args.begin, args.end = x.data_ptr(), begin.data_ptr(), end.data_ptr()
        args.channel, args.value = channel.data_ptr(), value.data_ptr()
        if _library.library().elm_compact(x.dtype == torch.float64, parts, ctypes.byref(args)):
            return None
        return cls(begin, end, channel, value.to(dtype), (batch, num_steps, num_input))

    def discounted_sum(self, kappa: Tensor, lengths: Tensor | None) -> Tensor:
        """As :func:`elm_neuro.backends._projection.discounted_sum`."""
        batch, num_steps, num_input = self.shape
        eps, decay = torch.finfo(kappa.dtype).eps, float(kappa)
        reach = 2.0 * math.log(eps) / math.log(decay) if 0.0 < decay < 1.0 else num_steps if decay else 1.0
        total = torch.zeros(batch, num_input, dtype=kappa.dtype)
        call = _library.library().elm_discount_f64 if kappa.dtype == torch.float64 else _library.library().elm_discount_f32
        tensors = (lengths, self.begin, self.end, self.channel, self.value, total)
        wide = self.channel.dtype == torch.int64
        call(batch, num_steps, num_input, math.ceil(min(reach, num_steps)), decay, wide, *map(_library.address, tensors))
        return total


def first_layer(weight: Tensor, w_s: Tensor) -> tuple[Tensor, Tensor]:
    """Without routing: the first layer's weight, ([num_neuron,] hidden, input_size + num_memory), as a table and the memory's half.

    Returns:
        ``weight * w_s`` of all inputs, (input_size, num_neuron * hidden), and ([num_neuron,] hidden, num_memory).
    """
    num_input = w_s.shape[-1]
    if torch.compiler.is_compiling():
        return (weight[..., :num_input] * w_s.unsqueeze(-2)).movedim(-1, 0).flatten(1), weight[..., num_input:]
    table, w_m = _FirstLayer.apply(weight, w_s)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return table, w_m


class _FirstLayer(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, w_s: Tensor) -> tuple[Tensor, Tensor]:
        weight, w_s = weight.contiguous(), w_s.contiguous()
        args = _first_layer_args(weight, w_s)
        table = _padded_rows(weight, args.num_input, args.num_neuron * args.hidden)
        w_m = weight.new_empty(*weight.shape[:-1], args.num_memory)
        args.table, args.w_m = table.data_ptr(), w_m.data_ptr()
        _library.library().elm_first_layer(weight.dtype == torch.float64, _library.threads_for(weight.numel()), ctypes.byref(args), 0)
        ctx.save_for_backward(weight, w_s)
        return table, w_m

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_table: Tensor, grad_w_m: Tensor) -> tuple[Tensor, Tensor]:
        weight, w_s = ctx.saved_tensors
        args = _first_layer_args(weight, w_s)
        grad_table, grad_w_m = _rows(grad_table), grad_w_m.contiguous()
        grad_weight, grad_w_s = torch.empty_like(weight), torch.empty_like(w_s)
        args.table_row = grad_table.stride(0)
        args.grad_table, args.grad_w_m = grad_table.data_ptr(), grad_w_m.data_ptr()
        args.grad_weight, args.grad_w_s = grad_weight.data_ptr(), grad_w_s.data_ptr()
        _library.library().elm_first_layer(weight.dtype == torch.float64, _library.threads_for(weight.numel()), ctypes.byref(args), 1)
        return grad_weight, grad_w_s


def _first_layer_args(weight: Tensor, w_s: Tensor) -> _library.FirstLayerArgs:
    num_neuron, hidden, num_input = weight.shape[0] if weight.ndim == 3 else 1, weight.shape[-2], w_s.shape[-1]
    row = _library.padded(weight.dtype, num_neuron * hidden)
    args = _library.FirstLayerArgs(num_neuron, hidden, num_input, weight.shape[-1] - num_input, row)
    args.weight, args.w_s = weight.data_ptr(), w_s.data_ptr()
    return args


def searched(x: Tensor, sparse_input: str) -> bool:
    """Whether events are looked for in these frames."""
    if sparse_input != "auto":
        return sparse_input == "on"
    return x.ndim == 3 and x.shape[2] >= SPARSE_INPUTS and x.dtype in DTYPES and not x.requires_grad


def drive(events: Events | None, table: Tensor | None, dense: Tensor | None, kappa: Tensor, initial: Tensor, bias: Tensor | None) -> Tensor:
    r"""What arrives, integrated over time: :math:`f_t = \kappa f_{t-1} + v_t`, plus the bias.

    Args:
        events: their rows of `table` add up to v; None where `dense` is v itself.
        table: (input_size, width).
        dense: (batch, time, width).
        kappa: decay per step, (width,); a constant, it gets no gradient.
        initial: f before the first step, (batch, width).
        bias: (width,), added to the result.

    Returns:
        (batch, time, width).
    """
    out: Tensor
    if torch.compiler.is_compiling() and dense is not None:
        out = torch.ops.elm_neuro.leaky_filter(dense, kappa, initial, bias)
    else:
        out = _Drive.apply(events, table, dense, kappa, initial, bias)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return out


class _Drive(Function):
    @staticmethod
    def forward(
        ctx: Any, events: Events | None, table: Tensor | None, dense: Tensor | None, kappa: Tensor, initial: Tensor, bias: Tensor | None
    ) -> Tensor:
        out = _forward(events, table, dense, kappa, initial, bias)
        ctx.shape = None if events is None else events.shape
        ctx.save_for_backward(kappa, *(() if events is None else events[:4]))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        kappa, *arrays = ctx.saved_tensors
        _, table, dense, _, initial, bias = ctx.needs_input_grad
        events = Events(arrays[0], arrays[1], arrays[2], arrays[3], ctx.shape) if arrays else None
        grad_table, grad_dense, grad_initial, grad_bias = _backward(events, grad_out, kappa, (table, dense, initial, bias))
        return None, grad_table, grad_dense, None, grad_initial, grad_bias


def _forward(events: Events | None, table: Tensor | None, dense: Tensor | None, kappa: Tensor, initial: Tensor, bias: Tensor | None) -> Tensor:
    kappa, initial, bias = kappa.contiguous(), initial.contiguous(), None if bias is None else bias.contiguous()
    batch, num_steps = events.shape[:2] if dense is None and events is not None else dense.shape[:2] if dense is not None else (0, 0)
    out = kappa.new_empty(batch, num_steps, kappa.shape[0])
    args = _arguments(events, out, kappa)
    if table is not None:
        table = _with_padded_rows(table)
        args.table, args.table_row = table.data_ptr(), table.stride(0)
    if dense is not None:
        dense = _rows(dense)
        args.dense, args.dense_batch, args.dense_time = dense.data_ptr(), dense.stride(0), dense.stride(1)
    args.out, args.initial, args.bias = out.data_ptr(), initial.data_ptr(), _library.address(bias)
    _library.library().elm_drive_forward(kappa.dtype == torch.float64, _threads(events, out), ctypes.byref(args))
    return out


def _backward(events: Events | None, grad_out: Tensor, kappa: Tensor, wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Gradients of table, dense, initial and bias, where wanted."""
    kappa, grad_out = kappa.contiguous(), _rows(grad_out)
    (batch, num_steps, width), (table, dense, initial, bias) = grad_out.shape, wanted
    grad_table = _padded_rows(kappa, events.shape[2], width, zero=True) if table and events is not None else None
    grad_dense = kappa.new_empty(batch, num_steps, width) if dense else None
    grad_initial = kappa.new_empty(batch, width) if initial else None
    grad_bias = kappa.new_empty(width) if bias else None
    args = _arguments(events, grad_out, kappa)
    args.dense_batch, args.dense_time, args.grad_out = grad_out.stride(0), grad_out.stride(1), grad_out.data_ptr()
    args.grad_table, args.grad_dense = _library.address(grad_table), _library.address(grad_dense)
    args.grad_initial, args.grad_bias = _library.address(grad_initial), _library.address(grad_bias)
    if grad_table is not None:
        args.table_row = grad_table.stride(0)
    _library.library().elm_drive_backward(kappa.dtype == torch.float64, _threads(events, grad_out), ctypes.byref(args))
    return grad_table, grad_dense, grad_initial, grad_bias


def _arguments(events: Events | None, out: Tensor, kappa: Tensor) -> _library.DriveArgs:
    args = _library.DriveArgs(*out.shape, 0, 0 if events is None else events.shape[2])
    args.kappa = kappa.data_ptr()
    if events is not None:
        args.wide = events.channel.dtype == torch.int64
        args.begin, args.end = events.begin.data_ptr(), events.end.data_ptr()
        args.channel, args.value = events.channel.data_ptr(), _library.address(events.value)
    return args


def _threads(events: Events | None, out: Tensor) -> int:
    return _library.threads_for(out.numel() + (0.0 if events is None else float(events.channel.shape[0] * out.shape[-1])))


# Inside torch.compile the same are operators, into which it does not look; frames are searched for events in each pass.


def drive_frames(x: Tensor, table: Tensor, kappa: Tensor, initial: Tensor, bias: Tensor | None, sparse_input: str) -> Tensor:
    """:func:`drive` with the events of the frames `x`, or with their product with the table where they are not sparse."""
    out: Tensor = torch.ops.elm_neuro.drive_frames(x, table, kappa, initial, bias, sparse_input)
    return out


@torch.library.custom_op("elm_neuro::drive_frames", mutates_args=())
def _drive_frames_op(x: Tensor, table: Tensor, kappa: Tensor, initial: Tensor, bias: Tensor | None, sparse_input: str) -> Tensor:
    events = Events.of(x.detach(), kappa.dtype, sparse_input)
    return _forward(None, None, x @ table, kappa, initial, bias) if events is None else _forward(events, table, None, kappa, initial, bias)


@_drive_frames_op.register_fake
def _(x: Tensor, table: Tensor, kappa: Tensor, initial: Tensor, bias: Tensor | None, sparse_input: str) -> Tensor:
    return kappa.new_empty(*x.shape[:2], kappa.shape[0])


@torch.library.custom_op("elm_neuro::drive_frames_backward", mutates_args=())
def _drive_frames_backward_op(x: Tensor, grad_out: Tensor, kappa: Tensor, sparse_input: str) -> tuple[Tensor, Tensor, Tensor]:
    events = Events.of(x.detach(), kappa.dtype, sparse_input)
    table, dense, initial, bias = _backward(events, grad_out, kappa, (events is not None, events is None, True, True))
    if dense is not None:
        table = x.flatten(0, 1).mT @ dense.flatten(0, 1)
    if table is None or initial is None or bias is None:
        raise RuntimeError("a gradient is missing")
    return table.contiguous(), initial, bias


@_drive_frames_backward_op.register_fake
def _(x: Tensor, grad_out: Tensor, kappa: Tensor, sparse_input: str) -> tuple[Tensor, Tensor, Tensor]:
    return kappa.new_empty(x.shape[2], kappa.shape[0]), kappa.new_empty(x.shape[0], kappa.shape[0]), torch.empty_like(kappa)


def _keep_frames(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, kappa, _, bias, ctx.sparse_input = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, kappa)


def _differentiate_frames(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, kappa = ctx.saved_tensors
    table, initial, bias = torch.ops.elm_neuro.drive_frames_backward(x, grad_out, kappa, ctx.sparse_input)
    return None, table, None, initial, bias if ctx.has_bias else None, None


_drive_frames_op.register_autograd(_differentiate_frames, setup_context=_keep_frames)


@torch.library.custom_op("elm_neuro::leaky_filter", mutates_args=())
def _leaky_filter_op(dense: Tensor, kappa: Tensor, initial: Tensor, bias: Tensor | None) -> Tensor:
    return _forward(None, None, dense, kappa, initial, bias)


@_leaky_filter_op.register_fake
def _(dense: Tensor, kappa: Tensor, initial: Tensor, bias: Tensor | None) -> Tensor:
    return kappa.new_empty(dense.shape)


@torch.library.custom_op("elm_neuro::leaky_filter_backward", mutates_args=())
def _leaky_filter_backward_op(grad_out: Tensor, kappa: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _, dense, initial, bias = _backward(None, grad_out, kappa, (False, True, True, True))
    if dense is None or initial is None or bias is None:
        raise RuntimeError("a gradient is missing")
    return dense, initial, bias


@_leaky_filter_backward_op.register_fake
def _(grad_out: Tensor, kappa: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return kappa.new_empty(grad_out.shape), kappa.new_empty(grad_out.shape[0], kappa.shape[0]), torch.empty_like(kappa)


def _keep_filter(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.has_bias = inputs[3] is not None
    ctx.save_for_backward(inputs[1])


def _differentiate_filter(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    (kappa,) = ctx.saved_tensors
    dense, initial, bias = torch.ops.elm_neuro.leaky_filter_backward(grad_out, kappa)
    return dense, None, initial, bias if ctx.has_bias else None


_leaky_filter_op.register_autograd(_differentiate_filter, setup_context=_keep_filter)


def _padded_rows(like: Tensor, rows: int, width: int, *, zero: bool = False) -> Tensor:
    """A matrix (rows, width) in rows of whole vectors; the padding holds zeros."""
    row = _library.padded(like.dtype, width)
    base = like.new_zeros(rows, row) if zero or row != width else like.new_empty(rows, row)
    return base[:, :width]


def _with_padded_rows(table: Tensor) -> Tensor:
    row = _library.padded(table.dtype, table.shape[1])
    if table.stride(0) == row and (table.shape[1] == 1 or table.stride(1) == 1) and _reaches(table, row):
        return table
    padded = _padded_rows(table, *table.shape)
    return padded.copy_(table)


def _reaches(table: Tensor, row: int) -> bool:
    """Whether the padding of the last row is inside the storage."""
    return table.storage_offset() + table.shape[0] * row <= table.untyped_storage().nbytes() // table.element_size()


def _rows(tensor: Tensor) -> Tensor:
    """`tensor`, its rows contiguous."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
