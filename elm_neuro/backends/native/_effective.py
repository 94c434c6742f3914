"""What a cell learns, as the numbers that a step works with, in one call of the library and one back."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from elm_neuro.backends.native import _library


def constants(timescales: tuple[tuple[float, float], float, float, str]) -> tuple[float, float, float, float, bool]:
    """Low, width, delta_t, lambda and whether the variant is v2, of bounds, delta_t, lambda and variant."""
    (low, high), delta_t, lambda_, variant = timescales
    return low, high - low, delta_t, lambda_, variant == "v2"


def forward(
    proto_w_s: Tensor, proto_tau_m: Tensor, tau_s: Tensor, constants: tuple[float, float, float, float, bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rectified weights, decay factor and gain of the memory, decay factor of the synapses.

    Args:
        proto_w_s: weights before they are rectified; all tensors are contiguous.
        proto_tau_m: unbounded time constants.
        tau_s: in ms.
        constants: of :func:`constants`.
    """
    w_s, kappa_m, kappa_b = torch.empty_like(proto_w_s), torch.empty_like(proto_tau_m), torch.empty_like(tau_s)
    gain = torch.empty_like(proto_tau_m)
    *scalars, v2 = constants
    args = _library.EffectiveArgs(
        proto_w_s.numel(), proto_tau_m.numel(), tau_s.numel(), v2, *scalars,
        proto_w_s.data_ptr(), proto_tau_m.data_ptr(), tau_s.data_ptr(),
        w_s.data_ptr(), kappa_m.data_ptr(), gain.data_ptr(), kappa_b.data_ptr(),
    )  # fmt: skip
    _library.library().elm_effective_forward(proto_w_s.dtype == torch.float64, ctypes.byref(args))
    return w_s, kappa_m, gain, kappa_b


def backward(
    proto_w_s: Tensor,
    proto_tau_m: Tensor,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    wanted: tuple[bool, bool],
    constants: tuple[float, float, float, float, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `proto_w_s` and `proto_tau_m` from those of w_s, kappa_m and gain; of those not `wanted` None."""
    grad_w_s = torch.empty_like(proto_w_s) if wanted[0] else None
    grad_tau_m = torch.empty_like(proto_tau_m) if wanted[1] else None
    *scalars, v2 = constants
    args = _library.EffectiveArgs(
        proto_w_s.numel(), proto_tau_m.numel(), 0, v2, *scalars,
        proto_w_s.data_ptr(), proto_tau_m.data_ptr(), None, None, None, None, None,
        *map(_library.address, grads), _library.address(grad_w_s), _library.address(grad_tau_m),
    )  # fmt: skip
    _library.library().elm_effective_backward(proto_w_s.dtype == torch.float64, ctypes.byref(args))
    return grad_w_s, grad_tau_m
