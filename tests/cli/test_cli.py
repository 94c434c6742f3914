"""The command as a whole: what it refuses, its help, its version."""

from __future__ import annotations

import io
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from elm_neuro import __version__
from elm_neuro.cli import EXTRAS, EXTRAS_WITH_RICH, main


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
        (["fit", "--config", "unknown"], "--config must be a file or one of the recipes enwik8_elm_network, "),
        (
            ["fit", "--config", "shd_elm", "--trainer.accelerator=cpu"],
            "--data.train_file must name an SHD-format HDF5 file, got SHD/shd_train.h5, which does not exist: download "
            "shd_train.h5.zip and shd_test.h5.zip from https://zenkelab.org/datasets and unpack them into SHD, or say",
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
        (
            ["demo", "--task", "digits", "--train-file", "a.h5"],
            "--train-file needs --test-file, or --held-out-speakers",
        ),
        (["demo", "--held-out-speakers", "2"], "--held-out-speakers goes with a --train-file"),
        (["demo", "--data-dir", ".", "--train-file", "a.h5"], "--data-dir goes without"),
        (["demo", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["demo", "--seeds", "-1"], "--seeds must not be negative, got -1"),
        (["demo", "--seeds", "0", f"{2**32}"], f"--seeds must be below 2**32, got {2**32}"),
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


def test_help_and_version_do_not_wait_for_lightning() -> None:
    code = (
        "import sys\nfrom elm_neuro.cli import main\nfor argument in ('--help', '--version'):\n"
        "    try: main([argument])\n    except SystemExit as end: assert end.code in (0, None)\n"
        "assert 'lightning' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage" in done.stdout and done.stdout.split()[-1] == __version__


@pytest.mark.parametrize(
    ("missing", "arguments", "message"),
    [
        ("rich", ["models"], 'elm-neuro models needs rich: pip install "elm-neuro[train]"'),
        ("rich", ["look", "elm"], 'elm-neuro look needs rich: pip install "elm-neuro[train]"'),
        ("rich", ["export", "elm"], 'elm-neuro export needs rich: pip install "elm-neuro[onnx]"'),
        ("rich", ["neuronio", "convert", "a", "b"], 'elm-neuro neuronio needs rich: pip install "elm-neuro[data]"'),
        ("lightning", ["fit", "--help"], 'elm-neuro fit needs lightning: pip install "elm-neuro[train]"'),
        ("numpy", ["models"], "import of numpy halted"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(missing: str, arguments: list[str], message: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from elm_neuro.cli import main; main({arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert message in done.stderr
    assert missing == "numpy" or done.stderr == f"elm-neuro: error: {message}\n"


def test_every_library_that_a_command_may_miss_stands_in_its_extra() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: " ".join(listed) for name, listed in project["optional-dependencies"].items()}
    names = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "jsonargparse"}
    for library, extra in EXTRAS.items():
        assert names.get(library, library) in extras[extra]
    assert all("rich" in extras[extra] for extra in EXTRAS_WITH_RICH.values())


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "elm_neuro", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["elm-neuro", __version__]


def test_what_an_old_locale_cannot_write_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert main(["demo", "--smoke", "--train-file", "späße.h5", "--held-out-speakers", "2"]) == 1
    streams["stderr"].flush()
    written = streams["stderr"].buffer.getvalue()  # type: ignore[attr-defined]
    assert b"sp??e.h5 must be an SHD-format HDF5 file, but there is no such file" in written
