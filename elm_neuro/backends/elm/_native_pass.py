"""The neuron over a sequence in one native pass with its hand-written backward pass: what arrives, the memory
recurrence, the readout, and where there is a threshold the spikes.

Nothing as wide as the hidden units is saved but what the backward pass reads, and of the steps of one part only where
the others are computed again. docs/kernels.md derives what the kernels compute.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.elm._again import Plain
from elm_neuro.backends.elm._effective import remembered_timescales
from elm_neuro.backends.elm._native_kernels import run_backward, run_forward
from elm_neuro.backends.elm._native_operands import (
    FIRST_DIFFERENTIATED,
    NUM_FIXED,
    Incoming,
    Operands,
    Outputs,
    Plan,
    Saved,
    Wanted,
    laid_out,
)
from elm_neuro.backends.elm._native_table import FirstLayer, table_backward, table_forward
from elm_neuro.backends.elm._traces_before import on_hidden, remaining, through_hidden
from elm_neuro.backends.native import _effective
from elm_neuro.backends.native._rows import rows, with_padded_rows
from elm_neuro.backends.parts._twice import as_tensor, asks_operators, differentiable_gradients, differentiable_once


class Again(NamedTuple):
    """The pass by the reference, and the frames in which events were found: for second derivatives."""

    plain: Plain
    frames: Tensor | None


class Inputs(NamedTuple):
    """All tensors of a pass: with `first`, the table is made in it, and ``operands.w_m`` is the first layer's whole
    weight. Where ``plan.timescales`` says how, w_s and kappa become effective in it too, and there is no gain.
    """

    operands: Operands
    first: FirstLayer | None

    def flat(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Constants, and what the outputs are differentiated by."""
        w_s, routing, total, b_0 = self.first or NO_FIRST
        operands = self.operands
        constants = (routing, *operands[:FIRST_DIFFERENTIATED])
        return constants, (w_s, total, b_0, *operands[FIRST_DIFFERENTIATED:NUM_FIXED], *operands.layers)

    @classmethod
    def of(cls, constants: Any, differentiated: Any) -> Inputs:
        """From :meth:`flat`."""
        routing, *others = constants
        w_s, total, b_0, *tensors = differentiated
        fixed, layers = tensors[: NUM_FIXED - FIRST_DIFFERENTIATED], tensors[NUM_FIXED - FIRST_DIFFERENTIATED :]
        operands = Operands._make((*others, *fixed, tuple(layers)))
        return cls(operands, None if w_s is None else FirstLayer(w_s, routing, total, b_0))

    def laid_out(self) -> Inputs:
        """As the kernels read them: themselves where all lie so."""
        constants, differentiated = self.flat()
        given = (*constants, *differentiated)
        if self.first is not None and not [one for one in given if one is not None and not one.is_contiguous()]:
            return self
        operands = laid_out(self.operands)
        if self.first is None:
            return Inputs(operands, None)
        return Inputs(operands._replace(w_m=operands.w_m.contiguous()), self.first.laid_out())


NO_FIRST = (None,) * len(FirstLayer._fields)
NUM_CONSTANTS, NUM_OF_FIRST = FIRST_DIFFERENTIATED + 1, len(FirstLayer._fields) - 1
# of what run_backward gives
TABLE, F_0, KAPPA, GAIN, W_M = (
    Operands._fields.index(name) - FIRST_DIFFERENTIATED for name in ("table", "f_0", "kappa", "gain", "w_m")
)


class Effective(NamedTuple):
    """What a pass works with in place of what it was given, where it makes the table."""

    table: Tensor
    w_m: Tensor
    kappa: Tensor
    gain: Tensor

    def laid_out(self) -> Effective:
        """As the kernels read it, wherever ``torch.autograd.graph.saved_tensors_hooks`` have kept it in between."""
        table, *others = self
        return Effective(with_padded_rows(table), *(tensor.contiguous() for tensor in others))


NO_EFFECTIVE = (None,) * len(Effective._fields)


def run(operands: Operands, plan: Plan, first: FirstLayer | None = None, again: Again | None = None) -> Outputs:
    """One pass over a sequence; with `again` it answers for second derivatives too."""
    inputs = Inputs(operands, first)
    if not torch.is_grad_enabled():
        return forward(inputs.laid_out(), plan, save=False)[0]
    constants, differentiated = inputs.flat()
    if again is not None and again.frames is not None:
        constants += (again.frames,)
    # the constants as one argument: autograd asks each of its arguments more than once
    return Outputs(*_Pass.apply(plan, None if again is None else again.plain, constants, *differentiated))  # type: ignore[no-untyped-call]  # torch leaves it untyped


def forward(inputs: Inputs, plan: Plan, *, save: bool) -> tuple[Outputs, Saved, Effective | None]:
    """Of inputs that are laid out."""
    operands, first = inputs
    if first is None:
        return *run_forward(operands, plan, save=save), None
    kappa, gain, learned = operands.kappa, operands.gain, plan.timescales is not None
    if plan.timescales is not None:
        kappa, gain = remembered_timescales(kappa, plan.timescales)
    table, w_m, b = table_forward(operands.w_m, first.w_s, first.routing, first.total, rectify=learned)
    f_0 = None
    if first.b_0 is not None and operands.kappa_b is not None:
        f_0 = on_hidden(operands.w_m, first.b_0)
        b += remaining(operands.kappa_b, first.b_0, plan.num_steps, operands.lengths)
    effective = Effective(table, w_m, kappa, gain)
    (y, spikes, m, _), saved = run_forward(_with(operands, effective, f_0), plan, save=save)
    return Outputs(y, spikes, m, b), saved, effective


