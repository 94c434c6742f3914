"""Neurons of all sizes, drawn once: what the tests on a GPU run, and what is compiled for them ahead."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch

from elm_neuro import ELM, BranchELM

NUM_INPUT = 30


class Case(NamedTuple):
    options: dict[str, Any]
    branched: bool
    dtype: torch.dtype
    batch: int
    num_steps: int
    with_state: bool
    with_lengths: bool
    events: bool

    def neuron(self) -> ELM:
        torch.manual_seed(1)
        if self.branched:
            return BranchELM(NUM_INPUT, 3, num_branch=12, num_synapse_per_branch=4, routing="random", **self.options)
        return ELM(NUM_INPUT, 3, **self.options)


def _draw() -> list[Case]:
    random.seed(5)
    pick = random.choice
    cases = []
    for num_memory in (1, 3, 8, 20, 20, 20, 32, 50, 64, 100, 100, 128, 150, 150, 200, 256, 20, 7, 13, 5, 11, 24):
        options = {
            "num_memory": num_memory,
            "num_mlp_layers": pick([1, 1, 1, 0]),
            "activation": pick(["relu", "relu", "silu"]),
            "variant": pick(["v1", "v2"]),
            "num_neuron": pick([None, None, 3]) if num_memory <= 32 else None,
            "mlp_hidden_size": pick([None, None, 9]) if num_memory <= 64 else None,
        }
        branched = pick([False, True])
        if branched and pick([False, True]):
            options["tau_s"] = tuple(1.0 + i for i in range(12))
        dtype = torch.float64 if num_memory <= 100 and pick([False, False, True]) else torch.float32
        flags = [pick([False, True]) for _ in range(3)]
        cases.append(Case(options, branched, dtype, pick([1, 3, 5, 150]), pick([1, 7, 40]), *flags))
    return cases


CASES = _draw()


def shape_of(case: Case) -> tuple[int, int, bool, bool, bool, int, int]:
    """What :func:`elm_neuro.backends.cuda._memory.kernel_for` is asked for."""
    with torch.device("meta"):
        neuron = case.neuron()
    deep = len(neuron.cell.mlp) == 2
    first = neuron.cell.mlp[0].weight.shape[-2]
    silu = deep and case.options["activation"] == "silu"
    double = case.dtype == torch.float64
    return case.options["num_memory"], first, deep, silu, double, case.batch, case.options["num_neuron"] or 1
