"""The ELM's scan over time, a backend a file."""

from elm_neuro.backends.elm._backend import ELMBackend
from elm_neuro.backends.elm._scan import (
    OPERATOR,
    SPARSE_INPUT,
    check_recompute_every,
    check_sparse_input,
    scan,
    spiking_scan,
)
from elm_neuro.backends.parts import _traced as _traced  # torch knows its operators from here on
from elm_neuro.backends.parts._spikes import SpikeRule

__all__ = [
    "OPERATOR",
    "SPARSE_INPUT",
    "ELMBackend",
    "SpikeRule",
    "check_recompute_every",
    "check_sparse_input",
    "scan",
    "spiking_scan",
]
