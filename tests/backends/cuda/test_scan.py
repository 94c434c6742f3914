"""The backend `cuda` against the float64 reference: its kernels run on the CPU, threads in shuffled order.

Long: every way into one pass, held to the same reference.
"""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elm_neuro import ALIF, ELM, BranchELM, ELMState, SpikeEvents, SpikingELM, backends
from elm_neuro.backends.cuda import _available, _compile, _driver, _memory, _plans, _weights
from elm_neuro.backends.elm import _cuda_plan, _effective
from elm_neuro.backends.elm._effective import Timescales, effective
from elm_neuro.backends.parts import _shapes
from tests.backends.compiled import looked_into
from tests.backends.cuda.fake_driver import FakeDriver
from tests.backends.equal_cases import cases, everything
from tests.tolerances import assert_close

FEW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
SIZES = [{"num_mlp_layers": 0}, {"activation": "relu"}, {"activation": "silu"}]  # few, since each is compiled


@st.composite
def neurons(draw: st.DrawFn, sizes: list[dict[str, Any]]) -> ELM:
    options: dict[str, Any] = {
        "num_memory": 3,
        "tau_s": draw(st.sampled_from([5.0, 5.0, (1.0, 4.0, 9.0)])),
        "variant": draw(st.sampled_from(["v1", "v2"])),
        "learn_tau_m": draw(st.booleans()),
        "branch_activation": draw(st.sampled_from([None, None, "tanh"])),
        "num_neuron": draw(st.sampled_from([None, None, 2])),
        "generator": torch.Generator().manual_seed(draw(st.integers(0, 999))),
        **draw(st.sampled_from(sizes)),
    }
    routing = draw(st.sampled_from(["unbranched", "random", "window", "index", None]))
    if routing == "unbranched":
        neuron: ELM = ELM(3 if isinstance(options["tau_s"], tuple) else 7, 2, **options)
    else:
        # branches that are more than the hidden units run another way than fewer
        num_branch = 3 if isinstance(options["tau_s"], tuple) else draw(st.sampled_from([3, 8]))
        synapses = 5 if routing is None and num_branch == 8 else 40 if routing == "random" else 14
        routing = "random" if routing is None and num_branch == 3 else routing
        index = torch.randint(-1, 40, (num_branch, synapses)) if routing == "index" else routing
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # inputs may be left out: that is a case to be tested
            neuron = BranchELM(40, 2, num_branch=num_branch, num_synapse_per_branch=synapses, routing=index, **options)
    with torch.no_grad():
        neuron.cell._proto_w_s += 0.6 * torch.randn(neuron.cell._proto_w_s.shape)
    return neuron.double()


@st.composite
def drawn(draw: st.DrawFn, sizes: list[dict[str, Any]]) -> tuple[ELM, torch.Tensor, Any, Any]:
    neuron = draw(neurons(sizes))
    torch.manual_seed(draw(st.integers(0, 999)))
    batch, num_steps = draw(st.sampled_from([1, 3])), draw(st.integers(1, 20))
    own = (2,) if neuron.config.num_neuron and draw(st.booleans()) else ()
    x = torch.poisson(torch.full((batch, num_steps, *own, neuron.config.input_size), 0.3)).double()
    state = None
    if draw(st.booleans()):
        state = ELMState(*(torch.randn_like(part).requires_grad_() for part in neuron.cell.initial_state(batch)))
    lengths = torch.randint(0, num_steps + 1, (batch,)) if draw(st.booleans()) else None
    return neuron, x.requires_grad_(draw(st.booleans())), state, lengths


def check(case: Any, driver: FakeDriver, *, seed: int, events: bool, recompute_every: int | None) -> None:
    neuron, x, state, lengths = case
    driver.seed = seed
    expected = everything(neuron, "reference", x, state, lengths)
    count = len(list(neuron.parameters()))
    given_x: Any = x
    if events and x.ndim == 3:
        given_x = SpikeEvents.from_frames(x)
        expected = expected[: 3 + count] + expected[4 + count :]
    neuron.recompute_every = recompute_every
    for result, wanted in zip(everything(neuron, "cuda", given_x, state, lengths), expected, strict=True):
        assert_close(result, wanted)


