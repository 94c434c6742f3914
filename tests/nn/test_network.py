"""The ELM Network as a layer and as a whole: against the frozen runs of its authors, and what people do to it."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from elm_neuro import ELMNetwork, ELMNetworkClassifier, SpikeEvents, last_output, pretrained
from elm_neuro.functional import FastSigmoid
from elm_neuro.nn import DropoutMasks, ELMNetworkConfig, parameter_groups
from tests.backends.network.frozen import NAMES, Frozen
from tests.tolerances import assert_close

SMALL: dict[str, Any] = {"num_branch": 3, "num_synapse_per_branch": 4, "tau_m_init": (1.0, 20.0), "input_scale": 1.0}


def published(shared: Path, name: str) -> tuple[ELMNetworkClassifier, Frozen]:
    """The network of a frozen file, its numbers loaded into ours."""
    frozen = Frozen(shared, name)
    neuron, layer = frozen.neuron, frozen.config["layer_config"]
    options: dict[str, Any] = {
        "num_branch": neuron["num_branch"],
        "num_synapse_per_branch": neuron["num_synapse_per_branch"],
        "recurrent_fraction": layer["input_wiring_args"]["recurrent_connect"],
        "delta_t": neuron.get("delta_t", 1.0),
        "tau_m_init": (neuron["memory_tau_min"], neuron["memory_tau_max"]),
        "learn_tau_m": neuron.get("memory_tau_learnable", False),
        "tau_b": neuron.get("branch_tau"),
        "tau_high_pass": neuron["high_pass_tau"],
        "variant": "v2" if neuron.get("lambda_as_timescale_ratio", True) else "v1",
        "lambda_": neuron.get("lambda_value", 5.0),
        "num_mlp_layers": neuron.get("mlp_num_hidden_layer", 1),
        "mlp_hidden_size": neuron.get("mlp_num_hidden_units"),
        "activation": neuron.get("mlp_hidden_act", "relu_squared"),
        "output": neuron["neuron_activation"],
        "input_scale": neuron["input_scale"],
        "input_dropout": layer["input_dropout"],
        "recurrent_dropout": layer["recurrent_dropout"],
    }
    config = frozen.config
    linear = config.get("output_embedding") == "linear_layer"
    network = ELMNetworkClassifier(
        config["num_input"], config["num_output"], config["num_hidden"], neuron["num_memory"], linear=linear, **options
    ).double()
    names = {"tau_m_logit": "_proto_tau_m", "b": "bias", "index": "input_to_synapse_indices"}
    state = network.state_dict()
    for key, value in frozen.data.items():
        part, _, name = key.removeprefix("param.").partition(".")
        if not key.startswith("param.") or name == "tau_m":
            continue
        ours = f"{part}.{names.get(name, name)}"
        state[ours] = torch.from_numpy(value).view(state[ours].shape)
    network.load_state_dict(state)
    return network, frozen


def masks_of(frozen: Frozen, part: str) -> DropoutMasks | None:
    given = frozen.masks(part)
    return DropoutMasks(given["input_mask"], given["recurrent_mask"]) if given else None


@pytest.mark.parametrize("name", NAMES)
def test_the_published_network_layer_by_layer_with_penalties_and_gradients(name: str, shared: Path) -> None:
    network, frozen = published(shared, name)
    data = frozen.data
    np.testing.assert_allclose(network.hidden.tau_m.detach(), data["param.hidden.tau_m"], rtol=1e-12)
    y, _, change = network.hidden(frozen.x, masks=masks_of(frozen, "hidden"), with_change=True)
    logits, _ = network.readout(y, masks=masks_of(frozen, "readout"))
    logits = logits if network.linear is None else network.linear(logits)
    np.testing.assert_allclose(logits.detach(), data["logits"], rtol=0, atol=1e-10)
    mlp, activity = network.hidden.mlp_penalty(change, 60), network.hidden.activity_penalty(y)
    np.testing.assert_allclose([mlp.item(), activity.item()], [data["loss.reg_mlp"], data["loss.reg_activity"]])
    loss = torch.nn.functional.cross_entropy(logits[:, -1], frozen.tensor("target"), label_smoothing=0.01)
    (loss + 0.002 * mlp + 0.2 * activity).backward()
    for key, value in data.items():
        part, _, name = key.removeprefix("grad_total.").partition(".")
        if key.startswith("grad_total.") and name:
            parameter = network.get_parameter(
                f"{part}.{ {'tau_m_logit': '_proto_tau_m', 'b': 'bias'}.get(name, name) }"
            )
            assert parameter.grad is not None
            scale = max(1.0, float(np.abs(value).max()))
            np.testing.assert_allclose(parameter.grad.flatten(), value.flatten(), rtol=0, atol=1e-8 * scale)


def test_in_evaluation_nothing_falls_out(shared: Path) -> None:
    network, frozen = published(shared, "relu_n12_m5")
    logits, _, penalties = network.eval()(SpikeEvents.from_frames(frozen.x), with_penalties=True)
    np.testing.assert_allclose(logits.detach(), frozen.data["logits"], rtol=0, atol=1e-10)
    assert set(penalties) == {"mlp", "activity"} == set(network.penalties)


def test_the_published_counts_of_parameters() -> None:
    """EN's table: 77,310 trained for 96 neurons of 5 units; 112,347 with indices and time constants."""
    network = ELMNetworkClassifier(700, 19, 96)
    trained = sum(parameter.numel() for parameter in network.parameters())
    stored = sum(value.numel() for name, value in network.state_dict().items() if not name.endswith("_extra_state"))
    assert (trained, stored) == (77_310, 112_347)
    table = {2: (155, 77_069), 3: (130, 76_864), 9: (57, 76_551), 25: (15, 74_109)}
    for num_memory, (num_neuron, count) in table.items():
        other = ELMNetworkClassifier(700, 19, num_neuron, num_memory)
        assert sum(parameter.numel() for parameter in other.parameters()) == count


