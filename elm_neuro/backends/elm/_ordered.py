"""The backends of this operator, in the order in which "auto" asks them."""

from __future__ import annotations

from elm_neuro.backends.elm._backend import ELMBackend
from elm_neuro.backends.elm._cuda import Cuda
from elm_neuro.backends.elm._native import Native
from elm_neuro.backends.elm._reference import Reference
from elm_neuro.backends.elm._torch import Torch

# "auto" is the first that is not missing and does not refuse; the last one runs everything.
ORDERED: tuple[ELMBackend, ...] = (Native(), Cuda(), Torch(), Reference())
