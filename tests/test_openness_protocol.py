"""What a layer of someone else must be, part by part, wherever one is taken."""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from elm_neuro import SpikingELM
from elm_neuro.nn import is_layer
from tests.toy_layer import ToyLayer, ToyState, filtered, spikes_in

INPUTS, OUTPUTS, STEPS, BATCH = 5, 4, 12, 3


@pytest.fixture
def toy() -> ToyLayer:
    torch.manual_seed(0)
    return ToyLayer(INPUTS, OUTPUTS, tau=8.0)


PARTS = ["input_size", "output_size", "delta_t", "config", "state_type", "initial_state", "check_state", "step"]


def faces_and_shells() -> dict[str, Callable[[Any], Any]]:
    from elm_neuro.adapters import norse, snntorch, spikingjelly

    return {
        "SpikingELM": SpikingELM,
        "snntorch.Cell": snntorch.Cell,
        "snntorch.Layer": snntorch.Layer,
        "norse.Cell": norse.Cell,
        "norse.Layer": norse.Layer,
        "spikingjelly.Layer": spikingjelly.Layer,
    }


@pytest.mark.parametrize(
    "name", ["SpikingELM", "snntorch.Cell", "snntorch.Layer", "norse.Cell", "norse.Layer", "spikingjelly.Layer"]
)
def test_a_layer_that_lacks_a_part_is_refused_with_its_name_everywhere(toy: ToyLayer, name: str) -> None:
    pytest.importorskip("snntorch")
    pytest.importorskip("norse")
    pytest.importorskip("spikingjelly")
    wrap = faces_and_shells()[name]
    for part in PARTS:
        lacking = _without(toy, part)
        assert not is_layer(lacking)
        with pytest.raises(TypeError, match=rf"core must be a layer .*, got Lacking without {part}$"):
            wrap(lacking)

    class NoLengths(ToyLayer):
        def forward(self, x: Any, state: ToyState | None = None) -> Any:  # type: ignore[override]
            return super().forward(x, state)

    with pytest.raises(TypeError, match="got NoLengths without lengths in forward"):
        wrap(NoLengths(INPUTS, OUTPUTS))
    with pytest.raises(TypeError, match=r"got list without being an nn\.Module"):
        wrap([])


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("input_size", "5", "core.input_size must be an integer of at least 1, got '5'"),
        ("output_size", 0, "core.output_size must be an integer of at least 1, got 0"),
        ("delta_t", "1", "core.delta_t must be a finite number above 0, got '1'"),
        ("delta_t", None, "core.delta_t must be a finite number above 0, got None"),
        ("delta_t", -1.0, "core.delta_t must be a finite number above 0, got -1.0"),
        ("state_type", ToyState(torch.zeros(1)), "core.state_type must be the class of the states, got one of them"),
        ("initial_state", 7, "core.initial_state must be callable, got 7"),
        ("check_state", None, "core.check_state must be callable, got None"),
        ("step", 3, "core.step must be callable, got 3"),
    ],
)
def test_a_part_of_another_kind_is_refused_with_its_name(toy: ToyLayer, part: str, value: object, message: str) -> None:
    object.__setattr__(toy, part, value)
    assert not is_layer(toy)
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        SpikingELM(toy)


class Swapped(ToyLayer):
    def forward(self, x: Any, lengths: Any = None, state: Any = None) -> Any:  # type: ignore[override]
        return super().forward(x, state, lengths)


class ByName(ToyLayer):
    def forward(self, x: Any, *, state: Any = None, lengths: Any = None) -> Any:  # type: ignore[override]
        return super().forward(x, state, lengths)


def test_a_forward_that_takes_state_and_lengths_elsewhere_is_refused() -> None:
    rule = "core.forward must take x, state, lengths in this order"
    for kind, taken in (Swapped, "x, lengths, state"), (ByName, "x"):
        with pytest.raises(TypeError, match=f"^{rule}, got {taken} by place$"):
            SpikingELM(kind(INPUTS, OUTPUTS))


