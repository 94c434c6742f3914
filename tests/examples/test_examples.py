"""Every example runs as a user runs it, on small made-up data."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
HOSTS = ("snntorch", "norse", "spikingjelly", "tonic", "nir", "onnxruntime", "lightning", "h5py", "matplotlib", "rich")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run_on_made_up_data_and_leave_files_only_where_they_are_run(example: Path, tmp_path: Path) -> None:
    source = example.read_text(encoding="utf-8")
    for host in HOSTS:
        if re.search(rf"^\s*(import|from) {host}\b|elm_neuro\.adapters\.{host}\b", source, flags=re.MULTILINE):
            pytest.importorskip(host)
    if "elm_neuro.export" in source:
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
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
