"""The examples as a user runs them, small."""

from __future__ import annotations

import csv
import runpy
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("lightning")
pytest.importorskip("h5py")

STUDY = Path(__file__).resolve().parents[2] / "examples" / "shd_study.py"


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The script, run here: test_examples.py runs it in a process of its own."""

    def run(*arguments: str) -> Done:
        places = ["--cache-dir", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [str(STUDY), "--smoke", *places, *arguments])
        capsys.readouterr()
        try:
            runpy.run_path(str(STUDY), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return run


def points(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_study_stops_when_its_time_is_up_goes_on_and_repeats_nothing(
    tmp_path: Path, study: Callable[..., Done]
) -> None:
    pytest.importorskip("optuna")
    out = tmp_path / "out"
    stopped = study("--task", "adding", "--minutes", "0.0001", "--models", "elm")  # a grid may grow
    assert stopped.returncode == 0, stopped.stderr
    assert "the time is up" in stopped.stdout
    early = points(out / "bins.csv") if (out / "bins.csv").exists() else []
    assert len(early) < 2
    with sqlite3.connect(out / "study.db") as base:  # what Ctrl-C leaves behind
        base.execute("UPDATE trials SET state = 'FAIL' WHERE number = 0")
    whole = study("--task", "adding")
    assert whole.returncode == 0, whole.stderr
    found = points(out / "bins.csv")
    assert sorted((row["model"], row["bin_ms"], row["seed"]) for row in found) == [
        (model, "50.0", seed) for model in ("elm", "lif") for seed in ("0", "1")
    ]
    table = (out / "bins.md").read_text()
    assert "synthetic digits, which say nothing about SHD" in table
    assert "| ELM | 50 |" in table and "| majority class |" in table
    assert (out / "bins.png").exists() and (out / "bins.pdf").exists()
    curves = points(out / "curves.csv")
    assert [(row["model"], row["seed"], row["updates"]) for row in curves] == [
        (row["model"], row["seed"], updates) for row in found for updates in ("2", "4")
    ]
    for row in found:  # the checkpoint that is tested is the best of the curve
        of_run = [point for point in curves if (point["model"], point["seed"]) == (row["model"], row["seed"])]
        assert float(row["valid"]) == pytest.approx(max(float(point["valid"]) for point in of_run))
        assert 0 < float(of_run[0]["processor_seconds"]) <= float(row["processor_seconds"])
    assert (out / "curves.png").exists() and "curve" not in found[0]
    again = study("--task", "adding")
    assert "test " not in again.stdout.split("SHD-Adding protocol")[0]  # nothing was trained
    assert points(out / "bins.csv") == found


@pytest.mark.slow
def test_a_study_repeats_the_ablations_of_the_paper(tmp_path: Path, study: Callable[..., Done]) -> None:
    pytest.importorskip("optuna")
    done = study("--models", "--ablations", "timescales", "latency", "--seeds", "3")
    assert done.returncode == 0, done.stderr
    rows = points(tmp_path / "out" / "ablation_timescales.csv")
    assert [float(row["tau_m_high"]) for row in rows] == [10, 50, 150, 500, 1000]
    assert {row["seed"] for row in rows} == {"3"}
    rows = points(tmp_path / "out" / "ablation_latency.csv")
    assert [(row["model"], float(row["latency"])) for row in rows] == [
        (model, latency) for model in ("alif", "alif_blocks") for latency in (0, 10, 20, 50, 100)
    ]
    assert not (tmp_path / "out" / "bins.csv").exists()


def test_the_study_refuses_a_file_that_is_not_there(tmp_path: Path, study: Callable[..., Done]) -> None:
    pytest.importorskip("optuna")
    done = study("--train-file", "none.h5", "--test-file", "b.h5")
    assert done.returncode == 2
    assert "--train-file must be an SHD-format file, got none.h5" in done.stderr


@pytest.mark.parametrize(("channels", "bin_ms"), [(140, 10.0), (700, 2.0)])
def test_adaptive_lif_neurons_alone_and_before_an_elm_have_the_parameters_of_an_elm(
    channels: int, bin_ms: float
) -> None:
    pytest.importorskip("optuna")
    parts = runpy.run_path(str(STUDY), run_name="study")
    sizes = {"num_channels": channels, "num_classes": 20, "bin_ms": bin_ms}
    elm, *others = (parts["num_parameters"](parts["network"](name, **sizes)) for name in ("elm", "alif", "alif_elm"))
    assert all(0 <= count - elm < 0.02 * elm for count in others)


@pytest.mark.slow
def test_adaptive_lif_neurons_are_a_study_of_their_latency(tmp_path: Path, study: Callable[..., Done]) -> None:
    pytest.importorskip("optuna")
    done = study("--models", "alif", "alif_elm", "--seeds", "0", "--latency", "50")
    assert done.returncode == 0, done.stderr
    assert [point["model"] for point in points(tmp_path / "out" / "bins.csv")] == ["alif", "alif_elm"]
    with sqlite3.connect(tmp_path / "out" / "study.db") as base:
        assert "latency 50 ms" in base.execute("select study_name from studies").fetchone()[0]
