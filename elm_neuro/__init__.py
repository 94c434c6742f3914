"""The Expressive Leaky Memory neuron for spiking neural networks: exact, fast, at home in other people's libraries."""

from elm_neuro import backends, checkpoints, pretrained
from elm_neuro.events import SpikeEvents
from elm_neuro.nn import (
    ALIF,
    ELM,
    LIF,
    ALIFCell,
    ALIFConfig,
    ALIFState,
    BranchELM,
    ELMCell,
    ELMConfig,
    ELMNetwork,
    ELMNetworkClassifier,
    ELMState,
    NetworkState,
    SpikeOutput,
    SpikingELM,
    SpikingELMState,
    last_output,
    suggest,
)

__version__ = "0.1.0"  # the only place: pyproject.toml reads it from here

__all__ = [
    "ALIF",
    "ELM",
    "LIF",
    "ALIFCell",
    "ALIFConfig",
    "ALIFState",
    "BranchELM",
    "ELMCell",
    "ELMConfig",
    "ELMNetwork",
    "ELMNetworkClassifier",
    "ELMState",
    "NetworkState",
    "SpikeEvents",
    "SpikeOutput",
    "SpikingELM",
    "SpikingELMState",
    "backends",
    "checkpoints",
    "last_output",
    "pretrained",
    "suggest",
]
