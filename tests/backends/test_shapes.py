"""Tensors that do not fit one another are refused by name on every backend: a kernel would read past their ends."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from elm_neuro import ALIF, ELM, BranchELM, ELMState, SpikeEvents, backends
from elm_neuro.functional import ATan
from tests.backends.equal_cases import BACKENDS

ALIFS = [one.name for one in backends.alif.OPERATOR if one.missing() is None]
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


@pytest.mark.parametrize("backend", ALIFS)
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ELMS)
def test_a_neurons_parameters_of_another_dtype(kind: str, backend: str) -> None:
    neuron = ELMS[kind]()
    params, x = neuron.cell.effective_parameters(), torch.ones(2, 4, neuron.input_size)
    tried = set()
    for name, value in params._asdict().items():
        for index, part in enumerate(value if isinstance(value, tuple) else (value,)):
            if not isinstance(part, torch.Tensor) or name == "kappa_m":  # which the others are held to
                continue
            wrong: Any = part.int() if name == "routing" else part.double()
            if isinstance(value, tuple):
                wrong = (*value[:index], wrong, *value[index + 1 :])
            with pytest.raises(TypeError, match=rf"{name}.* must be torch.(int64|float32), got torch.(int32|float64)"):
                backends.scan(x, params._replace(**{name: wrong}), None, backend=backend)
            tried.add(name)
    assert tried >= {"w_s", "gain", "kappa_b", "mlp_weight", "mlp_bias", "w_y", "b_y"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_that_are_not_there(backend: str) -> None:
    neuron = BranchELM(8, 2, 3, num_branch=4, num_synapse_per_branch=2, routing="random")
    params = neuron.cell.effective_parameters()
    routing = params.routing
    assert routing is not None
    outside = routing.clone()
    outside[2, 1] = 10**9
    for x in (torch.ones(2, 4, 8), torch.ones(2, 1, 8), SpikeEvents.from_frames(torch.ones(2, 4, 8))):
        with pytest.raises((ValueError, IndexError, RuntimeError)):
            backends.scan(x, params._replace(routing=outside), None, backend=backend)
    y, _ = backends.scan(torch.ones(2, 4, 8), params, None, backend=backend, sparse_input="on")
    if backend == "native":  # the others keep what they have made of it
        routing[2, 1] = 10**9  # between the two passes
        with pytest.raises((ValueError, RuntimeError)):
            y.sum().backward()


@pytest.mark.parametrize("backend", ALIFS)
@pytest.mark.parametrize("name", ["weight", "beta", "p", "b", "w_rec"])
def test_a_lif_layers_parameters_of_another_dtype(name: str, backend: str) -> None:
    layer = ALIF(3, 4, recurrent=True, backend=backend).double()
    parameter = getattr(layer.cell, name)
    parameter.data = parameter.data.float()
    with pytest.raises(TypeError, match=f"{name} must be torch.float64, got torch.float32"):
        layer(torch.rand(2, 5, 3, dtype=torch.float64))


@pytest.mark.parametrize("backend", ALIFS)
def test_states_and_lengths_of_lif_layers(backend: str) -> None:
    layer, x = ALIF(3, 4, recurrent=True).double(), torch.rand(2, 5, 3).double()
    cell, state = layer.cell, layer.initial_state(2)
    given = cell.weight, cell.bias, cell.effective_parameters()
    for field in ("v", "a", "s"):
        wrong = state._replace(**{field: getattr(state, field).half()})
        with pytest.raises(TypeError, match=rf"state.{field} must be torch.float64, got torch.float16"):
            backends.alif.scan(x, *given, wrong, backend=backend)
    for lengths, error, message in LENGTHS:
        with pytest.raises(error, match=message):
            backends.alif.scan(x, *given, state, lengths=lengths, backend=backend)


LENGTHS: list[tuple[torch.Tensor, type[Exception], str]] = [
    (torch.tensor([3, 2], dtype=torch.int32), TypeError, "lengths must be torch.int64, got torch.int32"),
    (torch.tensor([3, 6]), ValueError, "lengths must be between 0 and the 5 steps of x, got 3 to 6"),
    (torch.tensor([-1, 2]), ValueError, "lengths must be between 0 and the 5 steps of x, got -1 to 2"),
    (torch.tensor([[3, 2]]), ValueError, r"lengths must have shape \(2,\), got \(1, 2\)"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spiking", [False, True])
def test_lengths_of_neurons(backend: str, spiking: bool) -> None:
    params, x = ELM(3, 2, num_memory=2).cell.effective_parameters(), torch.rand(2, 5, 3)
    rule = backends.SpikeRule(torch.ones(()), ATan())
    for lengths, error, message in LENGTHS:
        run: Any = partial(backends.spiking_scan, rule=rule) if spiking else backends.scan
        with pytest.raises(error, match=message):
            run(x, params, None, lengths=lengths, backend=backend)


def test_tensors_on_another_device() -> None:
    params, x = ELM(3, 2, num_memory=2).cell.effective_parameters(), torch.rand(2, 5, 3)
    with pytest.raises(ValueError, match="gain must be on cpu like the other parameters, got meta"):
        backends.scan(x, params._replace(gain=params.gain.to("meta")), None)


@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
@pytest.mark.parametrize("every", [0, -1, 2.5, "x"])
def test_what_is_no_number_of_steps_to_recompute_is_refused(backend: str, every: Any) -> None:
    neuron, x = ELM(5, 2, num_memory=3, backend=backend), torch.rand(2, 7, 5)
    neuron.recompute_every = every
    rule = backends.SpikeRule(torch.tensor(0.1), ATan())
    for call in (
        lambda: neuron(x),
        lambda: backends.scan(x, neuron.cell.effective_parameters(), None, backend=backend, recompute_every=every),
        lambda: backends.elm.spiking_scan(
            x, neuron.cell.effective_parameters(), None, rule, backend=backend, recompute_every=every
        ),
    ):
        with pytest.raises(ValueError, match=f"recompute_every must be an integer of at least 1, got {every!r}"):
            call()
