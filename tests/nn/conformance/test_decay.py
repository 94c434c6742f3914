"""Weight decay leaves time constants, synapses, decays of membranes and thresholds where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from elm_neuro import ALIF, ELM, SpikingELM
from elm_neuro.nn import parameter_groups
from tests.nn.conformance.kinds import OURS, made, of_kinds

KEPT = ("_proto_w_s", "_proto_tau_m", "beta", "p", "b", "threshold", "graded_factor", "graded_spikes_factor")


@of_kinds(OURS)
@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adam])
def test_without_a_gradient_nothing_of_a_neuron_drifts(name: str, make: Any) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(made(name)))
    before = {key: value.detach().clone() for key, value in net.named_parameters()}
    groups = parameter_groups(net, weight_decay=0.1)
    assert sum(len(group["params"]) for group in groups) == len(before)
    optimizer = make(groups, lr=0.1)
    for _ in range(20):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    for key, value in net.named_parameters():
        if key.rpartition(".")[2] in KEPT:
            assert torch.equal(value, before[key]), key
        elif make is not torch.optim.Adam and before[key].any():
            assert float(value.detach().abs().sum()) < float(before[key].abs().sum()), key


def test_learned_thresholds_pruned_and_parametrized_parameters_are_kept() -> None:
    net: Any = SpikingELM(ELM(3, 2, num_memory=2), learn_threshold=True, graded_factor=2.0, learn_graded_factor=True)
    prune.identity(net.core.cell, "_proto_w_s")
    parametrize.register_parametrization(net.core.cell, "_proto_tau_m", nn.Identity())
    _, kept = parameter_groups(net, 0.1)
    names = {key for key, value in net.named_parameters() if any(value is one for one in kept["params"])}
    assert names == {
        "core.cell._proto_w_s_orig",
        "core.cell.parametrizations._proto_tau_m.original",
        "output.threshold",
        "output.graded_factor",
    }


def test_shared_parameters_are_in_one_group_once_and_no_decay_is_one_group() -> None:
    one, two = ELM(3, 2, num_memory=2), ELM(3, 2, num_memory=2)
    two.cell._proto_tau_m = one.cell._proto_tau_m
    two.cell.w_y = one.cell.w_y
    net = nn.ModuleList([one, two, ALIF(3, 2)])
    groups = parameter_groups(net, 0.1)
    chosen = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(chosen) == len(set(chosen)) == len(list(net.parameters()))
    (whole,) = parameter_groups(net, 0.0)
    assert [id(one) for one in whole["params"]] == [id(one) for one in net.parameters()]
    with pytest.raises(ValueError, match="weight_decay must not be negative, got -1"):
        parameter_groups(net, -1.0)
    (plain,) = parameter_groups(nn.Linear(3, 2), 0.1)
    assert plain["weight_decay"] == 0.1
