"""The backends of this operator, in the order in which "auto" asks them: the last one runs everything.

Each is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable

from elm_neuro.backends.network._backend import NetworkBackend


def _native() -> NetworkBackend:
    from elm_neuro.backends.network._native import Native

    return Native()


def _cuda() -> NetworkBackend:
    from elm_neuro.backends.network._cuda import Cuda

    return Cuda()


def _torch() -> NetworkBackend:
    from elm_neuro.backends.network._torch import Torch

    return Torch()


def _reference() -> NetworkBackend:
    from elm_neuro.backends.network._reference import Reference

    return Reference()


ORDERED: dict[str, Callable[[], NetworkBackend]] = {
    "native": _native,
    "cuda": _cuda,
    "torch": _torch,
    "reference": _reference,
}
