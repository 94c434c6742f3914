"""The native pass as one node of autograd, from what a neuron learns to its output."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from elm_neuro import ELM, BranchELM, ELMState, SpikeEvents, SpikingELM, backends
from elm_neuro.backends.elm import _effective
from elm_neuro.backends.elm._effective import Timescales, by_torch, remembered_decay, remembered_timescales
from elm_neuro.functional import decay
from tests.backends.native_cases import native, run_python
from tests.tolerances import assert_close

pytestmark = native


def branches() -> BranchELM:
    return BranchELM(20, 2, 3, num_branch=4, num_synapse_per_branch=5, backend="native")


def frames(batch: int = 2) -> Tensor:
    return (torch.arange(batch * 120) % 13 == 0).float().view(batch, 6, 20)


NEURONS: dict[str, Callable[[], ELM]] = {
    "own branches": lambda: ELM(20, 2, num_memory=3, backend="native"),
    "branches": branches,
    "population": lambda: ELM(20, 2, num_memory=3, num_neuron=2, backend="native"),
    "no hidden layer": lambda: ELM(20, 2, num_memory=3, num_mlp_layers=0, backend="native"),
}


def nodes_between(y: Tensor) -> list[str]:
    """Names of the nodes of a graph but for those of its leaves."""
    found, todo = list[str](), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and "AccumulateGrad" not in node.name():
            found.append(node.name())
            todo += [before for before, _ in node.next_functions]
    return found


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("how", ["frames", "events", "lengths", "state"])
def test_a_pass_is_one_node(kind: str, how: str) -> None:
    neuron, x = NEURONS[kind](), frames()
    state = ELMState(*(part + 0.5 for part in neuron.initial_state(2))) if how == "state" else None
    given = SpikeEvents.from_frames(x) if how == "events" else x
    y, after = neuron(given, state, torch.tensor([6, 2]) if how == "lengths" else None)
    assert nodes_between(y) == ["_PassBackward"]
    assert y.grad_fn is after.m.grad_fn is after.b.grad_fn


def test_a_spiking_pass_is_one_node() -> None:
    layer = SpikingELM(branches())
    spikes, _ = layer(frames())
    assert nodes_between(spikes) == ["_PassBackward"]


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_remembered_numbers_have_the_bits_of_torch(variant: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for size in (1, 7, 64, _effective.MOST_REMEMBERED + 1):
        for bounds in ((0.0, 4.0), (0.1, 1500.0)):
            timescales = Timescales(bounds, 0.5, 5.0, variant)
            proto, tau_s = 9.0 * torch.randn(size, dtype=dtype), 9.0 * torch.rand((), dtype=dtype)
            proto[0] = -1e4  # a time constant of 0 where the bound is
            _, *wanted = by_torch(proto, proto, timescales)
            for _ in range(2):  # the second time from memory
                assert all(map(torch.equal, remembered_timescales(proto, timescales), wanted))
                assert torch.equal(remembered_decay(tau_s, timescales), decay(tau_s, 0.5))


def test_time_constants_may_be_changed_where_autograd_does_not_look() -> None:
    """They are known again by their numbers, not by the tensor that holds them."""
    neuron, x = branches(), frames()
    for change in (lambda p: p.data.add_(1.0), lambda p: p.detach().numpy().__isub__(0.5)):
        change(neuron.cell._proto_tau_m)
        neuron.cell.tau_s.data.mul_(1.5)
        with backends.use("reference"):
            neuron.backend = "auto"
            wanted, after = neuron(x)
        neuron.backend = "native"
        y, found = neuron(x)
        assert_close(y, wanted)
        assert_close(found.b, after.b)


def test_what_was_first_seen_in_inference_mode_is_trained_later() -> None:
    neuron, x = ELM(20, 2, num_memory=3, tau_m_init=(1.25, 777.0), tau_s=4.4321, backend="native"), frames()
    with torch.inference_mode():
        wanted = neuron(x)[0].clone()
    y, _ = neuron(x)
    assert torch.equal(y, wanted)
    y.sum().backward()
    assert neuron.cell._proto_tau_m.grad is not None


@pytest.mark.parametrize(
    "context",
    [
        "torch.inference_mode()",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("torch.device('meta')", "FakeTensorMode()")),
    ],
)
def test_a_first_use_where_nothing_is_kept_leaves_nothing_behind(context: str) -> None:
    """The modules of a pass are imported when a neuron first runs, wherever that is."""
    run_python(f"""
import contextlib, torch
from torch._subclasses import FakeTensorMode
from elm_neuro import ALIF, ELM, ELMNetwork, SpikingELM
def layers():
    return [
        ELM(20, 2, num_memory=3), SpikingELM(ELM(20, 2, num_memory=3)), ALIF(20, 5, latency=2), ELMNetwork(20, 4)
    ]
def run(x):
    for layer in layers():
        yield layer(x)[0], layer
with {context}:
    list(run(torch.zeros(2, 6, 20)))
for y, layer in run((torch.rand(2, 6, 20) < 0.1).float()):
    y.square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters() if p.requires_grad), layer
""")


def test_effective_parameters_are_the_callers_own() -> None:
    neuron, x = ELM(20, 2, num_memory=3, backend="native"), frames()
    wanted, _ = neuron(x)
    with torch.no_grad():
        for tensor in neuron.cell.effective_parameters()[2:5]:
            tensor.zero_()
    assert torch.equal(neuron(x)[0], wanted)


@pytest.mark.parametrize("kind", NEURONS)
def test_the_rectifier_passes_gradients_as_torch_does(kind: str) -> None:
    """At a weight of 0 none, and a NaN is seen."""
    neuron, x = NEURONS[kind](), torch.ones(1, 6, 20)
    with torch.no_grad():
        flat = neuron.cell._proto_w_s.view(-1)
        flat[::3], flat[1::3] = 0.0, -1.0
    grads = []
    for backend in ("native", "reference"):
        neuron.zero_grad()
        neuron.backend = backend
        y, after = neuron(x)
        (y.sum() + after.b.sum()).backward()
        grads.append([p.grad for p in neuron.parameters()])
    for result, wanted in zip(*grads, strict=True):
        assert_close(result, wanted)
    own = neuron.cell._proto_w_s
    assert not own.grad.view(-1)[::3].any() and not own.grad.view(-1)[1::3].any() and own.grad.any()
    neuron.backend = "native"
    own.data.view(-1)[2] = torch.nan
    with pytest.raises(ValueError, match="_proto_w_s must not hold NaN"):
        neuron(x)


@pytest.mark.parametrize("where", ["w_y.weight", "w_y.bias", "mlp.0.weight", "_proto_tau_m"])
@pytest.mark.parametrize("how", ["frames", "lengths", "spiking"])
def test_a_nan_parameter_is_named(where: str, how: str) -> None:
    neuron = branches()
    with torch.no_grad():
        dict(neuron.cell.named_parameters())[where].view(-1)[-1] = torch.nan
    layer = SpikingELM(neuron) if how == "spiking" else neuron
    with pytest.raises(ValueError, match=f"{where} must not hold NaN"):
        layer(frames(), None, torch.tensor([6, 2]) if how == "lengths" else None)


def test_changed_operands_are_noticed() -> None:
    neuron, x = branches(), frames()
    y, after = neuron(x)
    assert y.add_(1.0).grad_fn is not None and after.m.mul_(2.0).grad_fn is not None  # what it gave may be changed
    with torch.no_grad():
        neuron.cell._proto_w_s.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
