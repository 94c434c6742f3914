"""The neuron over a sequence in one native pass with its hand-written backward pass: what arrives, the memory
recurrence, the readout, and where there is a threshold the spikes.

Nothing as wide as the hidden units is saved but what the backward pass reads, and of the steps of one part only where
the others are computed again. docs/kernels.md derives what the kernels compute.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.elm._native_table import FirstLayer, table_backward, table_forward
from elm_neuro.backends.native import _library
from elm_neuro.backends.native._events import Events
from elm_neuro.backends.native._rows import padded_table, rows, strides, with_padded_rows
from elm_neuro.backends.parts._twice import differentiable_once


class Operands(NamedTuple):
    """The tensors of a pass.

    What arrives is the filtered sum of the events' rows of `table`, or the product of `frames` with it, or `dense` as
    it is. The events' fields stand here one by one, because torch watches over every tensor that is saved for the
    backward pass.
    """

    begin: Tensor | None  # of Events
    end: Tensor | None
    channel: Tensor | None
    value: Tensor | None
    lengths: Tensor | None  # valid steps of each sample, (batch,), int64; past them y is 0 and the memory stays
    kappa_b: Tensor | None  # decay of what has arrived, (); None where `dense` is integrated already
    frames: Tensor | None  # (batch, time, [num_neuron,] input_size); the fields from here on are differentiated
    table: Tensor | None  # (num_neuron or 1, input_size, hidden)
    dense: Tensor | None  # (batch, time, [num_neuron,] hidden)
    f_0: Tensor | None  # what has arrived before the first step, (batch, [num_neuron,] hidden); None for zeros
    bias: Tensor | None  # of the first layer, ([num_neuron,] hidden); None where `dense` has it already
    m_0: Tensor | None  # memory before the first step, (batch, [num_neuron,] num_memory); None for zeros
    kappa: Tensor  # ([num_neuron,] num_memory)
    gain: Tensor
    w_m: Tensor  # the memory's part of the first layer's weight, ([num_neuron,] hidden, num_memory); to `run` with a
    # FirstLayer all of it, ([num_neuron,] hidden, num_branch + num_memory)
    w_y: Tensor  # ([num_neuron,] output_size, num_memory)
    b_y: Tensor  # ([num_neuron,] output_size)
    threshold: Tensor | None  # of the spikes, shape of b_y; None where there are none
    layers: tuple[Tensor, ...]  # weight and bias of each layer after the first


FIRST_DIFFERENTIATED = Operands._fields.index("frames")
NUM_FIXED = Operands._fields.index("layers")
TABLE, W_M = (Operands._fields.index(name) - FIRST_DIFFERENTIATED for name in ("table", "w_m"))
NUM_FIRST = len(FirstLayer._fields)
NO_FIRST = (None,) * NUM_FIRST
TILES = {1 << power: torch.tensor(1 << power, device="cpu") for power in range(6)}


class Plan(NamedTuple):
    """How a pass runs."""

    batch: int
    num_steps: int
    silu: bool
    tile: int  # samples that one task takes at most
    part: int  # steps whose activations are saved together; of all but the last part they are computed again
    lowered: torch.dtype | None = None  # of the product with the frames, under autocast
    surrogate: int = 0  # whose derivative stands for that of the spikes, as in native/api.h
    slope: float = 0.0  # its alpha, or its scale
    time_first: bool = False  # how the readout lies in memory

    def parts(self) -> list[tuple[int, int]]:
        """First step and number of steps of each part."""
        if self.part == self.num_steps:
            return [(0, self.num_steps)]
        return [(start, min(self.part, self.num_steps - start)) for start in range(0, self.num_steps, self.part)]


def tile_for(batch: int, kappa: Tensor) -> int:
    """Samples that one task takes: fewer where there would be fewer tasks than threads."""
    tile, threads = _library.tile(kappa.dtype), torch.get_num_threads()
    num_neuron = kappa.shape[0] if kappa.ndim == 2 else 1
    while tile > 1 and num_neuron * -(-batch // tile) < threads:
        tile //= 2
    return tile


class Saved(NamedTuple):
    """What a forward pass leaves for the backward pass."""

    activations: Tensor  # where there is one part
    m_starts: tuple[Tensor, ...]  # memory and what has arrived before each part but the first
    f_starts: tuple[Tensor, ...]


class Outputs(NamedTuple):
    """What a pass gives."""

    y: Tensor  # (batch, time, [num_neuron,] output_size)
    spikes: Tensor | None  # the same shape, where there is a threshold
    m_last: Tensor  # (batch, [num_neuron,] num_memory), after each sample's last step
    arrived: Tensor | None  # branch sums, (batch, [num_neuron,] num_branch), where there is a FirstLayer


class Incoming(NamedTuple):
    """Gradients of the outputs; None for zeros."""

    y: Tensor | None
    spikes: Tensor | None
    m_last: Tensor | None


class Wanted(NamedTuple):
    """Which of those gradients are asked for that may be left out."""

    frames: bool
    table: bool
    dense: bool
    f_0: bool
    m_0: bool
    threshold: bool

    @classmethod
    def among(cls, flags: tuple[bool, ...]) -> Wanted:
        """From a flag for each operand from `frames` on."""
        return cls(*(flags[Operands._fields.index(name) - FIRST_DIFFERENTIATED] for name in cls._fields))


def run(operands: Operands, plan: Plan, first: FirstLayer | None = None) -> Outputs:
    """One pass over a sequence; with `first`, the table is made in it."""
    if torch.is_grad_enabled():
        outputs = _Pass.apply(plan, *(first or NO_FIRST), *operands[:NUM_FIXED], *operands.layers)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return Outputs(*outputs)
    operands = laid_out(operands)
    if first is None:
        return run_forward(operands, plan, save=False)[0]
    table, w_m, arrived = table_forward(operands.w_m.contiguous(), first.laid_out())
    return run_forward(operands._replace(table=table, w_m=w_m), plan, save=False)[0]._replace(arrived=arrived)


def _operands(tensors: Sequence[Any]) -> Operands:
    return Operands._make((*tensors[:NUM_FIXED], tuple(tensors[NUM_FIXED:])))


class _Pass(Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, first = None, None
        operands = laid_out(_operands(tensors[NUM_FIRST:]))
        if tensors[0] is not None:
            weight, first = operands.w_m.contiguous(), FirstLayer._make(tensors[:NUM_FIRST]).laid_out()
            table, w_m, arrived = table_forward(weight, first)
            operands = operands._replace(table=table, w_m=w_m)
        outputs, saved = run_forward(operands, plan, save=any(ctx.needs_input_grad))
        ctx.plan, ctx.num_starts = plan, len(saved.m_starts)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            # the tile too: where torch.utils.checkpoint runs this again, perhaps with another number of threads, it
            # belongs to what is saved then
            TILES[plan.tile],
            None if outputs.spikes is None else outputs.y,
            saved.activations,
            *saved.m_starts,
            *saved.f_starts,
            weight,
            *(first or NO_FIRST),
            *operands[:NUM_FIXED],
            *operands.layers,
        )
        return outputs.y, outputs.spikes, outputs.m_last, None if first is None else arrived

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,
        grad_y: Tensor | None,
        grad_spikes: Tensor | None,
        grad_m_last: Tensor | None,
        grad_arrived: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        tile, readout, activations, *rest = ctx.saved_tensors
        num = ctx.num_starts
        saved = Saved(activations, tuple(rest[:num]), tuple(rest[num : 2 * num]))
        weight, *tensors = rest[2 * num :]
        operands, plan = _operands(tensors[NUM_FIRST:]), ctx.plan._replace(tile=int(tile))
        wanted = Wanted.among(ctx.needs_input_grad[1 + NUM_FIRST + FIRST_DIFFERENTIATED :])
        if weight is not None:
            wanted = wanted._replace(table=True)
        incoming = Incoming(grad_y, grad_spikes, grad_m_last)
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                grads = run_backward(operands, plan, saved, incoming, wanted, readout)
        else:
            grads = run_backward(operands, plan, saved, incoming, wanted, readout)
        of_first: tuple[Tensor | None, ...] = NO_FIRST
        if weight is not None:
            first, wants_total = FirstLayer._make(tensors[:NUM_FIRST]), ctx.needs_input_grad[NUM_FIRST]
            of_first, grads = _through_table(weight, first, grads, grad_arrived, wants_total=wants_total)
        return (None, *of_first, *(None,) * FIRST_DIFFERENTIATED, *grads)


def _through_table(
    weight: Tensor, first: FirstLayer, grads: list[Tensor | None], grad_arrived: Tensor | None, *, wants_total: bool
) -> tuple[tuple[Tensor | None, ...], list[Tensor | None]]:
    """Gradients of the first layer, and those of the operands with that of the whole weight in place of w_m's."""
    grad_table, grad_w_m = grads[TABLE], grads[W_M]
    if grad_table is None or grad_w_m is None:
        raise RuntimeError("a table without a gradient")
    grads[TABLE] = None
    grads[W_M], grad_w_s, grad_total = table_backward(
        weight, first, grad_table, grad_w_m, grad_arrived, wants_total=wants_total
    )
    return (grad_w_s, None, grad_total), grads


