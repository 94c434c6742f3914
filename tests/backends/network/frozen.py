"""The published network as its authors ran it in double precision: parameters, states, losses and gradients, and the
same run by the operator.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from elm_neuro import SpikeEvents
from elm_neuro.backends import network
from elm_neuro.functional import NetworkParams, NetworkRule, NetworkState, bounded_tau, decay, memory_gain

NAMES = ("relu_n5_m3", "relu_n12_m5", "spike_n12_m5", "dropout_n8_m4", "variant_n7_m4")


class Run(NamedTuple):
    """What both layers give."""

    hidden: network.NetworkRecord
    hidden_state: NetworkState
    readout: network.NetworkRecord
    readout_state: NetworkState
    logits: Tensor  # (batch, time, classes)
    losses: dict[str, Tensor]


class Frozen:
    """One of the files, its parameters as leaves."""

    def __init__(self, shared: Path, name: str) -> None:
        with np.load(shared / "data" / "elm_network" / f"{name}.npz") as file:
            self.data = {key: file[key] for key in file.files}
        self.config: dict[str, Any] = json.loads(str(self.data["config_json"]))
        self.neuron: dict[str, Any] = self.config["layer_config"]["neuron_config"]
        self.x = self.tensor("x").double().requires_grad_()
        graded = {key.removeprefix("grad_total.") for key in self.data if key.startswith("grad_total.")} - {"x"}
        self.leaves = {key: self.tensor(f"param.{key}").requires_grad_() for key in sorted(graded)}

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.data[key])

    def parameter(self, key: str) -> Tensor:
        return self.leaves[key] if key in self.leaves else self.tensor(f"param.{key}")

    def params(self, part: str) -> NetworkParams:
        neuron, delta_t = self.neuron, self.neuron.get("delta_t", 1.0)
        bounds = (neuron["memory_tau_min"] / 10, neuron["memory_tau_max"] * math.sqrt(10))
        tau_m = bounded_tau(self.parameter(f"{part}.tau_m_logit"), bounds)
        variant = "v2" if neuron.get("lambda_as_timescale_ratio", True) else "v1"
        layers = range(len([key for key in self.data if key.startswith(f"param.{part}.mlp.") and "bias" in key]))
        trace, num_neuron = neuron.get("branch_tau"), tau_m.shape[0]
        # only the hidden layer has a high pass
        passed = neuron["high_pass_tau"] if part == "hidden" else None

        def constant(tau: float, *shape: int) -> Tensor:
            return torch.full(shape, math.exp(-delta_t / tau), dtype=torch.float64)

        return NetworkParams(
            index=self.tensor(f"param.{part}.index"),
            w_s=self.parameter(f"{part}.w_s"),
            mlp_weight=tuple(self.parameter(f"{part}.mlp.{layer}.weight") for layer in layers),
            mlp_bias=tuple(self.parameter(f"{part}.mlp.{layer}.bias") for layer in layers),
            w_y=self.parameter(f"{part}.w_y"),
            bias=self.parameter(f"{part}.b"),
            kappa_m=decay(tau_m, delta_t),
            gain=memory_gain(tau_m, delta_t, lambda_=neuron.get("lambda_value", 5.0), variant=variant),
            kappa_b=None if trace is None else constant(trace, num_neuron, neuron["num_branch"]),
            kappa_r=None if passed is None else constant(passed, num_neuron),
        )

    def rule(self, output: str) -> NetworkRule:
        activation = self.neuron.get("mlp_hidden_act", "relu_squared")
        return NetworkRule(activation, output, input_scale=self.neuron["input_scale"])

    def masks(self, part: str) -> dict[str, Tensor]:
        keys = {"input_mask": f"mask.{part}.input", "recurrent_mask": f"mask.{part}.recurrent"}
        return {name: self.tensor(key) for name, key in keys.items() if key in self.data}

    def run(self, backend: str, *, as_events: bool = False) -> Run:
        x = SpikeEvents.from_frames(self.x) if as_events else self.x
        output = self.neuron["neuron_activation"]
        hidden, hidden_state = network.scan(
            x, self.params("hidden"), None, self.rule(output), backend=backend, **self.masks("hidden")
        )
        readout, readout_state = network.scan(
            hidden.a, self.params("readout"), None, self.rule("identity"), backend=backend, **self.masks("readout")
        )
        logits = readout.a
        if "linear.weight" in self.leaves:
            logits = logits @ self.leaves["linear.weight"].mT + self.leaves["linear.bias"]
        return Run(hidden, hidden_state, readout, readout_state, logits, self._losses(logits, hidden))

    def _losses(self, logits: Tensor, hidden: network.NetworkRecord) -> dict[str, Tensor]:
        target, last = self.tensor("target"), logits[:, -1]
        cross_entropy = torch.nn.functional.cross_entropy
        losses = {
            "ce": cross_entropy(last, target),
            "ce_smoothed": cross_entropy(last, target, label_smoothing=0.01),
            "reg_mlp": (hidden.change / logits.shape[1]).square().mean(),
            "reg_activity": torch.relu(hidden.a).mean(),
        }
        return losses | {"total": losses["ce_smoothed"] + 0.002 * losses["reg_mlp"] + 0.2 * losses["reg_activity"]}
