"""The native pass inside torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from elm_neuro import ELM
from tests.backends.native_cases import (
    native,
)
from tests.tolerances import assert_close


@native
@pytest.mark.parametrize(
    "options",
    [{}, {"num_neuron": 2}, {"tau_s": tuple(1.0 + i for i in range(80))}, {"num_memory": 60, "activation": "silu"}],
)
@pytest.mark.parametrize("learned_input", [False, True])
def test_a_compiled_network_has_no_graph_break_and_the_same_gradients(
    options: dict[str, Any], learned_input: bool
) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    neuron = ELM(80, 3, **{"num_memory": 4, **options})
    before = torch.nn.Linear(80, 80)

    def run(x: torch.Tensor) -> torch.Tensor:
        y, state = neuron(torch.relu(before(x)) if learned_input else x)
        return y.square().sum() + state.b.sum() + state.m.sum()

    x = (torch.rand(3, 50, 80) < 0.05).float()
    leaves = [*neuron.parameters(), *(before.parameters() if learned_input else ())]
    loss = run(x)
    expected = torch.autograd.grad(loss, leaves)
    for sparse_input in ("auto", "off") if learned_input else ("auto", "on", "off"):
        torch._dynamo.reset()
        neuron.sparse_input = sparse_input
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        assert_close(compiled(x), loss)
        for got, wanted in zip(torch.autograd.grad(compiled(x), leaves), expected, strict=True):
            assert_close(got, wanted, scale=10.0)


@native
def test_compiled_operators_refuse_second_derivatives() -> None:
    torch._dynamo.reset()
    neuron = ELM(3, 1, num_memory=2, backend="native")
    x = torch.rand(1, 4, 3, requires_grad=True)
    compiled = torch.compile(lambda x: neuron(x)[0].sum(), backend="eager")
    (gradient,) = torch.autograd.grad(compiled(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="elm_neuro"):
        gradient.sum().backward()
