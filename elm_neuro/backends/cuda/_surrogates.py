"""Surrogates as the kernels compute their slopes: ``surrogates.cuh``."""

from __future__ import annotations

import math
from struct import pack, unpack

from elm_neuro.functional import ATan, Boxcar, FastSigmoid, MultiGaussian, Sigmoid, Surrogate


def slope_words(surrogate: Surrogate) -> tuple[int, ...]:
    """What the kernel computes the surrogate's slope from, as the 64 bits of each number.

    >>> unpack("5d", pack("5q", *slope_words(ATan(2.0))))
    (3.141592653589793, 1.0, 0.0, 0.0, 0.0)
    """
    scale, factor, side_scale, side_factor, mean = 0.0, 0.0, 0.0, 0.0, 0.0
    if isinstance(surrogate, ATan):
        scale, factor = math.pi / 2 * surrogate.alpha, surrogate.alpha / 2
    elif isinstance(surrogate, FastSigmoid | Sigmoid):
        scale = surrogate.scale
    elif isinstance(surrogate, Boxcar):
        scale, factor = surrogate.width / 2, surrogate.height
    elif isinstance(surrogate, MultiGaussian):
        mean, wide, peak = surrogate.sigma, surrogate.s * surrogate.sigma, surrogate.gamma / math.sqrt(2 * math.pi)
        scale, side_scale = 1 / mean, 1 / wide
        factor, side_factor = (1 + surrogate.h) * peak * scale, surrogate.h * peak * side_scale
    return unpack("5q", pack("5d", scale, factor, side_scale, side_factor, mean))
