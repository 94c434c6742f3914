from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from elm_neuro import ALIF, ELM, LIF, ELMNetwork, SpikeEvents, SpikingELM
from elm_neuro.functional import ATan, Boxcar, FastSigmoid, MultiGaussian, Sigmoid
from elm_neuro.functional._spike import SURROGATES
from tests.tolerances import assert_close


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("kind", [LIF, ALIF])
def test_spikes_are_those_of_a_loop_over_neurons(kind: type[ALIF], recurrent: bool) -> None:
    torch.manual_seed(0)
    layer = kind(5, 4, tau_v=20.0, recurrent=recurrent).double()
    x = torch.poisson(torch.full((1, 60, 5), 0.7, dtype=torch.float64))
    with torch.no_grad():
        layer.cell.weight.abs_().mul_(2)
        if layer.cell.w_rec is not None:
            layer.cell.w_rec.add_(torch.rand(4, 4) * 0.2)
    weight, bias, beta = (t.detach().numpy() for t in (layer.cell.weight, layer.cell.bias, layer.cell.beta))
    p, b = (
        (layer.cell.p.detach().numpy(), layer.cell.b.detach().numpy()) if kind is ALIF else (np.zeros(4), np.zeros(4))
    )
    w_rec = layer.cell.w_rec.detach().numpy() if layer.cell.w_rec is not None else np.zeros((4, 4))
    v, a, s = np.zeros(4), np.zeros(4), np.zeros(4)
    expected = np.zeros((60, 4))
    for t in range(60):
        before = s.copy()
        for i in range(4):
            v[i] = beta[i] * v[i] + weight[i] @ x[0, t].numpy() + bias[i] + w_rec[i] @ before
            s[i] = float(v[i] > 1.0 + b[i] * a[i])
            v[i] = 0.0 if s[i] else v[i]
            a[i] = p[i] * a[i] + s[i]
        expected[t] = s
    spikes, state = layer(x)
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(spikes[0].detach().numpy(), expected)
    np.testing.assert_allclose(state.v[0].detach().numpy(), v, rtol=1e-9)
    if kind is ALIF:
        np.testing.assert_allclose(state.a[0].detach().numpy(), a, rtol=1e-9)


def test_surrogate_gradient_is_that_of_a_fast_sigmoid() -> None:
    x = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    FastSigmoid()(x).sum().backward()
    assert x.grad is not None
    assert_close(x.grad, 1 / (1 + 10 * x.detach().abs()) ** 2)


def test_events_and_frames_give_the_same_spikes_and_gradients() -> None:
    layer = LIF(30, 8)
    x = torch.poisson(torch.full((2, 40, 30), 0.3))
    gradients = []
    for given in (x, SpikeEvents.from_frames(x)):
        layer.zero_grad()
        spikes, _ = layer(given)
        (spikes * torch.arange(8)).sum().backward()
        gradients.append([spikes.detach(), *(p.grad for p in layer.parameters())])
    for dense, sparse in zip(*gradients, strict=True):
        assert_close(dense, sparse)


def test_state_carried_over_a_split_changes_nothing() -> None:
    layer = ALIF(6, 5, recurrent=True)
    x = torch.rand(3, 50, 6) * 2
    whole, _ = layer(x)
    first, state = layer(x[:, :17])
    second, _ = layer(x[:, 17:], state)
    assert torch.equal(whole, torch.cat([first, second], 1))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(batch, time, 3\), got \(2, 5, 4\)"):
        LIF(3, 2)(torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match="tau_v must be a time above 0 ms, got -1"):
        LIF(3, 2, tau_v=-1)
    layer = LIF(3, 2)
    with pytest.raises(ValueError, match=r"state.v must have shape \(2, 2\)"):
        layer(torch.zeros(2, 5, 3), layer.cell.initial_state(1))


