"""The faces against snnTorch's contract of a neuron (its own Alpha and Synaptic run as the control), its Lapicque as
the oracle of firing and reset, and nn.SpikingELM and nn.ALIF on the same weights.

Long: one file a host, as the source.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elm_neuro import SpikeEvents, SpikingELM
from elm_neuro import nn as neurons
from elm_neuro.functional import ATan, FastSigmoid
from tests.tolerances import assert_close

snn = pytest.importorskip("snntorch")
faces = pytest.importorskip("elm_neuro.adapters.snntorch", exc_type=ImportError)
SF = pytest.importorskip("snntorch.functional")
utils = pytest.importorskip("snntorch.utils")

SIZE = 6  # inputs and outputs: snnTorch's neurons give what they take
BATCH, STEPS = 4, 25
BRANCHES = {"num_branch": 3, "num_synapse_per_branch": 4}


def make_elm(**options: Any) -> Any:
    return faces.ELM(SIZE, SIZE, num_memory=5, **{"threshold": 0.1, "w_s_init": 1.0, **options})


def make_branch_elm(**options: Any) -> Any:
    return faces.BranchELM(SIZE, SIZE, num_memory=5, **{"threshold": 0.1, "w_s_init": 1.0, **BRANCHES, **options})


def make_population(**options: Any) -> Any:
    return faces.ELM(SIZE, 1, num_memory=5, num_neuron=SIZE, **{"threshold": 0.1, "w_s_init": 1.0, **options})


def make_alif(**options: Any) -> Any:
    return faces.ALIF(SIZE, SIZE, latency=2.0, recurrent=True, **options)


OURS: dict[str, Callable[..., Any]] = {
    "ELM": make_elm,
    "BranchELM": make_branch_elm,
    "population": make_population,
    "ALIF": make_alif,
}
THEIRS: dict[str, Callable[..., Any]] = {
    "snntorch.Alpha": lambda **options: snn.Alpha(0.9, 0.8, **options),
    "snntorch.Synaptic": lambda **options: snn.Synaptic(0.9, 0.8, **options),
}
ELMS = {name: OURS[name] for name in ("ELM", "BranchELM", "population")}


def params(cases: dict[str, Callable[..., Any]]) -> Any:
    return pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in cases.items()])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of our classes, one per call: proof that the test ran them, or with a host's neuron that it did not."""
    calls: list[str] = []
    for face in (faces.ELM, faces.ALIF, faces.ELMSequence):

        def counted(self: Any, *args: Any, forward: Any = face.forward, **kwargs: Any) -> Any:
            calls.append(type(self).__name__)
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(face, "forward", counted)
    return calls


