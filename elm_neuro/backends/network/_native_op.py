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
    saved_size,
)
from elm_neuro.backends.parts import _traced
from elm_neuro.backends.parts._shapes import check_bounds
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
    # the threads of now decide how what is kept lies
    how = tuple(options), _num_threads(), _library.instruction_set()
    return tuple(run_traced("network.native", [*operands, *layers], sizes, how)[:NUM_OUTPUT])


@constant
def _num_threads() -> int:
    return torch.get_num_threads()


def _settled(given: _traced.Operands, sizes: Sizes, how: Any) -> tuple[Operands, tuple[Tensor, ...], Plan]:
    operands = Operands._make(given[:NUM_OPERAND])
    layers = tuple([layer for layer in given[NUM_OPERAND:] if layer is not None])
    options, threads, _ = how
    # of sizes that are left open, those of now: how much is kept, the library says
    sizes = [int(size) for size in sizes]
    return operands, layers, Plan.of(Options._make(options), sizes, operands, threads)


def _laid_out(operands: Operands, sizes: Sizes) -> Operands:
    if operands.lengths is not None:
        check_bounds(operands.lengths, sizes[1])
    if operands.begin is not None and operands.channel is not None:
        begin, end = operands.begin[:-1], operands.begin[1:]
        batch, num_steps, num_input = sizes
        Events(begin, end, operands.channel, operands.value, (batch, num_steps, num_input)).check()
        operands = operands._replace(begin=begin, end=end)
    return operands.laid_out()


def _run(given: _traced.Operands, sizes: Sizes, how: Any, save: bool) -> _traced.Operands:
    operands, layers, plan = _settled(given, sizes, how)
    return list(forward(_laid_out(operands, sizes), contiguous(layers), plan, save=save))


def _empty(given: _traced.Operands, sizes: Sizes, how: Any, save: bool) -> _traced.Operands:
    operands, _, plan = _settled(given, sizes, how)
    make, (batch, num_neuron) = operands.bias.new_empty, operands.a_0.shape
    state = [None if part is None else make(part.shape) for part in operands[-4:]]
    saved = make(saved_size(operands, plan) if save else 0)
    return [make(batch, sizes[1], num_neuron), make(batch, num_neuron), *state, saved]


def _differentiate(
    given: _traced.Operands,
    sizes: Sizes,
    how: Any,
    results: _traced.Operands,
    grads: _traced.Operands,
    needed: list[bool],
) -> _traced.Operands:
    operands, layers, plan = _settled(given, sizes, how)
    a, saved = results[0], results[SAVED]
    if a is None or saved is None:
        raise RuntimeError("a pass left nothing for its backward pass")
    outputs, needs = tuple(grads[:NUM_OUTPUT]), tuple(needed[:NUM_OPERAND])
    of = backward(_laid_out(operands, sizes), list(contiguous(layers)), plan, a, saved, outputs, needs)
    return [None] * FIRST_DIFFERENTIATED + list(of)


PASS = Pass(_run, _empty, _differentiate, kept=(0, SAVED))
