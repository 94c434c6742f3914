"""How fast this core multiplies and adds, on the registers that the native kernels use: the floor beneath them."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).with_name("fma_speed.cpp")
FLAGS = {
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma"],
    "baseline": [],
}  # as setup.py has them
CHAINS, ROUNDS, REPEATS = 12, 1 << 21, 9


def fma_speed(instruction_set: str) -> float | None:
    """FLOP/s of independent float32 multiply-adds in registers, the best of nine; None without a C++ compiler.

    A matrix product is no such measure: on some processors torch's runs at half of what the core can do, and kernels
    that do better would have a share of more than 1.

    Args:
        instruction_set: of the native library: "avx512", "avx2" or "baseline".
    """
    named = os.environ.get("CXX") or os.environ.get("CC")
    commands = [shlex.split(named)] if named else [[name] for name in ("c++", "g++", "clang++") if shutil.which(name)]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "fma.so")
        for command in commands:
            flags = ["-O3", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=fast", *FLAGS[instruction_set]]
            try:
                subprocess.run([*command, *flags, str(SOURCE), "-o", str(target)], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                continue
            return _best(ctypes.CDLL(str(target)).fma_rounds)
    return None


def _best(rounds: ctypes._NamedFuncPointer) -> float:
    sink, best, lanes = ctypes.c_float(0.5), float("inf"), 0
    for _ in range(REPEATS):
        start = time.process_time()
        lanes = rounds(ctypes.c_int64(ROUNDS), ctypes.byref(sink))
        best = min(best, time.process_time() - start)
    return 2.0 * ROUNDS * CHAINS * lanes / best
