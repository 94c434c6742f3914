from __future__ import annotations

import numpy as np
import pytest
import torch

from elm_neuro import ALIF, LIF, SpikeEvents
from elm_neuro.functional import spike
from tests.tolerances import assert_close


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("kind", [LIF, ALIF])
def test_spikes_are_those_of_a_loop_over_neurons(kind: type[ALIF], recurrent: bool) -> None:
    torch.manual_seed(0)
    layer = kind(5, 4, tau_v=20.0, recurrent=recurrent).double()
    x = torch.poisson(torch.full((1, 60, 5), 0.7, dtype=torch.float64))
    with torch.no_grad():
        layer.weight.abs_().mul_(2)
        if layer.w_rec is not None:
            layer.w_rec.add_(torch.rand(4, 4) * 0.2)
    weight, bias, beta = (t.detach().numpy() for t in (layer.weight, layer.bias, layer.beta))
    p, b = (layer.p.detach().numpy(), layer.b.detach().numpy()) if kind is ALIF else (np.zeros(4), np.zeros(4))
    w_rec = layer.w_rec.detach().numpy() if layer.w_rec is not None else np.zeros((4, 4))
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
    spike(x).sum().backward()
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
        layer(torch.zeros(2, 5, 3), layer.initial_state(1))
