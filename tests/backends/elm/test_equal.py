"""Every backend gives the numbers of the reference, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from elm_neuro import ELM, BranchELM, ELMState, SpikeEvents
from tests import oracle
from tests.backends.equal_cases import BACKENDS, FAST, cases, everything
from tests.strategies import frames, neurons
from tests.tolerances import assert_close


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=60, deadline=None)
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


@pytest.mark.grid(every=3)
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_sequences_and_batches_give_empty_outputs_and_the_state_back(backend: str) -> None:
    neuron = ELM(3, 2, num_memory=4, backend=backend)
    start = ELMState(torch.randn(2, 3), torch.randn(2, 4))
    y, after = neuron(torch.zeros(2, 0, 3), start)
    assert y.shape == (2, 0, 2) and all(torch.equal(a, b) for a, b in zip(after, start, strict=True))
    y, _ = neuron(torch.zeros(0, 5, 3))
    assert y.shape == (0, 5, 2)


@pytest.mark.parametrize("backend", FAST)
def test_a_graph_kept_for_a_second_backward_pass_gives_the_same_gradients(backend: str) -> None:
    neuron = ELM(3, 1, num_memory=2, activation="silu", backend=backend)
    loss = neuron(torch.rand(2, 40, 3))[0].square().sum()
    first = torch.autograd.grad(loss, list(neuron.parameters()), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, list(neuron.parameters())), strict=True):
        assert torch.equal(a, b)


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


@pytest.mark.grid(every=3)
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
