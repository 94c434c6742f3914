"""The library: there where there is a compiler, refused where it does not fit, and an error where memory ends."""

from __future__ import annotations

import ast
import ctypes
import json
import os
import platform
import sys
from pathlib import Path

import pytest
import torch

from elm_neuro import ELM, backends
from elm_neuro.backends.native import _library
from tests.backends.native_cases import (
    COMPILER,
    REPOSITORY,
    native,
    run_python,
)


def test_the_library_is_there_wherever_there_is_a_compiler() -> None:
    assert COMPILER is None or not _library.missing()


def test_without_a_library_auto_is_torch_and_the_name_raises_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_library", None)
    monkeypatch.setattr(_library, "_missing", "there was no compiler")
    assert backends.available()["native"] == "cannot run: there was no compiler"
    neuron = ELM(3, 1, num_memory=2)
    assert "backend='torch'" in repr(neuron)
    assert neuron(torch.rand(1, 4, 3))[0].shape == (1, 4, 1)
    for attempt in (
        lambda: ELM(3, 1, backend="native"),
        lambda: backends.resolve("native"),
        lambda: backends.use("native").__enter__(),
    ):
        with pytest.raises(RuntimeError, match='backend "native" cannot run: there was no compiler'):
            attempt()


def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernels.cpp").write_text("// another\n", encoding="utf-8")
    monkeypatch.setattr(_library, "FOLDER", tmp_path)
    library, reason = _library._open()
    assert library is None
    assert "built from other sources" in reason or "without a C++ compiler" in reason
    monkeypatch.setattr(_library, "LIBRARY", tmp_path / "kernels.cpp")
    assert "does not load" in _library._open()[1]


@native
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, another heap")
def test_a_pass_finds_the_memory_that_the_one_before_it_freed() -> None:
    """Without the block that is freed first, 147 pages a pass were asked for in some runs."""
    code = """
import resource, statistics, torch
from elm_neuro import ELM
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    neuron.zero_grad()
    neuron(x)[0].square().sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
neuron, x, others, worst = ELM(140, 64, 20), (torch.rand(32, 50, 140) < 0.05).float(), [], 0
for size in (1, 1000, 50_000, 300_000):  # in the way of the heap
    others.append(torch.ones(size))
    worst = max(worst, statistics.median([faults() for _ in range(30)]))
print(worst)
"""
    assert float(run_python(code, OMP_NUM_THREADS="1")) < 10


@native
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_a_large_buffer_is_a_tensor_like_any_other_and_given_back() -> None:
    code = """
import copy, gc, io, os, threading, torch
from elm_neuro.backends.native import _library
def resident():
    gc.collect()
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")) / 1024
size, before = 5 * (_library.FREED_BYTES // 20 + 1001), resident()
for _ in range(20):
    _library.large(torch.empty(0), size).fill_(1.0)
some = [_library.large(torch.empty(0), size).fill_(1.0) for _ in range(5)]
assert len({room.data_ptr() for room in some}) == 5
del some
assert resident() < before + 40, "more than one buffer stays when nothing holds them"
for bigger in range(1, 10):
    _library.large(torch.empty(0), size + bigger).fill_(1.0)
assert resident() < before + 40, "one of another size stays beside the last"
room = _library.large(torch.empty(0), size)
assert room.shape == (size,) and room.dtype == torch.float32 and room.data_ptr() % 2**21 == 0
assert room.untyped_storage().nbytes() == 4 * size, "no more than was asked for is saved or sent"
assert _library.large(room, size, torch.int64).dtype == torch.int64
view = room.normal_().view(-1, 5)[:, 1:].t()
del room
_library.large(torch.empty(0), size)[:1] = 0.0  # whatever was kept
assert resident() > before + 30, "a view holds its buffer"
file = io.BytesIO()
torch.save(view, file)
file.seek(0)
assert torch.load(file).equal(view) and copy.deepcopy(view).equal(view)
child = os.fork()
if child == 0:
    view.zero_()
    os._exit(0)
os.waitpid(child, 0)
assert view.any(), "what a child writes is the child's"
try:
    _library.large(torch.empty(0), 2**58)
except RuntimeError as error:
    assert "memory" in str(error)
def work():
    for _ in range(300):
        assert _library.large(torch.empty(0), size)[:3].fill_(2.0).sum() == 6.0
now = resident()
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert resident() < now + 40
print(float(view.shape[0]))
"""
    assert float(run_python(code, OMP_NUM_THREADS="1")) == 4.0


