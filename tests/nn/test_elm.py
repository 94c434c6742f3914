from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_neuro import ELM, BranchELM, ELMCell, ELMState, SpikeEvents, backends, last_output, suggest
from tests.strategies import frames, neurons
from tests.tolerances import assert_close

BACKENDS = ["reference", "torch"]


@settings(max_examples=40, deadline=None)
@given(neuron=neurons(), data=st.data(), backend=st.sampled_from(BACKENDS))
def test_splitting_a_sequence_and_carrying_the_state_changes_nothing(
    neuron: ELM, data: st.DataObject, backend: str
) -> None:
    neuron.backend = backend
    x = data.draw(frames(neuron))
    cuts = sorted(data.draw(st.lists(st.integers(0, x.shape[1]), max_size=3)))
    whole, end = neuron(x)
    state, parts = None, []
    for start, stop in itertools.pairwise([0, *cuts, x.shape[1]]):
        y, state = neuron(x[:, start:stop], state)
        parts.append(y)
    assert_close(torch.cat(parts, 1), whole)
    assert state is not None
    for part, expected in zip(state, end, strict=True):
        assert_close(part, expected)


@settings(max_examples=30, deadline=None)
@given(neuron=neurons(), data=st.data(), backend=st.sampled_from(BACKENDS))
def test_samples_do_not_see_each_other(neuron: ELM, data: st.DataObject, backend: str) -> None:
    neuron.backend = backend
    x = data.draw(frames(neuron))
    y, _ = neuron(x)
    for sample in range(x.shape[0]):
        assert_close(neuron(x[sample : sample + 1])[0], y[sample : sample + 1])


@settings(max_examples=30, deadline=None)
@given(neuron=neurons(), data=st.data(), backend=st.sampled_from(BACKENDS), events=st.booleans())
def test_padding_is_invisible_even_where_it_is_nan(
    neuron: ELM, data: st.DataObject, backend: str, events: bool
) -> None:
    neuron.backend = backend
    x = data.draw(frames(neuron))
    lengths = torch.tensor([data.draw(st.integers(0, x.shape[1])) for _ in range(x.shape[0])])
    start = ELMState(*(torch.randn_like(part) for part in neuron.cell.initial_state(x.shape[0])))
    padded = x.clone()
    for sample, length in enumerate(lengths.tolist()):
        padded[sample, length:] = 3.0 if events else torch.nan
    given_x: Any = (
        SpikeEvents.from_frames(padded) if events and x.ndim == 3 else padded.nan_to_num(3.0) if events else padded
    )
    y, end = neuron(given_x, start, lengths)
    for sample, length in enumerate(lengths.tolist()):
        alone = ELMState(start.b[sample : sample + 1], start.m[sample : sample + 1])
        expected, after = neuron(x[sample : sample + 1, :length], alone)
        assert_close(y[sample : sample + 1, :length], expected)
        assert (y[sample, length:] == 0).all()
        assert_close(end.b[sample : sample + 1], after.b)
        assert_close(end.m[sample : sample + 1], after.m)


@settings(max_examples=20, deadline=None)
@given(neuron=neurons(), data=st.data())
def test_the_cell_stepped_by_hand_is_the_sequence(neuron: ELM, data: st.DataObject) -> None:
    x = data.draw(frames(neuron, max_steps=9))
    state, steps = None, []
    for x_t in x.unbind(1):
        y_t, state = neuron.cell(x_t, state)
        steps.append(y_t)
    assert_close(torch.stack(steps, 1), neuron(x)[0])


