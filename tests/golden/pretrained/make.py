"""Wrote the folders beside it with the package at commit 87c09a1, whose format they hold: ``python make.py``.

Run it in a checkout of that commit, with torch 2.13 on a CPU; the outputs are those of the backend "reference".
"""

from __future__ import annotations

from pathlib import Path

import torch

from elm_neuro import ELM, BranchELM
from elm_neuro.checkpoints import save_pretrained

HERE = Path(__file__).parent


def main() -> None:
    torch.manual_seed(0)
    neurons = {
        "elm": ELM(4, 2, num_memory=3, delta_t=2.0, variant="v2", tau_s=(1.0, 2.0, 3.0, 4.0), backend="reference"),
        "branch_elm": BranchELM(
            6,
            1,
            num_memory=2,
            num_branch=2,
            num_synapse_per_branch=3,
            routing="random",
            num_neuron=2,
            backend="reference",
        ).double(),
    }
    for name, neuron in neurons.items():
        save_pretrained(neuron, HERE / name)
        x = torch.poisson(torch.full((2, 5, neuron.config.input_size), 0.7)).to(neuron.tau_m.dtype)
        y, state = neuron(x)
        torch.save({"x": x, "y": y.detach(), "b": state.b.detach(), "m": state.m.detach()}, HERE / name / "record.pt")


if __name__ == "__main__":
    main()
