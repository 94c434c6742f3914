"""Evaluation is the authors' to the last digit, from their predictions and from their checkpoint, and says what is
undefined.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import explained_variance_score, mean_absolute_error, mean_squared_error, roc_auc_score
from torch import nn

from elm_neuro import cli
from elm_neuro.checkpoints import from_upstream
from elm_neuro.datasets import convert_neuronio, read_simulation_file
from elm_neuro.training import Prediction, Windows, evaluate_neuronio, predict_neuronio
from elm_neuro.training.neuronio._metrics import aligned, chosen, figures, intervals, pooled
from elm_neuro.training.neuronio._tables import evaluation_remarks, evaluation_table
from tests.datasets.neuronio.neuronio_files import made, write

SETTINGS = [(500, 150), (1000, 500)]
TOLERANCES = {"AUC": 5e-5, "soma_RMSE": 1e-4, "soma_MAE": 1e-4, "soma_explained_variance_percent": 1e-4}
ONE_SPIKE = 1 / 12 + 1e-9  # of the twelve of part_00 after its first 500 ms


@pytest.fixture
def folder(shared: Path) -> Path:
    return shared / "data" / "neuronio"


@pytest.fixture
def part_00(folder: Path) -> Path:
    return next(folder.glob("*part_00.p"))


@pytest.fixture
def part_03(folder: Path) -> Path:
    return next(folder.glob("*part_03.p"))


def reference(folder: Path, setting: tuple[int, int]) -> dict[str, float]:
    found: dict[str, dict[str, float]] = json.loads((folder / "reference_metrics.json").read_text())["num_memory_10"]
    return found[f"window {setting[0]}, burn-in {setting[1]}"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_figures_of_the_authors_predictions_are_the_authors(folder: Path, setting: tuple[int, int]) -> None:
    stored = np.load(folder / "reference_predictions.npz")
    name = f"num_memory_10_w{setting[0]}b{setting[1]}"
    spikes, soma = stored["y_spike_GT"].astype(bool), stored["y_soma_GT_capped_minus_bias"]
    found = figures(chosen(Prediction(spikes, stored[f"{name}_spike_hat"], soma, stored[f"{name}_soma_hat_aligned"])))
    expected = reference(folder, setting)
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=0, abs=1e-9), key


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("converted", [False, True])
def test_the_checkpoint_scores_what_the_authors_say(
    folder: Path, part_00: Path, shared: Path, tmp_path: Path, setting: tuple[int, int], converted: bool
) -> None:
    files: list[Path] = [part_00]
    if converted:
        files = [tmp_path / name for name in convert_neuronio(files, tmp_path)]
    neuron = from_upstream(shared / "data" / "checkpoints" / "num_memory_10")
    outcome = evaluate_neuronio(neuron, files, windows=Windows(*setting), num_draws=0)
    for key, value in reference(folder, setting).items():
        assert outcome["published"]["figures"][key] == pytest.approx(
            value, rel=0, abs=TOLERANCES.get(key, ONE_SPIKE)
        ), key
    assert (outcome["published"]["simulations"], outcome["published"]["spikes"]) == (4, 12)
    raw = outcome["raw"]["figures"]
    assert raw["soma_RMSE"] != pytest.approx(outcome["published"]["figures"]["soma_RMSE"], abs=1e-3)


def test_raw_figures_are_those_of_one_long_run(part_00: Path, shared: Path) -> None:
    neuron = from_upstream(shared / "data" / "checkpoints" / "num_memory_20")
    simulations = read_simulation_file(part_00)
    frames = torch.zeros(4, 6000, 1278)
    for i in range(4):
        indptr, channel = simulations.rows(i)
        frames[i, np.repeat(np.arange(6000), np.diff(indptr)), channel] = torch.where(
            torch.from_numpy(channel.astype(np.int64)) < 639, 1.0, -1.0
        )
    with torch.no_grad():
        y = neuron(frames)[0][:, 500:].numpy()
    spikes = np.stack([simulations.spikes(i) for i in range(4)])[:, 500:]
    soma = np.minimum(simulations.soma_mv[:, 500:].astype(float), -55).ravel()
    soma_hat = 10 * y[..., 1].astype(float).ravel() - 67.7
    found = evaluate_neuronio(neuron, [part_00], num_draws=0)["raw"]["figures"]
    assert found["AUC"] == pytest.approx(roc_auc_score(spikes.ravel(), y[..., 0].ravel()), abs=1e-7)
    assert found["soma_RMSE"] == pytest.approx(mean_squared_error(soma, soma_hat) ** 0.5, rel=1e-4)
    assert found["soma_MAE"] == pytest.approx(mean_absolute_error(soma, soma_hat), rel=1e-4)
    assert found["soma_explained_variance_percent"] == pytest.approx(
        100 * explained_variance_score(soma, soma_hat), rel=1e-5
    )


def test_a_file_without_a_spike_is_undefined_and_says_so(
    part_03: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shared / "data" / "checkpoints" / "num_memory_10"
    outcome = tmp_path / "figures.json"
    status = cli.main(
        ["neuronio", "eval", "--model", str(model), "--data", str(part_03), "--json", str(outcome), "--draws", "20"]
    )
    assert status == 0
    shown = capsys.readouterr().out
    assert "undefined: there is no output spike to predict" in shown and "nan" not in shown.lower().replace("nano", "")
    found = json.loads(outcome.read_text())
    assert found["published"]["figures"]["AUC"] is None
    assert found["published"]["figures"]["soma_RMSE"] == pytest.approx(0.294, abs=0.001)
    assert found["published"]["intervals"]["soma_RMSE"][0] < 0.294 < found["published"]["intervals"]["soma_RMSE"][1]


def test_two_files_are_aligned_each_and_pooled(part_00: Path, part_03: Path, shared: Path) -> None:
    neuron = from_upstream(shared / "data" / "checkpoints" / "num_memory_10")
    both = evaluate_neuronio(neuron, [part_00, part_03], num_draws=0)["published"]
    parts = []
    for file in (part_00, part_03):
        found = predict_neuronio(neuron, read_simulation_file(file), Windows())
        parts.append(found._replace(soma_hat=aligned(found.soma, found.soma_hat)))
    expected = figures(chosen(pooled(parts)))
    assert both["simulations"] == 8
    for key, value in expected.items():
        assert both["figures"][key] == pytest.approx(value, rel=1e-5), key


class Counting(nn.Module):
    """Gives as voltage how many steps it has run, so that every output tells where it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Any) -> torch.Tensor:
        steps = torch.arange(1.0, x.num_steps + 1).expand(x.batch, -1)
        return torch.stack((steps, steps), dim=-1) + self.weight


