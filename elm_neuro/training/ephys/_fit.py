"""An adaptive LIF neuron fitted to recorded spike trains by simulating a population of candidates in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from elm_neuro.nn import ALIF
from elm_neuro.nn._alif_config import B_RANGE, P_RANGE

Floats = NDArray[np.float64]

NUM_KEPT = 0.1  # share of the candidates from which the next ones are drawn
VAN_ROSSUM_MS = (3.0, 10.0, 30.0)
BIN_MS = 1.0  # in which distances are computed
# Middle and spread of the first candidates: of the logarithms of tau_v, tau_a (ms), b and weight, and of the bias.
FIRST = (math.log(20.0), math.log(50.0), math.log(0.1), math.log(1.5), 0.0)
SPREAD = (0.6, 0.8, 1.0, 0.5, 0.0025)


class NeuronFit(NamedTuple):
    """A neuron that was fitted, and how."""

    neuron: ALIF  # 1 input, 1 output
    largest: float  # of the current in pA; the neuron takes currents divided by 100 times this
    distance: float  # between its spike trains and the recorded ones, beside that of a silent neuron

    @torch.no_grad()
    def spikes(self, current: ArrayLike) -> NDArray[np.bool_]:
        """Spikes that currents in pA, (..., num_steps), cause."""
        given = np.asarray(current, dtype=np.float64)
        if not given.ndim:
            raise ValueError(f"current must have shape (..., num_steps), got the number {given}")
        x = torch.from_numpy(given.reshape(math.prod(given.shape[:-1]), given.shape[-1], 1) / (100.0 * self.largest))
        y, _ = self.neuron(x.to(self.neuron.cell.bias.dtype))
        return np.asarray(y.numpy().reshape(given.shape) > 0)

    @torch.no_grad()
    def numbers(self) -> dict[str, float]:
        """Time constants in ms, strength of the adaptation, weight and bias."""
        cell, step = self.neuron.cell, self.neuron.delta_t
        effective = cell.effective_parameters()
        return {
            "tau_v": -step / math.log(float(effective.beta)),
            "tau_a": -step / math.log(float(effective.p)),
            "b": float(effective.b),  # type: ignore[arg-type]  # it adapts
            "weight": float(cell.weight),
            "bias": float(cell.bias),
        }


def fit_neuron(
    current: ArrayLike,
    spikes: ArrayLike,
    *,
    step_ms: float,
    latency: float = 2.0,
    num_candidates: int = 400,
    num_rounds: int = 30,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> NeuronFit:
    r"""The adaptive LIF neuron whose spike trains are nearest to recorded ones.

    Candidates are drawn from a normal distribution over time constants, strength of the adaptation, weight and bias,
    simulated as one layer, and the distribution is taken from the tenth of them that is nearest, again and again (the
    cross-entropy method: Rubinstein 1999, Methodology and Computing in Applied Probability 1:127). The distance is that
    of van Rossum (2001, Neural Computation 13:751): spike trains filtered exponentially with 3, 10 and 30 ms, squared
    and summed. No gradient is needed, and no start that is near.

    Args:
        current: in pA, (num_samples, num_steps).
        spikes: recorded, (num_repeats, num_samples, num_steps), or without the repeats.
        step_ms: time step.
        latency: refractory period in ms, which is not fitted.
        num_candidates: simulated at a time, at least 20.
        num_rounds: how often, at least 1.
        seed: of the candidates.
        progress: called as ``progress(round, num_rounds)``.

    Raises:
        TypeError: a count is no integer.
        ValueError: an argument is out of range, or there is not a single spike.
    """
    given, target = np.asarray(current, dtype=np.float64), np.asarray(spikes, dtype=np.float64)
    target = target[None] if target.ndim == 2 else target
    if given.ndim != 2 or target.ndim != 3 or target.shape[1:] != given.shape:
        raise ValueError(
            "current must be (num_samples, num_steps) and spikes (num_repeats, num_samples, num_steps), got "
            f"{given.shape} and {target.shape}"
        )
    if not 0 < step_ms < math.inf:
        raise ValueError(f"step_ms must be a time above 0 ms, got {step_ms}")
    for name, number in (("num_candidates", num_candidates), ("num_rounds", num_rounds)):
        if not isinstance(number, int | np.integer) or isinstance(number, bool):
            raise TypeError(f"{name} must be an integer, got {number!r}")
    if num_candidates < 20 or num_rounds < 1:
        raise ValueError(
            f"num_candidates must be at least 20 and num_rounds at least 1, got {num_candidates} and {num_rounds}"
        )
    if not (np.isfinite(target).all() and (target >= 0).all()):
        raise ValueError("spikes must be finite and not negative, got others")
    if not target.any() or not np.isfinite(given).all() or given.max() <= 0:
        raise ValueError("spikes must hold a spike, and current be finite and above 0 somewhere")
    largest = float(given.max())
    x = torch.from_numpy(given[..., None] / (100.0 * largest)).float()
    wanted = _filtered(torch.from_numpy(target.mean(0)[..., None]).float(), step_ms)
    random = np.random.default_rng(seed)
    middle, covariance = np.array(FIRST), np.diag(np.square(SPREAD))
    best, least = middle, math.inf
    for number in range(num_rounds):
        drawn = random.multivariate_normal(middle, covariance, num_candidates)
        drawn[0] = best
        with torch.no_grad():
            found = _filtered(_layer(drawn, step_ms, latency)(x)[0], step_ms)
        distance = _distance(found, wanted)
        order = np.argsort(distance, kind="stable")[: max(10, round(NUM_KEPT * num_candidates))]
        if distance[order[0]] <= least:
            best, least = drawn[order[0]], float(distance[order[0]])
        middle, covariance = drawn[order].mean(0), np.cov(drawn[order].T) + np.diag(np.square(SPREAD)) * 1e-6
        if progress is not None:
            progress(number + 1, num_rounds)
    return NeuronFit(_layer(best[None], step_ms, latency), largest, least)


def _layer(numbers: Floats, step_ms: float, latency: float) -> ALIF:
    """A neuron for each row of `numbers`, which are as FIRST has them."""
    tau_v, tau_a, b, weight = np.exp(numbers[:, :4]).T
    layer = ALIF(1, len(numbers), delta_t=step_ms, latency=latency)
    low, high = -step_ms / np.log(P_RANGE[1]), step_ms  # a decay at the end of its range would be another's
    with torch.no_grad():
        for parameter, values in (
            (layer.cell.beta, np.exp(-step_ms / np.clip(tau_v, high, low))),
            (layer.cell.p, np.exp(-step_ms / np.clip(tau_a, high, low))),
            (layer.cell.b, np.clip(b, *B_RANGE)),
            (layer.cell.weight, weight[:, None]),
            (layer.cell.bias, numbers[:, 4]),
        ):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))  # type: ignore[union-attr]
    return layer


def _filtered(trains: Tensor, step_ms: float) -> Tensor:
    """Spike trains (num_samples, num_steps, num_neuron) in bins of a millisecond, through each of the exponential
    filters, (filters, num_samples, bins, num_neuron).
    """
    width = max(1, round(BIN_MS / step_ms))
    whole = torch.nn.functional.pad(trains, (0, 0, 0, -trains.shape[1] % width))
    counts = whole.unflatten(1, (-1, width)).sum(2)
    keep = torch.tensor([math.exp(-width * step_ms / tau) for tau in VAN_ROSSUM_MS], device=trains.device).view(
        -1, 1, 1
    )
    now, passed = counts.new_zeros(len(VAN_ROSSUM_MS), counts.shape[0], counts.shape[2]), []
    for count in counts.unbind(1):
        now = keep * now + count
        passed.append(now)
    return torch.stack(passed, dim=2)


def _distance(found: Tensor, wanted: Tensor) -> Floats:
    """Of each neuron's trains, beside those of a silent one."""
    each = (found - wanted).square().mean((1, 2)) / wanted.square().mean((1, 2))
    return each.mean(0).double().numpy()
