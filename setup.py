"""Builds the library of the native backend while the package is built; everything else stands in pyproject.toml.

A compiler is never required: where there is none, or it fails, the package is built without the library and runs on the
`torch` backend. ``CXX`` or ``CC`` name the compiler (``CC=false``: none), ``CXXFLAGS`` adds flags.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
SOURCES = Path("elm_neuro/backends/native")
LIBRARY = SOURCES / "libelm_native.so"
FLAGS = "-O3 -std=c++17 -fPIC -fno-math-errno -fno-exceptions -fno-rtti -fvisibility=hidden -w".split()
X86_SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"],
}


def sources() -> list[Path]:
    """What the library is compiled from."""
    return sorted(path for path in (ROOT / SOURCES).iterdir() if path.suffix in (".cpp", ".h"))


def compilers() -> list[list[str]]:
    """Commands to try: the one that is named, or else the usual ones that are there."""
    named = os.environ.get("CXX") or os.environ.get("CC")
    return [shlex.split(named)] if named else [[name] for name in ("c++", "g++", "clang++") if shutil.which(name)]


def compile_library(compiler: list[str], target: Path) -> None:
    """Each instruction set is the same source compiled with other flags; all go into one library, which chooses at run
    time.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    flags = [*FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    with tempfile.TemporaryDirectory() as folder:
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources())).hexdigest()[:16]
        steps = [("library", [f'-DELM_SOURCES="{digest}"', *(["-DELM_X86"] if x86 else [])], "library.cpp")]
        steps += [
            (f"{source}-{name}", [*extra, f"-DELM_ISA={name}"], source)
            for source in ("kernels.cpp", "alif.cpp", "network.cpp")
            for name, extra in (X86_SETS if x86 else {"baseline": []}).items()
        ]

        def compile_one(step: tuple[str, list[str], str]) -> str:
            name, extra, source = step
            result = os.path.join(folder, f"{name}.o")
            subprocess.run([*compiler, *flags, *extra, "-c", str(ROOT / SOURCES / source), "-o", result], check=True)
            return result

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, steps))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        linked = [
            *compiler,
            "-shared",
            *shlex.split(os.environ.get("CXXFLAGS", "")),
            *objects,
            "-o",
            str(partial),
            "-lm",
            "-lpthread",
        ]
        try:
            subprocess.run(linked, check=True)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


class BuildNative(Command):
    """Compile the native backend; a failure leaves the package without it."""

    description = "compile the library of the native backend"
    user_options: ClassVar = [
        ("build-lib=", "d", "folder of the built package"),
        ("inplace", "i", "build beside the sources"),
    ]
    boolean_options: ClassVar = ["inplace"]
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.inplace = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    @property
    def target(self) -> Path:
        return ROOT / LIBRARY if self.editable_mode or self.inplace else Path(self.build_lib or "") / LIBRARY

    def run(self) -> None:
        self.target.unlink(missing_ok=True)  # of an earlier build
        for compiler in compilers():
            print(f"compiling the native backend with {compiler[0]}: a minute or two", file=sys.stderr, flush=True)
            start = time.perf_counter()
            try:
                compile_library(compiler, self.target)
                print(f"{self.target} compiled in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
                return
            except (OSError, subprocess.CalledProcessError) as error:
                self.warn(f"{compiler[0]} did not build the native backend: {error}")
        self.warn("no native backend: the torch backend serves in its place")

    def get_outputs(self) -> list[str]:
        return [] if self.editable_mode or not self.target.is_file() else [str(self.target)]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in sources()]


class BuildWithNative(build):
    """The usual steps, then the native backend."""

    sub_commands: ClassVar = [*build.sub_commands, ("build_native", None)]


class PlatformWheel(bdist_wheel):
    """With the library inside, a wheel for this platform and any Python; without it, one for every platform."""

    def run(self) -> None:
        self.run_command("build")
        self.skip_build = True
        if self.get_finalized_command("build_native").target.is_file():
            self.distribution.has_ext_modules = lambda: True
            self.root_is_pure = False
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        name = super().get_tag()[2]
        if not self.plat_name_supplied:  # on macOS Python may be of two architectures, the library is of one
            name = name.replace("universal2", platform.machine().lower())
        return "py3", "none", name


setup(cmdclass={"build": BuildWithNative, "build_native": BuildNative, "bdist_wheel": PlatformWheel})
