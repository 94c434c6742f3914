"""Kernels are compiled side by side before they are asked for; how that ends, whatever becomes of the compiler."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any

import pytest
import torch

from elm_neuro import ALIF, ELM, ELMNetwork
from elm_neuro.backends.cuda import _ahead, _compile, _nvrtc
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.events import SpikeEvents
from tests.backends.cuda.conftest import forget
from tests.backends.cuda.fake_driver import FakeDriver

PROGRAM = Program("weights.cuh", (("ELM_REAL", "float"),))
NAMES = ("elm_table", "elm_outer", "elm_gradients")
KERNELS = [(PROGRAM, name) for name in NAMES]


class Compiler:
    """Takes as long as `during` does."""

    version = (13, 0)

    def __init__(self) -> None:
        self.compiled: list[str] = []

    def during(self) -> None:
        """Nothing."""

    def compile(self, source: str, headers: dict[str, str], options: list[str]) -> tuple[bytes, str]:
        (name,) = (option[len("-DELM_ONLY_") : -len("=,ELM_ENTRY")] for option in options if "ELM_ENTRY" in option)
        self.compiled.append(name)
        self.during()
        return name.encode(), ""


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Compiler]:
    compiler = Compiler()
    monkeypatch.setattr(_compile, "compiler", lambda: compiler)
    monkeypatch.setattr(_compile, "cache_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    yield compiler
    _ahead._begun.clear()


def test_kernels_are_compiled_at_the_same_time(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    together = Barrier(3)  # which breaks where they come one after the other
    monkeypatch.setattr(compiler, "during", lambda: together.wait(timeout=10))
    _ahead.begin(KERNELS, 90)
    assert [_ahead.awaited(*kernel, 90) for kernel in KERNELS] == [name.encode() for name in NAMES]
    assert sorted(compiler.compiled) == sorted(NAMES)


def test_nothing_waits_for_what_has_begun_until_it_is_asked_for(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = Event()
    monkeypatch.setattr(compiler, "during", lambda: go_on.wait(10))
    _ahead.begin(KERNELS, 90)
    _ahead.begin(KERNELS, 90)  # once is enough
    go_on.set()
    assert [_ahead.awaited(*kernel, 90) for kernel in KERNELS] == [name.encode() for name in NAMES]
    assert len(compiler.compiled) == 3


def test_fewer_cores_compile_all_the_same(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    _ahead.begin(KERNELS, 90)
    assert [_ahead.awaited(*kernel, 90) for kernel in KERNELS] == [name.encode() for name in NAMES]


def test_a_full_cache_starts_no_thread(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in KERNELS:
        _compile.machine_code(*kernel, 90)

    def no_thread(*_: Any, **__: Any) -> None:
        raise AssertionError("a thread is started")

    monkeypatch.setattr(_ahead, "Thread", no_thread)
    _ahead.begin(KERNELS, 90)
    assert _ahead.awaited(*KERNELS[0], 90) == b"elm_table" and len(compiler.compiled) == 3


def test_without_threads_it_compiles_at_once(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(self: Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Thread, "start", no_more)
    _ahead.begin(KERNELS, 90)
    assert len(compiler.compiled) == 3
    assert _ahead.awaited(*KERNELS[1], 90) == b"elm_outer"


def test_an_error_is_told_to_who_asks_by_the_kernels_name(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise _nvrtc.CompileError("NVRTC 13.0 refused a kernel: no room")

    monkeypatch.setattr(compiler, "during", refuse)
    _ahead.begin(KERNELS, 90)
    with pytest.raises(
        _nvrtc.CompileError,
        match=r"^elm_outer of weights\.cuh cannot be compiled: NVRTC 13.0 refused a kernel: no room",
    ):
        _ahead.awaited(*KERNELS[1], 90)
    monkeypatch.undo()
    monkeypatch.setattr(_compile, "compiler", lambda: compiler)
    assert _ahead.awaited(*KERNELS[1], 90) == b"elm_outer"  # and may be asked again


def test_a_forked_process_does_not_wait_for_threads_that_it_has_not(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, go_on = os.getpid(), Event()
    monkeypatch.setattr(compiler, "during", lambda: go_on.wait(30) if os.getpid() == parent else None)
    _ahead.begin(KERNELS, 90)
    try:
        child = get_context("fork").Process(target=_ahead.awaited, args=(*KERNELS[0], 90))
        child.start()
        child.join(10)
        assert child.exitcode == 0
    finally:
        go_on.set()
    assert _ahead.awaited(*KERNELS[0], 90) == b"elm_table"


def test_the_end_of_a_process_waits_for_the_compiler_and_keeps_what_it_gives(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compiler, "during", lambda: time.sleep(0.2))
    process = get_context("fork").Process(target=_ahead.begin, args=(KERNELS, 90))
    process.start()
    process.join(10)
    assert process.exitcode == 0 and len(list((tmp_path / "cuda").iterdir())) == 3


CASES: list[dict[str, Any]] = [
    {},
    {"num_mlp_layers": 0},
    {"output_size": 9},
    {"num_neuron": 2},
    {"activation": "silu"},
    {"learn_tau_m": False},
]


@pytest.mark.parametrize("arrives", ["frames", "events", "bytes"])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_what_a_pass_expects_is_what_it_runs(fake_driver: FakeDriver, options: dict[str, Any], arrives: str) -> None:
    forget()
    neuron = ELM(**{"input_size": 7, "output_size": 2, "num_memory": 3, "backend": "cuda", **options})
    frames = torch.poisson(torch.full((2, 5, 7), 0.3))
    x = {"frames": frames, "events": SpikeEvents.from_frames(frames), "bytes": frames.to(torch.uint8)}[arrives]
    with torch.no_grad():
        neuron(x)
    assert fake_driver.expected == fake_driver.ran  # a pass without gradients expects nothing of the other direction
    forward = set(fake_driver.ran)
    neuron(x)[0].sum().backward()
    assert forward < fake_driver.expected == fake_driver.ran


LAYERS = {
    "alif": lambda: ALIF(6, 5, recurrent=True, backend="cuda"),
    "network": lambda: ELMNetwork(6, 5, num_memory=3, num_branch=4, num_synapse_per_branch=2, backend="cuda"),
    "network of traces": lambda: ELMNetwork(
        6, 5, num_memory=3, num_branch=4, num_synapse_per_branch=2, tau_b=5.0, backend="cuda"
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_expect_their_backward_pass_where_there_will_be_one(fake_driver: FakeDriver, name: str) -> None:
    neuron, x = LAYERS[name](), torch.ones(2, 4, 6)
    with torch.no_grad():
        neuron(x)
    assert not fake_driver.expected
    neuron(x)[0].sum().backward()
    assert len(fake_driver.expected) == 1 and fake_driver.expected < fake_driver.ran
