"""What the kernels compute, on whatever device."""

from __future__ import annotations

from elm_neuro.backends.parts._surrogates import reason_of_surrogate
from elm_neuro.functional import ALIFParameters


def reason_of_kernels(params: ALIFParameters) -> str | None:
    """Why no kernel, of whatever device, computes this layer's gradient; None where one does."""
    return reason_of_surrogate(params.surrogate)
