"""What the native backends of all operators have in common: where they run, and why they do not."""

from __future__ import annotations

from torch import Tensor

from elm_neuro.backends._backend import Backend
from elm_neuro.backends.native import _library
from elm_neuro.backends.native._events import DTYPES


class NativeBackend(Backend):
    """The kernels of :mod:`elm_neuro.backends.native`; the class of an operator stands behind it."""

    name = "native"

    @property
    def about(self) -> str:
        return f"compiled kernels for the CPU ({_library.instruction_set()}), float32 and float64"

    def missing(self) -> str | None:
        return _library.missing()

    def refusal_of(self, parameter: Tensor) -> str | None:
        if parameter.device.type != "cpu":
            return f"it runs on the CPU, got {parameter.device}"
        return None if parameter.dtype in DTYPES else f"it runs in float32 and float64, got {parameter.dtype}"
