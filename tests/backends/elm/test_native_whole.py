"""The native pass over events in one call each way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from elm_neuro import ELM, BranchELM, ELMState, SpikeEvents, SpikingELM, backends
from elm_neuro.backends.elm import _native_whole
from elm_neuro.backends.native._events import SPARSE_DENSITY
from elm_neuro.functional import ELMParameters, FastSigmoid
from tests.backends.equal_cases import everything
from tests.backends.native_cases import native
from tests.tolerances import assert_close

pytestmark = native

KINDS: dict[str, dict[str, Any]] = {
    "own branches": {},
    "no hidden layer": {"num_mlp_layers": 0},
    "population": {"num_neuron": 3},
    "two layers": {"num_mlp_layers": 2, "activation": "silu", "variant": "v2"},
}


def made(kind: str, dtype: torch.dtype, **options: Any) -> ELM:
    torch.manual_seed(0)
    if kind == "branches":  # more of them than hidden units
        neuron: ELM = BranchELM(30, 4, 3, num_branch=9, num_synapse_per_branch=5, routing="random", **options)
    else:
        neuron = ELM(30, 4, num_memory=5, **KINDS[kind], **options)
    with torch.no_grad():
        neuron.cell._proto_w_s += torch.randn_like(neuron.cell._proto_w_s)  # some silent
    return neuron.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", ["ones", "values", "dense", "events", "time first", "strided"])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "branches"])
def test_whatever_arrives_equals_the_reference(
    kind: str, with_lengths: bool, with_state: bool, given: str, dtype: torch.dtype
) -> None:
    neuron = made(kind, dtype)
    density = 2 * SPARSE_DENSITY if given == "dense" else SPARSE_DENSITY / 2
    x: Any = (torch.rand(5, 19, 30) < density).to(dtype)
    if given == "values":
        x *= torch.randn(5, 19, 30)
    elif given == "time first":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    elif given == "strided":
        x = torch.stack((x, x + 1.0), -1)[..., 0]
    elif given == "events":
        x = SpikeEvents.from_frames(x)
    state = None
    if with_state:
        state = ELMState(*(torch.randn_like(part).requires_grad_() for part in neuron.initial_state(5)))
    lengths = torch.tensor([19, 0, 7, 18, 1]) if with_lengths else None
    if isinstance(x, Tensor) and with_lengths:
        x = x.masked_fill((torch.arange(19) >= lengths[:, None])[..., None], torch.nan)  # type: ignore[index]
    results = everything(neuron, "native", x, state, lengths)
    wanted = everything(neuron, "reference", x, state, lengths)
    for result, expected in zip(results, wanted, strict=True):
        assert_close(result, expected, dtype=dtype, scale=10.0)
    with torch.no_grad():
        neuron.backend = "native"
        y, after = neuron(x, state, lengths)
    for result, expected in zip((y, *after), results[:3], strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("one_threshold", [True, False])
def test_spikes_are_fired_inside(one_threshold: bool) -> None:
    for density in (SPARSE_DENSITY / 2, 2 * SPARSE_DENSITY):
        found = []
        for backend in ("native", "reference"):
            torch.manual_seed(0)
            layer = SpikingELM(
                ELM(30, 4, num_memory=5, backend=backend).double(),
                threshold=0.1 if one_threshold else torch.tensor([0.05, 0.1, 0.2, 0.0]),
                surrogate=FastSigmoid(),
            ).double()
            x = (torch.rand(5, 19, 30) < density).double()
            spikes, state = layer(x, None, torch.tensor([19, 0, 7, 18, 1]))
            (spikes * torch.randn(spikes.shape)).sum().backward()
            found.append([spikes, *state, *(p.grad for p in layer.parameters())])
        for result, wanted in zip(*found, strict=True):
            assert_close(result, wanted, dtype=torch.float64)


@pytest.mark.parametrize("given", ["sparse", "dense"])
def test_gradients_of_gradients_are_those_of_the_reference(given: str) -> None:
    neuron = made("own branches", torch.float64, activation="silu")
    x = (torch.rand(2, 7, 30) < (0.05 if given == "sparse" else 0.4)).double()
    found = []
    for backend in ("native", "reference"):
        neuron.backend = backend
        leaves = [p for p in neuron.parameters() if p.requires_grad]
        y, _ = neuron(x, None, torch.tensor([7, 3]))
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))  # type: ignore[arg-type]
    for result, wanted in zip(*found, strict=True):
        assert_close(result, wanted, dtype=torch.float64)


def parameters(memory: dict[str, Tensor], num_memory: int, hidden: int, num_output: int) -> ELMParameters:
    """Of these sizes, all of them the beginnings of the same memory."""

    def view(name: str, *shape: int) -> Tensor:
        return memory[name][: torch.Size(shape).numel()].view(shape)

    return ELMParameters(
        view("w_s", 30, 1).abs(), None, torch.tensor(0.7), view("kappa", num_memory).sigmoid(),
        view("gain", num_memory).sigmoid(), (view("w_0", hidden, 30 + num_memory), view("w_1", num_memory, hidden)),
        (view("b_0", hidden), view("b_1", num_memory)), view("w_y", num_output, num_memory), view("b_y", num_output),
    )  # fmt: skip


def test_other_sizes_in_the_same_memory_are_other_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call is told is remembered by where things lie: it must not be taken for what lay there before."""
    torch.manual_seed(0)
    memory = {
        name: 0.3 * torch.randn(4000) for name in ("w_s", "kappa", "gain", "w_0", "w_1", "b_0", "b_1", "w_y", "b_y")
    }
    room = torch.empty(1 << 20, dtype=torch.uint8)
    monkeypatch.setattr(_native_whole._library, "large", lambda like, size, dtype: room[:size])
    x = (torch.rand(3, 11, 30) < 0.05).float()
    kept = SpikeEvents.from_frames(x)
    for _ in range(2):
        for sizes in ((5, 10, 4), (5, 10, 2), (4, 12, 2), (5, 10, 4)):
            params = parameters(memory, *sizes)
            for given in (x, x[:, :7], x[:2], 2.0 * x, kept):
                y, after = backends.elm.scan(given, params, None, backend="native")
                wanted, expected = backends.elm.scan(given, params, None, backend="reference")
                for result, exact in zip((y, *after), (wanted, *expected), strict=True):
                    assert_close(result, exact, scale=10.0)


def test_few_arguments_are_remembered() -> None:
    neuron = made("own branches", torch.float32, backend="native")
    for batch in range(1, 2 * _native_whole.MOST_MADE):
        neuron((torch.rand(batch, 3, 30) < 0.05).float())
    assert len(_native_whole._made) <= _native_whole.MOST_MADE


def test_a_routing_that_leads_outside_is_refused_both_ways() -> None:
    torch.manual_seed(0)
    neuron = BranchELM(30, 4, 6, num_branch=3, num_synapse_per_branch=10, backend="native")
    x = (torch.rand(2, 9, 30) < 0.05).float()
    y, _ = neuron(x)
    neuron.cell.input_to_synapse_indices.data[0, 0] = 30  # type: ignore[union-attr]  # there is one
    with pytest.raises(ValueError, match="routing must hold inputs below 30, -1 where a slot is empty"):
        y.sum().backward()
    with pytest.raises(ValueError, match="routing must hold inputs below 30"):
        backends.elm.scan(x, neuron.cell.learned_parameters(), None, backend="native")
