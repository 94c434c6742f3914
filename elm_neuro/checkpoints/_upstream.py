"""Checkpoints of the authors' repository, github.com/AaronSpieler/elmneuron at 52e68a6. Nothing in them is executed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elm_neuro import pretrained
from elm_neuro.checkpoints._load import load_weights, shown
from elm_neuro.files import json_object, listing
from elm_neuro.functional import SOMA_BIAS_MV, SOMA_SCALE_MV
from elm_neuro.nn import ELM, ELMConfig

CONFIG_FILE = "model_config.json"
WEIGHTS_FILE = "neuronio_best_model_state.pt"

INDEX = "cell.input_to_synapse_indices"
TAU_MIN_MS = 1e-6  # where upstream starts log spacing from a memory_tau_min of 0
V2_TAU_ROOM_MS = 3e-6  # upstream's v2 keeps memory_tau_max at least this far above memory_tau_min


class NeuronIOPrediction(NamedTuple):
    """What a neuron trained on NeuronIO predicts for each time step."""

    spike_probability: Tensor  # (...), in [0, 1]
    soma_mv: Tensor  # (...), somatic membrane voltage in mV, spikes cut off at -55 mV in the training data


def neuronio_head(y: Tensor) -> NeuronIOPrediction:
    """Spike probability and somatic voltage from the outputs of a neuron trained on NeuronIO.

    Output 0 is the logit of a spike in the step, output 1 the somatic voltage shifted by 67.7 mV and divided by 10.
    Source: ``neuronio_data_utils.py`` of the authors' repository at 52e68a6.

    Args:
        y: outputs, (..., 2).

    Raises:
        ValueError: `y` does not end in two outputs.

    >>> neuronio_head(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    NeuronIOPrediction(spike_probability=tensor([0.5000, 0.5000]), soma_mv=tensor([-67.7000, -57.7000]))
    """
    if y.ndim == 0 or y.shape[-1] != 2:
        raise ValueError(f"y must have shape (..., 2), spike logit and soma, got {tuple(y.shape)}")
    return NeuronIOPrediction(torch.sigmoid(y[..., 0]), SOMA_SCALE_MV * y[..., 1] + SOMA_BIAS_MV)


def from_upstream(directory: str | os.PathLike[str]) -> ELM:
    """Read a checkpoint of the authors' repository: ``model_config.json`` and ``neuronio_best_model_state.pt``.

    Both of their neurons are read, v1 (synapses with ``tau_s``) and v2 (branches with ``tau_b``). The time constants of
    the memory are taken over as they are, infinite logits too; synapses that upstream masks become empty slots.

    Args:
        directory: folder with the two files, for instance what :func:`fetch_upstream` returns.

    Returns:
        A :class:`BranchELM`; an :class:`ELM` where upstream has neither branches nor routing.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, is no plain state dict (nothing in it is executed), or does not fit the other.
    """
    directory = Path(directory)
    config_file, weights_file = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    values, state = json_object(config_file), _upstream_state(weights_file)
    times = [name for name in ("tau_s", "tau_b") if name in state]
    if len(times) != 1:
        raise ValueError(f"{weights_file} must hold tau_s (v1) or tau_b (v2), got {times or shown(sorted(state))}")
    time = times[0]
    try:
        config = _upstream_config(values, time)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config_file}: {error}") from error
    routed = config.routing is not None
    if not routed:  # upstream keeps empty entries there
        state = {
            name: tensor
            for name, tensor in state.items()
            if name not in ("input_to_synapse_indices", "valid_indices_mask") or tensor.numel()
        }

    branches, synapses = config.branches, config.num_synapse_per_branch
    kind = pretrained.kind_of("ELM" if config.num_branch is None else "BranchELM")
    try:
        ours = pretrained.weights_of(pretrained.blank(kind, config, len(state)))
    except ValueError as error:
        raise ValueError(f"{config_file}: {error}") from error
    names = {name: _upstream_name(name) for name in ours if name not in ("cell.tau_s", INDEX)}
    expected = {theirs: ours[name] for name, theirs in names.items()}
    flat = ours["cell._proto_w_s"].flatten()
    expected |= {"_proto_w_s": flat, time: flat if time == "tau_s" else flat.new_empty(branches)}
    if routed:
        integers = flat.to(torch.int64)
        expected |= {"valid_indices_mask": integers, "input_to_synapse_indices": integers}
    pretrained.check_tensors(state, expected, str(weights_file))
    if bool(state["_proto_tau_m"].isnan().any()):
        raise ValueError(f"{weights_file}: _proto_tau_m must hold no NaN, got {shown(state['_proto_tau_m'].tolist())}")

    tensors = {name: state[theirs] for name, theirs in names.items()}
    tensors["cell._proto_w_s"] = state["_proto_w_s"].view(branches, synapses)
    tau = _branch_tau(state[time].view(branches, -1), f"{weights_file}: {time}")
    tensors["cell.tau_s"] = tau
    if config.num_branch is not None:
        in_order = torch.arange(branches * synapses, device="cpu")
        index = _upstream_index(state, weights_file) if routed else in_order
        tensors[INDEX] = index.view(branches, synapses)
    try:
        config = ELMConfig.from_dict(config.to_dict() | {"tau_s": tau.tolist()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{directory}: {error}") from error
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    neuron: ELM = pretrained.with_tensors(kind, config, copies, str(directory))
    return neuron


def _upstream_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} must hold {path.name}, got {listing(path.parent)}")
    try:
        state = load_weights(path)
    except ValueError as error:
        raise ValueError(f"{path} must be a whole file with a plain state dict: it {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} must hold a plain state dict, got {type(state).__name__}")
    for name, value in list(state.items()):
        if value is None and name in ("input_to_synapse_indices", "valid_indices_mask"):
            state[name] = torch.empty(0, device="cpu")
        elif not (
            isinstance(name, str)
            and isinstance(value, Tensor)
            and value.layout == torch.strided
            and value.device.type == "cpu"
        ):
            raise ValueError(
                f"{path} must hold a plain state dict of dense tensors, got {type(value).__name__} for {shown(name)}"
            )
    return {name: value.detach() for name, value in state.items()}


def _upstream_config(values: dict[str, Any], time: str) -> ELMConfig:
    """Constructor arguments of upstream's neuron as a configuration of ours; its tau_s is that of the state dict."""
    theirs = dict(values)
    take = theirs.pop
    if missing := sorted({"num_input", "num_output"} - set(theirs)):
        raise ValueError(f"the config must hold num_input and num_output, missing {missing}")
    num_input, num_branch = take("num_input"), take("num_branch", None)
    low, high = take("memory_tau_min", 1.0), take("memory_tau_max", 1000.0)
    for name, bound in (("memory_tau_min", low), ("memory_tau_max", high)):
        if not isinstance(bound, int | float) or isinstance(bound, bool):
            raise ValueError(f"{name} must be a time in ms, got {shown(bound)}")
    if time == "tau_b":
        high = max(low + V2_TAU_ROOM_MS, high)
    routing = take("input_to_synapse_routing", None)
    names = {None: None, "random_routing": "random", "neuronio_routing": "neuronio"}
    if not isinstance(routing, str | None) or routing not in names:
        raise ValueError(f"input_to_synapse_routing must be one of {list(names)}, got {shown(routing)}")
    learn_tau_m, hidden = take("learn_memory_tau", False), take("mlp_hidden_size", None)
    if not isinstance(learn_tau_m, bool):
        raise ValueError(f"learn_memory_tau must be true or false, got {shown(learn_tau_m)}")
    synapses = take("num_synapse_per_branch", 1)
    plain = routing is None and synapses == 1 and num_branch in (None, num_input)
    take(f"{time}_value", None)  # what the state dict holds counts
    config = ELMConfig(
        input_size=num_input,
        output_size=take("num_output"),
        num_memory=take("num_memory", 100),
        variant="v1" if time == "tau_s" else "v2",
        num_branch=None if plain else num_input if num_branch is None else num_branch,
        num_synapse_per_branch=synapses,
        routing=names[routing],
        delta_t=take("delta_t", 1.0),
        tau_m_init=(low or TAU_MIN_MS, high),
        tau_m_bounds=(low, high),
        learn_tau_m=learn_tau_m,
        lambda_=take("lambda_value", 5.0),
        w_s_init=take("w_s_value", 0.5),
        num_mlp_layers=take("mlp_num_layers", 1),
        mlp_hidden_size=hidden or None,  # upstream reads 0 as None
        activation=take("mlp_activation", "relu"),
    )
    if theirs:
        raise ValueError(
            f"the config must hold arguments of upstream's {config.variant} neuron only, got also "
            f"{shown(sorted(theirs))}"
        )
    if routing is None and config.branches * synapses != num_input:
        raise ValueError(
            f"num_branch * num_synapse_per_branch must equal num_input without routing, got {config.branches} * "
            f"{synapses} for {num_input}"
        )
    return config


def _upstream_name(name: str) -> str:
    """``cell.mlp.1.weight`` is upstream's ``mlp.network.2.weight``: activations count as layers there."""
    return re.sub(r"^mlp\.(\d+)", lambda layer: f"mlp.network.{2 * int(layer[1])}", name.removeprefix("cell."))


def _branch_tau(tau: Tensor, name: str) -> Tensor:
    """The time constant of each branch from those of its synapses, (num_branch, num_synapse); one for all where they
    are equal.
    """
    if bool((tau != tau[:, :1]).any()):
        branch = int((tau != tau[:, :1]).any(1).nonzero()[0])
        raise ValueError(
            f"{name} must be the same for all synapses of a branch, got {sorted(set(tau[branch].tolist()))[:5]} "
            f"on branch {branch}"
        )
    return tau[0, 0] if bool((tau == tau[0, 0]).all()) else tau[:, 0]


def _upstream_index(state: dict[str, Tensor], path: Path) -> Tensor:
    mask, index = state["valid_indices_mask"], state["input_to_synapse_indices"].long()
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"{path}: valid_indices_mask must hold 0 and 1 only, got {mask.unique().tolist()[:5]}")
    if bool((index < 0).any()):
        raise ValueError(f"{path}: input_to_synapse_indices must not be negative, got {int(index.min())}")
    return index.where(mask.bool(), torch.full_like(index, -1))
