"""Random numbers by their place in a stream: the same in any process, whatever was drawn before."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# of SplitMix64: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"
GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def splitmix64(state: int, n: ArrayLike) -> NDArray[np.uint64]:
    """Outputs number `n`, (any shape,), counted from 0, of the generator SplitMix64 that starts in `state`.

    All in integers modulo 2**64: ``z = state + (n + 1) * 0x9E3779B97F4A7C15``, then
    ``z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9``, ``z = (z ^ z >> 27) * 0x94D049BB133111EB``, ``z ^ z >> 31``.

    >>> splitmix64(1234567, [0, 1])
    array([6457827717110365317, 3203168211198807973], dtype=uint64)
    """
    u64 = np.uint64
    z = np.asarray(n, dtype=u64)
    shape = z.shape
    z = (z.reshape(-1) + u64(1)) * u64(GOLDEN_GAMMA)
    z = z + np.array([state], dtype=u64)  # arrays wrap silently, scalars warn
    z = (z ^ (z >> u64(30))) * u64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> u64(27))) * u64(0x94D049BB133111EB)
    return (z ^ (z >> u64(31))).reshape(shape)


def checked_seed(seed: int) -> int:
    """`seed` as a Python integer.

    Raises:
        ValueError: it is not in [0, 2**64).
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    return int(seed)
