"""What has no graph on `cuda`: its kernels run on the CPU."""

from __future__ import annotations

import pytest

from tests.backends.cuda.fake_driver import FakeDriver
from tests.backends.elm.frozen_cases import KINDS, LEARNS, hand_on, learn_one_thing


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_who_trains_the_readout_alone_hands_the_state_on(fake_driver: FakeDriver, kind: str, num_steps: int) -> None:
    hand_on(kind, 0.5, num_steps, "cuda")


@pytest.mark.parametrize("learns", LEARNS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_one_thing_alone_learns_is_the_references(fake_driver: FakeDriver, kind: str, learns: str) -> None:
    learn_one_thing(kind, learns, 4, "cuda")