def test_initial_weights_are_the_published_ones() -> None:
    layer = ELMNetwork(700, 96, generator=torch.Generator().manual_seed(0))
    for tensor, fan_in in ((layer.w_s, 10), (layer.mlp[0].weight, 35), (layer.mlp[1].bias, 10), (layer.w_y, 5)):
        bound = fan_in**-0.5
        assert 0.95 * bound < float(tensor.detach().abs().max()) <= bound  # type: ignore[union-attr, operator]
        assert abs(float(tensor.detach().mean())) < 5 * bound / (3 * tensor.numel()) ** 0.5  # type: ignore[union-attr, operator]
    assert not layer.bias.any()
    expected = torch.tensor([500.0]) ** (torch.arange(5) / 4)  # 1 to 500 ms, log-spaced
    assert_close(layer.tau_m[3], expected, scale=10)
    assert layer.config.bounds == (0.1, 500 * 10**0.5)


def test_times_are_ms_and_the_published_ones_steps() -> None:
    """Twice the step and twice each time is the same network: 2 ms bins with the published numbers of steps."""
    torch.manual_seed(0)
    steps = ELMNetwork(20, 8, delta_t=1.0, tau_m_init=(1.0, 500.0), tau_high_pass=5.0, tau_b=3.0)
    ms = ELMNetwork(20, 8, delta_t=2.0, tau_m_init=(2.0, 1000.0), tau_high_pass=10.0, tau_b=6.0)
    state = steps.state_dict()
    with pytest.raises(RuntimeError, match=r"delta_t must be that of the module, 2\.0, got numbers .* made with 1\.0"):
        ms.load_state_dict(state)
    del state["_extra_state"]
    with pytest.warns(UserWarning, match="does not say"):
        ms.load_state_dict(state)
    x = (torch.rand(2, 30, 20) < 0.1).float()
    assert_close(ms(x)[0], steps(x)[0])


