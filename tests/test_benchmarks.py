"""The benchmarks run: their rows stand behind checks of their own."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    ("name", "options", "needs"),
    [
        ("adapter_overhead", ["--repeats", "1"], ["norse", "snntorch", "spikingjelly"]),
        ("between_trees", ["--repeats", "2", "--backend", "torch", str(BENCHMARKS.parent)], []),
        ("alif_gradients", ["--markdown", "table.md"], []),
        pytest.param("compiled_speed", [], [], marks=pytest.mark.slow),
        pytest.param("host_speed", ["--repeats", "1", str(BENCHMARKS.parent)], [], marks=pytest.mark.slow),
        pytest.param("feed_speed", ["--workers", "0"], ["lightning"], marks=pytest.mark.slow),
        ("fit_speed", ["--backends", "reference", "torch"], ["lightning", "tonic"]),
        ("neuron_speed", ["--repeats", "1", "--markdown", "table.md"], []),
        pytest.param(
            "neuron_speed",
            ["--repeats", "1", "--hosts", "--threads", "1", "2", "--markdown", "table.md"],
            ["norse", "snntorch"],
            marks=pytest.mark.slow,
        ),
        ("lra_speed", [], ["rich"]),
        ("onnx_latency", [], ["onnxruntime", "onnx"]),
        pytest.param("alif_speed", ["--repeats", "1"], [], marks=pytest.mark.slow),
        pytest.param("scaling", ["--repeats", "1", "--out", "scaling"], ["matplotlib"], marks=pytest.mark.slow),
    ],
)
def test_a_benchmark_runs_small(
    name: str, options: list[str], needs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in needs:
        pytest.importorskip(module)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--smoke", "--json", str(tmp_path / "found.json"), *options])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["settings"]
    if name == "neuron_speed":
        head, _, row = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
        found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["rows"][0]
        assert head.split(" | ")[1:-1] == list(found["median_ms"])
        assert [float(cell.split()[0]) for cell in row.split(" | ")[1:-1]] == [
            round(ms, 2) for ms in found["median_ms"].values()
        ]
    if "--out" in options:
        assert all((tmp_path / f"{name}.{kind}").stat().st_size > 5000 for kind in ("png", "pdf"))


@pytest.mark.slow
def test_reduced_runs_of_long_range_arena_go_from_the_generator_to_figure_and_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightning")
    from elm_neuro.training.loop._quiet import without_advice

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["lra_reduced.py", "--smoke", "--work", str(tmp_path / "work")])
    with without_advice():
        runpy.run_path(str(BENCHMARKS / "lra_reduced.py"), run_name="__main__")
    results = json.loads((tmp_path / "work" / "results.json").read_text(encoding="utf-8"))
    assert [one["network"] for one in results] == ["ELM", "Chrono-LSTM"]
    assert all(one["curve"] and 0 < one["by_group"] < 1 for one in results)
    assert (tmp_path / "work" / "reduced.png").stat().st_size > 10_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks of memory are read from /proc")
def test_the_peak_of_a_pass_is_what_it_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    code = "import torch; from neuron_speed import peak_above_start; torch.ones(40 * 2**18).sum(); "
    code += "print(peak_above_start(lambda: torch.ones(20 * 2**18).sum()))"
    monkeypatch.setenv("PYTHONPATH", f"{BENCHMARKS}{os.pathsep}{BENCHMARKS.parent}")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed goes back to the system
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 19.0 < float(done.stdout) < 24.0


def test_the_floor_is_what_multiply_adds_in_registers_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from fma import fma_speed

    monkeypatch.setenv("CXX", "false")
    assert fma_speed("baseline") is None
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    monkeypatch.delenv("CXX")
    speed = fma_speed("baseline")
    assert speed is not None and 1e8 < speed < 1e13


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / f"{name}.py"), *options]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("alif_speed", ["--upstream", "nowhere"], "must be a checkout of webstorms/Blocks, got nowhere without"),
        ("alif_speed", ["--skip", "everything"], "argument --skip: invalid choice: 'everything'"),
        ("alif_speed", ["--skip", "loop"], "argument --skip: invalid choice: 'loop'"),
        ("alif_speed", ["--json", "nowhere/found.json"], "the folder of a result must exist, got nowhere/found.json"),
        ("alif_speed", ["--repeats", "0"], "argument --repeats: must be at least 1, got 0"),
        ("neuron_speed", ["--repeats", "-2"], "argument --repeats: must be at least 1, got -2"),
        ("alif_gradients", ["--markdown", "nowhere/table.md"], "the folder of a result must exist"),
    ],
)
def test_options_that_would_end_a_measurement_in_vain_are_refused(name: str, options: list[str], message: str) -> None:
    done = run(name, *options)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["alif_speed", "neuron_speed"])
def test_a_gpu_that_is_not_there_is_said(name: str) -> None:
    assert "--device cuda needs a GPU that torch sees" in run(name, "--device", "cuda").stderr


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks of memory are read by getrusage")
def test_peaks_and_other_libraries_stand_in_a_row_of_alif() -> None:
    for module in ("norse", "snntorch", "spikingjelly"):
        pytest.importorskip(module)
    done = run("alif_speed", "--smoke", "--memory", "--hosts", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    assert all(peer in done.stdout for peer in ("peak MiB", "norse LSNN", "snnTorch Leaky", "spikingjelly LIF"))
