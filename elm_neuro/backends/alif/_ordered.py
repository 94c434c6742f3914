"""The backends of this operator, in the order in which "auto" asks them."""

from __future__ import annotations

from elm_neuro.backends.alif._backend import ALIFBackend
from elm_neuro.backends.alif._cuda import Cuda
from elm_neuro.backends.alif._native import Native
from elm_neuro.backends.alif._reference import Reference
from elm_neuro.backends.alif._torch import Torch

# "auto" is the first that is not missing and does not refuse; the last one runs everything.
ORDERED: tuple[ALIFBackend, ...] = (Native(), Cuda(), Torch(), Reference())
