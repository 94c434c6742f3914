"""Events that the library finds in dense frames."""

from __future__ import annotations

import pytest
import torch

from elm_neuro import ELM, SpikeEvents
from elm_neuro.backends.native._events import SPARSE_DENSITY, Events
from tests.backends.native_cases import (
    native,
)


@native
@pytest.mark.parametrize("num_input", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_events_found_in_frames_are_those_that_are_there(num_input: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 9, num_input, dtype=dtype) * (torch.rand(4, 9, num_input) < 0.05)
    x[1, 2, 0], x[2] = float("nan"), -0.0
    found = Events.compacted(x, dtype)
    assert found is not None
    for row, frame in enumerate(x.view(36, num_input)):
        part = slice(int(found.begin[row]), int(found.end[row]))
        expected = frame.nonzero().squeeze(-1)
        assert found.channel[part].tolist() == expected.tolist()
        assert found.value is not None
        torch.testing.assert_close(found.value[part], frame[expected], rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.grid(every=4)
@native
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("other", [None, (0, 0, 0), (0, 2999, 70), (2, 5, 69), (3, 2999, 70)])
def test_events_that_all_count_1_have_no_values(
    other: tuple[int, int, int] | None, dtype: torch.dtype, threads: int
) -> None:
    torch.manual_seed(0)
    x, before = (torch.rand(4, 3000, 71) < 0.05).to(dtype), torch.get_num_threads()
    if other is not None:
        x[other] = 0.5
    try:
        torch.set_num_threads(threads)
        found = Events.compacted(x, dtype)
    finally:
        torch.set_num_threads(before)
    assert found is not None
    assert (found.value is None) is (other is None)
    frames = torch.zeros(4 * 3000, 71, dtype=dtype)
    rows = torch.repeat_interleave(torch.arange(4 * 3000), found.end - found.begin)
    events = torch.cat([torch.arange(a, b) for a, b in zip(found.begin, found.end, strict=True)])
    value = torch.ones(len(events), dtype=dtype) if found.value is None else found.value[events]
    frames[rows, found.channel[events].long()] = value
    torch.testing.assert_close(frames.view_as(x), x, rtol=0.0, atol=0.0)


@native
@pytest.mark.parametrize("other", [-1.0, 1e-40, 1.0 + 2.0**-23, float("inf"), float("nan")])
def test_whatever_is_neither_0_nor_1_is_a_value(other: float) -> None:
    x = torch.zeros(2, 3, 70)
    x[0, 1, 3] = x[1, 2, 69] = 1.0
    x[1, 0, 64] = other
    found = Events.compacted(x, torch.float32)
    assert found is not None and found.value is not None
    value = [float(found.value[event]) for event in range(int(found.begin[0]), int(found.end[-1]))]
    torch.testing.assert_close(torch.tensor(value), torch.tensor([1.0, other, 1.0]), rtol=0.0, atol=0.0, equal_nan=True)


@native
@pytest.mark.parametrize("threads", [1, 3])
def test_frames_with_too_many_spikes_are_left_dense(threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for shape in ((4, 300, 2000), (5, 7, 64), (1, 1, 64)):
            torch.manual_seed(0)
            assert (
                Events.compacted((torch.rand(shape) < 2 * SPARSE_DENSITY).float(), torch.float32) is None
                or shape[1] == 1
            )
            assert Events.compacted(torch.ones(shape), torch.float32) is None
            assert Events.compacted(torch.zeros(shape), torch.float32) is not None
    finally:
        torch.set_num_threads(before)


@native
@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.parametrize("change", ["channel", "negative", "falling", "beyond", "fewer", "values"])
def test_events_changed_after_they_were_made_are_refused(change: str, when: str, branches: bool) -> None:
    """Through numpy, which no version counter sees: the kernels would read and write outside of their arrays."""
    torch.manual_seed(0)
    frames = (torch.rand(2, 6, 40) < 0.3) * torch.rand(2, 6, 40)
    x = SpikeEvents.from_frames(frames)
    options = {"branch_activation": "tanh"} if branches else {}
    neuron = ELM(40, 2, num_memory=3, backend="native", **options)
    run = (lambda: neuron(x)) if when == "before" else neuron(x)[0].sum().backward
    assert x.value is not None
    if change == "channel":
        x.channel.numpy()[3] = 40
    elif change == "negative":
        x.channel.numpy()[5] = -(2**40)
    elif change == "falling":
        x.indptr.numpy()[2] = x.indptr.numpy()[9]
    elif change == "beyond":
        x.indptr.numpy()[-1] += 10**9
    elif change == "fewer":
        x.channel.resize_(3)
    else:
        x.value.resize_(3)
    with pytest.raises((ValueError, RuntimeError), match=r"changed after it had been made|modified by an"):
        run()
