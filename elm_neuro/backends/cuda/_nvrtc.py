"""NVIDIA's run-time compiler, as far as it is needed here: CUDA C++ in, machine code out.

Needs neither a GPU nor a driver. The library comes with torch's CUDA wheels; ``pip install nvidia-cuda-nvrtc`` brings
it without them.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch

ENVIRONMENT = "ELM_NEURO_NVRTC"  # a path to the library, instead of a search
# Where the wheels of CUDA 12 and 13, and torch's own, put it, below a folder of sys.path.
FOLDERS = ("nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cu13/bin/x86_64", "nvidia/cuda_nvrtc/bin", "torch/lib")


class CompileError(RuntimeError):
    """The compiler refused a source or could not be used."""


@cache
def library_path() -> str | None:
    """The newest compiler of the CUDA that torch is built for, since a driver need not load the machine code of a later
    one; else the newest, or None.
    """
    import os

    if os.environ.get(ENVIRONMENT):
        return os.environ[ENVIRONMENT]
    major, newest = (torch.version.cuda or "").partition(".")[0], None
    for path in _found():
        newest = newest or path
        if not major or re.match(rf"(libnvrtc\.so\.{major}(\.|$)|nvrtc64_{major}\d_)", Path(path).name):
            return path
    return newest


def _found() -> Iterator[str]:
    pattern = "nvrtc64_*_0.dll" if sys.platform == "win32" else "libnvrtc.so.*"
    for folder in FOLDERS:
        for base in dict.fromkeys(sys.path):
            names = [path for path in Path(base or ".", folder).glob(pattern) if "alt" not in path.name]
            yield from sorted(map(str, names), reverse=True)
    for name in ("libnvrtc.so.13", "libnvrtc.so.12"):  # a toolkit of the system
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        yield name


class Nvrtc:
    """The loaded compiler.

    Raises:
        CompileError: it cannot be loaded.
    """

    def __init__(self, path: str) -> None:
        try:
            self._library = ctypes.CDLL(path)
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:  # no library, or another one
            raise CompileError(f"NVRTC cannot be loaded from {path}: {error}") from error
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)

    def architectures(self) -> list[int]:
        """Compute capabilities that it compiles for, 90 for 9.0."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", found)
        return list(found)

    def compile(self, source: str, headers: dict[str, str], options: list[str]) -> tuple[bytes, str]:
        """Machine code of `source`, and what the compiler says.

        Args:
            source: CUDA C++.
            headers: text of what it includes, by name.
            options: as for nvcc; with ``--gpu-architecture=sm_90`` machine code of that architecture.

        Raises:
            CompileError: with the compiler's log.
        """
        program = ctypes.c_void_p()
        names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
        texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"elm_neuro.cu", len(headers), texts, names
        )
        try:
            arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = self._function("nvrtcCompileProgram")(program, len(options), arguments)
            log = self._text("nvrtcGetProgramLog", program).decode(errors="replace").rstrip("\0")
            if status:
                raise CompileError(f"NVRTC {'.'.join(map(str, self.version))} refused a kernel: {log.strip()}")
            return self._text("nvrtcGetCUBIN", program), log
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, name: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{name}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(name, program, text)
        return text.raw

    def _call(self, name: str, *arguments: object) -> None:
        status = self._function(name)(*arguments)
        if status:
            message = self._library.nvrtcGetErrorString(status).decode()
            raise CompileError(f"{name} failed: {message}")

    def _function(self, name: str) -> Callable[..., int]:
        try:
            function: Callable[..., int] = getattr(self._library, name)
        except AttributeError as error:
            raise CompileError(f"NVRTC has no {name}: it is older than 11.2, or another library") from error
        return function
