"""The command, as a user calls it; in this process, because importing Lightning takes seconds."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("lightning")
pytest.importorskip("h5py")

from elm_neuro import ELM, __version__
from elm_neuro.checkpoints import from_pretrained
from elm_neuro.cli import main, recipes
from elm_neuro.datasets import SpikeRecordings, write_shd
from elm_neuro.demo import _run as _demo
from elm_neuro.training.loop._quiet import without_advice

FIGURES = {
    f"{name}.{kind}"
    for name in ("rasters", "neuron", "timescales", "learning_curve", "confusion")
    for kind in ("png", "pdf")
}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Lightning switches Ctrl-C off for good once it was pressed."""
    handler = signal.getsignal(signal.SIGINT)
    with without_advice():
        yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="module")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 samples of speakers 0 to 3."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 20
    units = np.concatenate([rng.integers(0, 35, 40) + 35 * label for label in labels])
    times = (rng.uniform(0.0, 0.99, units.size).astype(np.float16).astype(np.float64) * 1e6).astype(np.int64)
    path = tmp_path_factory.mktemp("files") / "mine.h5"
    write_shd(path, SpikeRecordings(times, units, np.arange(81) * 40, labels, np.arange(80) // 20))
    return path


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of `demo --smoke`."""
    folder = tmp_path_factory.mktemp("demo")
    with without_advice():
        assert main(["demo", "--smoke", "--report", str(folder / "report"), "--cache-dir", str(folder / "cache")]) == 0
    return folder / "report"


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


def test_the_demos_neuron_is_the_one_of_its_checkpoint(smoke: Path) -> None:
    neuron = from_pretrained(smoke / "elm")
    state = torch.load(smoke / "checkpoints" / "lif-elm-seed0.ckpt", weights_only=True)["state_dict"]
    assert isinstance(neuron, ELM)
    for name, value in neuron.state_dict().items():
        torch.testing.assert_close(value, state[f"network.neuron.{name}"], rtol=0, atol=0)


def test_a_demo_on_a_file_tests_on_the_speakers_held_out_and_names_the_file(
    train_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "demo",
        "--smoke",
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


def test_an_interrupted_demo_says_so_and_resumes_to_the_same_result(
    train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def arguments(report: str) -> list[str]:
        return [
            "demo",
            "--smoke",
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

        patch.setattr(_demo.Bar, "on_train_batch_end", press)
        assert main(arguments("cut")) == 130
    assert "run the same command with --resume" in capsys.readouterr().err
    assert not (tmp_path / "cut" / "metrics.json").exists()
    assert main([*arguments("cut"), "--resume"]) == 0
    whole, cut = (json.loads((tmp_path / name / "metrics.json").read_text())["networks"] for name in ("whole", "cut"))
    for name in whole:
        for run in (*whole[name]["runs"], *cut[name]["runs"]):
            del run["seconds"]
        assert whole[name] == cut[name]
    assert main([*arguments("cut"), "--resume", "--seeds", "5"]) == 1
    assert "settings must be those of the run that is resumed" in capsys.readouterr().err


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


def test_a_demo_of_adding_names_its_lists_and_the_most_frequent_sum(
    train_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "demo",
                "--smoke",
                "--task",
                "adding",
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
    assert FIGURES <= {path.name for path in tmp_path.iterdir()}
    assert "Test accuracy on sums of two digits of mine.h5" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["demo", "--train-file", "none.h5", "--held-out-speakers", "2"],
            "none.h5 must be an SHD-format HDF5 file, but there is no such file",
        ),
        (
            ["demo", "--smoke", "--train-file", "text.h5", "--held-out-speakers", "2"],
            "text.h5 must be a whole HDF5 file in the layout of SHD",
        ),
        (
            ["demo", "--smoke", "--report", "text.h5/report"],
            "--report must be a folder that can be written, got text.h5/report",
        ),
        (["demo", "--data-dir", "."], "--data-dir must hold shd_train.h5 and shd_test.h5"),
        (["fit", "--config", "unknown"], "--config must be a file or one of the recipes neuronio_branch_elm, "),
        (
            ["fit", "--config", "shd_elm", "--trainer.accelerator=cpu"],
            "path must name an SHD-format HDF5 file, got SHD/shd_train.h5",
        ),
    ],
)
def test_what_cannot_be_done_is_said_without_a_traceback(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.h5").write_text("no HDF5")
    assert main(arguments) == 1
    captured = capsys.readouterr().err
    assert f"elm-neuro: error: {message}" in captured
    assert "Traceback" not in captured


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--test-file", "a.h5"], "--test-file needs --train-file"),
        (["demo", "--train-file", "a.h5"], "--train-file needs --test-file, or --held-out-speakers"),
        (["demo", "--held-out-speakers", "2"], "--held-out-speakers goes with a --train-file"),
        (["demo", "--data-dir", ".", "--train-file", "a.h5"], "--data-dir goes without"),
        (["demo", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["demo", "--seeds", "-1"], "--seeds must not be negative, got -1"),
        (["train"], "invalid choice: 'train'"),
    ],
)
def test_wrong_arguments_end_with_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_data_dir_finds_shd_where_tonic_puts_it(
    train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "SHD").mkdir()
    for name in ("shd_train.h5", "shd_test.h5"):
        (tmp_path / "SHD" / name).write_bytes(train_file.read_bytes())
    assert (
        main(["demo", "--smoke", "--epochs", "1", "--data-dir", str(tmp_path), "--report", str(tmp_path / "report")])
        == 0
    )
    assert (
        json.loads((tmp_path / "report" / "metrics.json").read_text())["data"]["name"] == "shd_train.h5 and shd_test.h5"
    )


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


def test_help_and_version_do_not_wait_for_lightning() -> None:
    code = (
        "import sys\nfrom elm_neuro.cli import main\n"
        "try: main([sys.argv[1]])\nexcept SystemExit as end: assert end.code in (0, None)\nassert 'lightning' not in "
        "sys.modules"
    )
    for argument, word in (("--help", "usage"), ("--version", __version__)):
        done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=True)
        assert word in done.stdout


def test_evaluation_needs_a_checkpoint_that_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--config", "shd_elm"]) == 1
    assert "test needs --ckpt_path CHECKPOINT" in capsys.readouterr().err
    damaged = tmp_path / "cut.ckpt"
    damaged.write_bytes(b"PK not a checkpoint")
    assert main(["predict", "--config", "shd_elm", f"--ckpt_path={damaged}"]) == 1
    assert f"--ckpt_path must be a whole checkpoint of weights and settings, got {damaged}" in capsys.readouterr().err
