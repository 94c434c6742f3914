"""The equations: pure functions of tensors, states as named tuples."""

from elm_neuro.functional._alif import ALIFParameters, ALIFState, alif_step
from elm_neuro.functional._elm import (
    ELMParameters,
    ELMState,
    branch_update,
    elm_step,
    memory_proposal,
    memory_update,
    scaled_tanh,
    zero_state,
)
from elm_neuro.functional._network import (
    NetworkParams,
    NetworkRule,
    NetworkState,
    network_step,
    relu_squared,
    zero_network_state,
)
from elm_neuro.functional._neuronio import SOMA_BIAS_MV, SOMA_CAP_MV, SOMA_SCALE_MV
from elm_neuro.functional._routing import branch_input, branch_matrix, routing_index
from elm_neuro.functional._spike import ATan, Boxcar, FastSigmoid, MultiGaussian, Sigmoid, Surrogate, bernoulli_spike
from elm_neuro.functional._timescales import bounded_tau, decay, memory_gain, proto_tau, spaced_tau
from elm_neuro.functional._wiring import Wiring, full_wiring, random_wiring, small_world_wiring, window_wiring

__all__ = [
    "SOMA_BIAS_MV",
    "SOMA_CAP_MV",
    "SOMA_SCALE_MV",
    "ALIFParameters",
    "ALIFState",
    "ATan",
    "Boxcar",
    "ELMParameters",
    "ELMState",
    "FastSigmoid",
    "MultiGaussian",
    "NetworkParams",
    "NetworkRule",
    "NetworkState",
    "Sigmoid",
    "Surrogate",
    "Wiring",
    "alif_step",
    "bernoulli_spike",
    "bounded_tau",
    "branch_input",
    "branch_matrix",
    "branch_update",
    "decay",
    "elm_step",
    "full_wiring",
    "memory_gain",
    "memory_proposal",
    "memory_update",
    "network_step",
    "proto_tau",
    "random_wiring",
    "relu_squared",
    "routing_index",
    "scaled_tanh",
    "small_world_wiring",
    "spaced_tau",
    "window_wiring",
    "zero_network_state",
    "zero_state",
]