def test_dropout_holds_for_a_sequence_and_differs_between_samples() -> None:
    layer = ELMNetwork(50, 8, input_dropout=0.5, recurrent_dropout=0.2, binarize=False, **SMALL)
    torch.manual_seed(1)
    masks = layer.draw_masks(1000)
    assert masks.input is not None and masks.recurrent is not None
    assert sorted(masks.input.unique().tolist()) == [0.0, 2.0]
    assert sorted(masks.recurrent.unique().tolist()) == [0.0, 1.25]
    assert abs(float(masks.input.mean()) - 1.0) < 0.05 and abs(float(masks.recurrent.mean()) - 1.0) < 0.05
    assert not torch.equal(masks.input[0], masks.input[1])
    x = (torch.rand(4, 20, 50) < 0.2).float()
    torch.manual_seed(2)
    y, _ = layer(x)
    torch.manual_seed(2)
    masks = layer.draw_masks(4)
    assert masks.input is not None
    by_hand = layer.eval()(x * masks.input[:, None], masks=DropoutMasks(None, masks.recurrent))[0]
    assert_close(y, by_hand)
    assert layer.draw_masks(2) == DropoutMasks(None, None)
    assert torch.equal(layer(x)[0], layer(x)[0])


def test_steps_in_training_take_the_masks_of_their_sequence() -> None:
    layer = ELMNetwork(6, 4, input_dropout=0.3, **SMALL)
    x = torch.rand(2, 5, 6)
    with pytest.raises(ValueError, match="masks must be given to a step in training with dropout"):
        layer.step(x[:, 0])
    masks, state, steps = layer.draw_masks(2), layer.initial_state(2), []
    for x_t in x.unbind(1):
        y_t, state = layer.step(x_t, state, masks)
        steps.append(y_t)
    assert_close(torch.stack(steps, 1), layer(x, masks=masks)[0])
    with pytest.raises(ValueError, match=r"masks.input must have shape \(2, 6\), got \(2, 5\)"):
        layer(x, masks=DropoutMasks(torch.ones(2, 5), None))


def test_counts_above_one_are_told_or_taken_for_one() -> None:
    torch.manual_seed(0)
    layer = ELMNetwork(6, 4, **SMALL)
    counts = torch.poisson(torch.full((2, 7, 6), 0.8))
    ones = (counts > 0).float()
    twice = SpikeEvents.collate([SpikeEvents(torch.tensor([0, 2]), torch.tensor([3, 3]), None, (1, 1, 6))])
    for x in (counts, SpikeEvents.from_frames(counts), twice):
        with pytest.warns(UserWarning, match="x has spike counts above 1"):
            layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = layer(ones)[0]
        layer(SpikeEvents.from_frames(ones)), layer(1.5 * torch.rand(2, 7, 6))  # real numbers are no counts
        silent = ELMNetwork(6, 4, binarize=False, **SMALL)
        silent(counts)
        binary = ELMNetwork(6, 4, binarize=True, **SMALL)
        binary.load_state_dict(layer.state_dict())
        for x in (counts, SpikeEvents.from_frames(counts), -counts):
            assert_close(binary(x)[0], plain)
        assert_close(binary(twice)[0], layer(twice.to_dense().clamp(max=1))[0])
        assert_close(binary.step(counts[:, 0])[0], plain[:, 0])
        cancelled = SpikeEvents(torch.tensor([0, 2]), torch.tensor([3, 3]), torch.tensor([1.0, -1.0]), (1, 1, 6))
        assert_close(binary(cancelled)[0], layer(torch.zeros(1, 1, 6))[0])


def test_penalties_are_means_over_what_is_valid() -> None:
    torch.manual_seed(0)
    layer = ELMNetwork(6, 4, binarize=False, **SMALL).double()
    x, lengths = 2 * torch.rand(3, 9, 6).double(), torch.tensor([9, 4, 1])
    y, _, change = layer(x, lengths=lengths, with_change=True)
    found = layer.activity_penalty(y, lengths), layer.mlp_penalty(change, 9, lengths)
    alone = []
    for sample, length in enumerate(lengths.tolist()):
        one, _, moved = layer(x[sample : sample + 1, :length], with_change=True)
        alone.append((layer.activity_penalty(one), layer.mlp_penalty(moved, length)))
    for ours, theirs in zip(found, zip(*alone, strict=True), strict=True):
        assert_close(ours, torch.stack(theirs).mean())
        assert ours > 0 and ours.requires_grad
    signed = ELMNetworkClassifier(6, 3, 4, output="identity", **SMALL)
    with pytest.raises(ValueError, match=r'activity_penalty needs .* "relu" or "spike", got "identity"'):
        signed.hidden.activity_penalty(y)
    assert signed.penalties == ("mlp",)
    assert set(signed(x.float(), with_penalties=True)[2]) == {"mlp"}


