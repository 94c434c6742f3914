from __future__ import annotations

import copy

import pytest
import torch

from elm_neuro import ALIF, SpikeEvents, backends
from elm_neuro.functional import ALIFParameters, ALIFState, alif_step
from tests.backends.equal_cases import FAST
from tests.tolerances import assert_close


def layer(*, adaptive: bool = True, recurrent: bool = True, latency: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, bias = draw(4, 3), draw(4) * 0.1
    params = ALIFParameters(
        torch.rand(4, generator=generator).double(),
        torch.rand(4, generator=generator).double(),
        torch.rand(4, generator=generator).double() if adaptive else None,
        draw(4, 4) * 0.5 if recurrent else None,
    )
    state = ALIFState(draw(2, 4), draw(2, 4).abs(), (torch.rand(2, latency + 1, 4, generator=generator) < 0.3).double())
    x = draw(2, 11, 3) * 2.0
    return x, weight, bias, params, state  # type: ignore[return-value]


def loop(x, weight, bias, params, state):  # type: ignore[no-untyped-def]
    spikes = []
    for x_t in x.unbind(1):
        s, state = alif_step(x_t @ weight.mT + bias, state, params)
        spikes.append(s)
    return torch.stack(spikes, dim=1), state


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("recurrent", [False, True])
def test_the_scan_is_the_loop_over_its_step(adaptive: bool, recurrent: bool) -> None:
    arguments = layer(adaptive=adaptive, recurrent=recurrent)
    spikes, state = backends.alif.scan(*arguments)
    expected, after = loop(*arguments)
    assert torch.equal(spikes, expected) and 0.0 < float(spikes.mean()) < 1.0
    for part, wanted in zip(state, after, strict=True):
        assert_close(part, wanted)


@pytest.mark.parametrize("latency", [0, 2])
@pytest.mark.parametrize("backend", FAST)
def test_a_state_is_no_view_that_keeps_a_record_alive(backend: str, latency: int) -> None:
    _, state = backends.alif.scan(*layer(latency=latency), backend=backend)
    for name, part in state._asdict().items():
        assert part.untyped_storage().nbytes() == part.numel() * part.element_size(), name


def test_past_a_samples_end_there_are_no_spikes_and_the_state_stays() -> None:
    x, weight, bias, params, state = layer()
    lengths = torch.tensor([7, 0])
    x[0, 7:], x[1] = float("nan"), float("inf")
    x, weight = x.requires_grad_(), weight.requires_grad_()
    spikes, after = backends.alif.scan(x, weight, bias, params, state, lengths=lengths)
    expected, end = loop(x[:1, :7], weight, bias, params, ALIFState(*(part[:1] for part in state)))
    assert torch.equal(spikes[0, :7], expected[0])
    assert not bool(spikes[0, 7:].any()) and not bool(spikes[1].any())
    for part, wanted, start in zip(after, end, state, strict=True):
        assert_close(part[:1], wanted)
        assert torch.equal(part[1], start[1])
    grad_x, grad_weight = torch.autograd.grad(spikes.sum() + after.v.sum(), (x, weight))
    assert bool(grad_weight.isfinite().all()) and bool(grad_x.isfinite().all())
    wanted_x, wanted_weight = torch.autograd.grad(expected.sum() + end.v.sum(), (x, weight))
    assert_close(grad_x, wanted_x)
    assert_close(grad_weight, wanted_weight)


def test_events_equal_frames_with_and_without_lengths() -> None:
    x, *rest = layer()
    for lengths in (None, torch.tensor([5, 11])):
        wanted = backends.alif.scan(x, *rest, lengths=lengths)  # type: ignore[arg-type]
        found = backends.alif.scan(SpikeEvents.from_frames(x), *rest, lengths=lengths)  # type: ignore[arg-type]
        assert torch.equal(found[0], wanted[0])
        for part, other in zip(found[1], wanted[1], strict=True):
            assert_close(part, other)


def test_splitting_a_sequence_and_handing_the_state_on_changes_nothing() -> None:
    x, weight, bias, params, state = layer()
    whole, end = backends.alif.scan(x, weight, bias, params, state)
    first, middle = backends.alif.scan(x[:, :4], weight, bias, params, state)
    second, last = backends.alif.scan(x[:, 4:], weight, bias, params, middle)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    for part, wanted in zip(last, end, strict=True):
        assert_close(part, wanted)


def test_no_steps_give_no_spikes_and_the_state_back() -> None:
    x, *rest = layer()
    spikes, state = backends.alif.scan(x[:, :0], *rest)  # type: ignore[arg-type]
    assert spikes.shape == (2, 0, 4) and all(a is b for a, b in zip(state, rest[-1], strict=True))


def test_a_backend_that_it_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of \['cuda', 'native', 'reference', 'torch'\], got 'gpu'"):
        backends.alif.scan(*layer(), backend="gpu")


@pytest.mark.parametrize(
    ("backend", "gradient"), [("reference", "loop"), *((name, kind) for name in FAST for kind in ("loop", "blocks"))]
)
def test_what_lies_on_an_end_of_its_range_learns_as_it_does_beside_it(backend: str, gradient: str) -> None:
    """Whichever torch, of which ``clamp`` has had either gradient there."""
    ends = {"beta": [0.001, 0.999, 0.999], "p": [0.999, -0.999, 0.999], "b": [0.001, 1.0, -1.0]}
    generator = torch.Generator().manual_seed(0)
    layer = ALIF(3, 3, latency=2.0, gradient=gradient, generator=generator, backend=backend).double()
    with torch.no_grad():
        layer.cell.weight.abs_().add_(0.2)
    beside = copy.deepcopy(layer)
    with torch.no_grad():
        for name, values in ends.items():
            end = torch.tensor(values, dtype=torch.float64)
            middle = torch.tensor(0.5, dtype=torch.float64).copysign(end)
            getattr(layer.cell, name).copy_(end)
            getattr(beside.cell, name).copy_(end + 1e-12 * (middle - end))
        x = 4.0 * torch.rand(2, 25, 3, dtype=torch.float64, generator=generator)
    for one in (layer, beside):
        spikes, after = one(x)
        assert bool(spikes.any(1).all())
        (spikes.cumsum(1).square().sum() + after.v.sum() + after.a.sum()).backward()
    for name in ends:
        found, expected = (getattr(one.cell, name).grad for one in (layer, beside))
        assert bool((found != 0.0).all())
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)
