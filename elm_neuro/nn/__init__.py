"""Shells that own parameters: cells and layers of neurons."""

from elm_neuro.functional import ALIFState, ELMState
from elm_neuro.nn._alif import ALIF, LIF, ALIFCell
from elm_neuro.nn._alif_config import ALIFConfig
from elm_neuro.nn._cell import ELMCell
from elm_neuro.nn._config import ELMConfig, suggest
from elm_neuro.nn._elm import ELM, BranchELM, ELMTraces
from elm_neuro.nn._layer import Layer, check_layer, is_layer, output_shape
from elm_neuro.nn._lengths import last_output
from elm_neuro.nn._spike_output import SpikeOutput
from elm_neuro.nn._spiking import SpikingELM, SpikingELMConfig, SpikingELMState

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
    "ELMState",
    "ELMTraces",
    "Layer",
    "SpikeOutput",
    "SpikingELM",
    "SpikingELMConfig",
    "SpikingELMState",
    "check_layer",
    "is_layer",
    "last_output",
    "output_shape",
    "suggest",
]
