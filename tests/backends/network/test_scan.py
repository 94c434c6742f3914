from __future__ import annotations

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from elm_neuro import SpikeEvents, backends
from elm_neuro.backends.network import OPERATOR, scan
from elm_neuro.functional import NetworkParams, NetworkRule, NetworkState, zero_network_state
from tests.backends.network.cases import Call, calls, everything, leaves, made
from tests.tolerances import assert_close

BACKENDS = [backend.name for backend in OPERATOR if backend.missing() is None]
SHAPES = [(True, False, ()), (False, True, (4,)), (True, True, (3, 5))]
FAST = [name for name in BACKENDS if name != "reference"]


def neuron_by_neuron(x: Tensor, params: NetworkParams, rule: NetworkRule) -> np.ndarray:
    """The activity as the paper writes it: one sample, neuron and synapse at a time, NumPy alone."""
    p = {name: np.asarray(value) for name, value in params._asdict().items() if isinstance(value, Tensor)}
    weights, biases = ([np.asarray(one) for one in part] for part in (params.mlp_weight, params.mlp_bias))
    nonlinear = {
        "relu": lambda z: np.maximum(z, 0),
        "relu_squared": lambda z: np.maximum(z, 0) ** 2,
        "silu": lambda z: z / (1 + np.exp(-z)),
    }[rule.activation]
    num_neuron, num_branch = p["bias"].shape[0], weights[0].shape[2] - p["kappa_m"].shape[1]
    per_branch = p["w_s"].shape[1] // num_branch
    out = np.zeros((*x.shape[:2], num_neuron))
    for sample in range(x.shape[0]):
        a, r = np.zeros(num_neuron), np.zeros(num_neuron)
        b, m = np.zeros((num_neuron, num_branch)), np.zeros_like(p["kappa_m"])
        for t in range(x.shape[1]):
            sources, new = np.concatenate([np.asarray(x[sample, t]), a]), np.zeros(num_neuron)
            for n in range(num_neuron):
                for k in range(num_branch):
                    synapses = range(k * per_branch, (k + 1) * per_branch)
                    arrived = rule.input_scale * sum(p["w_s"][n, j] * sources[p["index"][n, j]] for j in synapses)
                    b[n, k] = arrived + (p["kappa_b"][n, k] * b[n, k] if "kappa_b" in p else 0.0)
                h = np.concatenate([b[n], p["kappa_m"][n] * m[n]])
                for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                    h = nonlinear(weight[n] @ h + bias[n])
                o = weights[-1][n] @ h + biases[-1][n]
                m[n] = p["kappa_m"][n] * m[n] + p["gain"][n] * 1.7159 * np.tanh(2 * o / 3)
                y = p["w_y"][n] @ m[n]
                if "kappa_r" in p:
                    r[n] = p["kappa_r"][n] * r[n] + (1 - p["kappa_r"][n]) * y
                    y = y - r[n]
                q = y + p["bias"][n]
                new[n] = {"relu": max(q, 0.0), "identity": q, "spike": float(q > 0)}[rule.output]
            a = new
            out[sample, t] = a
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("output", ["relu", "identity", "spike"])
@pytest.mark.parametrize("activation", ["relu_squared", "relu", "silu"])
@pytest.mark.parametrize(
    ("trace", "high_pass", "hidden"), [(True, False, ()), (False, True, (4,)), (True, True, (3, 5))]
)
def test_a_scan_is_the_equations(
    backend: str, output: str, activation: str, trace: bool, high_pass: bool, hidden: tuple[int, ...]
) -> None:
    params, rule = made(3, trace=trace, high_pass=high_pass, hidden=hidden, output=output, activation=activation)
    x = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    record, _ = scan(x, params, None, rule, backend=backend)
    assert record.a.count_nonzero() > 10
    np.testing.assert_allclose(record.a.numpy(), neuron_by_neuron(x, params, rule), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", FAST)
@given(call=calls())
@hypothesis.settings(max_examples=20)
def test_backends_give_what_the_loop_gives_both_ways(backend: str, call: Call) -> None:
    for found, wanted in zip(everything(call, backend), everything(call, "reference"), strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@given(call=calls(activations=("relu_squared",)))
@hypothesis.settings(max_examples=8)
def test_a_sequence_in_two_parts_is_the_sequence(backend: str, call: Call) -> None:
    """Also of unequal lengths: what is left of each sample after the cut."""
    x, cut = call.x, call.x.shape[1] // 2
    lengths = call.options.get("lengths")
    whole, end = scan(x, call.params, call.state, call.rule, backend=backend, **call.options)
    parts, state = [], call.state
    for start, stop in ((0, cut), (cut, x.shape[1])):
        piece = x.steps(start, stop) if isinstance(x, SpikeEvents) else x[:, start:stop]
        left = None if lengths is None else (lengths - start).clamp(0, stop - start)
        part, state = scan(piece, call.params, state, call.rule, backend=backend, **call.options | {"lengths": left})
        parts.append(part)
    assert_close(torch.cat([part.a for part in parts], 1), whole.a)
    assert_close(parts[0].change + parts[1].change, whole.change)
    assert state is not None
    for found, wanted in zip(state, end, strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("events", [False, True])
def test_an_input_that_no_neuron_reads_says_nothing(backend: str, events: bool) -> None:
    """Not even where it is no number: the equations know only what a synapse reads."""
    params, rule = made(5)
    params = params._replace(index=torch.where(params.index == 2, 1, params.index))
    x = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted, _ = scan(x, params, None, rule, backend="reference")
    x[1, 3, 2] = torch.nan
    given = SpikeEvents.from_frames(x) if events else x
    assert_close(scan(given, params, None, rule, backend=backend)[0].a, wanted.a)


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_do_not_see_each_other_nor_what_is_behind_their_end(backend: str) -> None:
    params, rule = made(5)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 8, 6, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([8, 3, 0])
    together, state = scan(x, params, None, rule, lengths=lengths, backend=backend)
    x_other = x.clone()
    x_other[1, 3:], x_other[2] = torch.inf, torch.nan
    assert torch.equal(scan(x_other, params, None, rule, lengths=lengths, backend=backend)[0].a, together.a)
    for sample, length in enumerate(lengths.tolist()):
        alone, end = scan(x[sample : sample + 1, :length], params, None, rule, backend=backend)
        assert_close(together.a[sample, :length], alone.a[0])
        assert not together.a[sample, length:].any()
        assert_close(together.change[sample], alone.change[0])
        for found, wanted in zip(state, end, strict=True):
            assert_close(found[sample], wanted[0])


@pytest.mark.grid(every=2)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("output", ["relu", "identity"])
def test_gradients_are_those_of_differences(backend: str, output: str) -> None:
    params, rule = made(11, sizes=(2, 2, 2, 1, 2), trace=True, activation="silu", output=output)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64).requires_grad_()
    state = zero_network_state(params, 2)
    state = NetworkState(*(part.add(0.1).requires_grad_() for part in state))
    call = Call(x, params, state, rule, {"recurrent_mask": torch.tensor([[1.25, 0.0], [1.25, 1.25]]).double()})
    inputs, fields = leaves(call), params._asdict()

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        changed = {name: tuple(next(rest) for _ in fields[name]) for name in ("mlp_weight", "mlp_bias")}
        changed |= {name: next(rest) for name in fields if name not in ("index", *changed)}  # type: ignore[dict-item]
        record, after = scan(next(rest), params._replace(**changed), NetworkState(*rest), rule, backend=backend)
        return *record, *after

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_are_factors_on_what_is_read_and_not_on_what_is_given(backend: str) -> None:
    params, rule = made(8)
    x = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs, neurons = torch.tensor([[0.0, 1.25, 1.25, 0.0, 1.25, 2.0]] * 2).double(), torch.zeros(2, 5).double()
    masked, _ = scan(x, params, None, rule, input_mask=inputs, backend=backend)
    assert_close(masked.a, scan(x * inputs[:, None], params, None, rule, backend=backend)[0].a)
    cut, state = scan(x, params, None, rule, recurrent_mask=neurons, backend=backend)
    deaf = params._replace(w_s=torch.where(params.index < 6, params.w_s, 0.0))
    assert_close(cut.a, scan(x, deaf, None, rule, backend=backend)[0].a)
    assert torch.equal(state.a, cut.a[:, -1]) and state.a.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_of_no_steps_leaves_the_state(backend: str) -> None:
    params, rule = made(8)
    state = NetworkState(*(part + 0.5 for part in zero_network_state(params, 2)))
    record, after = scan(torch.zeros(2, 0, 6).double(), params, state, rule, backend=backend)
    assert record.a.shape == (2, 0, 5) and not record.change.any()
    for found, wanted in zip(after, state, strict=True):
        assert torch.equal(found, wanted)


def test_operands_that_do_not_fit_are_refused() -> None:
    params, rule = made(8)
    x = torch.zeros(2, 3, 6).double()
    outside = params._replace(index=params.index.clone().fill_(11))
    cases: list[tuple[Call, str]] = [
        (Call(x[0], params, None, rule, {}), r"x must have shape \(batch, time, input_size\), got \(3, 6\)"),
        (Call(x, outside, None, rule, {}), "index must be from 0 to 10: 6 inputs, then 5 neurons; got 11 to 11"),
        (Call(x, params._replace(mlp_weight=(), mlp_bias=()), None, rule, {}), "at least one, got 0 and 0"),
        (Call(x[..., :2], params, None, rule, {}), "index must be from 0 to 6"),
        (Call(x, params._replace(bias=params.bias[:4]), None, rule, {}), r"bias must have shape \(5,\), got \(4,\)"),
        (
            Call(x, params, None, rule, {"input_mask": torch.ones(2, 5).double()}),
            r"input_mask must have shape \(2, 6\)",
        ),
        (Call(x, params, None, rule, {"recurrent_mask": torch.ones(5).double()}), "recurrent_mask must have shape"),
        (Call(x, params, None, rule, {"lengths": torch.tensor([4, 1])}), "lengths must be between 0 and the 3 steps"),
        (Call(x, params._replace(w_s=params.w_s[:, :5]), None, rule, {}), "w_s must have as many synapses"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            scan(call.x, call.params, call.state, call.rule, **call.options)
    with pytest.raises(TypeError, match=r"w_y must be torch\.float64, got torch\.float32"):
        scan(x, params._replace(w_y=params.w_y.float()), None, rule)


def test_its_backends_are_known() -> None:
    assert list(backends.available("network")) == [backend.name for backend in OPERATOR]
    assert backends.resolve("reference", operator="network") == "reference"


def test_torch_leaves_layers_to_the_loop_whose_map_would_not_fit() -> None:
    params, rule = made(1, sizes=(100, 40, 5, 2, 2))
    wide = params._replace(index=params.index, bias=params.bias)
    backend = next(one for one in OPERATOR if one.name == "torch")
    assert backend.refusal(torch.zeros(1, 1, 100), wide, rule) is None
    reason = backend.refusal(torch.empty(1, 0, 700_000), wide, rule)
    assert reason is not None and "got 140008000" in reason
