"""The surrogates that kernels know, of whatever device and operator."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from elm_neuro.functional import ATan, Boxcar, FastSigmoid, MultiGaussian, Sigmoid, Surrogate

# Surrogates whose slope the kernels compute from the class's fields; native/api.h numbers them.
KERNEL_SURROGATES: dict[type[Any], int] = {ATan: 1, FastSigmoid: 2, Boxcar: 3, MultiGaussian: 4, Sigmoid: 5}
# their names: compiled code of torch 2.9 does not look into an object's dictionary
_SETTINGS = {kind: tuple([field.name for field in fields(kind)]) for kind in KERNEL_SURROGATES}


def reason_of_surrogate(surrogate: object) -> str | None:
    """Why no kernel computes the slope of `surrogate`; None where one does."""
    if type(surrogate) in KERNEL_SURROGATES:
        return None
    return f"it knows the surrogates {', '.join(kind.__name__ for kind in KERNEL_SURROGATES)}, got {surrogate!r}"


def in_numbers(surrogate: Any) -> tuple[int, tuple[float, ...]]:
    """A surrogate that kernels know as its number and the settings of its class.

    >>> in_numbers(Boxcar(width=2.0))
    (3, (2.0, 0.5))
    """
    names = _SETTINGS[type(surrogate)]
    return KERNEL_SURROGATES[type(surrogate)], tuple([getattr(surrogate, name) for name in names])


def of_numbers(number: int, settings: tuple[float, ...]) -> Surrogate:
    """The surrogate that :func:`in_numbers` says.

    >>> of_numbers(3, (2.0, 0.5))
    Boxcar(width=2.0, height=0.5)
    """
    kinds = {known: kind for kind, known in KERNEL_SURROGATES.items()}
    surrogate: Surrogate = kinds[number](*settings)
    return surrogate
