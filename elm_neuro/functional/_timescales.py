"""Time constants and what a time step makes of them: bounds, decay factors, gains."""

from __future__ import annotations

import torch
from torch import Tensor

TAU_FLOOR_MS = (
    1e-6  # upstream clamps time constants here, so that a bound of 0 ms gives a decay of 0 and not a division by zero
)


def decay(tau: Tensor, delta_t: float) -> Tensor:
    r"""Decay factor of one time step, :math:`\kappa = \exp(-\Delta t / \tau)`.

    Source: Spieler et al. 2023, arXiv:2306.16922, equations 2 and 4.

    Args:
        tau: time constants in ms, any shape.
        delta_t: time step in ms.

    Returns:
        Decay factors in [0, 1), shape and dtype of `tau`.

    >>> decay(torch.tensor([5.0, 100.0]), 1.0)
    tensor([0.8187, 0.9900])
    """
    return torch.exp(tau.clamp(min=TAU_FLOOR_MS).reciprocal() * -delta_t)  # what torch computes for -delta_t / tau


def clamped(x: Tensor, low: float, high: float) -> Tensor:
    """`x` brought into the range, whose ends belong to it: what lies on one still learns.

    ``torch.clamp`` passes a gradient there up to torch 2.13 and none from 2.14 on.

    >>> x = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    >>> clamped(x, 0.0, 1.0).sum().backward()
    >>> x.grad
    tensor([0., 1., 1., 1., 0.])
    """
    return torch.where(x < low, low, torch.where(x > high, high, x))


def memory_gain(
    tau_m: Tensor, delta_t: float, *, lambda_: float, variant: str, kappa_m: Tensor | None = None
) -> Tensor:
    r"""Factor on the proposed change of the memory.

    .. math::
        \text{v1: } \lambda (1 - \kappa_m) \qquad
        \text{v2: } 1 - \kappa_\lambda = 1 - \exp(-\lambda \Delta t / \tau_m)

    Source: v1 is equation 4 of arXiv:2306.16922; v2 is upstream's ``expressive_leaky_memory_neuron_v2.py`` at 52e68a6.

    Args:
        tau_m: memory time constants in ms, any shape.
        delta_t: time step in ms.
        lambda_: dimensionless.
        variant: "v1" or "v2".
        kappa_m: ``decay(tau_m, delta_t)`` where it is known already.

    >>> memory_gain(torch.tensor([10.0]), 1.0, lambda_=5.0, variant="v1")
    tensor([0.4758])
    >>> memory_gain(torch.tensor([10.0]), 1.0, lambda_=5.0, variant="v2")
    tensor([0.3935])
    """
    if variant == "v1":  # from the rounded decay, not by expm1: only so is the steady state exactly lambda in float32
        return lambda_ * (1.0 - (decay(tau_m, delta_t) if kappa_m is None else kappa_m))
    if variant == "v2":
        return 1.0 - decay(tau_m, lambda_ * delta_t)
    raise ValueError(f'variant must be "v1" or "v2", got {variant!r}')


def bounded_tau(proto_tau: Tensor, bounds: tuple[float, float]) -> Tensor:
    r"""Time constants between `bounds` from unbounded numbers: :math:`lo + (hi - lo)\,\sigma(proto)`.

    >>> bounded_tau(torch.tensor([-float("inf"), 0.0]), (1.0, 3.0))
    tensor([1., 2.])
    """
    low, high = bounds
    return (high - low) * torch.sigmoid(proto_tau) + low


def proto_tau(tau: Tensor, bounds: tuple[float, float], *, dtype: torch.dtype | None = None) -> Tensor:
    """Inverse of :func:`bounded_tau`, finite in `dtype` even where `tau` lies on a bound.

    A time constant on a bound is moved inside by one part in ``1 / eps`` of the range, `eps` being that of `dtype`:
    upstream's absolute 1e-6 vanishes there in float32 and leaves a unit with an infinite logit and no gradient.

    Args:
        tau: time constants in ms, within `bounds`.
        bounds: lowest and highest time constant in ms; where both are equal the result is 0.
        dtype: floating type of the result, that of `tau` by default.

    >>> proto_tau(torch.tensor([1.0, 1000.0]), (1.0, 1000.0)).isfinite().all()
    tensor(True)
    """
    dtype = dtype or tau.dtype
    low, high = bounds
    if low == high:
        return torch.zeros_like(tau, dtype=dtype)
    eps = torch.finfo(dtype).eps
    fraction = ((tau.double() - low) / (high - low)).clamp(eps, 1.0 - eps)
    return torch.logit(fraction).to(dtype)


def spaced_tau(num: int, init_range: tuple[float, float], spacing: str) -> Tensor:
    """`num` time constants in ms from the low to the high end of `init_range`, in float64; a single one takes the low
    end.

    Args:
        num: how many.
        init_range: lowest and highest in ms; the lowest must be above 0 for "log".
        spacing: "log" (equal ratios) or "linear" (equal differences).

    >>> spaced_tau(3, (1.0, 100.0), "log")
    tensor([  1.,  10., 100.], dtype=torch.float64)
    """
    low, high = (torch.tensor(end, dtype=torch.float64) for end in init_range)
    fraction = torch.linspace(0.0, 1.0, num, dtype=torch.float64) if num > 1 else torch.zeros(num, dtype=torch.float64)
    if spacing == "linear":
        return low + (high - low) * fraction
    if spacing != "log":
        raise ValueError(f'tau_m_spacing must be "log" or "linear", got {spacing!r}')
    if init_range[0] <= 0:
        raise ValueError(f"tau_m_init must start above 0 ms for log spacing, got {init_range[0]}")
    return low * (high / low) ** fraction
