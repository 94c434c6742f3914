"""The ELM's scan over time, a backend a file."""

from elm_neuro.backends.elm._backend import ELMBackend
from elm_neuro.backends.elm._scan import OPERATOR, ORDERED, SPARSE_INPUT, check_sparse_input, scan

__all__ = ["OPERATOR", "ORDERED", "SPARSE_INPUT", "ELMBackend", "check_sparse_input", "scan"]
