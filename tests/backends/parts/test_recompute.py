"""Long sequences in bounded memory."""

from __future__ import annotations

import pytest
import torch

from elm_neuro import ELM
from tests.backends.equal_cases import FAST
from tests.tolerances import assert_close


@pytest.mark.parametrize("backend", FAST)
def test_recomputing_holds_less_memory_and_gives_the_same_gradients(backend: str) -> None:
    neuron = ELM(16, 3, num_memory=20, backend=backend)
    x = torch.nn.functional.one_hot(torch.randint(16, (2, 400)), 16).float()
    saved = {}
    gradients = {}
    for every in (None, 20):
        neuron.recompute_every = every
        neuron.zero_grad()
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y, _ = neuron(x)
        saved[every] = sum(sizes.values())
        y.square().sum().backward()
        gradients[every] = [p.grad.clone() for p in neuron.parameters() if p.grad is not None]
    assert saved[20] < saved[None] / 3
    for a, b in zip(gradients[None], gradients[20], strict=True):
        assert_close(a, b, scale=10.0)
