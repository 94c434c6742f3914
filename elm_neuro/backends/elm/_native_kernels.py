"""The calls of the native kernels, forward and backward: their arguments, the room for what they give, and the products
of dense frames, which are torch's.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from elm_neuro.backends.elm._native_operands import (
    Incoming,
    Operands,
    Outputs,
    Plan,
    Saved,
    Wanted,
    lies_time_first,
    saved_size,
)
from elm_neuro.backends.native import _library
from elm_neuro.backends.native._events import Events
from elm_neuro.backends.native._rows import padded_table, strides


def run_forward(operands: Operands, plan: Plan, *, save: bool) -> tuple[Outputs, Saved]:
    """What a pass gives, and what the backward pass reads (nothing without `save`)."""
    like, parts = operands.kappa, plan.parts()
    y = room_for_last(operands, plan) if plan.last_readout else room_like_arriving(operands, plan)
    spikes = None if operands.threshold is None else room_like_arriving(operands, plan)
    m_last = like.new_empty(plan.batch, *like.shape)
    size = saved_size(operands, plan.batch, plan.num_steps) if save and len(parts) == 1 else 0
    activations = _library.large(like, size)
    m_starts: list[Tensor] = []
    f_starts: list[Tensor] = []
    m, f = operands.m_0, operands.f_0
    for index, (first, count) in enumerate(parts):
        args, _alive = _arguments(operands, plan, first, count, m, f)
        give_outputs(args, plan, y, spikes, first)
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
) -> Operands:
    """Gradients of the operands from `frames` on; `readout` is the forward pass's, where spikes have a gradient."""
    like, parts = operands.kappa, plan.parts()
    if operands.channel is not None:
        check_events(operands, plan, 0 if operands.table is None else operands.table.shape[1])
    grads = room_for_gradients(operands, wanted)
    incoming = incoming.laid_out()
    grad_m = incoming.m_last
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
        give_incoming(args, incoming, readout, first)
        args.grad_m_last, args.grad_f_last = _library.address(grad_m), _library.address(grad_f)
        grad_m_0 = like.new_empty(plan.batch, *like.shape) if index or wanted.m_0 else None
        grad_f_0 = like.new_empty(plan.batch, *operands.w_m.shape[:-1]) if index or wanted.f_0 else None
        give_gradients(args, grads)
        grad_product = _give_gradient_of_arriving(args, grads, operands, alive[1], first)
        args.grad_m_0, args.grad_f_0 = _library.address(grad_m_0), _library.address(grad_f_0)
        _call(_library.library().elm_scan_backward, args, like)
        if grad_product is not None:
            _project_backward(operands, grad_product, first, count, grads)
        grad_m, grad_f = grad_m_0, grad_f_0  # what the last step of the part before this one gets
    return grads._replace(f_0=grad_f if wanted.f_0 else None, m_0=grad_m if wanted.m_0 else None)


def give_outputs(args: _library.ScanArgs, plan: Plan, y: Tensor, spikes: Tensor | None, first: int) -> None:
    """Say where the readout and the spikes go of the steps from `first` on."""
    if plan.last_readout:
        args.y_last = y.data_ptr()
    else:
        args.y, (args.y_batch, args.y_time, args.y_neuron) = _from(y, first)
    if spikes is not None:
        args.spikes, (args.y_batch, args.y_time, args.y_neuron) = _from(spikes, first)  # as y lies


def give_incoming(args: _library.ScanArgs, incoming: Incoming, readout: Tensor | None, first: int) -> None:
    """Say where the gradients of readout and spikes come from, which are laid out."""
    if incoming.y is not None:
        args.grad_y, (args.grad_y_batch, args.grad_y_time, args.grad_y_neuron) = _from(incoming.y, first)
    if incoming.spikes is not None and readout is not None:
        args.y, (args.y_batch, args.y_time, args.y_neuron) = _from(readout, first)
        args.grad_spikes, by = _from(incoming.spikes, first)
        args.grad_spikes_batch, args.grad_spikes_time, args.grad_spikes_neuron = by


def check_events(operands: Operands, plan: Plan, num_input: int) -> None:
    """Refuse events that were changed since the forward pass, where autograd could not see it."""
    begin, end, channel, value = operands[:4]
    if begin is None or end is None or channel is None:
        raise RuntimeError("events without rows")
    Events(begin, end, channel, value, (plan.batch, plan.num_steps, num_input)).check()


def room_for_gradients(operands: Operands, wanted: Wanted) -> Operands:
    """Room for the gradients; those of f_0 and m_0 are made a part at a time."""
    frames, table, dense, threshold = operands.frames, operands.table, operands.dense, operands.threshold
    room: Any = torch.empty_like  # of operands that are laid out, contiguous but for w_m
    kappa: Any = room(operands.kappa) if wanted.kappa else None
    gain: Any = room(operands.gain) if wanted.gain else None
    with_table = table is not None and (wanted.table or wanted.frames)
    return Operands(
        None, None, None, None, None, None,
        frames=None if frames is None or not wanted.frames else frames.new_empty(frames.shape),
        table=padded_table(table, *table.shape, zero=True) if table is not None and with_table else None,
        dense=None if dense is None or not wanted.dense else dense.new_empty(dense.shape),
        f_0=None,
        bias=None if operands.bias is None else room(operands.bias),
        m_0=None,
        kappa=kappa,
        gain=gain,
        w_m=operands.w_m.new_empty(operands.w_m.shape),
        w_y=room(operands.w_y),
        b_y=room(operands.b_y),
        threshold=None if threshold is None or not wanted.threshold else torch.zeros_like(operands.b_y),
        layers=tuple([room(layer) for layer in operands.layers]),
    )  # fmt: skip