def spikes_in(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.poisson(torch.full(shape, 0.7)).to(dtype)


def frames(dtype: torch.dtype = torch.float32) -> Tensor:
    return spikes_in(STEPS, BATCH, SIZE, dtype=dtype)


def run_explicit(neuron: Any, x: Tensor) -> list[Tensor]:
    """Records of (spk, *states), each (time, ...), with the states handed from step to step."""
    states, records = neuron.reset_mem(), []
    for x_t in x:
        out = neuron(x_t, *states)
        states = out[1:]
        records.append(out)
    return [torch.stack(record) for record in zip(*records, strict=True)]


def run_hidden(neuron: Any, x: Tensor) -> Tensor:
    return torch.stack([neuron(x_t) for x_t in x])


# --- the contract of an snnTorch neuron


@params(OURS | THEIRS)
def test_states_are_as_many_as_the_call_takes_and_gives_and_empty_before_use(
    make: Callable[..., Any], ran: list[str]
) -> None:
    neuron = make()
    states = neuron.reset_mem()
    assert all(state.numel() == 0 for state in states)
    spk, *after = neuron(spikes_in(BATCH, SIZE), *states)
    assert len(after) == len(states) and spk.shape == after[-1].shape == (BATCH, SIZE)
    assert len(ran) == isinstance(neuron, faces.Neuron)


@params(OURS | THEIRS)
def test_hidden_states_give_the_spikes_of_explicit_ones(make: Callable[..., Any], ran: list[str]) -> None:
    x = frames()
    explicit, hidden, everything = make(), make(init_hidden=True), make(init_hidden=True, output=True)
    hidden.load_state_dict(explicit.state_dict())
    everything.load_state_dict(explicit.state_dict())
    records = run_explicit(explicit, x)
    assert 0 < records[0].detach().mean() < 1
    assert torch.equal(run_hidden(hidden, x), records[0])
    shown = [torch.stack(record) for record in zip(*[everything(x_t) for x_t in x], strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(shown, records, strict=True))
    assert len(ran) == 3 * STEPS * isinstance(explicit, faces.Neuron)


@params(OURS | THEIRS)
def test_states_with_init_hidden_are_a_type_error(make: Callable[..., Any]) -> None:
    neuron = make(init_hidden=True)
    with pytest.raises(
        TypeError,
        match=re.escape("syn, memory, mem must be left out with init_hidden=True") if make in ELMS.values() else None,
    ):
        neuron(spikes_in(BATCH, SIZE), *[torch.zeros(BATCH, SIZE)] * len(neuron.reset_mem()))


@params(OURS | THEIRS)
def test_hidden_states_stay_out_of_the_state_dict_and_it_loads_strictly(make: Callable[..., Any]) -> None:
    neuron = make(init_hidden=True)
    before = set(neuron.state_dict())
    run_hidden(neuron, frames())
    assert set(neuron.state_dict()) == before
    assert neuron.mem.shape == (BATCH, SIZE)
    other = make(init_hidden=True)
    other.load_state_dict(neuron.state_dict(), strict=True)
    neuron.reset_mem()
    x = frames()
    assert torch.equal(run_hidden(other, x), run_hidden(neuron, x))


@params(OURS | THEIRS)
def test_classmethods_reset_and_detach_every_neuron_of_the_class(make: Callable[..., Any]) -> None:
    first, second = make(init_hidden=True), make(init_hidden=True)
    x = frames().requires_grad_()
    fresh = run_hidden(first, x)
    second(x[0])
    assert first.mem.requires_grad
    type(first).detach_hidden()
    assert not first.mem.requires_grad and not second.mem.requires_grad and first.mem.shape == (BATCH, SIZE)
    type(first).reset_hidden()
    assert torch.equal(run_hidden(first, x), fresh)


@params(OURS | THEIRS)
def test_it_stands_in_a_sequential_between_neighbours(make: Callable[..., Any], ran: list[str]) -> None:
    net = nn.Sequential(
        nn.Linear(3, SIZE),
        make(init_hidden=True),
        nn.Linear(SIZE, 5),
        snn.Leaky(0.9, init_hidden=True),
        nn.Linear(5, 5),
    )
    net = (
        net.append(snn.Synaptic(0.9, 0.8, init_hidden=True))
        .append(nn.Linear(5, SIZE))
        .append(make(init_hidden=True, output=True))
    )
    with torch.no_grad():
        net[0].bias.fill_(1.0)
    out = [net(x_t) for x_t in torch.rand(STEPS, BATCH, 3)]
    spk, mem = torch.stack([step[0] for step in out]), torch.stack([step[-1] for step in out])
    assert spk.shape == mem.shape == (STEPS, BATCH, SIZE)
    target = torch.arange(BATCH) % SIZE
    (SF.ce_rate_loss()(spk, target) + SF.ce_max_membrane_loss()(mem, target)).backward()
    assert net[0].weight.grad.abs().sum() > 0
    assert len(ran) == (2 * STEPS if isinstance(net[1], faces.Neuron) else 0)


@params(ELMS | THEIRS)
def test_spikes_are_where_the_membrane_is_above_the_threshold(make: Callable[..., Any]) -> None:
    spk, *_, mem = run_explicit(make(threshold=0.2), frames())
    assert torch.equal(spk, (mem > 0.2).float())


@params(ELMS | THEIRS)
def test_a_learned_threshold_is_a_parameter_with_a_gradient(make: Callable[..., Any]) -> None:
    neuron = make(learn_threshold=True)
    run_explicit(neuron, frames())[0].sum().backward()
    assert dict(neuron.named_parameters())["threshold"].grad != 0


@params(OURS | THEIRS)
def test_a_disabled_surrogate_passes_no_gradient(make: Callable[..., Any]) -> None:
    spk = run_explicit(make(surrogate_disable=True), frames().requires_grad_())[0]
    assert not spk.requires_grad


# --- firing and reset: snnTorch's own neurons, without memory, fed with the bare readout


def memoryless(**options: Any) -> Any:
    """Membrane is input: beta = 1 - time_step / (R C) = 0."""
    return snn.Lapicque(R=1.0, C=1.0, time_step=1.0, **options)


def bare_readout(neuron: Any, x: Tensor) -> Tensor:
    y, _ = neuron.core(x.transpose(0, 1))
    return y.transpose(0, 1)


@params(ELMS)
@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
@pytest.mark.parametrize("threshold", [0.1, 0.0, -0.05])
def test_reset_is_that_of_lapicque_without_memory(make: Callable[..., Any], reset: str, threshold: float) -> None:
    x = frames()
    neuron, oracle = (
        make(reset_mechanism=reset, threshold=threshold),
        memoryless(reset_mechanism=reset, threshold=threshold),
    )
    spk, _, _, mem = run_explicit(neuron, x)
    expected_spk, expected_mem, state = [], [], torch.zeros(BATCH, SIZE)
    for y_t in bare_readout(neuron, x):
        s, state = oracle(y_t, state)
        expected_spk.append(s)
        expected_mem.append(state)
    assert_close(mem, torch.stack(expected_mem))
    assert torch.equal(spk, torch.stack(expected_spk))


@params(ELMS)
def test_inhibition_leaves_the_largest_membrane_as_in_lapicque(make: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match="Inhibition is an unstable feature"):
        neuron = make(inhibition=True)
    with pytest.warns(UserWarning, match="Inhibition is an unstable feature"):
        oracle = memoryless(reset_mechanism="none", threshold=0.1, inhibition=True)
    x = frames()
    spk = run_explicit(neuron, x)[0]
    expected = torch.stack([oracle(y_t, torch.zeros(BATCH, SIZE))[0] for y_t in bare_readout(neuron, x)])
    assert torch.equal(spk, expected) and 0 < spk.sum(-1).max() <= 1


@params(ELMS)
def test_quantised_states_lie_on_the_levels_and_drive_the_next_step(make: Callable[..., Any]) -> None:
    quantise = pytest.importorskip("snntorch.functional.quant").state_quant(
        num_bits=5, threshold=1.0, upper_limit=2.0, lower_limit=2.0
    )
    neuron, x = make(state_quant=quantise), frames()
    spk, syn, memory, mem = run_explicit(neuron, x)
    state = neuron.core.cell.initial_state(BATCH)
    for t in range(STEPS):
        y, after = neuron.core.cell(x[t], state)
        state = neurons.ELMState(quantise(after.b), quantise(after.m))
        assert torch.equal(syn[t], state.b) and torch.equal(memory[t], state.m) and torch.equal(mem[t], quantise(y))
    assert torch.equal(spk, (mem > 0.1).float())


@params(OURS)
def test_the_graded_factor_is_applied_once(make: Callable[..., Any]) -> None:
    x = frames()
    plain, graded = make(), make(graded_spikes_factor=2.5, learn_graded_spikes_factor=True)
    graded.load_state_dict(plain.state_dict() | {"graded_spikes_factor": torch.tensor(2.5)})
    spk = run_explicit(graded, x)[0]
    assert torch.equal(spk, 2.5 * run_explicit(plain, x)[0])
    spk.sum().backward()
    assert_close(graded.graded_spikes_factor.grad, spk.detach().sum() / 2.5)


def test_the_reset_of_a_loaded_neuron_is_the_saved_one() -> None:
    saved, loaded = make_elm(reset_mechanism="subtract"), make_elm()
    loaded.load_state_dict(saved.state_dict())
    x = frames()
    assert loaded.reset_mechanism == "subtract"
    assert torch.equal(run_explicit(loaded, x)[3], run_explicit(saved, x)[3])
    loaded.reset_mechanism = "none"
    assert_close(run_explicit(loaded, x)[3], bare_readout(loaded, x))


def test_integer_thresholds_become_numbers_that_can_be_learned_and_tensors_are_not_shared() -> None:
    mine = torch.tensor([0.1] * SIZE)
    assert make_elm(threshold=1, learn_threshold=True).threshold.dtype == torch.float32
    neuron = make_elm(threshold=mine)
    neuron.threshold.add_(1.0)
    assert mine.eq(0.1).all()


# --- the same numbers as the neurons of elm_neuro.nn


@params(ELMS)
@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
def test_steps_and_sequences_are_those_of_spiking_elm_with_its_gradients(
    make: Callable[..., Any], reset: str, ran: list[str]
) -> None:
    step = make(reset_mechanism=reset).double()
    config = step.core.config
    options = {
        "num_memory": 5,
        "threshold": 0.1,
        "num_neuron": config.num_neuron,
        "reset_mechanism": reset,
        "output": True,
    }
    branches = {} if config.num_branch is None else BRANCHES
    sequence = faces.ELMSequence(SIZE, config.output_size, **options, **branches).double()
    sequence.load_state_dict(step.state_dict(), strict=True)
    twin = SpikingELM(
        neurons.ELM.from_config(config, routing=step.core.cell.input_to_synapse_indices), threshold=0.1, reset=reset
    ).double()
    twin.core.load_state_dict(step.core.state_dict())
    x = frames(torch.float64)
    weight = torch.randn(STEPS, BATCH, SIZE, dtype=torch.float64)
    stepped, _, _, mem = run_explicit(step, x)
    whole, readout = sequence(x)
    expected, end = twin(x.transpose(0, 1))
    assert 0 < expected.mean() < 1
    assert torch.equal(stepped, expected.transpose(0, 1)) and torch.equal(whole, stepped)
    assert_close(mem, readout)
    assert_close(readout[-1], end.v)
    for spk in (stepped, whole, expected.transpose(0, 1)):
        (spk * weight).sum().backward()
    for (name, ours), also, theirs in zip(
        step.core.named_parameters(), sequence.core.parameters(), twin.core.parameters(), strict=True
    ):
        assert theirs.grad is not None and ours.grad is not None and also.grad is not None, name
        assert_close(ours.grad, theirs.grad)
        assert_close(also.grad, theirs.grad)
    assert ran.count("ELMSequence") == 1 and len(ran) == STEPS + 1


def test_alif_is_the_layer_of_nn_with_its_gradients(ran: list[str]) -> None:
    face = make_alif(spike_grad=FastSigmoid()).double()
    layer = neurons.ALIF(SIZE, SIZE, latency=2.0, recurrent=True).double()
    layer.load_state_dict(face.core.state_dict())
    x = frames(torch.float64)
    spk, past, adaptation, mem = run_explicit(face, x)
    expected, end = layer(x.transpose(0, 1))
    assert torch.equal(spk, expected.transpose(0, 1)) and 0 < spk.mean() < 1
    assert torch.equal(past[-1], end.s)
    assert_close(adaptation[-1], end.a)
    assert_close(mem[-1], end.v)
    weight = torch.randn_like(spk)
    (spk * weight).sum().backward()
    (expected.transpose(0, 1) * weight).sum().backward()
    for (name, ours), theirs in zip(face.core.named_parameters(), layer.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, name
        assert_close(ours.grad, theirs.grad)
    assert ran == ["ALIF"] * STEPS


@params(OURS)
def test_the_default_surrogate_is_snntorchs_default(make: Callable[..., Any]) -> None:
    ours, theirs, x = make(), make(spike_grad=snn.surrogate.atan()), frames()
    theirs.load_state_dict(ours.state_dict())
    for neuron in (ours, theirs):
        run_explicit(neuron, x)[0].square().sum().backward()
    for a, b in zip(ours.core.parameters(), theirs.core.parameters(), strict=True):
        assert_close(a.grad, b.grad)


@params(OURS)
@pytest.mark.parametrize("name", ["atan", "fast_sigmoid", "straight_through_estimator", "triangular"])
def test_snntorchs_surrogates_work_in_float32(make: Callable[..., Any], name: str) -> None:
    neuron = make(spike_grad=getattr(snn.surrogate, name)())
    spk = run_explicit(neuron, frames())[0]
    spk.sum().backward()
    assert set(spk.unique().tolist()) <= {0.0, 1.0}
    assert any(p.grad.abs().sum() > 0 for p in neuron.core.parameters())


@params(OURS)
def test_a_surrogate_that_gives_float32_is_named_in_float64(make: Callable[..., Any]) -> None:
    neuron = make(spike_grad=snn.surrogate.atan()).double()
    with pytest.raises(
        TypeError,
        match=r"(spike_grad|surrogate) must keep the dtype torch.float64 of the (neuron|membrane), "
        r"got (spikes of )?torch.float32",
    ):
        neuron(spikes_in(BATCH, SIZE, dtype=torch.float64))


def test_a_quantiser_that_gives_float32_is_named_in_float64() -> None:
    neuron = make_elm(state_quant=lambda state: state.float().round()).double()
    with pytest.raises(
        TypeError, match=r"state_quant must keep the dtype torch.float64 of the neuron, got torch.float32"
    ):
        neuron(spikes_in(BATCH, SIZE, dtype=torch.float64))


# --- populations and sequences


def test_a_population_of_one_output_each_is_a_layer_of_spike_trains() -> None:
    layer = faces.ELM(SIZE, 1, num_memory=4, num_neuron=32)
    spk, syn, memory, mem = layer(spikes_in(BATCH, SIZE))
    assert spk.shape == mem.shape == (BATCH, 32) and syn.shape == (BATCH, 32, SIZE) and memory.shape == (BATCH, 32, 4)
    assert layer(spikes_in(BATCH, 32, SIZE))[0].shape == (BATCH, 32)
    apart = faces.ELM(
        SIZE, 2, num_memory=4, num_neuron=3, flatten_output=False, threshold=torch.rand(3, 2), reset_mechanism="zero"
    )
    assert apart(spikes_in(BATCH, SIZE))[0].shape == (BATCH, 3, 2)
    several = faces.ELMSequence(SIZE, 2, num_memory=4, num_neuron=3, threshold=torch.rand(6))
    assert several(spikes_in(STEPS, BATCH, 3, SIZE)).shape == (STEPS, BATCH, 6)


@pytest.mark.parametrize("reset", ["none", "subtract"])
def test_a_sequence_with_hidden_states_goes_on_where_it_ended(reset: str) -> None:
    x = frames()
    whole = faces.ELMSequence(SIZE, SIZE, num_memory=5, threshold=0.1, reset_mechanism=reset)
    parts = faces.ELMSequence(SIZE, SIZE, num_memory=5, threshold=0.1, reset_mechanism=reset, init_hidden=True)
    parts.load_state_dict(whole.state_dict())
    cut = torch.cat([parts(x[:9]), parts(x[9:9]), parts(x[9:])])
    assert torch.equal(cut, whole(x)) and torch.equal(whole(x), whole(x))
    parts.reset_mem()
    assert torch.equal(parts(x), cut)


@pytest.mark.parametrize("reset", ["none", "subtract"])
def test_lengths_zero_what_lies_past_them_and_change_nothing_before(reset: str) -> None:
    neuron = faces.ELMSequence(SIZE, SIZE, num_memory=5, threshold=-0.1, reset_mechanism=reset, output=True)
    x, lengths = frames(), torch.tensor([STEPS, 7, 1, 0])
    for record, full in zip(neuron(x, lengths), neuron(x), strict=True):
        for sample, length in enumerate(lengths.tolist()):
            assert torch.equal(record[:length, sample], full[:length, sample])
            assert not record[length:, sample].any()


def test_events_are_the_frames_they_stand_for() -> None:
    neuron, x = faces.ELMSequence(SIZE, SIZE, num_memory=5, threshold=0.1, output=True), frames()
    dense, sparse = neuron(x), neuron(SpikeEvents.from_frames(x.transpose(0, 1)))
    assert torch.equal(dense[0], sparse[0])
    assert_close(dense[1], sparse[1])


def test_a_sequence_feeds_a_state_leaky() -> None:
    stateleaky = getattr(snn, "StateLeaky", None)
    if stateleaky is None:
        assert snn.__version__ < "1"
        return
    net = nn.Sequential(
        faces.ELMSequence(SIZE, 8, num_memory=5, threshold=0.1), nn.Linear(8, 3), stateleaky(beta=0.9, channels=3)
    )
    spk, mem = net(frames())
    assert spk.shape == mem.shape == (STEPS, BATCH, 3)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((STEPS, SIZE, BATCH), r"x must have shape \(time, batch, 6\), got \(25, 6, 4\)"),
        ((STEPS, SIZE), r"x must have shape \(time, batch, 6\), got \(25, 6\)"),
        (
            (BATCH, STEPS, SIZE),
            r"x must be time-first, \(time, batch, 6\), got \(4, 25, 6\) for a batch of 4: batch-first\?",
        ),
    ],
)
def test_sequences_in_another_order_are_refused_where_the_shape_shows_it(shape: tuple[int, ...], message: str) -> None:
    neuron = faces.ELMSequence(SIZE, 2, num_memory=5, init_hidden=True)
    neuron(frames())
    with pytest.raises(ValueError, match=message):
        neuron(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        faces.ELMSequence(SIZE, 2, num_memory=5)(torch.zeros(shape), torch.full((BATCH,), 2))


# --- hidden states in practice


@params(OURS)
def test_another_batch_needs_a_reset_and_then_works(make: Callable[..., Any]) -> None:
    neuron = make(init_hidden=True)
    neuron(spikes_in(BATCH, SIZE))
    with pytest.raises(ValueError, match=r"x must have the hidden states' batch of 4 until reset_mem\(\), got 3"):
        neuron(spikes_in(3, SIZE))
    neuron.reset_mem()
    assert neuron(spikes_in(3, SIZE)).shape == (3, SIZE)


@params(OURS)
@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deepcopy", "pickle"]
)
def test_copies_go_on_from_the_same_states_on_their_own(make: Callable[..., Any], how: Callable[[Any], Any]) -> None:
    net, x = nn.Sequential(make(init_hidden=True)), frames()
    run_hidden(net, x)
    twin = how(net)
    assert net[0].mem.grad_fn is not None and twin[0].mem.grad_fn is None
    assert torch.equal(run_hidden(net, x), run_hidden(twin, x))
    kept = twin[0].mem.clone()
    net(x[0])
    assert torch.equal(twin[0].mem, kept)
    type(twin[0]).reset_hidden()
    assert twin[0].mem.numel() == 0  # the copy is known to the class


@params(OURS)
def test_nothing_keeps_a_neuron_alive_that_its_owner_dropped(make: Callable[..., Any]) -> None:
    gc.collect()
    alive, listed = len(faces.Neuron._alive), list(snn.SpikingNeuron.instances)
    made = [make(init_hidden=True) for _ in range(50)]
    for neuron in made:
        neuron(spikes_in(2, SIZE))
    made += copy.deepcopy(made)
    watched = [weakref.ref(neuron) for neuron in made]
    assert len(faces.Neuron._alive) == alive + 100
    del made, neuron
    gc.collect()
    assert sum(ref() is not None for ref in watched) == 0
    assert len(faces.Neuron._alive) == alive
    assert len(snn.SpikingNeuron.instances) == len(listed) and all(
        a is b for a, b in zip(snn.SpikingNeuron.instances, listed, strict=True)
    )


def test_a_neuron_that_could_not_be_made_leaves_no_trace() -> None:
    listed = len(snn.SpikingNeuron.instances)
    with pytest.raises(ValueError, match="reset_mechanism must be one of"):
        make_elm(reset_mechanism="never")
    with pytest.raises(
        UserWarning, match="Inhibition"
    ):  # warnings are errors here, and this one is raised inside snnTorch's constructor
        make_elm(inhibition=True)
    assert len(snn.SpikingNeuron.instances) == listed


@params(OURS)
def test_detaching_between_chunks_is_truncated_backpropagation(make: Callable[..., Any]) -> None:
    neuron, x = make(init_hidden=True), frames()
    for chunk in x.split(5):
        run_hidden(neuron, chunk).sum().backward()
        neuron.detach_mem()
    run_hidden(neuron, x[:5]).sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        run_hidden(neuron, x[:5]).sum().backward()


@params(OURS)
def test_states_follow_dtype_and_device(make: Callable[..., Any]) -> None:
    neuron = make(init_hidden=True)
    first = neuron(spikes_in(BATCH, SIZE))
    neuron.double()
    assert neuron.mem.dtype == torch.float64 and first.dtype == torch.float32
    assert neuron(spikes_in(BATCH, SIZE, dtype=torch.float64)).dtype == torch.float64
    neuron.to("meta")
    assert neuron.mem.device.type == "meta"
    assert neuron(torch.zeros(BATCH, SIZE, dtype=torch.float64, device="meta")).device.type == "meta"
    fresh = make().to("meta")
    assert all(
        part.device.type == "meta" for part in fresh(torch.zeros(BATCH, SIZE, device="meta"), *fresh.reset_mem())
    )
    low = make().to(torch.bfloat16)
    spk, *states = low(spikes_in(BATCH, SIZE, dtype=torch.bfloat16))
    assert spk.dtype == torch.bfloat16 and all(part.dtype == torch.float32 for part in states)


@params(OURS)
def test_autocast_keeps_states_in_float32(make: Callable[..., Any]) -> None:
    neuron = nn.Sequential(nn.Linear(SIZE, SIZE), make(init_hidden=True, output=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for x_t in frames():
            spk, *states = neuron(x_t)
    assert all(state.dtype == torch.float32 for state in states)
    spk.float().sum().backward()


@pytest.mark.grid(every=2)
@params(OURS)
@pytest.mark.parametrize("hidden", [pytest.param(False, marks=pytest.mark.slow), True], ids=["explicit", "hidden"])
# dynamo of torch 2.13 warns of what it does itself: tracing an autograd.Function, looking at the states' grad
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning"
)
def test_the_step_compiles_without_a_graph_break(make: Callable[..., Any], hidden: bool) -> None:
    torch._dynamo.reset()
    neuron, x = make(init_hidden=hidden, output=hidden), frames()[:4]
    plain = copy.deepcopy(neuron)
    compiled = torch.compile(neuron, fullgraph=True, backend="aot_eager")
    states, expected = (() if hidden else neuron.reset_mem()), (() if hidden else neuron.reset_mem())
    for x_t in x:
        out, right = compiled(x_t, *states), plain(x_t, *expected)
        if not hidden:
            states, expected = out[1:], right[1:]
        for a, b in zip(out, right, strict=True):
            assert_close(a, b)
    out[0].sum().backward()
    torch._dynamo.reset()


# --- snnTorch's helpers


def test_reset_reaches_nested_neurons_of_this_network_only() -> None:
    def make() -> nn.Sequential:
        inner = nn.Sequential(
            make_elm(init_hidden=True), nn.Sequential(snn.Leaky(0.9, init_hidden=True), make_alif(init_hidden=True))
        )
        return nn.Sequential(nn.Linear(SIZE, SIZE), inner, nn.Linear(SIZE, SIZE), snn.Alpha(0.9, 0.8, init_hidden=True))

    net, other, x = make(), make(), frames()
    fresh = run_hidden(net, x)
    run_hidden(other, x)
    kept = [module.mem.clone() for module in other.modules() if hasattr(module, "mem")]
    faces.reset(net)
    assert torch.equal(run_hidden(net, x), fresh)
    now = [module.mem for module in other.modules() if hasattr(module, "mem")]
    assert len(now) == 4 and all(torch.equal(a, b) for a, b in zip(now, kept, strict=True))
    faces.reset(net)
    net(x[0, :2])


def test_reset_wants_a_module() -> None:
    with pytest.raises(TypeError, match="net must be a module, got list"):
        faces.reset([make_elm()])


def test_utils_reset_forgets_our_states_unless_told_not_to() -> None:
    net = nn.Sequential(
        nn.Sequential(make_elm(init_hidden=True)), make_alif(init_hidden=True), snn.Leaky(0.9, init_hidden=True)
    )
    other = nn.Sequential(make_elm(init_hidden=True))
    x = frames()
    first = run_hidden(net, x)
    run_hidden(other, x)
    utils.reset(net)
    assert net[0][0].mem.numel() == net[1].mem.numel() == 0 and not net[2].mem.any()
    assert other[0].mem.shape == (BATCH, SIZE)
    assert torch.equal(run_hidden(net, x), first)
    first.sum().backward()
    utils.reset(net)
    run_hidden(net, x).sum().backward()  # no second time through the first graph


def test_the_patch_of_importing_is_undone_and_made_again() -> None:
    program = """
import sys, torch
from snntorch import utils
from elm_neuro.adapters import snntorch as faces
net = torch.nn.Sequential(faces.ELM(3, 2, num_memory=2, init_hidden=True))
def after_reset():
    net(torch.ones(4, 3)), utils.reset(net)
    return net[0].mem.numel()
sizes = [after_reset()]
faces.unpatch()
sizes.append(after_reset())
with faces.patch(), faces.patch():
    sizes.append(after_reset())
sizes.append(after_reset())
assert sys.modules["snntorch.backprop"].TBPTT.__module__ == "snntorch.backprop"
print(sizes)
"""
    for patched, sizes in (("1", [0, 8, 0, 8]), ("0", [8, 8, 0, 8])):
        env = os.environ | {"ELM_NEURO_PATCH_SNNTORCH": patched}
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False)
        assert ran.stdout.strip() == str(sizes), ran.stderr


@pytest.mark.parametrize("last", ["ELM", "BranchELM", "population", "ALIF"])
@pytest.mark.parametrize("hidden", ["Leaky", "ALIF", "ELM"])
def test_backprop_trains_networks_that_end_in_ours_when_patched(last: str, hidden: str) -> None:
    between = snn.Leaky(0.9, init_hidden=True) if hidden == "Leaky" else OURS[hidden](init_hidden=True)
    net = nn.Sequential(nn.Linear(3, SIZE), between, OURS[last](init_hidden=True, output=True))
    with torch.no_grad():
        net[0].bias.fill_(1.0)
    loader = [(torch.rand(BATCH, 3), torch.arange(BATCH)), (torch.rand(3, 3), torch.arange(3))]
    before = [p.detach().clone() for p in net.parameters()]
    with faces.patch():
        backprop = sys.modules["snntorch.backprop"]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        common: dict[str, Any] = {
            "optimizer": optimizer,
            "criterion": SF.ce_rate_loss(),
            "num_steps": 6,
            "time_var": False,
        }
        losses = [
            backprop.BPTT(net, loader, **common),
            backprop.TBPTT(net, loader, K=2, **common),
            backprop.RTRL(net, loader, **common),
        ]
        timed = [(spikes_in(5, BATCH, 3), torch.arange(BATCH))]
        losses.append(backprop.BPTT(net, timed, optimizer=optimizer, criterion=SF.ce_max_membrane_loss()))
    assert all(torch.isfinite(loss) for loss in losses)
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert not optimizer._optimizer_step_post_hooks


def test_backprop_wants_the_membrane_of_the_last_neuron() -> None:
    net = nn.Sequential(nn.Linear(3, SIZE), make_elm(init_hidden=True))
    with faces.patch(), pytest.raises(ValueError, match="net must end in a neuron with output=True, got ELM"):
        sys.modules["snntorch.backprop"].BPTT(
            net, [], torch.optim.SGD(net.parameters(), lr=0.1), SF.ce_rate_loss(), num_steps=3, time_var=False
        )


@params(OURS)
def test_probes_record_spikes_and_membranes(make: Callable[..., Any]) -> None:
    probe = pytest.importorskip("snntorch.functional.probe")
    net = nn.Sequential(nn.Linear(SIZE, SIZE), make(init_hidden=True))
    spikes, membranes = (
        probe.OutputMonitor(net, instance=faces.Neuron),
        probe.AttributeMonitor("mem", False, net, instance=faces.Neuron),
    )
    out = run_hidden(net, frames())
    assert spikes.monitored_layers == ["1"] and torch.equal(torch.stack(spikes["1"]), out)
    assert len(membranes.records) == STEPS and torch.equal(membranes.records[-1], net[1].mem)


@params(OURS)
def test_spikegen_losses_and_accuracies_take_it_as_their_own(make: Callable[..., Any]) -> None:
    spikegen = pytest.importorskip("snntorch.spikegen")
    x = spikegen.rate(torch.rand(BATCH, SIZE), num_steps=STEPS)
    target = torch.arange(BATCH)
    spk, *_, mem = run_explicit(make(), x)
    for loss in (SF.ce_rate_loss(), SF.ce_count_loss(), SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)):
        assert torch.isfinite(loss(spk, target))
    assert torch.isfinite(SF.ce_max_membrane_loss()(mem, target) + SF.mse_membrane_loss()(mem, target))
    assert SF.accuracy_rate(spk, target) == float((spk.sum(0).argmax(-1) == target).float().mean())


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_elm(init_hidden=True),
        lambda: make_alif(init_hidden=True),
        lambda: make_population(init_hidden=True),
    ],
)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "between"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of nirtorch, about snnTorch's use of it
def test_nir_export_refuses_rather_than_write_another_neuron(make: Callable[[], Any], alone: bool) -> None:
    export = pytest.importorskip("snntorch.export_nir")
    net = nn.Sequential(make()) if alone else nn.Sequential(nn.Linear(SIZE, SIZE), make(), nn.Linear(SIZE, 2))
    with pytest.raises(ValueError, match=r"Unknown element type|empty graph"):
        export.export_to_nir(net, torch.zeros(1, SIZE), ignore_dims=[0])


