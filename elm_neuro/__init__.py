"""The Expressive Leaky Memory neuron for spiking neural networks: exact, fast, at home in other people's libraries."""

from typing import TYPE_CHECKING

from elm_neuro import backends, pretrained
from elm_neuro._later import imported_later
from elm_neuro.events import SpikeEvents
from elm_neuro.nn import (
    ELM,
    ALIFConfig,
    ALIFState,
    BranchELM,
    ELMCell,
    ELMConfig,
    ELMState,
    NetworkState,
    SpikeOutput,
    SpikingELM,
    SpikingELMState,
    last_output,
    suggest,
)

if TYPE_CHECKING:
    from elm_neuro import checkpoints
    from elm_neuro.nn import ALIF, LIF, ALIFCell, ELMNetwork, ELMNetworkClassifier

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

if not TYPE_CHECKING:
    # the authors' files, and layers that an ELM does without
    _LATER = dict.fromkeys(("ALIF", "LIF", "ALIFCell", "ELMNetwork", "ELMNetworkClassifier"), "elm_neuro.nn")
    __getattr__, __dir__ = imported_later(__name__, {**_LATER, "checkpoints": "elm_neuro.checkpoints"})
