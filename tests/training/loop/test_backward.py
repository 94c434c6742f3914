"""Where the backward pass of a training step runs."""

from __future__ import annotations

import threading

import pytest
import torch

pytest.importorskip("lightning")

from elm_neuro.training.loop._backward import BackwardHere


def test_it_runs_in_the_thread_that_asks_for_it() -> None:
    seen = []
    weight = torch.ones(3, requires_grad=True)
    weight.register_hook(
        lambda grad: seen.append((threading.get_ident(), torch._C._is_multithreading_enabled(), grad.sum().item()))
    )
    BackwardHere().backward(2 * weight.sum())
    assert seen == [(threading.get_ident(), False, 6.0)]
    assert torch._C._is_multithreading_enabled()
