"""How much of a recorded neuron's spike trains a model explains."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def smoothed(spikes: ArrayLike, sigma: float) -> Floats:
    """Spike trains (..., num_steps) convolved with a Gaussian of standard deviation `sigma` in steps, cut at 4 sigma;
    outside of the train there are no spikes.

    Raises:
        ValueError: `sigma` is not above 0.
    """
    if not 0 < sigma < np.inf:
        raise ValueError(f"sigma must be a number of steps above 0, got {sigma}")
    trains = np.asarray(spikes, dtype=np.float64)
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    seen = min(reach, max(trains.shape[-1] - 1, 0))  # what is farther meets no spike
    kernel = kernel[reach - seen : reach + seen + 1] / kernel.sum()
    rows = trains.reshape(-1, trains.shape[-1])
    done = [np.convolve(row, kernel)[seen : seen + row.size] for row in rows]
    return np.reshape(done, trains.shape)


def explained_temporal_variance(predicted: ArrayLike, recorded: ArrayLike, sigma: float = 100.0) -> float:
    r"""Share of the recorded spike trains' variance over time that predicted ones explain, beside what repeats of the
    recording explain of one another: 1 is as good as the neuron itself.

    .. math::
        EV(x, y) = \frac{Var(x) + Var(y) - Var(x - y)}{Var(x) + Var(y)}

    over all samples of a repeat one after another, smoothed; the mean over `predicted` of :math:`EV(x, \bar y)` with
    the mean :math:`\bar y` of the recorded repeats, divided by the same mean over the recorded repeats. Source: Taylor,
    King, Harper, NeurIPS 2023, who smooth with 50, 100 and 150 steps of 0.1 ms.

    Args:
        predicted: spikes, (num_predicted, num_samples, num_steps).
        recorded: spikes, (num_repeats, num_samples, num_steps).
        sigma: of the Gaussian, in steps.

    Returns:
        NaN where neither has a spike, or the repeats explain nothing of one another.

    Raises:
        ValueError: the shapes do not fit.

    >>> train = np.zeros((1, 1, 1000))
    >>> train[..., [100, 500]] = 1
    >>> explained_temporal_variance(train, train, 10.0)
    1.0
    """
    found, wanted = np.asarray(predicted, dtype=np.float64), np.asarray(recorded, dtype=np.float64)
    if found.ndim != 3 or wanted.ndim != 3 or found.shape[1:] != wanted.shape[1:] or not found.size or not wanted.size:
        raise ValueError(
            "predicted and recorded must have shapes (repeats, num_samples, num_steps) that fit, got "
            f"{found.shape} and {wanted.shape}"
        )
    flat, target = (smoothed(trains, sigma).reshape(len(trains), -1) for trains in (found, wanted))
    mean = target.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(_explained(flat, mean).mean() / _explained(target, mean).mean())


def _explained(trains: Floats, mean: Floats) -> Floats:
    both = trains.var(1) + mean.var()
    share: Floats = (both - (trains - mean).var(1)) / both
    return share
