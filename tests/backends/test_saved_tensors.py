"""``torch.autograd.graph.saved_tensors_hooks``, as offloading and compression of activations use them."""

from __future__ import annotations

import pytest

from tests.backends.native_cases import native
from tests.backends.saved_tensors import HOOKS, INPUTS, LAYERS, come_back_otherwise


@pytest.mark.grid(every=2)
@pytest.mark.parametrize("backend", [pytest.param("native", marks=native), "torch"])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_the_same_where_saved_tensors_come_back_lying_otherwise(
    name: str, kind: str, hook: str, backend: str
) -> None:
    come_back_otherwise(name, kind, hook, backend)
