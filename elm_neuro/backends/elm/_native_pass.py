"""The neuron over a sequence in one compiled pass with its hand-written backward pass: what arrives, the memory
recurrence, the readout.

Nothing as wide as the hidden units is kept but what the backward pass reads, and with `every` only for that many steps.
"""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.elm._native_table import padded_table, with_padded_rows
from elm_neuro.backends.native import _library
from elm_neuro.backends.parts._once import differentiable_once


class Operands(NamedTuple):
    """All tensors of a pass. What arrives is the filtered sum of the events' rows of `table`, or the product of `x` with it, or `dense` as it is."""

    begin: (
        Tensor | None
    )  # of Events; one by one, because torch watches over every tensor that is kept for the backward pass
    end: Tensor | None
    channel: Tensor | None
    value: Tensor | None
    lengths: (
        Tensor | None
    )  # number of valid steps of each sample, (batch,), int64; past them the output is 0 and the memory keeps its value
    kappa_b: Tensor | None  # decay of what has arrived, (); None where `dense` is integrated already
    x: Tensor | None  # (batch, time, [num_neuron,] input_size); the fields from here on are differentiated
    table: Tensor | None  # (num_neuron or 1, input_size, hidden)
    dense: Tensor | None  # (batch, time, [num_neuron,] hidden)
    start: Tensor | None  # what has arrived before the first step, (batch, [num_neuron,] hidden); None for zeros
    bias: Tensor | None  # of the first layer, ([num_neuron,] hidden); None where `dense` has it already
    m_0: Tensor | None  # memory before the first step, (batch, [num_neuron,] num_memory); None for zeros
    kappa: Tensor  # ([num_neuron,] num_memory)
    gain: Tensor
    w_m: Tensor  # the memory's part of the first layer's weight, ([num_neuron,] hidden, num_memory)
    w_y: Tensor  # ([num_neuron,] output_size, num_memory)
    b_y: Tensor  # ([num_neuron,] output_size)
    layers: tuple[Tensor, ...]  # weight and bias of each layer after the first


NUM_CONSTANT = Operands._fields.index("x")
NUM_SINGLE = Operands._fields.index("layers")


