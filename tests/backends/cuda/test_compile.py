"""Machine code of the kernels: kept in the user's cache, and within the registers that the layouts count on."""

from __future__ import annotations

import json
import os
import re
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from elm_neuro.backends.cuda import (
    _alif,
    _compile,
    _frames,
    _input,
    _memory,
    _network,
    _network_cluster,
    _nvrtc,
    _plans,
    _readout,
    _weights,
)
from elm_neuro.backends.cuda._compile import Program

PROGRAM = Program("weights.cuh", (("ELM_REAL", "float"),))
KERNEL = "elm_table"
TABLE = Path(__file__).with_name("machine_code.json")


class Counted:
    """A compiler that counts what it is asked for."""

    version = (13, 0)

    def __init__(self) -> None:
        self.compiled = 0

    def compile(self, source: str, headers: dict[str, str], options: list[str]) -> tuple[bytes, str]:
        self.compiled += 1
        return f"{source} {options}".encode(), ""


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counted:
    counted = Counted()
    monkeypatch.setattr(_compile, "compiler", lambda: counted)
    monkeypatch.setattr(_compile, "cache_folder", lambda name: tmp_path / name)
    return counted


def test_it_is_compiled_once(compiler: Counted, tmp_path: Path) -> None:
    code = _compile.machine_code(PROGRAM, KERNEL, 90)
    assert _compile.machine_code(PROGRAM, KERNEL, 90) == code and compiler.compiled == 1
    assert _compile.machine_code(PROGRAM, KERNEL, 80) != code and compiler.compiled == 2
    assert len(list((tmp_path / "cuda").iterdir())) == 2


