"""The backend torch: the loop's gradient against the reference, that of Blocks against its rule written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from elm_neuro import ALIF, LIF, ALIFConfig, ALIFState, SpikeEvents, backends
from elm_neuro.functional import ALIFParameters, ATan, Boxcar, FastSigmoid, MultiGaussian, Surrogate
from tests.backends.alif.cases import calls, everything
from tests.backends.equal_cases import FAST
from tests.tolerances import assert_close


@settings(max_examples=15, deadline=None)
@given(calls())
def test_equals_the_reference(call: tuple[ALIF, Any, ALIFState | None, Tensor | None]) -> None:
    layer, *arguments = call
    for result, wanted in zip(
        everything(layer, "torch", *arguments), everything(layer, "reference", *arguments), strict=True
    ):
        assert_close(result, wanted, dtype=torch.float64, scale=10.0)


@settings(max_examples=15, deadline=None)
@given(calls("blocks"))
def test_blocks_has_the_loops_spikes_and_state_and_its_own_gradient(
    call: tuple[ALIF, Any, ALIFState | None, Tensor | None],
) -> None:
    layer, x, state, lengths = call
    with torch.no_grad():
        loop = backends_scan(layer, "reference", x, state, lengths)
    found = everything(layer, "torch", x, state, lengths)
    assert torch.equal(found[0], loop[0])
    for result, wanted in zip(found[1:4], loop[1], strict=True):
        assert_close(result, wanted, dtype=torch.float64)
    assert all(bool(part.isfinite().all()) for part in found)


def backends_scan(layer: ALIF, backend: str, x: Any, state: ALIFState | None, lengths: Tensor | None) -> Any:
    layer.backend = backend
    return layer(x, state, lengths)


def rule(x: Tensor, weight: Tensor, bias: Tensor, p: ALIFParameters, latency: int) -> Tensor:
    """Spikes of one sample, (time, neuron), with the gradient of Blocks: its rule written out neuron by neuron, each
    block's membrane as a sum over its inputs, each spike as a sum over the ramp.
    """
    current, size = x @ weight.mT + bias, latency + 1
    num_steps, num_neuron = current.shape
    v = [current.new_zeros(()) for _ in range(num_neuron)]
    a = [current.new_zeros(()) for _ in range(num_neuron)]
    last = [-(10**9)] * num_neuron  # step of each neuron's last spike
    record = torch.zeros(num_steps, num_neuron, dtype=x.dtype)
    columns: list[list[Tensor]] = [[] for _ in range(num_neuron)]
    for start in range(0, num_steps, size):
        steps = range(start, min(start + size, num_steps))
        for n in range(num_neuron):
            inputs = []
            for t in steps:
                fed_back = record[t - size].clone() if t >= size else record.new_zeros(num_neuron)
                arriving = current[t, n] + (0.0 if p.w_rec is None else (p.w_rec[n] * fed_back).sum())
                inputs.append(arriving * float(t - last[n] > latency))
            membrane = [
                p.beta[n] ** (k + 1) * v[n] + sum(p.beta[n] ** (k - j) * inputs[j] for j in range(k + 1))
                for k in range(len(inputs))
            ]
            limit = [1.0 if p.b is None else 1.0 + p.b[n] * p.p[n] ** k * a[n] for k in range(len(inputs))]
            f = [p.surrogate(m - theta) for m, theta in zip(membrane, limit, strict=True)]
            first = next((k for k, crossed in enumerate(f) if bool(crossed.detach())), None)
            for j in range(len(f)):
                z = torch.stack([(j - k + 1) * f[k] for k in range(j + 1)]).sum()
                columns[n].append(z + (float(j == first) - z).detach())
            v[n] = membrane[-1] if first is None else current.new_zeros(())
            a[n] = p.p[n] ** len(f) * a[n]
            if first is not None:
                a[n] = a[n] + p.p[n] ** (len(f) - 1 - first)
        for n in range(num_neuron):  # known to the others only now: within a block nothing arrives
            for t in steps:
                record[t, n] = float(columns[n][t].detach())
                last[n] = t if record[t, n] else last[n]
    return torch.stack([torch.stack(column) for column in columns], dim=1)


def straight_through(distance: Tensor) -> Tensor:
    """A surrogate as people write it, whose spikes are 1 but for rounding."""
    smooth = 7.0 * torch.sigmoid(3.0 * distance)
    return (distance > 0).to(distance.dtype) + smooth - smooth.detach()


KNOWN = [(FastSigmoid(), True, ALIF), (MultiGaussian(), False, ALIF), (ATan(), True, LIF), (Boxcar(), True, ALIF)]


@pytest.mark.parametrize("latency", [0, 1, 4, 30])
@pytest.mark.parametrize(
    ("surrogate", "recurrent", "kind", "backend"),
    [(*known, backend) for known in KNOWN for backend in FAST] + [(straight_through, True, ALIF, "torch")],
)
def test_the_gradient_of_blocks_is_its_rule(
    latency: int, surrogate: Surrogate, recurrent: bool, kind: Any, backend: str
) -> None:
    generator = torch.Generator().manual_seed(latency)
    options: Any = {"latency": float(latency), "recurrent": recurrent, "surrogate": surrogate}
    layer = kind(5, 3, gradient="blocks", generator=generator, tau_v=5.0, tau_a=15.0, **options).double()
    with torch.no_grad():
        layer.cell.weight.mul_(3)
        layer.cell.bias.add_(0.1)
    layer.backend = backend
    x = (torch.rand(1, 23, 5, generator=generator) < 0.4).double().requires_grad_()
    leaves = [x, *layer.parameters()]
    found = layer(x)[0]
    wanted = rule(x[0], layer.cell.weight, layer.cell.bias, layer.cell.effective_parameters(), latency)
    assert torch.equal(found[0], wanted.detach()) and 0.0 < float(found.detach().mean()) < 0.5
    by = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    grads = torch.autograd.grad(found, leaves, by, allow_unused=True)
    for result, other in zip(grads, torch.autograd.grad(wanted, leaves, by[0], allow_unused=True), strict=True):
        assert result is not None and other is not None
        assert_close(result, other)


@pytest.mark.parametrize(
    ("gradient", "backend"), [("loop", "reference"), ("loop", "torch"), ("blocks", "torch"), ("loop", "auto")]
)
@pytest.mark.parametrize("latency", [0, 3])
def test_spikes_that_rounding_moves_from_1_are_spikes(gradient: str, backend: str, latency: int) -> None:
    distance = torch.linspace(-3, 3, 400)
    assert not bool((straight_through(distance).frac() == 0).all())  # moved they are
    torch.manual_seed(3)
    options: Any = {"latency": float(latency), "recurrent": True, "gradient": gradient, "surrogate": straight_through}
    layer, x = ALIF(6, 5, **options, backend=backend), (torch.rand(4, 60, 6) < 0.4).float()
    with torch.no_grad():
        layer.cell.weight.mul_(3)
    numbers = {name: value.detach().double() for name, value in layer.cell.named_parameters()}
    current = x.double() @ numbers["weight"].mT + numbers["bias"]
    v = a = current.new_zeros(4, 5)
    record = [v] * (latency + 1)
    for t in range(60):  # the equations, in float64
        rests = torch.stack(record[t + 1 :]).amax(0) if latency else v.new_zeros(4, 5)
        v = numbers["beta"] * v + (current[:, t] + record[t] @ numbers["w_rec"].mT) * (1 - rests)
        record.append((v > 1 + numbers["b"] * a).double())
        v, a = v * (1 - record[-1]), numbers["p"] * a + record[-1]
    spikes, after = layer(x)
    assert torch.equal(spikes.detach().double(), torch.stack(record[latency + 1 :], 1)) and spikes.any()
    assert torch.equal(after.s.detach().double(), torch.stack(record[-latency - 1 :], 1))
    for part, wanted in ((after.v, v), (after.a, a)):
        assert_close(part, wanted, dtype=torch.float32)


@pytest.mark.parametrize(("factor", "got"), [(0.5, "0.5"), (2.0, "2.0")])
def test_blocks_refuses_spikes_that_are_neither_0_nor_1(factor: float, got: str) -> None:
    layer, x = blocks_layer()
    layer.cell.surrogate = lambda distance: factor * FastSigmoid()(distance)
    with pytest.raises(ValueError, match=f'surrogate must give 0 or 1 with gradient "blocks", got {got}'):
        layer(x)
    with pytest.raises(ValueError, match="x must be finite, got nan at index"):
        layer(x * math.nan)


def test_nothing_that_learns_needs_no_gradient_of_blocks() -> None:
    layer, x = blocks_layer()
    wanted = layer(x)[0]
    layer.requires_grad_(False).backend = "reference"
    assert torch.equal(layer(x)[0], wanted)
    with pytest.raises(ValueError, match=r'"reference" cannot run this: .* gradient "loop", got gradient .blocks.'):
        layer(x.clone().requires_grad_())


@pytest.mark.parametrize("recurrent", [False, True])
def test_without_latency_it_is_the_loops_gradient_with_the_adaptation_detached(recurrent: bool) -> None:
    torch.manual_seed(1)
    layer = ALIF(6, 4, recurrent=recurrent, gradient="blocks").double()
    with torch.no_grad():
        layer.cell.weight.mul_(3)
    x = (torch.rand(3, 41, 6) < 0.4).double()
    p = layer.cell.effective_parameters()
    v = a = s = x.new_zeros(3, 4)
    record = []
    for x_t in x.unbind(1):
        v = p.beta * v + nn.functional.linear(x_t, layer.cell.weight, layer.cell.bias)
        v = v if p.w_rec is None else v + s.detach() @ p.w_rec.mT
        s = p.surrogate(v - 1.0 - p.b * a)  # type: ignore[operator]
        v, a = v * (1.0 - s.detach()), p.p * a + s.detach()
        record.append(s)
    wanted, leaves = torch.stack(record, 1), list(layer.parameters())
    assert float(wanted.detach().mean()) > 0.02
    found, by = layer(x)[0], torch.randn_like(wanted)
    assert torch.equal(found, wanted)
    ours, theirs = (torch.autograd.grad(spikes, leaves, by) for spikes in (found, wanted))
    for result, other in zip(ours, theirs, strict=True):
        assert_close(result, other)


def blocks_layer() -> tuple[ALIF, Tensor]:
    torch.manual_seed(2)
    layer = ALIF(6, 5, latency=3.0, recurrent=True, gradient="blocks").double()
    with torch.no_grad():
        layer.cell.weight.mul_(3)
    return layer, (torch.rand(4, 26, 6) < 0.4).double()


def test_a_sequence_may_be_split_between_its_blocks() -> None:
    layer, x = blocks_layer()
    whole, by = layer(x)[0], torch.randn(4, 26, 5).double()
    first, state = layer(x[:, :12])
    halves = torch.cat([first, layer(x[:, 12:], state)[0]], dim=1)
    assert torch.equal(halves, whole)
    leaves = list(layer.parameters())
    for result, wanted in zip(
        torch.autograd.grad(halves, leaves, by), torch.autograd.grad(whole, leaves, by), strict=True
    ):
        assert_close(result, wanted)


def test_samples_that_end_before_are_those_samples_alone() -> None:
    layer, x = blocks_layer()
    lengths = torch.tensor([26, 17, 16, 0])
    padded = x.masked_fill((torch.arange(26) >= lengths[:, None]).unsqueeze(-1), math.nan)
    spikes, after = layer(padded, lengths=lengths)
    by, leaves = torch.randn_like(spikes), list(layer.parameters())
    alone = [layer(x[i : i + 1, :n]) for i, n in enumerate(lengths.tolist())]
    total = torch.stack([(one[0] * by[i, :n]).sum() for i, (n, one) in enumerate(zip(lengths, alone, strict=True))])
    for i, (n, (one, state)) in enumerate(zip(lengths.tolist(), alone, strict=True)):
        assert torch.equal(spikes[i, :n], one[0]) and not bool(spikes[i, n:].any())
        for part, wanted in zip(after, state, strict=True):
            assert_close(part[i], wanted[0])
    for result, wanted in zip(
        torch.autograd.grad(spikes, leaves, by), torch.autograd.grad(total.sum(), leaves), strict=True
    ):
        assert_close(result, wanted)


def test_events_have_the_gradient_of_frames() -> None:
    layer, x = blocks_layer()
    leaves, by = list(layer.parameters()), torch.randn(4, 26, 5).double()
    ours, theirs = (torch.autograd.grad(layer(given)[0], leaves, by) for given in (SpikeEvents.from_frames(x), x))
    for result, wanted in zip(ours, theirs, strict=True):
        assert_close(result, wanted)


def test_a_smooth_relaxation_has_the_derivative_of_its_values() -> None:
    """In place of the step a sigmoid, nothing detached: then the gradient is one, and gradcheck sees it."""
    torch.manual_seed(3)
    options: Any = {"recurrent": True, "detach_reset": False, "detach_recurrent": False, "backend": "torch"}
    layer = ALIF(3, 2, surrogate=lambda x: torch.sigmoid(4.0 * x), **options).double()
    x = torch.rand(2, 7, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def spikes(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, given, (x,))[0]  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(spikes, (x, *layer.parameters()))


def test_the_reference_leaves_the_gradient_of_blocks_to_others() -> None:
    layer, x = blocks_layer()
    layer.backend = "reference"
    with pytest.raises(ValueError, match=r'"reference" cannot run this: .* gradient "loop", got gradient .blocks.'):
        layer(x)
    with torch.no_grad():
        spikes = layer(x)[0]  # nothing is differentiated
    layer.backend = "torch"
    assert torch.equal(spikes, layer(x)[0])


def test_hooks_ask_for_calls_of_single_steps_which_are_no_blocks() -> None:
    layer, x = blocks_layer()
    layer.cell.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match='gradient "blocks" needs a block of steps at once, got calls of single steps'):
        layer(x)
    with torch.no_grad():
        assert layer(x)[0].shape == (4, 26, 5)


@pytest.mark.parametrize("value", ["block", "", None, 3, ["loop"]])
def test_another_gradient_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="gradient must be one of loop, blocks, got "):
        ALIF(3, 2, gradient=value)


@pytest.mark.parametrize("flag", ["detach_reset", "detach_recurrent"])
def test_blocks_detaches_reset_and_spikes_that_are_fed_back(flag: str) -> None:
    options: Any = {flag: False}
    with pytest.raises(ValueError, match=f'gradient "blocks" needs detach_reset and detach_recurrent, got .*{flag} F'):
        LIF(3, 2, gradient="blocks", **options)


def test_the_gradient_is_saved_and_folders_before_it_mean_the_loop() -> None:
    config = ALIF(3, 2, gradient="blocks", surrogate=FastSigmoid()).config
    assert ALIFConfig.from_dict(config.to_dict()) == config
    before = config.to_dict()
    del before["gradient"]
    assert ALIFConfig.from_dict(before).gradient == "loop"
    assert "torch" in backends.available("alif")
