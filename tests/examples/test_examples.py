"""Every example runs as a user runs it, on small made-up data."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
HOSTS = ("snntorch", "norse", "spikingjelly", "tonic", "nir", "onnxruntime", "lightning", "h5py", "matplotlib", "rich")


# What test_shd_study.py runs by itself, with more than one setting; and what pipes to a process of its own.
ELSEWHERE, PIPES = "shd_study", "onnx_stream"


def import_hosts(example: Path) -> None:
    """Skip where a library that the example is for is not there."""
    source = example.read_text(encoding="utf-8")
    for host in HOSTS:
        if re.search(rf"^\s*(import|from) {host}\b|elm_neuro\.adapters\.{host}\b", source, flags=re.MULTILINE):
            pytest.importorskip(host)
    if "elm_neuro.export" in source:
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    "example", [one for one in EXAMPLES if one.stem not in (ELSEWHERE, PIPES)], ids=lambda path: path.stem
)
def test_examples_run_on_made_up_data(
    example: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import_hosts(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))  # digits are made once
    monkeypatch.setattr(sys, "argv", [str(example), "--smoke"])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert all(figure.stat().st_size > 10_000 for figure in tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    "example",
    [pytest.param(one, id=one.stem, marks=() if one.stem == PIPES else pytest.mark.slow) for one in EXAMPLES],
)
def test_examples_run_in_processes_of_their_own_and_leave_files_only_where_they_are_run(
    example: Path, tmp_path: Path
) -> None:
    import_hosts(example)
    before = sorted(path.name for path in example.parent.iterdir())
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH", ""))))
    environment = os.environ | {
        "PYTHONPATH": path,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    done = subprocess.run(
        [sys.executable, str(example), "--smoke"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr, done.stderr[-4000:]
    assert done.stdout.strip()
    assert sorted(path.name for path in example.parent.iterdir() if path.name != "__pycache__") == [
        name for name in before if name != "__pycache__"
    ]
    figures = list(tmp_path.glob("*.png"))
    assert all(figure.stat().st_size > 10_000 for figure in figures)


def test_there_are_examples_and_each_says_how_to_call_it() -> None:
    assert EXAMPLES
    for example in EXAMPLES:
        assert f"python examples/{example.name} [--smoke]" in example.read_text(encoding="utf-8")
