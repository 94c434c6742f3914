"""benchmarks/onnx_runtimes.py, which runs models in other runtimes, reports no runtime that is wrong as right."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from elm_neuro import BranchELM
from elm_neuro.export import to_onnx


@pytest.fixture(scope="module")
def script(repository: Path) -> dict[str, Any]:
    return runpy.run_path(str(repository / "benchmarks" / "onnx_runtimes.py"))


@pytest.mark.parametrize("form", ["step", "sequence"])
def test_a_runtime_is_right_only_with_torchs_numbers(script: dict[str, Any], tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    neuron = BranchELM(8, 2, 4, num_branch=3, num_synapse_per_branch=4).eval()
    path, x = tmp_path / "model.onnx", torch.randn(1, 9, 8)
    to_onnx(neuron, path, form=form, verify=False)
    with torch.no_grad():
        y = neuron(x)[0].numpy()
    case = script["Case"]("small", form, 21, "float32", path, *script["feed"](path, x.numpy(), y))
    options: dict[str, Any] = {"node": None, "repeats": 1, "seconds": 100.0}
    found = script["attempt"]("onnxruntime", case, tmp_path, **options)
    assert "failed" not in found
    assert found["error"] < 2e-5
    assert found["ms"] > 0
    assert "failed" not in script["attempt"]("onnx reference", script["fixed"](case), tmp_path, **options)
    wrong = case._replace(expected=case.expected | {"m_next": case.expected["m_next"] + 1e-2})
    assert script["attempt"]("onnxruntime", wrong, tmp_path, **options)["failed"].startswith("off by")
    lost = case._replace(expected=case.expected | {"y": np.full_like(y, np.nan)})
    assert script["attempt"]("onnxruntime", lost, tmp_path, **options)["failed"] == "off by nan"
    path.write_bytes(b"\xff" * 40)
    assert "INVALID_PROTOBUF" in script["attempt"]("onnxruntime", case, tmp_path, **options)["failed"]


def test_the_reason_of_a_failure_is_its_last_words(script: dict[str, Any]) -> None:
    assert script["reason"]("thread 'x' panicked at a/b.rs:1:2:\nno such axis\nstack backtrace:\n") == "no such axis"
    trace = (
        "Traceback (most recent call last):\n"
        '  File "a.py", line 1\n    raise E\nE: Exception from src/x.cpp:9:\nranks differ\n'
    )
    assert script["reason"](trace) == "E: ranks differ"
    assert script["reason"]("") == "it ended without a word"


@pytest.mark.slow
def test_the_table_of_runtimes_is_made(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["onnx_runtimes.py", "--smoke"])
    monkeypatch.setenv("COLUMNS", "200")
    try:
        script["main"]()
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out.count("error ") == 2 * 9
