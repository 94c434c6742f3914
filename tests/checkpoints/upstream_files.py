"""Made-up checkpoints in the authors' format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Upstream:
    """A made-up checkpoint in the authors' format, and its neuron by their equations: one synapse trace each, float64
    throughout.
    """

    def __init__(
        self, seed: int = 0, *, v2: bool = False, routing: str | None = "neuronio_routing", **config: Any
    ) -> None:
        torch.manual_seed(seed)
        branches, synapses = (3, 4) if routing else (3, 2)
        self.v2, self.routing, num_input = v2, routing, 6
        self.config: dict[str, Any] = {
            "num_input": num_input,
            "num_output": 2,
            "num_memory": 5,
            "num_branch": branches,
            "num_synapse_per_branch": synapses,
        }
        self.config |= {"input_to_synapse_routing": routing, **config}
        self.config = {name: value for name, value in self.config.items() if value is not ...}
        branches, synapses = self.config.get("num_branch") or num_input, self.config.get("num_synapse_per_branch", 1)
        memory, layers = self.config["num_memory"], self.config.get("mlp_num_layers", 1)
        hidden = self.config.get("mlp_hidden_size") or 2 * memory
        sizes = [branches + memory, *[hidden] * layers, memory]
        logits = torch.randn(memory)
        logits[-1] = float("inf")
        self.state: dict[str, Any] = {
            "_proto_w_s": 0.5 + torch.randn(branches * synapses),
            ("tau_b" if v2 else "tau_s"): torch.full((branches if v2 else branches * synapses,), 5.0),
            "_proto_tau_m": logits,
            "w_y.weight": torch.randn(2, memory),
            "w_y.bias": torch.randn(2),
            "input_to_synapse_indices": torch.empty(0),
            "valid_indices_mask": torch.empty(0),
        }
        for i in range(layers + 1):
            self.state[f"mlp.network.{2 * i}.weight"] = torch.randn(sizes[i + 1], sizes[i]) / sizes[i] ** 0.5
            self.state[f"mlp.network.{2 * i}.bias"] = torch.randn(sizes[i + 1])
        if routing:
            self.state["input_to_synapse_indices"] = torch.randint(num_input, (branches * synapses,))
            mask = torch.rand(branches * synapses) < 0.8
            self.state["valid_indices_mask"] = (
                mask if routing == "neuronio_routing" else torch.ones_like(mask, dtype=torch.int64)
            )

    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "model_config.json").write_text(json.dumps(self.config))
        torch.save(self.state, folder / "neuronio_best_model_state.pt")
        return folder

    def run(self, x: Tensor) -> Tensor:
        config, state = self.config, {name: tensor.double() for name, tensor in self.state.items()}
        low, high = config.get("memory_tau_min", 1.0), config.get("memory_tau_max", 1000.0)
        high = max(low + 3e-6, high) if self.v2 else high
        delta_t, lambda_ = config.get("delta_t", 1.0), config.get("lambda_value", 5.0)
        tau_m = ((high - low) * torch.sigmoid(state["_proto_tau_m"]) + low).clamp(min=1e-6)
        kappa_m = torch.exp(-delta_t / tau_m)
        gain = 1.0 - torch.exp(-delta_t * lambda_ / tau_m) if self.v2 else lambda_ * (1.0 - kappa_m)
        branches = config.get("num_branch") or config["num_input"]
        tau_s = state["tau_b"].repeat_interleave(config.get("num_synapse_per_branch", 1)) if self.v2 else state["tau_s"]
        kappa_s = torch.exp(-delta_t / tau_s)
        synapse, memory, outputs = (
            torch.zeros(x.shape[0], len(tau_s)).double(),
            torch.zeros(x.shape[0], len(tau_m)).double(),
            [],
        )
        layers = config.get("mlp_num_layers", 1)
        activation = torch.relu if config.get("mlp_activation", "relu") == "relu" else torch.nn.functional.silu
        for x_t in x.unbind(1):
            if self.routing:
                x_t = x_t[:, self.state["input_to_synapse_indices"]] * state["valid_indices_mask"]
            synapse = kappa_s * synapse + torch.relu(state["_proto_w_s"]) * x_t
            h = torch.cat([synapse.view(len(x_t), branches, -1).sum(-1), kappa_m * memory], -1)
            for i in range(layers + 1):
                h = h @ state[f"mlp.network.{2 * i}.weight"].T + state[f"mlp.network.{2 * i}.bias"]
                h = activation(h) if i < layers else 1.7159 * torch.tanh(h * 2 / 3)
            memory = kappa_m * memory + gain * h
            outputs.append(memory @ state["w_y.weight"].T + state["w_y.bias"])
        return torch.stack(outputs, 1)