@pytest.mark.parametrize(
    ("num_steps", "window", "burn_in"),
    [(400, 100, 30), (401, 100, 30), (400, 100, 0), (80, 100, 30), (100, 100, 99), (399, 400, 1)],
)
def test_windows_are_cut_as_published(tmp_path: Path, num_steps: int, window: int, burn_in: int) -> None:
    """Every ms comes from the window whose steps after the burn-in hold it; the first window keeps its own."""
    simulations = read_simulation_file(write(tmp_path / "sim__1.p", made(2, num_steps)))
    found = predict_neuronio(Counting(), simulations, Windows(window, burn_in), batch_size=3).soma_hat / 10
    stride, expected = window - burn_in, np.arange(1.0, num_steps + 1)
    for step in range(num_steps):
        if step >= window:
            number = (step - burn_in) // stride
            expected[step] = step - number * stride + 1
    np.testing.assert_array_equal(found, np.stack([expected, expected]))


def test_simulations_with_many_spikes_and_the_start_are_left_out() -> None:
    spikes = np.zeros((3, 900), bool)
    spikes[0, :24], spikes[1, 10:35] = True, True  # 24 and 25, most of them in the first 500 ms
    score = np.arange(2700.0).reshape(3, 900)
    kept = chosen(Prediction(spikes, score, score, score))
    np.testing.assert_array_equal(kept.probability, score[[0, 2], 500:])
    assert chosen(Prediction(spikes, score, score, score), max_spikes=None).spikes.shape == (3, 400)