def test_the_readout_reads_the_hidden_layer_in_the_same_step_and_nothing_else() -> None:
    network = ELMNetworkClassifier(20, 4, 8, tau_b=4.0, output="spike", **SMALL)
    readout = network.readout.config
    assert (readout.input_size, readout.output_size, readout.num_memory) == (8, 4, 3)
    assert (readout.num_mlp_layers, readout.output, readout.tau_high_pass, readout.tau_b) == (0, "identity", None, 4.0)
    assert int(network.readout.wiring.max()) < 8
    assert network.hidden.emits_spikes and not network.readout.emits_spikes
    x = (torch.rand(2, 9, 20) < 0.3).float()
    y, _ = network.hidden(x)
    assert set(y.unique().tolist()) <= {0.0, 1.0}
    logits, state = network(x)
    assert network.linear is not None
    assert_close(logits, network.linear(network.readout(y)[0]))
    assert type(state) is network.state_type
    lengths = torch.tensor([9, 3])
    cut, _ = network(x, lengths=lengths)
    assert not cut[1, 3:].any()
    assert_close(last_output(cut, lengths)[1], logits[1, 2])


@given(data=st.data())
@hypothesis.settings(max_examples=15)
def test_configurations_and_layers_survive_a_folder(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind = data.draw(st.sampled_from([ELMNetwork, ELMNetworkClassifier]))
    options = {
        "num_mlp_layers": data.draw(st.integers(0, 2)),
        "tau_b": data.draw(st.sampled_from([None, 3.0])),
        "tau_high_pass": data.draw(st.sampled_from([None, 5.0])),
        "learn_tau_m": data.draw(st.booleans()),
        "output": data.draw(st.sampled_from(["relu", "identity", "spike"])),
        "activation": data.draw(st.sampled_from(["relu_squared", "relu", "silu"])),
        "wiring": data.draw(st.sampled_from(["random", "window", "small_world", torch.randint(12, (6, 3, 4))])),
        "surrogate": data.draw(st.sampled_from([None, FastSigmoid(20.0)])),
        "binarize": data.draw(st.sampled_from([None, True, False])),
    }
    made = (
        ELMNetwork(6, 6, **options, **SMALL)
        if kind is ELMNetwork
        else ELMNetworkClassifier(6, 3, 6, **options, **SMALL)
    )
    assert type(made.config).from_dict(made.config.to_dict()) == made.config
    folder = tmp_path_factory.mktemp("network")
    pretrained.save_pretrained(made, folder)
    same = kind.from_pretrained(folder)
    assert same.config == made.config
    for name, tensor in made.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)
    x = (torch.rand(2, 5, 6) < 0.4).float()
    assert torch.equal(same(x)[0], made(x)[0])
    assert torch.equal(copy.deepcopy(made)(x)[0], made(x)[0])


def test_a_folder_with_a_wiring_that_points_outside_is_refused(tmp_path: Path) -> None:
    layer = ELMNetwork(6, 4, **SMALL)
    index = layer.input_to_synapse_indices
    assert index is not None
    index[0, 0, 0] = 10
    with pytest.raises(ValueError, match="must hold sources from 0 to 9"):
        pretrained.save_pretrained(layer, tmp_path)
    other = ELMNetwork(6, 4, **SMALL)
    with pytest.raises(RuntimeError, match="must hold sources from 0 to 9"):
        other.load_state_dict(layer.state_dict())


