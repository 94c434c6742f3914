"""The published neuron by the equations of arXiv:2306.16922 and the authors' scaled tanh: a loop in NumPy, in double
precision, from the raw tensors of their file, with a trace for every synapse. Nothing of the package is in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]
LAMBDA = 5.0  # the authors' defaults, which their configuration leaves out
BOUNDS_MS = (1.0, 150.0)
NUM_BRANCH = 45


class Change(NamedTuple):
    """What is changed of the neuron from a step on."""

    tau_s: float = 5.0  # ms
    stretch: Array | float = 1.0  # factor on each memory unit's time constant
    cut: tuple[int, ...] = ()  # branches


def published_tau_m(folder: Path) -> Array:
    """Time constants of the memory units, ms."""
    proto = _tensors(folder)["_proto_tau_m"]
    return BOUNDS_MS[0] + (BOUNDS_MS[1] - BOUNDS_MS[0]) / (1.0 + np.exp(-proto))


def run(folder: Path, x: Array, changes: dict[int, Change]) -> tuple[Array, Array]:
    """Spike probability and somatic voltage (mV) of each step.

    Args:
        folder: of the authors' files.
        x: (time, 1278), inhibitory spikes negative.
        changes: by the step from which they hold.
    """
    t = _tensors(folder)
    index, valid = t["input_to_synapse_indices"].astype(int), t["valid_indices_mask"].astype(float)
    w_s, tau_m = np.maximum(t["_proto_w_s"], 0.0), published_tau_m(folder)
    s, m = np.zeros(len(index)), np.zeros(len(tau_m))
    change, outputs = Change(), []
    for step, x_t in enumerate(x):
        change = changes.get(step, change)
        kappa_m = np.exp(-1.0 / (tau_m * change.stretch))
        s = np.exp(-1.0 / change.tau_s) * s + w_s * x_t[index] * valid
        b = s.reshape(NUM_BRANCH, -1).sum(1)
        b[list(change.cut)] = 0.0
        hidden = t["mlp.network.0.weight"] @ np.concatenate([b, kappa_m * m]) + t["mlp.network.0.bias"]
        proposed = t["mlp.network.2.weight"] @ np.maximum(hidden, 0.0) + t["mlp.network.2.bias"]
        m = kappa_m * m + LAMBDA * (1.0 - kappa_m) * 1.7159 * np.tanh(2.0 / 3.0 * proposed)
        outputs.append(t["w_y.weight"] @ m + t["w_y.bias"])
    y = np.array(outputs)
    return 1.0 / (1.0 + np.exp(-y[:, 0])), y[:, 1] * 10.0 - 67.7


def _tensors(folder: Path) -> dict[str, Array]:
    state = torch.load(folder / "neuronio_best_model_state.pt", weights_only=True, map_location="cpu")
    return {name: value.double().numpy() for name, value in state.items()}


def spikes(num_step: int, seed: int) -> Array:
    """Background that makes the neuron fire now and then, and volleys, (time, 1278)."""
    random = np.random.default_rng(seed)
    rate = np.where(np.arange(1278) < 639, 0.016, 0.008)
    x = (random.random((num_step, 1278)) < rate).astype(float)
    x[::190, random.permutation(639)[:40]] += 1.0
    x[:, 639:] *= -1.0
    return x
