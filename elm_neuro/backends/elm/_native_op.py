"""The native pass inside compiled code, where frames are searched for events in each pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elm_neuro.backends.elm._native_operands import NUM_FIXED, Incoming, Operands, Plan, Saved, saved_size, tile_for
from elm_neuro.backends.elm._native_pass import NUM_CONSTANTS, NUM_OF_FIRST, Effective, Inputs, forward, gradients
from elm_neuro.backends.elm._native_table import FirstLayer
from elm_neuro.backends.native import _library
from elm_neuro.backends.native._events import SPARSE_DENSITY, Events, room_for_found
from elm_neuro.backends.native._rows import with_padded_rows
from elm_neuro.backends.parts import _traced
from elm_neuro.backends.parts._lengths import valid
from elm_neuro.backends.parts._projection import discounted_sum
from elm_neuro.backends.parts._shapes import check_kept, check_lengths, check_operands
from elm_neuro.backends.parts._traced import Pass, Sizes, run_traced

NUM_KEPT = 11
NUM_OUTPUT = 3  # readout, last memory, and branch traces where there is a FirstLayer
TOTAL = NUM_CONSTANTS + FirstLayer._fields.index("total") - 1  # routing stands before
FRAMES = NUM_CONSTANTS + NUM_OF_FIRST


def run_as_operator(
    inputs: Inputs, sizes: Sizes, *, silu: bool, sparse_input: str, part: int | None, lowered: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Readout, last memory and branch traces as :func:`elm_neuro.backends.elm._native_pass.run` gives them, without a
    threshold.

    Of events, `begin` has one row more and there is no `end`. Without a total of the input, the pass itself adds it up,
    of events or of frames as they are, which then get no gradient.
    """
    constants, differentiated = inputs.flat()
    of_products = None if lowered is None else str(lowered).removeprefix("torch.")
    how = silu, sparse_input, part, of_products, _library.instruction_set()
    y, m, b, *_ = run_traced("elm.native", [*constants, *differentiated], sizes, how)
    return y, m, b


def _inputs(given: _traced.Operands) -> Inputs:
    layers = [layer for layer in given[FRAMES + NUM_FIXED - Operands._fields.index("frames") :] if layer is not None]
    fixed = given[: FRAMES + NUM_FIXED - Operands._fields.index("frames")]
    return Inputs.of(fixed[:NUM_CONSTANTS], (*fixed[NUM_CONSTANTS:], *layers))


def _check(o: Operands, first: FirstLayer | None, sizes: Sizes) -> None:
    """Refuse operands that do not fit one another: a saved program may be a stranger's, and kernels read memory."""
    (batch, num_steps, num_input), (*of, num_memory), num_layer = sizes, o.kappa.shape, len(o.layers) // 2
    hidden, num_branch = o.w_m.shape[-2], 0
    own = tuple(of) if o.frames is not None and o.frames.ndim == 4 else ()
    named: list[tuple[str, Tensor | None, tuple[int, ...]]] = []
    if first is not None:
        num_branch, num_synapse = first.w_s.shape[-2:]
        named = [
            ("w_s", first.w_s, (*of, num_branch, num_synapse)), ("total", first.total, (batch, *own, num_input)),
            ("state.b", first.b_0, (batch, *of, num_branch)), ("bias", o.bias, (*of, hidden)),
        ]  # fmt: skip
        if first.routing is None and num_branch != num_input:
            raise ValueError(f"w_s must have shape ({num_input}, ...), a branch an input, got {num_branch} branches")
        shared = () if first.routing is None or first.routing.ndim == 2 else tuple(of)
        check_operands([("routing", first.routing, (*shared, num_branch, num_synapse))], o.kappa, dtype=torch.int64)
    else:
        named = [("dense", o.dense, (batch, num_steps, *of, hidden))]
    named += [
        ("kappa_m", o.kappa, (*of, num_memory)), ("gain", o.gain, (*of, num_memory)), ("kappa_b", o.kappa_b, ()),
        ("x", o.frames, (batch, num_steps, *own, num_input)), ("state.m", o.m_0, (batch, *of, num_memory)),
        ("w_m", o.w_m, (*of, hidden if num_layer else num_memory, num_branch + num_memory)),
        ("w_y", o.w_y, (*of, o.b_y.shape[-1], num_memory)), ("b_y", o.b_y, (*of, o.b_y.shape[-1])),
    ]  # fmt: skip
    for place in range(num_layer):
        width = num_memory if place + 1 == num_layer else hidden
        named += [
            (f"mlp_weight[{place + 1}]", o.layers[2 * place], (*of, width, hidden)),
            (f"mlp_bias[{place + 1}]", o.layers[2 * place + 1], (*of, width)),
        ]
    if len(of) > 1 or num_layer > _library.MAX_LAYERS or o.f_0 is not None or o.table is not None:
        raise ValueError(f"operands must be those of a neuron or a population, got {num_layer} hidden layers")
    check_operands(named, o.kappa, cpu=True)
    check_lengths(o.lengths, batch, num_steps, o.kappa.device)