def test_alignment_gives_mean_and_spread_of_the_truth() -> None:
    rng = np.random.default_rng(0)
    soma, soma_hat = rng.normal(3, 2, (4, 100)), rng.normal(-1, 0.5, (4, 100))
    found = aligned(soma, soma_hat)
    np.testing.assert_allclose([found.mean(), found.std()], [soma.mean(), soma.std()])
    assert np.corrcoef(found.ravel(), soma_hat.ravel())[0, 1] == pytest.approx(1.0)
    np.testing.assert_allclose(aligned(soma, np.ones((4, 100))), soma.mean())


def test_what_is_undefined_is_none_and_never_nan() -> None:
    flat, none = np.zeros((2, 50)), np.zeros((2, 50), bool)
    for spikes in (none, ~none, none[:0]):
        size = len(spikes)
        found = figures(Prediction(spikes, flat[:size], flat[:size], flat[:size]))
        assert all(value is None or np.isfinite(value) for value in found.values())
        assert found["AUC"] is None and found["soma_explained_variance_percent"] is None
    assert set(intervals(Prediction(none[:1], flat[:1], flat[:1], flat[:1])).values()) == {None}


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """RMSE of simulations whose errors are of one size each; 95 % intervals from 30 simulations hold the true RMSE in
    about 92 of 100 cases.
    """
    rng, held = np.random.default_rng(0), 0
    for case in range(100):
        size = rng.uniform(0.5, 1.5, (30, 1))
        soma = rng.standard_normal((30, 40))
        error = size * np.where(rng.random((30, 40)) < 0.5, -1, 1)
        found = intervals(Prediction(np.zeros((30, 40), bool), soma, soma, soma + error), num_draws=100, seed=case)[
            "soma_RMSE"
        ]
        assert found is not None
        held += found[0] <= np.sqrt(13 / 12) <= found[1]
    assert held >= 85
    with pytest.raises(ValueError, match="num_draws must be at least 1"):
        intervals(Prediction(np.zeros((3, 4), bool), soma, soma, soma), num_draws=0)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"burn_in_ms must be in \[0, window_ms = 100\), got 100"):
        Windows(100, 100)
    with pytest.raises(ValueError, match="files must name at least one file"):
        evaluate_neuronio(Counting(), [])
    one, two = write(tmp_path / "sim__1.p", made(1, 600)), write(tmp_path / "sim__2.p", made(1, 700))
    with pytest.raises(ValueError, match=r"as long as each other to be pooled, got lengths of \[600, 700\] ms"):
        evaluate_neuronio(Counting(), [one, two], num_draws=0)
    broken = Counting()
    broken.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="must give finite outputs"):
        evaluate_neuronio(broken, [one], num_draws=0)


def test_evaluation_leaves_the_mode_of_the_network(tmp_path: Path) -> None:
    network, seen = Counting().train(), []
    evaluate_neuronio(
        network, [write(tmp_path / "sim__1.p", made(3, 600))], num_draws=3, progress=lambda *a: seen.append(a[1:])
    )
    assert network.training
    assert seen[-1] == (6, 6) and seen == sorted(seen)


def test_the_table_shows_figures_with_their_intervals(tmp_path: Path) -> None:
    outcome = evaluate_neuronio(Counting(), [write(tmp_path / "sim__1.p", made(3, 600))], num_draws=5)
    console = Console(record=True, width=150, file=open(tmp_path / "shown.txt", "w", encoding="utf-8"))  # noqa: SIM115
    console.print(evaluation_table(outcome))
    console.file.close()
    shown = console.export_text()
    assert "published protocol" in shown and "voltage: RMSE (mV)" in shown
    value = outcome["raw"]["figures"]["soma_RMSE"]
    assert f"{value:.3f} [" in shown
    assert any("nothing aligned" in line for line in evaluation_remarks(outcome))
