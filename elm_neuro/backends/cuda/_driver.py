"""Launches of compiled kernels on torch's current stream, through the CUDA driver that torch has loaded."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch

from elm_neuro.backends.cuda._compile import Program, machine_code
from elm_neuro.backends.cuda._plans import Device

MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
DEFAULT_SHARED = 48 * 1024  # a block may have this much without asking


class Launcher(Protocol):
    """What runs kernels: the driver, or in tests the CPU."""

    def device(self, index: int) -> Device:
        """Properties of the device of this number."""

    def launch(
        self,
        program: Program,
        kernel: str,
        grid: tuple[int, int],
        threads: int,
        shared_bytes: int,
        arguments: ctypes.Structure,
        device: torch.device,
    ) -> None:
        """Have the device run a kernel after what its current stream has to do."""


class CudaError(RuntimeError):
    """The CUDA driver refused a call."""


class Driver:
    """The CUDA driver.

    Raises:
        CudaError: there is none.
    """

    def __init__(self) -> None:
        name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        try:
            self._library = ctypes.CDLL(name)
        except OSError as error:
            raise CudaError(f"no CUDA driver: {error}") from error
        self._functions: dict[tuple[int, Program, str], ctypes.c_void_p] = {}
        self._modules: dict[tuple[int, Program], ctypes.c_void_p] = {}
        self._devices: dict[int, Device] = {}
        self._entered = threading.local()  # devices whose context a thread has

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

    def launch(
        self,
        program: Program,
        kernel: str,
        grid: tuple[int, int],
        threads: int,
        shared_bytes: int,
        arguments: ctypes.Structure,
        device: torch.device,
    ) -> None:
        """As in :class:`Launcher`; the arguments are copied, and nothing waits."""
        index = torch.cuda.current_device() if device.index is None else device.index
        if index != torch.cuda.current_device():
            with torch.cuda.device(index):
                self.launch(program, kernel, grid, threads, shared_bytes, arguments, device)
            return
        self._enter_context(index)
        function = self._functions.get((index, program, kernel))
        if function is None:
            function = self._function(index, program, kernel, shared_bytes)
        stream = torch.cuda.current_stream(index).cuda_stream
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        self._call(
            "cuLaunchKernel", function, grid[0], grid[1], 1, threads, 1, 1, shared_bytes,
            ctypes.c_void_p(stream), pointers, None,
        )  # fmt: skip

    def attribute(self, index: int, program: Program, kernel: str, number: int) -> int:
        """An attribute of a kernel that has been launched: 4 registers, 3 bytes of local memory."""
        value = ctypes.c_int()
        self._call("cuFuncGetAttribute", ctypes.byref(value), number, self._functions[index, program, kernel])
        return value.value

    def _function(self, index: int, program: Program, kernel: str, shared_bytes: int) -> ctypes.c_void_p:
        module = self._modules.get((index, program))
        if module is None:
            code = machine_code(program, self.device(index).architecture)
            module = ctypes.c_void_p()
            self._call("cuModuleLoadData", ctypes.byref(module), code)
            self._modules[index, program] = module
        function = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), module, kernel.encode())
        if shared_bytes > DEFAULT_SHARED:
            self._call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, shared_bytes)
        self._functions[index, program, kernel] = function
        return function

    def _enter_context(self, index: int) -> None:
        """Have torch's context in this thread: a thread that has done nothing on the device has none."""
        if getattr(self._entered, str(index), False):
            return
        context, device = ctypes.c_void_p(), ctypes.c_int()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        if not context:
            self._call("cuDeviceGet", ctypes.byref(device), index)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
            self._call("cuCtxSetCurrent", context)
        setattr(self._entered, str(index), True)

    def _call(self, name: str, *arguments: object) -> None:
        call: Callable[..., int] = getattr(self._library, name)
        status = call(*arguments)
        if status:
            texts = []
            for describe in ("cuGetErrorName", "cuGetErrorString"):
                text = ctypes.c_char_p()
                getattr(self._library, describe)(status, ctypes.byref(text))
                texts.append((text.value or b"unknown").decode())
            raise CudaError(f"{name} failed: {texts[0]}, {texts[1]}")


@cache
def launcher() -> Launcher:
    """The CUDA driver.

    Raises:
        CudaError: there is none.
    """
    return Driver()
