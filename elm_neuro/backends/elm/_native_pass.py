"""The neuron over a sequence in one native pass with its hand-written backward pass: what arrives, the memory
recurrence, the readout, and where there is a threshold the spikes.

Nothing as wide as the hidden units is saved but what the backward pass reads, and of the steps of one part only where
the others are computed again. docs/kernels.md derives what the kernels compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

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
from elm_neuro.backends.parts._twice import differentiable_once

TABLE, W_M = (Operands._fields.index(name) - FIRST_DIFFERENTIATED for name in ("table", "w_m"))
NUM_FIRST = len(FirstLayer._fields)
NO_FIRST = (None,) * NUM_FIRST
TILES = {1 << power: torch.tensor(1 << power, device="cpu") for power in range(6)}


def run(operands: Operands, plan: Plan, first: FirstLayer | None = None) -> Outputs:
    """One pass over a sequence; with `first`, the table is made in it."""
    if torch.is_grad_enabled():
        outputs = _Pass.apply(plan, *(first or NO_FIRST), *operands[:NUM_FIXED], *operands.layers)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return Outputs(*outputs)
    operands = laid_out(operands)
    if first is None:
        return run_forward(operands, plan, save=False)[0]
    table, w_m, arrived = table_forward(operands.w_m.contiguous(), first.laid_out())
    return run_forward(operands._replace(table=table, w_m=w_m), plan, save=False)[0]._replace(arrived=arrived)


def _operands(tensors: Sequence[Any]) -> Operands:
    return Operands._make((*tensors[:NUM_FIXED], tuple(tensors[NUM_FIXED:])))


class _Pass(Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, first = None, None
        operands = laid_out(_operands(tensors[NUM_FIRST:]))
        if tensors[0] is not None:
            weight, first = operands.w_m.contiguous(), FirstLayer._make(tensors[:NUM_FIRST]).laid_out()
            table, w_m, arrived = table_forward(weight, first)
            operands = operands._replace(table=table, w_m=w_m)
        outputs, saved = run_forward(operands, plan, save=any(ctx.needs_input_grad))
        ctx.plan, ctx.num_starts = plan, len(saved.m_starts)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            # the tile too: where torch.utils.checkpoint runs this again, perhaps with another number of threads, it
            # belongs to what is saved then
            TILES[plan.tile],
            None if outputs.spikes is None else outputs.y,
            saved.activations,
            *saved.m_starts,
            *saved.f_starts,
            weight,
            *(first or NO_FIRST),
            *operands[:NUM_FIXED],
            *operands.layers,
        )
        return outputs.y, outputs.spikes, outputs.m_last, None if first is None else arrived

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,
        grad_y: Tensor | None,
        grad_spikes: Tensor | None,
        grad_m_last: Tensor | None,
        grad_arrived: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        tile, readout, activations, *rest = ctx.saved_tensors
        num = ctx.num_starts
        saved = Saved(activations, tuple(rest[:num]), tuple(rest[num : 2 * num]))
        weight, *tensors = rest[2 * num :]
        operands, plan = _operands(tensors[NUM_FIRST:]), ctx.plan._replace(tile=int(tile))
        wanted = Wanted.among(ctx.needs_input_grad[1 + NUM_FIRST + FIRST_DIFFERENTIATED :])
        if weight is not None:
            wanted = wanted._replace(table=True)
        incoming = Incoming(grad_y, grad_spikes, grad_m_last)
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                grads = run_backward(operands, plan, saved, incoming, wanted, readout)
        else:
            grads = run_backward(operands, plan, saved, incoming, wanted, readout)
        of_first: tuple[Tensor | None, ...] = NO_FIRST
        if weight is not None:
            first, wants_total = FirstLayer._make(tensors[:NUM_FIRST]), ctx.needs_input_grad[NUM_FIRST]
            of_first, grads = _through_table(weight, first, grads, grad_arrived, wants_total=wants_total)
        return (None, *of_first, *(None,) * FIRST_DIFFERENTIATED, *grads)


def _through_table(
    weight: Tensor, first: FirstLayer, grads: list[Tensor | None], grad_arrived: Tensor | None, *, wants_total: bool
) -> tuple[tuple[Tensor | None, ...], list[Tensor | None]]:
    """Gradients of the first layer, and those of the operands with that of the whole weight in place of w_m's."""
    grad_table, grad_w_m = grads[TABLE], grads[W_M]
    if grad_table is None or grad_w_m is None:
        raise RuntimeError("a table without a gradient")
    grads[TABLE] = None
    grads[W_M], grad_w_s, grad_total = table_backward(
        weight, first, grad_table, grad_w_m, grad_arrived, wants_total=wants_total
    )
    return (grad_w_s, None, grad_total), grads
