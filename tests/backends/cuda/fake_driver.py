"""A launcher that runs the kernels' own sources on the CPU: CUDA C++ built by g++ against cuda_on_cpu.h."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from struct import pack

import torch

from elm_neuro.backends.cuda import _compile, _driver
from elm_neuro.backends.cuda._arguments import Arguments
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._plans import Device

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")


class FakeDriver:
    """Runs kernels on the CPU, threads in an order that `seed` decides."""

    def __init__(self, *, properties: Device | None = None, seed: int = 2, flags: tuple[str, ...] = ()) -> None:
        self.properties = properties or Device(multiprocessors=132, shared_bytes=232448, architecture=90)
        self.seed, self.flags = seed, flags
        self.launched: list[tuple[str, tuple[int, int], int]] = []
        self.expected: set[tuple[Program, str]] = set()
        self.ran: set[tuple[Program, str]] = set()
        self._libraries: dict[Program, ctypes.CDLL] = {}

    def device(self, index: int) -> Device:
        return self.properties

    def queue(self, device: torch.device) -> FakeDriver:
        return self

    def prepared(self, work: _driver.Work) -> _driver.Run:
        *what, begin, num_fields = work

        def run(*fields: int) -> None:
            self.launch(*what, begin + pack(f"{num_fields}q", *fields))

        return run

    def expect(self, kernels: Iterable[tuple[Program, str]], device: torch.device) -> None:
        self.expected.update(kernels)

    def load(self, program: Program, kernel: str, index: int) -> None:
        """They are built when they are launched."""

    def launch(
        self,
        program: Program,
        kernel: str,
        grid: tuple[int, int],
        threads: int,
        shared_bytes: int,
        arguments: Arguments,
    ) -> None:
        if program not in self._libraries:
            self._libraries[program] = ctypes.CDLL(str(built(program, self.flags)))
        if shared_bytes > self.properties.shared_bytes:
            raise RuntimeError(f"{kernel} asks for {shared_bytes} bytes of shared memory")
        if not (1 <= grid[0] < 2**31 and 1 <= grid[1] <= _driver.MAX_GRID_Y and 1 <= threads <= 1024):
            raise RuntimeError(f"{kernel}: CUDA_ERROR_INVALID_VALUE for a grid of {grid} and {threads} threads")
        call = getattr(self._libraries[program], f"launch_{kernel}")
        if call(*grid, threads, ctypes.c_size_t(shared_bytes), self.seed, ctypes.c_char_p(bytes(arguments))):
            raise RuntimeError(f"{kernel}: a barrier that not all threads reach")
        self.launched.append((kernel, grid, threads))
        self.ran.add((program, kernel))


def included(name: str) -> dict[str, str]:
    """Text of a source and of all that it includes, by name."""
    texts, left = {}, [name]
    while left:
        name = left.pop()
        texts[name] = _compile.sources()[name]
        left += [other for other in re.findall(r'#include "(\S+)"', texts[name]) if other not in texts]
    return texts


def built(program: Program, flags: tuple[str, ...] = ()) -> Path:
    """The shared library of a program, built where it is not there yet."""
    texts = included(program.source)
    text = "\0".join([(HERE / "cuda_on_cpu.h").read_text(), *texts.values(), *program.options(), *flags])
    folder = Path(tempfile.gettempdir(), f"elm_neuro_cuda_on_cpu_{os.getuid()}")
    folder.mkdir(exist_ok=True)
    library = folder / f"{hashlib.sha256(f'{program.source}{text}'.encode()).hexdigest()[:32]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            for name, source in texts.items():
                Path(work, name).write_text(source)
            main = Path(work, "main.cpp")
            main.write_text(f'#include "cuda_on_cpu.h"\n#include "{program.source}"\n')
            options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-fno-gnu-unique", *flags, *program.options()]
            target = Path(work, "library.so")
            command = [str(COMPILER), *options, f"-I{HERE}", f"-I{work}", str(main), "-o", str(target)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[:4000])
            target.replace(library)
    return library
