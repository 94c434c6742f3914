"""Every backend against the authors' own code, frozen in double precision: states, logits, losses and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elm_neuro.backends.network import OPERATOR, scan
from elm_neuro.functional import zero_network_state
from tests.backends.network.frozen import NAMES, Frozen

BACKENDS = [backend.name for backend in OPERATOR if backend.missing() is None]


def same(found: torch.Tensor, wanted: Any, atol: float) -> None:
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given", ["frames", "events"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_published_network(name: str, given: str, backend: str, shared: Path) -> None:
    frozen = Frozen(shared, name)
    data = frozen.data
    run = frozen.run(backend, as_events=given == "events")
    for part, record, after in (
        ("hidden", run.hidden, run.hidden_state),
        ("readout", run.readout, run.readout_state),
    ):
        same(record.a, data[f"state.{part}.a"], 1e-10)
        same(record.change, np.abs(data[f"state.{part}.mlp"]).mean(-1).sum(1), 1e-10)
        same(after.a, data[f"state.{part}.a"][:, -1], 1e-10)
        same(after.m, data[f"final.{part}.m_t"], 1e-10)
        if f"final.{part}.r_t" in data:
            same(after.r, data[f"final.{part}.r_t"][..., 0], 1e-10)
        if f"final.{part}.b_t" in data:
            same(after.b, data[f"final.{part}.b_t"], 1e-10)
    assert run.hidden.a.count_nonzero() > 20  # the network is not silent
    same(run.logits, data["logits"], 1e-10)
    for loss, value in run.losses.items():
        same(value, data[f"loss.{loss}"], 1e-10)
    inputs = frozen.leaves | ({} if given == "events" else {"x": frozen.x})
    for loss in ("total", "ce"):
        found = torch.autograd.grad(run.losses[loss], list(inputs.values()), retain_graph=loss == "total")
        for key, grad in zip(inputs, found, strict=True):
            wanted = data[f"grad_{loss}.{key}"]
            same(grad, wanted, 1e-8 * max(1.0, float(np.abs(wanted).max())))
            assert grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_its_states_step_by_step(backend: str, shared: Path) -> None:
    """The record of the frozen memory, read by cutting the sequence after every fifth step."""
    frozen = Frozen(shared, "variant_n7_m4")
    data = frozen.data
    params, rule = frozen.params("hidden"), frozen.rule("relu")
    state = zero_network_state(params, 3)
    for start in range(0, 60, 5):
        _, state = scan(frozen.x[:, start : start + 5], params, state, rule, backend=backend)
        same(state.m, data["state.hidden.memory"][:, start + 4], 1e-10)
        same(state.b, data["state.hidden.branch"][:, start + 4], 1e-10)
