"""Every layer and cell, small: what tests of all kinds of them are run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from elm_neuro import ALIF, ELM, LIF, ALIFCell, BranchELM, ELMCell, ELMNetwork, ELMNetworkClassifier, SpikingELM

INPUTS, STEPS, BATCH = 6, 5, 3
SMALL: dict[str, Any] = {"num_memory": 3, "w_s_init": 2.0}
BRANCHES: dict[str, Any] = {"num_memory": 3, "num_branch": 2, "num_synapse_per_branch": 4, "routing": "random"}
NETWORK: dict[str, Any] = {"num_memory": 3, "num_branch": 3, "num_synapse_per_branch": 4, "tau_m_init": (1.0, 20.0)}
NETWORK |= {"input_scale": 1.0, "binarize": False}
Make = Callable[[], nn.Module]

LAYERS: dict[str, Make] = {
    "ELM": lambda: ELM(INPUTS, 2, **SMALL),
    "ELM v2, silu, two layers": lambda: ELM(INPUTS, 2, variant="v2", activation="silu", num_mlp_layers=2, **SMALL),
    "BranchELM": lambda: BranchELM(INPUTS, 2, **BRANCHES),
    "population": lambda: ELM(INPUTS, 2, num_neuron=3, **SMALL),
    "flat population": lambda: ELM(INPUTS, 2, num_neuron=3, flatten_output=True, **SMALL),
    "branch population": lambda: BranchELM(INPUTS, 2, num_neuron=3, **BRANCHES),
    "LIF": lambda: LIF(INPUTS, 4, tau_v=30.0),
    "ALIF": lambda: ALIF(INPUTS, 4, recurrent=True, latency=2.0),
    "ELMNetwork": lambda: ELMNetwork(INPUTS, 4, output="spike", tau_b=5.0, learn_tau_m=True, **NETWORK),
    "ELMNetworkClassifier": lambda: ELMNetworkClassifier(INPUTS, 2, 4, **NETWORK),
    "SpikingELM": lambda: SpikingELM(ELM(INPUTS, 2, **SMALL), threshold=0.1),
    "SpikingELM with reset": lambda: SpikingELM(BranchELM(INPUTS, 2, **BRANCHES), threshold=0.1, reset="subtract"),
    "spiking ALIF": lambda: SpikingELM(ALIF(INPUTS, 4, tau_v=30.0), threshold=0.5, reset="zero"),
}
CELLS: dict[str, Make] = {
    "ELMCell": lambda: ELMCell(INPUTS, 2, **SMALL),
    "population cell": lambda: ELMCell(INPUTS, 2, num_neuron=3, flatten_output=True, **SMALL),
    "ALIFCell": lambda: ALIFCell(INPUTS, 4, recurrent=True, latency=2.0),
    "spiking ELMCell": lambda: SpikingELM(ELMCell(INPUTS, 2, **SMALL), threshold=0.1, reset="zero"),
}
