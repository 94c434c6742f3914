from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from elm_neuro import (
    ALIF,
    ELM,
    LIF,
    BranchELM,
    ELMCell,
    ELMConfig,
    ELMNetwork,
    ELMNetworkClassifier,
    ELMState,
    SpikeEvents,
    last_output,
    suggest,
)
from tests.layers import CELLS, LAYERS

NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_memory": 0}, "num_memory must be at least 1, got 0"),
        ({"num_memory": 2.5}, "num_memory must be an integer, got 2.5"),
        ({"num_neuron": 0}, "num_neuron must be at least 1, got 0"),
        ({"mlp_hidden_size": 0}, "mlp_hidden_size must be at least 1, got 0"),
        ({"num_mlp_layers": -1}, "num_mlp_layers must be at least 0, got -1"),
        ({"delta_t": 0}, "delta_t must be a finite number above 0, got 0"),
        ({"delta_t": 10**400}, "delta_t must be a finite number above 0"),
        ({"delta_t": NAN}, "delta_t must be a finite number above 0, got nan"),
        ({"tau_s": -5.0}, "tau_s must be a finite number above 0, got -5.0"),
        ({"tau_s": (1.0, 0.0, 1.0)}, "tau_s must be a finite number above 0, got 0.0"),
        ({"tau_s": (1.0, 2.0)}, "tau_s must be one time or one per branch, 3, got 2"),
        ({"tau_s": "555"}, "tau_s must be a finite number above 0, got '555'"),
        ({"tau_s": ["5", "5", "5"]}, "tau_s must be a finite number above 0, got '5'"),
        ({"tau_s": [True, True, True]}, "tau_s must be a finite number above 0, got True"),
        ({"tau_s": {1.0, 2.0, 3.0}}, "tau_s must be a finite number above 0, got {1.0, 2.0, 3.0}"),
        ({"tau_s": [None, 1.0, 1.0]}, "tau_s must be a finite number above 0, got None"),
        ({"tau_s": torch.tensor(5.0)}, r"tau_s must be a finite number above 0, got tensor\(5.\)"),
        ({"tau_m_init": None}, "tau_m_init must be two times in ms"),
        ({"tau_m_init": torch.tensor(5.0)}, "tau_m_init must be two times in ms"),
        ({"tau_m_init": {1.0, 100.0}}, "tau_m_init must be two times in ms"),
        ({"lambda_": 0}, "lambda_ must be a finite number above 0, got 0"),
        ({"w_s_init": -0.5}, "w_s_init must be a finite number, not negative"),
        (
            {"tau_m_init": (-1.0, 5.0)},
            r"tau_m_init must be two times in ms, \(low, high\) with 0 <= low <= high, got \(-1.0, 5.0\)",
        ),
        ({"tau_m_init": (0.0, 5.0)}, r"tau_m_init must be above 0 ms, got \(0.0, 5.0\)"),
        ({"tau_m_init": (9.0, 5.0)}, "tau_m_init must be two times in ms"),
        ({"tau_m_init": 5.0}, "tau_m_init must be two times in ms"),
        ({"tau_m_bounds": (10.0, 100.0)}, r"tau_m_bounds must include tau_m_init \(1.0, 150.0\), got \(10.0, 100.0\)"),
        ({"tau_m_init": (7.0, 7.0), "tau_m_bounds": (7.0, 7.0)}, "tau_m_bounds must be a range where tau_m is learned"),
        ({"tau_m_spacing": "cubic"}, r"tau_m_spacing must be one of \['log', 'linear'\], got 'cubic'"),
        ({"variant": "v3"}, r"variant must be one of \['v1', 'v2'\], got 'v3'"),
        ({"activation": "gelu"}, r"activation must be one of \['relu', 'silu'\], got 'gelu'"),
        ({"branch_activation": "step"}, "branch_activation must be one of"),
        ({"routing": "random"}, "num_branch must be given with routing"),
        ({"learn_w_s": "no"}, "learn_w_s must be True or False, got 'no'"),
        ({"recompute_every": 0}, "recompute_every must be an integer of at least 1, got 0"),
        ({"sparse_input": "yes"}, r"sparse_input must be one of \['auto', 'on', 'off'\], got 'yes'"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        ELM(3, 2, **options)


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), r"routing must have shape \(2, 4\), got \(2, 3\)"),
        (torch.zeros(2, 4), "routing must hold integers, got torch.float32"),
        (torch.full((2, 4), 8), r"routing must hold input indices in \[0, 8\) or -1 for an empty slot, got 8 to 8"),
        (torch.full((2, 4), -2), "routing must hold input indices"),
        ("nearest", "routing must be one of"),
        ("index", "routing must be an index tensor"),
    ],
)
def test_routing_that_does_not_fit_is_named(routing: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BranchELM(8, 2, num_branch=2, num_synapse_per_branch=4, routing=routing)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 3), r"x must have shape \(batch, time, 3\), got \(4, 3\)"),
        (torch.zeros(2, 4, 5), r"x must have shape \(batch, time, 3\), got \(2, 4, 5\)"),
        (torch.zeros(2, 4, 2, 3), r"x must have shape \(batch, time, 3\), got \(2, 4, 2, 3\)"),
        (
            torch.zeros(2, 4, 3, dtype=torch.float64),
            "x must have dtype torch.float32 like the parameters, got torch.float64",
        ),
        (
            torch.zeros(2, 4, 3, dtype=torch.int32),
            "x must have dtype torch.float32 like the parameters, got torch.int32",
        ),
        (torch.zeros(2, 4, 3, device="meta"), "x must be on cpu like the parameters, got meta"),
        ([[0.0]], "x must be a tensor or SpikeEvents, got list"),
        (
            torch.ones(2, 4, 3).to_sparse(),
            "x must be dense frames or SpikeEvents, got a tensor of layout torch.sparse_",
        ),
        (torch.ones(2, 4, 3).to_sparse(1), "x must be dense frames or SpikeEvents"),
        (
            torch.nested.nested_tensor([torch.ones(4, 3), torch.ones(2, 3)], layout=torch.jagged),
            "padded frames with their lengths, got a n",
        ),
        (SpikeEvents.from_frames(torch.ones(2, 4, 5)), "x must have 3 channels, got SpikeEvents"),
        (torch.tensor([[[0.0, 1.0, NAN]]]), r"x must be finite, got nan at index \[0, 0, 2\]"),
        (SpikeEvents.from_frames(torch.tensor([[[0.0, 1.0, NAN]]])), r"x must be finite, got nan at index \[1\]"),
    ],
)
def test_input_that_does_not_fit_is_named(x: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        ELM(3, 2, num_memory=4)(x)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (ELMState(torch.zeros(1, 3), torch.zeros(2, 4)), r"state.b must have shape \(2, 3\), got \(1, 3\)"),
        (ELMState(torch.zeros(2, 3), torch.zeros(2, 5)), r"state.m must have shape \(2, 4\), got \(2, 5\)"),
        (ELMState(torch.zeros(2, 3).double(), torch.zeros(2, 4)), "state.b must have dtype torch.float32"),
        (ELMState(torch.zeros(2, 3), torch.zeros(2, 4, device="meta")), "state.m must be on cpu"),
        (torch.zeros(2, 4), "state must be an ELMState of two tensors, got Tensor"),
        (ELMState(torch.zeros(2, 3), torch.full((2, 4), NAN)), "state.m must not hold NaN, got 8 of 8"),
    ],
)
def test_states_that_do_not_fit_are_named(state: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        ELM(3, 2, num_memory=4)(torch.zeros(2, 5, 3), state)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([3, 9]), "lengths must be between 0 and the 5 steps of x, got 3 to 9"),
        (torch.tensor([-1, 5]), "lengths must be between 0 and the 5 steps of x, got -1 to 5"),
        (torch.tensor([1.0, 2.0]), "lengths must be integers"),
        (torch.tensor([1]), r"lengths must be integers of shape \(2,\)"),
    ],
)
def test_lengths_that_do_not_fit_are_named(lengths: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ELM(3, 2)(torch.zeros(2, 5, 3), lengths=lengths)


def test_a_diverged_parameter_is_named() -> None:
    neuron = ELM(3, 2, num_memory=4)
    with torch.no_grad():
        neuron.cell.mlp[0].bias[0] = NAN
    with pytest.raises(
        ValueError, match=r"parameter cell.mlp.0.bias must not hold NaN, got 1 of 8: training has diverged"
    ):
        neuron(torch.zeros(2, 5, 3))


def test_the_cell_names_what_does_not_fit() -> None:
    cell = ELMCell(3, 2, num_memory=4, num_neuron=2)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 3\), got \(2, 4\)"):
        cell(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 2, 3\), got \(2, 5, 3\)"):
        cell(torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match=r"state.b must have shape \(2, 2, 3\)"):
        cell(torch.zeros(2, 3), ELMState(torch.zeros(2, 3), torch.zeros(2, 4)))


