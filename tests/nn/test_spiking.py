from __future__ import annotations

import copy
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_neuro import ELM, LIF, BranchELM, ELMNetwork, SpikingELM
from elm_neuro.functional import ATan, Boxcar, FastSigmoid, MultiGaussian, bernoulli_spike
from elm_neuro.nn import SpikeOutput
from tests.tolerances import assert_close

SURROGATES = [FastSigmoid(), ATan(), Boxcar(), MultiGaussian()]


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_surrogates_step_at_zero_and_keep_dtype_and_pickle(surrogate: Any, dtype: torch.dtype) -> None:
    x = torch.tensor([-0.5, 0.0, 1e-3, 2.0], dtype=dtype, requires_grad=True)
    spikes = pickle.loads(pickle.dumps(copy.deepcopy(surrogate)))(x)
    assert spikes.dtype == dtype and spikes.tolist() == [0.0, 0.0, 1.0, 1.0]
    spikes.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype


def test_slopes_are_their_formulas() -> None:
    x = np.linspace(-3, 3, 301)

    def normal(mean: float, sigma: float) -> np.ndarray:
        return np.exp(-((x - mean) ** 2) / (2 * sigma**2)) / np.sqrt(2 * np.pi * sigma**2)

    expected = {
        FastSigmoid(25.0): 1 / (1 + 25 * np.abs(x)) ** 2,
        ATan(2.0): 1 / (1 + (math.pi * x) ** 2),
        Boxcar(): 0.5 * (np.abs(x) < 0.5),
        MultiGaussian(): 0.5 * (1.15 * normal(0, 0.5) - 0.15 * normal(0.5, 3.0) - 0.15 * normal(-0.5, 3.0)),
    }
    for surrogate, slope in expected.items():
        t = torch.from_numpy(x).requires_grad_()
        surrogate(t).sum().backward()
        np.testing.assert_allclose(t.grad.numpy(), slope, rtol=1e-12, atol=1e-15)  # type: ignore[union-attr]


def test_atan_is_snntorchs_default() -> None:
    snn = pytest.importorskip("snntorch")
    x = torch.linspace(-2, 2, 101)
    x = x[x != 0]
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = ATan()(ours), snn.surrogate.atan()(theirs)
    assert torch.equal(a, b)
    assert_close(torch.autograd.grad(a.sum(), ours)[0], torch.autograd.grad(b.sum(), theirs)[0])


def test_bernoulli_spikes_have_their_probability_and_its_gradient() -> None:
    logit = torch.full((20_000,), 0.4, dtype=torch.float64, requires_grad=True)
    spikes = bernoulli_spike(logit, torch.Generator().manual_seed(0))
    p = 1 / (1 + math.exp(-0.4))
    assert abs(float(spikes.detach().mean()) - p) < 4 * math.sqrt(p * (1 - p) / 20_000)
    spikes.sum().backward()
    assert logit.grad is not None
    assert_close(logit.grad, torch.full_like(logit, p * (1 - p)).detach())
    again = bernoulli_spike(logit, torch.Generator().manual_seed(0))
    assert torch.equal(spikes, again)


@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
def test_spikes_follow_the_definition_step_by_step(reset: str) -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(1.0, 1.0, size=(2, 40, 3))
    s, expected_v, expected_s = np.zeros((2, 3)), np.zeros_like(y), np.zeros_like(y)
    for t in range(40):
        v = {"none": y[:, t], "subtract": y[:, t] - 0.75 * s, "zero": y[:, t] * (1 - s)}[reset]
        s = (v > 0.75).astype(float)
        expected_v[:, t], expected_s[:, t] = v, s
    output = SpikeOutput(threshold=0.75, reset=reset, graded_factor=2.5).double()
    spikes, v_all, s_all = output(torch.from_numpy(y))
    np.testing.assert_allclose(v_all.numpy(), expected_v, rtol=1e-6)
    np.testing.assert_array_equal(s_all.numpy(), expected_s)
    np.testing.assert_allclose(spikes.numpy(), 2.5 * expected_s)


@settings(max_examples=25, deadline=None)
@given(
    reset=st.sampled_from(["none", "subtract", "zero"]),
    population=st.sampled_from([None, 3]),
    flat=st.booleans(),
    cut=st.integers(0, 20),
    seed=st.integers(0, 99),
)
def test_sequence_steps_and_splits_agree(reset: str, population: int | None, flat: bool, cut: int, seed: int) -> None:
    torch.manual_seed(seed)
    neuron = SpikingELM(
        ELM(4, 2, num_memory=5, num_neuron=population, flatten_output=flat, w_s_init=2.0), threshold=0.1, reset=reset
    ).double()
    x = torch.poisson(torch.full((3, 20, 4), 0.6, dtype=torch.float64))
    whole, end = neuron(x)
    first, state = neuron(x[:, :cut])
    second, after = neuron(x[:, cut:], state)
    assert torch.equal(torch.cat([first, second], 1), whole)
    steps, stepped = [], None
    for x_t in x.unbind(1):
        s_t, stepped = neuron.step(x_t, stepped)
        steps.append(s_t)
    assert torch.equal(torch.stack(steps, 1), whole)
    assert stepped is not None
    for a, b, c in zip(end, after, stepped, strict=True):
        assert_close(a, b)
        assert_close(a, c)


