"""The faces against norse's contract of cells and layers.

Long: one file a host, as the source.
"""

from __future__ import annotations

import copy
import functools
import gc
import io
import pickle
import re
import sys
import tomllib
import weakref
from collections.abc import Callable
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_neuro import SpikeEvents, nn
from elm_neuro.functional import FastSigmoid
from tests import oracle
from tests.tolerances import assert_close

norse = pytest.importorskip("norse.torch")
faces = pytest.importorskip("elm_neuro.adapters.norse", exc_type=ImportError)

INPUTS = 6
SMALL: dict[str, Any] = {"num_memory": 3, "num_neuron": 4, "threshold": 0.1}
BRANCHES: dict[str, Any] = SMALL | {"num_branch": 3, "num_synapse_per_branch": 2, "routing": "random"}
MAKERS: dict[str, Callable[..., Any]] = {
    "ELMCell": lambda **more: faces.ELMCell(INPUTS, 1, **SMALL | more),
    "ELM": lambda **more: faces.ELM(INPUTS, 1, **SMALL | more),
    "BranchELM": lambda **more: faces.BranchELM(INPUTS, 1, **BRANCHES | more),
    "ALIFCell": lambda **more: faces.ALIFCell(INPUTS, 4, **more),
    "ALIF": lambda **more: faces.ALIF(INPUTS, 4, latency=0.002, recurrent=True, **more),
}
EVERY = pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
LAYERS = pytest.mark.parametrize(
    "make", [MAKERS[name] for name in ("ELM", "BranchELM", "ALIF")], ids=["ELM", "BranchELM", "ALIF"]
)


def spikes(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, rate: float = 0.5) -> torch.Tensor:
    return torch.poisson(torch.full(shape, rate, dtype=dtype), generator=torch.Generator().manual_seed(seed))


def is_cell(face: Any) -> bool:
    return isinstance(face, faces.ELMCell | faces.ALIFCell)


def inputs(face: Any, *batch: int, steps: int = 5, **options: Any) -> torch.Tensor:
    return spikes(*(() if is_cell(face) else (steps,)), *batch, INPUTS, **options)


# norse's contract


@EVERY
def test_faces_are_stateful_for_norse_and_give_output_and_state(make: Callable[..., Any]) -> None:
    stateful = pytest.importorskip("norse.torch.utils.state")._is_module_stateful
    face = make()
    x = inputs(face, 2)
    out, state = face(x)
    assert stateful(face)
    assert out.shape == (*x.shape[:-1], 4) and state.v.shape == (2, 4)
    assert set(out.unique().tolist()) <= {0.0, 1.0}
    again, _ = face(x, state=state)
    assert again.shape == out.shape


@EVERY
def test_states_are_plain_named_tuples_that_pickle_and_load_with_weights_only(make: Callable[..., Any]) -> None:
    face = make()
    _, state = face(inputs(face, 2))
    kind = type(state)
    assert getattr(sys.modules[kind.__module__], kind.__name__) is kind
    loaded = pickle.loads(pickle.dumps(faces.detach(state)))
    assert type(loaded) is kind and all(torch.equal(a, b) for a, b in zip(loaded, state, strict=True))
    file = io.BytesIO()
    torch.save(tuple(faces.detach(state)), file)
    file.seek(0)
    face(inputs(face, 2), torch.load(file, weights_only=True))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_is_zero_at_the_start_in_the_inputs_dtype(make: Callable[..., Any], dtype: torch.dtype) -> None:
    face = make().to(dtype)
    x = inputs(face, 2, dtype=dtype)
    zeros = face.initial_state(x)
    assert all(part.dtype == dtype and not part.any() for part in zeros)
    for ours, theirs in zip(face(x)[1], face(x, zeros)[1], strict=True):
        assert torch.equal(ours, theirs)


@EVERY
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_batch_dimensions_are_samples_side_by_side(make: Callable[..., Any], batch: tuple[int, ...]) -> None:
    face = make().double()
    x, more = inputs(face, *batch, dtype=torch.float64), inputs(face, *batch, dtype=torch.float64, seed=1)
    out, state = face(x)
    out_2, end = face(more, state)
    axes = x.ndim - 1 - len(batch)
    for index in np.ndindex(*batch):
        alone, carried = face(x[(slice(None),) * axes + index])
        alone_2, last = face(more[(slice(None),) * axes + index], carried)
        assert torch.equal(out[(slice(None),) * axes + index], alone) and torch.equal(
            out_2[(slice(None),) * axes + index], alone_2
        )
        for whole, one in zip(end, last, strict=True):
            assert_close(whole[index], one)
    assert out.shape == (*x.shape[:-1], 4) and (is_cell(face) or out.is_contiguous())
    assert all(part.shape[: len(batch)] == batch for part in end)