def test_configurations_name_unknown_and_missing_fields() -> None:
    with pytest.raises(ValueError, match=r"config must hold only the fields of ELMConfig, got also \['hidden'\]"):
        ELMConfig.from_dict({"input_size": 1, "output_size": 1, "hidden": 3})
    with pytest.raises(ValueError, match=r"missing \['output_size'\]"):
        ELMConfig.from_dict({"input_size": 1})
    with pytest.raises(ValueError, match="delta_t must be a finite number above 0, got 0"):
        suggest(0, 5)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        suggest(1.0, 0)


def test_outputs_that_are_nan_and_padding_that_is_not_to_blame_are_told_apart() -> None:
    neuron = ELM(3, 2, num_memory=4)
    with torch.no_grad():
        neuron.cell.w_y.bias[0] = NAN
    x = torch.zeros(1, 5, 3)
    x[0, 3:] = NAN
    with pytest.raises(ValueError, match=r"parameter cell.w_y.bias must not hold NaN"):
        neuron(x, lengths=torch.tensor([3]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tau_v": 200.0, "delta_t": 0.1},
            r"tau_v must give a decay per step of at most 0.999, got 200.0 ms with delta_t 0.1 ms",
        ),
        ({"tau_a": 1e6}, "tau_a must give a decay per step of at most"),
        ({"b_init": 1.8}, r"b_init must be in \[0.001, 1.0\], got 1.8"),
    ],
)
def test_adaptive_lif_names_values_that_it_would_have_to_clamp(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ALIF(3, 2, **options)


def test_a_lif_that_hears_nan_says_so() -> None:
    with pytest.raises(ValueError, match="x must be finite, got nan at index"):
        LIF(3, 2)(torch.full((1, 4, 3), NAN))


@pytest.mark.parametrize("make", [*LAYERS.values(), *CELLS.values()], ids=[*LAYERS, *CELLS])
def test_no_layer_takes_sparse_tensors(make: Any) -> None:
    layer = make()
    is_cell = getattr(layer, "is_cell", False) or getattr(getattr(layer, "core", None), "is_cell", False)
    x = torch.ones(2, 6) if is_cell else torch.ones(2, 5, 6)
    with pytest.raises(TypeError, match="x must be dense frames or SpikeEvents, got a tensor of layout"):
        layer(x.to_sparse())
    if not is_cell:
        with pytest.raises(TypeError, match="x must be padded frames with their lengths, got a nested tensor"):
            layer(torch.nested.nested_tensor([x[0], x[1, :3]], layout=torch.jagged))


@pytest.mark.parametrize("value", [math.inf, -math.inf, NAN])
@pytest.mark.parametrize("kind", [LIF, ALIF])
def test_a_layer_of_lif_neurons_names_what_is_not_finite(kind: Any, value: float) -> None:
    layer, x = kind(6, 3), torch.rand(2, 5, 6)
    x[0, 1, 2] = value
    with torch.no_grad():
        layer.cell.weight[:, 2] = torch.tensor([0.5, -0.5, 0.1])
    with pytest.raises(ValueError, match=rf"x must be finite, got {value} at index \[0, 1, 2\]"):
        layer(x)
    state = layer.initial_state(2)
    state.v[1, 1] = value
    with pytest.raises(ValueError, match=r"state\.v must (not hold NaN|be finite), got 1 of 6"):
        layer(x.nan_to_num(0.0, 0.0, 0.0), state if math.isnan(value) else state._replace(v=-state.v.abs()))
    with torch.no_grad():
        layer.cell.weight[1, 1] = NAN
    with pytest.raises(ValueError, match="parameter weight must not hold NaN, got 1 of 18"):
        layer(x.nan_to_num(0.0, 0.0, 0.0))


@pytest.mark.parametrize("call", ["layer", "step", "hooked"])
@pytest.mark.parametrize("name", ["weight", "bias", "beta", "p", "b", "w_rec"])
def test_an_adaptive_lif_names_a_parameter_that_is_nan(name: str, call: str) -> None:
    layer, x = ALIF(6, 3, recurrent=True), torch.rand(2, 5, 6)
    with torch.no_grad():
        layer.cell.bias.add_(2.0)  # all spike: kernels read no row of w_rec before
        getattr(layer.cell, name).view(-1)[1] = NAN
    if call == "hooked":
        layer.cell.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=f"parameter {name} must not hold NaN, got 1 of "):
        layer.step(x[:, 0]) if call == "step" else layer(x)


