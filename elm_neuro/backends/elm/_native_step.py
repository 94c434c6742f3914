"""A single step of few samples: branch traces and the input half of the first layer, then the recurrence.

A table, whose making would cost more than such a step, is not needed: every synapse is read once a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.backends.elm._native_arriving import present
from elm_neuro.backends.elm._native_kernels import run_backward, run_forward
from elm_neuro.backends.elm._native_operands import Incoming, Operands, Outputs, Plan, Saved, Wanted
from elm_neuro.backends.elm._native_table import FirstLayer, backward_of_sums, branch_sums
from elm_neuro.backends.elm._torch import matvec


def forward(operands: Operands, first: FirstLayer, plan: Plan, *, save: bool) -> tuple[Outputs, Saved]:
    """What the step gives, and what its backward pass reads.

    Args:
        operands: of :class:`elm_neuro.backends.elm._native_pass.Inputs`, laid out, but effective; `frames` hold the
            step, (batch, 1, [num_neuron,] input_size).
        first: likewise, without a total.
        plan: of one step.
        save: whether a backward pass will follow.
    """
    b = branch_sums(first.w_s, first.routing, _frame(operands), rectify=plan.rectifies)
    if first.b_0 is not None:
        b.addcmul_(present(operands.kappa_b), first.b_0)
    weight, bias = operands.w_m, present(operands.bias)
    from_branch, w_m = _halves(weight, b)
    u = torch.addmm(bias, b, from_branch.t()) if weight.ndim == 2 else matvec(from_branch, b) + bias
    outputs, saved = run_forward(_of_recurrence(operands, u.unsqueeze(1), w_m), plan, save=save)
    return outputs._replace(b=b), saved


def backward(
    operands: Operands,
    first: FirstLayer,
    plan: Plan,
    saved: Saved,
    b: Tensor,
    incoming: Incoming,
    wanted: Wanted,
    readout: Tensor | None,
) -> tuple[Tensor, Tensor | None, Operands]:
    """Gradients of the synaptic weights, of the traces before and of the operands; that of ``w_m`` is of the first
    layer's whole weight.

    Args:
        operands: as :func:`forward` takes them.
        first: likewise.
        plan: likewise.
        saved: what it left.
        b: branch traces that it gave.
        incoming: gradients of what it gave.
        wanted: which are asked for.
        readout: what it gave, where spikes have a gradient.
    """
    weight = operands.w_m
    from_branch, w_m = _halves(weight, b)
    u = b.new_empty(plan.batch, 1, *weight.shape[:-1])  # whose gradient lies as it does; nobody reads it again
    made = _of_recurrence(operands, u, w_m)
    grads = run_backward(made, plan, saved, incoming, wanted._replace(dense=True, frames=False), readout)
    of_u = present(grads.dense).select(1, 0)
    of_weight = torch.empty_like(weight)
    of_from_branch, of_w_m = _halves(of_weight, b)
    of_w_m.copy_(grads.w_m)
    if weight.ndim == 2:
        torch.mm(of_u.t(), b, out=of_from_branch)
        of_b = of_u @ from_branch
    else:
        of_from_branch.copy_(torch.einsum("bnh,bnj->nhj", of_u, b))
        of_b = torch.einsum("bnh,nhj->bnj", of_u, from_branch)
    if incoming.b is not None:
        of_b += incoming.b
    of_w_s, of_frame = backward_of_sums(
        first.w_s, first.routing, _frame(operands), of_b, wants_total=wanted.frames, rectify=plan.rectifies
    )
    return (
        of_w_s,
        None if first.b_0 is None else present(operands.kappa_b) * of_b,
        grads._replace(
            frames=None if of_frame is None else of_frame.unsqueeze(1), dense=None, bias=of_u.sum(0), w_m=of_weight
        ),
    )


def _frame(operands: Operands) -> Tensor:
    """(batch, [num_neuron,] input_size)"""
    return present(operands.frames).select(1, 0).contiguous()


def _halves(weight: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Views of the first layer's weight: of what comes from the branches, and of the memory's part."""
    num_branch = b.shape[-1]
    return weight[..., :num_branch], weight[..., num_branch:]


def _of_recurrence(operands: Operands, u: Tensor, w_m: Tensor) -> Operands:
    """The operands of the recurrence alone, to which `u` arrives."""
    return operands._replace(kappa_b=None, frames=None, dense=u, bias=None, w_m=w_m)
