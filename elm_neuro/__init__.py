"""The Expressive Leaky Memory neuron for spiking neural networks: exact, fast, at home in other people's libraries."""

from typing import TYPE_CHECKING

from elm_neuro import backends, pretrained
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

if TYPE_CHECKING:
    from elm_neuro import checkpoints

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

if not TYPE_CHECKING:  # a type checker shall know every name

    def __getattr__(name: str) -> object:
        if name == "checkpoints":  # the authors' files, imported for who asks: a neuron needs none
            import elm_neuro.checkpoints

            return elm_neuro.checkpoints
        raise AttributeError(f"module 'elm_neuro' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
