"""The neuron as the paper writes it: one synapse, one step and one sample at a time, NumPy in float64, nothing of the
package's functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def run(
    cell: Any, x: np.ndarray, *, b_0: np.ndarray | None = None, m_0: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Output (time, output_size), final branch trace and final memory of one neuron for one sample x (time,
    input_size).
    """
    config = cell.config
    p = {name: np.asarray(tensor.detach().double()) for name, tensor in cell.state_dict().items()}
    num_branch, per_branch = p["_proto_w_s"].shape
    routing = p.get("input_to_synapse_indices")
    w_s = np.maximum(p["_proto_w_s"], 0.0)
    low, high = config.tau_m_bounds or (
        config.tau_m_init if not config.learn_tau_m else (config.tau_m_init[0] / 10, config.tau_m_init[1] * 10)
    )
    tau_m = low + (high - low) / (1.0 + np.exp(-p["_proto_tau_m"]))
    kappa_m = np.exp(-config.delta_t / tau_m)
    gain = (
        config.lambda_ * (1.0 - kappa_m)
        if config.variant == "v1"
        else 1.0 - np.exp(-config.delta_t * config.lambda_ / tau_m)
    )
    kappa_s = np.broadcast_to(np.exp(-config.delta_t / p["tau_s"]), num_branch)

    s = np.zeros((num_branch, per_branch))
    if b_0 is not None:
        s[:, 0] = b_0
    m = np.zeros(config.num_memory) if m_0 is None else m_0.copy()
    y = np.zeros((x.shape[0], config.output_size))
    for t in range(x.shape[0]):
        for branch in range(num_branch):
            for j in range(per_branch):
                source = branch if routing is None else int(routing[branch, j])
                arrived = x[t, source] * w_s[branch, j] if source >= 0 else 0.0
                s[branch, j] = kappa_s[branch] * s[branch, j] + arrived
        b = s.sum(1)
        h = np.concatenate([_nonlinear(config.branch_activation, b), kappa_m * m])
        for layer in range(config.num_mlp_layers):
            h = _nonlinear(config.activation, p[f"mlp.{layer}.weight"] @ h + p[f"mlp.{layer}.bias"])
        q = p[f"mlp.{config.num_mlp_layers}.weight"] @ h + p[f"mlp.{config.num_mlp_layers}.bias"]
        m = kappa_m * m + gain * 1.7159 * np.tanh(q * 2 / 3)
        y[t] = p["w_y.weight"] @ m + p["w_y.bias"]
    return y, s.sum(1), m


def _nonlinear(name: str | None, z: np.ndarray) -> np.ndarray:
    if name == "relu":
        return np.where(z > 0, z, 0.0)
    if name == "silu":
        return z / (1.0 + np.exp(-z))
    return np.tanh(z) if name == "tanh" else z
