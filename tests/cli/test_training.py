"""The commands fit, test, predict and recipes, in this process, because importing Lightning takes seconds.

Longer than most for the same reason: a second file would import it in another process.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import signal
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("lightning")
pytest.importorskip("h5py")

from elm_neuro.cli import main, recipes
from elm_neuro.cli._lightning import latest
from elm_neuro.cli._settings import KEY


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


@pytest.mark.slow
def test_the_recipe_of_adaptive_lif_neurons_trains_and_tests(
    train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [f"--data.train_file={train_file}", f"--data.test_file={train_file}", "--trainer.accelerator=cpu"]
    small = ["--data.binning.bin_ms=50", "--trainer.enable_progress_bar=false"]
    for layer, width in (("first", "output_size"), ("second", "input_size"), ("second", "output_size")):
        small += [f"--model.network.{layer}.{width}=8", f"--model.network.{layer}.delta_t=50"]
    small += ["--model.network.first.gradient=blocks"]
    assert main(["fit", "--config", "shd_alif", *files, *small, "--trainer.max_epochs=1"]) == 0
    assert "ALIFNetwork: " in "".join(capsys.readouterr())
    assert main(["test", "--config", "shd_alif", *files, *small, "--ckpt_path", "runs/shd_alif/best.ckpt"]) == 0
    assert "test/accuracy" in capsys.readouterr().out


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
        ("--model.network.neuron.num_memry=7", "'num_memry' is not accepted; did you mean num_memory?"),
        ("--model.network.neuron.hidden_size=7", "'hidden_size' is not accepted; did you mean num_memory?"),
        ("--model.network.neuron.delta_tt=7", "'delta_tt' is not accepted; did you mean delta_t?"),
        ("--model.network.neuron.num_memory=x", "Expected a <class 'int'>. Got value: x"),
        ("--data.batch_sizes=7", "'batch_sizes' is not accepted; did you mean batch_size?"),
    ],
)
def test_a_setting_that_is_not_there_ends_with_status_2_before_anything_is_read(
    argument: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "shd_elm", argument])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("elm-neuro: error: ")
    assert error.count("\n") == 1


def test_a_recipe_of_nearly_that_name_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "shd_emm"]) == 1
    assert "got shd_emm; did you mean shd_elm?\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [RuntimeError("a\nb"), pickle.UnpicklingError("a b"), zipfile.BadZipFile("a b"), TypeError("a b")]
)
def test_every_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr("elm_neuro.cli._training.training_command", fail)
    assert main(["fit"]) == 1
    assert capsys.readouterr().err == "elm-neuro: error: a b\n"


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


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ({"a": 1}, "state_dict, pytorch-lightning_version"),
        ({"state_dict": {}}, "pytorch-lightning_version"),
        ({"state_dict": 3, "pytorch-lightning_version": "2.5"}, "state_dict"),
        ({"state_dict": {}, "pytorch-lightning_version": "2.5"}, ""),
    ],
)
def test_a_checkpoint_of_others_is_refused_in_a_line(
    command: str, content: dict[str, Any], missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one without an optimizer are weights that can be tested, but no training to go on with."""
    path = tmp_path / "others.ckpt"
    torch.save(content, path)
    if command == "fit":
        missing = ", ".join([missing] * bool(missing) + ["optimizer_states", "lr_schedulers"])
    assert main([command, "--config", "shd_elm", "--trainer.accelerator=cpu", f"--ckpt_path={path}"]) == 1
    error = capsys.readouterr().err
    if missing:
        assert error == (
            f"elm-neuro: error: --ckpt_path must be a checkpoint of elm-neuro fit, got {path} without {missing}\n"
        )
    else:
        assert "without" not in error


