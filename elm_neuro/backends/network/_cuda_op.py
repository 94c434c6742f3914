"""The pass on a GPU inside compiled code, which does not know whether the neurons read one another: the index says."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from elm_neuro.backends.network._cuda_pass import (
    FIRST_DIFFERENTIATED,
    NO_KEPT,
    Kept,
    Operands,
    Options,
    Plan,
    backward,
    forward,
    sizes_of,
)
from elm_neuro.backends.parts import _traced
from elm_neuro.backends.parts._traced import Pass, Sizes, run_traced

NUM_OPERAND, NUM_OUTPUT = len(Operands._fields), 6  # activity, change and state


def run_as_operator(
    operands: Operands, layers: tuple[Tensor, ...], options: Options, num_input: int
) -> tuple[Tensor, ...]:
    """As :func:`elm_neuro.backends.network._cuda_pass.run`."""
    batch, num_steps = operands.from_input.shape[:2]
    sizes = batch, num_steps, num_input
    return tuple(run_traced("network.cuda", [*operands, *layers], sizes, tuple(options))[:NUM_OUTPUT])


def _taken(given: _traced.Operands) -> tuple[Operands, tuple[Tensor, ...]]:
    layers = tuple([layer.detach().contiguous() for layer in given[NUM_OPERAND:] if layer is not None])
    return Operands._make(given[:NUM_OPERAND]), layers


def _settled(operands: Operands, sizes: Sizes, options: Any) -> tuple[Operands, Plan]:
    plan = Plan.of(Options._make(options), operands, sizes[2])
    return (operands if plan.wiring is not None else operands._replace(of_neurons=None)), plan


def _run(given: _traced.Operands, sizes: Sizes, options: Any, save: bool) -> _traced.Operands:
    operands, layers = _taken(given)
    operands, plan = _settled(operands, sizes, options)
    *outputs, kept = forward(operands.laid_out(), layers, plan, save=save)
    return [*outputs, *kept]


def _empty(given: _traced.Operands, sizes: Sizes, options: Any, save: bool) -> _traced.Operands:
    (o, _), how, (batch, num_steps, _) = _taken(given), Options._make(options), sizes
    make, num_neuron = o.bias.new_empty, o.kappa_m.shape[0]
    a, kept = make(batch, num_steps, num_neuron), NO_KEPT
    if save:
        of_layer = sizes_of(how, o.kappa_m, o.kappa_b, o.kappa_r, reads_layer=True)
        kept = Kept.room(of_layer, how.output, a, padded=False)
    state = [None if part is None else make(part.shape) for part in (o.a_0, o.b_0, o.m_0, o.r_0)]
    return [a, make(batch, num_neuron), *state, *kept]


def _differentiate(call: _traced.Backward) -> _traced.Operands:
    given, sizes, options, results, grads, _ = call
    operands, layers = _taken(given)
    operands, plan = _settled(operands, sizes, options)
    a, weights = results[0], layers[: len(layers) // 2]
    if a is None:
        raise RuntimeError("a pass left nothing for its backward pass")
    kept = Kept._make([one if one is not None and one.numel() else None for one in results[NUM_OUTPUT:]])
    read = operands._replace(from_input=a).laid_out()  # of which no kernel reads it again
    return [None] * FIRST_DIFFERENTIATED + list(backward(read, weights, plan, a, kept, tuple(grads[:NUM_OUTPUT])))


PASS = Pass(
    _run,
    _empty,
    _differentiate,
    kept=(0, *range(NUM_OUTPUT, NUM_OUTPUT + len(Kept._fields))),
    unread=(FIRST_DIFFERENTIATED,),
)