def run_forward(operands: Operands, plan: Plan, *, save: bool) -> tuple[Outputs, Saved]:
    """What a pass gives, and what the backward pass reads (nothing without `save`)."""
    like, parts = operands.kappa, plan.parts()
    y = _room_like_arriving(operands, plan)
    spikes = None if operands.threshold is None else torch.empty_like(y)
    m_last = like.new_empty(plan.batch, *like.shape)
    size = saved_size(operands, plan.batch, plan.num_steps) if save and len(parts) == 1 else 0
    activations = _library.large(like, size)
    m_starts: list[Tensor] = []
    f_starts: list[Tensor] = []
    m, f = operands.m_0, operands.f_0
    for index, (first, count) in enumerate(parts):
        args, _alive = _arguments(operands, plan, first, count, m, f)
        _give_readout(args, y, spikes, first)
        if index + 1 < len(parts):
            m, f = torch.empty_like(m_last), like.new_empty(plan.batch, *operands.w_m.shape[:-1])
            m_starts.append(m)
            f_starts.append(f)
            args.f_last = f.data_ptr()
        else:
            m = m_last
        args.m_last = m.data_ptr()
        if size:
            args.saved = activations.data_ptr()
        _call(_library.library().elm_scan_forward, args, like)
    return Outputs(y, spikes, m_last, None), Saved(activations, tuple(m_starts), tuple(f_starts))


