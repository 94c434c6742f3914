"""The backends of this operator, in the order in which "auto" asks them: the last one runs everything.

Each is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable

from elm_neuro.backends.alif._backend import ALIFBackend


def _native() -> ALIFBackend:
    from elm_neuro.backends.alif._native import Native

    return Native()


def _cuda() -> ALIFBackend:
    from elm_neuro.backends.alif._cuda import Cuda

    return Cuda()


def _torch() -> ALIFBackend:
    from elm_neuro.backends.alif._torch import Torch

    return Torch()


def _reference() -> ALIFBackend:
    from elm_neuro.backends.alif._reference import Reference

    return Reference()


ORDERED: dict[str, Callable[[], ALIFBackend]] = {
    "native": _native,
    "cuda": _cuda,
    "torch": _torch,
    "reference": _reference,
}
