"""Which backend runs."""

from __future__ import annotations

import pytest

from elm_neuro import ELM, backends
from tests.backends.equal_cases import FAST


def test_choice_of_backend_by_name_by_context_and_automatically() -> None:
    best = FAST[-1]
    assert set(backends.available()) == {"cuda", "native", "reference", "torch"}
    assert backends.resolve("auto") == best
    neuron, fixed = ELM(3, 1), ELM(3, 1, backend="torch")
    with backends.use("reference"):
        assert "backend='reference'" in repr(neuron) and "backend='torch'" in repr(fixed)
    assert f"backend='{best}'" in repr(neuron)
    with pytest.raises(ValueError, match=r"backend must be .auto. or one of .*, got 'cuda-magic'"):
        ELM(3, 1, backend="cuda-magic")
    with pytest.raises(ValueError, match="backend must be"), backends.use("fpga"):
        pass
