"""The Expressive Leaky Memory neuron for spiking neural networks: exact, fast, at home in other people's libraries."""

from elm_neuro import backends, checkpoints
from elm_neuro.events import SpikeEvents
from elm_neuro.nn import (
    ALIF,
    ELM,
    LIF,
    ALIFCell,
    BranchELM,
    ELMCell,
    ELMConfig,
    ELMState,
    SpikingELM,
    last_output,
    suggest,
)

__version__ = "0.1.0"

__all__ = [
    "ALIF",
    "ELM",
    "LIF",
    "ALIFCell",
    "BranchELM",
    "ELMCell",
    "ELMConfig",
    "ELMState",
    "SpikeEvents",
    "SpikingELM",
    "backends",
    "checkpoints",
    "last_output",
    "suggest",
]
