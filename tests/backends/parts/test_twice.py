"""Second derivatives: whoever asks for them, in whatever way, gets those of the equations, on every backend."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.autograd import functional, gradgradcheck

from elm_neuro import ALIF, ELM, LIF, BranchELM, ELMState, SpikeEvents, SpikingELM, backends
from elm_neuro.functional import ATan, FastSigmoid, MultiGaussian, bernoulli_spike
from tests.backends.equal_cases import BACKENDS, FAST, cases
from tests.tolerances import assert_close

CELLS: dict[str, Any] = {
    "elm": lambda backend: ELM(6, 2, num_memory=5, backend=backend),
    "branches": lambda backend: BranchELM(6, 2, 5, num_branch=3, num_synapse_per_branch=4, backend=backend),
    "nonlinear branches": lambda backend: ELM(6, 2, num_memory=4, branch_activation="tanh", backend=backend),
    "population": lambda backend: ELM(6, 2, num_memory=4, num_neuron=3, backend=backend),
    "spiking": lambda backend: SpikingELM(ELM(6, 2, num_memory=4, backend=backend)),
    "adding spikes": lambda backend: SpikingELM(ELM(6, 2, num_memory=4, backend=backend), threshold=0.5),
}


def make(kind: str, backend: str) -> nn.Module:
    torch.manual_seed(1)
    layer: nn.Module = CELLS[kind](backend).double()
    return layer


def frames(batch: int = 3, num_steps: int = 7) -> Tensor:
    return (torch.rand(batch, num_steps, 6, generator=torch.Generator().manual_seed(2)) < 0.4).double()


def leaves_of(layer: nn.Module) -> list[Tensor]:
    return [parameter for parameter in layer.parameters() if parameter.requires_grad]


def penalty(layer: nn.Module, x: Tensor | SpikeEvents, by: list[Tensor], **call: Any) -> Tensor:
    """Squared norm of the gradient of a curved function of the output."""
    y = layer(x, **call)[0]
    grads = torch.autograd.grad((y.sin() + y * y).sum(), by, create_graph=True, allow_unused=True)
    total = sum(grad.square().sum() for grad in grads if grad is not None)
    assert isinstance(total, Tensor)
    return total


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("how", ["frames", "events", "lengths"])
def test_a_penalty_on_a_gradient(kind: str, how: str, backend: str) -> None:
    """Also by asking for particular inputs, which once left out the refusal and gave zeros."""
    found = []
    for name in (backend, "reference"):
        layer, x = make(kind, name), frames()
        leaves = leaves_of(layer)
        call = {"lengths": torch.tensor([7, 3, 0])} if how == "lengths" else {}
        total = penalty(layer, SpikeEvents.from_frames(x) if how == "events" else x, leaves, **call)
        found.append(torch.autograd.grad(total, leaves, allow_unused=True))
    for result, wanted in zip(*found, strict=True):
        assert (result is None) == (wanted is None)
        if result is not None and wanted is not None:
            assert_close(result, wanted, dtype=torch.float64)
    assert any(bool(wanted.any()) for wanted in found[1] if wanted is not None)


@settings(max_examples=25, deadline=None)
@given(cases())
def test_drawn_neurons(case: tuple[ELM, Tensor, ELMState | None, Tensor | None]) -> None:
    neuron, x, state, lengths = case
    leaves = [*leaves_of(neuron), *([x] if x.requires_grad else []), *(state or ())]
    found = {}
    for backend in BACKENDS:
        neuron.backend = backend
        y, after = neuron(x, state, lengths)
        first = torch.autograd.grad(
            y.sin().sum() + after.m.square().sum() + after.b.cos().sum(), leaves, create_graph=True, allow_unused=True
        )
        total = sum((grad.square().sum() for grad in first if grad is not None and grad.requires_grad), y.sum() * 0.0)
        assert isinstance(total, Tensor)
        second = torch.autograd.grad(total, leaves, allow_unused=True)
        found[backend] = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, second, strict=True)]
    for backend in FAST:
        for result, wanted in zip(found[backend], found["reference"], strict=True):
            assert_close(result, wanted, dtype=torch.float64, scale=10.0)


@pytest.mark.parametrize("backend", FAST)
def test_gradgradcheck(backend: str) -> None:
    neuron = ELM(3, 2, num_memory=3, activation="silu", backend=backend).double()
    x = torch.rand(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda x: neuron(x)[0], x)


@pytest.mark.parametrize("backend", FAST)
def test_hessian_hvp_and_jvp(backend: str) -> None:
    x, direction = frames(2, 4), torch.randn(2, 4, 6, dtype=torch.float64)
    found = []
    for name in (backend, "reference"):
        layer = make("branches", name)

        def loss(x: Tensor, layer: nn.Module = layer) -> Tensor:
            return layer(x)[0].sin().sum()  # type: ignore[no-any-return]

        hessian = functional.hessian(loss, x)
        found.append([hessian, functional.hvp(loss, x, direction)[1], functional.jvp(loss, x, direction)[1]])
        assert_close(found[-1][1].flatten(), hessian.view(48, 48) @ direction.flatten(), dtype=torch.float64)
    for result, wanted in zip(*found, strict=True):
        assert_close(result, wanted, dtype=torch.float64)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("given_as", ["frames", "events"])
def test_a_meta_gradient_is_that_of_differences(backend: str, given_as: str) -> None:
    """MAML: the loss after one step of gradient descent, by the parameters before it."""
    layer, x = make("elm", backend), frames()
    inner: Tensor | SpikeEvents = SpikeEvents.from_frames(x) if given_as == "events" else x
    names = [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
    start = [parameter.detach().clone().requires_grad_() for parameter in leaves_of(layer)]

    def after_a_step(start: list[Tensor], *, graph: bool) -> Tensor:
        call = torch.func.functional_call
        y = call(layer, dict(zip(names, start, strict=True)), (inner,))[0]
        grads = torch.autograd.grad(y.sin().sum(), start, create_graph=graph)
        moved = [p - 0.1 * g for p, g in zip(start, grads, strict=True)]
        result: Tensor = call(layer, dict(zip(names, moved, strict=True)), (x.flip(1),))[0].square().sum()
        return result

    grads = torch.autograd.grad(after_a_step(start, graph=True), start)
    step = 1e-6
    for index, grad in enumerate(grads):
        towards = torch.randn(grad.shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
        ends = []
        for sign in (step, -step):
            moved = [p.detach().clone().requires_grad_() for p in start]
            moved[index] = (moved[index].detach() + sign * towards).requires_grad_()
            ends.append(after_a_step(moved, graph=False).detach())
        difference = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close((grad * towards).sum(), difference, rtol=1e-5, atol=1e-5)


def test_one_parameter_made_of_another_counts_once() -> None:
    """A hypernetwork: the first derivative under create_graph is that without."""
    neuron = make("elm", FAST[-1])
    seed = torch.randn(5, dtype=torch.float64, requires_grad=True)
    params = neuron.cell.effective_parameters()._replace(kappa_m=seed.sigmoid())
    params = params._replace(gain=1.0 - params.kappa_m)
    y, _ = backends.scan(frames(), params, None, backend=FAST[-1])
    (plain,) = torch.autograd.grad(y.sin().sum(), seed, retain_graph=True)
    (graphed,) = torch.autograd.grad(y.sin().sum(), seed, create_graph=True)
    assert_close(graphed.detach(), plain, dtype=torch.float64)


def test_the_output_may_be_changed_in_place_and_its_graph_is_freed() -> None:
    neuron, x = make("elm", FAST[-1]), frames()
    y, _ = neuron(x)
    wanted = torch.autograd.grad((2.0 * y).sum(), leaves_of(neuron), retain_graph=True)
    y.mul_(2.0)
    for result, expected in zip(torch.autograd.grad(y.sum(), leaves_of(neuron)), wanted, strict=True):
        assert_close(result, expected, dtype=torch.float64)
    gc.disable()
    try:
        y = neuron(x)[0]
        node = weakref.ref(y.grad_fn)
        del y
        assert node() is None  # by its count of references: a cycle would keep the batch until the next collection
    finally:
        gc.enable()


@pytest.mark.parametrize("surrogate", [ATan(), FastSigmoid(), MultiGaussian(), bernoulli_spike])
def test_a_surrogate_is_differentiable_again(surrogate: Any) -> None:
    x = torch.linspace(-1.3, 1.4, 11, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(surrogate(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    step = 1e-6
    ends = []
    for sign in (step, -step):
        moved = (x.detach() + sign).requires_grad_()
        ends.append(torch.autograd.grad(surrogate(moved).sum(), moved)[0])
    torch.testing.assert_close(curvature, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [LIF, ALIF])
def test_spiking_layers_without_an_elm(kind: Any) -> None:
    torch.manual_seed(0)
    layer = kind(6, 3).double()
    x = frames().requires_grad_()
    total = penalty(layer, x, [x])
    assert bool(torch.autograd.grad(total, [p for p in layer.parameters() if p.requires_grad])[0].any())
