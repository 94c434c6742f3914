"""The face against spikingjelly's contract of a ``MemoryModule``, its own neurons beside ours, its LIFNode as the
oracle of our LIF, and the plain layers on the same weights.

Long: one file a host, as the source.
"""

from __future__ import annotations

import copy
import pickle
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elm_neuro import LIF, SpikeEvents, SpikingELM, backends
from elm_neuro.functional import ATan
from tests.layers import BATCH, BRANCHES, CELLS, INPUTS, LAYERS, SMALL, STEPS
from tests.tolerances import assert_close
from tests.toy_layer import ToyLayer

pytest.importorskip("spikingjelly")
from spikingjelly.activation_based import base, functional, layer, memopt, monitor, neuron, surrogate

from elm_neuro.adapters import spikingjelly as faces

EVERY: dict[str, Callable[[], Any]] = {
    **{name: lambda make=make: faces.Layer(make()) for name, make in (LAYERS | CELLS).items()},
    "someone else's": lambda: faces.Layer(ToyLayer(INPUTS, 3), v_threshold=0.3, reset="subtract"),
    "readout": lambda: faces.ELM(INPUTS, 2, spiking=False, **SMALL),
    "face ELM": lambda: faces.ELM(INPUTS, 2, v_threshold=0.05, num_neuron=3, **SMALL),
    "face BranchELM": lambda: faces.BranchELM(INPUTS, 2, v_threshold=0.05, reset="zero", **BRANCHES),
    "face ALIF": lambda: faces.ALIF(INPUTS, 4, recurrent=True, latency=2.0),
}
of_every = pytest.mark.parametrize("name", EVERY)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def made(name: str, mode: str = "s") -> Any:
    torch.manual_seed(0)
    face = EVERY[name]()
    face.step_mode = mode
    return face


def spikes_in(*shape: int, seed: int = 1) -> Tensor:
    return torch.poisson(torch.full(shape, 0.7), generator=torch.Generator().manual_seed(seed))


def frames(seed: int = 1) -> Tensor:
    return spikes_in(STEPS, BATCH, INPUTS, seed=seed)


def stepped(face: Any, x: Tensor) -> Tensor:
    return torch.stack([face(x_t) for x_t in x])


def memories_of(net: nn.Module) -> list[Any]:
    """A network's memories but those of Dropout."""
    return [memory for memory in base.memories(net) if memory is not None]


def mixed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        faces.ELM(INPUTS, 1, num_memory=4, num_neuron=5, v_threshold=0.05, w_s_init=2.0),
        layer.Linear(5, 4),
        neuron.LIFNode(v_threshold=0.1),
        layer.Linear(4, 3),
        faces.ALIF(3, 2),
    )


# --- the contract of a MemoryModule


@of_every
def test_steps_and_sequences_are_the_same_neuron(name: str) -> None:
    x = frames()
    one, whole = made(name), made(name, "m")
    y, expected = whole(x), stepped(one, x)
    assert y.shape == expected.shape and y.is_contiguous()
    if name == "readout":
        assert_close(y, expected)
    else:
        assert torch.equal(y, expected)
    for ours, theirs in zip(memories_of(whole), memories_of(one), strict=True):
        assert_close(ours, theirs)
    assert any(bool(memory.any()) for memory in memories_of(one))


