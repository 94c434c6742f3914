"""Leaky integration of a whole sequence."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_neuro.backends.parts._filter import leaky_filter
from tests.tolerances import assert_close


@settings(max_examples=30, deadline=None)
@given(
    num_steps=st.sampled_from([1, 2, 31, 32, 33, 64, 65, 97]),
    kappa=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3),
    one=st.booleans(),
    neurons=st.booleans(),
)
def test_filter_equals_its_recursion_forward_and_backward(
    num_steps: int, kappa: list[float], one: bool, neurons: bool
) -> None:
    torch.manual_seed(0)
    shape = (2, num_steps, *((4,) if neurons else ()), 3)
    k = torch.tensor(kappa[0] if one else kappa, dtype=torch.float64)
    v, initial = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True),
        torch.randn(2, *shape[2:], dtype=torch.float64, requires_grad=True),
    )
    steps, f = [], initial
    for v_t in v.unbind(1):
        f = k * f + v_t
        steps.append(f)
    expected = torch.stack(steps, 1)
    weight = torch.randn_like(expected)
    result = leaky_filter(v, k, initial)
    assert_close(result, expected)
    for got, wanted in zip(
        torch.autograd.grad((result * weight).sum(), (v, initial)),
        torch.autograd.grad((expected * weight).sum(), (v, initial)),
        strict=True,
    ):
        assert_close(got, wanted)
