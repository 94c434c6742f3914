"""Numbers that cannot be drawn, refused by the name of their argument."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from elm_neuro.plotting._style import Values, as_array


def finite(values: Values, name: str) -> NDArray[np.float64]:
    """Values as an array.

    Raises:
        ValueError: one of them is NaN or infinite.
    """
    array = as_array(values)
    wrong = array[~np.isfinite(array)]
    if wrong.size:
        raise ValueError(f"{name} must be finite, got {wrong[0]}")
    return array


def positive_times(values: Values, name: str) -> NDArray[np.float64]:
    """Time constants in ms as an array (unit,), which a logarithmic axis has room for.

    Raises:
        ValueError: there are none, or one of them is not finite or not above 0.
    """
    array = as_array(values).reshape(-1)
    if not array.size:
        raise ValueError(f"{name} must hold at least one time constant, got none")
    wrong = array[~(np.isfinite(array) & (array > 0))]
    if wrong.size:
        raise ValueError(f"{name} must hold time constants above 0 ms, got {wrong[0]}")
    return array
