"""The pass on a GPU inside compiled code."""

from __future__ import annotations

from typing import Any

import torch

from elm_neuro.backends.cuda._room import Room
from elm_neuro.backends.elm._cuda_operands import (
    FIRST_DIFFERENTIATED,
    Operands,
    Options,
    Outputs,
    Saved,
    laid_out,
    plan_of,
)
from elm_neuro.backends.elm._cuda_pass import backward, forward
from elm_neuro.backends.elm._cuda_plan import Kept
from elm_neuro.backends.parts import _traced
from elm_neuro.backends.parts._traced import Pass, Sizes, run_traced

NUM_OUTPUT = len(Outputs._fields)


def run_as_operator(operands: Operands, options: Options) -> Outputs:
    """As :func:`elm_neuro.backends.elm._cuda_pass.run`; compiled code computes what is effective itself."""
    arriving = operands.x if operands.x is not None else operands.v
    if arriving is None and operands.begin is not None:
        batch = (operands.begin.shape[0] - 1) // options.num_steps
    elif arriving is not None:
        batch = arriving.shape[0]
    else:
        raise RuntimeError("nothing arrives")
    of_x = operands.x is not None and operands.x.requires_grad
    lowered = None if options.lowered is None else str(options.lowered).removeprefix("torch.")
    sizes = batch, options.num_steps, options.num_input
    results = run_traced("elm.cuda", list(operands), sizes, (options.silu, lowered, of_x))
    return Outputs._make(results[:NUM_OUTPUT])


def _options(sizes: Sizes, options: Any) -> Options:
    silu, lowered, _ = options
    return Options(sizes[1], sizes[2], silu, None if lowered is None else getattr(torch, lowered))


def _run(given: _traced.Operands, sizes: Sizes, options: Any, save: bool) -> _traced.Operands:
    o = laid_out(Operands._make(given))
    outputs, saved = forward(o, plan_of(o, _options(sizes, options)), save=save, of_x=save and options[-1])
    return [*outputs, *(saved if save else [None] * len(Saved._fields))]


def _empty(given: _traced.Operands, sizes: Sizes, options: Any, save: bool) -> _traced.Operands:
    o, (batch, num_steps, num_input), of_x = Operands._make(given), sizes, options[-1]
    empty, num_memory, first = o.kappa.new_empty, o.kappa.shape[-1], o.w1.shape[-2]
    num_neuron = o.kappa.numel() // num_memory
    saved: _traced.Operands = [None] * len(Saved._fields)
    if save:
        own, hidden = o.x is not None and o.x.ndim == 4, 0 if o.w2 is None else first
        num_total = 0 if o.v is not None else num_input * (num_neuron if own else 1)
        parts = Kept.of(num_neuron, batch, num_steps, num_memory, hidden, num_total, save=True)
        shape = (num_neuron, num_input, first) if own and num_neuron > 1 else (num_input, num_neuron * first)
        order = None if o.channel is None else o.channel.new_empty(batch * (num_input + 1) + o.channel.shape[0])
        value = None if o.value is None else torch.empty_like(o.value)
        saved = [empty(Room(parts, o.kappa.element_size()).numbers), empty(shape) if of_x else None, order, value]
    b = empty(0) if o.w_s is None else empty(batch, *o.w_s.shape[:-1])
    return [empty(batch, num_steps, *o.b_y.shape), b, empty(batch, *o.kappa.shape), *saved]


def _differentiate(call: _traced.Backward) -> _traced.Operands:
    given, sizes, options, results, grads, needed = call
    o = laid_out(Operands._make(given))
    kept, *others = results[NUM_OUTPUT:]
    if kept is None:
        raise RuntimeError("a pass left nothing for its backward pass")
    saved = Saved(kept, *(one if one is not None and one.numel() else None for one in others))
    of_x = needed[FIRST_DIFFERENTIATED]
    found = backward(o, saved, plan_of(o, _options(sizes, options)), tuple(grads[:NUM_OUTPUT]), of_x=of_x)
    return [None] * FIRST_DIFFERENTIATED + list(found)


PASS = Pass(_run, _empty, _differentiate, kept=tuple(range(NUM_OUTPUT, NUM_OUTPUT + len(Saved._fields))))
