"""The scan over time of recurrent layers of ELM neurons (the ELM Network), a backend a file."""

from elm_neuro.backends.network._backend import NetworkBackend, NetworkRecord
from elm_neuro.backends.network._scan import OPERATOR, scan

__all__ = ["OPERATOR", "NetworkBackend", "NetworkRecord", "scan"]