# --- bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda n: n([0.0] * SIZE), TypeError, "x must be a tensor, got list"),
        (lambda n: n(torch.zeros(BATCH, 5)), ValueError, r"x must have shape \(batch, 6\), got \(4, 5\)"),
        (lambda n: n(torch.zeros(SIZE)), ValueError, r"x must have shape \(batch, 6\), got \(6,\)"),
        (lambda n: n(torch.tensor(1.0)), ValueError, r"x must have shape \(batch, 6\), got \(\)"),
        (lambda n: n(torch.zeros(STEPS, BATCH, SIZE)), ValueError, r"x must have shape \(batch, 6\), got \(25, 4, 6\)"),
        (
            lambda n: n(torch.zeros(BATCH, SIZE, dtype=torch.float64)),
            TypeError,
            "x must have dtype torch.float32 like the parameters",
        ),
        (
            lambda n: n(torch.zeros(BATCH, SIZE, dtype=torch.int64)),
            TypeError,
            "x must have dtype torch.float32 like the parameters",
        ),
        (
            lambda n: n(torch.zeros(BATCH, SIZE, device="meta")),
            ValueError,
            "x must be on cpu like the parameters, got meta",
        ),
    ],
)
@pytest.mark.parametrize("name", ["ELM", "BranchELM", "ALIF"])
def test_input_that_does_not_fit_is_named(
    name: str, call: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(OURS[name]())


@params(OURS)
def test_states_that_do_not_fit_are_named_and_never_taken_for_zeros(make: Callable[..., Any]) -> None:
    neuron, x = make(), spikes_in(BATCH, SIZE)
    states = neuron(x)[1:]
    for i, (name, state) in enumerate(zip(neuron.state_names, states, strict=True)):

        def call(wrong: Any, i: int = i) -> None:
            neuron(x, *states[:i], wrong, *states[i + 1 :])

        shape = re.escape(f"{name} must have shape {tuple(state.shape)}, got")
        for wrong in (state[:2], torch.zeros(0), state[..., :1], torch.tensor(0.0)):
            with pytest.raises(ValueError, match=shape):
                call(wrong)
        with pytest.raises(
            TypeError, match=f"{name} must have dtype torch.float32 like the parameters, got torch.float64"
        ):
            call(state.double())
        with pytest.raises(ValueError, match=f"{name} must be on cpu like the parameters, got meta"):
            call(state.to("meta"))
        with pytest.raises(TypeError, match=f"must be given together, as tensors, got NoneType for {name}"):
            call(None)
        with pytest.raises(TypeError, match=f"must be given together, as tensors, got float for {name}"):
            call(0.0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: make_elm(reset_mechanism="soft"),
            ValueError,
            r"reset_mechanism must be one of \['subtract', 'zero', 'none'\], got 'soft'",
        ),
        (lambda: make_elm(batch_first=True), TypeError, "batch_first must be left out"),
        (
            lambda: make_elm(threshold=torch.ones(5)),
            ValueError,
            r"threshold must be a number or have shape \(6,\), got \(5,\)",
        ),
        (
            lambda: make_elm(graded_spikes_factor=torch.ones(2, 6)),
            ValueError,
            "graded_spikes_factor must be a number or have shape",
        ),
        (lambda: make_elm(num_memory_units=3), TypeError, "num_memory_units"),
        (lambda: make_alif(threshold=2.0), TypeError, "threshold must be left out: an ALIF's threshold starts at 1"),
        (lambda: make_alif(surrogate=ATan()), TypeError, "surrogate must be left out"),
        (
            lambda: faces.ELMSequence(SIZE, 2, state_quant=torch.round),
            ValueError,
            "state_quant must be False for whole sequences",
        ),
        (lambda: faces.ELMSequence(SIZE, 2)([1.0]), TypeError, "x must be a tensor or SpikeEvents, got list"),
        (
            lambda: faces.ELMSequence(SIZE, 2, init_hidden=True)(frames(), torch.ones(BATCH)),
            ValueError,
            "lengths must be left out with init_hidden",
        ),
        (
            lambda: faces.ELMSequence(SIZE, 2)(frames(), torch.tensor([1, 2])),
            ValueError,
            r"lengths must be integers of shape \(4,\)",
        ),
        (
            lambda: faces.ELMSequence(SIZE, 2)(frames(), torch.tensor([1, 2, 3, 99])),
            ValueError,
            "lengths must be between 0 and the 25 steps",
        ),
        (lambda: faces.ELMSequence(SIZE, 2)(frames().double()), TypeError, "x must have dtype torch.float32"),
        (lambda: faces.ELMSequence(SIZE, 2)(frames() / 0.0), ValueError, "x must be finite"),
    ],
)
def test_bad_options_and_sequences_are_named(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_missing_or_old_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = import_module("elm_neuro.adapters._snntorch").__spec__
    assert spec is not None and spec.loader is not None
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "snntorch", None)
        with pytest.raises(ImportError, match=r'adapters\.snntorch needs snntorch: .*"elm-neuro\[snntorch\]"$'):
            spec.loader.exec_module(module_from_spec(spec))
    monkeypatch.setattr(snn, "__version__", "0.6.4")
    with pytest.raises(ImportError, match=r"adapters\.snntorch needs snntorch [\d.]+ or newer, got 0\.6\.4"):
        spec.loader.exec_module(module_from_spec(spec))