@LAYERS
def test_a_layer_is_its_cell_lifted_by_norse(make: Callable[..., Any]) -> None:
    """The host's own loop over time is the oracle; weights have the same names in cell and layer."""
    layer = make().double()
    if isinstance(layer, faces.ALIF):
        cell = faces.ALIFCell(INPUTS, 4, latency=0.002, recurrent=True).double()
    else:
        cell = faces.ELMCell(INPUTS, 1, **(BRANCHES if isinstance(layer, faces.BranchELM) else SMALL)).double()
    cell.load_state_dict(layer.state_dict())
    x = inputs(layer, 2, steps=40, dtype=torch.float64)
    out, state = layer(x)
    expected, end = norse.Lift(cell)(x)
    assert torch.equal(out, expected) and out.any()
    for ours, theirs in zip(state, end, strict=True):
        assert_close(ours, theirs)


def test_states_of_every_step_are_not_recorded_where_learning_takes_blocks_of_steps() -> None:
    options: dict[str, Any] = {"gradient": "blocks", "record_states": True}
    layer = faces.ALIF(INPUTS, 4, latency=0.003, **options)
    with pytest.raises(ValueError, match=r'"blocks" needs a block of steps at once, .* single steps: record_states=Tr'):
        layer(torch.rand(9, 2, INPUTS))
    with torch.no_grad():
        out, states = layer(torch.rand(9, 2, INPUTS))
    assert states.v.shape == (9, 2, 4)
    assert faces.ALIF(INPUTS, 4, **options)(torch.rand(9, 2, INPUTS))[0].shape == out.shape  # blocks of one step


@pytest.mark.parametrize("name", ["latency", "tau_v", "tau_a"])
def test_a_time_that_is_refused_is_said_in_seconds(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a time in seconds, not negative, got -0.001"):
        faces.ALIF(INPUTS, 4, **{name: -0.001})


@LAYERS
def test_recorded_states_are_those_of_every_step(make: Callable[..., Any]) -> None:
    layer = make().double()
    x = inputs(layer, 2, 3, dtype=torch.float64)
    out, _ = layer(x)
    layer.record_states = True
    recorded_out, recorded = layer(x)
    assert torch.equal(out, recorded_out)
    layer.record_states = False
    for t in range(x.shape[0]):
        _, state = layer(x[: t + 1])
        for whole, part in zip(recorded, state, strict=True):
            assert_close(whole[t], part)
    layer.record_states = True
    with pytest.raises(ValueError, match="at least one step"):
        layer(x[:0])


# The numbers


def test_a_face_is_the_plain_neuron_spike_for_spike_and_gradient_for_gradient() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "num_memory": 5,
        "num_neuron": 4,
        "num_branch": 3,
        "num_synapse_per_branch": 4,
        "routing": "random",
    }
    output: dict[str, Any] = {
        "threshold": 0.05,
        "learn_threshold": True,
        "reset": "subtract",
        "graded_factor": 1.5,
        "learn_graded_factor": True,
    }
    times = {"tau_s": 7.0, "tau_m_init": (2.0, 70.0), "tau_m_bounds": (1.0, 300.0)}
    seconds = {"tau_s": 0.007, "tau_m_init": (0.002, 0.07), "tau_m_bounds": (0.001, 0.3)}
    plain = nn.SpikingELM(
        nn.BranchELM(INPUTS, 2, delta_t=2.0, flatten_output=True, **options, **times), **output
    ).double()
    face = faces.BranchELM(INPUTS, 2, dt=0.002, **options, **seconds, **output).double()
    assert face.core.core.config == plain.core.config
    face.core.load_state_dict(plain.state_dict())
    x = spikes(50, 3, INPUTS, dtype=torch.float64)
    expected, expected_state = plain(x.transpose(0, 1))
    out, state = face(x)
    assert torch.equal(out, expected.transpose(0, 1)) and 0.02 < float((out > 0).double().mean()) < 0.98
    for ours, theirs in zip(state, expected_state, strict=True):
        assert torch.equal(ours, theirs)
    weight = torch.randn(out.shape, dtype=torch.float64)
    (out * weight).sum().backward()
    (expected.transpose(0, 1) * weight).sum().backward()
    gradients = dict(plain.named_parameters())
    for name, parameter in face.core.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
        assert_close(parameter.grad, gradients[name].grad)  # type: ignore[arg-type]


