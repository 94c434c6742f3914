"""The scan over time of (adaptive) leaky integrate-and-fire layers, a backend a file."""

from elm_neuro.backends.alif._backend import ALIFBackend
from elm_neuro.backends.alif._scan import OPERATOR, scan

__all__ = ["OPERATOR", "ALIFBackend", "scan"]
