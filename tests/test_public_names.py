"""The list of public names: whoever changes it changes it here too, and says so in the changelog."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

NAMES = {
    "elm_neuro": (
        "ALIF ALIFCell ALIFConfig ALIFState BranchELM ELM ELMCell ELMConfig ELMState LIF SpikeEvents SpikeOutput SpikingELM"
        " SpikingELMState backends checkpoints last_output pretrained suggest"
    ),
    "elm_neuro.nn": (
        "ALIF ALIFCell ALIFConfig ALIFState BranchELM ELM ELMCell ELMConfig ELMState ELMTraces LIF Layer SpikeOutput"
        " SpikingELM SpikingELMConfig SpikingELMState check_layer is_layer last_output output_shape suggest"
    ),
    "elm_neuro.functional": (
        "ALIFParameters ALIFState ATan Boxcar ELMParameters ELMState FastSigmoid MultiGaussian SOMA_BIAS_MV SOMA_CAP_MV"
        " SOMA_SCALE_MV Surrogate alif_step bernoulli_spike bounded_tau branch_input branch_matrix branch_update decay"
        " elm_step memory_gain memory_proposal memory_update proto_tau routing_index scaled_tanh spaced_tau zero_state"
    ),
    "elm_neuro.checkpoints": (
        "NeuronIOPrediction UPSTREAM_URL fetch_upstream from_pretrained from_upstream neuronio_head save_pretrained"
    ),
    "elm_neuro.pretrained": "Kind Saved from_pretrained kinds register save_pretrained",
    "elm_neuro.adapters.snntorch": "ALIF BranchELM Cell ELM ELMSequence Layer patch reset",
    "elm_neuro.adapters.norse": (
        "ALIF ALIFCell ALIFState BranchELM Cell ELM ELMCell Layer SpikingELMState detach suggest"
    ),
}


@pytest.mark.parametrize("module", NAMES)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_public_names_are_the_listed_ones_and_there(module: str) -> None:
    if ".adapters." in module:
        pytest.importorskip(module.rpartition(".")[2])
    found: ModuleType = importlib.import_module(module)
    assert sorted(found.__all__) == sorted(NAMES[module].split())
    assert all(hasattr(found, name) for name in found.__all__)