@settings(FEW, max_examples=60)
@given(
    case=drawn(SIZES),
    seed=st.integers(0, 9),
    events=st.booleans(),
    recompute_every=st.sampled_from([None, None, None, 4]),
)
def test_outputs_and_all_gradients_equal_the_reference(
    fake_driver: FakeDriver, case: Any, seed: int, events: bool, recompute_every: int | None
) -> None:
    check(case, fake_driver, seed=seed, events=events, recompute_every=recompute_every)


@pytest.mark.slow
@settings(FEW, max_examples=150)
@given(case=cases(), seed=st.integers(0, 9), events=st.booleans(), recompute_every=st.sampled_from([None, 5]))
def test_neurons_of_any_shape_equal_the_reference(
    fake_driver: FakeDriver, case: Any, seed: int, events: bool, recompute_every: int | None
) -> None:
    if len(case[0].cell.mlp) <= 2:
        check(case, fake_driver, seed=seed, events=events, recompute_every=recompute_every)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(32, 4, 1), (64, 2, 3), (128, 8, 2), (256, 16, 1)])
@pytest.mark.parametrize("options", [{}, {"num_mlp_layers": 0}, {"activation": "silu"}])
def test_layouts_of_any_kind_equal_the_reference(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, layout: tuple[int, int, int], options: dict[str, Any]
) -> None:
    threads, lanes, samples = layout

    def chosen(shape: _plans.Shape, device: _plans.Device, *_: Any, backward: bool) -> _plans.Plan:
        small = _plans.Device(device.multiprocessors, 8192, device.architecture)  # weights beyond shared memory too
        plan = _plans.layout(shape, small, threads, samples, (lanes, min(32, 2 * lanes)), backward=backward)
        assert plan is not None
        return plan

    monkeypatch.setattr(_memory, "choose", chosen)
    torch.manual_seed(0)
    neuron = ELM(9, 2, num_memory=37, **options).double()
    x = torch.randn(5, 7, 9, dtype=torch.float64, requires_grad=True)
    check((neuron, x, None, torch.tensor([7, 0, 3, 1, 7])), fake_driver, seed=5, events=False, recompute_every=None)


@pytest.mark.parametrize("multiprocessors", [1, 14])  # 14: the smallest slice of an H100
def test_a_slice_of_a_gpu_runs_every_size(fake_driver: FakeDriver, multiprocessors: int) -> None:
    """To its processes a slice is a device with fewer multiprocessors; more samples share a block there."""
    slice_ = _plans.Device(multiprocessors, 232448, 90)
    for num_memory in (1, 20, 100, 150, 256):
        shape = _plans.Shape(num_memory, 2 * num_memory, 1, False, False)
        for backward in (False, True):
            whole, part = (
                _plans.choose(shape, device, 384, 1, backward=backward) for device in (fake_driver.properties, slice_)
            )
            assert part.samples >= whole.samples
    fake_driver.properties = slice_
    torch.manual_seed(0)
    neuron, x = ELM(9, 2, num_memory=5).double(), torch.randn(7, 6, 9, dtype=torch.float64, requires_grad=True)
    check((neuron, x, None, None), fake_driver, seed=5, events=False, recompute_every=None)


@pytest.mark.parametrize("branched", [False, True])
def test_float32_stays_within_the_table(fake_driver: FakeDriver, branched: bool) -> None:
    torch.manual_seed(0)
    neuron = (
        BranchELM(30, 2, 3, num_branch=8, num_synapse_per_branch=4, routing="random") if branched else ELM(30, 2, 3)
    )
    wanted = ELM.from_config(neuron.config, routing=neuron.cell.input_to_synapse_indices).double()
    wanted.load_state_dict(neuron.state_dict())
    x = torch.poisson(torch.full((3, 200, 30), 0.1))
    expected = everything(wanted, "reference", x.double().requires_grad_(), None, None)
    for result, exact in zip(everything(neuron, "cuda", x.requires_grad_(), None, None), expected, strict=True):
        assert_close(result.double(), exact, dtype=torch.float32)


