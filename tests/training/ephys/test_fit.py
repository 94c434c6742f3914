"""A neuron of known numbers is recovered from its spikes, and what a model explains is counted right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elm_neuro import ALIF, pretrained
from elm_neuro.datasets import KnownNeuron, cut_sweeps, make_ephys, read_sweeps
from elm_neuro.training import NeuronFit, explained_temporal_variance, fit_neuron
from elm_neuro.training.ephys._metrics import smoothed

pytest.importorskip("h5py")


def test_smoothing_is_the_gaussian_sum() -> None:
    random = np.random.default_rng(0)
    train = random.random((2, 90)) < 0.1
    found = smoothed(train, 3.5)
    weights = {k: math.exp(-0.5 * (k / 3.5) ** 2) for k in range(-14, 15)}
    total = sum(weights.values())
    for row in range(2):
        for t in range(90):
            wanted = sum(weights[k] / total for k in weights if 0 <= t - k < 90 and train[row, t - k])
            assert found[row, t] == pytest.approx(wanted, abs=1e-14)
    with pytest.raises(ValueError, match="sigma must be a number of steps above 0, got 0"):
        smoothed(train, 0)


def test_explained_variance_is_that_of_plain_python() -> None:
    random = np.random.default_rng(1)
    predicted, recorded = random.random((2, 3, 60)) < 0.1, random.random((4, 3, 60)) < 0.1

    def explained(x: list[float], y: list[float]) -> float:
        def variance(values: list[float]) -> float:
            mean = sum(values) / len(values)
            return sum((value - mean) ** 2 for value in values) / len(values)

        both = variance(x) + variance(y)
        return (both - variance([a - b for a, b in zip(x, y, strict=True)])) / both

    rows = [list(smoothed(repeat, 5.0).ravel()) for repeat in recorded]
    mean = [sum(values) / 4 for values in zip(*rows, strict=True)]
    found = [explained(list(smoothed(repeat, 5.0).ravel()), mean) for repeat in predicted]
    wanted = (sum(found) / 2) / (sum(explained(row, mean) for row in rows) / 4)
    assert explained_temporal_variance(predicted, recorded, 5.0) == pytest.approx(wanted, rel=1e-12)
    assert explained_temporal_variance(recorded, recorded, 5.0) == pytest.approx(1.0)
    assert math.isnan(explained_temporal_variance(np.zeros((1, 3, 60)), np.zeros((1, 3, 60))))
    with pytest.raises(ValueError, match=r"that fit, got \(2, 3, 60\) and \(4, 3, 50\)"):
        explained_temporal_variance(predicted, recorded[..., :50])


def test_a_known_neuron_is_recovered_from_its_spikes(tmp_path: Path) -> None:
    known, starts = KnownNeuron(), (0.1, 1.3, 2.5)
    make_ephys(tmp_path / "cell.nwb", known, num_repeats=2, starts_s=starts, duration_s=1.0, noise=0.0)
    train, test = (
        cut_sweeps(read_sweeps(tmp_path / "cell.nwb", name), starts_s=starts) for name in ("Noise 1", "Noise 2")
    )
    rounds: list[int] = []
    fit = fit_neuron(
        train.current[0], train.spikes, step_ms=0.1, num_rounds=15, progress=lambda done, of: rounds.append(done)
    )
    assert rounds == list(range(1, 16))
    assert explained_temporal_variance(fit.spikes(train.current[:1]), train.spikes) > 0.97
    assert (
        explained_temporal_variance(fit.spikes(test.current[:1]), test.spikes) > 0.95
    )  # a stimulus it was not fitted to
    found = fit.numbers()
    assert found["tau_v"] == pytest.approx(known.tau_v, rel=0.15)
    assert found["tau_a"] == pytest.approx(known.tau_a, rel=0.4)  # some forty spikes leave it open
    assert found["weight"] == pytest.approx(known.weight, rel=0.25)
    again = fit_neuron(train.current[0], train.spikes, step_ms=0.1, num_rounds=15)
    assert again.numbers() == found and again.distance == fit.distance
    pretrained.save_pretrained(fit.neuron, tmp_path / "neuron")
    loaded = pretrained.from_pretrained(tmp_path / "neuron")
    x = torch.from_numpy(train.current[0][..., None] / (100 * fit.largest)).float()
    np.testing.assert_array_equal(loaded(x)[0][..., 0].detach().numpy() > 0, fit.spikes(train.current[0]))


def test_recordings_that_cannot_be_fitted_are_refused() -> None:
    current, spikes = np.ones((2, 100)), np.zeros((3, 2, 100))
    with pytest.raises(ValueError, match="spikes must hold a spike"):
        fit_neuron(current, spikes, step_ms=0.1)
    spikes[0, 0, 5] = 1
    with pytest.raises(ValueError, match="current be finite and above 0 somewhere"):
        fit_neuron(-current, spikes, step_ms=0.1)
    with pytest.raises(ValueError, match=r"got \(2, 90\) and \(3, 2, 100\)"):
        fit_neuron(current[:, :90], spikes, step_ms=0.1)
    with pytest.raises(ValueError, match="num_candidates must be at least 20 and num_rounds at least 1, got 10 and 30"):
        fit_neuron(current, spikes, step_ms=0.1, num_candidates=10)
    for step_ms in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"step_ms must be a time above 0 ms, got {step_ms}"):
            fit_neuron(current, spikes, step_ms=step_ms)
    counts: list[dict[str, Any]] = [{"num_candidates": 50.0}, {"num_rounds": 2.0}, {"num_rounds": True}]
    for count in counts:
        with pytest.raises(TypeError, match=f"{next(iter(count))} must be an integer, got "):
            fit_neuron(current, spikes, step_ms=0.1, **count)
    for value in (math.nan, math.inf, -1.0):
        spikes[1, 1, 7] = value
        with pytest.raises(ValueError, match="spikes must be finite and not negative"):
            fit_neuron(current, spikes, step_ms=0.1)


def test_a_current_of_no_steps_causes_no_spikes() -> None:
    fit = NeuronFit(ALIF(1, 1), 100.0, 0.0)
    for shape in ((2, 0), (0, 5), (0,)):
        assert fit.spikes(np.zeros(shape)).shape == shape
    with pytest.raises(ValueError, match=r"current must have shape \(..., num_steps\), got the number 3.0"):
        fit.spikes(3.0)


@pytest.mark.parametrize("num_steps", [1, 5, 40])
@pytest.mark.parametrize("sigma", [0.3, 9.0, 1e4])
def test_a_gaussian_wider_than_the_train_is_cut_at_the_train(num_steps: int, sigma: float) -> None:
    train = np.random.default_rng(3).random(num_steps) < 0.4
    reach = math.ceil(4 * sigma)
    total = math.fsum(math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1))
    for t, found in enumerate(smoothed(train, sigma)):
        near = [k for k in range(num_steps) if train[k] and abs(t - k) <= reach]
        wanted = math.fsum(math.exp(-0.5 * ((t - k) / sigma) ** 2) for k in near) / total
        assert found == pytest.approx(wanted, rel=1e-12)


def test_a_train_meets_no_more_of_a_gaussian_than_it_can_see(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, convolve = [], np.convolve
    monkeypatch.setattr(np, "convolve", lambda row, kernel: (sizes.append(kernel.size), convolve(row, kernel))[1])
    smoothed(np.ones((2, 40)), 1e5)
    assert sizes == [79, 79]