class Way(NamedTuple):
    """How a pass runs."""

    batch: int
    num_steps: int
    silu: bool
    tile: int  # samples that one task takes at most
    every: int  # steps of which the activations are kept at a time
    lowered: AbstractContextManager[Any] = nullcontext()  # in which the product with `x` is computed

    @classmethod
    def of(
        cls, batch: int, num_steps: int, kappa: Tensor, *, silu: bool, every: int | None = None, **options: Any
    ) -> Way:
        """For a batch of so many samples and steps: smaller tiles where there would be fewer tasks than threads."""
        tile, num_neuron = _library.tile(kappa.dtype), kappa.numel() // kappa.shape[-1]
        while tile > 1 and num_neuron * -(-batch // tile) < torch.get_num_threads():
            tile //= 2
        return cls(batch, num_steps, silu, tile, min(every or num_steps, num_steps), **options)

    def parts(self) -> list[tuple[int, int]]:
        """First step and number of steps of each part whose activations are kept together."""
        return [(start, min(self.every, self.num_steps - start)) for start in range(0, self.num_steps, self.every)]


class Kept(NamedTuple):
    """What a forward pass leaves for the backward pass."""

    saved: Tensor  # activations, where there is one part; otherwise they are computed again
    m_starts: tuple[Tensor, ...]  # memory and what has arrived before each part but the first
    f_starts: tuple[Tensor, ...]


def run(given: Operands, way: Way) -> tuple[Tensor, Tensor]:
    """Output of every step, (batch, time, [num_neuron,] output_size), and memory after each sample's last, (batch, [num_neuron,] num_memory)."""
    y, m_last = _Scan.apply(way, torch.is_grad_enabled(), *given[:NUM_SINGLE], *given.layers)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return y, m_last


class _Scan(Function):
    @staticmethod
    def forward(ctx: Any, way: Way, recorded: bool, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        given = _operands(tensors)
        y, m_last, kept = run_forward(given, way, save=recorded and any(ctx.needs_input_grad))
        ctx.way, ctx.num_kept = way, len(kept.m_starts)
        ctx.set_materialize_grads(False)
        # the tile too: where torch.utils.checkpoint runs this again, perhaps with another number of threads, it belongs
        # to what is saved then
        ctx.save_for_backward(torch.tensor(way.tile), kept.saved, *kept.m_starts, *kept.f_starts, *tensors)
        return y, m_last

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_y: Tensor | None, grad_m_last: Tensor | None) -> tuple[Tensor | None, ...]:
        tile, saved, *rest = ctx.saved_tensors
        num = ctx.num_kept
        kept, given = Kept(saved, tuple(rest[:num]), tuple(rest[num : 2 * num])), _operands(rest[2 * num :])
        wanted = ctx.needs_input_grad[2 + NUM_CONSTANT : 2 + NUM_SINGLE]
        with torch.autocast("cpu", enabled=False):
            grads = run_backward(given, ctx.way._replace(tile=int(tile)), kept, grad_y, grad_m_last, wanted)
        return (None,) * (2 + NUM_CONSTANT) + tuple(grads)


def _operands(tensors: Any) -> Operands:
    return Operands._make([*tensors[:NUM_SINGLE], tuple(tensors[NUM_SINGLE:])])


def run_forward(given: Operands, way: Way, *, save: bool) -> tuple[Tensor, Tensor, Kept]:
    """Output, last memory, and what the backward pass reads (nothing without `save`)."""
    given = _laid_out(given)
    like, parts = given.kappa, way.parts()
    y = _rows_like(given, way, given.b_y.shape)
    m_last = like.new_empty(way.batch, *like.shape)
    saved = _library.large(like, saved_size(given, way.batch, way.num_steps) if save and len(parts) == 1 else 0)
    m_starts: list[Tensor] = []
    f_starts: list[Tensor] = []
    m, f = given.m_0, given.start
    for index, (first, count) in enumerate(parts):
        args, _alive = _arguments(given, way, first, count, m, f)
        if index + 1 < len(parts):
            m, f = torch.empty_like(m_last), like.new_empty(way.batch, *given.w_m.shape[:-1])
            m_starts.append(m)
            f_starts.append(f)
        else:
            m, f = m_last, None
        args.y, (args.y_batch, args.y_time, args.y_neuron) = y[:, first:].data_ptr(), _strides(y)
        args.m_last, args.f_last, args.saved = (
            m.data_ptr(),
            _library.address(f),
            saved.data_ptr() if saved.numel() else None,
        )
        _call(_library.library().elm_scan_forward, args, like)
    return y, m_last, Kept(saved, tuple(m_starts), tuple(f_starts))


def run_backward(
    given: Operands, way: Way, kept: Kept, grad_y: Tensor | None, grad_m_last: Tensor | None, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of the operands from `x` on; those of x, table, dense, start, bias and m_0 where wanted."""
    given = _laid_out(given)
    like, parts = given.kappa, way.parts()
    x, table, dense, start, _, m_0, *_ = wanted
    grad_y = like.new_zeros(()).expand(way.batch, way.num_steps, *given.b_y.shape) if grad_y is None else grad_y
    grad_y, grad_m = _library.rows(grad_y), None if grad_m_last is None else grad_m_last.contiguous()
    room = partial(torch.empty_like, memory_format=torch.contiguous_format)
    grads = given._replace(
        x=None if given.x is None or not x else room(given.x),
        table=None if given.table is None or not (table or x) else padded_table(like, *given.table.shape, zero=True),
        dense=None if given.dense is None or not dense else room(given.dense),
        bias=None if given.bias is None else room(given.bias),
        **{name: room(getattr(given, name)) for name in ("kappa", "gain", "w_m", "w_y", "b_y")},
        layers=tuple(room(layer) for layer in given.layers),
    )
    workspace = kept.saved if len(parts) == 1 else _library.large(like, saved_size(given, way.batch, way.every))
    grad_f: Tensor | None = None
    for index in range(len(parts) - 1, -1, -1):
        first, count = parts[index]
        m, f = (kept.m_starts[index - 1], kept.f_starts[index - 1]) if index else (given.m_0, given.start)
        args, held = _arguments(given, way, first, count, m, f, forward=len(parts) > 1)
        args.saved = workspace.data_ptr()
        if len(parts) > 1:
            again = torch.empty_like(kept.m_starts[0])
            args.m_last = again.data_ptr()
            _call(_library.library().elm_scan_forward, args, like)
        args.accumulate = index + 1 < len(parts)
        args.grad_y, (args.grad_y_batch, args.grad_y_time, args.grad_y_neuron) = (
            grad_y[:, first:].data_ptr(),
            _strides(grad_y),
        )
        args.grad_m_last, args.grad_f_last = _library.address(grad_m), _library.address(grad_f)
        before_m = like.new_empty(way.batch, *like.shape) if index or m_0 else None
        before_f = like.new_empty(way.batch, *given.w_m.shape[:-1]) if index or start else None
        arrived = _give_gradients(args, grads, given, held, first)
        args.grad_m_0, args.grad_initial = _library.address(before_m), _library.address(before_f)
        _call(_library.library().elm_scan_backward, args, like)
        if arrived is not None:
            _project_backward(given, arrived, first, count, grads)
        grad_m, grad_f = before_m, before_f
    found = grads._replace(start=grad_f, m_0=grad_m if m_0 else None)
    single: tuple[Any, ...] = found[NUM_CONSTANT:NUM_SINGLE]
    return [*single, *found.layers]


def _laid_out(given: Operands) -> Operands:
    """The operands as the kernels read them."""
    dense, table = given.dense, given.table
    plain: dict[str, Any] = {
        name: getattr(given, name) for name in ("start", "bias", "m_0", "kappa", "gain", "w_y", "b_y")
    }
    return given._replace(
        table=None if table is None else with_padded_rows(table),
        dense=None if dense is None else _library.rows(dense),
        w_m=_library.rows(given.w_m),
        **{name: tensor.contiguous() for name, tensor in plain.items() if tensor is not None},
        layers=tuple(layer.contiguous() for layer in given.layers),
    )


def _rows_like(given: Operands, way: Way, shape: torch.Size) -> Tensor:
    """Room for (batch, time, *shape), time first in memory where the dense input lies so: then a face with time first copies nothing."""
    arriving = given.x if given.dense is None else given.dense
    if arriving is not None and arriving.stride(0) < arriving.stride(1):
        return given.kappa.new_empty(way.num_steps, way.batch, *shape).transpose(0, 1)
    return given.kappa.new_empty(way.batch, way.num_steps, *shape)


def saved_size(given: Operands, batch: int, num_steps: int) -> int:
    """Entries that the backward pass reads: hidden units and tanh of every step, and the memory before every chunk of steps."""
    kappa, chunk = given.kappa, _library.chunk(given.kappa.dtype)
    rows = batch * (kappa.numel() // kappa.shape[-1])
    hidden, num_memory = (
        _library.padded(kappa.dtype, given.w_m.shape[-2]),
        _library.padded(kappa.dtype, kappa.shape[-1]),
    )
    return rows * (
        num_steps * (len(given.layers) // 2 * hidden + num_memory) + (num_steps + chunk - 1) // chunk * num_memory
    )


def _arguments(
    given: Operands, way: Way, first: int, count: int, m: Tensor | None, f: Tensor | None, *, forward: bool = True
) -> tuple[_library.ScanArgs, tuple[Tensor | None, ...]]:
    """Arguments for `count` steps from `first` on with this memory and this integral before them, and tensors that must
    outlive the call.

    Without `forward` the product with `x` is not computed: there is only room for its gradient.
    """
    kappa, layers = given.kappa, given.layers
    num_neuron, hidden = kappa.numel() // kappa.shape[-1], given.w_m.shape[-2] if layers else 0
    num_input = 0 if given.table is None else given.table.shape[1]
    args = _library.ScanArgs(
        way.batch,
        count,
        num_neuron,
        kappa.shape[-1],
        len(layers) // 2,
        hidden,
        way.silu,
        given.b_y.shape[-1],
        num_input,
    )
    args.first_step, args.all_steps = first, way.num_steps
    args.tile, args.num_task = way.tile, num_neuron * (way.batch // way.tile + (way.batch % way.tile).bit_count())
    lengths = None if given.lengths is None else (given.lengths - first).clamp(0, count)
    dense = None if given.dense is None else given.dense[:, first:]
    if given.channel is not None:
        args.wide = given.channel.dtype == torch.int64
        args.table = _library.address(given.table)
        args.begin, args.end = _library.address(given.begin), _library.address(given.end)
        args.channel, args.value = given.channel.data_ptr(), _library.address(given.value)
    elif given.x is not None:
        dense = (
            _project(given, way, first, count) if forward else kappa.new_empty(way.batch, count, *given.w_m.shape[:-1])
        )
    if dense is not None:
        args.dense, (args.dense_batch, args.dense_time, args.dense_neuron) = dense.data_ptr(), _strides(dense)
    args.lengths, args.kappa_b, args.initial, args.m_0 = map(_library.address, (lengths, given.kappa_b, f, m))
    args.bias, args.kappa, args.gain = _library.address(given.bias), kappa.data_ptr(), given.gain.data_ptr()
    args.w_m, args.w_m_neuron, args.w_m_row = given.w_m.data_ptr(), given.w_m.stride(0), given.w_m.stride(-2)
    args.w_y, args.b_y = given.w_y.data_ptr(), given.b_y.data_ptr()
    args.weight, args.layer_bias = _library.addresses(layers[::2]), _library.addresses(layers[1::2])
    return args, (lengths, dense)


def _give_gradients(
    args: _library.ScanArgs, grads: Operands, given: Operands, held: tuple[Tensor | None, ...], first: int
) -> Tensor | None:
    """Name where the gradients go; returns that of the product with `x`, where there is one: it takes the product's own place."""
    arrived: Tensor | None = None
    if grads.dense is not None:
        into: Tensor | None = grads.dense[:, first:]
    elif given.x is not None and given.channel is None:
        into = arrived = held[1]
    else:
        into = None
    if into is not None:
        args.grad_dense, (args.dense_batch, args.dense_time, args.dense_neuron) = into.data_ptr(), _strides(into)
    if given.channel is not None:
        args.grad_table = _library.address(grads.table)
    args.grad_bias, args.grad_kappa, args.grad_gain = (
        _library.address(grads.bias),
        grads.kappa.data_ptr(),
        grads.gain.data_ptr(),
    )
    args.grad_w_m, args.grad_w_y, args.grad_b_y = grads.w_m.data_ptr(), grads.w_y.data_ptr(), grads.b_y.data_ptr()
    args.grad_weight, args.grad_layer_bias = (
        _library.addresses(grads.layers[::2]),
        _library.addresses(grads.layers[1::2]),
    )
    return arrived


def _project(given: Operands, way: Way, first: int, count: int) -> Tensor:
    """Product of these steps of `x` with the table, (batch, count, [num_neuron,] hidden)."""
    if given.x is None or given.table is None:
        raise RuntimeError("nothing arrives")
    x, table = given.x[:, first : first + count], given.table
    with way.lowered:
        if x.ndim == 4:
            v = torch.einsum("btni,nih->btnh", x, table)
        elif x.stride(0) < x.stride(1):  # time first: rows in the order in which they lie
            v = (x.transpose(0, 1) @ _side_by_side(table)).transpose(0, 1)
        else:
            v = x @ _side_by_side(table)
    return v.to(table.dtype).view(*v.shape[:2], *given.w_m.shape[:-1])


def _project_backward(given: Operands, grad_v: Tensor, first: int, count: int, grads: Operands) -> None:
    """Add to the gradients of table and `x`."""
    if given.x is None or given.table is None or grads.table is None:
        return
    x, table = given.x[:, first : first + count], given.table
    if x.ndim == 4:
        grads.table.add_(torch.einsum("btni,btnh->nih", x, grad_v))
        if grads.x is not None:
            grads.x[:, first : first + count] = torch.einsum("btnh,nih->btni", grad_v, table)
        return
    flat = grad_v.flatten(2).flatten(0, 1)
    if table.shape[0] == 1:
        grads.table[0].addmm_(x.flatten(0, 1).mT, flat)
    else:
        grads.table.add_((x.flatten(0, 1).mT @ flat).view(table.shape[1], table.shape[0], -1).transpose(0, 1))
    if grads.x is not None:
        grads.x[:, first : first + count] = (flat @ _side_by_side(table).mT).view(x.shape)


def _side_by_side(table: Tensor) -> Tensor:
    """The neurons' tables as one, (input_size, num_neuron * hidden)."""
    return table[0] if table.shape[0] == 1 else table.transpose(0, 1).flatten(1)


def _call(call: Any, args: _library.ScanArgs, like: Tensor) -> None:
    width = args.num_memory + 2 * args.hidden * max(1, args.num_layers)
    threads = _library.threads_for(float(args.batch * args.num_steps * args.num_neuron * args.num_memory * width))
    if call(like.dtype == torch.float64, threads, ctypes.byref(args)):
        what = "the gradients" if args.grad_kappa else "the working copy"
        raise MemoryError(f"no memory for {what} of {args.num_memory} memory units and {args.hidden} hidden units")


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """Strides of batch, time and neuron."""
    stride = tensor.stride()
    return stride[0], stride[1], stride[2] if len(stride) == 4 else 0