def _with(operands: Operands, effective: Effective, f_0: Tensor | None) -> Operands:
    """The operands as the kernels take them."""
    return operands._replace(
        table=effective.table, f_0=f_0, w_m=effective.w_m, kappa=effective.kappa, gain=effective.gain
    )


class _Pass(Function):
    @staticmethod
    def forward(
        ctx: Any, plan: Plan, plain: Plain | None, constants: tuple[Tensor | None, ...], *differentiated: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        given = Inputs.of(constants[:NUM_CONSTANTS], differentiated)
        inputs, save = given.laid_out(), any(ctx.needs_input_grad)
        outputs, saved, effective = forward(inputs, plan, save=save)
        ctx.plan, ctx.plain, ctx.num_starts, ctx.num_constants = plan, plain, len(saved.m_starts), len(constants)
        ctx.differentiates_again = plain is not None
        ctx.set_materialize_grads(False)
        if save:
            ctx.save_for_backward(
                as_tensor(plan.tile),
                None if outputs.spikes is None else outputs.y,
                saved.activations,
                *(effective or NO_EFFECTIVE),
                *saved.m_starts,
                *saved.f_starts,
                *constants,
                *differentiated,
            )
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.plain is not None and asks_operators(grads):
            return _differentiable(ctx, grads)
        return _backward(ctx, *grads)


@differentiable_once
def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    tile, readout, activations, *rest = ctx.saved_tensors
    effective, rest = Effective._make(rest[: len(NO_EFFECTIVE)]), rest[len(NO_EFFECTIVE) :]
    if effective.table is not None:
        effective = effective.laid_out()
    num = ctx.num_starts
    starts, rest = [start.contiguous() for start in rest[: 2 * num]], rest[2 * num :]
    saved = Saved(activations.contiguous(), tuple(starts[:num]), tuple(starts[num:]))
    inputs = Inputs.of(rest[:NUM_CONSTANTS], rest[ctx.num_constants :]).laid_out()
    plan = ctx.plan if tile is as_tensor(ctx.plan.tile) else ctx.plan._replace(tile=int(tile))
    grad_y, grad_spikes, grad_m, grad_b = grads
    incoming, needs = Incoming(grad_y, grad_spikes, grad_m), ctx.needs_input_grad[3:]
    readout = None if readout is None else rows(readout)
    return None, None, None, *gradients(inputs, plan, saved, effective, incoming, grad_b, needs, readout)


def gradients(
    inputs: Inputs,
    plan: Plan,
    saved: Saved,
    effective: Effective,
    incoming: Incoming,
    grad_b: Tensor | None,
    needs: tuple[bool, ...],
    readout: Tensor | None,
) -> list[Tensor | None]:
    """Of what the outputs are differentiated by."""
    operands, first = inputs
    wanted = Wanted.among(needs[NUM_OF_FIRST:])
    if first is None:
        return [None, None, None, *run_backward(operands, plan, saved, incoming, wanted, readout)]
    weight, b_0 = operands.w_m, first.b_0
    f_0 = None if b_0 is None else on_hidden(weight, b_0)
    wanted = wanted._replace(table=True, f_0=b_0 is not None)
    found = run_backward(_with(operands, effective, f_0), plan, saved, incoming, wanted, readout)
    grad_table, grad_w_m, grad_f_0 = found[TABLE], found[W_M], found[F_0]
    if grad_table is None or grad_w_m is None:
        raise RuntimeError("a table without a gradient")
    of_weight, of_w_s, of_total = table_backward(
        weight, first.w_s, first.routing, first.total, grad_table, grad_w_m, grad_b,
        rectify=plan.timescales is not None, wants_total=needs[1],
    )  # fmt: skip
    of_b_0 = None
    if b_0 is not None and grad_f_0 is not None:
        of_b_0 = through_hidden(weight, b_0, grad_f_0, of_weight)
        if grad_b is not None and operands.kappa_b is not None:
            of_b_0 += remaining(operands.kappa_b, grad_b, plan.num_steps, operands.lengths)
    found[TABLE] = found[F_0] = None
    found[W_M] = of_weight
    if plan.timescales is not None:
        if needs[NUM_OF_FIRST + KAPPA]:
            of_effective = None, found[KAPPA], found[GAIN]
            _, found[KAPPA] = _effective.backward(
                first.w_s, operands.kappa, of_effective, (False, True), plan.timescales
            )
        found[GAIN] = None
    return [of_w_s, of_total, of_b_0, *found]


def _differentiable(ctx: Any, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Gradients with a graph of their own: the reference's, run again."""
    _, _, _, *rest = ctx.saved_tensors
    rest = rest[len(NO_EFFECTIVE) + 2 * ctx.num_starts :]
    constants, differentiated = rest[: ctx.num_constants], rest[ctx.num_constants :]
    routing, kappa_b = constants[0], constants[FIRST_DIFFERENTIATED]
    searched = constants[NUM_CONSTANTS] if ctx.num_constants > NUM_CONSTANTS else None
    plain = ctx.plain

    def again(*tensors: Any) -> tuple[Tensor, ...]:
        o, first = Inputs.of((routing, *[None] * FIRST_DIFFERENTIATED), tensors)
        if first is None:
            raise RuntimeError("a pass without a table does not answer for second derivatives")
        x = o.frames if searched is None else searched
        threshold = () if plain.surrogate is None else (o.threshold,)
        found = plain.run(
            *threshold, x, first.b_0, o.m_0, first.w_s, routing, kappa_b, o.kappa, o.gain, o.w_y, o.b_y, o.w_m,
            *o.layers[::2], o.bias, *o.layers[1::2],
        )  # fmt: skip
        *spikes, y, b, m = found
        return y, spikes[0] if spikes else y, m, b

    return None, None, None, *differentiable_gradients(again, tuple(differentiated), ctx.needs_input_grad[3:], grads)