@of_every
def test_steps_and_sequences_are_bit_equal_where_a_backend_steps(name: str) -> None:
    x = frames()
    with backends.use("reference"):
        one, whole = made(name), made(name, "m")
        for part in (*one.modules(), *whole.modules()):
            if hasattr(part, "backend"):
                part.backend = "reference"
        assert torch.equal(whole(x), stepped(one, x))
        pairs = zip(memories_of(whole), memories_of(one), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@of_every
@pytest.mark.parametrize("mode", ["s", "m"])
def test_functional_forward_is_pure_and_is_what_a_call_does(name: str, mode: str) -> None:
    face, x = made(name, mode), frames() if mode == "m" else frames()[0]
    fresh = tuple(base.extract_memories(face))
    assert fresh == (0.0,) * len(fresh)
    forward = base.to_functional_forward(face)
    (y,), after = forward((x,), fresh)
    assert tuple(base.extract_memories(face)) == fresh  # nothing is kept
    before = [part.clone() for part in after]
    (again,), _ = forward((x,), after)
    assert all(torch.equal(part, copied) for part, copied in zip(after, before, strict=True))
    assert torch.equal(face(x), y) and torch.equal(face(x), again)
    with pytest.raises(ValueError, match="expected"):
        forward((x,), after[:-1])


@pytest.mark.parametrize("mode", ["s", "m"])
def test_one_state_may_be_given_and_learns_while_the_others_are_fresh(mode: str) -> None:
    face, x = made("face BranchELM", mode), frames() if mode == "m" else frames()[0]
    given = torch.rand(BATCH, 3, requires_grad=True)
    face.m = given
    (y,), after = face.functional_forward((x,), tuple(face._memories.values()))
    assert face.m is given and face.b == 0.0
    state = face.core.initial_state(BATCH)._replace(m=given)
    expected, _ = face.core.step(x, state) if mode == "s" else face.core(x.transpose(0, 1), state)
    assert torch.equal(y, expected if mode == "s" else expected.transpose(0, 1))
    assert torch.equal(face(x), y)
    (y.sum() + after[2].sum()).backward()
    assert given.grad is not None and given.grad.any()


@of_every
def test_a_sequence_in_two_pieces_is_the_sequence(name: str) -> None:
    whole, pieces, x = made(name, "m"), made(name, "m"), frames()
    y = torch.cat([pieces(x[:2]), pieces(x[2:])])
    assert_close(y, whole(x))
    assert pieces(x[:0]).shape == (0, *y.shape[1:])
    for ours, theirs in zip(memories_of(pieces), memories_of(whole), strict=True):
        assert_close(ours, theirs)


@of_every
@pytest.mark.parametrize("mode", ["s", "m"])
def test_reset_forgets_and_detach_cuts_the_graph(name: str, mode: str) -> None:
    face, x = made(name, mode), frames()
    run = face if mode == "m" else lambda x: stepped(face, x)
    first = run(x)
    functional.detach_net(face)
    assert not any(memory.requires_grad for memory in memories_of(face))
    for _ in range(2):  # "backward a second time" would be said here
        y = run(x)
        if y.requires_grad:
            y.sum().backward()
        functional.detach_net(face)
    functional.reset_net(face)
    assert base.extract_memories(face) == [0.0] * len(face._memories)
    assert torch.equal(run(x), first)
    functional.reset_net(face)
    run(x[:, :1])  # another batch
    with pytest.raises(ValueError, match=r"x must have the states' batch of 1 until they are reset, got 3.*reset_net"):
        face(x if mode == "m" else x[0])


@of_every
def test_copies_pickles_and_state_dicts_are_the_neuron_states_and_all(name: str) -> None:
    face, x = made(name, "m"), frames()
    face(x)
    twins = copy.deepcopy(face), pickle.loads(pickle.dumps(face))
    expected = face(x)
    for twin in twins:
        assert torch.equal(twin(x), expected)
    functional.reset_net(face)
    other = made(name, "m")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(face.state_dict())
    assert torch.equal(other(x), face(x))
    assert not any("v" == key.rpartition(".")[2] for key in face.state_dict())  # states are none of it


def test_v_of_all_steps_is_not_kept_where_learning_takes_blocks_of_steps() -> None:
    options: dict[str, Any] = {"latency": 3.0, "gradient": "blocks", "store_v_seq": True}
    face = faces.ALIF(INPUTS, 4, step_mode="m", **options)
    with pytest.raises(ValueError, match=r'"blocks" needs a block of steps at once, .* single steps: store_v_seq=True'):
        face(frames())
    with torch.no_grad():
        y = face(frames())
    assert face.v_seq.shape == y.shape
    single = faces.ALIF(INPUTS, 4, **options)
    assert single(frames()[0]).requires_grad  # a call of one step is a block of one


@of_every
@pytest.mark.parametrize("mode", ["s", "m"])
def test_v_of_all_steps_is_what_v_was_after_each(name: str, mode: str) -> None:
    x = frames()
    if name == "someone else's" or "v" in made(name).core.state_type._fields:
        one, face = made(name), made(name, mode)
        face.store_v_seq = True
        y = face(x) if mode == "m" else stepped(face, x)
        seen = []
        for x_t in x:
            one(x_t)
            seen.append(one.v)
        assert_close(face.v_seq, torch.stack(seen))
        assert torch.equal(y, made(name, "m")(x)) or name == "readout"
        functional.detach_net(face)
        assert not face.v_seq.requires_grad
        functional.reset_net(face)
        assert face.v_seq is None
        if mode == "m":
            lengths = torch.tensor([STEPS, 2, 0])
            padded = x.clone()
            padded[2:, 1] = padded[:, 2] = torch.nan
            spikes = face(padded, lengths=lengths)
            assert not spikes[2:, 1].any() and not spikes[:, 2].any()
            assert_close(face.v_seq[:2, 1], torch.stack(seen)[:2, 1])


@of_every
def test_states_move_and_change_dtype_with_the_weights(name: str) -> None:
    face, x = made(name, "m"), frames()
    face(x)
    twin = copy.deepcopy(face).double()
    assert {memory.dtype for memory in memories_of(twin)} == {torch.float64}
    assert_close(twin(x.double()).float(), face(x), scale=10.0)
    narrow = copy.deepcopy(face).bfloat16()
    assert {memory.dtype for memory in memories_of(narrow)} == {torch.float32}  # as the core keeps them
    assert narrow(x.bfloat16()).dtype == torch.bfloat16
    blank = made(name, "m")
    blank(x)
    assert {memory.device.type for memory in memories_of(blank.to("meta"))} == {"meta"}


# --- numbers


@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_spikes_states_and_gradients_are_those_of_the_plain_layer(reset: str, mode: str) -> None:
    core = LAYERS["branch population"]()
    plain = SpikingELM(copy.deepcopy(core), threshold=0.05, reset=reset, surrogate=ATan())
    face = faces.Layer(core, v_threshold=0.05, reset=reset, step_mode=mode)
    x = frames()
    y = face(x) if mode == "m" else stepped(face, x)
    expected, state = plain(x.transpose(0, 1))
    weights = torch.rand_like(y)
    (y * weights).sum().backward()
    (expected * weights.transpose(0, 1)).sum().backward()
    assert torch.equal(y, expected.transpose(0, 1)) and 0.0 < float(y.detach().mean()) < 1.0
    assert_close(face.v, state.v)
    for ours, theirs in zip(face.parameters(), plain.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("tau", [1.5, 2.0, 20.0])
def test_a_lif_is_spikingjellys(tau: float) -> None:
    """``v - v / tau + x``, a spike at 1, a reset to 0, and no gradient through it."""
    beta = 1.0 - 1.0 / tau
    core = LIF(INPUTS, INPUTS).double()
    weight = torch.randn(INPUTS, INPUTS, dtype=torch.float64)
    with torch.no_grad():
        core.cell.weight.copy_(weight)
        core.cell.beta.fill_(beta)
    ours = faces.Layer(core, step_mode="m")
    ours.surrogate_function = surrogate.ATan()
    theirs = neuron.LIFNode(tau, decay_input=False, detach_reset=True, surrogate_function=surrogate.ATan())
    theirs.step_mode = "m"
    x = spikes_in(40, BATCH, INPUTS).double()
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(leaf), theirs(other @ weight.T)
    assert torch.equal(y, expected) and 0.1 < float(y.detach().mean()) < 0.9
    assert_close(ours.v, theirs.v)
    y.sum().backward()
    expected.sum().backward()
    assert_close(leaf.grad, other.grad)


@pytest.mark.parametrize("theirs", [surrogate.ATan(), surrogate.Sigmoid(), surrogate.PiecewiseQuadratic()])
def test_its_surrogates_fit_and_fire_at_the_threshold_too(theirs: Any) -> None:
    face = faces.ELM(INPUTS, 2, surrogate_function=theirs, step_mode="m", **SMALL)
    assert face.surrogate_function is theirs
    face.surrogate_function = copy.deepcopy(theirs)  # in the place of a module
    face.surrogate_function = ATan()
    assert isinstance(face.surrogate_function, ATan)
    face.surrogate_function = theirs
    assert list(face._modules) == ["core"]
    x = frames()
    readout = faces.Layer(face.core.core, spiking=False, step_mode="m")(x)
    face.v_threshold = readout.max()
    y = face(x)
    assert y.sum() == 1.0 and y.flatten()[readout.argmax()] == 1.0
    y.sum().backward()
    assert face.core.core.cell.w_y.weight.grad.any()
    functional.reset_net(face)
    face.surrogate_function = ATan()
    assert not face(x).any()


def test_the_gradient_by_default_is_that_of_its_atan() -> None:
    distance = torch.linspace(-2.0, 2.0, 41, dtype=torch.float64)
    gradients = []
    for fire in (faces.ELM(INPUTS, 2).surrogate_function, surrogate.ATan()):
        leaf = distance.clone().requires_grad_()
        fire(leaf).sum().backward()
        gradients.append(leaf.grad)
    assert_close(gradients[0], gradients[1])


def test_events_are_the_frames_they_stand_for() -> None:
    for name in ("ELM", "LIF", "someone else's", "ELMCell"):
        one, other, x = made(name, "m"), made(name, "m"), frames()
        assert torch.equal(one(SpikeEvents.from_frames(x.transpose(0, 1))), other(x))


@of_every
def test_samples_end_where_their_lengths_say(name: str) -> None:
    x, lengths = frames(), torch.tensor([STEPS, 2, 0])
    face, alone = made(name, "m"), made(name, "m")
    y = face(x, lengths=lengths)
    expected = alone(x[:2, 1:2])
    assert_close(y[:2, 1:2], expected)
    assert not y[2:, 1].any() and not y[:, 2].any()
    for memory, single in zip(memories_of(face), memories_of(alone), strict=True):
        assert_close(memory[1:2], single)
        assert not memory[2].any()


# --- neighbours and tools of the host


@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_mixed_network_runs_learns_and_is_the_same_by_functional_forward(mode: str) -> None:
    net, x = mixed(), frames()
    functional.set_step_mode(net, mode)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        y = net(x) if mode == "m" else torch.stack([net(x_t) for x_t in x])
        optimizer.zero_grad()
        y.mean().backward()
        optimizer.step()
        functional.reset_net(net)
    assert all(parameter.grad is not None for parameter in net.parameters())
    forward, fresh = base.to_functional_forward(net), tuple(base.extract_memories(net))
    (y,), after = forward((x if mode == "m" else x[0],), fresh)
    assert torch.equal(y, net(x if mode == "m" else x[0]))
    for memory, part in zip(base.memories(net), after, strict=True):
        assert torch.equal(memory, part)


def test_monitors_see_spikes_states_and_gradients() -> None:
    net, x = mixed(), frames()
    functional.set_step_mode(net, "m")
    with monitor.OutputMonitor(net, faces.Layer) as spikes, monitor.AttributeMonitor("v", False, net, faces.Layer) as v:
        y = net(x)
    assert spikes.monitored_layers == ["0", "4"]
    assert torch.equal(spikes["4"][0], y) and torch.equal(v["0"][0], net[0].v)
    functional.reset_net(net)
    with (
        monitor.GradInputMonitor(net, faces.Layer) as before,
        monitor.GradOutputMonitor(net, faces.Layer) as behind,
    ):
        net(x.requires_grad_()).sum().backward()
    assert [record.shape for record in behind.records] == [(STEPS, BATCH, 2), (STEPS, BATCH, 5)]
    assert torch.equal(before["0"][0], x.grad)


def test_containers_step_it_and_feed_it_back() -> None:
    x = frames()
    face = faces.ELM(INPUTS, INPUTS, num_memory=4, v_threshold=0.0)
    assert torch.equal(layer.MultiStepContainer(copy.deepcopy(face))(x), stepped(face, x))
    functional.reset_net(face)
    fed = layer.ElementWiseRecurrentContainer(copy.deepcopy(face), lambda x, y: x + y, step_mode="m")
    y, expected = torch.zeros(BATCH, INPUTS), []
    for x_t in x:
        y = face(x_t + y)
        expected.append(y)
    assert torch.equal(fed(x), torch.stack(expected)) and fed(x).any()


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("name", ["face BranchELM", "face ALIF"])
def test_checkpointing_recomputes_the_same_spikes_and_gradients(name: str, chunks: int) -> None:
    plain, x = made(name, "m"), frames()
    wrapped = memopt.checkpoint_module(copy.deepcopy(plain), chunks=chunks)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = wrapped(one), plain(other)
    assert torch.equal(y, expected)
    y.sum().backward()
    expected.sum().backward()
    assert one.grad is not None and other.grad is not None
    assert_close(one.grad, other.grad)
    assert_close(wrapped(x), plain(x))  # the state was advanced once


def test_hooks_on_the_core_are_called_in_both_modes() -> None:
    for mode, store in (("s", False), ("m", False), ("m", True)):
        face, x, called = made("ELM", mode), frames(), torch.zeros(1)
        face.store_v_seq = store
        face.core.register_forward_hook(lambda *_, called=called: called.add_(1) and None)
        face(x if mode == "m" else x[0])
        assert called


# --- bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: faces.Layer(nn.Tanh()), TypeError, r"core must be a layer .*, got Tanh without input_size"),
        (lambda: faces.Layer(LAYERS["LIF"](), v_threshold=2.0), TypeError, "v_threshold must be left out: LIF spikes"),
        (lambda: faces.Layer(LAYERS["LIF"](), spiking=False), TypeError, "spiking=False must be left out"),
        (lambda: faces.ELM(INPUTS, 2, spiking=False, reset="zero"), TypeError, "spiking=False gives the readout"),
        (lambda: faces.ELM(INPUTS, 2, v_treshold=1.0), TypeError, "no keyword v_treshold: did you mean v_threshold"),
        (lambda: faces.ELM(INPUTS, 2, batch_first=True), TypeError, "batch_first must be left out"),
        (lambda: faces.ELM(INPUTS, 2, step_mode="x"), ValueError, r"step_mode can only be \('s', 'm'\)"),
        (lambda: faces.ELM(INPUTS, 2, reset="hard"), ValueError, "reset must be one of"),
        (lambda: faces.ALIF(INPUTS, 2, v_threshold=1.0), TypeError, "ALIF has no keyword v_threshold"),
        (lambda: made("ELM")(frames()), ValueError, r"shape \(batch, 6\) with step_mode='s', got \(5, 3, 6\).*\"m\""),
        (lambda: made("ELM", "m")(frames()[0]), ValueError, r"shape \(time, batch, 6\).*, got \(3, 6\).*\"s\""),
        (lambda: made("ELM")(torch.zeros(3, 7)), ValueError, r"shape \(batch, 6\).*, got \(3, 7\)$"),
        (lambda: made("ELM")(torch.zeros(6)), ValueError, r"shape \(batch, 6\)"),
        (lambda: made("ELM")([0.0]), TypeError, "x must be a tensor, got list"),
        (lambda: made("ELM")(frames()[0].double()), TypeError, "x must have dtype torch.float32"),
        (lambda: made("ELM", "m")(frames(), lengths=torch.tensor([1, 9, 1])), ValueError, "between 0 and the 5 steps"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_states_of_a_wrong_shape_are_refused() -> None:
    face = made("ELM")
    face(frames()[0])
    face.v = torch.zeros(BATCH, 5)
    with pytest.raises(ValueError, match=r"state\.v must have shape \(3, 2\), got \(3, 5\)"):
        face(frames()[0])


def test_a_missing_or_old_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = faces.__spec__
    assert spec is not None and spec.loader is not None
    monkeypatch.setitem(sys.modules, "spikingjelly.activation_based", None)
    for version, message in (
        ("2.0.0", r'needs spikingjelly: pip install "elm-neuro\[spikingjelly\]"$'),
        (
            "0.0.0.0.14",
            r'needs spikingjelly 2\.0 or newer, got 0\.0\.0\.0\.14: pip install "elm-neuro\[spikingjelly\]"$',
        ),
    ):
        monkeypatch.setattr(metadata, "version", lambda name, version=version: version)
        with pytest.raises(ImportError, match=rf"^elm_neuro\.adapters\.spikingjelly {message}"):
            spec.loader.exec_module(module_from_spec(spec))


def test_pyproject_asks_for_no_older_spikingjelly_than_the_adapter(repository: Path) -> None:
    extras = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extras["optional-dependencies"]["spikingjelly"] == [f"spikingjelly>={faces.OLDEST}"]