def run_backward(
    operands: Operands, plan: Plan, saved: Saved, incoming: Incoming, wanted: Wanted, readout: Tensor | None
) -> list[Tensor | None]:
    """Gradients of the operands from `frames` on; `readout` is the forward pass's, where spikes have a gradient."""
    like, parts = operands.kappa, plan.parts()
    if operands.channel is not None:
        _check_events(operands, plan)
    grads = _room_for_gradients(operands, wanted)
    grad_y = None if incoming.y is None else rows(incoming.y)
    grad_spikes = None if incoming.spikes is None else rows(incoming.spikes)
    grad_m = None if incoming.m_last is None else incoming.m_last.contiguous()
    again = len(parts) > 1
    workspace = _library.large(like, saved_size(operands, plan.batch, plan.part)) if again else saved.activations
    grad_f: Tensor | None = None
    for index in range(len(parts) - 1, -1, -1):
        first, count = parts[index]
        m, f = (saved.m_starts[index - 1], saved.f_starts[index - 1]) if index else (operands.m_0, operands.f_0)
        args, alive = _arguments(operands, plan, first, count, m, f, with_product=again)
        args.saved = workspace.data_ptr()
        if again:
            m_last = torch.empty_like(saved.m_starts[0])
            args.m_last = m_last.data_ptr()
            _call(_library.library().elm_scan_forward, args, like)
            args.accumulate = index + 1 < len(parts)
        if grad_y is not None:
            args.grad_y, (args.grad_y_batch, args.grad_y_time, args.grad_y_neuron) = _from(grad_y, first)
        if grad_spikes is not None and readout is not None:
            _give_readout(args, readout, None, first)
            args.grad_spikes, (args.grad_spikes_batch, args.grad_spikes_time, args.grad_spikes_neuron) = _from(
                grad_spikes, first
            )
        args.grad_m_last, args.grad_f_last = _library.address(grad_m), _library.address(grad_f)
        grad_m_0 = like.new_empty(plan.batch, *like.shape) if index or wanted.m_0 else None
        grad_f_0 = like.new_empty(plan.batch, *operands.w_m.shape[:-1]) if index or wanted.f_0 else None
        grad_product = _give_gradients(args, grads, operands, alive, first)
        args.grad_m_0, args.grad_f_0 = _library.address(grad_m_0), _library.address(grad_f_0)
        _call(_library.library().elm_scan_backward, args, like)
        if grad_product is not None:
            _project_backward(operands, grad_product, first, count, grads)
        grad_m, grad_f = grad_m_0, grad_f_0  # what the last step of the part before this one gets
    return [
        grads.frames, grads.table, grads.dense, grad_f if wanted.f_0 else None, grads.bias,
        grad_m if wanted.m_0 else None, grads.kappa, grads.gain, grads.w_m, grads.w_y, grads.b_y, grads.threshold,
        *grads.layers,
    ]  # fmt: skip


