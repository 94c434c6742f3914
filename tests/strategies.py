"""Neurons and inputs as Hypothesis draws them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from hypothesis import strategies as st

from elm_neuro import ELM, BranchELM, SpikeEvents

INPUT_SIZE = 6


@st.composite
def neurons(draw: st.DrawFn, *, populations: bool = True, dtype: torch.dtype = torch.float64) -> ELM:
    """A neuron of any variant, routing, depth and ablation, with weights that are not those of the start."""
    options: dict[str, Any] = {
        "num_memory": draw(st.integers(1, 5)),
        "variant": draw(st.sampled_from(["v1", "v2"])),
        "delta_t": draw(st.sampled_from([0.5, 1.0, 10.0])),
        "tau_m_init": draw(st.sampled_from([(1.0, 20.0), (1.0, 1000.0), (30.0, 30.0)])),
        "tau_m_spacing": draw(st.sampled_from(["log", "linear"])),
        "tau_m_bounds": draw(st.sampled_from([(0.0, 2000.0), (0.5, 1000.0)])),
        "lambda_": draw(st.sampled_from([1.0, 5.0])),
        "learn_tau_m": draw(st.booleans()),
        "learn_w_s": draw(st.booleans()),
        "num_mlp_layers": draw(st.integers(0, 3)),
        "mlp_hidden_size": draw(st.sampled_from([None, 1, 3, 9])),
        "activation": draw(st.sampled_from(["relu", "silu"])),
        "branch_activation": draw(st.sampled_from([None, None, "tanh", "relu"])),
        "num_neuron": draw(st.sampled_from([None, None, 1, 3])) if populations else None,
    }
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    routing = draw(st.sampled_from(["unbranched", None, "random", "window", "neuronio", "index"]))
    num_branch = INPUT_SIZE if routing == "unbranched" else 3
    options["tau_s"] = draw(st.sampled_from([5.0, 0.7, tuple(1.0 + 3.0 * i for i in range(num_branch))]))
    if routing == "unbranched":
        neuron: ELM = ELM(INPUT_SIZE, 2, generator=generator, **options)
    else:
        index = torch.randint(-1, INPUT_SIZE, (num_branch, 4), generator=generator) if routing == "index" else routing
        synapses = 2 if routing is None else 4
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # branches may stay empty: that is a case to be tested
            neuron = BranchELM(
                INPUT_SIZE,
                2,
                num_branch=num_branch,
                num_synapse_per_branch=synapses,
                routing=index,
                generator=generator,
                **options,
            )
    neuron = neuron.to(dtype)
    with torch.no_grad():  # some synapses negative, hence silent
        neuron.cell._proto_w_s += 0.6 * torch.randn(neuron.cell._proto_w_s.shape, generator=generator, dtype=dtype)
    return neuron


@st.composite
def frames(draw: st.DrawFn, neuron: ELM, *, dtype: torch.dtype = torch.float64, max_steps: int = 70) -> torch.Tensor:
    """Sparse frames with counts and signs, of odd lengths and batch 1 too; for a population sometimes one input a
    neuron.
    """
    # a single step has a path of its own
    batch, num_steps = draw(st.integers(1, 3)), draw(st.one_of(st.just(1), st.integers(1, max_steps)))
    neurons = neuron.config.num_neuron
    own = (neurons,) if neurons and draw(st.booleans()) else ()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    rate = torch.full((batch, num_steps, *own, INPUT_SIZE), draw(st.sampled_from([0.05, 0.8])), dtype=dtype)
    sign = torch.randint(0, 2, rate.shape, generator=generator) * 2 - 1
    return torch.poisson(rate, generator=generator) * sign


def as_events(x: torch.Tensor) -> SpikeEvents:
    return SpikeEvents.from_frames(x)
