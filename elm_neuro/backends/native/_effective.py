"""Gradients of what a cell learns from those of the numbers that a step works with, in one call of the library."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from elm_neuro.backends.native import _library


def backward(
    proto_w_s: Tensor,
    proto_tau_m: Tensor,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    wanted: tuple[bool, bool],
    timescales: tuple[tuple[float, float], float, float, str],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `proto_w_s` and `proto_tau_m` from those of w_s, kappa_m and gain; of those not `wanted` None."""
    grad_w_s = torch.empty_like(proto_w_s) if wanted[0] else None
    grad_tau_m = torch.empty_like(proto_tau_m) if wanted[1] else None
    (low, high), delta_t, lambda_, variant = timescales
    args = _library.EffectiveArgs(
        proto_w_s.numel(), proto_tau_m.numel(), variant == "v2", low, high - low, delta_t, lambda_,
        proto_w_s.data_ptr(), proto_tau_m.data_ptr(),
        *map(_library.address, grads), _library.address(grad_w_s), _library.address(grad_tau_m),
    )  # fmt: skip
    _library.library().elm_effective_backward(proto_w_s.dtype == torch.float64, ctypes.byref(args))
    return grad_w_s, grad_tau_m
