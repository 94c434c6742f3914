"""Launches of compiled kernels on torch's current stream, through the CUDA driver that torch has loaded."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from struct import Struct
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch

from elm_neuro.backends.cuda import _ahead
from elm_neuro.backends.cuda._arguments import Arguments
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._plans import Device

MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
MAX_GRID_Y = 65535
DEFAULT_SHARED = 48 * 1024  # a block may have this much without asking

Run: TypeAlias = Callable[..., None]  # of the rest of a kernel's structure, integers


class Work(NamedTuple):
    """A kernel, and all of its launch that is the same in every call."""

    program: Program
    kernel: str
    grid: tuple[int, int]  # blocks
    threads: int  # of a block
    shared_bytes: int  # of a block's dynamic shared memory
    begin: Arguments  # of the kernel's structure
    num_fields: int = 0  # integers that are left of it


class Queue(Protocol):
    """A stream of a device."""

    def prepared(self, work: Work) -> Run:
        """What has the device do this work after what the stream has to do: nothing waits. The rest of the kernel's
        structure comes with each call and is copied.
        """


class Launcher(Protocol):
    """What runs kernels: the driver, or in tests the CPU."""

    def device(self, index: int) -> Device:
        """Properties of the device of this number."""

    def queue(self, device: torch.device) -> Queue:
        """The device's current stream, always the same object for the same; the thread has a context from here on."""

    def expect(self, kernels: Iterable[tuple[Program, str]], device: torch.device) -> None:
        """Have kernels that will be launched compiled side by side, where they are not; nothing waits."""

    def load(self, program: Program, kernel: str, index: int) -> None:
        """Have a kernel on the device of this number, as its first launch does.

        Raises:
            CompileError: there is no machine code of it.
            CudaError: the driver does not take it.
            torch.OutOfMemoryError: the device has no room for it.
        """


class CudaError(RuntimeError):
    """The CUDA driver refused a call."""


