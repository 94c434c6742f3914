"""Long sequences in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap
from torch.utils.checkpoint import checkpoint

from elm_neuro import ELM, SpikeEvents
from tests.backends.equal_cases import BACKENDS, FAST
from tests.tolerances import assert_close


@pytest.mark.parametrize("backend", FAST)
def test_recomputing_holds_less_memory_and_gives_the_same_gradients(backend: str) -> None:
    neuron = ELM(16, 3, num_memory=20, backend=backend)
    x = torch.nn.functional.one_hot(torch.randint(16, (2, 400)), 16).float()
    saved = {}
    gradients = {}
    for every in (None, 20):
        neuron.recompute_every = every
        neuron.zero_grad()
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y, _ = neuron(x)
        saved[every] = sum(sizes.values())
        y.square().sum().backward()
        gradients[every] = [p.grad.clone() for p in neuron.parameters() if p.grad is not None]
    assert saved[20] < saved[None] / 3
    for a, b in zip(gradients[None], gradients[20], strict=True):
        assert_close(a, b, scale=10.0)


def make(backend: str, every: int | None = 4) -> ELM:
    generator = torch.Generator().manual_seed(0)
    return ELM(6, 2, num_memory=3, recompute_every=every, backend=backend, generator=generator).double()


def spikes() -> Tensor:
    return torch.poisson(torch.ones(2, 11, 6), generator=torch.Generator().manual_seed(1)).double()


CHANGES: dict[str, Callable[[ELM, Any], Tensor]] = {
    r"mlp_weight\[0\]": lambda neuron, state: neuron.cell.mlp[0].weight,
    r"mlp_bias\[0\]": lambda neuron, state: neuron.cell.mlp[0].bias,
    "w_y": lambda neuron, state: neuron.cell.w_y.weight,
    r"state\.b": lambda neuron, state: state.b,
    r"state\.m": lambda neuron, state: state.m,
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("as_events", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_changed_in_place_before_the_backward_pass_is_refused(
    backend: str, as_events: bool, what: str
) -> None:
    neuron, x = make(backend), spikes()
    state = neuron.initial_state(2)
    y, _ = neuron(SpikeEvents.from_frames(x) if as_events else x, state)
    with torch.no_grad():
        CHANGES[what](neuron, state).add_(0.5)
    by_name = f"{what} must not be modified by an inplace operation"
    with pytest.raises(RuntimeError, match="by an inplace operation" if backend == "native" else by_name):
        y.square().sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_input_that_was_changed_in_place_is_refused(backend: str) -> None:
    neuron, x = make(backend), spikes()
    y, _ = neuron(x)
    x.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.square().sum().backward()


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_parameters_that_are_changed_after_the_backward_pass_are_refused_in_another(backend: str) -> None:
    neuron = make(backend)
    y, _ = neuron(spikes())
    y.square().sum().backward(retain_graph=True)
    torch.optim.SGD(neuron.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="by an inplace operation"):
        y.square().sum().backward()
    neuron(spikes())[0].square().sum().backward()  # of the new numbers


def gradients(neuron: ELM, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y.square().sum(), list(neuron.parameters())))


def _checkpointed(neuron: ELM, x: Tensor) -> list[Tensor]:
    return gradients(neuron, checkpoint(lambda x: neuron(x)[0], x, use_reentrant=False))


def _kept_elsewhere(neuron: ELM, x: Tensor) -> list[Tensor]:
    with torch.autograd.graph.save_on_cpu():
        y, _ = neuron(x)
    return gradients(neuron, y)


def _with_other_tensors(neuron: ELM, x: Tensor) -> list[Tensor]:
    others = {name: (1.5 * one).detach().requires_grad_() for name, one in neuron.named_parameters()}
    y = functional_call(neuron, others, (x,))[0]
    return list(torch.autograd.grad(y.square().sum(), list(others.values())))


def _twice(neuron: ELM, x: Tensor) -> list[Tensor]:
    leaves = list(neuron.parameters())
    firsts = torch.autograd.grad(neuron(x)[0].square().sum(), leaves, create_graph=True)
    return list(torch.autograd.grad(torch.stack([first.square().sum() for first in firsts]).sum(), leaves))


@pytest.mark.parametrize("how", [_checkpointed, _kept_elsewhere, _with_other_tensors, _twice])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_the_same_in_parts(backend: str, how: Callable[[ELM, Tensor], list[Tensor]]) -> None:
    x = spikes()
    for ours, wanted in zip(how(make(backend), x), how(make(backend, None), x), strict=True):
        assert_close(ours, wanted, scale=10.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_and_frozen_neurons_of_inference_mode_run_in_parts(backend: str) -> None:
    with torch.inference_mode():
        neuron = make(backend).requires_grad_(False)
        state = neuron.initial_state(2)
    y = neuron(spikes(), state)[0]
    assert_close(y, make(backend, None)(spikes())[0])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_transforms_run_in_one_part(backend: str) -> None:
    x = spikes()

    def of_samples(neuron: ELM) -> dict[str, Tensor]:
        def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(neuron, params, (x[None],))[0].sin().sum()  # type: ignore[no-any-return]

        params = {name: one.detach() for name, one in neuron.named_parameters()}
        each: dict[str, Tensor] = vmap(grad(loss), in_dims=(None, 0))(params, x)
        return each

    ours, wanted = of_samples(make(backend)), of_samples(make(backend, None))
    for name, one in wanted.items():
        assert_close(ours[name], one)
    ours, wanted = (jacrev(lambda x, of=of: of(x)[0])(x) for of in (make(backend), make(backend, None)))
    assert_close(ours, wanted)