def test_the_readout_is_that_of_the_paper() -> None:
    face = faces.ELM(INPUTS, 2, num_memory=4, dt=0.001, spiking=False).double()
    x = spikes(30, 1, INPUTS, dtype=torch.float64)
    out, state = face(x)
    y, b, m = oracle.run(face.core.core.cell, x[:, 0].numpy())
    assert_close(out[:, 0].detach(), torch.from_numpy(y))
    for ours, theirs in ((state.b, b), (state.m, m), (state.v, y[-1])):
        assert_close(ours[0].detach(), torch.from_numpy(theirs))
    cell = faces.ELMCell(INPUTS, 2, num_memory=4, spiking=False).double()
    cell.load_state_dict(face.state_dict())
    stepped, end = norse.Lift(cell)(x)
    assert_close(stepped, out)
    assert_close(end.v, state.v)
    nothing, same = face(x[:0], state)
    assert nothing.shape == (0, 1, 2) and torch.equal(same.v, state.v)


def test_the_membrane_of_a_lif_decays_as_its_closed_form() -> None:
    cell = faces.ALIFCell(1, 1, dt=0.002, tau_v=0.05, adaptive=False).double()
    with torch.no_grad():
        cell.core.cell.weight.fill_(0.5)
    _, state = cell(torch.ones(1, 1, dtype=torch.float64))
    for _ in range(10):
        _, state = cell(torch.zeros(1, 1, dtype=torch.float64), state)
    assert float(state.v.detach()) == pytest.approx(0.5 * np.exp(-10 * 2.0 / 50.0), rel=1e-6)


@given(
    cut=st.lists(st.integers(0, 30), max_size=3),
    name=st.sampled_from(["ELM", "BranchELM", "ALIF"]),
    reset=st.sampled_from(["none", "zero"]),
)
@settings(max_examples=25, deadline=None)
def test_splitting_a_sequence_and_carrying_the_state_changes_nothing(cut: list[int], name: str, reset: str) -> None:
    torch.manual_seed(1)
    layer = MAKERS[name](**({} if name == "ALIF" else {"reset": reset})).double()
    x = spikes(30, 2, INPUTS, dtype=torch.float64)
    whole, end = layer(x)
    parts, state = [], None
    for start, stop in zip([0, *sorted(cut)], [*sorted(cut), 30], strict=True):
        out, state = layer(x[start:stop], state)
        parts.append(out)
    assert torch.equal(torch.cat(parts), whole)
    for ours, theirs in zip(state, end, strict=True):  # type: ignore[arg-type]
        assert_close(ours, theirs)


def test_events_are_taken_in_place_of_frames() -> None:
    x = spikes(20, 3, INPUTS, rate=0.1)
    for layer in (MAKERS["ELM"](), MAKERS["BranchELM"](record_states=True), MAKERS["ALIF"]()):
        out, state = layer(SpikeEvents.from_frames(x.transpose(0, 1)))
        expected, end = layer(x)
        assert torch.equal(out, expected)
        assert_close(state.v, end.v)
    with pytest.raises(TypeError, match=r"x must be a dense tensor \[\*batch, 6\], got SpikeEvents"):
        MAKERS["ELMCell"]()(SpikeEvents.from_frames(x))


def test_stochastic_spikes_come_from_their_generator() -> None:
    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        layer = MAKERS["ELM"](stochastic=True, spike_generator=torch.Generator().manual_seed(seed))
        out: torch.Tensor = layer(spikes(50, 2, INPUTS))[0]
        return out

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))


# Times


def test_times_are_seconds_here_and_milliseconds_in_the_neuron() -> None:
    config = faces.ELM(3, 1, dt=0.07, tau_s=(0.005, 0.01, 0.1), tau_m_init=(0.003, 0.7)).core.core.config
    assert (config.delta_t, config.tau_s, config.tau_m_init) == (70.0, (5.0, 10.0, 100.0), (3.0, 700.0))
    assert faces.ELM(3, 1).core.core.config == nn.ELM(3, 1).config
    suggested, expected = faces.suggest(0.01, 100), nn.suggest(10.0, 100)
    assert faces.ELM(3, 1, **suggested).core.core.config == nn.ELM(3, 1, **expected).config
    cell = faces.ALIFCell(3, 1, dt=0.001, tau_v=0.02, tau_a=0.2, latency=0.003).core.cell
    assert cell.latency_steps == 3
    for decay, tau in ((cell.beta, 20), (cell.p, 200)):
        assert float(decay.detach()[0]) == pytest.approx(np.exp(-1 / tau))


