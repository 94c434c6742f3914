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

from elm_neuro.backends.elm import _native_step, _native_whole
from elm_neuro.backends.elm._again import Plain
from elm_neuro.backends.elm._effective import remembered_timescales
from elm_neuro.backends.elm._native_arriving import present
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
from elm_neuro.backends.parts._lengths import valid
from elm_neuro.backends.parts._projection import discounted_sum
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
KAPPA = Operands._fields.index("kappa") - FIRST_DIFFERENTIATED
OF_READOUT = {
    NUM_OF_FIRST + Operands._fields.index(name) - FIRST_DIFFERENTIATED for name in ("w_y", "b_y", "threshold")
}


class Effective(NamedTuple):
    """What a pass works with in place of what it was given, where it makes the table."""

    kappa: Tensor
    gain: Tensor
    table: Tensor | None  # this and the next where they do not lie in a room, as _native_whole has it
    w_m: Tensor | None
    total: Tensor | None  # where the pass itself added it up
    b: Tensor | None = None  # branch traces after the one step, where it is only one

    def laid_out(self) -> Effective:
        """As the kernels read it, wherever ``torch.autograd.graph.saved_tensors_hooks`` have kept it in between."""
        kappa, gain, table, w_m, total, b = self
        return Effective(
            kappa.contiguous(),
            gain.contiguous(),
            None if table is None else with_padded_rows(table),
            None if w_m is None else w_m.contiguous(),
            None if total is None else total.contiguous(),
            None if b is None else b.contiguous(),
        )


NO_EFFECTIVE = (None,) * len(Effective._fields)


def run(operands: Operands, plan: Plan, first: FirstLayer | None = None, again: Again | None = None) -> Outputs:
    """One pass over a sequence; with `again` it answers for second derivatives too."""
    inputs = Inputs(operands, first)
    if not torch.is_grad_enabled():
        return forward(inputs.laid_out(), plan, save=False)[0]
    constants, differentiated = inputs.flat()
    if again is not None and again.frames is not None:
        constants += (again.frames,)
    plain = None if again is None else again.plain
    # the constants as one argument: autograd asks each of its arguments more than once
    return Outputs(*_Pass.apply(plan, plain, inputs, constants, *differentiated))  # type: ignore[no-untyped-call]  # torch leaves it untyped


def forward(inputs: Inputs, plan: Plan, *, save: bool) -> tuple[Outputs, Saved, Effective | None]:
    """Of inputs that are laid out."""
    operands, first = inputs
    if first is None:
        return *run_forward(operands, plan, save=save), None
    kappa, gain, f_0, left = operands.kappa, operands.gain, None, None
    if plan.timescales is not None:
        kappa, gain = remembered_timescales(kappa, plan.timescales)
        operands = operands._replace(kappa=kappa, gain=gain)
    if plan.one_step:
        outputs, saved = _native_step.forward(operands, first, plan, save=save)
        return outputs, saved, Effective(kappa, gain, None, None, None, outputs.b)
    if first.b_0 is not None and operands.kappa_b is not None:
        f_0 = on_hidden(operands.w_m, first.b_0)
        left = remaining(operands.kappa_b, first.b_0, plan.num_steps, operands.lengths)
    found = None
    if first.total is None:
        found = _native_whole.run_forward(operands, first, plan, f_0, save=save)
    if found is not None:
        outputs, room = found
        saved, effective = Saved(room, (), ()), Effective(kappa, gain, None, None, None)
    else:
        operands, first, added = _added_up(operands, first)
        table, w_m, b = table_forward(
            operands.w_m, first.w_s, first.routing, present(first.total), rectify=plan.rectifies
        )
        outputs, saved = run_forward(operands._replace(table=table, w_m=w_m, f_0=f_0), plan, save=save)
        outputs, effective = outputs._replace(b=b), Effective(kappa, gain, table, w_m, added)
    if left is not None and outputs.b is not None:
        outputs.b.add_(left)
    return outputs, saved, effective


def _added_up(
    operands: Operands, first: FirstLayer, total: Tensor | None = None
) -> tuple[Operands, FirstLayer, Tensor | None]:
    """The same for frames that turned out dense, 0 past each sample's end and added up to `total`, which comes last."""
    frames, kappa_b = operands.frames, operands.kappa_b
    if first.total is not None or frames is None or kappa_b is None:
        return operands, first, None
    if operands.lengths is not None:
        frames = torch.where(valid(operands.lengths, frames), frames, 0.0)
    if total is None:
        total = discounted_sum(frames, kappa_b, operands.lengths)
    return operands._replace(frames=frames), first._replace(total=total), total