@pytest.mark.parametrize(
    ("recipe", "argument", "message"),
    [
        ("shd_elm", "--data.batch_size=0", "batch_size must be at least 1, got 0"),
        ("shd_elm", "--model.learning_rate=-1", "learning_rate must be a finite number above 0, got -1.0"),
        ("shd_elm", "--model.network.neuron.num_memory=0", "num_memory must be at least 1, got 0"),
        ("neuronio_elm", "--data.data=missing", "data must be a folder of NeuronIO files, got missing, which is none"),
    ],
)
def test_a_value_out_of_range_is_named_and_nothing_else(
    recipe: str,
    argument: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", recipe, argument]) == 1
    assert f"elm-neuro: error: {message}\n" in capsys.readouterr().err


@pytest.fixture
def run(train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A command with a recipe of SHD over small data, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    files = [f"--data.train_file={train_file}", f"--data.test_file={train_file}", "--trainer.accelerator=cpu"]

    def run(command: str, *options: str) -> int:
        small = ["--trainer.max_epochs=1"] if command == "fit" else []
        quiet = ["--trainer.enable_progress_bar=false"]
        return main([command, "--config", "shd_elm", *files, *quiet, *small, *options])

    return run


SMALL = ("--model.network.neuron.num_memory=3",)
COARSE = ("--data.binning.bin_ms=50", "--model.network.neuron.delta_t=50")


@pytest.mark.slow
def test_everything_but_fit_takes_network_and_bin_from_the_checkpoint_and_refuses_others(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", *SMALL, *COARSE, "--model.network.neuron.lambda_=2.5") == 0
    spoken = capsys.readouterr().err
    command = shlex.split(re.search("^next: elm-neuro (.*)$", spoken, re.MULTILINE)[1])  # type: ignore[index]
    assert main(command) == 0  # as it stands there, whatever options the run had
    with pytest.raises(SystemExit, match="2"):
        main([command[0], *command[-2:]])
    assert (
        "error: --config must name a recipe, or the config.yaml that lies beside a checkpoint"
        in capsys.readouterr().err
    )
    assert "SequenceClassifier: 4,328 parameters" in spoken  # (700 + 3) * 6 + 6, 6 * 3 + 3, 3 taus, 3 * 20 + 20
    assert not re.search("litlogger|litmodels|Flops|FLOPs|weights_only", spoken)
    settings = Path("runs/shd_elm/config.yaml")
    written = settings.read_bytes()
    best = "--ckpt_path=runs/shd_elm/best.ckpt"
    assert run("test", best) == 0
    accuracy = json.loads(Path("runs/shd_elm/test/evaluation.json").read_text())["loss"]
    assert run("validate", best) == run("predict", best, "--model.network.neuron.lambda_=2.5") == 0
    assert settings.read_bytes() == written
    capsys.readouterr()
    for option, message in (
        ("--model.network.neuron.lambda_=5.0", "model.network.neuron.lambda_ is 2.5, got 5.0"),
        ("--data.binning.bin_ms=10", "data.binning.bin_ms is 50.0, got 10.0"),
    ):
        assert run("test", best, option) == 1
        assert f"best.ckpt was trained with other settings: {message}" in capsys.readouterr().err

    old = torch.load("runs/shd_elm/best.ckpt", weights_only=True)
    del old[KEY]
    torch.save(old, "old.ckpt")
    assert run("test", *SMALL, *COARSE, "--ckpt_path=old.ckpt", "--out=runs/old") == 1
    assert "lambda_" in capsys.readouterr().err  # the weights themselves say with what they were trained
    matching = "--model.network.neuron.lambda_=2.5"
    assert run("test", *SMALL, *COARSE, matching, "--ckpt_path=old.ckpt", "--out=runs/old") == 0
    assert "old.ckpt does not say how it was trained, as those of earlier versions" in capsys.readouterr().err

    from elm_neuro.cli._onnx import load
    from elm_neuro.datasets import SHDDataset, read_shd

    settings.write_text(settings.read_text().replace("lambda_: 2.5", "lambda_: 5.0"))
    network, _ = load("runs/shd_elm/best.ckpt")
    assert (network.neuron.config.lambda_, network.neuron.config.delta_t) == (2.5, 50.0)
    file = yaml.safe_load(written)["data"]["init_args"]["test_file"]
    x, labels, _ = SHDDataset.collate(list(SHDDataset(read_shd(file), bin_ms=50.0)))
    with torch.no_grad():
        assert torch.nn.functional.cross_entropy(network(x), labels).item() == pytest.approx(accuracy, rel=1e-5)


@pytest.mark.slow
def test_a_second_run_leaves_the_first_one_and_may_have_a_place_of_its_own(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--resume", *SMALL, *COARSE) == 1
    assert "--resume needs a run in runs/shd_elm with a checkpoint" in capsys.readouterr().err
    assert run("fit", *SMALL, *COARSE) == 0
    kept = Path("runs/shd_elm/best.ckpt").read_bytes()
    assert run("fit", *SMALL, *COARSE) == 1
    assert "runs/shd_elm must hold no other run, got runs/shd_elm/last.ckpt: --resume" in capsys.readouterr().err
    assert run("fit", *SMALL, *COARSE, "--name", "second") == 0
    assert Path("runs/shd_elm/best.ckpt").read_bytes() == kept
    assert {"best.ckpt", "last.ckpt", "config.yaml"} <= {path.name for path in Path("runs/second").iterdir()}
    assert any(path.name.startswith("events.") for path in Path("runs/second").iterdir())
    assert run("test", "--ckpt_path", "runs/second/best.ckpt") == 0
    assert Path("runs/second/test/evaluation.json").is_file() and not Path("runs/shd_elm/test").exists()
    assert run("predict", "--ckpt_path", "runs/second/best.ckpt", "--out", "elsewhere/deep") == 0
    assert Path("elsewhere/deep/predictions.csv").is_file() and not Path("runs/second/predictions.csv").exists()
    assert run("fit", "--name", "second", "--resume", "--trainer.max_epochs=2") == 0  # as small as it was
    assert torch.load("runs/second/last.ckpt", weights_only=True)["epoch"] == 1
    assert yaml.safe_load(Path("runs/second/config.yaml").read_text())["ckpt_path"] is None
    assert run("fit", "--name", "second", "--resume", "--model.network.neuron.lambda_=1.0") == 1
    assert "model.network.neuron.lambda_ is 5.0, got 1.0" in capsys.readouterr().err


def test_a_folder_has_one_run_at_a_time(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    from filelock import FileLock

    Path("runs/shd_elm").mkdir(parents=True)
    with FileLock("runs/shd_elm/.lock"):
        assert run("fit", *SMALL, *COARSE) == 1
    assert "runs/shd_elm must have one run at a time" in capsys.readouterr().err


def test_a_checkpoint_that_a_killed_run_left_is_not_gone_on_with(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "shd_elm"
    folder.mkdir(parents=True)
    left = folder / ".best.99999999-0123abcd.tmp.ckpt"
    left.write_bytes(b"half of")
    assert latest(folder) is None
    assert run("fit", *SMALL, "--resume") == 1
    assert "--resume needs a run in" in capsys.readouterr().err
    (folder / "best.ckpt").touch()
    assert latest(folder) == folder / "best.ckpt"
    os.utime(left, (0, 0))
    assert run("fit", *SMALL) == 1  # the folder has a run; what a killed one left long ago goes
    assert "must hold no other run" in capsys.readouterr().err and not left.exists()


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_checkpoint_is_no_address(run: Callable[..., int], capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run(command, "--ckpt_path", "http://127.0.0.1:9/best.ckpt") == 1
    assert "--ckpt_path must be a file on this machine, got the address http://127" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["checkpoint", "beside"])
def test_settings_of_a_stranger_run_none_of_their_code(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """torch.fx's function is annotated as one that gives a Module, and runs the lines that it is given."""
    body = {"body": {"_code": "def forward(self, x): return x"}, "import_block": "open('PWNED', 'w')"}
    network = {"class_path": "torch.fx.graph_module.reduce_graph_module", "init_args": body}
    model = {"class_path": "elm_neuro.training.SpikeClassification", "init_args": {"network": network}}
    checkpoint = {
        "state_dict": {},
        **({KEY: json.dumps({"model": model, "data": {}})} if where == "checkpoint" else {}),
    }
    torch.save(checkpoint, "stranger.ckpt")
    Path("config.yaml").write_text(json.dumps({"model": model}))
    commands = [lambda: main(["export", "stranger.ckpt"])]
    if where == "checkpoint":
        commands.append(lambda: run("test", "--ckpt_path", "stranger.ckpt"))
    for command in commands:
        assert command() == 1
        assert "only classes of elm_neuro are built from the settings in it" in capsys.readouterr().err
    assert not Path("PWNED").exists()


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Have something happen in the training step of that number."""
    from elm_neuro.training import SpikeClassification

    step = SpikeClassification.training_step

    def training_step(self: Any, *arguments: Any) -> Any:
        if self.global_step + 1 == number:
            act()
        return step(self, *arguments)

    monkeypatch.setattr(SpikeClassification, "training_step", training_step)


STEPS = 9  # of an epoch: 67 samples, 8 a batch


@pytest.mark.parametrize(("step", "kept"), [(3, None), (STEPS + 2, STEPS)])
def test_ctrl_c_says_what_is_kept(
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
    kept: int | None,
) -> None:
    def press() -> None:
        raise KeyboardInterrupt

    at_step(monkeypatch, step, press)
    assert run("fit", *SMALL, *COARSE, "--trainer.max_epochs=2") == 130
    error = capsys.readouterr().err
    if kept is None:
        assert "elm-neuro: interrupted; no checkpoint was written, nothing is kept\n" in error
        assert not list(Path("runs/shd_elm").glob("*.ckpt"))
    else:
        assert f"interrupted; runs/shd_elm/last.ckpt holds what was trained up to step {kept}, in epoch 1: run" in error
        assert torch.load("runs/shd_elm/last.ckpt", weights_only=True)["global_step"] == kept


@pytest.mark.parametrize("step", [4, pytest.param(STEPS, marks=pytest.mark.slow)])
def test_sigterm_leaves_a_checkpoint_of_the_batch_and_status_143(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as end:
            run("fit", *SMALL, *COARSE, "--trainer.max_epochs=2")
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert f"terminated; runs/shd_elm/last.ckpt holds what was trained up to step {step}, in" in capsys.readouterr().err
    assert run("fit", "--trainer.max_epochs=2", "--resume") == 0
    assert torch.load("runs/shd_elm/last.ckpt", weights_only=True)["global_step"] == 2 * STEPS
    assert (
        "next: elm-neuro test --config runs/shd_elm/config.yaml --ckpt_path runs/shd_elm/best.ckpt\n"
        in capsys.readouterr().err
    )


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written beside it, not in TMPDIR, from where a copy onto another file system could be cut off."""
    save, elsewhere = torch.save, Path("elsewhere")
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))

    def half(checkpoint: Any, path: Any) -> None:
        save(checkpoint, path)
        assert Path(path).parent == Path("runs/shd_elm").resolve()
        if checkpoint["global_step"] > STEPS:
            os.truncate(path, 100)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    assert run("fit", *SMALL, *COARSE, "--trainer.max_epochs=2") == 1
    assert re.search(r"runs/shd_elm/\w+\.ckpt cannot be written: No space left on device", capsys.readouterr().err)
    assert torch.load("runs/shd_elm/last.ckpt", weights_only=True)["global_step"] == STEPS
    assert {path.name for path in Path("runs/shd_elm").glob("*ckpt*")} == {"best.ckpt", "last.ckpt"}
    assert not list(elsewhere.iterdir())