def test_times_that_look_like_milliseconds_are_remarked_on() -> None:
    with pytest.warns(
        UserWarning, match=r"tau_s=5.0 is 5000 steps or more: times of a norse face are seconds, not ms"
    ) as record:
        faces.ELM(3, 1, tau_s=5.0)
    assert Path(record[0].filename) == Path(__file__)
    with (
        pytest.warns(UserWarning, match="tau_v=10.0"),
        pytest.raises(ValueError, match="tau_v must give a decay per step"),
    ):
        faces.ALIFCell(3, 1, tau_v=10.0)


@pytest.mark.parametrize("dt", [0.0, -0.001, float("nan"), float("inf"), "fast", None])
def test_dt_must_be_a_time(dt: Any) -> None:
    with pytest.raises(ValueError, match="dt must be a time in seconds above 0, got"):
        faces.ELM(3, 1, dt=dt)


@pytest.mark.parametrize("name", ["ELMCell", "ELM", "BranchELM", "ALIFCell", "ALIF"])
def test_delta_t_is_refused_and_told_its_name_here(name: str) -> None:
    with pytest.raises(
        TypeError, match=r"delta_t must be given as dt, in seconds like all times of a norse face, got delta_t=1.0"
    ):
        MAKERS[name](delta_t=1.0)


# In norse's networks


def network() -> Any:
    torch.manual_seed(0)
    return norse.SequentialState(
        norse.Lift(torch.nn.Linear(INPUTS, 8)),
        faces.ELM(8, 1, num_memory=3, num_neuron=5, threshold=0.0),
        norse.LIFRecurrent(5, 7, p=norse.LIFParameters(v_th=torch.as_tensor(0.1), alpha=torch.as_tensor(1.0))),
        faces.ALIF(7, 4, b_init=0.2),
        faces.BranchELM(4, 1, num_memory=3, num_branch=2, num_synapse_per_branch=2, num_neuron=3, threshold=0.0),
        norse.LI(),
    )


def test_a_norse_network_trains_every_parameter_of_ours_and_carries_their_states() -> None:
    net = network()
    ours = [net[1], net[3], net[4]]
    assert {id(p) for face in ours for p in face.parameters()} <= {id(p) for p in net.parameters()}
    x = spikes(40, 2, INPUTS)
    out, state = net(x)
    assert [part is None for part in state] == [True, False, False, False, False, False]
    out.pow(2).sum().backward()
    for face in ours:
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in face.parameters())
        assert sum(float(p.grad.abs().sum()) for p in face.parameters() if p.grad is not None) > 0
    first, state = net(x[:25])
    rest, end = net(x[25:], state)
    assert_close(torch.cat([first, rest]), out)
    assert end[1].v.shape == (2, 5) and end[3].v.shape == (2, 4)


def test_lift_carries_the_state_of_a_cell() -> None:
    lift = norse.Lift(MAKERS["ELMCell"]())
    x = spikes(10, 2, INPUTS)
    whole, end = lift(x)
    first, state = lift(x[:4])
    rest, last = lift((x[4:], state))
    assert torch.equal(torch.cat([first, rest]), whole) and torch.equal(last.v, end.v)


def test_recurrent_sequential_feeds_the_spikes_back() -> None:
    cell = faces.ELMCell(4, 1, num_memory=3, num_neuron=4, threshold=0.0)
    loop = norse.RecurrentSequential(cell)
    x = spikes(6, 2, 4)
    state, fed, inner = None, torch.zeros(2, 4), None
    for x_t in x:
        out, state = loop(x_t, state)
        fed, inner = cell(x_t + fed, inner)
        assert torch.equal(out, fed)
    assert fed.any()