class _Pass(Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        plain: Plain | None,
        inputs: Inputs,
        constants: tuple[Tensor | None, ...],
        *differentiated: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        save = any(ctx.needs_input_grad)
        outputs, saved, effective = forward(inputs.laid_out(), plan, save=save)
        ctx.plan, ctx.plain, ctx.num_starts, ctx.num_constants = plan, plain, len(saved.m_starts), len(constants)
        ctx.differentiates_again = plain is not None
        ctx.set_materialize_grads(False)
        if not ctx.needs_input_grad[4]:  # the synapses, on which all depends
            ctx.mark_non_differentiable(*_not_learned(outputs, ctx.needs_input_grad[4:]))
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


def _not_learned(outputs: Outputs, needs: tuple[bool, ...]) -> list[Tensor]:
    """Of the state what depends on nothing that learns: who trains the readout alone may hand it on for ever."""
    found = [] if any(need for at, need in enumerate(needs) if at not in OF_READOUT) else [outputs.m_last]
    if outputs.b is not None and not any(needs[: NUM_OF_FIRST + 1]):  # up to the frames
        found.append(outputs.b)
    return found


@differentiable_once
def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    tile, readout, activations, *rest = ctx.saved_tensors
    made, rest = rest[: len(NO_EFFECTIVE)], rest[len(NO_EFFECTIVE) :]
    effective = None if made[0] is None else Effective._make(made).laid_out()
    num = ctx.num_starts
    starts, rest = [start.contiguous() for start in rest[: 2 * num]], rest[2 * num :]
    saved = Saved(activations.contiguous(), tuple(starts[:num]), tuple(starts[num:]))
    inputs = Inputs.of(rest[:NUM_CONSTANTS], rest[ctx.num_constants :]).laid_out()
    plan = ctx.plan if tile is as_tensor(ctx.plan.tile) else ctx.plan._replace(tile=int(tile))
    grad_y, grad_spikes, grad_m, grad_b = grads
    incoming = Incoming(grad_y, grad_spikes, grad_m, grad_b).laid_out()
    readout = None if readout is None else rows(readout)
    return (
        None,
        None,
        None,
        None,
        *gradients(inputs, plan, saved, effective, incoming, ctx.needs_input_grad[4:], readout),
    )


def gradients(
    inputs: Inputs,
    plan: Plan,
    saved: Saved,
    effective: Effective | None,
    incoming: Incoming,
    needs: tuple[bool, ...],
    readout: Tensor | None,
) -> list[Tensor | None]:
    """Of what the outputs are differentiated by; what comes is laid out."""
    operands, first = inputs
    wanted = Wanted.among(needs[NUM_OF_FIRST:])
    if first is None or effective is None:
        grads = run_backward(operands, plan, saved, incoming, wanted, readout)
        return [None, None, None, *_of_operands(grads, operands)]
    proto = operands.kappa
    wanted = wanted._replace(gain=wanted.gain or (plan.rectifies and wanted.kappa))
    operands = operands._replace(kappa=effective.kappa, gain=effective.gain)
    of_total: Tensor | None = None
    if effective.b is not None:
        of_w_s, of_b_0, grads = _native_step.backward(
            operands, first, plan, saved, effective.b, incoming, wanted, readout
        )
    else:
        of_w_s, of_total, of_b_0, grads = _of_first(
            operands, first, plan, saved, effective, incoming, wanted, readout, wants_total=needs[1]
        )
    found = _of_operands(grads, operands)
    if plan.timescales is not None:
        found[KAPPA] = found[KAPPA + 1] = None  # decay and gain are of one number, which is learned
        if needs[NUM_OF_FIRST + KAPPA]:
            of_effective = None, grads.kappa, grads.gain
            _, found[KAPPA] = _effective.backward(first.w_s, proto, of_effective, (False, True), plan.timescales)
    return [of_w_s, of_total, of_b_0, *found]


def _of_first(
    operands: Operands,
    first: FirstLayer,
    plan: Plan,
    saved: Saved,
    effective: Effective,
    incoming: Incoming,
    wanted: Wanted,
    readout: Tensor | None,
    *,
    wants_total: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Operands]:
    """Gradients of the synaptic weights, of what has been added up, of the traces before, and of the operands."""
    b_0, of_total = first.b_0, None
    f_0 = None if b_0 is None else on_hidden(operands.w_m, b_0)
    wanted = wanted._replace(table=True, f_0=b_0 is not None)
    if effective.table is None or effective.w_m is None:
        room = saved.activations
        of_w_s, grads = _native_whole.run_backward(operands, first, plan, room, f_0, incoming, wanted, readout)
    else:
        operands, first, _ = _added_up(operands, first, effective.total)
        made = operands._replace(table=effective.table, w_m=effective.w_m, f_0=f_0)
        grads = run_backward(made, plan, saved, incoming, wanted, readout)
        if grads.table is None:
            raise RuntimeError("a table without a gradient")
        of_weight, of_w_s, of_total = table_backward(
            operands.w_m, first.w_s, first.routing, present(first.total), grads.table, grads.w_m, incoming.b,
            rectify=plan.rectifies, wants_total=wants_total,
        )  # fmt: skip
        grads = grads._replace(table=None, w_m=of_weight)
    of_b_0 = None
    if b_0 is not None and grads.f_0 is not None:
        of_b_0 = through_hidden(operands.w_m, b_0, grads.f_0, grads.w_m)
        if incoming.b is not None and operands.kappa_b is not None:
            of_b_0 += remaining(operands.kappa_b, incoming.b, plan.num_steps, operands.lengths)
    return of_w_s, of_total, of_b_0, grads._replace(f_0=None)


def _of_operands(grads: Operands, operands: Operands) -> list[Tensor | None]:
    """In the order in which they are differentiated by, the threshold's in its shape."""
    if grads.threshold is not None and operands.threshold is not None and not operands.threshold.ndim:
        grads = grads._replace(threshold=grads.threshold.sum())
    fixed: tuple[Any, ...] = grads[FIRST_DIFFERENTIATED:NUM_FIXED]
    return [*fixed, *grads.layers]


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

    return (
        None,
        None,
        None,
        None,
        *differentiable_gradients(again, tuple(differentiated), ctx.needs_input_grad[4:], grads),
    )
