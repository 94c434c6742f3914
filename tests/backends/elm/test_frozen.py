"""A state that depends on nothing that learns has no graph: who trains the readout alone may hand it on for ever."""

from __future__ import annotations

import pytest

from tests.backends.elm.frozen_cases import KINDS, LEARNS, hand_on, learn_one_thing
from tests.backends.equal_cases import BACKENDS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_steps", [1, 2, 40])
@pytest.mark.parametrize("density", [0.05, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_who_trains_the_readout_alone_hands_the_state_on(
    kind: str, density: float, num_steps: int, backend: str
) -> None:
    hand_on(kind, density, num_steps, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_steps", [1, 2, 40])
@pytest.mark.parametrize("learns", LEARNS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_one_thing_alone_learns_is_the_references(kind: str, learns: str, num_steps: int, backend: str) -> None:
    learn_one_thing(kind, learns, num_steps, backend)