def test_norse_regularizers_read_spikes_and_voltages() -> None:
    from norse.torch.functional.regularization import voltage_accumulator

    for cell in (MAKERS["ELMCell"](), MAKERS["ALIFCell"]()):
        counts = norse.RegularizationCell()
        volts = norse.RegularizationCell(accumulator=voltage_accumulator)
        total, volt, state = 0.0, 0.0, None
        for x_t in spikes(8, 2, INPUTS):
            out, state = cell(x_t, state)
            counts(out, state)
            volts(out, state)
            total, volt = total + float(out.detach().sum()), volt + state.v
        assert float(counts.state.detach()) == total > 0
        assert_close(volts.state, volt)
        (1e-3 * counts.state + volts.state.pow(2).sum()).backward()


def test_norse_encoders_feed_a_face() -> None:
    torch.manual_seed(0)
    for encoder in (
        norse.PoissonEncoder(10, f_max=500),
        norse.SpikeLatencyLIFEncoder(10),
        norse.ConstantCurrentLIFEncoder(10),
    ):
        out, state = MAKERS["ELM"]()(encoder(torch.rand(2, INPUTS)))
        assert out.shape == (10, 2, 4) and state.v.shape == (2, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norse_surrogates_fit(dtype: torch.dtype) -> None:
    from norse.torch.functional.threshold import threshold

    surrogate = functools.partial(threshold, method="super", alpha=10.0)
    for face in (MAKERS["ELM"](surrogate=surrogate), MAKERS["ALIF"](surrogate=surrogate)):
        face = pickle.loads(pickle.dumps(face.to(dtype)))
        out, _ = face(inputs(face, 2, dtype=dtype))
        out.sum().backward()
        assert out.dtype == dtype and all(p.grad is not None for p in face.parameters())


def test_forward_hooks_of_norse_see_input_and_state() -> None:
    net, seen = network(), []
    net.register_forward_state_hooks(
        lambda module, args, output: seen.append((type(module).__name__, type(output[1]).__name__))
    )
    net(spikes(3, 2, INPUTS))
    assert ("ELM", "SpikingELMState") in seen and ("ALIF", "ALIFState") in seen and len(seen) == 5


# Life in a training


@EVERY
def test_state_dict_deepcopy_and_pickle_keep_the_numbers(make: Callable[..., Any]) -> None:
    face, other = make(), make()
    other.load_state_dict(face.state_dict())
    x = inputs(face, 2)
    for twin in (other, copy.deepcopy(face), pickle.loads(pickle.dumps(face))):
        assert torch.equal(twin(x)[0], face(x)[0])
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in face.parameters()}
    net = copy.deepcopy(norse.SequentialState(face))
    assert torch.equal(net(x)[0], face(x)[0])


@EVERY
def test_parameters_and_buffers_move_with_the_module(make: Callable[..., Any]) -> None:
    net = norse.SequentialState(make()).double().to("meta")
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    tensors = [*net.parameters(), *net.buffers()]
    assert {t.device.type for t in tensors} == {"meta"}
    names = {name for name, _ in (*net.named_parameters(), *net.named_buffers()) if not name.endswith("_routing_twin")}
    assert names == {name for name in net.state_dict() if not name.endswith("_extra_state")}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@EVERY
def test_on_the_gpu_states_begin_there_and_spikes_are_the_cpus(make: Callable[..., Any]) -> None:
    face = make().double()
    x = inputs(face, 2, dtype=torch.float64)
    expected, _ = face(x)
    out, state = face.cuda()(x.cuda())
    assert {part.device.type for part in state} == {"cuda"}
    assert torch.equal(out.cpu(), expected)


@EVERY
def test_detached_states_truncate_backpropagation(make: Callable[..., Any]) -> None:
    net = norse.SequentialState(make())
    x, state = inputs(net[0], 2), None
    for _ in range(3):
        out, state = net(x, state)
        out.sum().backward()  # a graph that reached back would be walked a second time, which torch refuses
        state = faces.detach(state)
    assert all(not part.requires_grad for part in state[0])
    _, state = net(x)
    net(x, list(state))[0].sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        net(x, list(state))[0].sum().backward()


def test_detach_reaches_into_what_norse_networks_carry() -> None:
    carried = norse.SequentialState(
        torch.nn.Linear(INPUTS, 4), norse.LIFRecurrentCell(4, 4), faces.ELMCell(4, 4, num_memory=2)
    )
    loop = norse.RecurrentSequential(carried, torch.nn.Linear(4, INPUTS))
    _, state = loop(spikes(2, INPUTS))
    free = faces.detach(state)
    assert type(free) is type(state) and type(free.state) is list and free.cache.requires_grad is False
    assert type(free.state[0][1]) is type(state.state[0][1]) and free.state[0][0] is None
    assert not free.state[0][1].v.requires_grad and not free.state[0][2].m.requires_grad
    loop(spikes(2, INPUTS), free)


