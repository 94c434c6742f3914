"""Time of a process's first forward and backward pass on a GPU, with an empty and with a full cache of machine code.

Each is timed in a process of its own, in which torch has multiplied before. Without a GPU the CUDA driver is a stand-in
that launches nothing: what is left is the host's part, and the products with frames by the CPU, which the second call
has too.
"""

from __future__ import annotations

import argparse
import cProfile
import ctypes
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import Any

import torch
from arguments import count

CACHE = "XDG_CACHE_HOME"


def nothing(*_: Any) -> int:
    """A call of the driver that does not exist; 0 is success."""
    return 0


class Library:
    """The CUDA driver where there is none."""

    def __getattr__(self, name: str) -> Any:
        return nothing


def stand_in() -> None:
    """Let this process take the CPU for an H100."""
    from elm_neuro.backends.cuda._backend import CudaBackend

    real: Any = ctypes.CDLL
    of_device = SimpleNamespace(multi_processor_count=132, shared_memory_per_block_optin=232448, major=9, minor=0)
    for owner, name, value in (
        (ctypes, "CDLL", lambda name: Library() if name == "libcuda.so.1" else real(name)),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "get_device_properties", lambda index: of_device),
        (torch.cuda, "synchronize", nothing),
        (torch._C, "_cuda_getDevice", nothing),
        (torch._C, "_cuda_getCurrentRawStream", nothing),
        (CudaBackend, "device_type", "cpu"),
    ):
        setattr(owner, name, value)


def one(profile: bool) -> None:
    """Print the milliseconds of the first and the second call."""
    from elm_neuro import BranchELM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        stand_in()
        torch.set_num_threads(1)
    weight = torch.ones(64, 64, device=device, requires_grad=True)
    (weight @ weight).sum().backward()
    torch.manual_seed(0)
    neuron = BranchELM(1278, 2, 20, num_branch=45, num_synapse_per_branch=100, backend="cuda").to(device)
    x = (torch.rand(8, 500, 1278, device=device) < 0.01).float()

    def run() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        neuron(x)[0].sum().backward()
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    if profile:
        with cProfile.Profile() as profiler:
            run()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
    print(run() if not profile else "", run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--profile", action="store_true", help="print where the first call with a full cache spends it")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.profile)
        return

    def child(cache: str, *more: str) -> str:
        command = [sys.executable, __file__, "--one", *more]
        return subprocess.run(
            command, env=os.environ | {CACHE: cache}, check=True, capture_output=True, text=True
        ).stdout

    found: dict[str, list[list[float]]] = {"empty": [], "full": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name in found:
                found[name].append([float(number) for number in child(cache).split()])
    for name, times in found.items():
        first, second = (statistics.median(column) for column in zip(*times, strict=True))
        every = ", ".join(f"{row[0]:.0f}" for row in times)
        print(f"{name} cache: first call {first:.1f} ms ({every}), second {second:.1f} ms")
    if options.profile:
        with tempfile.TemporaryDirectory() as cache:
            child(cache)
            print(child(cache, "--profile"))


if __name__ == "__main__":
    main()
