"""The backends of this operator, in the order in which "auto" asks them: the last one runs everything.

Each is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable

from elm_neuro.backends.elm._backend import ELMBackend


def _native() -> ELMBackend:
    from elm_neuro.backends.elm._native import Native

    return Native()


def _cuda() -> ELMBackend:
    from elm_neuro.backends.elm._cuda import Cuda

    return Cuda()


def _torch() -> ELMBackend:
    from elm_neuro.backends.elm._torch import Torch

    return Torch()


def _reference() -> ELMBackend:
    from elm_neuro.backends.elm._reference import Reference

    return Reference()


ORDERED: dict[str, Callable[[], ELMBackend]] = {
    "native": _native,
    "cuda": _cuda,
    "torch": _torch,
    "reference": _reference,
}
