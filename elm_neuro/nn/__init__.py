"""Shells that own parameters: cells and layers of neurons."""

from typing import TYPE_CHECKING, Any

import torch

from elm_neuro._later import imported_later
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ALIFState, ATan, Boxcar, ELMState, FastSigmoid, MultiGaussian, NetworkState
from elm_neuro.nn._alif_config import ALIFConfig
from elm_neuro.nn._cell import ELMCell
from elm_neuro.nn._config import ELMConfig, suggest
from elm_neuro.nn._decay import parameter_groups
from elm_neuro.nn._elm import ELM, BranchELM, ELMTraces
from elm_neuro.nn._layer import Layer, check_layer, is_layer, output_shape
from elm_neuro.nn._lengths import last_output
from elm_neuro.nn._network_classifier_config import ELMNetworkClassifierConfig, ELMNetworkClassifierState
from elm_neuro.nn._network_config import ELMNetworkConfig
from elm_neuro.nn._spike_output import SpikeOutput
from elm_neuro.nn._spiking import SpikingELM, SpikingELMConfig, SpikingELMState, restored
from elm_neuro.pretrained._kinds import register_later

if TYPE_CHECKING:
    from elm_neuro.nn._alif import ALIF, LIF, ALIFCell
    from elm_neuro.nn._network import DropoutMasks, ELMNetwork
    from elm_neuro.nn._network_classifier import ELMNetworkClassifier

__all__ = [
    "ALIF",
    "ELM",
    "LIF",
    "ALIFCell",
    "ALIFConfig",
    "ALIFState",
    "BranchELM",
    "DropoutMasks",
    "ELMCell",
    "ELMConfig",
    "ELMNetwork",
    "ELMNetworkClassifier",
    "ELMNetworkClassifierConfig",
    "ELMNetworkClassifierState",
    "ELMNetworkConfig",
    "ELMState",
    "ELMTraces",
    "Layer",
    "NetworkState",
    "SpikeOutput",
    "SpikingELM",
    "SpikingELMConfig",
    "SpikingELMState",
    "check_layer",
    "is_layer",
    "last_output",
    "output_shape",
    "parameter_groups",
    "suggest",
]

# An ELM needs none of these layers: each is imported when it is first asked for, here or by the name in a saved folder.
_LATER = {
    "ALIF": "elm_neuro.nn._alif",
    "LIF": "elm_neuro.nn._alif",
    "ALIFCell": "elm_neuro.nn._alif",
    "ELMNetwork": "elm_neuro.nn._network",
    "ELMNetworkClassifier": "elm_neuro.nn._network_classifier",
}
for _name, _module in _LATER.items():
    register_later(_name, _module)
if not TYPE_CHECKING:
    __getattr__, __dir__ = imported_later(__name__, {**_LATER, "DropoutMasks": "elm_neuro.nn._network"})

# what torch.load(weights_only=True) may make: plain data, checked where it is made
_DATA: list[Any] = [ALIFConfig, ALIFState, ELMConfig, ELMState, ELMTraces, SpikeEvents, SpikingELMConfig]
_DATA += [
    ELMNetworkConfig,
    NetworkState,
    ELMNetworkClassifierConfig,
    ELMNetworkClassifierState,
    SpikingELMState,
    ATan,
    Boxcar,
    FastSigmoid,
    MultiGaussian,
    restored,
]
torch.serialization.add_safe_globals(_DATA)
