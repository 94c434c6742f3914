"""A small neuron to be saved, and what makes a loaded one the same."""

from __future__ import annotations

from typing import Any

import torch

from elm_neuro import ELM, BranchELM


def small(**options: Any) -> BranchELM:
    torch.manual_seed(0)
    return BranchELM(6, 2, num_memory=3, num_branch=3, num_synapse_per_branch=4, **options)


def assert_same(found: ELM, expected: ELM) -> None:
    assert type(found) is type(expected)
    assert found.config == expected.config
    ours, theirs = expected.state_dict(), found.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert theirs[name].dtype == tensor.dtype
        assert torch.equal(theirs[name], tensor), name
    assert [(name, p.requires_grad) for name, p in found.named_parameters()] == [
        (name, p.requires_grad) for name, p in expected.named_parameters()
    ]
    assert [name for name, _ in found.named_buffers()] == [name for name, _ in expected.named_buffers()]
