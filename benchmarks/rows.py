"""The rows in which the neuron's speed is measured: the papers' sizes, and what every call costs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from elm_neuro import ELM, BranchELM


class Row(NamedTuple):
    input_size: int
    num_memory: int
    batch: int
    num_steps: int
    density: float  # of the input spikes; 0 stands for one-hot tokens
    branched: bool = False
    num_neuron: int | None = None
    output_size: int = 2
    forward_only: bool = False  # one call, with gradients recorded but no backward pass

    @property
    def width(self) -> int:
        """Memory units of all neurons."""
        return self.num_memory * (self.num_neuron or 1)

    @property
    def short(self) -> bool:
        """Whether a call takes less than about a millisecond."""
        return self.batch * self.num_steps * self.width < 100_000


ROWS = {
    "N8": Row(1278, 20, 8, 500, 0.01, branched=True),
    "N32": Row(1278, 20, 32, 500, 0.01, branched=True),
    "E20": Row(1278, 20, 8, 500, 0.01),
    "E100": Row(1278, 100, 8, 500, 0.01),
    "S500": Row(700, 100, 8, 500, 0.02),
    "S1000": Row(700, 100, 32, 1000, 0.02),
    "L1k": Row(16, 150, 32, 1024, 0.0),
    "L16k": Row(16, 150, 2, 16384, 0.0),
    "P64": Row(140, 8, 32, 100, 0.03, num_neuron=64),
    # what every call costs, whatever it computes: one step of one sample, and a narrow layer
    "step": Row(1278, 20, 1, 1, 0.01, branched=True, forward_only=True),
    "narrow": Row(140, 20, 32, 50, 0.05, output_size=64),
}
SMOKE = Row(40, 4, 2, 30, 0.05)
CALLS_OF_A_SHORT_ROW = 20  # timed together


def make_neuron(row: Row) -> ELM:
    options = {"learn_tau_m": False, "tau_m_init": (1.0, 150.0), "num_neuron": row.num_neuron}
    if row.branched:
        return BranchELM(
            row.input_size, row.output_size, row.num_memory, num_branch=45, num_synapse_per_branch=100, **options
        )
    return ELM(row.input_size, row.output_size, row.num_memory, **options)


def make_input(row: Row) -> Tensor:
    if row.density == 0:
        return torch.nn.functional.one_hot(
            torch.randint(row.input_size, (row.batch, row.num_steps)), row.input_size
        ).float()
    return (torch.rand(row.batch, row.num_steps, row.input_size) < row.density).float()