@native
@pytest.mark.parametrize("name", ["baseline", pytest.param("avx2", marks=pytest.mark.slow)])
def test_every_instruction_set_equals_the_reference(name: str) -> None:
    code = "import json, torch; from elm_neuro import backends; from tests.backends import native_cases as t"
    code += "; t.sizes(torch.float32); t.sizes(torch.float64); print(json.dumps(backends.available()))"
    used = json.loads(run_python(code, ELM_NEURO_ISA=name, OMP_NUM_THREADS="1"))["native"]
    best = backends.available()["native"]
    assert f"({name})" in used or (name not in best and "baseline" in best)


@native
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, another heap")
def test_too_little_memory_is_an_error_and_not_the_end_of_the_interpreter() -> None:
    """With ever more room left to the process, a pass fails in torch, then in the library, then not at all."""
    code = """
import collections, ctypes, resource, torch
from elm_neuro import ELM
torch.set_num_threads(1)
neuron, x = ELM(3, 1, num_memory=1500, backend="native"), torch.rand(1, 3, 3)
def run():
    neuron.zero_grad()
    neuron(x)[0].sum().backward()
    return neuron.cell.w_y.weight.grad.clone()
expected, outcomes, soft = run(), collections.Counter(), resource.getrlimit(resource.RLIMIT_AS)
for room in range(4, 400, 24):
    neuron.zero_grad()
    ctypes.CDLL(None).malloc_trim(0)  # what an earlier pass left is no room
    size = 4096 * int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (size + room * 2**20, soft[1]))
    try:
        outcomes["equal" if torch.equal(run(), expected) else "different"] += 1
    except MemoryError as error:
        outcomes[str(error).split(" of ")[0]] += 1
    except RuntimeError as error:
        outcomes["torch" if "allocate memory" in str(error) else str(error)] += 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, soft)
print(dict(outcomes))
assert torch.equal(run(), expected)
"""
    outcomes = ast.literal_eval(run_python(code, OMP_NUM_THREADS="1", MALLOC_ARENA_MAX="1"))
    assert set(outcomes) <= {"equal", "torch", "no memory for the working copy", "no memory for the gradients"}
    assert outcomes["equal"] > 3
    assert len(outcomes) > 2, outcomes


@native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks of memory are read from /proc")
@pytest.mark.parametrize("given", ["events", pytest.param("frames", marks=pytest.mark.slow)])
def test_a_recomputed_pass_takes_the_memory_of_its_parts(given: str) -> None:
    """16,384 rows of 60 + 120 units in float32 are 12 MiB; of 256 steps at a time they are 0.4, and the frames'
    product adds as much."""
    code = f"""
import torch
from elm_neuro import ELM, SpikeEvents
from neuron_speed import peak_above_start
torch.manual_seed(0)
torch.set_num_threads(1)
x = (torch.rand(2, 8192, 40) < 0.05).float()
x = SpikeEvents.from_frames(x) if {given!r} == "events" else x + 0.1
neuron = ELM(40, 1, num_memory=60, backend="native")
for neuron.recompute_every in (256, None):
    neuron.recompute_every, every = 20, neuron.recompute_every  # what is loaded once
    neuron(x.steps(0, 40) if {given!r} == "events" else x[:, :40])[0].sum().backward()
    neuron.recompute_every = every
    print(peak_above_start(lambda: neuron(x)[0].square().sum().backward()))
"""
    path = f"{REPOSITORY / 'benchmarks'}{os.pathsep}{REPOSITORY}"
    recomputed, kept = map(
        float, run_python(code, PYTHONPATH=path, OMP_NUM_THREADS="1", MALLOC_MMAP_THRESHOLD_="65536").split()
    )
    assert kept > 11.0
    assert recomputed < kept / 4


@native
def test_structs_have_the_size_that_the_library_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    library = _library.library()
    for name, struct in _library.STRUCTS.items():
        assert library.elm_size_of(name.encode()) == ctypes.sizeof(struct)
    assert library.elm_size_of(b"ElmNothing") == -1

    class Longer(ctypes.Structure):
        _fields_ = [*_library.TableArgs._fields_, ("more", ctypes.c_int64)]

    monkeypatch.setitem(_library.STRUCTS, "ElmTable", Longer)
    size = ctypes.sizeof(_library.TableArgs)
    opened, reason = _library._open()
    assert opened is None
    assert reason == f"its library takes {size} bytes of ElmTable, {size + 8} would be passed; install elm-neuro again"
