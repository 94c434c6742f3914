"""The benchmarks run: their rows stand behind checks of their own."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(("name", "needs"), [("fit_speed", ["lightning", "tonic"]), ("onnx_latency", ["onnxruntime", "onnx"])])
def test_a_benchmark_runs_small(name: str, needs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in needs:
        pytest.importorskip(module)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--smoke", "--json", str(tmp_path / "found.json")])
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["settings"]