class HandedOn(ToyLayer):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Wrapped(ToyLayer):
    @functools.wraps(ToyLayer.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Further(ToyLayer):
    def forward(self, x: Any, state: Any = None, lengths: Any = None, *, scale: float = 1.0) -> Any:
        y, after = super().forward(x, state, lengths)
        return scale * y, after


def compiled(kind: type[ToyLayer]) -> Callable[..., Any]:
    return lambda *sizes: torch.compile(kind(*sizes), backend="eager")


@pytest.mark.parametrize("make", [HandedOn, Wrapped, Further, compiled(ToyLayer), compiled(Further)])
def test_a_forward_that_others_have_wrapped_is_still_one(make: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    core, x = make(INPUTS, OUTPUTS), spikes_in(BATCH, STEPS, INPUTS)
    core.input_size = np.int64(INPUTS)
    spikes, _ = SpikingELM(core, threshold=0.2)(x, lengths=torch.tensor([STEPS, 3, 0]))
    expected = filtered(core, x) > 0.2
    expected[1, 3:] = expected[2] = False
    assert spikes.any() and torch.equal(spikes.bool(), expected)


class Fields(ToyLayer):
    """With a second state, which stays, and names that shells and faces give to theirs."""

    state_type: Any = collections.namedtuple("Named", ["core_v", "v"])

    def initial_state(self, batch: int) -> Any:
        zeros = super().initial_state(batch).u
        return self.state_type(zeros, zeros.clone())

    def check_state(self, state: Any, batch: int) -> Any:
        return self.state_type(super().check_state(ToyState(state[0]), batch).u, state[1])

    def step(self, x_t: torch.Tensor, state: Any) -> Any:
        u, _ = super().step(x_t, ToyState(state[0]))
        return u, self.state_type(u, state[1])

    def forward(self, x: torch.Tensor, state: Any = None, lengths: Any = None) -> Any:
        state, outputs = self.initial_state(len(x)) if state is None else state, []
        for x_t in x.unbind(1):
            y_t, state = self.step(x_t, state)
            outputs.append(y_t)
        return torch.stack(outputs, 1), state


class MemFields(Fields):
    state_type: Any = collections.namedtuple("MemNamed", ["mem", "core_mem"])


class ResetFields(Fields):
    state_type: Any = collections.namedtuple("ResetNamed", ["core_reset", "reset"])


@pytest.mark.parametrize("kind", [Fields, MemFields, ResetFields])
def test_states_of_any_names_are_told_from_those_of_a_shell_or_face(kind: Any) -> None:
    snntorch = pytest.importorskip("elm_neuro.adapters.snntorch", exc_type=ImportError)
    norse = pytest.importorskip("elm_neuro.adapters.norse", exc_type=ImportError)
    spikingjelly = pytest.importorskip("elm_neuro.adapters.spikingjelly", exc_type=ImportError)
    torch.manual_seed(0)
    core, x = kind(INPUTS, OUTPUTS), spikes_in(BATCH, STEPS, INPUTS)
    expected = (filtered(core, x) > 0.2).float()
    spikes, state = SpikingELM(core, threshold=0.2)(x)
    assert spikes.any() and torch.equal(spikes, expected) and len(set(state._fields)) == 4
    face, sequence = snntorch.Layer(core, threshold=0.2, init_hidden=True), x.transpose(0, 1)
    halves = torch.cat([face(sequence[:5]), face(sequence[5:])]).transpose(0, 1)
    assert torch.equal(halves, expected) and len(set(face.state_names)) == 3
    assert torch.equal(norse.Layer(core, threshold=0.2)(sequence)[0].transpose(0, 1), expected)
    face = spikingjelly.Layer(core, v_threshold=0.2, step_mode="m")
    assert torch.equal(torch.cat([face(sequence[:5]), face(sequence[5:])]).transpose(0, 1), expected)


def _without(toy: ToyLayer, part: str) -> nn.Module:
    class Lacking(nn.Module):
        forward = ToyLayer.forward

    lacking = Lacking()
    for name in PARTS:
        if name != part:
            object.__setattr__(lacking, name, getattr(toy, name))
    return lacking
