"""Passes inside torch.compile and torch.export: drawn layers, inputs, states and lengths as one graph, the same numbers
both ways. Those of CUDA are in tests/backends/cuda.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from elm_neuro import ALIF, ELM, LIF, SpikeEvents
from elm_neuro.backends.alif import _native_pass as alif_pass
from elm_neuro.backends.elm._torch import may_commute
from elm_neuro.backends.native import _library
from elm_neuro.backends.network import _native_pass as network_pass
from elm_neuro.functional import ATan, zero_network_state
from tests.backends.alif.cases import calls as alif_calls
from tests.backends.compiled import (
    LAYERS,
    alif_is_the_same,
    as_one_graph,
    elm_is_the_same,
    is_compiled_once,
    looked_into,
    network_is_the_same,
    spikes,
    total,
)
from tests.backends.equal_cases import cases
from tests.backends.native_cases import native
from tests.backends.network.cases import calls as network_calls
from tests.backends.network.cases import made
from tests.backends.network.native_sizes import in_dtype
from tests.tolerances import assert_close

HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large]
FEW = settings(max_examples=2, deadline=None, suppress_health_check=HEALTH)
MANY = settings(max_examples=60, deadline=None, suppress_health_check=HEALTH)
HOW = {
    "events": st.booleans(),
    "recompute_every": st.sampled_from([None, None, 8]),
    "sparse_input": st.sampled_from(["auto", "on", "off"]),
}


@native
@FEW
@given(case=cases(), how=st.fixed_dictionaries(HOW))
def test_an_elm_is_one_graph_and_the_same(case: Any, how: Any) -> None:
    an_elm(case, how)


def an_elm(case: Any, how: Any) -> None:
    # how many events lie in a part, compiled code does not know
    if how["recompute_every"] is not None and not may_commute(case[0].cell.effective_parameters()):
        how = how | {"events": False}
    elm_is_the_same("native", case, **how)


@native
@FEW
@given(call=alif_calls())
def test_a_lif_layer_is_one_graph_and_the_same(call: Any) -> None:
    alif_is_the_same("native", call)


@native
@FEW
@given(call=network_calls())
def test_an_elm_network_is_one_graph_and_the_same(call: Any) -> None:
    network_is_the_same("native", call)


@native
@pytest.mark.slow
@MANY
@given(case=cases(), how=st.fixed_dictionaries(HOW))
def test_many_elms_are_one_graph_and_the_same(case: Any, how: Any) -> None:
    an_elm(case, how)


@native
@pytest.mark.slow
@MANY
@given(call=alif_calls())
def test_many_lif_layers_are_one_graph_and_the_same(call: Any) -> None:
    alif_is_the_same("native", call)


@native
@pytest.mark.slow
@MANY
@given(call=network_calls())
def test_many_elm_networks_are_one_graph_and_the_same(call: Any) -> None:
    network_is_the_same("native", call)


@native
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch 2.13, of its own doing
@pytest.mark.parametrize("given", ["frames", "events"])
@pytest.mark.parametrize("name", LAYERS)
def test_inductor_compiles_a_training_step(name: str, given: str) -> None:
    torch.manual_seed(0)
    layer, x, lengths = LAYERS[name](), spikes(), torch.tensor([20, 7, 0])
    arriving: Any = SpikeEvents.from_frames(x) if given == "events" else x
    wanted = total(layer, arriving, None, lengths)
    found = as_one_graph(lambda *inputs: total(layer, *inputs), backend="inductor")(arriving, None, lengths)
    assert_close(found, wanted)
    leaves = list(layer.parameters())
    grads = [torch.autograd.grad(loss, leaves, allow_unused=True) for loss in (found, wanted)]
    for one, other in zip(*grads, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(one, other)


@native
@pytest.mark.parametrize(
    "name", ["ELM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ALIF", "ELMNetwork"))]
)
def test_other_numbers_of_events_and_steps_and_wrong_lengths(name: str) -> None:
    """None of them is compiled in."""
    torch.manual_seed(0)
    layer = LAYERS[name]().requires_grad_(False)
    compiled = as_one_graph(lambda *inputs: layer(*inputs)[0])
    for num_steps in (20, 13, 4):
        events, lengths = SpikeEvents.from_frames(spikes(num_steps=num_steps)), torch.tensor([num_steps, 3, 0])
        assert_close(compiled(events, None, lengths), layer(events, None, lengths)[0])
    with pytest.raises(ValueError, match="between 0 and the 4 steps of x, got 1 to 5"):
        compiled(events, None, lengths + 1)


@pytest.mark.grid(every=2)
@native
@pytest.mark.parametrize(("name", "given"), [("ELM", "events"), ("ALIF", "events"), ("ELMNetwork", "frames")])
def test_a_training_step_is_compiled_once_for_all_sizes(name: str, given: str) -> None:
    is_compiled_once(LAYERS[name](), given)


@native
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch 2.13, of its own doing
@pytest.mark.parametrize("given", ["frames", "events"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_training_step_of_any_layer_is_compiled_once_for_all_sizes(name: str, given: str) -> None:
    is_compiled_once(LAYERS[name](), given)


@native
@pytest.mark.parametrize("kind", [{"trace": True}, {"high_pass": False}, {"output": "identity"}, {"hidden": (7, 2)}])
@pytest.mark.parametrize("num_neuron", [1, 8, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_network_keeps_has_room_however_many_samples_a_task_takes(
    kind: Any, num_neuron: int, dtype: torch.dtype
) -> None:
    params, rule = in_dtype(made(0, sizes=(6, num_neuron, 3, 2, 4), **kind), dtype)
    options, layers = network_pass.Options.of(params, rule), params.mlp_weight + params.mlp_bias
    register = {"avx512": 64, "avx2": 32}.get(_library.instruction_set(), 16)
    lanes = [1, *(size // dtype.itemsize for size in (16, 32, 64) if size <= register)]
    for batch, num_steps in itertools.product((1, 2, 5, 16, 17), (1, 8, 9, 33)):
        state = zero_network_state(params, batch)
        operands = network_pass.Operands.of(params, state, x=torch.rand(batch, num_steps, 6, dtype=dtype))
        room = network_pass.room_for_saved(operands, options, num_steps)
        for number in lanes:
            plan = network_pass.Plan(options, num_steps, 6, number)
            *_, saved = network_pass.forward(operands.laid_out(), layers, plan, save=True)
            assert saved.numel() == room  # with which the pass has compared what the library says that it writes


@native
def test_events_that_compiled_code_made_are_looked_at_by_the_kernels() -> None:
    layer = ALIF(12, 5).requires_grad_(False)

    def run(channel: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = layer(SpikeEvents(torch.tensor([0, 1, 2]), channel, None, (1, 2, 12)))[0]
        return y

    compiled = as_one_graph(run)
    assert_close(compiled(torch.tensor([3, 4])), run(torch.tensor([3, 4])))
    with pytest.raises(ValueError, match=r"with channels in \[0, 12\)"):
        compiled(torch.tensor([3, 12]))


@native
def test_a_state_that_remembers_what_is_no_spike_is_refused() -> None:
    layer = ALIF(12, 5, recurrent=True)
    state = layer.initial_state(1)._replace(s=torch.full_like(layer.initial_state(1).s, 0.5))
    layer(spikes(1), state)
    with pytest.raises(ValueError, match=r"state\.s must hold spikes, 0 or 1, inside torch.compile"):
        as_one_graph(lambda x: layer(x, state)[0])(spikes(1))


@looked_into
@native
@pytest.mark.parametrize("name", ["ELM", "ALIF", "ELMNetwork"])
def test_second_derivatives_are_refused(name: str) -> None:
    layer, x = LAYERS[name](), spikes().requires_grad_()
    # operations as they are: torch itself refuses this of a graph that it has differentiated
    compiled = torch.compile(lambda x: layer(x)[0].square().sum(), backend="eager")
    (gradient,) = torch.autograd.grad(compiled(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="a compiled pass has no second derivative"):
        gradient.sum().backward()


@native
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("num_neuron", [1, 64, 65])
@pytest.mark.parametrize("num_steps", [1, 48, 97])
def test_the_size_of_what_is_kept_is_what_the_library_says(
    blocks: bool, recurrent: bool, num_neuron: int, num_steps: int
) -> None:
    for latency in (0.0, 7.0, 100.0):
        for dtype in (torch.float32, torch.float64):
            layer = ALIF(3, num_neuron, latency=latency, recurrent=recurrent, gradient="blocks" if blocks else "loop")
            layer.to(dtype)
            params, state = layer.cell.parameters_as_they_are(), layer.initial_state(2)
            plan = alif_pass.Plan.of(params, state, num_steps, 3)
            operands = alif_pass.Operands(
                None, None, None, None, None, None, torch.zeros(2, num_steps, num_neuron, dtype=dtype),
                layer.cell.bias.detach(), params.beta, params.p, params.b, params.w_rec, *state
            )  # fmt: skip
            *_, saved = alif_pass.forward(operands.laid_out(), plan, save=True)
            assert saved.numel() == alif_pass.saved_size(operands, plan)


@pytest.mark.grid(every=2)
@native
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch, at a graph break
@pytest.mark.parametrize("name", ["ELM", "ALIF", "ELMNetwork"])
def test_an_empty_batch_breaks_the_graph_and_is_not_unrolled(name: str) -> None:
    layer, x = LAYERS[name](), spikes(0, 40)
    graphs = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    found = torch.compile(lambda x: layer(x)[0], backend=graphs)(x)
    assert found.shape == layer(x)[0].shape
    assert sum(len(graph.graph.nodes) for graph in graphs.graphs) < 200


@native
@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
def test_layers_of_one_kind_with_other_settings_are_one_graph(dynamic: bool | None) -> None:
    """Numbers that compiled code leaves open are settings too."""
    torch.manual_seed(0)
    layers = [ALIF(12, 12, latency=latency, surrogate=ATan(latency)) for latency in (2.0, 3.0, 5.0)]
    network, x = torch.nn.ModuleList([*layers, LIF(12, 12, latency=4.0), ELM(12, 4)]), spikes()

    def run(x: torch.Tensor) -> torch.Tensor:
        for layer in network:
            x, _ = layer(4.0 * x)
        return x.square().sum()

    leaves = list(network.parameters())
    losses = run(x), as_one_graph(run, dynamic=dynamic)(x)
    for one, other in zip(*(torch.autograd.grad(loss, leaves, allow_unused=True) for loss in losses), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(other, one)


@native
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch, of its own doing, at a graph break
@pytest.mark.grid(every=3)
@pytest.mark.parametrize("transform", ["jvp", "grad", "vmap"])
@pytest.mark.parametrize("name", ["ELM", "ALIF", "ELMNetwork"])
def test_transforms_inside_compiled_code_give_what_they_give_outside(name: str, transform: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer, x = LAYERS[name](), spikes(2, 6)

    def run(x: torch.Tensor) -> torch.Tensor:
        if transform == "jvp":
            tangent: torch.Tensor = torch.func.jvp(lambda x: total(layer, x), (x,), (torch.ones_like(x),))[1]
            return tangent
        if transform == "grad":
            return torch.func.grad(lambda x: total(layer, x))(x)
        return torch.func.vmap(lambda one: layer(one.unsqueeze(0))[0])(x)

    assert_close(torch.compile(run, backend="aot_eager")(x), run(x))
