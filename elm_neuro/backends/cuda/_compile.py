"""Machine code of a kernel for one architecture, compiled at first use and kept in the user's cache."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from elm_neuro.backends.cuda import _nvrtc
from elm_neuro.files import cache_folder, is_there, open_regular, write_whole

SOURCES = (
    "common.cuh",
    "products.cuh",
    "memory.cuh",
    "input.cuh",
    "frames.cuh",
    "weights.cuh",
    "readout.cuh",
    "surrogates.cuh",
    "alif.cuh",
    "network.cuh",
    "network_forward.cuh",
    "network_backward.cuh",
    "cluster.cuh",
    "network_cluster.cuh",
    "network_cluster_forward.cuh",
    "network_cluster_backward.cuh",
)
MAGIC = b"elm_neuro machine code 3\n"


@dataclass(frozen=True, eq=False)  # there is one object of each: it is looked up at each launch
class Program:
    """A source and what it is compiled with; of each kernel in it by itself."""

    source: str
    macros: tuple[tuple[str, str | int], ...]

    def options(self) -> list[str]:
        """Definitions for the compiler."""
        return [f"-D{name}={value}" for name, value in self.macros]

    def kernels(self) -> list[str]:
        """Names of all kernels in the source."""
        return re.findall(r"^ELM_(?:CLUSTER_)?KERNEL\((\w+)", sources()[self.source], re.MULTILINE)


@cache
def sources() -> dict[str, str]:
    """Text of the CUDA C++ sources, by name."""
    folder = Path(__file__).parent
    return {name: (folder / name).read_text(encoding="utf-8") for name in SOURCES}


@cache
def compiler() -> _nvrtc.Nvrtc:
    """The run-time compiler.

    Raises:
        CompileError: there is none.
    """
    path = _nvrtc.library_path()
    if path is None:
        raise _nvrtc.CompileError("NVRTC was not found: torch's CUDA wheels bring it, or pip install nvidia-cuda-nvrtc")
    return _nvrtc.Nvrtc(path)


@cache
def knows(architecture: int) -> bool:
    """Whether the compiler makes machine code for devices of this compute capability, 90 for 9.0."""
    return architecture in compiler().architectures()


def machine_code(program: Program, kernel: str, architecture: int) -> bytes:
    """Machine code of one kernel of `program`, from the user's cache where it is there.

    Raises:
        CompileError: there is no compiler, it does not know the architecture, or it refuses the kernel.
    """
    file = _file(program, kernel, architecture)
    code = _read(file)
    if code is None:
        try:
            code, _ = compiler().compile(
                f'#include "{program.source}"\n', sources(), options(program, kernel, architecture)
            )
        except _nvrtc.CompileError as error:
            raise _nvrtc.CompileError(f"{kernel} of {program.source} cannot be compiled: {error}") from error
        _write(file, code)
    return code


def is_kept(program: Program, kernel: str, architecture: int) -> bool:
    """Whether the user's cache has an entry of it."""
    file = _file(program, kernel, architecture)
    return file is not None and is_there(file)


def options(program: Program, kernel: str, architecture: int) -> list[str]:
    """What the compiler is told."""
    flags = f"--gpu-architecture=sm_{architecture}", "--std=c++17", "-default-device", f"-DELM_ONLY_{kernel}=,ELM_ENTRY"
    return [*flags, *program.options()]


@cache
def fingerprint() -> str:
    """Of all sources."""
    return hashlib.sha256("\0".join(sources().values()).encode()).hexdigest()


def _file(program: Program, kernel: str, architecture: int) -> Path | None:
    version, told = ".".join(map(str, compiler().version)), options(program, kernel, architecture)
    digest = hashlib.sha256("\0".join([version, *told, program.source, fingerprint()]).encode())
    try:
        return cache_folder("cuda") / f"{digest.hexdigest()[:40]}.bin"
    except RuntimeError:  # no home
        return None


def _read(file: Path | None) -> bytes | None:
    """What `_write` wrote, or None where there is no such file or it is damaged."""
    if file is None:
        return None
    try:
        with open_regular(file) as opened:
            content = opened.read()
    except (OSError, ValueError):  # none there, a pipe, a device
        return None
    size = len(MAGIC) + 32
    magic, digest, code = content[: len(MAGIC)], content[len(MAGIC) : size], content[size:]
    return code if magic == MAGIC and digest == _digest(file, code) else None


def _write(file: Path | None, code: bytes) -> None:
    """Keep `code`; where that fails (no room, no permission) it is compiled again next time."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole({file: MAGIC + _digest(file, code) + code}, through_links=False)
    except OSError:
        return


def _digest(file: Path, code: bytes) -> bytes:
    """Of the code and the name it is kept under: code of another kernel or another architecture is none of this one."""
    return hashlib.sha256(file.name.encode() + code).digest()