def room_for_last(operands: Operands, plan: Plan) -> Tensor:
    """Room for the readout of each sample's last step, (batch, ...); without steps the kernel writes none."""
    make = operands.b_y.new_empty if operands.lengths is None else operands.b_y.new_zeros
    return make((plan.batch, *operands.b_y.shape))


def room_like_arriving(operands: Operands, plan: Plan) -> Tensor:
    """Room for the readout, (batch, time, ...), time first in memory where the input lies so: then a face with time
    first copies nothing.
    """
    shape = operands.b_y.shape
    if plan.time_first or (operands.dense is not None and lies_time_first(operands.dense)):
        return operands.kappa.new_empty(plan.num_steps, plan.batch, *shape).transpose(0, 1)
    return operands.kappa.new_empty(plan.batch, plan.num_steps, *shape)


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
    args = arguments(operands, plan, count, m, f)
    kappa, w_m, table = operands.kappa, operands.w_m, operands.table
    args.first_step, args.num_input = first, 0 if table is None else table.shape[1]
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
    args.lengths = _library.address(lengths)
    args.w_m, args.w_m_row, args.w_m_neuron = w_m.data_ptr(), w_m.stride(-2), w_m.stride(0)
    return args, (lengths, dense)


def arguments(operands: Operands, plan: Plan, count: int, m: Tensor | None, f: Tensor | None) -> _library.ScanArgs:
    """Arguments for `count` steps, but for what arrives in them and for the memory's part of the first layer."""
    kappa, layers = operands.kappa, operands.layers
    num_neuron = kappa.shape[0] if kappa.ndim == 2 else 1
    args = _library.ScanArgs(
        plan.batch, count, num_neuron, kappa.shape[-1], len(layers) // 2, operands.w_m.shape[-2] if layers else 0,
        plan.silu, operands.b_y.shape[-1], 0, 0, plan.num_steps,
    )  # fmt: skip
    args.tile = plan.tile
    args.num_task = num_neuron * (plan.batch // plan.tile + (plan.batch % plan.tile).bit_count())
    args.kappa_b, args.bias = _library.address(operands.kappa_b), _library.address(operands.bias)
    args.f_0, args.m_0 = _library.address(f), _library.address(m)
    args.kappa, args.gain = kappa.data_ptr(), operands.gain.data_ptr()
    args.w_y, args.b_y = operands.w_y.data_ptr(), operands.b_y.data_ptr()
    if operands.threshold is not None:
        args.threshold, args.one_threshold = operands.threshold.data_ptr(), not operands.threshold.ndim
        args.surrogate, args.slope = plan.surrogate, plan.slope
    if layers:
        _library.put_addresses(layers[::2], args.weight)
        _library.put_addresses(layers[1::2], args.layer_bias)
    return args


def _from(record: Tensor, first: int) -> tuple[int, tuple[int, int, int]]:
    """Where (batch, time, ...) begins at step `first`, and its strides."""
    by_batch, by_time, by_neuron = strides(record)
    return record.data_ptr() + first * by_time * record.element_size(), (by_batch, by_time, by_neuron)


def give_gradients(args: _library.ScanArgs, grads: Operands) -> None:
    """Say where the gradients go that do not depend on what arrives."""
    args.grad_bias, args.grad_threshold = _library.address(grads.bias), _library.address(grads.threshold)
    args.grad_kappa, args.grad_gain = _library.address(grads.kappa), _library.address(grads.gain)
    args.grad_w_m, args.grad_w_y, args.grad_b_y = grads.w_m.data_ptr(), grads.w_y.data_ptr(), grads.b_y.data_ptr()
    if grads.layers:
        _library.put_addresses(grads.layers[::2], args.grad_weight)
        _library.put_addresses(grads.layers[1::2], args.grad_layer_bias)


def _give_gradient_of_arriving(
    args: _library.ScanArgs, grads: Operands, operands: Operands, dense: Tensor | None, first: int
) -> Tensor | None:
    """Say where those of what arrives go; returns that of the product with the frames, where there is one: it takes the
    product's own place, `dense`.
    """
    grad_product = dense if operands.frames is not None and operands.channel is None else None
    grad_dense = grad_product if grads.dense is None else grads.dense[:, first:]
    if grad_dense is not None:
        args.grad_dense = grad_dense.data_ptr()
        args.dense_batch, args.dense_time, args.dense_neuron = strides(grad_dense)
    if operands.channel is not None:
        args.grad_table = _library.address(grads.table)
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
        what = "the gradients" if args.grad_w_m else "the working copy"
        raise MemoryError(f"no memory for {what} of {args.num_memory} memory units and {args.hidden} hidden units")
