"""The pass over events in one native call each way: frames are searched for them, they are added up, the table is made
and the recurrence runs. What one of these steps hands to the next, and to the backward pass, lies in one tensor.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.elm._native_arriving import present
from elm_neuro.backends.elm._native_kernels import (
    arguments,
    check_events,
    give_gradients,
    give_incoming,
    give_outputs,
    room_for_gradients,
    room_for_last,
    room_like_arriving,
)
from elm_neuro.backends.elm._native_operands import NUM_FIXED, Incoming, Operands, Outputs, Plan, Wanted, saved_entries
from elm_neuro.backends.elm._native_table import FirstLayer, refuse_outside, table_arguments
from elm_neuro.backends.native import _library
from elm_neuro.backends.native._events import SPARSE_DENSITY, room_for
from elm_neuro.backends.parts._projection import steps_within_reach

TOO_MANY = 3  # status of a call, as native/library.cpp has it: more events than there is room for


class Sizes(NamedTuple):
    """What a room's places depend on."""

    dtype: torch.dtype
    batch: int
    num_steps: int
    num_input: int
    searches: bool
    num_neuron: int
    num_memory: int
    hidden: int  # of the first layer
    num_layers: int
    saves: bool


class Places(NamedTuple):
    """Where what a call hands on lies in its room, in bytes, and how many bytes the room has."""

    weighted: int  # a number of 64 bits; this and the events only where frames are searched
    begin: int
    end: int
    channel: int
    value: int
    total: int
    table: int
    w_m: int
    activations: int
    num_bytes: int


