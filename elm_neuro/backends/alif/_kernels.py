"""What the kernels compute, on whatever device."""

from __future__ import annotations

from typing import Any

from elm_neuro.functional import ALIFParameters, ATan, Boxcar, FastSigmoid, MultiGaussian, Sigmoid

# Surrogates whose slope the kernels compute from the class's fields; native/api.h numbers them.
KERNEL_SURROGATES: dict[type[Any], int] = {ATan: 1, FastSigmoid: 2, Boxcar: 3, MultiGaussian: 4, Sigmoid: 5}


def reason_of_kernels(params: ALIFParameters) -> str | None:
    """Why no kernel, of whatever device, computes this layer's gradient; None where one does."""
    if type(params.surrogate) not in KERNEL_SURROGATES:
        known = ", ".join(kind.__name__ for kind in KERNEL_SURROGATES)
        return f"it knows the surrogates {known}, got {params.surrogate!r}"
    return None