@EVERY
def test_the_batch_may_change_with_a_fresh_state_only(make: Callable[..., Any]) -> None:
    face = make()
    _, state = face(inputs(face, 2))
    assert face(inputs(face, 3))[1].v.shape == (3, 4)
    with pytest.raises(ValueError, match=r"state\.\w must have shape \(3, .*for x of shape .*got \(2, "):
        face(inputs(face, 3), state)


@EVERY
def test_nothing_keeps_a_face_alive(make: Callable[..., Any]) -> None:
    face = make()
    face(inputs(face, 2))[0].sum().backward()
    alive = weakref.ref(face)
    del face
    gc.collect()
    assert alive() is None


@EVERY
def test_autocast_keeps_states_in_float32(make: Callable[..., Any]) -> None:
    face = make()
    net = (
        norse.SequentialState(norse.Lift(torch.nn.Linear(INPUTS, INPUTS)), face)
        if not is_cell(face)
        else norse.SequentialState(face)
    )
    x = inputs(face, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, state = net(x)
        out, state = net(x, state)
    assert all(part.dtype == torch.float32 for part in state[-1])
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in face.parameters())


# The compiler warns in torch's name about its own graph breaks and deprecations.
COMPILER_WARNINGS = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The .grad attribute:UserWarning"
)


@COMPILER_WARNINGS
@pytest.mark.parametrize("name", ["ELMCell", "ALIFCell"])
def test_a_cell_compiles_in_place_without_a_break_and_stays_stateful(name: str) -> None:
    stateful = pytest.importorskip("norse.torch.utils.state")._is_module_stateful
    torch._dynamo.reset()
    cell = MAKERS[name]()
    x = spikes(4, 2, INPUTS)
    plain = copy.deepcopy(cell)
    cell.compile(fullgraph=True, backend="aot_eager")
    net, expected = norse.SequentialState(cell), norse.SequentialState(plain)
    assert stateful(cell)
    state = expected_state = None
    for x_t in x:
        out, state = net(x_t, state)
        reference, expected_state = expected(x_t, expected_state)
        assert_close(out, reference)
        assert_close(state[0].v, expected_state[0].v)
    out.sum().backward()
    assert all(p.grad is not None for p in cell.parameters())


@pytest.mark.slow
@COMPILER_WARNINGS
@pytest.mark.parametrize("name", ["ELM", "ALIF"])
def test_a_compiled_layer_does_not_unroll_its_loop_over_time(name: str) -> None:
    torch._dynamo.reset()
    layer = MAKERS[name](**({"reset": "zero"} if name == "ELM" else {}))
    x = spikes(2000, 1, INPUTS)  # unrolled, this would be minutes
    expected, _ = layer(x)
    layer.compile(backend="aot_eager")
    out, state = norse.SequentialState(layer)(x)
    assert_close(out, expected)
    assert state[0].v.shape == (1, 4)


# Bad input


@EVERY
def test_states_that_do_not_fit_are_refused_and_never_replaced(make: Callable[..., Any]) -> None:
    face = make()
    x = inputs(face, 2)
    _, state = face(x)
    for field in state._fields:
        part = getattr(state, field)
        with pytest.raises(ValueError, match=rf"state\.{field} must have shape .* for x of shape .*, got "):
            face(x, state._replace(**{field: part[:1]}))
        with pytest.raises(ValueError, match=rf"state\.{field} must have shape"):
            face(x, state._replace(**{field: torch.zeros(())}))
        with pytest.raises(
            TypeError, match=rf"state\.{field} must have dtype torch.float32 like the parameters, got torch.float64"
        ):
            face(x, state._replace(**{field: part.double()}))
        with pytest.raises(ValueError, match=rf"state\.{field} must be on cpu like the parameters, got meta"):
            face(x, state._replace(**{field: part.to("meta")}))
        with pytest.raises(TypeError, match=rf"state\.{field} must be a tensor, got NoneType"):
            face(x, state._replace(**{field: None}))


