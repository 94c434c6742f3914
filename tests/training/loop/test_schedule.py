from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from elm_neuro.training.loop._schedule import CosineDecay, check_optimizer


def rates(schedule: Any, optimizer: torch.optim.Optimizer, num: int) -> list[float]:
    found = []
    for _ in range(num):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def sgd(lr: float = 0.3) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_the_rate_follows_torchs_cosine_and_stays_at_nothing(num_steps: int) -> None:
    ours, theirs = sgd(), sgd()
    expected = rates(torch.optim.lr_scheduler.CosineAnnealingLR(theirs, num_steps), theirs, num_steps + 1)
    actual = rates(CosineDecay(ours, num_steps), ours, num_steps + 4)
    assert actual == pytest.approx([*expected, 0.0, 0.0, 0.0], abs=1e-12)


def test_the_rate_warms_up_before_the_cosine_as_torchs_chain_of_both() -> None:
    ours, theirs = sgd(), sgd()
    sched = torch.optim.lr_scheduler
    rising = sched.LinearLR(theirs, 1e-9, total_iters=4)
    chain = sched.SequentialLR(theirs, [rising, sched.CosineAnnealingLR(theirs, 10)], [4])
    assert rates(CosineDecay(ours, 14, 4), ours, 16) == pytest.approx([*rates(chain, theirs, 15), 0.0], abs=1e-8)


@pytest.mark.parametrize("before", ["ours", "torch's"])
def test_a_run_that_is_resumed_with_more_steps_follows_the_longer_cosine(before: str) -> None:
    first, second = sgd(), sgd()
    earlier: Any = (CosineDecay if before == "ours" else torch.optim.lr_scheduler.CosineAnnealingLR)(first, 10)
    rates(earlier, first, 4)
    schedule = CosineDecay(second, 20)
    schedule.load_state_dict(earlier.state_dict())
    second.load_state_dict(first.state_dict())
    schedule.step()
    assert second.param_groups[0]["lr"] == pytest.approx(0.15 * (1 + math.cos(math.pi * 5 / 20)))


def test_an_unknown_optimizer_and_an_impossible_rate_are_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer must be one of \['adam', 'adamax', 'adamw'\], got 'sgd'"):
        check_optimizer("sgd", 0.1)
    for rate in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="learning_rate must be a finite number above 0"):
            check_optimizer("adam", rate)
