"""Launches through the CUDA driver, which is a stand-in here: what it is asked, and how its refusals are told."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from elm_neuro.backends.cuda import _ahead, _available, _compile, _driver, _nvrtc
from elm_neuro.backends.cuda._arguments import structure
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._launch import Launch
from elm_neuro.backends.cuda._plans import Device

FILL, SIZE = structure("first second third")
PROGRAM = Program("weights.cuh", ())


class Library:
    """The calls of libcuda that a launch makes."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.launched: list[tuple[Any, ...]] = []
        self.status: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cuLaunchKernelEx":
                config, address = arguments[0]._obj, ctypes.cast(arguments[2], ctypes.POINTER(ctypes.c_void_p))[0]
                numbers = [getattr(config, name) for name, _ in config._fields_]
                self.launched.append((*numbers, ctypes.string_at(address, SIZE)))
            return self.status.get(name, 0)

        return call


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def driver(library: Library, monkeypatch: pytest.MonkeyPatch) -> _driver.Driver:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(_ahead, "awaited", lambda program, kernel, architecture: b"code")
    monkeypatch.setattr(_driver, "_current_device", lambda: 0)
    monkeypatch.setattr(_driver, "_current_stream", lambda index: 77)
    monkeypatch.setattr(_driver.Driver, "device", lambda self, index: Device(132, 232448, 90))
    return _driver.Driver()


def launch(driver: _driver.Driver, *, grid: tuple[int, int] = (3, 2), shared: int = 0) -> None:
    queue = driver.queue(torch.device("cuda", 0))
    queue.prepared(_driver.Work(PROGRAM, "elm_table", grid, 256, shared, FILL(5, None, 7)[:8], 2))(0, 7)


def test_a_launch_hands_over_grid_stream_and_packed_arguments(driver: _driver.Driver, library: Library) -> None:
    launch(driver)
    expected = (3, 2, 1, 256, 1, 1, 0, 77, None, 0)
    assert library.launched == [(*expected, b"".join(n.to_bytes(8, "little") for n in (5, 0, 7)))]


