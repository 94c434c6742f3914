"""The backends of this operator, in the order in which "auto" asks them."""

from __future__ import annotations

from elm_neuro.backends.network._backend import NetworkBackend
from elm_neuro.backends.network._cuda import Cuda
from elm_neuro.backends.network._native import Native
from elm_neuro.backends.network._reference import Reference
from elm_neuro.backends.network._torch import Torch

# "auto" is the first that is not missing and does not refuse; the last one runs everything.
ORDERED: tuple[NetworkBackend, ...] = (Native(), Cuda(), Torch(), Reference())