def test_another_compiler_or_another_source_compiles_again(compiler: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    _compile.machine_code(PROGRAM, KERNEL, 90)
    compiler.version = (13, 1)
    _compile.machine_code(PROGRAM, KERNEL, 90)
    monkeypatch.setattr(_compile, "sources", lambda: {"weights.cuh": "// changed"})
    _compile.fingerprint.cache_clear()
    _compile.machine_code(PROGRAM, KERNEL, 90)
    _compile.fingerprint.cache_clear()
    assert compiler.compiled == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another kernel's", "a folder", "a pipe", "a circle"])
def test_a_damaged_entry_is_compiled_again(compiler: Counted, tmp_path: Path, damage: str) -> None:
    code = _compile.machine_code(PROGRAM, KERNEL, 90)
    (entry,) = (tmp_path / "cuda").iterdir()
    whole = entry.read_bytes()
    if damage in ("a folder", "a pipe", "a circle"):
        entry.unlink()
        {"a folder": entry.mkdir, "a pipe": lambda: os.mkfifo(entry), "a circle": lambda: entry.symlink_to(entry)}[
            damage
        ]()
    else:
        flipped = whole[:-1] + bytes([whole[-1] ^ 1])
        other = entry.with_name(f"{'0' * 40}.bin")
        _compile._write(other, code)
        entry.write_bytes(
            {"cut": whole[:-3], "flipped": flipped, "empty": b"", "another kernel's": other.read_bytes()}[damage]
        )
    assert _compile.machine_code(PROGRAM, KERNEL, 90) == code and compiler.compiled == 2
    if damage != "a folder":
        assert entry.read_bytes() == whole


def test_a_folder_that_cannot_be_made_is_done_without(compiler: Counted, tmp_path: Path) -> None:
    (tmp_path / "cuda").write_text("a file stands there")
    assert _compile.machine_code(PROGRAM, KERNEL, 90) == _compile.machine_code(PROGRAM, KERNEL, 90)
    assert compiler.compiled == 2


def test_a_full_disk_is_done_without(compiler: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(files: dict[Path, bytes], *, through_links: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_compile, "write_whole", full)
    assert _compile.machine_code(PROGRAM, KERNEL, 90) and compiler.compiled == 1
    assert list((tmp_path / "cuda").iterdir()) == []


def test_no_home_is_done_without(compiler: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(name: str) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(_compile, "cache_folder", homeless)
    assert _compile.machine_code(PROGRAM, KERNEL, 90) and compiler.compiled == 1


def test_two_processes_at_once_leave_one_whole_entry(compiler: Counted, tmp_path: Path) -> None:
    with get_context("fork").Pool(4) as pool:
        codes = pool.map(_machine_code, range(40))
    assert len(set(codes)) == 1
    (entry,) = (tmp_path / "cuda").iterdir()
    assert _compile._read(entry) == codes[0]


def _machine_code(number: int) -> bytes:
    if number % 5 == 0:
        for entry in _compile.cache_folder("cuda").glob("*.bin"):
            entry.unlink(missing_ok=True)
    return _compile.machine_code(PROGRAM, KERNEL, 90)


# Devices as the layouts see them: multiprocessors and shared memory of a T4, A100, H100 and RTX 5090.
DEVICES = {
    75: _plans.Device(40, 65536, 75),
    80: _plans.Device(108, 166912, 80),
    90: _plans.Device(132, 232448, 90),
    120: _plans.Device(170, 101376, 120),
}
SHAPES = {  # num_memory, hidden layers, silu, float64, batch
    "8 units": (8, 1, False, False, 32),
    "20 units": (20, 1, False, False, 8),
    "20 units, silu": (20, 1, True, False, 8),
    "20 units, no hidden layer": (20, 0, False, False, 8),
    "20 units, float64": (20, 1, False, True, 8),
    "20 units, batch 1024": (20, 1, False, False, 1024),
    "100 units": (100, 1, False, False, 32),
    "150 units": (150, 1, False, False, 32),
    "150 units, batch 384": (150, 1, False, False, 384),
    "256 units": (256, 1, False, False, 32),
}


NETWORKS = {  # neurons, units, hidden layer, whether they read one another, float64
    "96 neurons of 5": (96, 5, (10,), True, False),
    "57 neurons of 9": (57, 9, (18,), True, False),
    "128 neurons of 5": (128, 5, (10,), True, False),
    "48 neurons of 16": (48, 16, (32,), True, False),
    "19 neurons that do not read one another": (19, 3, (), False, False),
    "32 neurons of 5, float64": (32, 5, (10,), True, True),
}


def programs(architecture: int) -> dict[str, Program]:
    """By name, what neurons of common sizes are compiled for."""
    found = {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        found[f"input, {name}"] = _input.program(dtype)
        for kind, of_bytes in (("bytes", True), ("frames", False)):
            found[f"{kind}, {name}"] = _frames.program(dtype, of_bytes=of_bytes)
        found[f"weights, {name}"] = _weights.program(dtype)
        found[f"readout, {name}"] = _readout.program(dtype)
        for threads in (128, 1024):  # the multi-Gaussian surrogate, which asks for the most
            found[f"alif of {threads}, {name}"] = _alif.program(dtype, threads, 4, _alif.steps_ahead(threads, dtype))
        for direction, backward in (("forward", False), ("backward", True)):
            found[f"network, {direction}, {name}"] = _network.program(dtype, backward=backward)
    found["alif of 128 in stretches of 11"] = _alif.program(torch.float32, 128, 4, 11)
    for tile in ((8, 10, 8, 2), (8, 8, 8, 1), (8, 4, 8, 1), (4, 10, 8, 1), (4, 10, 16, 1)):
        found[f"bytes in tiles of {tile}"] = _frames.program(torch.float32, _frames.Tile(*tile), of_bytes=True)
    for tile in ((4, 10, 8, 1), (4, 10, 16, 1)):
        found[f"frames in tiles of {tile}"] = _frames.program(torch.float32, _frames.Tile(*tile), of_bytes=False)
    for name, (num_neuron, num_memory, hidden, reads_layer, double) in NETWORKS.items():
        sizes = _network.Sizes(num_neuron, 30, num_memory, (*hidden, num_memory), reads_layer, False, True)
        dtype = torch.float64 if double else torch.float32
        for direction, backward in (("forward", False), ("backward", True)):
            cluster = _network_cluster.cluster(sizes, dtype, DEVICES[architecture], backward=backward)
            assert (cluster is not None) == (architecture >= 90)
            if cluster is not None:
                program = _network_cluster.program(sizes, cluster, dtype, backward=backward)
                found[f"network of {name}, {direction}"] = program
    for name, (num_memory, num_layers, silu, double, batch) in SHAPES.items():
        shape = _plans.Shape(num_memory, 2 * num_memory, num_layers, silu, double)
        for direction, backward in (("forward", False), ("backward", True)):
            plan = _plans.choose(shape, DEVICES[architecture], batch, 1, backward=backward)
            found[f"{name}, {direction}"] = _memory.program(plan)
    return found


def used(program: Program, architecture: int) -> dict[str, list[int]]:
    """Registers, bytes of spills and bytes of static shared memory of each kernel."""
    all_of_them = [f"-DELM_ONLY_{name}=,ELM_ENTRY" for name in program.kernels()]
    options = [*_compile.options(program, "elm", architecture), *all_of_them, "--ptxas-options=-v"]
    _, log = _compile.compiler().compile(f'#include "{program.source}"\n', _compile.sources(), options)
    kernels: dict[str, list[int]] = {}
    name = ""
    for line in log.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)'", line):
            name = entry[1]
            kernels[name] = [0, 0, 0]
        elif spills := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernels[name][1] = int(spills[1]) + int(spills[2])
        elif registers := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[name][0], kernels[name][2] = int(registers[1]), int(shared[1]) if shared else 0
    return kernels


FEW = (
    "bytes, float32",
    "frames, float32",
    "weights, float32",
    "readout, float32",
    "network, forward, float32",
    "network of 96 neurons of 5, forward",
    "network of 96 neurons of 5, backward",
    "20 units, forward",
    "20 units, backward",
)


@pytest.mark.parametrize(
    ("architecture", "names"),
    [(90, FEW), *[pytest.param(other, None, marks=pytest.mark.slow, id=f"all of {other}") for other in DEVICES]],
)
def test_registers_and_spills_are_those_of_the_table(architecture: int, names: tuple[str, ...] | None) -> None:
    """Machine code differs between compilers: with another one than the table's it has to compile, no more."""
    try:
        version = ".".join(map(str, _compile.compiler().version))
    except _nvrtc.CompileError as error:
        pytest.skip(f"no NVRTC: {error}")
    table, named = json.loads(TABLE.read_text()), programs(architecture)
    for name in names or named:
        found = used(named[name], architecture)
        assert found and (version != table["nvrtc"] or found == table[f"sm_{architecture}"][name]), name


@pytest.mark.parametrize(
    ("cuda", "expected"), [("12.8", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"), ("13.0", "nvidia/cu13/lib/libnvrtc.so.13"),
                           (None, "nvidia/cu13/lib/libnvrtc.so.13"), ("11.8", "nvidia/cu13/lib/libnvrtc.so.13")]
)  # fmt: skip
def test_the_compiler_of_torchs_own_cuda_goes_before_a_newer_one(
    cuda: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machine code of a later CUDA need not load in the driver that torch's runs on."""
    for name in ("nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.delenv(_nvrtc.ENVIRONMENT, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert _nvrtc.library_path.__wrapped__() == str(tmp_path / expected)


@pytest.mark.parametrize("architecture", list(DEVICES))
def test_small_neurons_spill_nothing_and_layouts_fit_the_device(architecture: int) -> None:
    table: dict[str, Any] = json.loads(TABLE.read_text())[f"sm_{architecture}"]
    for name, kernels in table.items():
        most = 0 if name.startswith(("8 units", "20 units", "input", "frames", "weights", "readout")) else 1024
        if name.startswith("alif"):
            most = 192 if name.startswith("alif of 1024") else 0
        if name.startswith("bytes"):  # numbers that a block needs at its end, one of a tile's 850 instructions
            most = 96
        if name.startswith("network"):
            most = 0 if name.startswith("network of") else 8
        if name.startswith("100 units"):
            most = 0 if architecture >= 90 else 128
        for kernel, (registers, spills, shared) in kernels.items():
            assert registers <= 255 and spills <= most and shared <= 48 * 1024, (name, kernel)
    for num_memory, num_layers, silu, double, batch in SHAPES.values():
        shape = _plans.Shape(num_memory, 2 * num_memory, num_layers, silu, double)
        for backward in (False, True):
            plan = _plans.choose(shape, DEVICES[architecture], batch, 1, backward=backward)
            assert plan.shared_bytes <= DEVICES[architecture].shared_bytes


if __name__ == "__main__":  # writes the table
    content: dict[str, Any] = {"nvrtc": ".".join(map(str, _compile.compiler().version))}
    with get_context("fork").Pool(os.cpu_count()) as pool:
        for architecture in DEVICES:
            named = programs(architecture)
            kernels = pool.starmap(used, [(program, architecture) for program in named.values()], chunksize=1)
            content[f"sm_{architecture}"] = dict(zip(named, kernels, strict=True))
    lines = json.dumps(content, indent=1)
    TABLE.write_text(re.sub(r"\[\s+(\d+),\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2, \3]", lines) + "\n")