@lru_cache(maxsize=64)
def places_in(sizes: Sizes) -> Places:
    """Each starts on a cache line."""
    dtype, batch, num_steps, num_input, searches, num_neuron, num_memory, hidden, num_layers, saves = sizes
    entry, num_row, num_event = dtype.itemsize, 0, 0
    if searches:
        num_row, num_event = batch * num_steps, room_for(batch * num_steps * num_input, SPARSE_DENSITY)
    num_saved = saved_entries(dtype, batch * num_neuron, num_steps, num_memory, hidden, num_layers) if saves else 0
    table = num_neuron * num_input * _library.padded(dtype, hidden)
    each = (
        8, 8 * num_row, 8 * num_row, 4 * num_event, entry * num_event, entry * batch * num_input, entry * table,
        entry * num_neuron * hidden * num_memory, entry * num_saved,
    )  # fmt: skip
    starts = [0]
    for num_bytes in each:
        starts.append(starts[-1] + -(-num_bytes // 64) * 64)
    return Places(*starts)


def run_forward(
    operands: Operands, first: FirstLayer, plan: Plan, f_0: Tensor | None, *, save: bool
) -> tuple[Outputs, Tensor] | None:
    """What a pass gives and the room that its backward pass reads; None where frames hold more events than are worth
    to be run as such.

    Args:
        operands: as :class:`elm_neuro.backends.elm._native_pass.Inputs` has them, laid out; frames are searched.
        first: likewise.
        plan: of one part.
        f_0: what has arrived on the hidden units before the first step.
        save: whether a backward pass will follow.
    """
    like = operands.kappa
    y = room_for_last(operands, plan) if plan.last_readout else room_like_arriving(operands, plan)
    spikes = None if operands.threshold is None else room_like_arriving(operands, plan)
    m_last, b = like.new_empty(plan.batch, *like.shape), like.new_empty(plan.batch, *first.w_s.shape[:-1])
    args, room = _arguments(operands, first, plan, f_0, None, save=save)
    scan = args.scan
    scan.m_last, args.table.arrived = m_last.data_ptr(), b.data_ptr()
    give_outputs(scan, plan, y, spikes, 0)
    if not save:
        scan.saved = None
    if _call(_library.library().elm_pass_forward, args, like) == TOO_MANY:
        return None
    return Outputs(y, spikes, m_last, b), room


def run_backward(
    operands: Operands,
    first: FirstLayer,
    plan: Plan,
    room: Tensor,
    f_0: Tensor | None,
    incoming: Incoming,
    wanted: Wanted,
    readout: Tensor | None,
) -> tuple[Tensor, Operands]:
    """Gradients of the synaptic weights and of the operands; that of ``w_m`` is of the first layer's whole weight.

    Args:
        operands: as :func:`run_forward` takes them.
        first: likewise.
        plan: likewise.
        room: what it left.
        f_0: likewise.
        incoming: gradients of what it gave.
        wanted: which are asked for.
        readout: what it gave, where spikes have a gradient.
    """
    if operands.channel is not None:
        check_events(operands, plan, plan.num_input)
    like = operands.kappa
    args, _ = _arguments(operands, first, plan, f_0, room, save=True)
    scan, table = args.scan, args.table
    give_incoming(scan, incoming, readout, 0)
    scan.grad_m_last, table.grad_arrived = _library.address(incoming.m_last), _library.address(incoming.b)
    grads = room_for_gradients(operands, wanted)
    grad_w_s = torch.empty_like(first.w_s)
    give_gradients(scan, grads)
    table.grad_w_s, table.grad_weight = grad_w_s.data_ptr(), grads.w_m.data_ptr()
    f = like.new_empty(plan.batch, *operands.w_m.shape[:-1]) if wanted.f_0 else None
    m = like.new_empty(plan.batch, *like.shape) if wanted.m_0 else None
    scan.grad_f_0, scan.grad_m_0 = _library.address(f), _library.address(m)
    _call(_library.library().elm_pass_backward, args, like)
    return grad_w_s, grads._replace(f_0=f, m_0=m)


def _sizes(operands: Operands, plan: Plan, *, save: bool) -> Sizes:
    kappa = operands.kappa
    return Sizes(
        kappa.dtype, plan.batch, plan.num_steps, plan.num_input, operands.frames is not None,
        kappa.shape[0] if kappa.ndim == 2 else 1, kappa.shape[-1], operands.w_m.shape[-2],
        len(operands.layers) // 2, save,
    )  # fmt: skip


def _arguments(
    operands: Operands, first: FirstLayer, plan: Plan, f_0: Tensor | None, room: Tensor | None, *, save: bool
) -> tuple[_library.PassArgs, Tensor]:
    """Arguments that both ways have, and the room, which the first of them gets. Most are the same from call to call,
    and so then is what they are made of: sizes, and where tensors lie.
    """
    frames, channel, routing, threshold = operands.frames, operands.channel, first.routing, operands.threshold
    kappa = operands.kappa
    tensors: tuple[Any, ...] = (first.w_s, routing, f_0, *operands[:NUM_FIXED], *operands.layers)
    key = (
        plan, save, kappa.dtype, kappa.shape, first.w_s.shape, operands.w_m.shape, operands.w_y.shape,
        frames is not None and frames.stride(), channel is not None and channel.dtype,
        routing is not None and routing.ndim, threshold is not None and threshold.ndim,
        present(operands.kappa_b).item(), *map(_library.address, tensors),
    )  # fmt: skip
    made = _made.get(key)
    places = places_in(_sizes(operands, plan, save=save)) if made is None else made.places
    if room is None:
        # bytes: nobody who narrows the floating-point tensors that autograd keeps may touch the events
        room = _library.large(operands.kappa, places.num_bytes, torch.uint8)
    base = room.data_ptr()
    if made is None or made.base != base:
        if len(_made) >= MOST_MADE:
            _made.clear()
        made = _made[key] = Made(places, base, _make_arguments(operands, first, plan, f_0, base, places))
    return _library.PassArgs.from_buffer_copy(made.args), room


class Made(NamedTuple):
    """Arguments that were made for a room there."""

    places: Places
    base: int
    args: _library.PassArgs


MOST_MADE = 64
_made: dict[Any, Made] = {}


def _make_arguments(
    operands: Operands, first: FirstLayer, plan: Plan, f_0: Tensor | None, base: int, places: Places
) -> _library.PassArgs:
    frames, kappa_b, num_input = operands.frames, present(operands.kappa_b), plan.num_input
    scan = arguments(operands, plan, plan.num_steps, operands.m_0, f_0)
    scan.num_input, scan.lengths = num_input, _library.address(operands.lengths)
    table = table_arguments(operands.w_m, first.w_s, first.routing, (plan.batch, num_input, 0), rectify=plan.rectifies)
    table.total, table.table, table.w_m = base + places.total, base + places.table, base + places.w_m
    scan.table, scan.w_m, scan.saved = table.table, table.w_m, base + places.activations
    scan.w_m_row, scan.w_m_neuron = table.num_memory, table.num_memory * table.hidden
    kappa = kappa_b.item()
    reach = steps_within_reach(kappa, plan.num_steps, kappa_b.dtype)
    if frames is None:
        channel = present(operands.channel)
        scan.wide, scan.channel, scan.value = (
            channel.dtype == torch.int64,
            channel.data_ptr(),
            _library.address(operands.value),
        )
        scan.begin, scan.end = _library.address(operands.begin), _library.address(operands.end)
        return _library.PassArgs(0, reach, kappa, None, _library.FramesArgs(), table, scan)
    scan.begin, scan.end = base + places.begin, base + places.end
    scan.channel, scan.value = base + places.channel, base + places.value
    search = _library.FramesArgs(
        plan.batch, plan.num_steps, num_input, frames.stride(0), frames.stride(1),
        room_for(frames.numel(), SPARSE_DENSITY), 1, frames.data_ptr(), scan.begin, scan.end, scan.channel, scan.value,
    )  # fmt: skip
    return _library.PassArgs(1, reach, kappa, base + places.weighted, search, table, scan)


def _call(call: _library.Call, args: _library.PassArgs, like: Tensor) -> int:
    status = call(like.dtype == torch.float64, torch.get_num_threads(), ctypes.byref(args))
    if status and status != TOO_MANY:
        scan = args.scan
        refuse_outside(status, scan.num_input)
        raise MemoryError(f"no memory for a pass of {scan.num_memory} memory units and {scan.hidden} hidden units")
    return status