@settings(max_examples=20, deadline=None)
@given(neuron=neurons(), data=st.data())
def test_a_population_is_its_neurons_side_by_side(neuron: ELM, data: st.DataObject) -> None:
    if neuron.config.num_neuron is None:
        return
    x = data.draw(frames(neuron))
    y, _ = neuron(x)
    for index in range(neuron.config.num_neuron):
        single = ELM.from_config(_alone(neuron.config), routing=_routing_of(neuron, index)).double()
        own = {
            name: value[index] if name not in ("cell.tau_s", "cell.input_to_synapse_indices") else value
            for name, value in neuron.state_dict().items()
            if name != "cell._extra_state"
        }
        own.pop("cell.input_to_synapse_indices", None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the state dict does not say", UserWarning)
            single.load_state_dict(own, strict=False)
        assert_close(single(x if x.ndim == 3 else x[:, :, index])[0], y[:, :, index])


def _alone(config: Any) -> Any:
    import dataclasses

    return dataclasses.replace(config, num_neuron=None)


def _routing_of(neuron: ELM, index: int) -> torch.Tensor | None:
    routing = neuron.cell.input_to_synapse_indices
    return None if routing is None else routing[index] if routing.ndim == 3 else routing


def test_outputs_of_a_population_flatten_on_request() -> None:
    torch.manual_seed(0)
    neuron = ELM(4, 3, num_memory=2, num_neuron=5)
    flat = copy.deepcopy(neuron)
    object.__setattr__(flat.cell.config, "flatten_output", True)
    x = torch.rand(2, 6, 4)
    assert_close(flat(x)[0], neuron(x)[0].flatten(-2))
    assert ELM(4, 3, num_memory=2, num_neuron=5, flatten_output=True)(x)[0].shape == (2, 6, 15)
    assert ELMCell(4, 3, num_memory=2, num_neuron=5, flatten_output=True)(x[:, 0])[0].shape == (2, 15)


def test_time_first_layout_is_the_transpose() -> None:
    torch.manual_seed(0)
    first = ELM(4, 3, num_memory=2)
    second = ELM(4, 3, num_memory=2, batch_first=False)
    second.load_state_dict(first.state_dict())
    x = torch.rand(2, 7, 4)
    lengths = torch.tensor([7, 2])
    assert_close(second(x.transpose(0, 1), lengths=lengths)[0], first(x, lengths=lengths)[0].transpose(0, 1))


@pytest.mark.parametrize("make", [lambda n: copy.deepcopy(n), lambda n: pickle.loads(pickle.dumps(n))])
@pytest.mark.parametrize("routing", ["random", "neuronio"])
def test_copies_compute_the_same_and_share_nothing(make: Any, routing: str) -> None:
    neuron = BranchELM(8, 2, num_memory=3, num_branch=2, num_synapse_per_branch=4, routing=routing, num_neuron=2)
    other = make(neuron)
    x = torch.rand(2, 9, 8)
    assert torch.equal(neuron(x)[0], other(x)[0])
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    assert not torch.equal(neuron(x)[0], other(x)[0])


def test_state_dict_carries_everything_random_into_another_neuron() -> None:
    first, second = (BranchELM(8, 2, num_branch=3, num_synapse_per_branch=4, routing="random") for _ in range(2))
    x = torch.rand(2, 9, 8)
    assert not torch.equal(first(x)[0], second(x)[0])
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x)[0], second(x)[0])


