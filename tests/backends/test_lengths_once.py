"""Lengths on a device are looked at once: looking waits for it. The host's tensors stand for a device's here."""

from __future__ import annotations

import gc

import pytest
import torch

from elm_neuro import ELM
from elm_neuro.backends.parts import _shapes
from elm_neuro.nn._checks import checked_lengths


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    look = _shapes._look
    monkeypatch.setattr(_shapes, "HOST", "none")
    monkeypatch.setattr(_shapes, "_look", lambda lengths: seen.append(lengths) or look(lengths))
    return seen


def test_layers_and_batches_share_one_look(looks: list[torch.Tensor]) -> None:
    lengths, x = torch.tensor([5, 0, 2]), torch.rand(3, 5, 4)
    for _ in range(2):
        hidden, _ = ELM(4, 3)(x, None, lengths)
        ELM(3, 2)(hidden, None, lengths)
    assert len(looks) == 1


def test_what_has_changed_is_looked_at_again(looks: list[torch.Tensor]) -> None:
    lengths, x = torch.tensor([5, 0]), torch.rand(2, 5, 4)
    ELM(4, 3)(x, None, lengths)
    lengths[1] = 6
    with pytest.raises(ValueError, match="between 0 and the 5 steps of x, got 5 to 6"):
        ELM(4, 3)(x, None, lengths)
    with pytest.raises(ValueError, match="between 0 and the 4 steps of x, got 5 to 6"):
        ELM(4, 3)(x[:, :4], None, lengths)  # known, but of another sequence
    assert len(looks) == 2


def test_a_copy_in_another_dtype_is_not_looked_at_again(looks: list[torch.Tensor]) -> None:
    there = checked_lengths(torch.tensor([3, 1], dtype=torch.int32), 2, 3, torch.device("cpu"))
    assert there.dtype == torch.int64 and _shapes.bounds_of(there) == (1, 3)
    assert len(looks) == 1


def test_where_nobody_may_look_nothing_is_refused_or_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shapes, "bounds_of", lambda lengths: None)
    monkeypatch.setattr(_shapes, "HOST", "none")
    there = checked_lengths(torch.tensor([9, -1], dtype=torch.int32), 2, 3, torch.device("cpu"))
    assert there.tolist() == [9, -1] and there not in _shapes._bounds


def test_a_compiled_layer_takes_lengths_of_any_integers() -> None:
    layer, x, lengths = ELM(4, 3, num_memory=2), torch.rand(2, 5, 4), torch.tensor([5, 2], dtype=torch.int32)
    compiled = torch.compile(layer.requires_grad_(False), backend="eager")
    assert torch.equal(compiled(x, None, lengths)[0], layer(x, None, lengths)[0])
    with pytest.raises(ValueError, match="between 0 and the 4 steps of x, got 2 to 5"):
        compiled(x[:, :4], None, lengths)


def test_no_tensor_is_kept_alive(looks: list[torch.Tensor]) -> None:
    lengths = torch.tensor([1, 2])
    before = len(_shapes._bounds)
    _shapes.check_bounds(lengths, 2)
    assert len(_shapes._bounds) == before + 1
    looks.clear()
    del lengths
    gc.collect()
    assert len(_shapes._bounds) == before


def test_tensors_of_inference_mode_have_no_version_and_are_looked_at_each_time(looks: list[torch.Tensor]) -> None:
    with torch.inference_mode():
        lengths = torch.tensor([1, 2])
        for _ in range(2):
            _shapes.check_bounds(lengths, 2)
    assert len(looks) == 2


@pytest.mark.parametrize("lengths", [[-1, 2], [0, 4]])
def test_numbers_outside_are_refused_by_the_operator_too(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"between 0 and the 3 steps of x, got {lengths[0]} to {lengths[1]}"):
        _shapes.check_lengths(torch.tensor(lengths), 2, 3, torch.device("cpu"))