@pytest.mark.parametrize("call", ["layer", "step", "hooked"])
def test_an_adaptive_lif_names_states_and_input_that_are_not_finite(call: str) -> None:
    layer, x = ALIF(6, 3), torch.rand(2, 5, 6)
    if call == "hooked":
        layer.cell.register_forward_hook(lambda *_: None)

    def run(x: torch.Tensor, state: Any = None) -> Any:
        return layer.step(x[:, 0], state) if call == "step" else layer(x, state)

    state = layer.initial_state(2)
    state.a[1, 2] = NAN
    with pytest.raises(ValueError, match=r"state\.a must not hold NaN, got 1 of 6"):
        run(x, state)
    state.a[1, 2] = math.inf
    with pytest.raises(ValueError, match=r"state\.a must be finite, got 1 of 6 that are not"):
        run(x, state)
    with pytest.raises(ValueError, match="x must be finite, got nan at index"):
        run(x.index_fill(2, torch.tensor(1), NAN))
    with torch.no_grad():
        layer.cell.b[0] = math.inf  # type: ignore[index]  # it is clamped
    assert run(x)[0].isfinite().all()
    assert LIF(6, 3)(x, state)[0].isfinite().all()  # which has no adaptation


@pytest.mark.parametrize("call", ["layer", "step"])
@pytest.mark.parametrize("name", ["weight", "bias", "beta", "p", "b", "w_rec"])
@pytest.mark.parametrize("change", ["wider", "one"])
def test_an_adaptive_lif_names_a_parameter_of_another_shape(name: str, call: str, change: str) -> None:
    layer, x = ALIF(6, 3, recurrent=True), torch.rand(2, 5, 6)
    shape = tuple(getattr(layer.cell, name).shape)
    other = (*shape[:-1], shape[-1] + 1) if change == "wider" else (*shape[:-1], 1)
    setattr(layer.cell, name, torch.nn.Parameter(torch.full(other, 0.5)))
    with pytest.raises(ValueError, match=re.escape(f"{name} must have shape {shape}, got {other}")):
        layer.step(x[:, 0]) if call == "step" else layer(x)


