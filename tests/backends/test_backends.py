from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from elm_neuro import ELM, BranchELM, ELMState, SpikeEvents, backends
from elm_neuro.backends.native import _events as _compiled_events
from elm_neuro.backends.native import _library
from elm_neuro.backends.parts._filter import leaky_filter
from tests import oracle
from tests.strategies import frames, neurons
from tests.tolerances import assert_close

# What must equal the reference. A missing library is no reason to skip: test_native.py says when it may be missing.
FAST = ["torch", "native"] if not _library.missing() else ["torch"]
BACKENDS = ["reference", *FAST]


def everything(
    neuron: ELM, backend: str, x: Any, state: ELMState | None, lengths: torch.Tensor | None
) -> list[torch.Tensor]:
    """Output, final state, and the gradients of a random function of them in every parameter, the input and the first state."""
    neuron.backend = backend
    leaves = [*neuron.parameters(), *([x] if isinstance(x, torch.Tensor) else []), *(state or ())]
    for leaf in leaves:
        leaf.grad = None
    y, after = neuron(x, state, lengths)
    generator = torch.Generator().manual_seed(7)
    results = [y, *after]
    loss = sum((r * torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype)).sum() for r in results)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    return [r.detach() for r in results] + [
        torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves
    ]


@st.composite
def cases(
    draw: st.DrawFn, dtype: torch.dtype = torch.float64
) -> tuple[ELM, torch.Tensor, ELMState | None, torch.Tensor | None]:
    neuron = draw(neurons(dtype=dtype))
    x = draw(frames(neuron, dtype=dtype)).requires_grad_(draw(st.booleans()))
    batch, num_steps = x.shape[:2]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    state = None
    if draw(st.booleans()):
        zeros = neuron.cell.initial_state(batch)
        state = ELMState(
            *(torch.randn(part.shape, generator=generator, dtype=dtype).requires_grad_() for part in zeros)
        )
    lengths = torch.randint(0, num_steps + 1, (batch,), generator=generator) if draw(st.booleans()) else None
    return neuron, x, state, lengths


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=120, deadline=None)
@given(case=cases(), recompute_every=st.sampled_from([None, None, 1, 7]))
def test_backends_equal_reference_in_outputs_and_all_gradients(
    backend: str, case: Any, recompute_every: int | None
) -> None:
    neuron, x, state, lengths = case
    expected = everything(neuron, "reference", x, state, lengths)
    neuron.recompute_every = recompute_every
    for result, wanted in zip(everything(neuron, backend, x, state, lengths), expected, strict=True):
        assert_close(result, wanted)


@settings(max_examples=60, deadline=None)
@given(case=cases(), backend=st.sampled_from(BACKENDS), recompute_every=st.sampled_from([None, None, 5]))
def test_events_equal_frames_in_outputs_and_all_gradients(case: Any, backend: str, recompute_every: int | None) -> None:
    neuron, x, state, lengths = case
    if x.ndim == 4:
        x = x[:, :, 0].detach()
    x = x.detach()
    expected = everything(neuron, backend, x, state, lengths)
    neuron.recompute_every = recompute_every
    results = everything(neuron, backend, SpikeEvents.from_frames(x), state, lengths)
    count = len(list(neuron.parameters()))
    for result, wanted in zip(results, expected[: 3 + count] + expected[4 + count :], strict=True):
        assert_close(result, wanted)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("sparse_input", ["on", "off"])
