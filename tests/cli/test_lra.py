"""The command elm-neuro lra: what it makes, that it goes on, and a run from a generated file to a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

pytest.importorskip("rich")
pytest.importorskip("PIL")

from elm_neuro.cli import main
from elm_neuro.datasets.lra import MadeListOps, draw_pathfinder, read_listops, read_pathfinder, write_listops

LISTOPS = ["lra", "generate", "listops", "--workers", "1", "--max-depth", "5", "--max-args", "5"]
SHORT = ["--min-length", "10", "--max-length", "60"]


def test_listops_is_one_small_file_or_the_three_published_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "listops.safetensors"
    assert main([*LISTOPS, *SHORT, "--num", "60", "--out", str(path)]) == 0
    made = MadeListOps.load(path)
    assert len(made) == 60 and [entry.name for entry in path.parent.iterdir()] == [path.name]  # no parts are left
    printed = capsys.readouterr().out
    assert "60 sequences of 11 to" in printed and made.sequences().fingerprint in printed
    folder = tmp_path / "tsv"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert main([*LISTOPS, *SHORT, "--num", "60", "--format", "tsv", "--out", "."]) == 0
    parts = read_listops(folder, "google")
    assert {name: len(part) for name, part in parts.items()} == {"train": 48, "valid": 6, "test": 6}
    np.testing.assert_array_equal(parts["test"].labels, made.answers[54:])
    np.testing.assert_array_equal(parts["train"].tokens, made.sequences(0, 48).tokens + 1)


def test_two_generators_of_one_file_do_not_meet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*LISTOPS, *SHORT, "--num", "60", "--out", str(tmp_path / "f")]
    (tmp_path / ".f.parts").mkdir()
    with FileLock(tmp_path / ".f.parts" / ".lock"):
        assert main(arguments) == 1
    assert f"--out must be free, but another process is writing {tmp_path / 'f'}" in capsys.readouterr().err
    assert main(arguments) == 0


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    assert main([*LISTOPS, *SHORT, "--num", "0", "--out", str(tmp_path / "f")]) == 1
    assert not list(tmp_path.iterdir())


def test_text_files_of_two_data_sets_are_never_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*LISTOPS, *SHORT, "--num", "60", "--format", "tsv", "--out", str(tmp_path / "f")]
    assert main(arguments) == 0

    def stop(path: Path, sequences: Any) -> None:
        if path.name != "basic_train.tsv":
            raise KeyboardInterrupt
        write_listops(path, sequences)

    monkeypatch.setattr("elm_neuro.datasets.lra.write_listops", stop)
    assert main([*arguments, "--seed", "1"]) == 130
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["basic_train.tsv"]


def test_pathfinder_is_written_as_released(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["lra", "generate", "pathfinder", "--workers", "1", "--seed", "3", "--out", str(tmp_path / "p")]
    assert main([*arguments, "--num", "3"]) == 0
    assert main([*arguments, "--num", "5"]) == 0  # more begin with the fewer ones
    read = read_pathfinder(tmp_path / "p", 32, num_levels=256)
    assert len(read) == 5
    np.testing.assert_array_equal(read.sequence(4), draw_pathfinder(4, seed=3).image.ravel())
    assert main([*arguments[:-1], str(tmp_path / "p"), "--size", "64", "--num", "5"]) == 1
    assert "must hold images of" in capsys.readouterr().err


def test_wrong_arguments_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "text.txt"
    file.write_text("no folder")
    for arguments, message in (
        (["lra", "generate", "pathfinder", "--out", str(file)], f"must be a folder that can be written, got {file}: "),
        ([*LISTOPS, "--format", "tsv", "--out", str(file)], f"--out must be a folder that can be written, got {file}"),
        ([*LISTOPS, "--out", str(file / "f")], f"the folder of --out must be a folder that can be written, got {file}"),
        ([*LISTOPS, "--num", "0", "--out", str(tmp_path / "f")], "num_samples and num_workers must be at least 1"),
        ([*LISTOPS, "--min-length", "9", "--max-length", "9", "--out", str(tmp_path / "f")], "min_length must not be"),
        (["lra", "generate", "pathfinder", "--num", "-1", "--out", str(tmp_path / "f")], "num_images and num_workers"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    with pytest.raises(SystemExit) as end:
        main(["lra", "generate", "listops"])
    assert end.value.code == 2


@pytest.mark.slow
def test_a_generated_file_is_trained_tested_and_resumed_by_the_ten_minute_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main([*LISTOPS, *SHORT, "--num", "200", "--out", "listops.safetensors"]) == 0
    recipe = ["--config", "lra_listops_10min", "--data.batch_size", "20", "--trainer.accelerator", "cpu"]
    small = ["--model.network.neuron.num_memory", "6", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", *recipe, *small, "--trainer.max_epochs", "3"]) == 0
    assert main(["fit", *recipe, *small, "--trainer.max_epochs", "4", "--resume"]) == 0
    captured = capsys.readouterr()
    assert "ms an update of 20 sequences: about" in captured.err
    assert "the best answer to each root operator" in captured.out
    assert main(["test", "--config", "lra_listops_10min", "--ckpt_path", "runs/lra_listops_10min/best.ckpt"]) == 0
    evaluation = json.loads((tmp_path / "runs" / "lra_listops_10min" / "test" / "evaluation.json").read_text())
    assert sum(map(sum, evaluation["confusion"])) == 20
    assert {"accuracy", "majority", "by_group", "lengths", "groups", "loss"} <= set(evaluation)
