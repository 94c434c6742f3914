"""What the kernels compute, on whatever device."""

from __future__ import annotations

from elm_neuro.backends.alif._kernels import KERNEL_SURROGATES
from elm_neuro.functional import NetworkRule

# As native/api.h numbers them.
KERNEL_ACTIVATIONS = {"relu_squared": 1, "relu": 2, "silu": 3}
KERNEL_OUTPUTS = {"relu": 1, "identity": 2, "spike": 3}


def reason_of_kernels(rule: NetworkRule) -> str | None:
    """Why no kernel, of whatever device, computes such a layer; None where one does."""
    if rule.activation not in KERNEL_ACTIVATIONS:
        return f"it knows the activations {', '.join(KERNEL_ACTIVATIONS)}, got {rule.activation!r}"
    if rule.output == "spike" and type(rule.surrogate) not in KERNEL_SURROGATES:
        known = ", ".join(kind.__name__ for kind in KERNEL_SURROGATES)
        return f"it knows the surrogates {known}, got {rule.surrogate!r}"
    return None