def test_threads_that_launch_one_kernel_at_a_time_fill_a_structure_each(
    driver: _driver.Driver, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is read by the driver, without Python's lock, while another thread fills the next."""
    seen: list[bytes] = []
    read = library.__getattr__("cuLaunchKernelEx")

    def launch(config: Any, function: Any, pointers: Any, extra: Any) -> int:
        if len(seen) == 0:
            seen.append(b"")
            other = threading.Thread(target=run, args=(3, 4))
            other.start()
            other.join()
        return read(config, function, pointers, extra)

    monkeypatch.setattr(driver, "_launch_kernel", launch)
    work = _driver.Work(PROGRAM, "elm_table", (1, 1), 64, 0, FILL(5, 0, 0)[:8], 2)
    run = driver.queue(torch.device("cuda", 0)).prepared(work)
    run(1, 2)
    assert [launched[-1] for launched in library.launched] == [FILL(5, 3, 4), FILL(5, 1, 2)]
    for _ in range(3):
        run(6, 7)
    assert library.launched[-1][-1] == FILL(5, 6, 7)


def test_a_kernel_is_loaded_once_and_asks_for_much_shared_memory(driver: _driver.Driver, library: Library) -> None:
    for _ in range(3):
        launch(driver, shared=64 * 1024)
    assert [library.calls.count(f"cu{name}") for name in ("ModuleLoadData", "FuncSetAttribute", "LaunchKernelEx")] == [
        1,
        1,
        3,
    ]


def test_a_kernel_gets_more_shared_memory_when_it_asks_for_more(driver: _driver.Driver, library: Library) -> None:
    asked = []
    for kilobytes in (16, 64, 200, 100, 200, 32):
        launch(driver, shared=kilobytes * 1024)
        asked.append(library.calls.count("cuFuncSetAttribute"))
    assert asked == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("name", ["cuLaunchKernelEx", "cuModuleLoadData", "cuModuleGetFunction", "cuCtxGetCurrent"])
def test_what_the_driver_refuses_is_told_by_the_calls_name(driver: _driver.Driver, library: Library, name: str) -> None:
    library.status[name] = 209  # CUDA_ERROR_NO_BINARY_FOR_GPU: of a driver older than the compiler
    with pytest.raises(_driver.CudaError, match=f"{name} failed"):
        launch(driver)
    library.status[name] = _driver.OUT_OF_MEMORY
    with pytest.raises(torch.OutOfMemoryError, match=f"{name} failed: out of device memory"):
        launch(driver)


def test_a_stream_is_one_queue_whose_launches_are_prepared_once(
    driver: _driver.Driver, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Launch(PROGRAM, "elm_table", (3, 2), 256, SIZE, (5, 6))
    for stream in (77, 77, 78, 77):
        monkeypatch.setattr(_driver, "_current_stream", lambda index, stream=stream: stream)
        kernel(driver.queue(torch.device("cuda")), 7)
    assert [launched[7] for launched in library.launched] == [77, 77, 78, 77]
    assert {launched[-1] for launched in library.launched} == {FILL(5, 6, 7)}
    assert library.calls.count("cuModuleGetFunction") == 1
    assert driver.queue(torch.device("cuda")) is driver.queue(torch.device("cuda", 0))


def test_a_driver_without_extended_launches_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with pytest.raises(_driver.CudaError, match=r"older than CUDA 11\.8"):
        _driver.Driver()


def test_a_grid_beyond_the_driver_is_refused(driver: _driver.Driver, library: Library) -> None:
    with pytest.raises(_driver.CudaError, match="at most 65535 blocks in its second direction, got 65536"):
        launch(driver, grid=(1, 65536))
    assert not library.launched


def test_another_device_is_made_the_current_one(
    driver: _driver.Driver, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = [0]

    class Entered:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            current.append(self.index)

        def __exit__(self, *_: object) -> None:
            current.pop()

    monkeypatch.setattr(_driver, "_current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "device", Entered)
    queue = driver.queue(torch.device("cuda", 1))
    run = queue.prepared(_driver.Work(PROGRAM, "elm_table", (1, 1), 256, 0, b"", 3))
    assert current == [0]
    run(1, 2, 3)
    assert len(library.launched) == 1 and current == [0]
    assert list(driver._functions) == [(1, PROGRAM, "elm_table")]


def test_a_thread_that_is_on_no_device_is_left_off_the_one_it_does_not_use(
    driver: _driver.Driver, library: Library
) -> None:
    driver.queue(torch.device("cuda", 1))
    assert not library.calls
    driver.queue(torch.device("cuda", 0))
    assert "cuCtxGetCurrent" in library.calls


def test_threads_that_load_one_kernel_load_it_once(driver: _driver.Driver, library: Library) -> None:
    both, plain = threading.Barrier(2), library.__getattr__

    def slow(name: str) -> Any:
        if name == "cuModuleLoadData":
            time.sleep(0.05)
        return plain(name)

    library.__class__ = type("Slow", (Library,), {"__getattr__": lambda _, name: slow(name)})

    def first() -> None:
        both.wait()
        launch(driver, shared=64 * 1024)

    threads = [threading.Thread(target=first) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = [library.calls.count(f"cu{name}") for name in ("ModuleLoadData", "FuncSetAttribute", "LaunchKernelEx")]
    assert counts == [1, 1, 2]


@pytest.mark.parametrize("capturing", [False, True])
def test_a_kernel_that_has_no_room_gets_what_torch_holds_unused(
    driver: _driver.Driver, library: Library, monkeypatch: pytest.MonkeyPatch, *, capturing: bool
) -> None:
    emptied = []

    def empty_cache() -> None:
        emptied.append(True)
        library.status.clear()

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    library.status["cuModuleLoadData"] = _driver.OUT_OF_MEMORY
    if capturing:
        with pytest.raises(torch.OutOfMemoryError, match="cuModuleLoadData failed"):
            launch(driver)
    else:
        launch(driver)
    assert len(emptied) == len(library.launched) == (not capturing)


@pytest.fixture
def gpu_of_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    caches = _available._missing_parts, _available._broken, _driver.launcher, _compile.compiler
    for cached in caches:
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


def test_what_is_missing_is_told_and_logged_once(
    gpu_of_torch: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> None:
        raise _nvrtc.CompileError("NVRTC was not found")

    monkeypatch.setattr(_compile, "compiler", none)
    with caplog.at_level(logging.WARNING, logger="elm_neuro"):
        assert [_available.missing() for _ in range(3)] == ["NVRTC was not found"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "neurons on the GPU run in plain torch, many times slower: NVRTC was not found"
    ]


def test_a_machine_without_a_driver_says_so(gpu_of_torch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(_compile, "compiler", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert str(_available.missing()).startswith("no CUDA driver: ")


def test_a_library_that_is_no_compiler_is_told(gpu_of_torch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nvrtc, "library_path", lambda: "libc.so.6")
    assert str(_available.missing()).startswith("NVRTC cannot be loaded from libc.so.6: ")


def test_an_architecture_that_the_compiler_does_not_know_is_told_once(
    gpu_of_torch: None, driver: _driver.Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_driver, "launcher", lambda: driver)
    monkeypatch.setattr(_compile, "knows", lambda architecture: architecture != 90)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    with caplog.at_level(logging.WARNING, logger="elm_neuro"):
        for _ in range(2):
            assert _available.broken(0) == "the compiler of this installation does not know GPU 0"
    assert len(caplog.records) == 1
