"""Saved tensors that come back lying otherwise, for the kernels run on the CPU."""

from __future__ import annotations

import pytest

from tests.backends.cuda.fake_driver import FakeDriver
from tests.backends.saved_tensors import HOOKS, INPUTS, LAYERS, come_back_otherwise


@pytest.mark.grid(every=4)
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "ALIF, blocks"])
def test_gradients_are_the_same_where_saved_tensors_come_back_lying_otherwise(
    fake_driver: FakeDriver, name: str, kind: str, hook: str
) -> None:
    come_back_otherwise(name, kind, hook, "cuda")