class LaunchConfig(ctypes.Structure):
    """As cuda.h has it."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("num_attribute", ctypes.c_uint),
    )


class Driver:
    """The CUDA driver.

    Raises:
        CudaError: there is none.
    """

    def __init__(self) -> None:
        name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        try:
            self._library = ctypes.CDLL(name)
            self._launch_kernel = self._library.cuLaunchKernelEx
        except OSError as error:
            raise CudaError(f"no CUDA driver: {error}") from error
        except AttributeError as error:
            raise CudaError("the CUDA driver is older than CUDA 11.8: it has no cuLaunchKernelEx") from error
        self._functions: dict[tuple[int, Program, str], ctypes.c_void_p] = {}
        self._allowed: dict[tuple[int, Program, str], int] = {}  # bytes of shared memory, where more than the default
        self._devices: dict[int, Device] = {}
        self._queues: dict[tuple[int, int, bool], Stream] = {}
        self._entered = threading.local()  # whether a thread has a context
        # of two threads that load one kernel, each would have a module, and only one's be let have its shared memory
        self._loading = threading.RLock()

    def device(self, index: int) -> Device:
        """Properties of the device of this number, as torch counts them."""
        if index not in self._devices:
            properties: Any = torch.cuda.get_device_properties(index)
            self._devices[index] = Device(
                properties.multi_processor_count,
                properties.shared_memory_per_block_optin,
                10 * properties.major + properties.minor,
            )
        return self._devices[index]

    def queue(self, device: torch.device) -> Stream:
        """As in :class:`Launcher`."""
        current = _current_device()
        index = current if device.index is None else device.index
        if index == current and not getattr(self._entered, "done", False):
            self._enter_context(current)
        key = index, _current_stream(index), index == current
        found = self._queues.get(key)
        if found is None:
            found = self._queues[key] = Stream(self, *key)
        return found

    def prepared(self, index: int, stream: int, work: Work) -> Run:
        """As in :class:`Queue`, of a stream of the current device."""
        program, kernel, grid, threads, shared, begin, num_fields = work
        if grid[1] > MAX_GRID_Y:
            raise CudaError(f"a grid has at most {MAX_GRID_Y} blocks in its second direction, got {grid[1]}")
        with self._loading:
            function = self._function(index, program, kernel)
            if shared > DEFAULT_SHARED:
                self._allow(index, program, kernel, shared)
        config = ctypes.byref(LaunchConfig(*grid, 1, threads, 1, 1, shared, stream, None, 0))
        launch, pack_into, first = self._launch_kernel, Struct(f"{num_fields}q").pack_into, len(begin)
        spare: list[tuple[Any, Any]] = []  # structures that no thread is filling

        def run(*fields: int) -> None:
            try:
                structure = spare.pop()
            except IndexError:
                structure = _structure(begin, num_fields)
            pack_into(structure[0], first, *fields)
            status = launch(config, function, structure[1], None)
            spare.append(structure)
            if status:
                self._raise("cuLaunchKernelEx", status)

        return run

    def attribute(self, index: int, program: Program, kernel: str, number: int) -> int:
        """An attribute of a kernel that has been launched: 4 registers, 3 bytes of local memory."""
        value = ctypes.c_int()
        self._call("cuFuncGetAttribute", ctypes.byref(value), number, self._functions[index, program, kernel])
        return value.value

    def _allow(self, index: int, program: Program, kernel: str, shared_bytes: int) -> None:
        """Let a kernel have this much shared memory; a program that runs layers of many sizes asks for more in time."""
        key = index, program, kernel
        if shared_bytes > self._allowed.get(key, DEFAULT_SHARED):
            self._call("cuFuncSetAttribute", self._functions[key], MAX_DYNAMIC_SHARED, shared_bytes)
            self._allowed[key] = shared_bytes

    def _function(self, index: int, program: Program, kernel: str) -> ctypes.c_void_p:
        """Loaded once; by who holds the lock."""
        known = self._functions.get((index, program, kernel))
        if known is not None:
            return known
        code = _ahead.awaited(program, kernel, self.device(index).architecture)
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            self._call("cuModuleLoadData", ctypes.byref(module), code)
        except torch.OutOfMemoryError:
            if not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
                raise
            torch.cuda.empty_cache()  # the driver cannot take what torch holds and does not use
            self._call("cuModuleLoadData", ctypes.byref(module), code)
        self._call("cuModuleGetFunction", ctypes.byref(function), module, kernel.encode())
        self._functions[index, program, kernel] = function
        return function

    def expect(self, kernels: Iterable[tuple[Program, str]], device: torch.device) -> None:
        """As in :class:`Launcher`."""
        index = _current_device() if device.index is None else device.index
        new = [kernel for kernel in kernels if (index, *kernel) not in self._functions]
        _ahead.begin(new, self.device(index).architecture)

    def load(self, program: Program, kernel: str, index: int) -> None:
        """As in :class:`Launcher`."""
        with torch.cuda.device(index):
            if not getattr(self._entered, "done", False):
                self._enter_context(index)
            with self._loading:
                self._function(index, program, kernel)

    def _enter_context(self, index: int) -> None:
        """Have torch's context in this thread: one that has done nothing on a device has none, and cuBLAS warns where a
        thread's first work there is a product.
        """
        context, device = ctypes.c_void_p(), ctypes.c_int()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        if not context:
            self._call("cuDeviceGet", ctypes.byref(device), index)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
            self._call("cuCtxSetCurrent", context)
        self._entered.done = True

    def _call(self, name: str, *arguments: object) -> None:
        try:
            call: Callable[..., int] = getattr(self._library, name)
        except AttributeError as error:
            raise CudaError(f"the CUDA driver has no {name}") from error
        status = call(*arguments)
        if status:
            self._raise(name, status)

    def _raise(self, name: str, status: int) -> None:
        if status == OUT_OF_MEMORY:
            raise torch.OutOfMemoryError(f"{name} failed: out of device memory")
        texts = []
        for describe in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            getattr(self._library, describe)(status, ctypes.byref(text))
            texts.append((text.value or b"unknown").decode())
        raise CudaError(f"{name} failed: {texts[0]}, {texts[1]}")


class Stream:
    """As :class:`Queue`, of the driver.

    Args:
        driver: the driver.
        index: of the device.
        stream: its address.
        current: whether the device is the thread's.
    """

    def __init__(self, driver: Driver, index: int, stream: int, current: bool) -> None:
        self._driver, self._index, self._stream, self._current = driver, index, stream, current

    def prepared(self, work: Work) -> Run:
        """As in :class:`Queue`."""
        what = self._index, self._stream, work
        if self._current:
            return self._driver.prepared(*what)
        with torch.cuda.device(self._index):
            run = self._driver.prepared(*what)

        def run_there(*fields: int) -> None:
            with torch.cuda.device(self._index):
                run(*fields)

        return run_there


def _structure(begin: Arguments, num_fields: int) -> tuple[Any, Any]:
    """Memory of a kernel's structure, and what a launch takes: where it lies."""
    content = ctypes.create_string_buffer(begin, len(begin) + 8 * num_fields)
    return content, (ctypes.c_void_p * 1)(ctypes.addressof(content))


def _current_device() -> int:
    index: int = torch._C._cuda_getDevice()
    return index


def _current_stream(index: int) -> int:
    """Address of the stream; torch.cuda.current_stream makes an object of it, which takes longer than a launch."""
    stream: int = torch._C._cuda_getCurrentRawStream(index)
    return stream


def written(like: torch.Tensor) -> None:
    """Wait for what the current stream of `like` has to write: calls on others will read it."""
    if like.is_cuda:
        torch.cuda.current_stream(like.device).synchronize()


@lru_cache(maxsize=256)  # once for each
def expect(device: torch.device, *kernels: tuple[Program, str]) -> None:
    """As :meth:`Launcher.expect`."""
    launcher().expect(kernels, device)


@cache
def launcher() -> Launcher:
    """The CUDA driver.

    Raises:
        CudaError: there is none.
    """
    return Driver()


def launch(
    program: Program,
    kernel: str,
    grid: tuple[int, int],
    threads: int,
    shared_bytes: int,
    arguments: Arguments,
    device: torch.device,
) -> None:
    """Have the device run a kernel after what its current stream has to do."""
    launcher().queue(device).prepared(Work(program, kernel, grid, threads, shared_bytes, arguments))()
