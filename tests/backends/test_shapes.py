"""Tensors that do not fit one another are refused by name on every backend: a kernel would read past their ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from elm_neuro import ALIF, ELM, BranchELM, ELMState, SpikeEvents, backends
from tests.backends.equal_cases import BACKENDS

ELMS: dict[str, Any] = {
    "elm": lambda: ELM(5, 2, num_memory=3),
    "branches": lambda: BranchELM(8, 2, 3, num_branch=4, num_synapse_per_branch=2, routing="random"),
    "population": lambda: ELM(5, 2, num_memory=3, num_neuron=2),
    "own time constants": lambda: ELM(5, 2, num_memory=3, tau_s=(1.0, 2.0, 3.0, 4.0, 5.0)),
}


def shorter(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    return tensor.detach().narrow(axis, 0, tensor.shape[axis] - 1).clone()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ELMS)
@pytest.mark.parametrize("as_events", [False, True])
def test_a_neurons_parameters(kind: str, backend: str, as_events: bool) -> None:
    torch.manual_seed(0)
    neuron = ELMS[kind]()
    params = neuron.cell.effective_parameters()
    x: Any = torch.ones(2, 4, neuron.input_size)
    x = SpikeEvents.from_frames(x) if as_events else x
    backends.scan(x, params, None, backend=backend)
    tried = 0
    for name, value in params._asdict().items():
        parts = value if isinstance(value, tuple) else (value,)
        for index, part in enumerate(parts):
            if not isinstance(part, torch.Tensor):
                continue
            for axis in range(part.ndim):
                if part.shape[axis] < 2:
                    continue
                wrong: Any = shorter(part, axis)
                if isinstance(value, tuple):
                    wrong = (*value[:index], wrong, *value[index + 1 :])
                with pytest.raises(ValueError, match="must have"):
                    backends.scan(x, params._replace(**{name: wrong}), None, backend=backend)
                tried += 1
    assert tried > 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_and_lengths(backend: str) -> None:
    params, x = ELM(5, 2, num_memory=3).cell.effective_parameters(), torch.ones(2, 4, 5)
    for state, name in (
        (ELMState(torch.zeros(2, 4), torch.zeros(2, 3)), "state.b"),
        (ELMState(torch.zeros(2, 5), torch.zeros(1, 3)), "state.m"),
    ):
        with pytest.raises(ValueError, match=f"{name} must have shape"):
            backends.scan(x, params, state, backend=backend)
    with pytest.raises(ValueError, match=r"lengths must have shape \(2,\), got \(1,\)"):
        backends.scan(x, params, None, lengths=torch.tensor([3]), backend=backend)


@pytest.mark.parametrize("backend", [one.name for one in backends.alif.ORDERED if one.missing() is None])
@pytest.mark.parametrize("name", ["weight", "bias", "beta", "p", "b", "w_rec"])
@pytest.mark.parametrize("as_events", [False, True])
def test_a_lif_layers_parameters(name: str, backend: str, as_events: bool) -> None:
    layer = ALIF(5, 3, recurrent=True, backend=backend)
    x: Any = torch.ones(2, 4, 5)
    x = SpikeEvents.from_frames(x) if as_events else x
    whole = getattr(layer.cell, name)
    for axis in range(whole.ndim):
        setattr(layer.cell, name, torch.nn.Parameter(shorter(whole, axis)))
        with pytest.raises(ValueError, match="must have shape"):
            layer(x)


@pytest.mark.parametrize("name", ["beta", "p", "b", "w_rec"])
def test_parameters_of_another_dtype_are_refused_by_every_backend(name: str) -> None:
    from elm_neuro import ALIF

    layer = ALIF(3, 4, recurrent=True).double()
    parameter = getattr(layer.cell, name)
    parameter.data = parameter.data.float()
    for backend in ("auto", "reference"):
        layer.backend = backend
        with pytest.raises((TypeError, RuntimeError), match="float"):
            layer(torch.rand(2, 5, 3, dtype=torch.float64))