def test_own_wirings_by_index_and_by_function() -> None:
    index = torch.arange(4 * 12).view(4, 3, 4) % 10
    layer = ELMNetwork(6, 4, wiring=index, **SMALL)
    assert torch.equal(layer.wiring, index) and layer.config.wiring == "index"
    asked: list[Any] = []

    def wiring(*sizes: Any, **options: Any) -> Tensor:
        asked.append((sizes, options))
        return index

    generator = torch.Generator()
    drawn = ELMNetwork(6, 4, wiring=wiring, recurrent_fraction=None, generator=generator, **SMALL)
    assert torch.equal(drawn.wiring, index)
    assert asked == [((6, 4, (3, 4)), {"recurrent_fraction": 0.4, "generator": generator})]
    with pytest.raises(ValueError, match="only its name"):
        ELMNetwork.from_config(layer.config)
    assert torch.equal(ELMNetwork.from_config(layer.config, wiring=index).wiring, index)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recurrent_fraction": 1.2}, r"recurrent_fraction must be from 0 to 1, got 1\.2"),
        ({"recurrent_fraction": -0.1}, "recurrent_fraction must be from 0 to 1"),
        ({"recurrent_fraction": float("nan")}, "recurrent_fraction must be from 0 to 1, got nan"),
        ({"rewiring": 2}, "rewiring must be from 0 to 1, got 2"),
        ({"input_dropout": 1.0}, r"input_dropout must be in \[0, 1\), got 1\.0"),
        ({"recurrent_dropout": -1}, "recurrent_dropout must be in"),
        ({"wiring": "ring"}, "wiring must be one of .*small_world"),
        ({"wiring": torch.zeros(4, 12)}, r"wiring must have shape .*\(4, 3, 4\), got \(4, 12\)"),
        ({"wiring": torch.full((4, 3, 4), 10)}, r"wiring must hold sources from 0 to 9 .* got 10 to 10"),
        ({"wiring": lambda *_, **__: torch.zeros(4, 3, 4)}, "wiring must hold integers"),
        ({"wiring": "full"}, r"must be the 10 sources of wiring full"),
        ({"output": "tanh"}, "output must be one of"),
        ({"activation": "gelu"}, "activation must be one of"),
        ({"tau_high_pass": 0}, "tau_high_pass must be a finite number above 0 or None, got 0"),
        ({"tau_b": float("inf")}, "tau_b must be a finite number above 0 or None, got inf"),
        ({"delta_t": None}, "delta_t must be a finite number above 0, got None"),
        ({"tau_m_init": (5.0, 1.0)}, "tau_m_init must be two times in ms"),
        ({"tau_m_bounds": (2.0, 5.0)}, "tau_m_bounds must be a range that includes tau_m_init"),
        ({"input_scale": float("nan")}, "input_scale must be a finite number"),
        ({"num_mlp_layers": -1}, "num_mlp_layers must be at least 0, got -1"),
        ({"num_branch": 0}, "num_branch must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ELMNetwork(6, 4, **SMALL | options)


def test_misspelled_keywords_name_the_nearest() -> None:
    with pytest.raises(TypeError, match="ELMNetwork has no keyword num_branches: did you mean num_branch"):
        ELMNetwork(6, 4, num_branches=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="ELMNetworkClassifier has no keyword recurent_fraction: did you mean"):
        ELMNetworkClassifier(6, 4, 3, recurent_fraction=0.1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="learn_tau_m must be True or False"):
        ELMNetworkConfig(input_size=1, output_size=1, learn_tau_m=1)  # type: ignore[arg-type]


def test_weight_decay_leaves_time_constants_and_thresholds() -> None:
    network = ELMNetworkClassifier(6, 3, 4, learn_tau_m=True, **SMALL)
    decayed, kept = parameter_groups(network, 0.1)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert {names[id(one)] for one in kept["params"]} == {
        f"{part}.{name}" for part in ("hidden", "readout") for name in ("bias", "_proto_tau_m")
    }
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_a_memory_that_is_nan_is_refused() -> None:
    layer = ELMNetwork(6, 4, **SMALL)
    x = torch.zeros(2, 3, 6)
    x[1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"x must be finite, got nan at index \[1, 1, 0\]"):
        layer(x)


def test_autocast_leaves_the_memory_as_wide_as_the_parameters() -> None:
    torch.manual_seed(0)
    layer, x = ELMNetwork(6, 4, **SMALL), torch.rand(2, 7, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = layer(x)
        again, _ = layer(x.bfloat16(), state)
    assert y.dtype == state.m.dtype == again.dtype == torch.float32
    assert_close(y, layer(x)[0])