@settings(max_examples=40, deadline=None)
@given(case=cases(), recompute_every=st.sampled_from([None, 5]))
def test_frames_searched_for_events_or_not_equal_the_reference(
    backend: str, sparse_input: str, case: Any, recompute_every: int | None
) -> None:
    neuron, x, state, lengths = case
    if sparse_input == "on":
        x = (x[:, :, 0] if x.ndim == 4 else x).detach()
    expected = everything(neuron, "reference", x, state, lengths)
    neuron.recompute_every, neuron.sparse_input = recompute_every, sparse_input
    for result, wanted in zip(everything(neuron, backend, x, state, lengths), expected, strict=True):
        assert_close(result, wanted)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    ("sparse_input", "searches"), [("auto", (True, False)), ("on", (True, True)), ("off", (False, False))]
)
def test_events_are_made_of_frames_always_never_or_by_density(
    backend: str, sparse_input: str, searches: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    neuron = ELM(100, 2, num_memory=40, sparse_input=sparse_input, backend=backend)
    wanted = ELM.from_config(neuron.config, backend="reference")
    wanted.load_state_dict(neuron.state_dict())
    made: list[bool] = []
    from_frames, compacted = SpikeEvents.from_frames, _compiled_events.Events.compacted

    def noted(events: Any) -> Any:
        made.append(events is not None)
        return events

    monkeypatch.setattr(SpikeEvents, "from_frames", lambda frames: noted(from_frames(frames)))
    monkeypatch.setattr(
        _compiled_events.Events, "compacted", lambda *given, **density: noted(compacted(*given, **density))
    )
    for density, found in zip((0.01, 0.5), searches, strict=True):
        x = (torch.rand(3, 64, 100) < density).float()
        made.clear()
        results = everything(neuron, backend, x, None, None)
        assert any(made) is found
        for result, expected in zip(results, everything(wanted, "reference", x, None, None), strict=True):
            assert_close(result, expected, scale=10.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_that_cannot_be_events_are_refused_where_events_are_asked_for(backend: str) -> None:
    neuron = ELM(4, 2, num_memory=3, num_neuron=2, sparse_input="on", backend=backend)
    assert "sparse_input='on'" in repr(neuron)
    x = torch.ones(2, 5, 4, requires_grad=True)
    with pytest.raises(
        ValueError, match='sparse_input="on" takes frames that need no gradient, got x with requires_grad'
    ):
        neuron(x)
    with torch.no_grad():
        y = neuron(x)[0]
    assert_close(neuron(SpikeEvents.from_frames(x))[0], y)
    with pytest.raises(
        ValueError, match=r'sparse_input="on" takes frames of shape \(batch, time, input_size\), got \(2, 5, 2, 4\)'
    ):
        neuron(torch.ones(2, 5, 2, 4))
    with pytest.raises(ValueError, match='sparse_input="on" takes frames on the CPU, or events, got x on meta'):
        backends.scan(
            x.detach().to("meta"), neuron.cell.effective_parameters(), neuron.cell.initial_state(2), sparse_input="on"
        )


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=40, deadline=None)
@given(case=cases(torch.float32), recompute_every=st.sampled_from([None, 7]))
def test_float32_stays_within_the_table_of_the_float64_reference(
    backend: str, case: Any, recompute_every: int | None
) -> None:
    neuron, x, state, lengths = case
    # a trace that underflows in float32 lies on the other side of relu's kink than in float64: both slopes are right
    assume(neuron.config.branch_activation != "relu")
    neuron.recompute_every = recompute_every
    results = everything(neuron, backend, x, state, lengths)
    state64 = None if state is None else ELMState(*(part.detach().double().requires_grad_() for part in state))
    neuron.recompute_every = None
    expected = everything(
        neuron.double(), "reference", x.detach().double().requires_grad_(x.requires_grad), state64, lengths
    )
    for index, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        # gradients add up over steps: their rounding grows with the terms, not with the sum
        assert_close(result.double(), wanted, dtype=torch.float32, scale=1.0 if index < 3 else 10.0)


@settings(max_examples=40, deadline=None)
@given(neuron=neurons(populations=False), data=st.data(), backend=st.sampled_from(BACKENDS))
def test_outputs_are_those_of_a_loop_over_single_synapses(neuron: ELM, data: st.DataObject, backend: str) -> None:
    x = data.draw(frames(neuron, max_steps=12))
    neuron.backend = backend
    rng = np.random.default_rng(0)
    start = ELMState(*(torch.from_numpy(rng.normal(size=part.shape)) for part in neuron.cell.initial_state(x.shape[0])))
    y, after = neuron(x, start)
    for sample in range(x.shape[0]):
        y_s, b_s, m_s = oracle.run(
            neuron.cell, x[sample].numpy(), b_0=start.b[sample].numpy(), m_0=start.m[sample].numpy()
        )
        for result, expected in ((y[sample], y_s), (after.b[sample], b_s), (after.m[sample], m_s)):
            assert_close(result.detach(), torch.from_numpy(expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_mlp_layers": 2, "activation": "silu"}, {"num_neuron": 2}, {"tau_s": (1.0, 4.0, 9.0)}, {"variant": "v2"}],
)
def test_sequence_passes_gradcheck(options: dict[str, Any], backend: str) -> None:
    torch.manual_seed(1)
    neuron = ELM(3, 2, num_memory=2, backend=backend, **options).double()
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in neuron.named_parameters()), strict=True)
    x = torch.rand(2, 5, 3, dtype=torch.float64, requires_grad=True)
    start = [torch.randn_like(part).requires_grad_() for part in neuron.cell.initial_state(2)]

    def run(x: torch.Tensor, b: torch.Tensor, m: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, after = torch.func.functional_call(
            neuron, dict(zip(names, values, strict=True)), (x, ELMState(b, m), torch.tensor([5, 3]))
        )
        return y, *after

    assert torch.autograd.gradcheck(run, (x, *start, *values))


@settings(max_examples=30, deadline=None)
@given(
    num_steps=st.sampled_from([1, 2, 31, 32, 33, 64, 65, 97]),
    kappa=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3),
    one=st.booleans(),
    neurons=st.booleans(),
)
def test_filter_equals_its_recursion_forward_and_backward(
    num_steps: int, kappa: list[float], one: bool, neurons: bool
) -> None:
    torch.manual_seed(0)
    shape = (2, num_steps, *((4,) if neurons else ()), 3)
    k = torch.tensor(kappa[0] if one else kappa, dtype=torch.float64)
    v, initial = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True),
        torch.randn(2, *shape[2:], dtype=torch.float64, requires_grad=True),
    )
    steps, f = [], initial
    for v_t in v.unbind(1):
        f = k * f + v_t
        steps.append(f)
    expected = torch.stack(steps, 1)
    weight = torch.randn_like(expected)
    result = leaky_filter(v, k, initial)
    assert_close(result, expected)
    for got, wanted in zip(
        torch.autograd.grad((result * weight).sum(), (v, initial)),
        torch.autograd.grad((expected * weight).sum(), (v, initial)),
        strict=True,
    ):
        assert_close(got, wanted)


