"""How far two computations of the same number may be apart, by the dtype they are made in. One table for all tests."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tolerance(NamedTuple):
    rtol: float
    atol: float


# Sums of about a thousand terms in another order: a few hundred units in the last place; bfloat16 keeps 8 bits.
TOLERANCES = {
    torch.float64: Tolerance(rtol=1e-9, atol=1e-10),
    torch.float32: Tolerance(rtol=1e-4, atol=2e-5),
    torch.bfloat16: Tolerance(rtol=5e-2, atol=5e-2),
}


def assert_close(
    actual: torch.Tensor, expected: torch.Tensor, *, dtype: torch.dtype | None = None, scale: float = 1.0
) -> None:
    """Equal within the table's tolerance for `dtype` (that of `actual`), the absolute one times the size of `expected`
    and `scale`.
    """
    tolerance = TOLERANCES[dtype or actual.dtype]
    size = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual, expected, rtol=tolerance.rtol * scale, atol=tolerance.atol * size * scale, check_dtype=False
    )