@pytest.mark.parametrize("num_neuron", [None, 2])
@pytest.mark.parametrize(("most_outputs", "most_work"), [(0, 0), (8, 2**24)])
@pytest.mark.parametrize("options", [{}, {"num_mlp_layers": 0}, {"activation": "silu"}])
def test_products_by_own_kernels_and_by_cublas_equal_the_reference(
    fake_driver: FakeDriver,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    most_outputs: int,
    most_work: int,
    num_neuron: int | None,
) -> None:
    """Of the readout, and of the layers' weights."""
    monkeypatch.setattr(_cuda_plan, "MAX_OUTPUT", most_outputs)
    monkeypatch.setattr(_cuda_plan, "MAX_WORK", most_work)
    torch.manual_seed(0)
    neuron = ELM(3, 5, num_memory=3, num_neuron=num_neuron, **options).double()
    x = torch.randn(4, 37, 3, dtype=torch.float64, requires_grad=True)  # several parts of the rows
    for lengths in (None, torch.tensor([37, 0, 5, 36])):
        check((neuron, x, None, lengths), fake_driver, seed=3, events=False, recompute_every=None)
    launched = {name for name, *_ in fake_driver.launched}
    assert {"elm_readout", "elm_outer"} & launched == ({"elm_readout", "elm_outer"} if most_work else set())


def test_gradients_past_a_samples_end_may_be_anything_and_lie_anyhow(fake_driver: FakeDriver) -> None:
    torch.manual_seed(0)
    neuron, lengths = ELM(3, 2, num_memory=3, backend="cuda").double(), torch.tensor([9, 0, 4])
    x, grad = torch.randn(3, 9, 3, dtype=torch.float64), torch.randn(2, 9, 3, dtype=torch.float64).permute(2, 1, 0)
    spoiled = torch.where((torch.arange(9) < lengths[:, None])[..., None], grad, torch.nan)
    found = []
    for incoming in (grad.contiguous(), grad, spoiled):
        neuron.zero_grad()
        neuron(x, lengths=lengths)[0].backward(incoming)
        found.append([p.grad.clone() for p in neuron.parameters()])  # type: ignore[union-attr]
    for other in found[1:]:
        for result, wanted in zip(other, found[0], strict=True):
            assert_close(result, wanted)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (1, 1), (3, 5)])
@pytest.mark.parametrize("form", ["frames", "silent frames", "one frame for all", "reversed axes", "events"])
def test_sizes_of_none_and_frames_that_lie_anyhow_equal_the_reference(
    fake_driver: FakeDriver, shape: tuple[int, int], form: str
) -> None:
    """The driver refuses a launch of no blocks, as the fake one does."""
    torch.manual_seed(0)
    neuron, x = ELM(7, 2, num_memory=3).double(), torch.poisson(torch.full((*shape, 7), 0.7, dtype=torch.float64))
    if form == "silent frames":
        x.zero_()
    elif form == "one frame for all":
        x = torch.ones(7, dtype=torch.float64).expand(*shape, 7)
    elif form == "reversed axes":
        x = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for lengths in (None, torch.zeros(shape[0], dtype=torch.int64), torch.arange(shape[0]).clamp(max=shape[1])):
        found = []
        for backend, arriving in (("cuda", SpikeEvents.from_frames(x) if form == "events" else x), ("reference", x)):
            neuron.backend = backend
            neuron.zero_grad(set_to_none=False)
            y, state = neuron(arriving, lengths=lengths)
            if y.requires_grad:  # without steps nothing is learned
                (y.sum() + state.b.sum() + state.m.sum()).backward()
            found.append([y, *state, *(parameter.grad for parameter in neuron.parameters())])
        for result, wanted in zip(*found, strict=True):
            assert (result is None) == (wanted is None)
            if result is not None:
                assert result.shape == wanted.shape
                assert_close(result, wanted)