def _arrived(
    given: _traced.Operands,
    sizes: Sizes,
    sparse_input: str,
    known: Events | None = None,
    total: Tensor | None = None,
) -> tuple[Inputs, Events | None]:
    """What the pass takes, laid out, and the events in it; `known`: those that were found in frames, `total`: what has
    been added up.
    """
    operands, first = _inputs(given)
    _check(operands, first, sizes)
    frames, adds_up, found = operands.frames, first is not None and first.total is None, known
    given_events = Events.inside(operands.begin, operands.channel, operands.value, sizes)
    if given_events is not None:
        found = given_events
    elif frames is not None and adds_up and known is None:
        found = Events.searched_for(frames, frames.dtype, sparse_input)
        if found is None and operands.lengths is not None:
            frames = torch.where(valid(operands.lengths, frames), frames, 0.0)
    if found is not None:
        begin, end, channel, value, _ = found
        operands = operands._replace(begin=begin, end=end, channel=channel, value=value, frames=None)
    else:
        operands = operands._replace(frames=frames)
    if first is not None and adds_up and operands.kappa_b is not None:
        if total is None and found is not None:
            total = found.discounted_sum(float(operands.kappa_b), operands.kappa.dtype, operands.lengths)
        elif total is None and frames is not None:
            total = discounted_sum(frames, operands.kappa_b, operands.lengths)
        first = first._replace(total=total)
    return Inputs(operands, first).laid_out(), found


def _searched(given: _traced.Operands) -> Tensor | None:
    """Frames that the pass searches for events."""
    return given[FRAMES] if given[TOTAL] is None else None


def _plan(sizes: Sizes, options: Any, tile: int) -> Plan:
    (batch, num_steps, _), (silu, _, part, lowered, _) = sizes, options
    if part is not None and part < 1:
        raise ValueError(f"recompute_every must be at least 1, got {part}")
    part = num_steps if part is None else min(part, num_steps)
    return Plan(batch, num_steps, silu, tile, part, None if lowered is None else getattr(torch, lowered))


def _run(given: _traced.Operands, sizes: Sizes, options: Any, save: bool) -> _traced.Operands:
    inputs, found = _arrived(given, sizes, options[1])
    plan = _plan(sizes, options, tile_for(sizes[0], inputs.operands.kappa))
    outputs, saved, effective = forward(inputs, plan, save=save)
    results: _traced.Operands = [outputs.y, outputs.m_last, outputs.b]
    if not save:
        return results + [None] * NUM_KEPT
    starts = [torch.stack(part) if part else None for part in (saved.m_starts, saved.f_starts)]
    frames = _searched(given)
    events = room_for_found(frames, options[1], SPARSE_DENSITY, outputs.m_last)
    if frames is not None and found is not None and events[0].numel():
        events = [found.begin, found.end, found.channel, events[3] if found.value is None else found.value]
    facts = torch.tensor((plan.tile, found is not None, found is not None and found.value is not None), device="cpu")
    total = None if inputs.first is None or given[TOTAL] is not None else inputs.first.total
    table, w_m = (None, None) if effective is None else (effective.table, effective.w_m)
    return [*results, saved.activations, *starts, table, w_m, total, *events, facts]


def _empty(given: _traced.Operands, sizes: Sizes, options: Any, save: bool) -> _traced.Operands:
    (operands, first), (batch, num_steps, num_input) = _inputs(given), sizes
    kappa, plan, make = operands.kappa, _plan(sizes, options, 1), operands.kappa.new_empty
    hidden, b = operands.w_m.shape[:-1], None
    results: _traced.Operands = [None] * NUM_KEPT
    if first is not None:
        b = make(batch, *first.w_s.shape[:-1])
    if save:
        num_start = -(-num_steps // plan.part) - 1 if options[2] is not None else 0
        kept = make(saved_size(operands, batch, num_steps) if num_start == 0 else 0)
        starts = [make(num_start, batch, *size) if num_start > 0 else None for size in (kappa.shape, hidden)]
        table, w_m, total = None, None, None
        if first is not None:
            num_neuron, num_memory = hidden[0] if len(hidden) == 2 else 1, kappa.shape[-1]
            table, w_m = make(num_neuron, num_input, hidden[-1]), make(*hidden, num_memory)
            own = (num_neuron,) if operands.frames is not None and operands.frames.ndim == 4 else ()
            total = make(batch, *own, num_input) if first.total is None else None
        events = room_for_found(_searched(given), options[1], SPARSE_DENSITY, kappa)
        results = [kept, *starts, table, w_m, total, *events, make(3, dtype=torch.int64)]
    return [make(batch, num_steps, *operands.b_y.shape), make(batch, *kappa.shape), b, *results]


def _differentiate(call: _traced.Backward) -> _traced.Operands:
    given, sizes, options, results, grads, needed = call
    kept: list[Any] = results[NUM_OUTPUT:]
    activations, m_starts, f_starts, table, w_m, total, begin, end, channel, value, facts = kept
    tile, found, weighted = facts.tolist()
    batch, num_steps, num_input = sizes
    known = None
    if found and channel.numel():
        known = Events(begin, end, channel, value if weighted else None, (batch, num_steps, num_input))
    inputs, _ = _arrived(given, sizes, "on" if found else "off", known, total)
    kappa, gain = inputs.operands.kappa, inputs.operands.gain
    effective = None if inputs.first is None else Effective(kappa, gain, with_padded_rows(table), w_m, None)
    saved = Saved(activations, *(part.unbind() if part.numel() else () for part in (m_starts, f_starts)))
    incoming = Incoming(grads[0], None, grads[1], grads[2]).laid_out()
    plan = _plan(sizes, options, tile)
    if plan.part == num_steps:
        check_kept(activations, saved_size(inputs.operands, batch, num_steps))
    return [None] * NUM_CONSTANTS + gradients(
        inputs, plan, saved, effective, incoming, tuple(needed[NUM_CONSTANTS:]), None
    )


PASS = Pass(_run, _empty, _differentiate, kept=tuple(range(NUM_OUTPUT, NUM_OUTPUT + NUM_KEPT)))