def test_sparse_frames_take_the_event_path_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    neuron = BranchELM(200, 2, num_memory=20, num_branch=40, num_synapse_per_branch=10).double()
    x = (torch.rand(2, 99, 200) < 0.01).double()
    results = everything(neuron, "torch", x, None, None)
    converted = []
    original = SpikeEvents.from_frames
    monkeypatch.setattr(SpikeEvents, "from_frames", lambda frames: converted.append(1) or original(frames))
    everything(neuron, "torch", x, None, None)
    assert converted == [1]
    monkeypatch.setattr("elm_neuro.backends.parts._projection.SPARSE_DENSITY", -1.0)
    for result, wanted in zip(results, everything(neuron, "torch", x, None, None), strict=True):
        assert_close(result, wanted)
    assert converted == [1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_sequences_and_batches_give_empty_outputs_and_the_state_back(backend: str) -> None:
    neuron = ELM(3, 2, num_memory=4, backend=backend)
    start = ELMState(torch.randn(2, 3), torch.randn(2, 4))
    y, after = neuron(torch.zeros(2, 0, 3), start)
    assert y.shape == (2, 0, 2) and all(torch.equal(a, b) for a, b in zip(after, start, strict=True))
    y, _ = neuron(torch.zeros(0, 5, 3))
    assert y.shape == (0, 5, 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_silent_events_equal_silent_frames(backend: str) -> None:
    neuron = ELM(3, 2, num_memory=4, backend=backend)
    x = torch.zeros(2, 7, 3)
    assert_close(neuron(SpikeEvents.from_frames(x))[0], neuron(x)[0])


@pytest.mark.parametrize("backend", FAST)
def test_a_graph_kept_for_a_second_backward_pass_gives_the_same_gradients(backend: str) -> None:
    neuron = ELM(3, 1, num_memory=2, activation="silu", backend=backend)
    loss = neuron(torch.rand(2, 40, 3))[0].square().sum()
    first = torch.autograd.grad(loss, list(neuron.parameters()), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, list(neuron.parameters())), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", FAST)
def test_second_derivatives_are_refused_clearly(backend: str) -> None:
    neuron = ELM(3, 1, num_memory=2, backend=backend)
    x = torch.rand(1, 4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(neuron(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='no second derivative; backend="reference" has'):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("given", ["frames", "events"])
def test_a_penalty_on_a_gradient_that_flows_from_a_constant_is_refused_too(backend: str, given: str) -> None:
    """The incoming gradient of a sum needs none itself: torch's own check would let the result pass as a constant."""
    neuron = ELM(3, 1, num_memory=2, backend=backend)
    neuron.cell.w_y.requires_grad_(False)
    x = torch.rand(1, 4, 3)
    y = neuron(SpikeEvents.from_frames(x) if given == "events" else x)[0]
    leaves = [p for p in neuron.parameters() if p.requires_grad]
    penalty = sum(g.square().sum() for g in torch.autograd.grad(y.sum(), leaves, create_graph=True))
    with pytest.raises(RuntimeError, match="no second derivative"):
        penalty.backward()  # type: ignore[union-attr]


def test_choice_of_backend_by_name_by_context_and_automatically() -> None:
    best = FAST[-1]
    assert set(backends.available()) == {"cuda", "native", "reference", "torch"}
    assert backends.resolve("auto") == best
    neuron, fixed = ELM(3, 1), ELM(3, 1, backend="torch")
    with backends.use("reference"):
        assert "backend='reference'" in repr(neuron) and "backend='torch'" in repr(fixed)
    assert f"backend='{best}'" in repr(neuron)
    with pytest.raises(ValueError, match=r"backend must be .auto. or one of .*, got 'cuda-magic'"):
        ELM(3, 1, backend="cuda-magic")
    with pytest.raises(ValueError, match="backend must be"), backends.use("fpga"):
        pass


@pytest.mark.parametrize("backend", FAST)
def test_recomputing_holds_less_memory_and_gives_the_same_gradients(backend: str) -> None:
    neuron = ELM(16, 3, num_memory=20, backend=backend)
    x = torch.nn.functional.one_hot(torch.randint(16, (2, 400)), 16).float()
    saved = {}
    gradients = {}
    for every in (None, 20):
        neuron.recompute_every = every
        neuron.zero_grad()
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y, _ = neuron(x)
        saved[every] = sum(sizes.values())
        y.square().sum().backward()
        gradients[every] = [p.grad.clone() for p in neuron.parameters() if p.grad is not None]
    assert saved[20] < saved[None] / 3
    for a, b in zip(gradients[None], gradients[20], strict=True):
        assert_close(a, b, scale=10.0)


@pytest.mark.parametrize("num_steps", [1, 32, 33, 97])
@pytest.mark.parametrize("branched", [False, True])
@pytest.mark.parametrize("backend", FAST)
def test_a_single_branch_with_its_own_time_constant_works_at_any_length(
    backend: str, num_steps: int, branched: bool
) -> None:
    neuron: ELM = (
        BranchELM(4, 2, num_memory=2, num_branch=1, num_synapse_per_branch=4, routing=None, tau_s=(5.0,))
        if branched
        else ELM(1, 2, num_memory=2, tau_s=(5.0,))
    ).double()
    x = torch.rand(2, num_steps, neuron.config.input_size, dtype=torch.float64, requires_grad=True)
    for result, wanted in zip(
        everything(neuron, backend, x, None, None), everything(neuron, "reference", x, None, None), strict=True
    ):
        assert_close(result, wanted)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("tau", [1e6, 2e7, 1e9])
def test_memory_that_hardly_decays_in_float32_follows_the_reference(backend: str, variant: str, tau: float) -> None:
    torch.manual_seed(0)
    neuron = ELM(4, 1, num_memory=3, variant=variant, tau_m_init=(tau, tau), tau_m_bounds=(1.0, 1e10))
    start = ELMState(torch.zeros(1, 4), torch.full((1, 3), 0.5))
    ours, theirs = (everything(neuron, name, torch.ones(1, 500, 4), start, None) for name in (backend, "reference"))
    for result, wanted in zip(ours, theirs, strict=True):
        assert_close(result, wanted, scale=10.0)  # a decay of 1 - 6e-8 for one that rounds to 1, over 500 steps


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_of_events_gives_an_empty_output(backend: str) -> None:
    y, _ = ELM(4, 2, num_memory=3, backend=backend)(SpikeEvents.from_frames(torch.zeros(0, 3, 4)))
    assert y.shape == (0, 3, 2)


@pytest.mark.parametrize("backend", FAST)
def test_the_final_state_does_not_keep_the_record_alive(backend: str) -> None:
    for neuron in (ELM(6, 2, num_memory=4, backend=backend), ELM(6, 2, num_memory=40, backend=backend)):
        _, state = neuron(torch.rand(2, 100, 6))
        for part in state:
            assert part.untyped_storage().nbytes() == part.numel() * part.element_size()


@pytest.mark.parametrize("backend", FAST)
def test_frames_with_an_odd_storage_offset_work(backend: str) -> None:
    base = (torch.rand(1, 103, 65) < 0.01).float()
    neuron = ELM(65, 2, num_memory=32, backend=backend)
    assert torch.equal(neuron(base[:, 1:])[0], neuron(base[:, 1:].clone())[0])
