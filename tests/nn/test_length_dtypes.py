"""Lengths may be integers of any width: torch takes uint8 for a mask, does not index by int16, compares no uint16."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from elm_neuro import ELM, last_output
from tests.layers import BATCH, INPUTS, LAYERS
from tests.tolerances import assert_close

DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64]
LENGTHS = torch.tensor([5, 0, 3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_takes_them(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[name](), torch.rand(BATCH, 5, INPUTS)
    _, state = layer(x)
    for before in (None, state):
        wanted, after = layer(x, before, LENGTHS)
        found, found_after = layer(x, before, LENGTHS.to(dtype))
        for one, other in zip((found, *found_after), (wanted, *after), strict=True):
            assert_close(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spiking", [True, False])
@pytest.mark.parametrize("host", ["snntorch", "spikingjelly"])
def test_a_face_takes_them(host: str, spiking: bool, dtype: torch.dtype) -> None:
    pytest.importorskip(host)
    faces = importlib.import_module(f"elm_neuro.adapters.{host}")
    torch.manual_seed(0)
    options: dict[str, Any] = {"output": spiking} if host == "snntorch" else {"step_mode": "m", "spiking": spiking}
    kind = faces.ELMSequence if host == "snntorch" else faces.ELM
    face, x = kind(INPUTS, 2, num_memory=3, **options), torch.rand(5, BATCH, INPUTS)

    def run(lengths: torch.Tensor) -> list[torch.Tensor]:
        if host == "spikingjelly":
            face.reset()
        found = face(x, lengths=lengths)
        return list(found) if isinstance(found, tuple) else [found]

    for one, other in zip(run(LENGTHS.to(dtype)), run(LENGTHS), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_last_output_too(dtype: torch.dtype) -> None:
    y, lengths = torch.rand(3, 5, 2), torch.tensor([5, 1, 3])
    assert torch.equal(last_output(y, lengths.to(dtype)), last_output(y, lengths))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_other_numbers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"lengths must be integers, got {dtype}"):
        last_output(torch.rand(3, 5, 2), torch.ones(3, dtype=dtype))
    with pytest.raises(ValueError, match=rf"lengths must be integers of shape \(3,\), got {dtype}"):
        ELM(INPUTS, 2, num_memory=3)(torch.rand(3, 5, INPUTS), None, torch.ones(3, dtype=dtype))