def test_a_pass_takes_few_launches(fake_driver: FakeDriver) -> None:
    neuron = ELM(7, 2, num_memory=3, backend="cuda")
    x = torch.ones(2, 5, 7)
    neuron(x)[0].sum().backward()
    assert [name for name, *_ in fake_driver.launched] == [
        "elm_table", "elm_discount", "elm_multiply", "elm_branches_of_one", "elm_forward", "elm_readout",
        "elm_readout_backward", "elm_backward", "elm_outer", "elm_multiply_inputs", "elm_gradients",
    ]  # fmt: skip
    fake_driver.launched.clear()
    neuron(SpikeEvents.from_frames(x))[0].sum().backward()
    assert [name for name, *_ in fake_driver.launched] == [
        "elm_table", "elm_arrange", "elm_gather", "elm_branches_of_one", "elm_forward", "elm_readout",
        "elm_readout_backward", "elm_backward", "elm_outer", "elm_gather_inputs", "elm_gradients",
    ]  # fmt: skip


@pytest.mark.parametrize("graph", [True, False])
def test_what_is_left_of_a_transform_is_taken_for_the_numbers_it_holds(fake_driver: FakeDriver, graph: bool) -> None:
    """As torch's own operators take it."""
    left: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        left.append(2 * x)
        return left[0].sum()

    neuron, x = ELM(7, 2, num_memory=3, backend="cuda"), torch.rand(2, 5, 7)
    torch.func.grad(keep)(x)
    with torch.set_grad_enabled(graph):
        assert_close(neuron(left[0])[0], neuron(2 * x)[0])


@pytest.mark.parametrize("num_neuron", [None, 3])
def test_a_routing_serves_inputs_of_other_sizes(fake_driver: FakeDriver, num_neuron: int | None) -> None:
    """What is known of it is of the number of inputs that it was asked for."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_branch": 8, "num_synapse_per_branch": 14, "routing": "random"}
    neuron = BranchELM(40, 2, num_memory=3, num_neuron=num_neuron, **sizes).double()
    params, x = neuron.cell.effective_parameters(), torch.poisson(torch.full((3, 9, 47), 0.3)).double()
    for num_input in (40, 47, 41, 40):
        for arriving in (x[..., :num_input], SpikeEvents.from_frames(x[..., :num_input])):
            y = backends.scan(arriving, params, None, backend="cuda")[0]
            assert_close(y, backends.scan(arriving, params, None, backend="reference")[0])
    with pytest.raises(ValueError, match="routing must hold inputs below 30"):
        backends.scan(x[..., :30], params, None, backend="cuda")


def test_a_routing_is_sorted_once_and_anew_where_it_has_changed(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorting waits for the device. Nothing stays of a neuron that is gone."""
    gc.collect()
    before, sorts, sort = dict(_weights._sorted), [], torch.sort
    monkeypatch.setattr(torch, "sort", lambda *args, **options: sorts.append(1) or sort(*args, **options))
    x = torch.ones(2, 5, 40)
    options: dict[str, Any] = {"num_memory": 3, "num_branch": 8, "num_synapse_per_branch": 14, "routing": "random"}
    neurons = [BranchELM(40, 2, **options, backend="cuda") for _ in range(2)]
    for _ in range(3):
        for neuron in neurons:
            neuron(x)
    assert len(sorts) == 2
    index = torch.randint(40, (8, 14))
    neurons[0].cell.input_to_synapse_indices.copy_(index)
    y = neurons[0](x.cumsum(-1))[0]
    assert len(sorts) == 3
    neurons[0].backend = "reference"
    assert_close(y, neurons[0](x.cumsum(-1))[0])
    del neurons, neuron, y
    gc.collect()
    assert _weights._sorted == before


