"""The native pass inside compiled code, where frames are searched for events in each pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elm_neuro.backends.alif._native_pass import FIRST_DIFFERENTIATED, Operands, Plan, backward, forward, saved_size
from elm_neuro.backends.native import _library
from elm_neuro.backends.native._events import Events, room_for_found
from elm_neuro.backends.parts import _traced
from elm_neuro.backends.parts._shapes import check_kept, check_lengths, check_operands
from elm_neuro.backends.parts._traced import Pass, Sizes, run_traced

# Frames are run as events where fewer of their entries than this are spikes. Measured for 128 neurons: a product of
# 128 inputs costs as much at a density of 0.2 to 0.3.
SPARSE_DENSITY = 0.2
SAVED = 4  # of the results, behind spikes and state; then the events that were found in frames
WEIGHT, DENSE = 0, 1  # of what is differentiated


def run_as_operator(operands: Operands, frames: Tensor | None, plan: Plan) -> list[Tensor]:
    """Spikes and state as :func:`elm_neuro.backends.alif._native_pass.run` gives them; of events, `operands.begin` has
    one row more and there is no `end`. Of `frames`, which get no gradient, `operands` have the weight.
    """
    sizes = (operands.v_0.shape[0], plan.num_steps, plan.num_input)
    return run_traced("alif.native", [frames, *operands], sizes, (*plan[2:], _library.instruction_set()))[:SAVED]


def _arriving(
    given: _traced.Operands, sizes: Sizes, history: int, sparse_input: str, known: Events | None = None
) -> tuple[Operands, Events | None]:
    """The operands as the pass takes them, and the events that were found in frames, or are `known` to be there."""
    frames, *tensors = given
    operands = Operands._make(tensors)
    _check(operands, frames, sizes, history)
    events = Events.inside(operands.begin, operands.channel, operands.value, sizes)
    if events is not None:
        begin, end, channel, value, _ = events
        return operands._replace(begin=begin, end=end, channel=channel, value=value).laid_out(), None
    if frames is None or operands.weight is None:
        return operands.laid_out(), None
    found = Events.searched_for(frames, frames.dtype, sparse_input, SPARSE_DENSITY) if known is None else known
    if found is None:
        dense = torch.nn.functional.linear(frames, operands.weight)
        return operands._replace(weight=None, dense=dense).laid_out(), None
    begin, end, channel, value, _ = found
    return operands._replace(begin=begin, end=end, channel=channel, value=value).laid_out(), found


def _check(o: Operands, frames: Tensor | None, sizes: Sizes, history: int) -> None:
    """Refuse operands that do not fit one another: a saved program may be a stranger's, and kernels read memory."""
    (batch, num_steps, num_input), num_neuron = sizes, o.bias.shape[-1]
    if history < 1:
        raise ValueError(f"latency must not be negative, got {history - 1}")
    layer, each = (num_neuron,), (batch, num_neuron)
    named: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("weight", o.weight, (num_neuron, num_input)), ("dense", o.dense, (batch, num_steps, num_neuron)),
        ("x", frames, (batch, num_steps, num_input)), ("bias", o.bias, layer), ("beta", o.beta, layer),
        ("p", o.p, layer), ("b", o.b, layer), ("w_rec", o.w_rec, (num_neuron, num_neuron)), ("state.v", o.v_0, each),
        ("state.a", o.a_0, each), ("state.s", o.s_0, (batch, history, num_neuron)),
    ]  # fmt: skip
    check_operands(named, o.bias, cpu=True)
    check_lengths(o.lengths, batch, num_steps, o.bias.device)


def _plan(sizes: Sizes, options: Any) -> Plan:
    _, num_steps, num_input = sizes
    return Plan(num_steps, num_input, *options[:-1])


def _run(given: _traced.Operands, sizes: Sizes, options: Any, save: bool) -> _traced.Operands:
    operands, found = _arriving(given, sizes, _plan(sizes, options).latency + 1, "auto")
    spikes, *rest = forward(operands, _plan(sizes, options), save=save)
    if spikes.shape[0] != operands.v_0.shape[0]:
        raise ValueError("state.s must hold spikes, 0 or 1, inside torch.compile, got others")
    events = room_for_found(given[0] if save else None, "auto", SPARSE_DENSITY, spikes)
    if found is not None and events[0].numel():
        events = [found.begin, found.end, found.channel, events[3] if found.value is None else found.value]
    facts = torch.tensor((found is not None, found is not None and found.value is not None), device="cpu")
    return [spikes, *rest, *events, facts]


def _empty(given: _traced.Operands, sizes: Sizes, options: Any, save: bool) -> _traced.Operands:
    operands, plan = Operands._make(given[1:]), _plan(sizes, options)
    make, (batch, num_neuron) = operands.bias.new_empty, operands.v_0.shape
    saved = make(saved_size(operands, plan) if save else 0)
    state = [make(part.shape) for part in (operands.v_0, operands.a_0, operands.s_0)]
    events = room_for_found(given[0] if save else None, "auto", SPARSE_DENSITY, operands.bias)
    return [make(batch, plan.num_steps, num_neuron), *state, saved, *events, make(2, dtype=torch.bool)]


def _differentiate(call: _traced.Backward) -> _traced.Operands:
    given, sizes, options, results, grads, needed = call
    kept: list[Any] = results
    spikes, saved, (begin, end, channel, value, facts) = kept[0], kept[SAVED], kept[SAVED + 1 :]
    found, weighted = facts.tolist()
    batch, num_steps, num_input = sizes
    plan, known = _plan(sizes, options), None
    if found:
        known = Events(begin, end, channel, value if weighted else None, (batch, num_steps, num_input))
    operands, _ = _arriving(given, sizes, plan.latency + 1, "off", known)
    check_kept(saved, saved_size(operands, plan))
    frames, needs = given[0], needed[1 + FIRST_DIFFERENTIATED :]
    multiplied = frames is not None and not found  # the product is made in the pass
    if multiplied:
        needs[DENSE] = needs[WEIGHT]
    of = backward(operands, plan, spikes, saved, tuple(grads[:SAVED]), tuple(needs))
    of_dense = of[DENSE]
    if multiplied and of_dense is not None and frames is not None:
        of = (of_dense.flatten(0, 1).t() @ frames.flatten(0, 1), None, *of[2:])
    return [None] * (1 + FIRST_DIFFERENTIATED) + list(of)


PASS = Pass(_run, _empty, _differentiate, kept=(0, *range(SAVED, SAVED + 6)))
