"""The native pass inside compiled code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elm_neuro.backends.native import _library
from elm_neuro.backends.native._events import Events
from elm_neuro.backends.network._native_pass import (
    FIRST_DIFFERENTIATED,
    Operands,
    Options,
    Plan,
    backward,
    contiguous,
    forward,
    room_for_saved,
)
from elm_neuro.backends.parts import _traced
from elm_neuro.backends.parts._shapes import check_kept, check_lengths, check_operands
from elm_neuro.backends.parts._traced import Pass, Sizes, run_traced
from elm_neuro.backends.parts._untraced import constant

NUM_OPERAND, NUM_OUTPUT = len(Operands._fields), 6  # activity, change and state
SAVED = NUM_OUTPUT


def run_as_operator(
    operands: Operands, layers: tuple[Tensor, ...], options: Options, sizes: Sizes
) -> tuple[Tensor | None, ...]:
    """As :func:`elm_neuro.backends.network._native_pass.run`; of events, `operands.begin` has one row more and there is
    no `end`.
    """
    # with as many threads as now the backward pass finds what is kept where the forward pass left it
    how = tuple(options), _num_threads(), _library.instruction_set()
    return tuple(run_traced("network.native", [*operands, *layers], sizes, how)[:NUM_OUTPUT])


@constant
def _num_threads() -> int:
    return torch.get_num_threads()


def _settled(given: _traced.Operands, sizes: Sizes, how: Any) -> tuple[Operands, tuple[Tensor, ...], Plan]:
    operands = Operands._make(given[:NUM_OPERAND])
    layers = tuple([layer for layer in given[NUM_OPERAND:] if layer is not None])
    options, threads, _ = how
    return operands, layers, Plan.of(Options._make(options), sizes, operands, threads)


def _room(operands: Operands, sizes: Sizes, how: Any) -> int:
    return room_for_saved(operands, Options._make(how[0]), sizes[1])


def _laid_out(operands: Operands, sizes: Sizes) -> Operands:
    events = Events.inside(operands.begin, operands.channel, operands.value, sizes)
    if events is not None:
        begin, end, channel, value, _ = events
        operands = operands._replace(begin=begin, end=end, channel=channel, value=value)
    return operands.laid_out()


def _check(o: Operands, layers: tuple[Tensor, ...], sizes: Sizes, options: Options) -> None:
    """Refuse operands that do not fit one another: a saved program may be a stranger's, and kernels read memory."""
    (batch, num_steps, num_input), (num_neuron, num_memory) = sizes, o.kappa_m.shape
    num_branch, num_synapse, half = options.num_branch, o.index.shape[-1], len(layers) // 2
    matrix, layer = (num_neuron, num_memory), (num_neuron,)
    if num_branch < 1 or min(options.widths) < 1 or options.widths[-1] != num_memory:
        raise ValueError(f"widths must be at least 1 and end with {num_memory} memory units, got {options.widths}")
    if num_synapse % num_branch or not 1 <= half <= _library.MAX_LAYERS or len(options.widths) != half:
        raise ValueError(f"layers and branches must fit, got {half} layers and {num_synapse} synapses")
    named: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("x", o.x, (batch, num_steps, num_input)), ("w_s", o.w_s, (num_neuron, num_synapse)), ("w_y", o.w_y, matrix),
        ("bias", o.bias, layer), ("kappa_m", o.kappa_m, matrix), ("gain", o.gain, matrix),
        ("kappa_b", o.kappa_b, (num_neuron, num_branch)), ("kappa_r", o.kappa_r, layer),
        ("state.a", o.a_0, (batch, num_neuron)), ("state.b", o.b_0, (batch, num_neuron, num_branch)),
        ("state.m", o.m_0, (batch, num_neuron, num_memory)), ("state.r", o.r_0, (batch, num_neuron)),
        ("input_mask", o.input_mask, (batch, num_input)), ("recurrent_mask", o.recurrent_mask, (batch, num_neuron)),
    ]  # fmt: skip
    size = num_branch + num_memory
    for place, width in enumerate((*options.widths[:-1], num_memory)):
        named += [
            (f"mlp_weight[{place}]", layers[place], (num_neuron, width, size)),
            (f"mlp_bias[{place}]", layers[half + place], (num_neuron, width)),
        ]
        size = width
    check_operands(named, o.bias, cpu=True)
    check_operands([("index", o.index, (num_neuron, num_synapse))], o.bias, dtype=torch.int64)
    check_lengths(o.lengths, batch, num_steps, o.bias.device)


def _run(given: _traced.Operands, sizes: Sizes, how: Any, save: bool) -> _traced.Operands:
    operands, layers, plan = _settled(given, sizes, how)
    _check(operands, layers, sizes, plan.options)
    return list(forward(_laid_out(operands, sizes), contiguous(layers), plan, save=save))


def _empty(given: _traced.Operands, sizes: Sizes, how: Any, save: bool) -> _traced.Operands:
    operands = Operands._make(given[:NUM_OPERAND])
    make, (batch, num_neuron) = operands.bias.new_empty, operands.a_0.shape
    state = [None if part is None else make(part.shape) for part in operands[-4:]]
    saved = make(_room(operands, sizes, how) if save else 0)
    return [make(batch, sizes[1], num_neuron), make(batch, num_neuron), *state, saved]


def _differentiate(call: _traced.Backward) -> _traced.Operands:
    given, sizes, how, results, grads, needed = call
    operands, layers, plan = _settled(given, sizes, how)
    a, saved = results[0], results[SAVED]
    if a is None or saved is None:
        raise RuntimeError("a pass left nothing for its backward pass")
    _check(operands, layers, sizes, plan.options)
    check_kept(saved, _room(operands, sizes, how))
    outputs, needs = tuple(grads[:NUM_OUTPUT]), tuple(needed[:NUM_OPERAND])
    of = backward(_laid_out(operands, sizes), list(contiguous(layers)), plan, a, saved, outputs, needs)
    return [None] * FIRST_DIFFERENTIATED + list(of)


PASS = Pass(_run, _empty, _differentiate, kept=(0, SAVED))
