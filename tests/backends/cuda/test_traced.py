"""The kernels' passes inside torch.compile, run on the CPU: as one graph, the same numbers both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elm_neuro import ELM, BranchELM, SpikeEvents, backends
from elm_neuro.backends.cuda._plans import Device
from tests.backends.alif.cases import calls as alif_calls
from tests.backends.compiled import (
    LAYERS,
    alif_is_the_same,
    as_one_graph,
    call_of,
    elm_is_the_same,
    is_compiled_once,
    network_is_the_same,
)
from tests.backends.cuda.fake_driver import FakeDriver
from tests.backends.equal_cases import cases
from tests.backends.network.cases import Call
from tests.backends.network.cases import calls as network_calls
from tests.tolerances import assert_close

HEALTH = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
MANY = settings(max_examples=60, deadline=None, suppress_health_check=HEALTH)
HOW = {"events": st.booleans(), "recompute_every": st.sampled_from([None, None, 8])}


@pytest.mark.slow
@MANY
@given(case=cases(), how=st.fixed_dictionaries(HOW))
def test_an_elm_is_one_graph_and_the_same(fake_driver: FakeDriver, case: Any, how: Any) -> None:
    neuron, x, *_ = case
    if how["recompute_every"] is not None:  # how many events lie in a part, compiled code does not know
        how = how | {"events": False}
    if len(neuron.cell.mlp) <= 2 and x.numel():
        elm_is_the_same("cuda", case, sparse_input="off", **how)


@pytest.mark.slow
@MANY
@given(call=alif_calls())
def test_a_lif_layer_is_one_graph_and_the_same(fake_driver: FakeDriver, call: Any) -> None:
    alif_is_the_same("cuda", call)


@pytest.mark.slow
@MANY
@given(call=network_calls(), architecture=st.sampled_from([80, 90]))
def test_an_elm_network_is_one_graph_and_the_same(fake_driver: FakeDriver, call: Call, architecture: int) -> None:
    fake_driver.properties = Device(multiprocessors=132, shared_bytes=166912, architecture=architecture)
    network_is_the_same("cuda", call)


@pytest.mark.grid(every=3)
@pytest.mark.parametrize("given", ["frames", "bytes", "events"])
@pytest.mark.parametrize("options", [{}, {"branch_activation": "tanh"}, {"tau_s": (1.0, 2.0, 3.0)}])
def test_every_input_of_every_way_to_the_first_layer(
    fake_driver: FakeDriver, given: str, options: dict[str, Any]
) -> None:
    """The filter behind the first layer, or on the branches; with lengths."""
    torch.manual_seed(0)
    neuron = BranchELM(
        6, 2, 4, num_branch=3, num_synapse_per_branch=3, routing="random", num_neuron=2, backend="cuda", **options
    )
    x = torch.poisson(torch.full((3, 7, 6), 0.4))
    arriving: Any = {"frames": x, "bytes": x.byte(), "events": SpikeEvents.from_frames(x)}[given]
    lengths = torch.tensor([7, 0, 4])
    found = []
    for call in (neuron, as_one_graph(lambda *inputs: neuron(*inputs))):
        y, after = call(arriving, None, lengths)
        (y.square().sum() + after.b.sum() + after.m.sum()).backward()
        found.append([y.detach(), *(part.detach() for part in after), *(p.grad for p in neuron.parameters())])
        neuron.zero_grad()
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(other, one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given"), [("ELM", "frames"), ("BranchELM", "events"), ("ALIF", "events"), ("ELMNetwork", "frames")]
)
def test_a_training_step_is_compiled_once_for_all_sizes(fake_driver: FakeDriver, name: str, given: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    layer.backend = "cuda"
    is_compiled_once(layer, given)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch, at a graph break
def test_events_that_are_recomputed_in_parts_break_the_graph_and_are_the_same(fake_driver: FakeDriver) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    neuron = ELM(6, 2, 3, backend="cuda", recompute_every=2)
    events = SpikeEvents.from_frames(torch.poisson(torch.full((2, 7, 6), 0.4)))
    y = torch.compile(lambda events: neuron(events)[0], backend="aot_eager")(events)
    assert_close(y, neuron(events)[0])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.14, inside opcheck
@pytest.mark.parametrize("given", ["frames", "events"])
def test_the_operator_passes_opcheck(fake_driver: FakeDriver, given: str) -> None:
    # sizes that leave nothing between the parts of what is kept: there is no number there, and opcheck looks
    neuron = BranchELM(32, 2, 8, num_branch=8, num_synapse_per_branch=4, routing="random")
    x = torch.rand(2, 4, 32, requires_grad=given == "frames")
    arriving: Any = SpikeEvents.from_frames(x) if given == "events" else x
    state = neuron.initial_state(2)._replace(m=torch.rand(2, 8, requires_grad=True))
    params = neuron.cell.effective_parameters()
    call = call_of(lambda x: backends.scan(x, params, state, backend="cuda"), arriving)
    torch.library.opcheck(torch.ops.elm_neuro.run_pass.default, call)
