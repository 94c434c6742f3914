"""The examples as a user runs them, small."""

from __future__ import annotations

import csv
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("h5py")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def study(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(EXAMPLES / "shd_study.py"),
        "--smoke",
        "--cache-dir",
        str(folder / "cache"),
        "--out",
        str(folder / "out"),
    ]
    return subprocess.run([*command, *arguments], capture_output=True, text=True)


def points(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_study_stops_when_its_time_is_up_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    out = tmp_path / "out"
    stopped = study(tmp_path, "--task", "adding", "--minutes", "0.0001")
    assert stopped.returncode == 0, stopped.stderr
    assert "the time is up" in stopped.stdout
    early = points(out / "bins.csv") if (out / "bins.csv").exists() else []
    assert len(early) < 4
    with sqlite3.connect(out / "study.db") as base:  # what Ctrl-C leaves behind
        base.execute("UPDATE trials SET state = 'FAIL' WHERE number = 0")
    whole = study(tmp_path, "--task", "adding")
    assert whole.returncode == 0, whole.stderr
    found = points(out / "bins.csv")
    assert sorted((row["model"], row["bin_ms"], row["seed"]) for row in found) == [
        (model, "50.0", seed) for model in ("elm", "lif") for seed in ("0", "1")
    ]
    table = (out / "bins.md").read_text()
    assert "synthetic digits, which say nothing about SHD" in table
    assert "| ELM | 50 |" in table and "| majority class |" in table
    assert (out / "bins.png").exists() and (out / "bins.pdf").exists()
    again = study(tmp_path, "--task", "adding")
    assert "test " not in again.stdout.split("SHD-Adding protocol")[0]  # nothing was trained
    assert points(out / "bins.csv") == found


def test_a_study_repeats_the_ablations_of_the_paper(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    done = study(tmp_path, "--models", "--ablations", "timescales", "--seeds", "3")
    assert done.returncode == 0, done.stderr
    rows = points(tmp_path / "out" / "ablation_timescales.csv")
    assert [float(row["tau_m_high"]) for row in rows] == [10, 50, 150, 500, 1000]
    assert {row["seed"] for row in rows} == {"3"}
    assert not (tmp_path / "out" / "bins.csv").exists()


def test_the_study_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    done = study(tmp_path, "--train-file", "none.h5", "--test-file", "b.h5")
    assert done.returncode == 2
    assert "--train-file must be an SHD-format file, got none.h5" in done.stderr
