"""The harness that runs kernels on the CPU finds what it is there to find: a barrier that is missing, a race, a barrier
that not all threads reach, and what sanitizers see.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from elm_neuro.backends.cuda import _compile, _plans
from elm_neuro.backends.cuda._compile import Program
from tests.backends.cuda.conftest import forget
from tests.backends.cuda.fake_driver import COMPILER, HERE, FakeDriver

REPOSITORY = HERE.parents[2]
HEADER = '#pragma once\n#include "common.cuh"\nstruct Sums { const Real *x; Real *y; };\n'
SUM = """
ELM_KERNEL(elm_sum, Sums, 64, 1) {
    ELM_DYNAMIC_SHARED(Real, room);
    room[threadIdx.x] = a.x[threadIdx.x];
    BARRIER
    a.y[threadIdx.x] = room[threadIdx.x] + room[(threadIdx.x + 37) % 64];
}
"""
RACE = """
ELM_KERNEL(elm_sum, Sums, 64, 1) {
    const Real sum = a.y[0] + a.x[threadIdx.x];
    __syncwarp();
    a.y[0] = sum;
}
"""
NOT_REACHED = "if (threadIdx.x < 40) __syncthreads(); else __syncwarp();"


def results(monkeypatch: pytest.MonkeyPatch, source: str) -> list[torch.Tensor]:
    """What a kernel gives with its threads in order, backward and shuffled."""
    if COMPILER is None:
        pytest.skip("no compiler")
    texts = {**_compile.sources(), "sum.cuh": HEADER + source}
    monkeypatch.setattr(_compile, "sources", lambda: texts)
    program = Program("sum.cuh", (("ELM_REAL", "double"), ("ELM_DOUBLE", 1)))
    found = []
    for seed in range(5):
        x, y = torch.arange(64.0, dtype=torch.float64) ** 2, torch.zeros(64, dtype=torch.float64)
        arguments = (ctypes.c_int64 * 2)(x.data_ptr(), y.data_ptr())
        FakeDriver(seed=seed).launch(program, "elm_sum", (1, 1), 64, 512, arguments)
        found.append(y)
    return found


def same(tensors: list[torch.Tensor]) -> bool:
    return all(torch.equal(tensor, tensors[0]) for tensor in tensors)


def test_a_sound_kernel_gives_the_same_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found = results(monkeypatch, SUM.replace("BARRIER", "__syncthreads();"))
    x = torch.arange(64.0, dtype=torch.float64) ** 2
    assert same(found) and torch.equal(found[0], x + x.roll(-37))


def test_a_missing_barrier_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not same(results(monkeypatch, SUM.replace("BARRIER", "")))


def test_a_barrier_of_the_warp_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not same(results(monkeypatch, SUM.replace("BARRIER", "__syncwarp();")))


def test_a_race_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not same(results(monkeypatch, RACE))


def test_a_barrier_that_not_all_threads_reach_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="elm_sum: a barrier that not all threads reach"):
        results(monkeypatch, SUM.replace("BARRIER", NOT_REACHED))


AROUND = """
#include "cluster.cuh"
ELM_CLUSTER_KERNEL(elm_around, Sums, 64) {
    ELM_DYNAMIC_SHARED(Real, room);
    Arrivals &arrivals = *(Arrivals *)room;
    if (threadIdx.x == 0) prepare(arrivals);
    wait_for_cluster();
    const int next = (blockIdx.y + 1) % CLUSTER;
    Real x = a.x[threadIdx.x] + blockIdx.y;
    for (int turn = 0; turn < CLUSTER; turn++) {
        send(x, room[1 + turn % 2 * 64 + threadIdx.x], arrivals, next);
        RECEIVE
        x = room[1 + turn % 2 * 64 + threadIdx.x] + 1;
        wait_for_cluster();
    }
    a.y[blockIdx.y * 64 + threadIdx.x] = x;
}
"""
RECEIVED = "receive(arrivals, 64 * sizeof(Real), turn);"


def sent_around(monkeypatch: pytest.MonkeyPatch, receive: str) -> list[torch.Tensor]:
    """What the blocks of a cluster have that send what they get on to the next one until it is back."""
    if COMPILER is None:
        pytest.skip("no compiler")
    texts = {**_compile.sources(), "around.cuh": HEADER + AROUND.replace("RECEIVE", receive)}
    monkeypatch.setattr(_compile, "sources", lambda: texts)
    program = Program("around.cuh", (("ELM_REAL", "double"), ("ELM_DOUBLE", 1)))
    found = []
    for seed in range(5):
        x, y = torch.arange(64.0, dtype=torch.float64) ** 2, torch.zeros(8, 64, dtype=torch.float64)
        arguments = (ctypes.c_int64 * 2)(x.data_ptr(), y.data_ptr())
        FakeDriver(seed=seed).launch(program, "elm_around", (1, 8), 64, 1032, arguments)
        found.append(y)
    return found


def test_blocks_of_a_cluster_send_one_another_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sent_around(monkeypatch, RECEIVED)
    wanted = torch.arange(64.0, dtype=torch.float64) ** 2 + torch.arange(8.0, dtype=torch.float64).unsqueeze(1) + 8
    assert same(found) and torch.equal(found[0], wanted)


def test_a_block_that_does_not_wait_for_what_is_sent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not same(sent_around(monkeypatch, ""))


def test_a_block_that_waits_for_what_nobody_sends_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="elm_around: a barrier that not all threads reach"):
        sent_around(monkeypatch, RECEIVED.replace("64", "65"))


def test_a_cluster_that_is_not_whole_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {**_compile.sources(), "around.cuh": HEADER + AROUND.replace("RECEIVE", RECEIVED)}
    monkeypatch.setattr(_compile, "sources", lambda: texts)
    program = Program("around.cuh", (("ELM_REAL", "double"), ("ELM_DOUBLE", 1)))
    if COMPILER is None:
        pytest.skip("no compiler")
    with pytest.raises(RuntimeError, match="elm_around"):
        FakeDriver().launch(program, "elm_around", (1, 7), 64, 1032, bytes(16))


BARRIERS = [match.start() for match in re.finditer(r"wait_for_block\(\);", _compile.sources()["memory.cuh"])]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BARRIERS)))
def test_every_barrier_of_the_recurrence_is_needed_where_it_stands(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Without it some layout gives other numbers in some order of the threads."""
    from elm_neuro import ELM, ELMState
    from elm_neuro.backends.cuda import _memory

    text, at = _compile.sources()["memory.cuh"], BARRIERS[number]
    texts = {**_compile.sources(), "memory.cuh": text[:at] + text[at:].replace("wait_for_block();", ";", 1)}
    monkeypatch.setattr(_compile, "sources", lambda: texts)
    device = fake_driver.properties
    x = torch.randn(3, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for options in ({}, {"num_mlp_layers": 0}):
        torch.manual_seed(0)
        neuron = ELM(5, 2, num_memory=37, backend="cuda", **options).double()

        def chosen(shape: _plans.Shape, *_: object, backward: bool) -> _plans.Plan:
            plan = _plans.layout(shape, device, 128, 1, (4, 8), backward=backward)
            assert plan is not None
            return plan

        monkeypatch.setattr(_memory, "choose", chosen)
        forget()
        found = []
        for seed in range(4):
            fake_driver.seed = seed
            neuron.zero_grad()
            y = neuron(x, ELMState(*(torch.ones_like(part) for part in neuron.cell.initial_state(3))))[0]
            y.sum().backward()
            found.append(torch.cat([y.detach().flatten(), *[p.grad.flatten() for p in neuron.parameters()]]))  # type: ignore[union-attr]
        if not all(torch.equal(other.nan_to_num(1e9), found[0].nan_to_num(1e9)) for other in found):
            return
    pytest.fail("nothing is lost without this barrier")


@cache
def runtime(name: str) -> str:
    """Path of a sanitizer's library."""
    command = [str(COMPILER), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


BEFORE = """
import torch
from elm_neuro import ALIF, ELM, LIF, BranchELM, ELMNetwork, SpikeEvents
from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._backend import CudaBackend
from tests.backends.cuda.fake_driver import FakeDriver
driver = FakeDriver(flags=("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"))
_driver.launcher = lambda: driver
CudaBackend.device_type = "cpu"
CudaBackend.missing = lambda self: None
torch.manual_seed(0)
"""
AFTER = """
print("ran", len(driver.launched))
"""
NEURONS = """
for neuron in (
    ELM(9, 2, num_memory=5, backend="cuda"),
    BranchELM(40, 2, num_memory=13, num_branch=30, num_synapse_per_branch=3, routing="random", backend="cuda"),
    ELM(9, 2, num_memory=37, num_neuron=2, activation="silu", backend="cuda").double(),
    ELM(9, 2, num_memory=7, num_mlp_layers=0, tau_s=tuple(1.0 + i for i in range(9)), backend="cuda"),
):
    frames = torch.poisson(torch.full((4, 11, neuron.config.input_size), 0.3)).to(neuron.cell.tau_s.dtype)
    # bytes are read by words that hold one of them: four samples end with a word
    for x in (frames.to(torch.uint8), SpikeEvents.from_frames(frames), frames.requires_grad_()):
        y, state = neuron(x, lengths=torch.tensor([11, 0, 4, 7]))
        (y.sum() + state.m.sum() + state.b.sum()).backward()
"""

PRODUCTS = """
from elm_neuro.backends.cuda import _frames
for dtype in (torch.uint8, torch.float32, torch.float64):
    for shape, width in (((2, 83, 150), 40), ((1, 8, 3, 71), 7), ((4, 61, 1, 133), 10), ((1, 68, 68), 4)):
        real = torch.float32 if dtype == torch.uint8 else dtype
        x = torch.poisson(torch.full(shape, 3.0)).to(dtype)  # bytes end with a word, as above
        _frames.multiply(x, torch.randn(*shape[2:], width, dtype=real))
        _frames.multiply_inputs(x, torch.randn(*shape[:-1], width, dtype=real))
"""

NETWORKS = """
branches = {"num_branch": 3, "num_synapse_per_branch": 2, "num_memory": 5, "backend": "cuda"}
for layer, events in (
    (ELMNetwork(9, 11, output="spike", tau_b=5.0, tau_high_pass=5.0, **branches), True),
    (ELMNetwork(9, 40, recurrent_fraction=0.0, num_mlp_layers=0, output="identity", **branches).double(), False),
    (ELMNetwork(9, 140, **branches).double(), False),  # two lanes a neuron
    (ELMNetwork(9, 19, tau_high_pass=5.0, **branches), True),
    (ELMNetwork(9, 5, num_mlp_layers=0, **branches).double(), False),
):
    frames = torch.poisson(torch.full((2, 3, 9), 0.3)).to(layer.w_s.dtype)
    y, state = layer(SpikeEvents.from_frames(frames) if events else frames, lengths=torch.tensor([3, 0]))
    (y.sum() + state.m.sum() + state.b.sum()).backward()
"""

LIF_LAYERS = """
for layer in (
    LIF(9, 5, backend="cuda"),
    ALIF(9, 37, latency=3.0, recurrent=True, backend="cuda"),
    ALIF(9, 40, latency=0.0, recurrent=True, detach_recurrent=False, backend="cuda").double(),
    ALIF(9, 33, latency=20.0, recurrent=True, detach_recurrent=False, backend="cuda").double(),
    ALIF(9, 33, latency=4.0, recurrent=True, gradient="blocks", backend="cuda"),
):
    with torch.no_grad():
        layer.cell.weight.mul_(5)
    frames = torch.poisson(torch.full((3, 41, 9), 0.3)).to(layer.cell.weight.dtype)
    _, state = layer(frames)
    for x in (frames, SpikeEvents.from_frames(frames)):
        y, after = layer(x, type(state)(*(part.detach() for part in state)), lengths=torch.tensor([41, 0, 17]))
        assert y.any()
        sum(part.sum() for part in (y, *after)).backward()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", [NEURONS, PRODUCTS, NETWORKS, LIF_LAYERS], ids=["neurons", "products", "network", "LIF layers"]
)
def test_sanitizers_find_nothing(script: str) -> None:
    if COMPILER is None or not Path(runtime("libasan.so")).is_absolute():
        pytest.skip("no compiler")
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + script + AFTER], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and "ran" in done.stdout, done.stderr[-3000:]


@pytest.mark.slow
def test_sanitizers_find_what_is_planted(tmp_path: Path) -> None:
    if COMPILER is None or not Path(runtime("libasan.so")).is_absolute():
        pytest.skip("no compiler")
    script = f"""
import ctypes, torch
from elm_neuro.backends.cuda import _compile
from elm_neuro.backends.cuda._compile import Program
from tests.backends.cuda.fake_driver import FakeDriver
texts = {{**_compile.sources(), "sum.cuh": {HEADER + SUM.replace("BARRIER", "__syncthreads();")!r}}}
_compile.sources = lambda: texts
driver = FakeDriver(flags=("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"))
x, y = torch.ones(64), torch.ones(64)
arguments = (ctypes.c_int64 * 2)(x.data_ptr(), y.data_ptr())
program = Program("sum.cuh", (("ELM_REAL", "float"), ("ELM_DOUBLE", 0)))
driver.launch(program, "elm_sum", (1, 1), 64, 252, arguments)
"""
    environment = os.environ | {"LD_PRELOAD": runtime("libasan.so"), "PYTHONPATH": str(REPOSITORY)}
    environment["ASAN_OPTIONS"] = "detect_leaks=0"  # those of the compiler that it starts
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr
