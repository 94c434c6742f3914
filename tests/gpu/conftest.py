"""Tests that need an NVIDIA GPU: `make test-gpu`. Elsewhere they are skipped."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import pytest
import torch

from elm_neuro.backends.cuda import _compile, _driver, _frames, _input, _memory, _network, _readout, _weights
from elm_neuro.backends.elm import _cuda
from tests.gpu.cases import CASES, shape_of


@pytest.fixture(autouse=True)
def device() -> torch.device:
    """The GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    if _cuda.Cuda().missing() is not None:
        pytest.skip(f"no NVRTC: {_cuda.Cuda().missing()}")
    return torch.device("cuda")


@pytest.fixture(autouse=True, scope="session")
def compiled_ahead() -> None:
    """The kernels of all cases, compiled by processes side by side: one after the other they would take a minute."""
    if not torch.cuda.is_available() or _cuda.Cuda().missing() is not None:
        return
    # the processes are forked before this one has a context on the GPU
    with multiprocessing.get_context("fork").Pool(min(14, os.cpu_count() or 1)) as pool:
        programs = [
            part.program(dtype) for part in (_input, _weights, _readout) for dtype in (torch.float32, torch.float64)
        ]
        programs += [
            _frames.program(dtype, of_bytes=of_bytes)
            for dtype in (torch.float32, torch.float64)
            for of_bytes in (False, True)
        ]
        programs += [
            _network.program(dtype, backward=back) for dtype in (torch.float32, torch.float64) for back in (False, True)
        ]
        programs += [_memory.kernel_for(*shape_of(case), 0, back).program for case in CASES for back in (False, True)]
        architecture = _driver.launcher().device(0).architecture
        kernels = [(program, kernel) for program in dict.fromkeys(programs) for kernel in program.kernels()]
        pool.map(_compile_one, [(*kernel, architecture) for kernel in kernels], chunksize=1)


def _compile_one(job: tuple[Any, str, int]) -> None:
    _compile.machine_code(*job)