def test_lengths_freeze_readout_and_spikes_too() -> None:
    torch.manual_seed(0)
    neuron = SpikingELM(ELM(4, 2, num_memory=5, w_s_init=2.0), threshold=0.1, reset="subtract")
    x = torch.poisson(torch.full((3, 20, 4), 0.6))
    lengths = torch.tensor([20, 7, 0])
    spikes, end = neuron(x, None, lengths)
    assert (spikes[1, 7:] == 0).all() and (spikes[2] == 0).all()
    short, wanted = neuron(x[1:2, :7])
    assert torch.equal(spikes[1:2, :7], short)
    for part, expected in zip(end, wanted, strict=True):
        assert_close(part[1:2], expected)
        assert (part[2] == 0).all()


def test_learned_thresholds_and_factors_get_gradients() -> None:
    neuron = SpikingELM(
        ELM(4, 3, num_memory=5), threshold=torch.zeros(3), learn_threshold=True, learn_graded_factor=True
    )
    spikes, _ = neuron(torch.rand(2, 30, 4))
    spikes.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in neuron.parameters())
    assert neuron.output.threshold.grad is not None and (neuron.output.threshold.grad != 0).all()


@pytest.mark.parametrize("reset", ["none", "subtract"])
def test_spikes_that_rounding_moves_from_1_are_1(reset: str) -> None:
    def straight_through(distance: torch.Tensor) -> torch.Tensor:
        smooth = 7.0 * torch.sigmoid(3.0 * distance)
        return (distance > 0).to(distance.dtype) + smooth - smooth.detach()

    torch.manual_seed(0)
    core, x = ELM(8, 40, num_memory=5), torch.rand(4, 30, 8)
    neuron, readout = SpikingELM(core, threshold=0.02, surrogate=straight_through, reset=reset), core(x)[0]
    assert not bool((straight_through(readout - 0.02).frac() == 0).all())  # moved they are
    spikes, state = neuron(x)
    assert set(spikes.unique().tolist()) == {0.0, 1.0} and set(state.s.unique().tolist()) == {0.0, 1.0}
    if reset == "none":
        assert torch.equal(spikes, (readout > 0.02).float())
        smooth = torch.sigmoid(3.0 * (readout - 0.02))
        wanted = torch.autograd.grad((21.0 * smooth * (1.0 - smooth)).detach().mul(readout).sum(), core.cell.w_y.weight)
        assert_close(torch.autograd.grad(spikes.sum(), core.cell.w_y.weight)[0], wanted[0])
    activity = ELMNetwork(8, 40, output="spike", surrogate=straight_through, binarize=False)(x)[0]
    assert set(activity.unique().tolist()) == {0.0, 1.0}


def test_copies_and_pickles_spike_alike() -> None:
    neuron = SpikingELM(
        BranchELM(8, 1, num_branch=2, num_synapse_per_branch=4, num_neuron=3), threshold=0.0, reset="zero"
    )
    x = torch.rand(2, 9, 8)
    for other in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert torch.equal(neuron(x)[0], other(x)[0])


