"""Sequences inside compiled networks: their loops over time run as they are, so compiling takes no longer for longer
sequences.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from elm_neuro import ALIF, ELM, SpikingELM, backends
from tests.tolerances import assert_close

LAYERS: list[Callable[[], torch.nn.Module]] = [
    lambda: ELM(4, 3, num_memory=2),
    lambda: SpikingELM(ELM(4, 3, num_memory=2), threshold=0.0, reset="zero"),
    lambda: ALIF(4, 3, recurrent=True),
]


class Network(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.before, self.layer = torch.nn.Linear(4, 4), layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.layer(torch.relu(self.before(x)))
        return y.sum(-1)


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # torch's compiler at a graph break
def test_layers_in_a_compiled_network_compute_the_same_and_are_not_unrolled(
    make: Callable[[], torch.nn.Module],
) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    network = Network(make())
    x = torch.rand(2, 200, 4)
    largest = 0

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        nonlocal largest
        largest = max(largest, len(graph.graph.nodes))
        return graph.forward

    compiled = torch.compile(network, backend=count)
    y = compiled(x)
    assert_close(y, network(x))
    y.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert largest < 200  # unrolled, each step would be a node at least
    with backends.use("reference"):
        assert_close(compiled(x), y)
