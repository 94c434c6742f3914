"""Leaky integration of a whole sequence without a loop over its steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.parts._twice import differentiable_once

BLOCK = 32  # steps that one triangular matrix integrates at a time; 32 was fastest on CPUs without a compiled kernel


def leaky_filter(v: Tensor, kappa: Tensor, initial: Tensor) -> Tensor:
    r"""First-order filter over time, :math:`f_t = \kappa f_{t-1} + v_t`, as blocks of triangular Toeplitz matrices.

    Args:
        v: input, (batch, time, ..., channel).
        kappa: decay per step, () or (channel,).
        initial: :math:`f_{-1}`, (batch, ..., channel).

    Returns:
        The filtered input, shape of `v`.

    >>> leaky_filter(torch.ones(1, 3, 1), torch.tensor(0.5), torch.zeros(1, 1)).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    filtered: Tensor = _LeakyFilter.apply(v, kappa, initial)  # type: ignore[no-untyped-call]
    return filtered


class _LeakyFilter(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, kappa: Tensor, initial: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        out = _integrate(v, kappa, initial, reverse=False)
        ctx.save_for_backward(kappa, *((initial, out) if ctx.needs_input_grad[1] else ()))
        return out

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        kappa, *kept = ctx.saved_tensors
        grad_v = _integrate(grad, kappa, None, reverse=True)
        return grad_v, decay_gradient(grad_v, kappa, *kept) if kept else None, kappa * grad_v[:, 0]


def decay_gradient(grad_v: Tensor, kappa: Tensor, initial: Tensor | None, out: Tensor) -> Tensor:
    """Gradient of the decay: of each step, what came before it times the gradient of what arrives at it."""
    total = (grad_v[:, 1:] * out[:, :-1]).sum_to_size(kappa.shape)
    if initial is not None and out.shape[1]:
        total += (grad_v[:, 0] * initial).sum_to_size(kappa.shape)
    return total


def _integrate(v: Tensor, kappa: Tensor, initial: Tensor | None, *, reverse: bool) -> Tensor:
    """The filter, or with `reverse` its transpose ``g_t = v_t + kappa * g_{t+1}``."""
    shape = v.shape
    batch, num_steps, channel = shape[0], shape[1], shape[-1]
    if num_steps * batch == 0:
        return v.clone()
    kappa = kappa.to(v.dtype)
    if kappa.ndim and v.ndim > 3:  # a neuron axis: the same time constants for each
        kappa = kappa.expand(*shape[2:-1], channel).flatten()
    v = v.reshape(batch, num_steps, -1)
    block = min(BLOCK, num_steps)
    num_blocks = -(-num_steps // block)
    if num_blocks * block != num_steps:
        v = torch.nn.functional.pad(v, (0, 0, 0, num_blocks * block - num_steps))
    v = v.view(batch, num_blocks, block, v.shape[-1])

    step = torch.arange(block, device=v.device)
    lag = step[:, None] - step
    power = kappa[..., None, None] ** lag.clamp(min=0) * (lag >= 0)  # ([channel,] block, block)
    if reverse:
        power = power.mT
    out = torch.matmul(power, v) if kappa.ndim == 0 else torch.einsum("cij,bnjc->bnic", power, v).contiguous()

    steps_to_carry = (block - step) if reverse else (step + 1)
    reach = kappa ** steps_to_carry[:, None]  # (block, channel or 1): what is left of the neighbouring block's end
    over_block = kappa**block
    carry = None if initial is None else initial.reshape(batch, -1)
    for index in range(num_blocks - 1, -1, -1) if reverse else range(num_blocks):
        ending = out[:, index, 0 if reverse else -1]
        following = ending.clone() if carry is None else torch.addcmul(ending, over_block, carry)
        if carry is not None:
            out[:, index].addcmul_(reach, carry[:, None])
        carry = following
    return out.view(batch, num_blocks * block, -1)[:, :num_steps].reshape(shape)