def _check_events(operands: Operands, plan: Plan) -> None:
    """Refuse events that were changed since the forward pass, where autograd could not see it."""
    begin, end, channel, value, table = *operands[:4], operands.table
    if begin is None or end is None or channel is None or table is None:
        raise RuntimeError("events without rows or without a table")
    Events(begin, end, channel, value, (plan.batch, plan.num_steps, table.shape[1])).check()


def laid_out(operands: Operands) -> Operands:
    """The operands as the kernels read them."""
    (begin, end, channel, value, lengths, kappa_b, frames, table, dense, f_0, bias, m_0, kappa, gain, w_m, w_y, b_y,
     threshold, layers) = operands  # fmt: skip
    return Operands(
        begin, end, channel, value, lengths, kappa_b, frames,
        table=None if table is None else with_padded_rows(table),
        dense=None if dense is None else rows(dense),
        f_0=None if f_0 is None else f_0.contiguous(),
        bias=None if bias is None else bias.contiguous(),
        m_0=None if m_0 is None else m_0.contiguous(),
        kappa=kappa.contiguous(),
        gain=gain.contiguous(),
        w_m=rows(w_m),
        w_y=w_y.contiguous(),
        b_y=b_y.contiguous(),
        threshold=None if threshold is None else threshold.contiguous(),
        layers=tuple([layer.contiguous() for layer in layers]),
    )  # fmt: skip


def _room_for_gradients(operands: Operands, wanted: Wanted) -> Operands:
    """Room for the gradients; those of f_0 and m_0 are made a part at a time."""
    frames, table, dense, threshold = operands.frames, operands.table, operands.dense, operands.threshold
    room = torch.empty_like  # of operands that are laid out, contiguous but for w_m
    with_table = table is not None and (wanted.table or wanted.frames)
    return Operands(
        None, None, None, None, None, None,
        frames=None if frames is None or not wanted.frames else frames.new_empty(frames.shape),
        table=padded_table(table, *table.shape, zero=True) if table is not None and with_table else None,
        dense=None if dense is None or not wanted.dense else dense.new_empty(dense.shape),
        f_0=None,
        bias=None if operands.bias is None else room(operands.bias),
        m_0=None,
        kappa=room(operands.kappa),
        gain=room(operands.gain),
        w_m=operands.w_m.new_empty(operands.w_m.shape),
        w_y=room(operands.w_y),
        b_y=room(operands.b_y),
        threshold=None if threshold is None or not wanted.threshold else threshold.new_zeros(threshold.shape),
        layers=tuple([room(layer) for layer in operands.layers]),
    )  # fmt: skip


def _room_like_arriving(operands: Operands, plan: Plan) -> Tensor:
    """Room for the readout, (batch, time, ...), time first in memory where the input lies so: then a face with time
    first copies nothing.
    """
    shape = operands.b_y.shape
    if plan.time_first or (operands.dense is not None and lies_time_first(operands.dense)):
        return operands.kappa.new_empty(plan.num_steps, plan.batch, *shape).transpose(0, 1)
    return operands.kappa.new_empty(plan.batch, plan.num_steps, *shape)


