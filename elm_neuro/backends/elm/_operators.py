"""The scan's passes as operators of torch's, declared."""

from __future__ import annotations

from elm_neuro.backends.elm._schemas import CUDA_SCAN, LEAKY_FILTER, NATIVE_SCAN
from elm_neuro.backends.parts._operators import Implementation, declare


def _native() -> Implementation:
    from elm_neuro.backends.elm._native_op import SCAN

    return SCAN


def _cuda() -> Implementation:
    from elm_neuro.backends.elm._cuda_op import SCAN

    return SCAN


def _filter() -> Implementation:
    from elm_neuro.backends.native import _filter

    return _filter.LEAKY_FILTER


declare("scan", NATIVE_SCAN, _native)
declare("cuda_scan", CUDA_SCAN, _cuda)
declare("leaky_filter", LEAKY_FILTER, _filter)
