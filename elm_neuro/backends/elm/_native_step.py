"""A single step of few samples up to the recurrence: branch traces and the input half of the first layer.

A table, whose making would cost more than such a step, is not needed: every synapse is read once a sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.elm._native_table import backward_of_sums, branch_sums
from elm_neuro.backends.parts._twice import differentiable_once
from elm_neuro.functional import ELMParameters


def first_step(frame: Tensor, params: ELMParameters, b_0: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What the memory recurrence of one step works with.

    Args:
        frame: input of the step, (batch, input_size) or (batch, num_neuron, input_size).
        params: of a neuron whose branches have no nonlinearity.
        b_0: branch traces before the step, (batch, [num_neuron,] num_branch); None for zeros.

    Returns:
        Input half of the first layer with its bias, (batch, [num_neuron,] hidden); the memory's part of its weight,
        ([num_neuron,] hidden, num_memory); branch traces after the step.
    """
    operands = params.mlp_weight[0], params.mlp_bias[0], params.w_s, params.routing, params.kappa_b, frame, b_0
    if not torch.is_grad_enabled():
        return _forward(*operands)
    u, w_m, b = _FirstStep.apply(*operands)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return u, w_m, b


def _forward(
    weight: Tensor,
    bias: Tensor,
    w_s: Tensor,
    routing: Tensor | None,
    kappa_b: Tensor,
    frame: Tensor,
    b_0: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    b = branch_sums(w_s, routing, frame)
    if b_0 is not None:
        b = b.addcmul_(kappa_b, b_0)
    from_branch, w_m = weight.tensor_split((w_s.shape[-2],), dim=-1)
    if weight.ndim == 2:
        return torch.addmm(bias, b, from_branch.t()), w_m, b
    return torch.einsum("bnj,nhj->bnh", b, from_branch) + bias, w_m, b


class _FirstStep(Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor,
        w_s: Tensor,
        routing: Tensor | None,
        kappa_b: Tensor,
        frame: Tensor,
        b_0: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        u, w_m, b = _forward(weight, bias, w_s, routing, kappa_b, frame, b_0)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, w_s, routing, kappa_b, frame, b)
        return u, w_m.contiguous(), b

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any, grad_u: Tensor | None, grad_w_m: Tensor | None, grad_b: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        weight, w_s, routing, kappa_b, frame, b = ctx.saved_tensors
        num_branch, grad_weight, grad_bias = w_s.shape[-2], None, None
        if grad_u is not None:
            grad_weight, grad_bias = torch.zeros_like(weight), grad_u.sum(0)
            from_branch = weight[..., :num_branch]
            if weight.ndim == 2:
                torch.mm(grad_u.t(), b, out=grad_weight[:, :num_branch])
                through = grad_u @ from_branch
            else:
                grad_weight[..., :num_branch] = torch.einsum("bnh,bnj->nhj", grad_u, b)
                through = torch.einsum("bnh,nhj->bnj", grad_u, from_branch)
            grad_b = through if grad_b is None else grad_b + through
        if grad_w_m is not None:
            grad_weight = torch.zeros_like(weight) if grad_weight is None else grad_weight
            grad_weight[..., num_branch:] = grad_w_m
        grad_w_s = grad_frame = grad_b_0 = None
        if grad_b is not None:
            grad_w_s, grad_frame = backward_of_sums(w_s, routing, frame, grad_b, wants_total=ctx.needs_input_grad[5])
            grad_b_0 = kappa_b * grad_b if ctx.needs_input_grad[6] else None
        return grad_weight, grad_bias, grad_w_s, None, None, grad_frame, grad_b_0