def test_a_spiking_layer_is_that_pass_and_its_threshold(fake_driver: FakeDriver) -> None:
    x, launched = torch.ones(2, 5, 7), []
    neuron = ELM(7, 2, num_memory=3, backend="cuda")
    for layer in (neuron, SpikingELM(neuron)):
        layer(x)[0].sum().backward()
        launched.append([name for name, *_ in fake_driver.launched])
        fake_driver.launched.clear()
    assert launched[0] == launched[1]


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("bounds", [(0.0, 4.0), (1.0, 900.0)])
def test_effective_parameters_and_their_derivatives_equal_torchs(
    fake_driver: FakeDriver, variant: str, bounds: tuple[float, float]
) -> None:
    timescales = Timescales(bounds, 0.5, 5.0, variant)
    torch.manual_seed(0)
    protos = [
        torch.randn(2, 13, 30, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 7, dtype=torch.float64, requires_grad=True),
    ]
    with torch.no_grad():
        protos[0][0, 0, :3] = torch.tensor([0.0, -0.0, float("nan")])
        protos[1][0, 0] = -1e4  # a time constant of 0 where the bound is
    tau_s = torch.tensor([0.0, 1e-9, 5.0], dtype=torch.float64)

    def results(twice: bool) -> list[torch.Tensor]:
        found = list(effective(*protos, tau_s, timescales))
        weights = [torch.arange(1.0, r.numel() + 1, dtype=r.dtype).view(r.shape) for r in found]
        loss = torch.stack([(r * w).nansum() for r, w in zip(found, weights, strict=True)]).sum()
        grads = torch.autograd.grad(loss, protos, create_graph=twice)
        second = torch.autograd.grad((grads[1] ** 2).sum(), protos[1]) if twice else ()
        return [t.detach() for t in (*found, *grads, *second)]

    fused = results(False)
    assert [name for name, *_ in fake_driver.launched] == ["elm_effective", "elm_effective_backward"]
    fused_twice = results(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_effective, "_kernels", lambda *_: None)
        expected, expected_twice = results(False), results(True)
    for result, wanted in zip(fused + fused_twice, expected + expected_twice, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-12, atol=1e-14, equal_nan=True)


def test_effective_parameters_of_a_neuron_that_learns_no_time_constants(fake_driver: FakeDriver) -> None:
    cell = ELM(3, 1, 4, learn_tau_m=False, learn_w_s=False, backend="cuda").cell
    params = cell.effective_parameters()
    assert not params.kappa_m.requires_grad and not params.w_s.requires_grad
    assert_close(params.w_s, cell.w_s)
    cell = ELM(3, 1, 4, learn_tau_m=False, backend="cuda").cell
    params = cell.effective_parameters()
    (params.w_s.sum() + params.gain.sum() + params.kappa_m.sum()).backward()
    assert_close(cell._proto_w_s.grad, torch.ones_like(cell._proto_w_s))  # type: ignore[arg-type]


@looked_into
def test_compiled_code_has_no_graph_break(fake_driver: FakeDriver) -> None:
    torch.manual_seed(0)
    neuron = ELM(7, 2, num_memory=3, backend="cuda")
    x = torch.rand(2, 5, 7)
    expected = everything(neuron, "cuda", x, None, None)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ELMState]:
        y, state = backends.scan(x, neuron.cell.effective_parameters(), None, backend="cuda")
        return y, state

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    neuron.zero_grad()
    y, state = compiled(x)
    assert_close(y.detach(), expected[0])
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (r * torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype)).sum() for r in (y, *state)
    )
    loss.backward()  # type: ignore[union-attr]
    for parameter, wanted in zip(neuron.parameters(), expected[3:-1], strict=True):
        assert_close(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad, wanted)