@pytest.mark.parametrize("kind", [LIF, ALIF])
def test_sizes_and_latencies_of_lif_neurons_are_in_range(kind: Any) -> None:
    for name, sizes in (("input_size", (True, 2)), ("output_size", (3, True)), ("output_size", (3, 2.0))):
        with pytest.raises(TypeError, match=f"{name} must be an integer, got {sizes[name == 'output_size']}"):
            kind(*sizes)
    with pytest.raises(ValueError, match="output_size must be at least 1, got 0"):
        kind(3, 0)
    for latency in (1e300, 1e12, 1_000_001.0, -1.0, NAN):
        with pytest.raises(ValueError, match="latency must be a time in ms, not negative and at most 1,000,000 steps"):
            kind(3, 2, latency=latency)
    assert kind(3, 2, latency=1_000_000.0).cell.latency_steps == 1_000_000


def test_the_gradient_of_a_layer_is_said_when_it_is_made() -> None:
    layer = LIF(3, 2, gradient="blocks")
    assert layer.cell.gradient == "blocks"
    with pytest.raises(AttributeError, match="gradient"):
        layer.cell.gradient = "loop"  # type: ignore[misc]


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_a_binarized_network_takes_no_nan_for_a_spike(backend: str) -> None:
    layer, x = ELMNetwork(6, 4, num_memory=2, binarize=True, wiring="window", backend=backend), torch.zeros(2, 5, 6)
    x[0, 2, 1] = NAN
    with pytest.raises(ValueError, match=r"x must be finite, got nan at index \[0, 2, 1\]"):
        layer(x)
    with pytest.raises(ValueError, match=r"x must be finite, got nan at index \[0\]"):
        layer(SpikeEvents.from_frames(x))
    with pytest.raises(ValueError, match=r"x must be finite, got nan at index \[0, 1\]"):
        layer.step(x[:, 2])
    torch.manual_seed(0)  # weights of both signs, whose sums are infinite both ways: not all that are drawn are
    with pytest.raises(
        ValueError, match="not so large that they overflow, got a memory that is NaN after the last step"
    ):
        ELMNetwork(6, 4, num_memory=2, binarize=False, backend=backend)(torch.full((2, 5, 6), 1e30))


