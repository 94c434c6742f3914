"""``reset_parameters``, as torch's own layers have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from elm_neuro import ALIF, ELM, LIF, BranchELM, ELMNetwork, SpikingELM
from elm_neuro.nn import ALIFCell, ELMCell
from tests.nn.conformance.kinds import OURS, of_kinds, run

INDEX = torch.tensor([[0, 1, -1], [2, 1, 0]])
LAYERS: dict[str, Callable[..., Any]] = {
    "ELM": lambda: ELM(3, 2, num_memory=4, learn_tau_m=True),
    "population": lambda: ELM(3, 2, num_memory=4, num_neuron=2, learn_w_s=False),
    "drawn branches": lambda: BranchELM(9, 2, 4, num_branch=3, num_synapse_per_branch=5, routing="random"),
    "given branches": lambda: BranchELM(3, 2, 4, num_branch=2, num_synapse_per_branch=3, routing=INDEX),
    "ELM cell": lambda: ELMCell(3, 2, num_memory=4, tau_s=(1.0, 2.0, 3.0)),
    "ALIF": lambda: ALIF(3, 2, recurrent=True),
    "LIF": lambda: LIF(3, 2),
    "ALIF cell": lambda: ALIFCell(3, 2),
    "network": lambda: ELMNetwork(3, 4, num_branch=3, num_synapse_per_branch=2),
}


def numbers(module: nn.Module) -> dict[str, Tensor]:
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors}


def again(part: Any) -> None:
    if hasattr(part, "reset_parameters"):
        part.reset_parameters()


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_drawn_anew_is_the_one_that_is_constructed(name: str) -> None:
    layer = LAYERS[name]().double()
    tensors = numbers(layer)
    places = {key: tensor.data_ptr() for key, tensor in layer.named_parameters()}
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(5)
    layer.reset_parameters()
    torch.manual_seed(5)
    expected = numbers(LAYERS[name]().double())
    found = numbers(layer)
    for key, wanted in expected.items():
        torch.testing.assert_close(found[key], wanted, rtol=1e-6, atol=0.0)
    assert {key: tensor.data_ptr() for key, tensor in layer.named_parameters()} == places
    assert any(not torch.equal(found[key], tensor) for key, tensor in tensors.items())
    if name == "given branches":
        assert torch.equal(layer.cell.input_to_synapse_indices, INDEX)


@of_kinds(OURS)
def test_the_loop_over_all_modules_draws_every_layer_anew(name: str) -> None:
    torch.manual_seed(0)
    module = OURS[name]()
    before = numbers(module)
    run(name, module)  # what a backend keeps of the old numbers must go
    module.apply(again)
    after = numbers(module)
    assert any(not torch.equal(after[key], tensor) for key, tensor in before.items() if key.endswith("weight"))
    torch.manual_seed(1)
    fresh = OURS[name]()
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(run(name, module), run(name, fresh))


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "given branches"])
def test_a_layer_from_meta_is_filled_without_a_file(name: str) -> None:
    with torch.device("meta"):
        layer = LAYERS[name]()
    layer.to_empty(device="cpu")
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            tensor.data.fill_(torch.nan)
    torch.manual_seed(5)
    layer.reset_parameters()
    torch.manual_seed(5)
    expected = numbers(LAYERS[name]())
    assert {key: torch.equal(tensor, expected[key]) for key, tensor in numbers(layer).items()} == dict.fromkeys(
        expected, True
    )


def test_an_index_that_nobody_has_filled_is_asked_for() -> None:
    layer = LAYERS["given branches"]().to("meta").to_empty(device="cpu")
    with pytest.raises(ValueError, match="routing must be loaded before weights are drawn anew"):
        layer.reset_parameters()


def test_thresholds_that_learn_start_again() -> None:
    layer = SpikingELM(ELM(3, 2, num_memory=2), threshold=torch.tensor([0.1, 0.2]), learn_threshold=True)
    with torch.no_grad():
        layer.output.threshold.fill_(7.0)
    layer.apply(again)
    torch.testing.assert_close(layer.output.threshold.detach(), torch.tensor([0.1, 0.2]))


def test_pruned_weights_stay_pruned_and_those_made_of_others_are_named() -> None:
    layer = ELM(3, 2, num_memory=4)
    prune.random_unstructured(layer.cell.w_y, "weight", 0.5)
    mask = layer.cell.w_y.weight_mask.clone()
    before = layer.cell.w_y.weight_orig.detach().clone()
    layer.reset_parameters()
    layer(torch.rand(1, 2, 3))
    assert torch.equal(layer.cell.w_y.weight_mask, mask)
    assert not torch.equal(layer.cell.w_y.weight_orig, before)
    assert not layer.cell.w_y.weight[mask == 0].any()
    parametrizations.weight_norm(layer.cell.mlp[0])
    with pytest.raises(
        RuntimeError, match=r"mlp\.0\.weight must be a parameter to be drawn anew, got one that is made"
    ):
        layer.reset_parameters()
