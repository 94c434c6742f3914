"""torch.func's transforms and forward mode: "auto" runs under them, a backend that cannot says what to take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, functional
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from elm_neuro import ALIF, ELM, LIF, BranchELM, ELMNetwork, ELMNetworkClassifier, SpikeEvents, SpikingELM
from elm_neuro.backends import use
from tests import layers
from tests.backends.equal_cases import FAST
from tests.tolerances import assert_close

# torch's own, when forward mode is first used

LAYERS: dict[str, Any] = {
    "elm": lambda: ELM(6, 2, num_memory=5),
    "branches": lambda: BranchELM(6, 2, 5, num_branch=3, num_synapse_per_branch=4),
    "population": lambda: ELM(6, 2, num_memory=4, num_neuron=2),
    "spiking": lambda: SpikingELM(ELM(6, 2, num_memory=4)),
    "resetting": lambda: SpikingELM(ELM(6, 2, num_memory=4), reset="subtract"),
    "lif": lambda: LIF(6, 3),
    "alif": lambda: ALIF(6, 3),
    "network": lambda: ELMNetwork(6, 4, num_memory=3, tau_m_init=(1.0, 20.0), binarize=False),
    "classifier": lambda: ELMNetworkClassifier(6, 3, 4, binarize=False),
}
OTHERS: dict[str, Any] = {
    "recurrent": lambda: ALIF(6, 3, recurrent=True, latency=2.0),
    "blocks": lambda: ALIF(6, 3, latency=2.0, gradient="blocks"),
    "nonlinear branches": lambda: BranchELM(6, 2, 5, num_branch=3, num_synapse_per_branch=4, branch_activation="tanh"),
    "time constants": lambda: ELM(6, 2, 4, tau_s=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),
}


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layer: nn.Module = (LAYERS | OTHERS)[kind]().double()
    return layer


def frames(batch: int = 3, num_steps: int = 5) -> Tensor:
    return (torch.rand(batch, num_steps, 6, generator=torch.Generator().manual_seed(2)) < 0.5).double()


@pytest.mark.parametrize("kind", [*LAYERS, "blocks"])
def test_jacobians_in_both_modes(kind: str) -> None:
    layer, x = make(kind).requires_grad_(False), frames(2, 3)

    def output(x: Tensor) -> Tensor:
        return layer(x)[0]  # type: ignore[no-any-return]

    wanted, direction = functional.jacobian(output, x), torch.randn_like(x)
    assert_close(jacrev(output)(x), wanted, dtype=torch.float64)
    assert_close(jacfwd(output)(x), wanted, dtype=torch.float64)
    along = (wanted * direction).sum((-3, -2, -1))
    assert_close(jvp(output, (x,), (direction,))[1], along, dtype=torch.float64)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(output(forward_ad.make_dual(x, direction))).tangent
    assert_close(tangent, along, dtype=torch.float64)
    y, pull = vjp(output, x)
    assert_close(pull(torch.ones_like(y))[0], wanted.flatten(0, y.ndim - 1).sum(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", [*LAYERS, "blocks"])
def test_hessian(kind: str) -> None:
    layer, x = make(kind).requires_grad_(False), frames(1, 3)

    def loss(x: Tensor) -> Tensor:
        return layer(x)[0].sin().sum()  # type: ignore[no-any-return]

    assert_close(hessian(loss)(x), functional.hessian(loss, x), dtype=torch.float64)


@pytest.mark.parametrize("kind", [*LAYERS, "blocks"])
@pytest.mark.parametrize("as_events", [False, True])
def test_gradients_of_each_sample_and_an_ensemble(kind: str, as_events: bool) -> None:
    layer, x = make(kind), frames()
    params = {name: p.detach() for name, p in layer.named_parameters()}
    others = {name: p.detach() for name, p in make(kind).named_buffers()}

    def output(params: dict[str, Tensor], x: Tensor | SpikeEvents) -> Tensor:
        return functional_call(layer, (params, others), (x,))[0]  # type: ignore[no-any-return]

    if not as_events:
        each = vmap(grad(lambda p, xi: output(p, xi[None]).sin().sum()), in_dims=(None, 0))(params, x)
        for index in range(3):
            layer.zero_grad()
            layer(x[index : index + 1])[0].sin().sum().backward()
            for name, parameter in layer.named_parameters():
                wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                if parameter.requires_grad:
                    assert_close(each[name][index], wanted, dtype=torch.float64)
    members = [make(kind), (LAYERS | OTHERS)[kind]().double()]
    for member in members:  # what is drawn, as the routing, belongs to the layer
        member.load_state_dict({**member.state_dict(), **dict(layer.named_buffers())}, strict=False)
    given = SpikeEvents.from_frames(x) if as_events else x
    stacked = {name: p.detach() for name, p in stack_module_state(members)[0].items()}
    together = vmap(lambda p: output(p, given))(stacked)
    for result, member in zip(together, members, strict=True):
        assert_close(result, member(given)[0].detach(), dtype=torch.float64)


@pytest.mark.parametrize("kind", [*LAYERS, *OTHERS])
def test_samples_that_end_at_their_own_length_are_those_of_the_batch(kind: str) -> None:
    layer, x, lengths = make(kind), frames(4), torch.tensor([0, 3, 5, 1])
    each, states = vmap(lambda x, length: layer(x[None], None, length[None])[:2])(x, lengths)
    for index, length in enumerate(lengths.tolist()):
        y, state = layer(x[index : index + 1, :length])[:2] if length else (each[index][:, :0], None)
        assert_close(each[index][:, :length], y)
        if kind != "classifier":
            assert not bool(each[index][:, length:].any())
        for part, wanted in zip((one[index] for one in states), state or (), strict=state is not None):
            assert_close(part, wanted)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("transform", [jacrev, jacfwd, vmap])
def test_a_named_backend_says_what_to_take(backend: str, transform: Any) -> None:
    neuron = ELM(6, 2, num_memory=4, backend=backend).double()
    x = frames()[None]
    with pytest.raises(ValueError, match=f'"{backend}" cannot run this: .*vmap.*forward mode.*"auto" or "reference"'):
        transform(lambda x: neuron(x)[0])(x if transform is vmap else x[0])
    with forward_ad.dual_level(), pytest.raises(ValueError, match="forward mode"):
        neuron(forward_ad.make_dual(x[0], x[0]))


RUNS = [(kind, backend) for kind in [*LAYERS, *OTHERS] for backend in ("auto", "torch", "reference")]
RUNS.remove(("blocks", "reference"))  # a loop has the gradient of the loop


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize(("kind", "backend"), RUNS)
def test_many_gradients_at_once_are_those_one_by_one(kind: str, backend: str, num_steps: int) -> None:
    layer = make(kind)
    for module in layer.modules():
        if hasattr(type(module), "backend"):
            module.backend = backend
    x = (2.0 * frames(2, num_steps)).requires_grad_()
    wanted = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    y = layer(x)[0]
    directions = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad(y, wanted, directions, is_grads_batched=True, allow_unused=True, retain_graph=True)
    mapped = vmap(lambda direction: torch.autograd.grad(y, x, direction, retain_graph=True)[0])(directions)
    for index, direction in enumerate(directions):
        one_by_one = torch.autograd.grad(layer(x)[0], wanted, direction, allow_unused=True)
        for tensor, many, one in zip(wanted, found, one_by_one, strict=True):
            zero = torch.zeros_like(tensor)
            assert_close(zero if many is None else many[index], zero if one is None else one, dtype=torch.float64)
        assert_close(mapped[index], one_by_one[0], dtype=torch.float64)


def left_over(x: Tensor) -> Tensor:
    """What is left of a tensor of a transform that is over."""
    left: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        left.append(1.0 * x)
        return left[0].sum()

    grad(keep)(x)
    return left[0]


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", layers.LAYERS)
def test_what_is_left_of_a_transform_is_taken_for_the_numbers_it_holds(name: str, backend: str, graph: bool) -> None:
    """As torch's own operators take it."""
    torch.manual_seed(0)
    layer, x = layers.LAYERS[name](), (torch.rand(layers.BATCH, layers.STEPS, layers.INPUTS) < 0.5).float()
    with torch.set_grad_enabled(graph), use(backend):
        y, *_, state = layer(x)
        again, *_ = layer(left_over(x))
        assert_close(again, y)
        if graph:
            learned = [p for p in layer.parameters() if p.requires_grad]
            flow = torch.rand(y.shape)
            wanted = torch.autograd.grad(y, learned, flow, allow_unused=True)
            for found, one in zip(
                torch.autograd.grad(again, learned, left_over(flow), allow_unused=True), wanted, strict=True
            ):
                assert (found is None) == (one is None)
                if found is not None and one is not None:
                    assert_close(found, one)
        if isinstance(state, tuple):
            state = type(state)(*(part.detach() for part in state))
            again, *_ = layer(x, type(state)(*map(left_over, state)))
            assert_close(again, layer(x, state)[0])
