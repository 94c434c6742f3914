"""The command demo, as a user calls it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("h5py")

from elm_neuro import ELM, __version__
from elm_neuro.checkpoints import from_pretrained
from elm_neuro.cli import main
from elm_neuro.demo import DemoSettings
from elm_neuro.demo._run import History
from elm_neuro.training.loop._quiet import without_advice

FIGURES = {
    f"{name}.{kind}"
    for name in ("rasters", "neuron", "timescales", "learning_curve", "confusion")
    for kind in ("png", "pdf")
}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of `demo --smoke --task digits`."""
    folder = tmp_path_factory.mktemp("demo")
    places = ["--report", str(folder / "report"), "--cache-dir", str(folder / "cache")]
    with without_advice():
        assert main(["demo", "--smoke", "--task", "digits", *places]) == 0
    return folder / "report"


@pytest.fixture
def nothing_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither figures nor ONNX: `smoke` has both."""
    monkeypatch.setattr("elm_neuro.demo.write_figures", lambda *_: None)
    monkeypatch.setattr("elm_neuro.cli._demo._onnx", lambda *_: {"file": None, "outcome": "left out"})


def test_the_demo_writes_every_file_of_its_report(smoke: Path) -> None:
    files = {path.name for path in smoke.iterdir()}
    assert files == FIGURES | {"checkpoints", "elm", "elm_step.onnx", "metrics.json", "report.md"}
    assert {path.name for path in (smoke / "checkpoints").iterdir()} == {
        "lif-elm-seed0.ckpt",
        "lif-only-seed0.ckpt",
        "settings.json",
    }


def test_the_demos_metrics_hold_both_networks_and_the_majority_class(smoke: Path) -> None:
    metrics: dict[str, Any] = json.loads((smoke / "metrics.json").read_text())
    mixed, control = metrics["networks"]["LIF + ELM"], metrics["networks"]["LIF only"]
    assert abs(control["parameters"] / mixed["parameters"] - 1) <= 0.02
    assert metrics["majority"] == pytest.approx(0.05)  # 60 samples of 20 classes in equal numbers
    assert metrics["data"]["speakers"]["test only"] == [4, 5]
    assert len(mixed["runs"][0]["history"]["valid/accuracy"]) == metrics["settings"]["num_epochs"] == 2
    test = mixed["runs"][0]["test"]
    assert test["accuracy"] == pytest.approx((20 * test["accuracy_seen"] + 40 * test["accuracy_unseen"]) / 60)
    assert metrics["versions"]["elm_neuro"] == __version__
    assert max(metrics["onnx"]["errors"].values()) < 1e-3


def test_the_demos_report_says_that_its_data_are_synthetic(smoke: Path) -> None:
    text = (smoke / "report.md").read_text()
    assert "**The data are synthetic**" in text
    assert "not an accuracy on SHD" in text
    assert "| majority class | – | 5.0 % |" in text
    for picture in ("rasters", "neuron", "timescales", "confusion", "learning_curve"):
        assert f"]({picture}.png)" in text and f"]({picture}.pdf)" in text


def test_the_demos_neuron_is_the_one_of_its_checkpoint(smoke: Path) -> None:
    neuron = from_pretrained(smoke / "elm")
    state = torch.load(smoke / "checkpoints" / "lif-elm-seed0.ckpt", weights_only=True)["state_dict"]
    assert isinstance(neuron, ELM)
    for name, value in neuron.state_dict().items():
        torch.testing.assert_close(value, state[f"network.neuron.{name}"], rtol=0, atol=0)


@pytest.mark.usefixtures("nothing_drawn")
def test_a_demo_on_a_file_tests_on_the_speakers_held_out_and_names_the_file(
    train_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "demo",
        "--smoke",
        "--task",
        "digits",
        "--train-file",
        str(train_file),
        "--held-out-speakers",
        "2",
        "--report",
        str(tmp_path),
        "--seeds",
        "1",
        "2",
    ]
    assert main([*arguments, "--epochs", "1"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["data"]["speakers"] == {"train": [0, 1, 3], "test only": [2]}
    assert [run["seed"] for run in metrics["networks"]["LIF only"]["runs"]] == [1, 2]
    report = (tmp_path / "report.md").read_text()
    assert "mine.h5" in report
    assert "synthetic" not in report
    assert "±" in report
    assert "LIF + ELM against LIF only: " in capsys.readouterr().out


@pytest.mark.usefixtures("nothing_drawn")
def test_an_interrupted_demo_says_so_and_resumes_to_the_same_result(
    train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def arguments(report: str) -> list[str]:
        return [
            "demo",
            "--smoke",
            "--task",
            "digits",
            "--epochs",
            "3",
            "--train-file",
            str(train_file),
            "--held-out-speakers",
            "2",
            "--report",
            str(tmp_path / report),
        ]

    assert main(arguments("whole")) == 0
    with monkeypatch.context() as patch:

        def press(self: Any, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 4:  # in the third epoch of two batches
                raise KeyboardInterrupt

        patch.setattr(History, "on_train_batch_end", press)
        assert main(arguments("cut")) == 130
    assert f"the same command with --report {tmp_path / 'cut'} --resume" in capsys.readouterr().err
    assert not (tmp_path / "cut" / "metrics.json").exists()
    assert main([*arguments("cut"), "--resume"]) == 0
    whole, cut = (json.loads((tmp_path / name / "metrics.json").read_text())["networks"] for name in ("whole", "cut"))
    for name in whole:
        for run in (*whole[name]["runs"], *cut[name]["runs"]):
            del run["seconds"]
        assert whole[name] == cut[name]
    assert main([*arguments("cut"), "--resume", "--seeds", "5"]) == 1
    assert "settings must be those of the run that is resumed" in capsys.readouterr().err


def test_a_checkpoint_that_was_not_whole_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / "report" / "checkpoints" / ".lif.99999999-0123abcd.tmp.ckpt"
    left.parent.mkdir(parents=True)
    left.touch()

    def press(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("elm_neuro.demo.run_demo", press)
    command = ["demo", "--smoke", "--resume", "--report", str(tmp_path / "report")]
    assert main(command) == 130
    assert "no epoch was whole, nothing is kept" in capsys.readouterr().err and left.exists()
    os.utime(left, (0, 0))
    assert main(command) == 130
    assert not left.exists()


@pytest.mark.slow
def test_a_demo_adds_names_its_lists_and_the_most_frequent_sum(
    train_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "demo",
                "--smoke",
                "--train-file",
                str(train_file),
                "--held-out-speakers",
                "2",
                "--report",
                str(tmp_path),
            ]
        )
        == 0
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["data"]["name"] == "sums of two digits of mine.h5"
    assert metrics["data"]["samples"] == {"train": 128, "valid": 64, "test": 64}
    assert metrics["data"]["speakers"]["test only"] == [2] and len(metrics["data"]["speakers"]["train"]) == 2
    assert all(len(metrics["fingerprints"][part]) == 64 for part in ("train", "valid", "test"))
    (run,) = metrics["networks"]["LIF + ELM"]["runs"]
    assert run["speakers"] == {"2": {"accuracy": pytest.approx(run["test"]["accuracy"]), "samples": 64}}
    report = (tmp_path / "report.md").read_text()
    assert f"The most frequent sum alone scores {100 * metrics['majority']:.1f} %" in report
    assert "10 neighbouring channels pooled, a spike counts 0.1. Seeds 0: of weights and dropout." in report
    assert FIGURES <= {path.name for path in tmp_path.iterdir()}
    assert "Test accuracy on sums of two digits of mine.h5" in capsys.readouterr().out


def test_data_dir_finds_shd_where_tonic_puts_it(
    train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names: list[str] = []

    def run_demo(settings: DemoSettings, *_: Any, **__: Any) -> None:
        names.append(settings.data_name)
        raise KeyboardInterrupt

    monkeypatch.setattr("elm_neuro.demo.run_demo", run_demo)
    (tmp_path / "SHD").mkdir()
    arguments = ["demo", "--smoke", "--data-dir", str(tmp_path), "--report", str(tmp_path / "report")]
    assert main(arguments) == 1
    assert "must hold shd_train.h5 and shd_test.h5" in (said := capsys.readouterr().err)
    assert "zenkelab.org" in said and "10.1109/TNNLS.2020.3044364" in said
    for name in ("shd_train.h5", "shd_test.h5"):
        (tmp_path / "SHD" / name).write_bytes(train_file.read_bytes())
    assert main(arguments) == 130
    assert names == ["sums of two digits of shd_train.h5 and shd_test.h5"]


@pytest.mark.usefixtures("nothing_drawn")
def test_a_second_demo_leaves_the_first_one_and_says_where_it_goes(
    train_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["demo", "--smoke", "--task", "digits", "--epochs", "1"]
    arguments += ["--train-file", str(train_file), "--held-out-speakers", "2"]
    arguments += ["--report", str(tmp_path / "report")]
    assert main(arguments) == 0
    said = capsys.readouterr()
    for name in ("LIF + ELM", "LIF only"):  # no terminal here: lines, as those of fit
        assert f"{name}, seed 0: " in said.err and f"{name}, seed 0, epoch 1 of 1: train/loss" in said.err
    assert "━" not in said.err
    before = (tmp_path / "report" / "metrics.json").read_bytes()
    assert main(arguments) == 0
    assert f"this one goes to {tmp_path / 'report-2'}" in capsys.readouterr().err
    assert (tmp_path / "report" / "metrics.json").read_bytes() == before
    assert (tmp_path / "report-2" / "metrics.json").is_file()
