"""The branch traces before a pass whose filter runs on the hidden units: what they are there, and what of them is left
at each sample's end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.backends.elm._torch import matvec


def on_hidden(weight: Tensor, b_0: Tensor) -> Tensor:
    """What the traces, (batch, [num_neuron,] num_branch), add up to through the first layer, (batch, [num_neuron,]
    hidden), by its weight, ([num_neuron,] hidden, num_branch + num_memory).
    """
    return matvec(weight[..., : b_0.shape[-1]], b_0).contiguous()


def remaining(kappa_b: Tensor, b_0: Tensor, num_steps: int, lengths: Tensor | None) -> Tensor:
    """What is left of the traces, or of a gradient by what is left, after each sample's last step."""
    age = num_steps if lengths is None else lengths.view(-1, *[1] * (b_0.ndim - 1))
    return kappa_b**age * b_0


def through_hidden(weight: Tensor, b_0: Tensor, grad_f_0: Tensor, of_weight: Tensor) -> Tensor:
    """Gradient of the traces from that of :func:`on_hidden`; what comes of them is added to the weight's."""
    w_b, of_w_b = weight[..., : b_0.shape[-1]], of_weight[..., : b_0.shape[-1]]
    if w_b.ndim == 2:
        of_w_b += grad_f_0.mT @ b_0
        return grad_f_0 @ w_b
    of_w_b += torch.einsum("bnf,bnj->nfj", grad_f_0, b_0)
    return torch.einsum("bnf,nfj->bnj", grad_f_0, w_b)
