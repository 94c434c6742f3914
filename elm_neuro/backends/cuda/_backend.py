"""What the CUDA backends of all operators have in common: where they run, and why they do not."""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.backends._backend import Backend
from elm_neuro.backends.cuda import _available

DTYPES = (torch.float32, torch.float64)


class CudaBackend(Backend):
    """The kernels of :mod:`elm_neuro.backends.cuda`; the class of an operator stands behind it."""

    name = "cuda"
    about = "kernels for NVIDIA GPUs, compiled at first use, float32 and float64"
    device_type = "cuda"  # tests run the kernels on another

    def missing(self) -> str | None:
        return _available.missing()

    def refusal_of(self, parameter: Tensor) -> str | None:
        if parameter.device.type != self.device_type:
            return f"it runs on NVIDIA GPUs, got {parameter.device}"
        if parameter.dtype not in DTYPES:
            return f"it runs in float32 and float64, got {parameter.dtype}"
        return _available.broken(parameter.device.index or 0) if self.device_type == "cuda" else None
