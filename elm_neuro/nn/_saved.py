"""What the tensors in a file must agree with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_tau_s(tau_s: Tensor | None, config: float | Sequence[float]) -> None:
    """Refuse synaptic time constants that are not those of the configuration, up to the rounding of the coarsest dtype
    that they may have been kept in.

    Args:
        tau_s: in ms, of a file; None where it has none, which others complain of.
        config: in ms.

    Raises:
        ValueError: they differ.
    """
    if tau_s is None or not tau_s.is_floating_point() or tau_s.is_meta:
        return
    expected = torch.tensor(config, dtype=torch.float64, device=tau_s.device)
    rounding = torch.finfo(torch.bfloat16).eps
    if tau_s.shape == expected.shape and not torch.allclose(tau_s.double(), expected, rtol=rounding, atol=0.0):
        raise ValueError(f"tau_s must be that of the config, {_listed(expected)} ms, got {_listed(tau_s)} ms")


def _listed(times: Tensor) -> str:
    flat = times.flatten()
    return ", ".join(f"{time:g}" for time in flat[:4].tolist()) + (", ..." if flat.numel() > 4 else "")
