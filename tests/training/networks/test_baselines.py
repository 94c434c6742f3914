from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from elm_neuro import ALIF, ELM, LIF, BranchELM, SpikeEvents
from elm_neuro.training import (
    ALIFNetwork,
    LeakyReadout,
    LIFNetwork,
    LIFRegression,
    LSTMClassifier,
    NormalisedReadout,
    RecurrentLIFClassifier,
    ResidualStack,
    SequenceClassifier,
    TokenClassifier,
    TwoTowers,
    num_parameters,
)


def frames(batch: int = 3, num_steps: int = 12, channels: int = 30) -> torch.Tensor:
    return torch.poisson(torch.full((batch, num_steps, channels), 0.3), generator=torch.Generator().manual_seed(1))


def cells(network: LSTMClassifier, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """torch's LSTM cell in a loop, its recurrent input masked."""
    cell = torch.nn.LSTMCell(network.lstm.input_size, network.lstm.hidden_size, dtype=x.dtype)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in network.lstm.state_dict().items()})
    h = c = x.new_zeros(x.shape[0], network.lstm.hidden_size)
    for x_t in x.unbind(1):
        h, c = cell(x_t, (h * mask, c))
    return network.readout(h)


def test_the_last_output_of_torchs_lstm_is_read() -> None:
    network = LSTMClassifier(30, 5, 8, recurrent_dropout=0.4).double().eval()
    x = frames().double()
    torch.testing.assert_close(
        network(x), cells(network, x, torch.ones(1, dtype=torch.float64)), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(network(SpikeEvents.from_frames(x)), network(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("events", [False, True])
def test_recurrent_dropout_drops_the_same_units_at_all_steps_and_keeps_the_scale(events: bool) -> None:
    network = LSTMClassifier(30, 5, 8, recurrent_dropout=0.3).double().train()
    x = frames().double()
    torch.manual_seed(4)
    logits = network(SpikeEvents.from_frames(x) if events else x)
    torch.manual_seed(4)
    mask = torch.empty(3, 8, dtype=torch.float64).bernoulli_(0.7) / 0.7
    assert 0 < int((mask == 0).sum()) < 24
    torch.testing.assert_close(logits, cells(network, x, mask), rtol=1e-10, atol=1e-10)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_without_dropout_training_and_evaluation_agree() -> None:
    network = LSTMClassifier(30, 5, 8)
    torch.testing.assert_close(network.train()(frames()), network.eval()(frames()), rtol=0, atol=0)


def test_chrono_biases_give_forgetting_times_spread_evenly_over_the_timescales() -> None:
    torch.manual_seed(0)
    network = LSTMClassifier(3, 2, 4000, timescales=(1.0, 2000.0), delta_t=10.0)
    forget, own = network.lstm.bias_ih_l0[4000:8000], network.lstm.bias_ih_l0
    steps = 1 / (1 - torch.sigmoid(forget.double()))  # the time after which a unit has forgotten, in steps
    assert 2 <= steps.min() < 3 and 199 < steps.max() <= 200.01
    assert steps.mean().item() == pytest.approx(
        101, abs=4 * 198 / math.sqrt(12 * 4000)
    )  # uniform over 2 to 200: four standard errors
    torch.testing.assert_close(own[:4000], -forget, rtol=0, atol=0)
    assert not own[8000:].any() and not network.lstm.bias_hh_l0.any()


def test_the_recurrent_lif_network_reads_the_last_membrane() -> None:
    network = RecurrentLIFClassifier(LIF(30, 9, delta_t=10.0, recurrent=True), output_size=4, tau_readout=80.0).double()
    with torch.no_grad():
        network.hidden.cell.weight.mul_(4)
    spikes, _ = network.hidden(frames().double())
    assert spikes.any()
    v = torch.zeros(3, 4, dtype=torch.float64)
    beta = torch.exp(torch.tensor(-10.0 / 80.0)).double()
    for s in spikes.unbind(1):
        v = beta * v + (1 - beta) * (s @ network.readout.linear.weight.T + network.readout.linear.bias)
    torch.testing.assert_close(network(frames().double()), v, rtol=1e-6, atol=1e-8)
    assert (network.hidden.cell.w_rec != torch.eye(9)).any()


def test_membrane_time_constants_biases_and_recurrent_weights_learn() -> None:
    network = RecurrentLIFClassifier(LIF(30, 9, recurrent=True, detach_recurrent=False), output_size=4)
    with torch.no_grad():
        network.hidden.cell.weight.mul_(4)
    network(frames()).logsumexp(-1).sum().backward()
    assert {
        name for name, parameter in network.named_parameters() if parameter.grad is not None and parameter.grad.any()
    } == {
        *(f"hidden.cell.{name}" for name in ("weight", "bias", "beta", "w_rec")),
        *(f"readout.{name}" for name in ("beta", "linear.weight", "linear.bias")),
    }


def test_networks_have_the_papers_sizes() -> None:
    lstm = num_parameters(LSTMClassifier(700, 19, 250))
    lif = num_parameters(RecurrentLIFClassifier(LIF(700, 65, recurrent=True), output_size=19))
    elm = num_parameters(ELM(700, 19, num_memory=100, learn_w_s=False))
    branch = num_parameters(
        BranchELM(700, 19, num_memory=100, num_branch=100, num_synapse_per_branch=35, routing="random")
    )
    assert lstm == 4 * 250 * (700 + 250 + 2) + 251 * 19 == 956_769
    assert lif == 65 * (700 + 65 + 2) + 66 * 19 + 19 == 51_128
    assert (elm, branch) == (182_319, 65_819)
    for count, published in ((lstm, 956_000), (lif, 51_000), (elm, 186_000), (branch, 67_000)):  # figure 5
        assert count == pytest.approx(published, rel=0.025)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
        LSTMClassifier(3, 2, 0)
    with pytest.raises(ValueError, match=r"recurrent_dropout must be in \[0, 1\), got 1.0"):
        LSTMClassifier(3, 2, recurrent_dropout=1.0)
    with pytest.raises(ValueError, match="delta_t must be a time above 0 ms, got 0"):
        LSTMClassifier(3, 2, delta_t=0)
    with pytest.raises(
        ValueError, match=r"timescales must rise and end at 2 steps of 10.0 ms or later, got \(1.0, 15.0\) ms"
    ):
        LSTMClassifier(3, 2, timescales=(1.0, 15.0), delta_t=10.0)
    with pytest.raises(
        ValueError, match=r"x must have shape \(batch, time, 3\) with at least one step, got \(1, 2, 4\)"
    ):
        LSTMClassifier(3, 2)(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="hidden must be a layer with recurrent=True"):
        RecurrentLIFClassifier(LIF(3, 2), output_size=2)
    with pytest.raises(ValueError, match=r"readout must be one of \['last', 'mean', 'sum'\], got 'max'"):
        LeakyReadout(3, 2, delta_t=1.0, tau_v=1.0, readout="max")


@pytest.mark.parametrize("time", [-20.0, 0.0, math.nan, math.inf])
def test_the_time_constant_of_a_readout_is_above_0(time: float) -> None:
    recurrent = LIF(3, 3, recurrent=True)
    cases: list[tuple[str, Any]] = [
        ("tau_readout", lambda: ALIFNetwork(ALIF(3, 3), ALIF(3, 3), output_size=2, tau_readout=time)),
        ("tau_readout", lambda: LIFNetwork(LIF(3, 3), recurrent, output_size=2, tau_readout=time)),
        ("tau_readout", lambda: RecurrentLIFClassifier(recurrent, output_size=2, tau_readout=time)),
        ("tau_v", lambda: LeakyReadout(3, 2, delta_t=1.0, tau_v=time)),
        ("delta_t", lambda: LeakyReadout(3, 2, delta_t=time, tau_v=9.0)),
    ]
    for name, make in cases:
        with pytest.raises(ValueError, match=f"{name} must be a time above 0 ms, got {time}"):
            make()
    with pytest.raises(ValueError, match=r"tau_v must give a decay per step of at most 0\.999, got 2000\.0 ms"):
        LeakyReadout(3, 2, delta_t=1.0, tau_v=2000.0)


def test_sizes_of_networks_are_at_least_1() -> None:
    tower, times = TokenClassifier(ELM(5, 3, num_memory=2)), {"delta_t": 1.0, "tau_v": 9.0}
    cases: list[tuple[str, Any]] = [
        ("input_size", lambda: LeakyReadout(0, 2, **times)),
        ("output_size", lambda: LeakyReadout(3, 0, **times)),
        ("output_size", lambda: ALIFNetwork(ALIF(3, 3), ALIF(3, 3), output_size=0)),
        ("num_classes", lambda: TwoTowers(tower, num_classes=0)),
        ("num_classes", lambda: NormalisedReadout(tower, num_classes=0)),
        ("hidden_size", lambda: NormalisedReadout(tower, hidden_size=0)),
        ("num_tokens", lambda: ResidualStack([ELM(5, 10, num_memory=2)], num_tokens=0, num_classes=2)),
        ("num_classes", lambda: ResidualStack([ELM(5, 10, num_memory=2)], num_tokens=4, num_classes=0)),
    ]
    for name, make in cases:
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            make()


NETWORKS: dict[str, Any] = {
    "LIF": lambda: LIFNetwork(LIF(30, 6), LIF(6, 6, recurrent=True), output_size=4),
    "ALIF": lambda: ALIFNetwork(ALIF(30, 6, recurrent=True), ALIF(6, 6, recurrent=True), output_size=4),
    "recurrent LIF": lambda: RecurrentLIFClassifier(LIF(30, 6, recurrent=True), output_size=4),
    "LSTM": lambda: LSTMClassifier(30, 4, 6),
    "Chrono-LSTM": lambda: LSTMClassifier(30, 4, 6, timescales=(1.0, 50.0)),
    "ELM": lambda: SequenceClassifier(ELM(30, 4, num_memory=5)),
    "regression": lambda: LIFRegression(30),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loop_over_all_modules_draws_a_network_as_the_constructor_does(name: str) -> None:
    network, *others = (NETWORKS[name]() for _ in range(3))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
    network.apply(lambda part: part.reset_parameters() if hasattr(part, "reset_parameters") else None)
    for key, parameter in network.named_parameters():
        one, two = (other.get_parameter(key) for other in others)
        if torch.equal(one, two):  # which nobody draws
            assert torch.equal(parameter, one), key
        else:  # drawn, from as wide a range
            assert not torch.equal(parameter, one), key
            assert 0.2 < float(parameter.detach().abs().max() / one.detach().abs().max()) < 5.0, key