@EVERY
def test_states_of_another_neuron_are_refused(make: Callable[..., Any]) -> None:
    face = make()
    x = inputs(face, 2)
    kind = type(face.initial_state(x)).__name__
    _, lif = norse.LIFRecurrentCell(INPUTS, 4)(spikes(2, INPUTS))
    for wrong in (lif, [torch.zeros(2, 4)] * 4, torch.zeros(2, 4), tuple(torch.zeros(2, 4) for _ in range(2)), 0):
        with pytest.raises(TypeError, match=rf"state must be {kind}\(.*v.*\), got {type(wrong).__name__}"):
            face(x, wrong)


@EVERY
def test_inputs_that_do_not_fit_are_refused(make: Callable[..., Any]) -> None:
    face = make()
    layout = r"\[\*batch, 6\]" if is_cell(face) else r"\[T, \*batch, 6\]"
    with pytest.raises(ValueError, match=rf"x must have shape {layout}, got \(2, 5\)"):
        face(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=rf"x must have shape {layout}, got \(\)"):
        face(torch.zeros(()))
    with pytest.raises(TypeError, match=rf"x must be a dense tensor {layout}, got torch.sparse_coo"):
        face(inputs(face, 2).to_sparse())
    with pytest.raises(TypeError, match=rf"x must be a dense tensor {layout}, got list"):
        face([1.0] * 6)
    with pytest.raises(TypeError, match=r"x must have dtype torch.float32 like the parameters, got torch.bool"):
        face(inputs(face, 2) > 0)
    with pytest.raises(ValueError, match=r"x must be on cpu like the parameters, got meta"):
        face(inputs(face, 2).to("meta"))


@LAYERS
def test_batch_first_data_is_named_where_the_state_betrays_it(make: Callable[..., Any]) -> None:
    layer = make()
    _, state = layer(spikes(5, 2, INPUTS))
    with pytest.raises(
        ValueError, match=r"the state's batch is the first axis of x: x must be time first, \[T, \*batch, features\]"
    ):
        layer(spikes(2, 5, INPUTS), state)
    with pytest.raises(ValueError, match=r"got \(2,") as error:
        layer(spikes(5, 3, INPUTS), state)
    assert "time first" not in str(error.value)


@pytest.mark.parametrize("name", ["ELMCell", "ELM", "BranchELM", "ALIFCell", "ALIF"])
def test_a_surrogate_that_changes_the_dtype_is_refused(name: str) -> None:
    face = MAKERS[name](surrogate=lambda distance: FastSigmoid()(distance).float()).double()
    with pytest.raises(
        TypeError, match=r"surrogate must keep the dtype torch.float64 of the \w+, got spikes of torch.float32"
    ):
        face(inputs(face, 2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["ELMCell", "ELM", "BranchELM"])
def test_what_the_face_decides_is_no_keyword(name: str) -> None:
    with pytest.raises(
        TypeError, match="batch_first must not be given: a norse face is time first, got batch_first=False"
    ):
        MAKERS[name](batch_first=False)
    with pytest.raises(TypeError, match="flatten_output must not be given: a norse face flattens populations"):
        MAKERS[name](flatten_output=True)
    with pytest.raises(
        TypeError, match=r"spiking=False gives the readout and takes no keywords of spikes, got \['threshold'\]"
    ):
        MAKERS[name](spiking=False)
    with pytest.raises(TypeError, match="hidden_size"):
        MAKERS[name](hidden_size=3)


# The host


def load_beside(version: str | None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The adapter, loaded once more beside a norse of this version, or none."""
    spec = faces.__spec__
    if version is None:
        monkeypatch.setitem(sys.modules, "norse", None)
    else:
        monkeypatch.setattr(sys.modules["norse"], "__version__", version, raising=False)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_missing_norse_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=r'^elm_neuro\.adapters\.norse needs norse: pip .*"elm-neuro\[norse\]"$'):
        load_beside(None, monkeypatch)


def test_an_old_norse_is_named_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    message = rf"^elm_neuro\.adapters\.norse needs norse {re.escape(faces.OLDEST)} or newer, got 0\.0\.6: pip install"
    with pytest.raises(ImportError, match=message):
        load_beside("0.0.6", monkeypatch)


def test_newer_versions_are_taken_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_beside("1.10.0.dev1", monkeypatch).INSTALLED == "1.10.0.dev1"


def test_pyproject_asks_for_no_older_norse_than_the_adapter(repository: Path) -> None:
    (line,) = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]["norse"]
    asked = [int(number) for number in line.partition(">=")[2].split(".")]
    assert asked >= [int(number) for number in faces.OLDEST.split(".")]
