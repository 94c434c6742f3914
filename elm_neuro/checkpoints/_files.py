"""What all checkpoints share: neurons built from checked tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.nn import ELM, ELMConfig

INDEX = "cell.input_to_synapse_indices"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_tensors(
    tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], index: str | None, source: str
) -> None:
    """Refuse missing and extra names, other shapes, and tensors that are not plain numbers in memory; `index` is checked where it is used."""
    missing, extra = sorted(set(shapes) - set(tensors)), sorted(set(tensors) - set(shapes) - {index})
    if missing or extra:
        raise ValueError(
            f"{source} must hold the tensors of its config, missing {missing or 'none'}, got also {extra or 'none'}"
        )
    if len(kinds := {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}) > 1:
        raise ValueError(f"{source} must hold one floating type, got {sorted(map(str, kinds))}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{source}: {name} must have shape {shape} to fit its config, got {tuple(tensor.shape)}")
        whole = name in ("input_to_synapse_indices", "valid_indices_mask")
        if whole == tensor.is_floating_point() or (not whole and tensor.dtype not in FLOATS) or tensor.is_complex():
            raise ValueError(
                f"{source}: {name} must hold {'integers' if whole else 'floating point numbers'}, got {tensor.dtype}"
            )


def tensor_shapes(config: ELMConfig, num_tensors: int) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of such a neuron except the routing index, known before anything of that size is made.

    `num_tensors` is what the file has: it bounds the layers that a made-up config can ask for.
    """
    if config.num_mlp_layers > num_tensors:
        raise ValueError(
            f"num_mlp_layers must be below the number of tensors, {num_tensors}, got {config.num_mlp_layers}"
        )
    neurons = () if config.num_neuron is None else (config.num_neuron,)
    sizes = [config.branches + config.num_memory, *[config.hidden_size] * config.num_mlp_layers, config.num_memory]
    affine = {f"cell.mlp.{i}": (sizes[i + 1], sizes[i]) for i in range(len(sizes) - 1)} | {
        "cell.w_y": (config.output_size, config.num_memory)
    }
    shapes: dict[str, tuple[int, ...]] = {
        "cell._proto_w_s": (*neurons, config.branches, config.num_synapse_per_branch),
        "cell._proto_tau_m": (*neurons, config.num_memory),
        "cell.tau_s": (config.branches,) if isinstance(config.tau_s, tuple) else (),
    }
    for name, (out, into) in affine.items():
        shapes |= {f"{name}.weight": (*neurons, out, into), f"{name}.bias": (*neurons, out)}
    return shapes


def build(config: ELMConfig, tensors: dict[str, Tensor], *, backend: str) -> ELM:
    """A neuron that holds these tensors themselves; torch's random numbers are left where they were."""
    index = tensors.get(INDEX)
    if (index is None) != (config.num_branch is None):
        raise ValueError(
            f"{INDEX} must be there where num_branch is given and only there, got num_branch {config.num_branch}"
        )
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        neuron = ELM.from_config(config, routing=index, backend=backend)
    neuron.cell.config = config  # an index from a file is the one that its routing's name once drew
    neuron.load_state_dict(tensors, assign=True)
    return neuron
