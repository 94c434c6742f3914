"""The kernels under memory checkers, other compilers and other processors."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from elm_neuro.backends.native import _library
from tests.backends.native_cases import (
    COMPILER,
    REPOSITORY,
    X86_SETS,
    native,
    run_python,
)

DRIVERS = ("native_driver", "alif_driver", "network_driver")


def drivers(tmp_path: Path, compiler: str, *flags: str) -> list[Path]:
    """Each driver and the kernels, of every instruction set, as one program."""
    sources = Path(_library.__file__).parent
    x86 = "aarch64" not in compiler and platform.machine().lower() in ("x86_64", "amd64")
    sets = X86_SETS if x86 else {"baseline": []}
    common = [
        compiler,
        "-O2",
        "-g",
        "-std=c++17",
        "-fno-math-errno",
        "-fno-exceptions",
        "-fno-rtti",
        "-w",
        f"-I{sources}",
        *flags,
    ]
    steps = [("library", [*(["-DELM_X86"] if x86 else []), '-DELM_SOURCES="driven"'], sources / "library.cpp")]
    for source in ("kernels.cpp", "alif.cpp", "network.cpp"):
        steps += [(f"{name}-{source}", [*extra, f"-DELM_ISA={name}"], sources / source) for name, extra in sets.items()]
    kernels = [tmp_path / f"{name}.o" for name, _, _ in steps]
    steps += [(name, [], Path(__file__).with_name(f"{name}.cpp")) for name in DRIVERS]
    for name, extra, source in steps:
        subprocess.run([*common, *extra, "-c", source, "-o", tmp_path / f"{name}.o"], check=True)
    programs = [tmp_path / name for name in DRIVERS]
    for program in programs:
        linked = [compiler, *flags, program.with_suffix(".o"), *kernels, "-o", program, "-lpthread"]
        subprocess.run(linked, check=True)
    return programs


def run_driver(program: Path, *before: str, isa: str = "") -> None:
    done = subprocess.run([*before, program], capture_output=True, text=True, env=os.environ | {"ELM_NEURO_ISA": isa})
    assert done.returncode == 0 and "clean" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


@native
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_valgrind_finds_nothing(tmp_path: Path) -> None:
    """Odd sizes in buffers of exactly the size promised; valgrind knows no AVX-512."""
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind")
    for program, isa in itertools.product(drivers(tmp_path, COMPILER or "c++"), ("avx2", "baseline")):
        run_driver(program, "valgrind", "-q", "--error-exitcode=9", isa=isa)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_clang_compiles_the_same_numbers(tmp_path: Path) -> None:
    if shutil.which("clang++") is None:
        pytest.skip("no clang++")
    for program, isa in itertools.product(drivers(tmp_path, "clang++"), ("avx512", "avx2", "baseline")):
        run_driver(program, isa=isa)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_arm_processors_compute_the_same_numbers(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("no compiler and emulator for AArch64")
    for program in drivers(tmp_path, compiler, "-static"):
        run_driver(program, emulator)


def copy_built_with(tmp_path: Path, *sanitizers: str) -> tuple[Path, str]:
    """A copy of the checkout whose library is built with these sanitizers, and the runtimes to load before Python."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".ranges", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "*.so", "reports"
    )
    copy = Path(shutil.copytree(REPOSITORY, tmp_path / "checkout", symlinks=True, ignore=ignored))
    flags = f"-fsanitize={','.join(sanitizers)} -g -O1" + (
        " -fno-sanitize-recover=undefined" if "undefined" in sanitizers else ""
    )
    short = {"address": "asan", "thread": "tsan", "undefined": "ubsan"}
    found = [
        subprocess.run([COMPILER, f"-print-file-name=lib{short[name]}.so"], capture_output=True, text=True)
        for name in sanitizers
    ]
    build = subprocess.run(
        [sys.executable, "setup.py", "build_native", "--inplace"],
        cwd=copy,
        env=os.environ | {"CXXFLAGS": flags},
        capture_output=True,
    )
    assert build.returncode == 0 and (copy / "elm_neuro/backends/native/libelm_native.so").is_file(), build.stderr
    return copy, " ".join(done.stdout.strip() for done in found)


@native
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_nothing_is_read_or_written_out_of_bounds(tmp_path: Path) -> None:
    """All sizes under AddressSanitizer and UBSan."""
    copy, runtime = copy_built_with(tmp_path, "address", "undefined")
    code = "import torch; from tests.backends import native_cases as t"
    code += "; from tests.backends.network import native_sizes as n"
    code += "; [run(kind) for run in (t.sizes, n.sizes) for kind in (torch.float32, torch.float64)]; print('clean')"
    options = "detect_leaks=0:abort_on_error=0:verify_asan_link_order=0"
    for name in ("avx512", "avx2", "baseline"):
        assert "clean" in run_python(
            code,
            copy,
            LD_PRELOAD=runtime,
            ASAN_OPTIONS=options,
            ELM_NEURO_ISA=name,
            ELM_NEURO_THREADS="own",
            OMP_NUM_THREADS="1",
        )


@native
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="ThreadSanitizer is loaded before Python on Linux only")
def test_threads_do_not_race(tmp_path: Path) -> None:
    """Two models in two threads, three threads a call, under ThreadSanitizer; torch, which it does not know, stays on
    one."""
    copy, runtime = copy_built_with(tmp_path, "thread")
    code = "from elm_neuro.backends.native import _library; _library.threads_for = lambda work: 3"
    code += "; from tests.backends import native_cases as t; t.stress(seconds=2.0, num_threads=1); print('clean')"
    assert "clean" in run_python(
        code,
        copy,
        LD_PRELOAD=runtime,
        TSAN_OPTIONS="halt_on_error=1 exitcode=66",
        ELM_NEURO_THREADS="own",
        OMP_NUM_THREADS="1",
    )