def test_bad_input_is_named() -> None:
    core = ELM(4, 2, num_memory=5)
    with pytest.raises(ValueError, match=r"reset must be one of \['none', 'subtract', 'zero'\], got 'hard'"):
        SpikingELM(core, reset="hard")
    with pytest.raises(TypeError, match=r"core must be a layer .*, got Linear without input_size, output_size"):
        SpikingELM(torch.nn.Linear(3, 2))  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"surrogate must keep the dtype torch.float32 of the readout, got spikes of torch.float64"
    ):
        SpikingELM(core, surrogate=lambda d: (d > 0).double())(torch.zeros(1, 2, 4))
    neuron = SpikingELM(core)
    state = neuron.initial_state(2)
    with pytest.raises(ValueError, match=r"state.v must have shape \(2, 2\), got \(1, 2\)"):
        neuron(torch.zeros(2, 3, 4), state._replace(v=torch.zeros(1, 2)))
    with pytest.raises(TypeError, match="state must be a SpikingELMState of four tensors, got ELMState"):
        neuron(torch.zeros(2, 3, 4), core.cell.initial_state(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [LIF, ELM])
def test_a_layer_that_was_made_to_spike_can_be_once_more(kind: Any) -> None:
    """With a reset it spikes every other time at most: a spike of 1 right after one is not above the threshold."""
    torch.manual_seed(0)
    core, x = kind(3, 2), torch.rand(2, 9, 3)
    if kind is LIF:
        torch.nn.init.ones_(core.cell.weight)
    once = SpikingELM(core, threshold=0.5 if kind is LIF else core(x)[0].median().item())
    twice = SpikingELM(once, threshold=0.5, reset="zero")
    thrice = SpikingELM(twice, threshold=0.5)
    spikes = once(x)[0].detach().numpy()
    expected, last = np.zeros_like(spikes), np.zeros_like(spikes[:, 0])
    for step in range(9):
        expected[:, step] = last = spikes[:, step] * (1.0 - last) > 0.5
    assert 0 < expected.sum() < spikes.sum()
    first, state = thrice(x[:, :4])
    second, after = thrice(x[:, 4:], pickle.loads(pickle.dumps(state)))
    np.testing.assert_array_equal(torch.cat([first, second], 1).detach().numpy(), expected)
    fields = after._fields
    assert len(set(fields)) == len(fields) == len(once.initial_state(1)) + 4 and fields[-2:] == ("v", "s")


@pytest.mark.parametrize("name", ["threshold", "graded_factor"])
@pytest.mark.parametrize("sizes", [(4,), (5,), (0,), (2, 4, 1), (4, 2)])
def test_what_would_give_the_spikes_another_shape_is_named(name: str, sizes: tuple[int, ...]) -> None:
    core = ELM(3, 1, num_memory=2, num_neuron=4)
    with pytest.raises(ValueError, match=re.escape(f"{name} must be a number or have shape (4, 1), got {sizes}")):
        SpikingELM(core, **{name: torch.rand(sizes)})  # type: ignore[misc]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
@pytest.mark.parametrize("sizes", [(), (1,), (1, 1), (4,), (1, 4)])
def test_a_threshold_of_fewer_numbers_is_that_of_all(sizes: tuple[int, ...], backend: str, flat: bool) -> None:
    neuron: dict[str, Any] = {"output_size": 1, "num_neuron": 4, "flatten_output": True} if flat else {"output_size": 4}
    torch.manual_seed(0)
    core = ELM(3, num_memory=5, backend=backend, **neuron)
    x = torch.rand(2, 6, 3)
    y = core(x)[0].detach().numpy()
    threshold = torch.full(sizes, float(np.median(y)))
    spikes, state = SpikingELM(core, threshold=threshold, graded_factor=2.0 * torch.ones(sizes))(x)
    assert 0 < spikes.sum() < spikes.numel() * 2
    np.testing.assert_array_equal(spikes.detach().numpy(), 2.0 * (y > np.median(y)))
    stepped, _ = SpikingELM(core, threshold=threshold).step(x[:, 0])
    assert stepped.shape == (2, 4) == state.v.shape


def test_an_infinite_threshold_silences_a_layer_and_is_saved(tmp_path: Path) -> None:
    neuron = SpikingELM(ELM(3, 2, num_memory=2), threshold=math.inf)
    neuron.save_pretrained(tmp_path)
    for one in (neuron, SpikingELM.from_pretrained(tmp_path)):
        spikes, _ = one(torch.rand(2, 6, 3))
        spikes.sum().backward()
        assert not spikes.any() and all(p.grad is not None and p.grad.isfinite().all() for p in one.parameters())


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"threshold": math.nan}, ValueError, "threshold must be a number, got nan"),
        ({"threshold": torch.tensor([0.1, math.nan])}, ValueError, "threshold must be a number, got nan"),
        ({"threshold": math.inf, "reset": "subtract"}, ValueError, "threshold must be finite, got inf"),
        ({"graded_factor": -math.inf}, ValueError, "graded_factor must be finite, got -inf"),
        ({"threshold": True}, TypeError, "threshold must be a number or a tensor of numbers, got True"),
        ({"stochastic": "x"}, TypeError, "stochastic must be True or False, got 'x'"),
        ({"learn_threshold": "x"}, TypeError, "learn_threshold must be True or False, got 'x'"),
        ({"learn_graded_factor": 1}, TypeError, "learn_graded_factor must be True or False, got 1"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator, got 3"),
        ({"surrogate": 3}, TypeError, "surrogate must be called on the distance to threshold, got 3"),
    ],
)
def test_keywords_of_spikes_that_mean_nothing_are_named(
    keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        SpikeOutput(**keywords)