def test_compiled_code_does_not_trace_how_it_is_found_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*_: int) -> str | None:
        return "nothing" if list(Path().glob("no such file")) else None  # torch.compile refuses to trace this

    monkeypatch.setattr(_available, "_missing_parts", search)
    monkeypatch.setattr(_available, "_broken", search)
    here = _available.missing()  # where there is no GPU, that

    def run(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if _available.missing() == here and _available.broken(0) is None else x - 1

    assert torch.compile(run, fullgraph=True, backend="eager")(torch.zeros(1)).item() == 1.0


@pytest.mark.parametrize(
    "options",
    [
        {}, {"num_mlp_layers": 0}, {"num_neuron": 2, "activation": "silu"}, {"recompute_every": 2},
        {"tau_s": tuple(1.0 + i for i in range(7))},
    ],
)  # fmt: skip
@pytest.mark.parametrize("events", [False, True])
def test_second_derivatives_are_the_references(fake_driver: FakeDriver, options: dict[str, Any], events: bool) -> None:
    """By parameters, frames and the state before them, of output and state after; some steps are past an end."""
    found = []
    for backend in ("cuda", "reference"):
        torch.manual_seed(0)
        neuron = ELM(7, 2, num_memory=3, backend=backend, **options).double()
        frames = torch.poisson(torch.full((2, 4, 7), 0.7, dtype=torch.float64)).requires_grad_(not events)
        state = [torch.rand_like(part, requires_grad=True) for part in neuron.cell.initial_state(2)]
        leaves = [*neuron.parameters(), *state, *(() if events else (frames,))]
        x = SpikeEvents.from_frames(frames) if events else frames
        y, after = neuron(x, ELMState(*state), torch.tensor([4, 2]))
        loss = y.sin().sum() + after.m.sin().sum() + after.b.sin().sum()
        grads = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
        penalty = torch.stack([grad.square().sum() for grad in grads if grad is not None]).sum()
        found.append((*grads, *torch.autograd.grad(penalty, leaves, allow_unused=True)))
    assert any(result is not None and result.any() for result in found[0])
    for result, wanted in zip(*found, strict=True):
        torch.testing.assert_close(result, wanted)


def test_operands_that_are_changed_before_the_backward_pass_are_noticed(fake_driver: FakeDriver) -> None:
    neuron = ELM(7, 2, num_memory=3, backend="cuda")
    state = [part + 1.0 for part in neuron.cell.initial_state(1)]
    y, after = neuron(torch.rand(1, 4, 7), ELMState(*state))
    assert y.add_(1.0).grad_fn is not None and after.m.mul_(2.0).grad_fn is not None  # what it gave may be changed
    state[1].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_routing_of_inference_runs(fake_driver: FakeDriver) -> None:
    x = (torch.rand(3, 15, 20) < 0.2).float()
    with torch.inference_mode():
        neuron = BranchELM(20, 3, 5, num_branch=30, num_synapse_per_branch=5, routing="random", backend="cuda")
        for given_ in (x, SpikeEvents.from_frames(x), x.to(torch.uint8)):
            neuron.backend = "cuda"
            found = neuron(given_)[0]
            neuron.backend = "reference"
            assert_close(found, neuron(given_)[0])
    neuron.backend = "cuda"
    with torch.no_grad():  # outside of it too
        assert_close(neuron(x)[0], found)


def test_a_learned_decay_of_the_branches_is_refused(fake_driver: FakeDriver) -> None:
    neuron = ELM(7, 2, num_memory=3, backend="cuda")
    neuron.cell.tau_s.requires_grad_()
    with pytest.raises(ValueError, match="no gradient of the branches' decay"):
        neuron(torch.rand(1, 4, 7))


@pytest.mark.parametrize(
    ("make", "x", "reason"),
    [
        (lambda: ELM(3, 1, 4, num_mlp_layers=2), torch.ones(1, 2, 3), "at most 1 hidden layer, got 2"),
        (lambda: ELM(3, 1, 2000), torch.ones(1, 2, 3), "at most 1024 memory or hidden units, got 4000"),
        (lambda: ELM(3, 1, 4, num_neuron=70000), torch.ones(1, 2, 3), "at most 65535 neurons, got 70000"),
        (
            lambda: ELM(840, 1, 1, num_neuron=20000, num_mlp_layers=0),
            torch.zeros(1).expand(1, 2, 20000, 840),
            "at most 16776960 inputs or branches, over all neurons, got 16800000",
        ),
        (
            lambda: ELM(3, 1, 4),
            torch.ones(1, 2, 3, device="meta"),
            "tensors on meta have no numbers",
        ),
    ],
)
def test_what_has_no_kernel_is_refused_by_name(
    fake_driver: FakeDriver, make: Any, x: torch.Tensor, reason: str
) -> None:
    params = make().cell.effective_parameters()
    with pytest.raises(ValueError, match=f'backend "cuda" cannot run this: .*{reason}'):
        backends.scan(x, params, None, backend="cuda")


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        assert backends.available()["cuda"] == "cannot run: no NVIDIA GPU that torch can use"
        with pytest.raises(RuntimeError, match='backend "cuda" cannot run: no NVIDIA GPU that torch can use'):
            ELM(3, 1, backend="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def no_driver() -> None:
        raise _driver.CudaError("no CUDA driver: it is gone")

    monkeypatch.setattr(_driver, "launcher", no_driver)
    monkeypatch.setattr(_compile, "compiler", lambda: None)
    _available._missing_parts.cache_clear()
    assert backends.available()["cuda"] == "cannot run: no CUDA driver: it is gone"
    _available._missing_parts.cache_clear()


@pytest.mark.parametrize(
    "options", [{}, {"num_neuron": 2, "num_mlp_layers": 0}, {"num_neuron": 2, "activation": "silu"}]
)
@pytest.mark.parametrize("events", [False, True])
def test_parameters_that_are_effective_already_may_be_differentiated_by(
    fake_driver: FakeDriver, options: dict[str, Any], events: bool
) -> None:
    """A neuron hands over what it learns; who has effective parameters, these."""
    torch.manual_seed(0)
    params = ELM(7, 2, num_memory=3, **options).double().cell.effective_parameters()
    frames = torch.poisson(torch.full((2, 9, 7), 0.5, dtype=torch.float64)).requires_grad_(not events)
    x: Any = SpikeEvents.from_frames(frames) if events else frames
    neurons = params.kappa_m.shape[:-1]
    state = ELMState(*(torch.rand(2, *neurons, n, dtype=torch.float64, requires_grad=True) for n in (7, 3)))
    leaves = {name: getattr(params, name).detach().requires_grad_() for name in ("w_s", "kappa_m", "gain")}
    inputs = [*leaves.values(), *params.mlp_weight, *params.mlp_bias, params.w_y, params.b_y, *state]
    inputs += [] if events else [frames]
    found = []
    for backend in ("cuda", "reference"):
        y, after = backends.scan(x, params._replace(**leaves), state, lengths=torch.tensor([9, 4]), backend=backend)
        loss = y.sin().sum() + after.m.sin().sum() + after.b.sin().sum()
        found.append((y, *after, *torch.autograd.grad(loss, inputs)))
    for result, wanted in zip(*found, strict=True):
        torch.testing.assert_close(result, wanted)


@pytest.mark.parametrize("options", [{}, {"num_mlp_layers": 0}, {"num_neuron": 2, "activation": "silu"}])
@pytest.mark.parametrize("most_work", [0, 2**24])
def test_a_loss_of_the_state_alone_has_the_references_gradient(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], most_work: int
) -> None:
    monkeypatch.setattr(_cuda_plan, "MAX_WORK", most_work)
    x, found = torch.rand(2, 9, 7, dtype=torch.float64), []
    for backend in ("cuda", "reference"):
        torch.manual_seed(0)
        neuron = ELM(7, 2, num_memory=3, backend=backend, **options).double()
        _, after = neuron(x, lengths=torch.tensor([9, 4]))
        learned = [parameter for name, parameter in neuron.named_parameters() if "w_y" not in name]
        found.append(torch.autograd.grad(after.m.sin().sum() + after.b.sin().sum(), learned))
    for result, wanted in zip(*found, strict=True):
        torch.testing.assert_close(result, wanted)


@pytest.mark.parametrize("kind", ["frames", "events", "bytes"])
@pytest.mark.parametrize("make", [lambda: ELM(7, 2, num_memory=3), lambda: ALIF(7, 4, recurrent=True)])
def test_lengths_that_nobody_may_look_at_stay_within_the_sequence(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, make: Any, kind: str
) -> None:
    x = (torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    given: Any = {"frames": x, "events": SpikeEvents.from_frames(x), "bytes": x.to(torch.uint8)}[kind]
    monkeypatch.setattr(_shapes, "bounds_of", lambda lengths: None)
    found = []
    for lengths in ([-3, 99, 2], [0, 5, 2]):
        torch.manual_seed(0)
        layer = make()
        layer.backend = "cuda"
        y, state = layer(given, None, torch.tensor(lengths))
        y.sum().backward()
        found.append([y.detach(), *(part.detach() for part in state), *(p.grad for p in layer.parameters())])
    for wrong, right in zip(*found, strict=True):
        assert torch.equal(wrong, right)
