"""Figures of NeuronIO show what they were given, and are written as PNG and PDF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from elm_neuro import ELM, BranchELM, plotting
from elm_neuro.datasets import read_simulation_file
from elm_neuro.training import (
    Prediction,
    evaluation_figures,
    neuronio_ablation,
    neuronio_workings,
    predict_protocols,
    receptive_fields,
    roc_curves,
    summarise_protocols,
)
from elm_neuro.training.neuronio._figures import branch_weights
from tests.datasets.neuronio.neuronio_files import made, write


def neuron() -> BranchELM:
    torch.manual_seed(0)
    return BranchELM(1278, 2, 6, num_branch=45, num_synapse_per_branch=100)


def prediction(seed: int) -> Prediction:
    rng = np.random.default_rng(seed)
    spikes = rng.random((3, 500)) < 0.02
    score = spikes + rng.standard_normal((3, 500))
    return Prediction(spikes, score, score, score)


def test_workings_show_truth_and_prediction(tmp_path: Path) -> None:
    simulations = read_simulation_file(write(tmp_path / "sim__1.p", made(2, 400, seed=2)))
    figure = neuronio_workings(neuron(), simulations, 1, start=0, stop=300)
    soma = figure.axes[1]
    np.testing.assert_allclose(soma.lines[0].get_ydata(), np.minimum(simulations.soma_mv[1, :300].astype(float), -55))
    with torch.no_grad():
        indptr, channel = simulations.rows(1, 0, 300)
        frames = torch.zeros(1, 300, 1278)
        frames[0, np.repeat(np.arange(300), np.diff(indptr)), channel] = torch.where(
            torch.from_numpy(channel.astype(int)) < 639, 1.0, -1.0
        )
        y = neuron()(frames)[0][0]
    np.testing.assert_allclose(np.asarray(soma.lines[1].get_ydata(), float), 10 * y[:, 1] - 67.7, atol=1e-3)
    chance = next(axis for axis in figure.axes if "probability" in axis.get_ylabel())
    np.testing.assert_allclose(np.asarray(chance.lines[0].get_ydata(), float), torch.sigmoid(y[:, 0]), atol=1e-4)
    png, pdf = plotting.save(figure, tmp_path / "workings")
    assert png.stat().st_size > 10_000 and pdf.read_bytes()[:4] == b"%PDF"
    with pytest.raises(ValueError, match="start and stop must rise"):
        neuronio_workings(neuron(), simulations, stop=401)


def test_roc_curves_show_the_whole_and_the_low_end(tmp_path: Path) -> None:
    figure = roc_curves({"one": prediction(0), "two": prediction(1)})
    whole, low = figure.axes
    assert len(whole.lines) == 3 and low.get_xlim() == (0.0, 1.5)
    x, y = (np.asarray(values, float) for values in (whole.lines[0].get_xdata(), whole.lines[0].get_ydata()))
    truth, score = prediction(0).spikes.ravel(), prediction(0).probability.ravel()
    threshold = np.quantile(score, 0.9)
    at = np.array([100 * np.mean(score[~truth] >= threshold), 100 * np.mean(score[truth] >= threshold)])
    assert np.interp(at[0], x, y) == pytest.approx(at[1], abs=4)  # steps of one spike in 30
    assert plotting.save(figure, tmp_path / "roc")[0].stat().st_size > 10_000
    with pytest.raises(ValueError, match="at least one network"):
        roc_curves({})
    with pytest.raises(ValueError, match="must hold steps with and without a spike"):
        roc_curves({"none": prediction(0)._replace(spikes=np.zeros((3, 500), bool))})


def test_ablations_show_every_family_in_its_order(tmp_path: Path) -> None:
    points = [(8022.0, 0.99, 0.98, 1.0), (5862.0, 0.98, float("nan"), float("nan"))]
    figure = neuronio_ablation({"AUC": {"Branch-ELM": points, "LSTM": points[:1]}, "RMSE (mV)": {"LSTM": points}})
    assert list(figure.axes[0].lines[0].get_xdata()) == [5862.0, 8022.0]
    assert plotting.save(figure, tmp_path / "ablation")[1].stat().st_size > 5_000
    with pytest.raises(ValueError, match="at least one family each"):
        neuronio_ablation({"AUC": {}})


def test_receptive_fields_are_the_weights_of_each_input(tmp_path: Path) -> None:
    own = neuron()
    with torch.no_grad():
        own.cell._proto_w_s.uniform_(-0.3, 1)
    fields, index = branch_weights(own), own.cell.input_to_synapse_indices
    assert index is not None
    expected = np.zeros((45, 1278))
    for branch in range(45):
        for synapse in range(100):
            if index[branch, synapse] >= 0:
                expected[branch, index[branch, synapse]] += max(0.0, own.cell._proto_w_s[branch, synapse].item())
    np.testing.assert_allclose(fields, expected, rtol=1e-6)
    assert plotting.save(receptive_fields(own), tmp_path / "fields")[0].stat().st_size > 10_000
    with pytest.raises(ValueError, match="must have branches and 1278 inputs"):
        receptive_fields(ELM(1278, 2, 3))


def test_the_curve_is_drawn_of_the_predictions_that_the_table_is_made_of(tmp_path: Path) -> None:
    files = [write(tmp_path / f"sim__{i}.p", made(2, 900, seed=i, rate=0.002)) for i in range(2)]
    predictions = predict_protocols(neuron(), files)
    table = summarise_protocols(predictions, num_draws=0)["published"]
    figures = evaluation_figures(neuron(), {"a neuron": predictions}, files[0])
    assert figures.keys() == {"workings", "receptive_fields", "roc"}
    whole = figures["roc"].axes[0].lines[0]
    fpr, tpr = (np.asarray(values, float) / 100 for values in (whole.get_xdata(), whole.get_ydata()))
    area = float(np.dot(np.diff(fpr), (tpr[1:] + tpr[:-1]) / 2))
    assert area == pytest.approx(table["figures"]["AUC"], abs=1e-9)
    assert whole.get_label() == f"a neuron, AUC {table['figures']['AUC']:.4f}"
    assert predictions.published.spikes.shape == (4, 400)  # both files, without the first 500 ms
    for figure in figures.values():
        assert "sim__0.p" in figure.get_suptitle()
