"""Parameters as a neuron learns them: what a backend may make effective in its own pass."""

from __future__ import annotations

from typing import NamedTuple

from elm_neuro.functional import ELMParameters


class Timescales(NamedTuple):
    """Constants between a neuron's learned numbers and its effective ones."""

    bounds: tuple[float, float]  # of the memory time constants, ms
    delta_t: float  # ms
    lambda_: float
    variant: str  # "v1" or "v2"


class Learned(NamedTuple):
    """`params` has in the places of w_s, kappa_m and kappa_b what
    :func:`elm_neuro.backends.elm._effective.effective` computes them from, and in that of the gain nothing that is
    read.
    """

    params: ELMParameters
    timescales: Timescales


def parts_of(params: ELMParameters | Learned) -> tuple[ELMParameters, Timescales | None]:
    """The tensors that came, and where they are as a neuron learns them, its constants."""
    return (params.params, params.timescales) if isinstance(params, Learned) else (params, None)
