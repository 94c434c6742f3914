"""The surrogates that kernels know, of whatever device and operator."""

from __future__ import annotations

from typing import Any

from elm_neuro.functional import ATan, Boxcar, FastSigmoid, MultiGaussian, Sigmoid

# Surrogates whose slope the kernels compute from the class's fields; native/api.h numbers them.
KERNEL_SURROGATES: dict[type[Any], int] = {ATan: 1, FastSigmoid: 2, Boxcar: 3, MultiGaussian: 4, Sigmoid: 5}


def reason_of_surrogate(surrogate: object) -> str | None:
    """Why no kernel computes the slope of `surrogate`; None where one does."""
    if type(surrogate) in KERNEL_SURROGATES:
        return None
    return f"it knows the surrogates {', '.join(kind.__name__ for kind in KERNEL_SURROGATES)}, got {surrogate!r}"