def lies_time_first(frames: Tensor) -> bool:
    """Whether a sequence (batch, time, ...) lies step by step in memory."""
    return frames.stride(0) < frames.stride(1)


def saved_size(operands: Operands, batch: int, num_steps: int) -> int:
    """Entries that the backward pass reads: hidden units and tanh of every step, and the memory before every chunk."""
    dtype, shape = operands.kappa.dtype, operands.kappa.shape
    chunk, num_memory = _library.chunk(dtype), _library.padded(dtype, shape[-1])
    num_rows = batch * shape[0] if len(shape) == 2 else batch
    hidden = len(operands.layers) // 2 * _library.padded(dtype, operands.w_m.shape[-2])
    return num_rows * (num_steps * (hidden + num_memory) + -(-num_steps // chunk) * num_memory)


def _arguments(
    operands: Operands,
    plan: Plan,
    first: int,
    count: int,
    m: Tensor | None,
    f: Tensor | None,
    *,
    with_product: bool = True,
) -> tuple[_library.ScanArgs, tuple[Tensor | None, Tensor | None]]:
    """Arguments for `count` steps from `first` on with this memory and this integral before them, and the lengths and
    the dense input of these steps, which must outlive the call.

    Without `with_product` the product with the frames is not computed: there is only room for its gradient.
    """
    kappa, layers, w_m, table = operands.kappa, operands.layers, operands.w_m, operands.table
    num_neuron = kappa.shape[0] if kappa.ndim == 2 else 1
    args = _library.ScanArgs(
        plan.batch, count, num_neuron, kappa.shape[-1], len(layers) // 2, w_m.shape[-2] if layers else 0, plan.silu,
        operands.b_y.shape[-1], 0 if table is None else table.shape[1], first, plan.num_steps,
    )  # fmt: skip
    args.tile = plan.tile
    args.num_task = num_neuron * (plan.batch // plan.tile + (plan.batch % plan.tile).bit_count())
    lengths = operands.lengths
    if lengths is not None and count < plan.num_steps:
        lengths = (lengths - first).clamp(0, count)
    dense = None if operands.dense is None else operands.dense[:, first:]
    if operands.channel is not None:
        args.wide = operands.channel.dtype == torch.int64
        args.table, args.channel = _library.address(table), operands.channel.data_ptr()
        args.begin, args.end = _library.address(operands.begin), _library.address(operands.end)
        args.value = _library.address(operands.value)
    elif operands.frames is not None:
        if with_product:
            dense = _project(operands, plan, first, count)
        else:
            dense = kappa.new_empty(plan.batch, count, *w_m.shape[:-1])
    if dense is not None:
        args.dense, (args.dense_batch, args.dense_time, args.dense_neuron) = dense.data_ptr(), strides(dense)
    args.lengths, args.kappa_b = _library.address(lengths), _library.address(operands.kappa_b)
    args.f_0, args.m_0, args.bias = _library.address(f), _library.address(m), _library.address(operands.bias)
    args.kappa, args.gain = kappa.data_ptr(), operands.gain.data_ptr()
    args.w_m, args.w_m_row, args.w_m_neuron = w_m.data_ptr(), w_m.stride(-2), w_m.stride(0)
    args.w_y, args.b_y = operands.w_y.data_ptr(), operands.b_y.data_ptr()
    if operands.threshold is not None:
        args.threshold, args.surrogate, args.slope = operands.threshold.data_ptr(), plan.surrogate, plan.slope
    if layers:
        args.weight, args.layer_bias = _library.addresses(layers[::2]), _library.addresses(layers[1::2])
    return args, (lengths, dense)


def _from(record: Tensor, first: int) -> tuple[int, tuple[int, int, int]]:
    """Where (batch, time, ...) begins at step `first`, and its strides."""
    by_batch, by_time, by_neuron = strides(record)
    return record.data_ptr() + first * by_time * record.element_size(), (by_batch, by_time, by_neuron)


def _give_readout(args: _library.ScanArgs, y: Tensor, spikes: Tensor | None, first: int) -> None:
    """Name where readout and spikes lie, both alike."""
    args.y, (args.y_batch, args.y_time, args.y_neuron) = _from(y, first)
    if spikes is not None:
        args.spikes = _from(spikes, first)[0]


def _give_gradients(
    args: _library.ScanArgs,
    grads: Operands,
    operands: Operands,
    alive: tuple[Tensor | None, Tensor | None],
    first: int,
) -> Tensor | None:
    """Name where the gradients go; returns that of the product with the frames, where there is one: it takes the
    product's own place.
    """
    grad_product = alive[1] if operands.frames is not None and operands.channel is None else None
    grad_dense = grad_product if grads.dense is None else grads.dense[:, first:]
    if grad_dense is not None:
        args.grad_dense, (args.dense_batch, args.dense_time, args.dense_neuron) = (
            grad_dense.data_ptr(),
            strides(grad_dense),
        )
    if operands.channel is not None:
        args.grad_table = _library.address(grads.table)
    args.grad_bias, args.grad_threshold = _library.address(grads.bias), _library.address(grads.threshold)
    args.grad_kappa, args.grad_gain = grads.kappa.data_ptr(), grads.gain.data_ptr()
    args.grad_w_m, args.grad_w_y, args.grad_b_y = grads.w_m.data_ptr(), grads.w_y.data_ptr(), grads.b_y.data_ptr()
    if grads.layers:
        args.grad_weight = _library.addresses(grads.layers[::2])
        args.grad_layer_bias = _library.addresses(grads.layers[1::2])
    return grad_product


def _project(operands: Operands, plan: Plan, first: int, count: int) -> Tensor:
    """Product of these steps of the frames with the table, (batch, count, [num_neuron,] hidden)."""
    if operands.frames is None or operands.table is None:
        raise RuntimeError("nothing arrives")
    frames, table = operands.frames[:, first : first + count], operands.table
    dtype = table.dtype
    if plan.lowered is not None:
        frames, table = frames.to(plan.lowered), table.to(plan.lowered)
    if frames.ndim == 4:
        v = torch.einsum("btni,nih->btnh", frames, table)
    elif frames.stride(0) < frames.stride(1):  # time first: rows in the order in which they lie
        v = (frames.transpose(0, 1) @ _side_by_side(table)).transpose(0, 1)
    else:
        v = frames @ _side_by_side(table)
    return v.to(dtype).view(*v.shape[:2], *operands.w_m.shape[:-1])


def _project_backward(operands: Operands, grad_v: Tensor, first: int, count: int, grads: Operands) -> None:
    """Add to the gradients of table and frames."""
    if operands.frames is None or operands.table is None or grads.table is None:
        return
    frames, table = operands.frames[:, first : first + count], operands.table
    if frames.ndim == 4:
        grads.table.add_(torch.einsum("btni,btnh->nih", frames, grad_v))
        if grads.frames is not None:
            grads.frames[:, first : first + count] = torch.einsum("btnh,nih->btni", grad_v, table)
        return
    flat = grad_v.flatten(2).flatten(0, 1)
    if table.shape[0] == 1:
        grads.table[0].addmm_(frames.flatten(0, 1).mT, flat)
    else:
        grads.table.add_((frames.flatten(0, 1).mT @ flat).view(table.shape[1], table.shape[0], -1).transpose(0, 1))
    if grads.frames is not None:
        grads.frames[:, first : first + count] = (flat @ _side_by_side(table).mT).view(frames.shape)


def _side_by_side(table: Tensor) -> Tensor:
    """The neurons' tables as one, (input_size, num_neuron * hidden)."""
    return table[0] if table.shape[0] == 1 else table.transpose(0, 1).flatten(1)


def _call(call: _library.Call, args: _library.ScanArgs, like: Tensor) -> None:
    width = args.num_memory + 2 * args.hidden * max(1, args.num_layers)
    threads = _library.threads_for(float(args.batch * args.num_steps * args.num_neuron * args.num_memory * width))
    if call(like.dtype == torch.float64, threads, ctypes.byref(args)):
        what = "the gradients" if args.grad_kappa else "the working copy"
        raise MemoryError(f"no memory for {what} of {args.num_memory} memory units and {args.hidden} hidden units")