@pytest.mark.parametrize("make", [lambda: ELM(6, 2, 3), lambda: LIF(6, 2), lambda: ELMNetwork(6, 4, binarize=False)])
def test_a_part_of_a_plain_tuple_of_a_state_is_named_too(make: Any) -> None:
    layer = make()
    state = layer.initial_state(2)
    part = "v" if hasattr(state, "v") else "m"
    getattr(state, part)[0] = NAN
    with pytest.raises(ValueError, match=rf"state\.{part} must not hold NaN"):
        layer(torch.zeros(2, 3, 6), tuple(state))


@pytest.mark.parametrize("lengths", [[5, 3], (5, 0), np.array([2, 3])])
def test_lengths_may_come_as_a_list(lengths: Any) -> None:
    torch.manual_seed(0)
    network, x, as_tensor = ELMNetworkClassifier(6, 3, 4, binarize=False), torch.rand(2, 5, 6), torch.tensor(lengths)
    y, _, penalties = network(x, lengths=lengths, with_penalties=True)
    expected, _, others = network(x, lengths=as_tensor, with_penalties=True)
    assert torch.equal(y, expected) and penalties == others
    hidden = network.hidden
    y, _, change = hidden(x, lengths=lengths, with_change=True)
    assert torch.equal(hidden.mlp_penalty(change, 5, lengths), hidden.mlp_penalty(change, 5, as_tensor))
    assert torch.equal(hidden.activity_penalty(y, lengths), hidden.activity_penalty(y, as_tensor))
    if min(lengths):
        assert torch.equal(last_output(y, lengths), last_output(y, as_tensor))


@pytest.mark.parametrize("name", ["variant", "activation", "output", "tau_m_spacing"])
@pytest.mark.parametrize("value", [3, None, ["v1"], {}])
def test_a_choice_of_a_network_that_is_no_text_is_named(name: str, value: Any) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} must be one of "):
        ELMNetwork(6, 4, **options)


def test_there_is_no_last_output_of_no_steps() -> None:
    with pytest.raises(ValueError, match=r"y must have at least one time step, got shape \(2, 0, 3\)"):
        last_output(torch.rand(2, 0, 3))


@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cell: cell.w_y.bias.data.new_zeros(3), r"b_y must have shape \(2,\), got \(3,\)"),
        (lambda cell: cell.w_y.bias.data.double(), "b_y must be torch.float32, got torch.float64"),
        (lambda cell: cell.w_y.bias.data.to("meta"), "b_y must be on cpu like the other parameters, got meta"),
        (lambda cell: cell.w_y.bias.data.to_sparse(), "b_y must be dense"),
    ],
)
def test_a_parameter_that_has_fitted_and_no_longer_does_is_named(backend: str, change: Any, message: str) -> None:
    """What a call was checked for is remembered, but not the tensors."""
    neuron, x = ELM(3, 2, num_memory=4, backend=backend), torch.ones(2, 5, 3)
    neuron(x)
    kept, new = neuron.cell.w_y.bias.data, change(neuron.cell)
    neuron.cell.w_y.bias = torch.nn.Parameter(new, requires_grad=False)
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match=message):
            neuron(x)
    neuron.cell.w_y.bias = torch.nn.Parameter(kept)
    neuron(x)
    neuron.cell.w_y.weight.data = neuron.cell.w_y.weight.data.t()
    with pytest.raises(ValueError, match=r"w_y must have shape"):
        neuron(x)
