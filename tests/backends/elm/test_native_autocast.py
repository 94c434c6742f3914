"""The native pass under autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from elm_neuro import ELM, BranchELM, ELMState, SpikeEvents
from tests.backends.native_cases import (
    native,
)
from tests.tolerances import assert_close


@native
@pytest.mark.parametrize("recompute_every", [None, 7])
@pytest.mark.parametrize(
    "branches", [{}, {"num_branch": 10, "num_synapse_per_branch": 8, "routing": "window"}], ids=["ELM", "Branch-ELM"]
)
def test_autocast_lowers_the_projection_only(branches: dict[str, Any], recompute_every: int | None) -> None:
    torch.manual_seed(0)
    neuron = (BranchELM if branches else ELM)(
        40, 2, num_memory=20, backend="native", recompute_every=recompute_every, **branches
    )
    x = torch.rand(2, 30, 40)
    exact = neuron(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = neuron(x)
    assert y.dtype == torch.bfloat16 and state.m.dtype == state.b.dtype == torch.float32
    assert 0.0 < float((y - exact).detach().abs().max())
    assert_close(y.float(), exact, dtype=torch.bfloat16)
    y.float().square().sum().backward()
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all())
        for p in neuron.parameters()
    )


@native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"tau_s": tuple(1.0 + i for i in range(30))}])
def test_under_autocast_a_state_of_another_dtype_counts_as_what_it_is(
    dtype: torch.dtype, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    neuron, x = ELM(30, 2, num_memory=4, backend="native", **options), (torch.rand(2, 20, 30) < 0.05).float()
    state = ELMState(*(torch.randn(part.shape).to(dtype) for part in neuron.cell.initial_state(2)))
    same = ELMState(*(part.float() for part in state))
    for given in (x, SpikeEvents.from_frames(x)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for one, other in zip(neuron(given, state)[1], neuron(given, same)[1], strict=True):
                assert one.dtype == torch.float32 and torch.equal(one, other)


@native
def test_a_backward_pass_inside_autocast_is_exact() -> None:
    torch.manual_seed(0)
    neuron, x = ELM(40, 2, num_memory=6, backend="native"), torch.randn(3, 25, 40, requires_grad=True)
    leaves = [x, *neuron.parameters()]
    expected = torch.autograd.grad(neuron(x)[0].square().sum(), leaves)
    loss = neuron(x)[0].square().sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for grad, wanted in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
            assert_close(grad, wanted)
