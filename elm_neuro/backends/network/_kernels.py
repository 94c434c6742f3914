"""What the kernels compute, on whatever device."""

from __future__ import annotations

from elm_neuro.backends.parts._surrogates import reason_of_surrogate
from elm_neuro.functional import NetworkRule

# As native/api.h numbers them.
KERNEL_ACTIVATIONS = {"relu_squared": 1, "relu": 2, "silu": 3}
KERNEL_OUTPUTS = {"relu": 1, "identity": 2, "spike": 3}


def reason_of_kernels(rule: NetworkRule) -> str | None:
    """Why no kernel, of whatever device, computes such a layer; None where one does."""
    if rule.activation not in KERNEL_ACTIVATIONS:
        return f"it knows the activations {', '.join(KERNEL_ACTIVATIONS)}, got {rule.activation!r}"
    return reason_of_surrogate(rule.surrogate) if rule.output == "spike" else None
