"""Shells that own parameters: cells and layers of neurons."""

from elm_neuro.functional import ALIFState, ELMState
from elm_neuro.nn._alif import ALIF, LIF, ALIFCell
from elm_neuro.nn._cell import ELMCell
from elm_neuro.nn._config import ELMConfig, suggest
from elm_neuro.nn._elm import ELM, BranchELM, ELMTraces, last_output
from elm_neuro.nn._spiking import SpikeOutput, SpikingELM, SpikingELMState

__all__ = [
    "ALIF",
    "ELM",
    "LIF",
    "ALIFCell",
    "ALIFState",
    "BranchELM",
    "ELMCell",
    "ELMConfig",
    "ELMState",
    "ELMTraces",
    "SpikeOutput",
    "SpikingELM",
    "SpikingELMState",
    "last_output",
    "suggest",
]