def test_the_same_generator_gives_the_same_neuron() -> None:
    first, second = (
        BranchELM(
            8, 2, num_branch=3, num_synapse_per_branch=4, routing="random", generator=torch.Generator().manual_seed(5)
        )
        for _ in range(2)
    )
    for (name, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_keeps_memory_and_traces_in_float32(backend: str) -> None:
    torch.manual_seed(0)
    neuron = BranchELM(40, 2, num_memory=8, num_branch=5, num_synapse_per_branch=16, backend=backend)
    x = torch.poisson(torch.full((2, 200, 40), 0.1))
    expected, _ = neuron(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = neuron(x)
        assert state.m.dtype == state.b.dtype == torch.float32
        y_events, _ = neuron(SpikeEvents.from_frames(x))
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in neuron.parameters())
    assert_close(y.float(), expected.detach(), dtype=torch.bfloat16)
    assert_close(y_events.float(), expected.detach(), dtype=torch.bfloat16)


@pytest.mark.parametrize("options", [{}, {"num_neuron": 3}, {"tau_s": (1.0, 2.0, 3.0, 4.0)}])
def test_the_cell_compiles_without_a_graph_break(options: dict[str, Any]) -> None:
    cell = ELMCell(4, 2, num_memory=3, **options)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    x = torch.rand(5, 4, requires_grad=True)
    start = ELMState(*(torch.rand_like(part) for part in cell.initial_state(5)))
    assert_close(compiled(x)[0], cell(x)[0])
    y, expected = compiled(x, start)[0], cell(x, start)[0]
    assert_close(y, expected)
    assert_close(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (y, expected)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler on its own modules
def test_the_cell_compiles_with_inductor() -> None:
    cell = BranchELM(8, 2, num_branch=2, num_synapse_per_branch=4).cell
    compiled = torch.compile(cell, fullgraph=True)
    x = torch.rand(5, 8)
    y, _ = compiled(x)
    assert_close(y, cell(x)[0])
    y.sum().backward()


@pytest.mark.parametrize("population", [None, 2])
@pytest.mark.parametrize("routing", [None, "neuronio", "random"])
def test_traces_add_up_to_what_the_neuron_computes(routing: str | None, population: int | None) -> None:
    options: dict[str, Any] = {"num_memory": 3, "num_neuron": population}
    neuron: ELM = (
        ELM(8, 2, **options)
        if routing is None
        else BranchELM(8, 2, num_branch=2, num_synapse_per_branch=4, routing=routing, **options)
    )
    x = torch.poisson(torch.full((2, 11, 8), 0.5))
    start = ELMState(*(torch.rand_like(part) for part in neuron.cell.initial_state(2)))
    traces = neuron.traces(x, start)
    y, end = neuron(x, start)
    assert_close(traces.output, y)
    assert_close(traces.synapse.sum(-1), traces.branch)
    assert_close(traces.branch[:, -1], end.b)
    assert_close(traces.memory[:, -1], end.m)
    per_branch = 1 if routing is None else 4
    assert traces.synapse.shape[-1] == per_branch


def test_learned_and_fixed_quantities_are_parameters_and_buffers() -> None:
    names = {name for name, _ in ELM(4, 1, learn_w_s=False, learn_tau_m=False).named_parameters()}
    assert names == {
        "cell.mlp.0.weight",
        "cell.mlp.0.bias",
        "cell.mlp.1.weight",
        "cell.mlp.1.bias",
        "cell.w_y.weight",
        "cell.w_y.bias",
    }
    assert {"cell._proto_w_s", "cell._proto_tau_m"} <= {name for name, _ in ELM(4, 1).named_parameters()}


@pytest.mark.parametrize(
    ("neuron", "count"),
    [
        # arXiv:2306.16922: 26.06K for ELM d_m 10 (table S6), 5.9K and 8.1K for Branch-ELM d_m 10 and 20
        (lambda: ELM(1278, 2, num_memory=10, learn_w_s=False), 26_022),
        (lambda: BranchELM(1278, 2, num_memory=10, num_branch=45, num_synapse_per_branch=100), 5_862),
        (
            lambda: BranchELM(1278, 2, num_memory=20, num_branch=45, num_synapse_per_branch=100, learn_tau_m=False),
            8_002,
        ),
        (lambda: ELM(1278, 2, num_memory=1, num_mlp_layers=0, learn_w_s=False), 1_285),
    ],
)
def test_parameter_counts_are_the_published_ones(neuron: Any, count: int) -> None:
    assert sum(p.numel() for p in neuron().parameters()) == count


def test_a_unit_on_its_bound_learns() -> None:
    neuron = ELM(3, 1, num_memory=4, tau_m_init=(1.0, 1000.0))
    y, _ = neuron(torch.ones(2, 30, 3))
    y.square().sum().backward()
    grad = neuron.cell._proto_tau_m.grad
    assert grad is not None and grad.isfinite().all() and (grad != 0).all()


def test_suggested_times_make_a_valid_neuron_that_remembers_the_sequence() -> None:
    for delta_t, num_steps in [(1.0, 16384), (10.0, 100), (0.1, 7), (100.0, 10), (1.0, 1)]:
        values = suggest(delta_t, num_steps)
        neuron = ELM(3, 1, num_memory=5, **values)
        assert_close(neuron.tau_m[[0, -1]].detach(), torch.tensor([delta_t, delta_t * num_steps]), scale=10.0)
        assert neuron(torch.zeros(1, 3, 3))[0].isfinite().all()


def test_last_output_reads_each_sample_at_its_end() -> None:
    y = torch.arange(24.0).view(2, 4, 3)
    assert torch.equal(last_output(y, torch.tensor([2, 4])), torch.stack([y[0, 1], y[1, 3]]))
    assert torch.equal(last_output(y), y[:, 3])
    with pytest.raises(ValueError, match=r"lengths must be \(2,\) numbers from 1 to 4, got \[0, 4\]"):
        last_output(y, torch.tensor([0, 4]))


def test_a_training_step_lowers_the_loss_on_either_backend_alike() -> None:
    x, target = torch.poisson(torch.full((4, 50, 6), 0.2)), torch.randn(4, 50, 1)
    losses = {}
    for backend in BACKENDS:
        torch.manual_seed(3)
        neuron = ELM(6, 1, num_memory=8, tau_m_init=(1.0, 30.0))
        optimizer = torch.optim.Adam(neuron.parameters(), lr=0.01)
        losses[backend] = []
        for _ in range(12):
            with backends.use(backend):
                loss = (neuron(x)[0] - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[backend].append(loss.item())
    assert losses["torch"][-1] < 0.95 * losses["torch"][0]
    assert_close(torch.tensor(losses["torch"]), torch.tensor(losses["reference"]), scale=10.0)


def test_units_at_both_ends_of_the_initial_range_learn_by_default() -> None:
    torch.manual_seed(0)
    neuron = ELM(8, 1, num_memory=6)
    before = neuron.tau_m.detach().clone()
    optimizer = torch.optim.Adam(neuron.parameters(), lr=5e-3)
    x, target = torch.poisson(torch.full((8, 60, 8), 0.3)), torch.randn(8, 60, 1)
    for _ in range(30):
        optimizer.zero_grad()
        (neuron(x)[0] - target).square().mean().backward()
        optimizer.step()
    assert ((neuron.tau_m.detach() / before - 1).abs()[[0, -1]] > 1e-3).all()


def test_the_callers_routing_tensor_is_not_shared() -> None:
    index = torch.randint(0, 6, (3, 4))
    kept = index.clone()
    neuron = BranchELM(6, 2, num_memory=2, num_branch=3, num_synapse_per_branch=4, routing=index)
    other = BranchELM(6, 2, num_memory=2, num_branch=3, num_synapse_per_branch=4, routing=(index + 1) % 6)
    neuron.load_state_dict(other.state_dict())
    assert torch.equal(index, kept)


def test_gradients_do_not_depend_on_autocast_around_the_backward_pass() -> None:
    neuron = ELM(6, 2, num_memory=4, backend="torch")
    x = torch.rand(2, 40, 6)
    gradients = []
    for enabled in (False, True):
        loss = neuron.cell.w_y.weight.sum() * 0 + neuron(x)[1].m.square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            gradients.append(torch.autograd.grad(loss, [neuron.cell.mlp[1].weight, neuron.cell._proto_tau_m]))  # type: ignore[list-item]
    for plain, lowered in zip(*gradients, strict=True):
        assert_close(lowered, plain)