@pytest.mark.parametrize("latency", [0, 1, 3])
def test_a_neuron_is_deaf_during_its_latency_and_hears_its_echo_after_it(latency: int) -> None:
    torch.manual_seed(0)
    layer = ALIF(5, 4, tau_v=20.0, recurrent=True, latency=float(latency)).double()
    x = torch.poisson(torch.full((1, 60, 5), 0.7, dtype=torch.float64))
    with torch.no_grad():
        layer.cell.weight.abs_().mul_(2)
    params = layer.cell.effective_parameters()
    assert params.b is not None and params.w_rec is not None
    beta, p, b, w_rec = (t.detach().numpy() for t in (params.beta, params.p, params.b, params.w_rec))
    current = (x[0] @ layer.cell.weight.mT + layer.cell.bias).detach().numpy()
    v, a, spikes = np.zeros(4), np.zeros(4), np.zeros((60, 4))
    for t in range(60):
        echo = w_rec @ spikes[t - latency - 1] if t > latency else np.zeros(4)
        for i in range(4):
            deaf = spikes[max(0, t - latency) : t, i].any()
            v[i] = beta[i] * v[i] + (0.0 if deaf else current[t, i] + echo[i])
            spikes[t, i] = float(v[i] > 1.0 + b[i] * a[i])
            v[i] *= 1.0 - spikes[t, i]
            a[i] = p[i] * a[i] + spikes[t, i]
    result, _ = layer(x)
    assert 0 < spikes.sum() < spikes.size
    np.testing.assert_array_equal(result[0].detach().numpy(), spikes)
    first, state = layer(x[:, :13])
    assert torch.equal(torch.cat([first, layer(x[:, 13:], state)[0]], 1), result)


def test_gradients_flow_through_reset_and_recurrence_only_on_request() -> None:
    def gradient(**options: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layer = LIF(5, 4, recurrent=True, **options)
        layer(torch.ones(1, 30, 5) * 2)[0].sum().backward()
        assert layer.cell.weight.grad is not None
        return layer.cell.weight.grad

    plain = gradient()
    assert not torch.equal(plain, gradient(detach_reset=False)) and not torch.equal(
        plain, gradient(detach_recurrent=False)
    )


def test_a_surrogate_that_changes_the_dtype_is_refused() -> None:
    layer = ALIF(3, 2, surrogate=lambda distance: FastSigmoid()(distance).float()).double()
    with pytest.raises(
        TypeError, match=r"surrogate must keep the dtype torch.float64 of the membrane, got spikes of torch.float32"
    ):
        layer(torch.ones(1, 4, 3, dtype=torch.float64))


@pytest.mark.parametrize("kind", SURROGATES.values())
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_settings_of_a_surrogate_are_numbers(kind: type, value: float) -> None:
    for field in fields(kind):
        with pytest.raises(ValueError, match=f"{field.name} of {kind.__name__} must be a finite number, got {value}"):
            kind(**{field.name: value})


@pytest.mark.parametrize("given", [None, 3, True])
def test_a_surrogate_that_gives_no_tensor_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match=f"surrogate must give a tensor of spikes, got {type(given).__name__}"):
        ALIF(3, 2, surrogate=lambda _: given)(torch.ones(1, 4, 3))


def test_a_surrogate_that_gives_another_shape_is_refused() -> None:
    def short(distance: torch.Tensor) -> torch.Tensor:
        return FastSigmoid()(distance)[..., :1]

    with pytest.raises(ValueError, match=r"surrogate must keep the shape \(1, 2\), got \(1, 1\)"):
        ALIF(3, 2, surrogate=short)(torch.ones(1, 4, 3))
    with pytest.raises(ValueError, match=r"surrogate must keep the shape \(1, 4, 2\), got \(1, 4, 1\)"):
        SpikingELM(ELM(3, 2, num_memory=2), surrogate=short)(torch.ones(1, 4, 3))
    with pytest.raises(ValueError, match=r"surrogate must keep the shape \(1, 4\), got \(1, 1\)"):
        ELMNetwork(3, 4, output="spike", surrogate=short, binarize=False)(torch.ones(1, 4, 3))


@pytest.mark.parametrize("value", [0.0, -10.0])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (FastSigmoid, "scale"),
        (Sigmoid, "scale"),
        (ATan, "alpha"),
        (Boxcar, "width"),
        (MultiGaussian, "sigma"),
        (MultiGaussian, "s"),
    ],
)
def test_settings_that_leave_a_surrogate_a_pole_or_no_slope_are_refused(kind: Any, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} of {kind.__name__} must be above 0, got {value}"):
        kind(**{name: value})
