"""A compiler or a driver that fails on a device: "auto" takes the next backend and says so once, `cuda` by name says
why. The libraries are stand-ins, built to fail in one way each.
"""

from __future__ import annotations

import ctypes
import logging
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from elm_neuro import backends
from elm_neuro.backends.cuda import _available, _compile, _driver, _nvrtc
from elm_neuro.backends.cuda._plans import Device
from tests.backends.cuda.fake_driver import COMPILER

SOURCE = Path(__file__).with_name("broken.c")
LIKE: Any = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)  # a parameter there
CACHES = _available._missing_parts, _available._broken, _driver.launcher, _compile.compiler, _compile.knows
Installs = Callable[..., None]


@pytest.fixture
def installs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Installs]:
    """Have libraries that answer as the macros say, on a machine with an H100."""
    if COMPILER is None:
        pytest.skip("no compiler")
    real = ctypes.CDLL

    def install(*macros: str) -> None:
        library = tmp_path / f"lib{'_'.join(macros) or 'whole'}.so"
        if not library.exists():
            flags = ["-shared", "-fPIC", "-w", "-x", "c", *(f"-D{macro}" for macro in macros)]
            subprocess.run([str(COMPILER), *flags, str(SOURCE), "-o", str(library)], check=True)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: real(str(library)))
        for cached in CACHES:
            cached.cache_clear()

    monkeypatch.setenv(_nvrtc.ENVIRONMENT, "libnvrtc.so")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_nvrtc, "library_path", lambda: "libnvrtc.so")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(_driver.Driver, "device", lambda self, index: Device(132, 232448, 90))
    yield install
    monkeypatch.undo()
    for cached in CACHES:
        cached.cache_clear()


FAILURES = {
    "OLD": "NVRTC has no nvrtcGetNumSupportedArchs: it is older than 11.2, or another library",
    "ARCHITECTURE=80": "the compiler of this installation does not know GPU 0",
    "COMPILES=7": "elm_table of weights.cuh cannot be compiled: NVRTC 13.0 refused a kernel: what it says.",
    "LOADS=209": "cuModuleLoadData failed: CUDA_ERROR_NO_BINARY_FOR_GPU, what it means",
    "LOADS=200": "cuModuleLoadData failed: CUDA_ERROR_INVALID_IMAGE, what it means",
}


def test_what_works_runs_there(installs: Installs, caplog: pytest.LogCaptureFixture) -> None:
    installs()
    assert backends.resolve("auto", LIKE) == "cuda" and not caplog.records


@pytest.mark.parametrize("macro", FAILURES)
@pytest.mark.parametrize("operator", ["elm", "alif", "network"])
def test_auto_falls_back_and_says_so_once(
    installs: Installs, caplog: pytest.LogCaptureFixture, macro: str, operator: str
) -> None:
    installs(macro)
    with caplog.at_level(logging.WARNING, logger="elm_neuro"):
        assert {backends.resolve("auto", LIKE, operator=operator) for _ in range(3)} == {"torch"}
    (record,) = caplog.records
    assert record.getMessage() == f"neurons on the GPU run in plain torch, many times slower: {FAILURES[macro]}"


@pytest.mark.parametrize("macro", FAILURES)
def test_cuda_by_name_says_why(installs: Installs, macro: str) -> None:
    installs(macro)

    def refusal(backend: Any) -> str | None:
        reason: str | None = backend.refusal_of(LIKE)
        return reason

    told = re.escape(f'backend "cuda" cannot run this: {FAILURES[macro]}')
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{told}$"):
            backends._select.choose(backends.elm.OPERATOR, "cuda", refusal)


def test_a_device_without_room_is_no_reason_to_fall_back(installs: Installs, caplog: pytest.LogCaptureFixture) -> None:
    installs("LOADS=2")
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError, match="cuModuleLoadData failed: out of device memory"):
            backends.resolve("auto", LIKE)
    assert not caplog.records


def test_a_compiler_that_fails_is_not_asked_for_what_is_kept(installs: Installs) -> None:
    installs()
    assert backends.resolve("auto", LIKE) == "cuda"
    installs("COMPILES=7")
    assert backends.resolve("auto", LIKE) == "cuda"


@pytest.mark.parametrize("name", ["cuModuleLoadData", "cuLaunchKernelEx"])
def test_a_library_that_is_no_driver_is_told(
    installs: Installs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    source, library = tmp_path / "other.c", tmp_path / "libother.so"
    source.write_text(SOURCE.read_text().replace(name, f"not_{name}"))
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-w", "-x", "c", str(source), "-o", str(library)], check=True)
    installs()
    real = type(ctypes.CDLL("whole"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: real(str(library)))
    assert backends.resolve("auto", LIKE) == "torch"
    reason = _available.missing() or _available.broken(0)
    assert name in str(reason)
