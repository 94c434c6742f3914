"""The pass on a GPU inside compiled code."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from elm_neuro.backends.alif._cuda_pass import Operands, Options, Plan, backward, forward, num_kept, plan_of
from elm_neuro.backends.parts import _traced
from elm_neuro.backends.parts._traced import Pass, Sizes, run_traced

NUM_OUTPUT = 4  # spikes and state
FIRST_DIFFERENTIATED = Operands._fields.index("current")


def run_as_operator(operands: Operands, options: Options) -> list[Tensor]:
    """As :func:`elm_neuro.backends.alif._cuda_pass.run`."""
    return run_traced("alif.cuda", list(operands), operands.current.shape, tuple(options))[:NUM_OUTPUT]


def _settled(given: _traced.Operands, sizes: Sizes, options: Any) -> tuple[Operands, Plan]:
    o, (batch, num_steps, num_neuron) = Operands._make(given), sizes
    return o, plan_of(Options._make(options), (batch, num_steps, num_neuron), o.bias.dtype)


def _run(given: _traced.Operands, sizes: Sizes, options: Any, save: bool) -> _traced.Operands:
    o, plan = _settled(given, sizes, options)
    return list(forward(o.laid_out(), plan, save=save))


def _empty(given: _traced.Operands, sizes: Sizes, options: Any, save: bool) -> _traced.Operands:
    o, (batch, _, num_neuron), make = Operands._make(given), sizes, Operands._make(given).bias.new_empty
    layer = batch, num_neuron
    state = make(layer), make(layer), make(batch, Options._make(options).history, num_neuron)
    return [make(*sizes), *state, make(num_kept(o.b), *sizes) if save else None]


def _differentiate(call: _traced.Backward) -> _traced.Operands:
    given, sizes, options, results, grads, _ = call
    spikes, kept = results[0], results[NUM_OUTPUT]
    if spikes is None or kept is None:
        raise RuntimeError("a pass left nothing for its backward pass")
    o, plan = _settled(given, sizes, options)
    found = backward(o._replace(current=spikes).laid_out(), plan, spikes, kept, tuple(grads[:NUM_OUTPUT]))
    return [None] * FIRST_DIFFERENTIATED + list(found)


PASS = Pass(_run, _empty, _differentiate, kept=(0, NUM_OUTPUT), unread=(FIRST_DIFFERENTIATED,))
