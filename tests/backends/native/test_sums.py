"""Sums by which layers see NaN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elm_neuro.backends.native import _library, _sums
from elm_neuro.backends.native._sums import sum_of, sum_of_last_step


@given(
    shape=st.lists(st.integers(1, 19), min_size=3, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    order=st.sampled_from(["as it is", "time first", "apart"]),
)
def test_a_record_is_added_up_at_its_end(shape: list[int], dtype: torch.dtype, order: str) -> None:
    y = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if order == "time first":
        y = y.transpose(0, 1).contiguous().transpose(0, 1)
    elif order == "apart":
        y = torch.stack((y, y), -1)[..., 0]
    rel = 0.1 if dtype == torch.bfloat16 else 1e-5
    assert sum_of_last_step(y) == pytest.approx(y[:, -1].double().sum().item(), rel=rel, abs=rel * y[:, -1].numel())
    assert sum_of(y) == pytest.approx(y.double().sum().item(), rel=rel, abs=rel * y.numel() / 10)


@pytest.mark.parametrize("missing", [None, "not built"])
def test_one_nan_is_seen_wherever_it_is(missing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sums._library, "missing", lambda: missing or _library._missing)
    for at in range(3 * 17):
        y = torch.zeros(3, 4, 17)
        y[at // 17, -1, at % 17] = math.nan
        assert math.isnan(sum_of_last_step(y)) and math.isnan(sum_of(y))
        assert sum_of_last_step(y[:, :3]) == 0.0


def test_large_numbers_do_not_overflow_in_a_sum() -> None:
    assert sum_of(torch.full((4,), 3e38)) == pytest.approx(1.2e39) or _library.missing()


def test_nothing_adds_up_to_nothing() -> None:
    assert sum_of(torch.zeros(0, 3)) == 0.0 and sum_of_last_step(torch.zeros(0, 2, 3)) == 0.0
