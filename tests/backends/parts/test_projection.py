"""Frames that are run as events."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_neuro import ELM, BranchELM, SpikeEvents, backends
from elm_neuro.backends.elm import _native_whole
from elm_neuro.backends.native import _events
from tests.backends.equal_cases import BACKENDS, FAST, cases, everything
from tests.tolerances import assert_close


@pytest.mark.grid(every=2)
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("sparse_input", ["auto", "on", "off"])
@settings(max_examples=20, deadline=None)
@given(case=cases(), recompute_every=st.sampled_from([None, 5]))
def test_frames_searched_for_events_or_not_equal_the_reference(
    backend: str, sparse_input: str, case: Any, recompute_every: int | None
) -> None:
    neuron, x, state, lengths = case
    if sparse_input == "on":
        x = (x[:, :, 0] if x.ndim == 4 else x).detach()
    expected = everything(neuron, "reference", x, state, lengths)
    neuron.recompute_every, neuron.sparse_input = recompute_every, sparse_input
    for result, wanted in zip(everything(neuron, backend, x, state, lengths), expected, strict=True):
        assert_close(result, wanted)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    ("sparse_input", "searches"), [("auto", (True, False)), ("on", (True, True)), ("off", (False, False))]
)
def test_events_are_made_of_frames_always_never_or_by_density(
    backend: str, sparse_input: str, searches: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    neuron = ELM(100, 2, num_memory=40, sparse_input=sparse_input, backend=backend)
    wanted = ELM.from_config(neuron.config, backend="reference")
    wanted.load_state_dict(neuron.state_dict())
    made: list[bool] = []
    from_frames, compacted, in_pass = SpikeEvents.from_frames, _events.Events.compacted, _native_whole.run_forward

    def noted(events: Any) -> Any:
        made.append(events is not None)
        return events

    monkeypatch.setattr(SpikeEvents, "from_frames", lambda frames: noted(from_frames(frames)))
    monkeypatch.setattr(_events.Events, "compacted", lambda *frames, **density: noted(compacted(*frames, **density)))
    monkeypatch.setattr(_native_whole, "run_forward", lambda *given, **how: noted(in_pass(*given, **how)))
    for density, searched in zip((0.01, 0.5), searches, strict=True):
        x = (torch.rand(3, 64, 100) < density).float()
        made.clear()
        results = everything(neuron, backend, x, None, None)
        assert any(made) is searched
        for result, expected in zip(results, everything(wanted, "reference", x, None, None), strict=True):
            assert_close(result, expected, scale=10.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_that_cannot_be_events_are_refused_where_events_are_asked_for(backend: str) -> None:
    neuron = ELM(4, 2, num_memory=3, num_neuron=2, sparse_input="on", backend=backend)
    assert "sparse_input='on'" in repr(neuron)
    x = torch.ones(2, 5, 4, requires_grad=True)
    with pytest.raises(
        ValueError, match='sparse_input="on" takes frames that need no gradient, got x with requires_grad'
    ):
        neuron(x)
    with torch.no_grad():
        y = neuron(x)[0]
    assert_close(neuron(SpikeEvents.from_frames(x))[0], y)
    with pytest.raises(
        ValueError, match=r'sparse_input="on" takes frames of shape \(batch, time, input_size\), got \(2, 5, 2, 4\)'
    ):
        neuron(torch.ones(2, 5, 2, 4))
    with pytest.raises(ValueError, match='sparse_input="on" takes frames on the CPU, or events, got x on meta'):
        backends.scan(
            x.detach().to("meta"), neuron.cell.effective_parameters(), neuron.cell.initial_state(2), sparse_input="on"
        )


def test_sparse_frames_take_the_event_path_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    neuron = BranchELM(200, 2, num_memory=20, num_branch=40, num_synapse_per_branch=10).double()
    x = (torch.rand(2, 99, 200) < 0.01).double()
    results = everything(neuron, "torch", x, None, None)
    converted = []
    original = SpikeEvents.from_frames
    monkeypatch.setattr(SpikeEvents, "from_frames", lambda frames: converted.append(1) or original(frames))
    everything(neuron, "torch", x, None, None)
    assert converted == [1]
    monkeypatch.setattr("elm_neuro.backends.parts._projection.SPARSE_DENSITY", -1.0)
    for result, wanted in zip(results, everything(neuron, "torch", x, None, None), strict=True):
        assert_close(result, wanted)
    assert converted == [1]


@pytest.mark.parametrize("backend", FAST)
def test_frames_with_an_odd_storage_offset_work(backend: str) -> None:
    base = (torch.rand(1, 103, 65) < 0.01).float()
    neuron = ELM(65, 2, num_memory=32, backend=backend)
    assert torch.equal(neuron(base[:, 1:])[0], neuron(base[:, 1:].clone())[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_silent_events_equal_silent_frames(backend: str) -> None:
    neuron = ELM(3, 2, num_memory=4, backend=backend)
    x = torch.zeros(2, 7, 3)
    assert_close(neuron(SpikeEvents.from_frames(x))[0], neuron(x)[0])
