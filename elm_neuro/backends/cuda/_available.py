"""Whether the kernels run here. torch.compile takes the answers as constants: it must not trace how they are found."""

from __future__ import annotations

import logging
from functools import cache

import torch

from elm_neuro.backends.parts._untraced import constant


@constant
def missing() -> str | None:
    """Why nothing runs here; None where it does."""
    # asked at each call: what is initialised is available, which torch would count devices to say
    if torch.cuda.is_initialized() or torch.cuda.is_available():
        return _missing_parts()
    return "no NVIDIA GPU that torch can use"


@constant
def broken(index: int) -> str | None:
    """Why nothing runs on the device of this number, once one kernel has been compiled and loaded there; None where it
    runs.

    Raises:
        torch.OutOfMemoryError: the device has no room for it, which says nothing of the next call.
    """
    return _broken(index)


@cache
def _missing_parts() -> str | None:
    # here, as below, for who has a GPU: elsewhere nobody needs them
    from elm_neuro.backends.cuda import _compile, _driver, _nvrtc

    try:
        _compile.compiler()
        _driver.launcher()
    except (_nvrtc.CompileError, _driver.CudaError) as error:
        return _told(str(error))
    return None


@cache
def _broken(index: int) -> str | None:
    from elm_neuro.backends.cuda import _compile, _driver, _nvrtc, _weights

    try:
        if not _compile.knows(_driver.launcher().device(index).architecture):
            return _told(f"the compiler of this installation does not know {torch.cuda.get_device_name(index)}")
        # the kernel that most passes begin with: a driver may be older than the compiler, and either be damaged
        _driver.launcher().load(_weights.program(torch.float32), "elm_table", index)
    except (_nvrtc.CompileError, _driver.CudaError) as error:
        return _told(str(error))
    return None


def _told(reason: str) -> str:
    """`reason`, with a line in the log: who chose "auto" would not hear of it. Callers are cached."""
    logging.getLogger("elm_neuro").warning("neurons on the GPU run in plain torch, many times slower: %s", reason)
    return reason
