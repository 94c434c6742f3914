"""``torch.autograd.graph.saved_tensors_hooks``, as offloading and compression of activations use them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.backends.native_cases import native
from tests.backends.saved_tensors import HOOKS, INPUTS, LAYERS, come_back_otherwise, given, gradients


@pytest.mark.grid(every=2)
@pytest.mark.parametrize("backend", [pytest.param("native", marks=native), "torch"])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_the_same_where_saved_tensors_come_back_lying_otherwise(
    name: str, kind: str, hook: str, backend: str
) -> None:
    come_back_otherwise(name, kind, hook, backend)


@pytest.mark.parametrize("backend", [pytest.param("native", marks=native), "torch"])
@pytest.mark.parametrize("kind", ["sparse", "events", "dense"])
@pytest.mark.parametrize("name", ["ELM", "BranchELM", "population", "recomputed"])
def test_gradients_are_about_the_same_where_saved_tensors_are_narrowed(name: str, kind: str, backend: str) -> None:
    """As who compresses activations does with whatever is in floating point."""

    def narrowed(tensor: Tensor) -> Tensor:
        return tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor

    torch.manual_seed(0)
    layer, x = LAYERS[name](), given(kind)
    layer.backend = backend
    wanted = gradients(layer, x)
    with torch.autograd.graph.saved_tensors_hooks(
        narrowed, lambda tensor: tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    ):
        found = gradients(layer, x)
    for grad, exact in zip(found, wanted, strict=True):
        assert (grad - exact).norm() <= 0.1 * exact.norm()
