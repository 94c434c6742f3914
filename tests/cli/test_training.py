"""The commands fit, test, predict and recipes, in this process, because importing Lightning takes seconds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("lightning")
pytest.importorskip("h5py")

from elm_neuro.cli import main, recipes


def test_a_recipe_trains_resumes_tests_and_predicts(
    train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [f"--data.train_file={train_file}", f"--data.test_file={train_file}", "--trainer.accelerator=cpu"]
    small = ["--model.network.neuron.num_memory=3", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "--config", "shd_elm", *files, *small, "--trainer.max_epochs=1"]) == 0
    assert {path.name for path in (tmp_path / "runs" / "shd_elm").glob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
    steps = torch.load(tmp_path / "runs" / "shd_elm" / "last.ckpt", weights_only=True)["global_step"]
    assert re.search(
        r"^epoch 1 of 1: train/loss [\d.]+, train/accuracy .*, valid/accuracy [\d.]+; \d+ s, 0 s left$",
        capsys.readouterr().err,
        re.MULTILINE,
    )
    assert main(["fit", "--config=shd_elm", *files, *small, "--trainer.max_epochs=2", "--resume"]) == 0
    last = torch.load(tmp_path / "runs" / "shd_elm" / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (1, 2 * steps)
    assert main(["test", "--config", "shd_elm", *files, *small, "--ckpt_path", "runs/shd_elm/last.ckpt"]) == 0
    assert "test/accuracy_seen" in capsys.readouterr().out
    assert main(["predict", "--config", "shd_elm", *files, *small, "--ckpt_path", "runs/shd_elm/last.ckpt"]) == 0
    table = np.loadtxt(tmp_path / "runs" / "shd_elm" / "predictions.csv", delimiter=",", skiprows=1)
    assert table[:, 0].tolist() == list(range(80))
    np.testing.assert_array_equal(table[:, 1], table[:, 2:].argmax(1))
    np.testing.assert_allclose(table[:, 2:].sum(1), 1.0, rtol=1e-4)


def test_a_recipe_of_adding_trains_prints_its_lists_and_reports_each_speaker(
    train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    files = [
        f"--data.train_file={train_file}",
        "--data.test_file=null",
        "--trainer.accelerator=cpu",
        "--data.num_pairs=[16,8,8]",
    ]
    small = [
        "--model.network.hidden_size=4",
        "--data.binning.bin_ms=50",
        "--data.batch_size=4",
        "--trainer.enable_progress_bar=false",
    ]
    assert main(["fit", "--config", "shd_adding_lstm", *files, *small, "--trainer.max_epochs=2"]) == 0
    assert "train list of 16 pairs: fingerprint " in caplog.text
    assert (
        main(["test", "--config", "shd_adding_lstm", *files, *small, "--ckpt_path", "runs/shd_adding_lstm/best.ckpt"])
        == 0
    )
    report = json.loads((tmp_path / "runs" / "shd_adding_lstm" / "test" / "evaluation.json").read_text())
    best = torch.load(tmp_path / "runs" / "shd_adding_lstm" / "best.ckpt", weights_only=True)
    assert report["checkpoint"] == "runs/shd_adding_lstm/best.ckpt"
    assert sum(map(sum, report["confusion"])) == 8
    assert {"train", "valid"} <= set(best["SHDAddingDataModule"])


def test_settings_that_do_not_name_their_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old.yaml"
    old.write_text("model: {num_classes: 20, network: {class_path: elm_neuro.training.LSTMClassifier}}\n")
    for arguments in (["--config", str(old)], [f"--config={old}"], ["-c", str(old)]):
        assert main(["fit", *arguments]) == 1
        error = capsys.readouterr().err
        assert f"elm-neuro: error: {old}: model must name its class by class_path, for example" in error
        assert "and hold its settings under init_args; got num_classes, network" in error


@pytest.mark.parametrize(
    "memory", ["model.network.neuron.num_memory", "model.network.init_args.neuron.init_args.num_memory"]
)
@pytest.mark.parametrize("rate", ["model.learning_rate", "model.init_args.learning_rate"])
def test_settings_of_a_recipe_are_changed_on_the_command_line(
    memory: str, rate: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--{memory}=7", f"--{rate}", "0.25", "--data.batch_size=3", "--data.train_file", "mine.h5"]
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "shd_elm", *arguments, "--print_config"])
    assert end.value.code == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    model, data = settings["model"]["init_args"], settings["data"]["init_args"]
    assert (model["learning_rate"], model["network"]["init_args"]["neuron"]["init_args"]["num_memory"]) == (0.25, 7)
    assert (data["batch_size"], data["train_file"]) == (3, "mine.h5")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.network.neuron.num_memry=7", "num_memry"),
        ("--model.network.neuron.delta_tt=7", "delta_tt"),
        ("--model.network.neuron.num_memory=x", "Expected a <class 'int'>. Got value: x"),
        ("--data.batch_sizes=7", "batch_sizes"),
    ],
)
def test_a_setting_that_is_not_there_ends_with_status_2_before_anything_is_read(
    argument: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "shd_elm", argument])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(recipes())


def test_evaluation_needs_a_checkpoint_that_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--config", "shd_elm"]) == 1
    assert "test needs --ckpt_path CHECKPOINT" in capsys.readouterr().err
    damaged = tmp_path / "cut.ckpt"
    damaged.write_bytes(b"PK not a checkpoint")
    assert main(["predict", "--config", "shd_elm", f"--ckpt_path={damaged}"]) == 1
    assert f"--ckpt_path must be a whole checkpoint of weights and settings, got {damaged}" in capsys.readouterr().err
