"""What the faces of all hosts do alike with the layer that they wrap."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from elm_neuro import nn
from elm_neuro.nn import check_layer
from elm_neuro.nn._layer import AnyLayer


def check_version(host: str, installed: str, oldest: str, *, package: str | None = None) -> None:
    """Refuse a host that is too old.

    Args:
        host: name of the adapter and of its extra.
        installed: the version that is there.
        oldest: the first that will do.
        package: whose versions these are, where its name is not that of the host.

    Raises:
        ImportError: `installed` is below `oldest`; the message names both.

    >>> check_version("norse", "1.0.0", "1.1")
    Traceback (most recent call last):
    ImportError: elm_neuro.adapters.norse needs norse 1.1 or newer, got 1.0.0: pip install "elm-neuro[norse]"
    """
    numbers, needed = ([int(part) for part in re.findall(r"\d+", version)[:3]] for version in (installed, oldest))
    if numbers < needed:
        raise ImportError(
            f"elm_neuro.adapters.{host} needs {package or host} {oldest} or newer, got {installed}: "
            f'pip install "elm-neuro[{host}]"'
        )


def checked_core(core: AnyLayer, *, sequences: bool) -> AnyLayer:
    """`core` where it is a layer that a face can wrap.

    Raises:
        TypeError: it lacks a part of the protocol :class:`elm_neuro.nn.Layer`.
        ValueError: the face takes whole sequences and it is a cell.
    """
    check_layer(core)
    if sequences and getattr(core, "is_cell", False):
        raise ValueError(f"core must take sequences, got {type(core).__name__}, which takes one step: use Cell")
    return core


def check_single_steps(core: AnyLayer, reason: str) -> None:
    """Refuse to take a sequence step by step where `core` learns by blocks of steps.

    Raises:
        ValueError: it does; the message says the `reason` for the single steps.
    """
    if isinstance(core.config, nn.ALIFConfig):
        core.config.check_single_steps(reason)


def spikes_by_itself(core: AnyLayer) -> bool:
    """Whether the layer's output is spikes already, so that a face puts no threshold behind it."""
    return bool(getattr(core, "emits_spikes", False))


def made_to_spike(
    core: AnyLayer,
    *,
    sequences: bool,
    spiking: bool,
    output: Mapping[str, Any],
    renamed: Mapping[str, str] | None = None,
) -> AnyLayer:
    """`core` where it spikes by itself, else a :class:`elm_neuro.nn.SpikingELM` around it.

    Args:
        core: what the face was given.
        sequences: the face takes whole sequences.
        spiking: False where the face gives the core's output as it is.
        output: keywords of :class:`elm_neuro.nn.SpikeOutput`, by the names that the host has for them.
        renamed: our name for each that the host calls otherwise.

    Raises:
        TypeError: `core` lacks a part of the protocol, or keywords of spikes are given that have no use.
        ValueError: the face takes whole sequences and it is a cell.
    """
    core = checked_core(core, sequences=sequences)
    if not spikes_by_itself(core):
        no_spike_keywords(spiking, output)
        return nn.SpikingELM(core, **{(renamed or {}).get(name, name): value for name, value in output.items()})
    if output or not (spiking or hasattr(core, "readout")):
        refused = next(iter(output)) if output else "spiking=False"
        raise TypeError(f"{refused} must be left out: {type(core).__name__} spikes by itself")
    return core


def no_spike_keywords(spiking: bool, output: Mapping[str, Any]) -> None:
    """Refuse keywords of spikes where there are none."""
    if output and not spiking:
        raise TypeError(f"spiking=False gives the readout and takes no keywords of spikes, got {sorted(output)}")


def elm_of(input_size: int, output_size: int, num_memory: int | None, **neuron: Any) -> nn.ELM:
    """An ELM neuron, with `num_branch` a Branch-ELM; where `num_memory` is None, with the default of its class."""
    kind = nn.ELM if neuron.get("num_branch") is None else nn.BranchELM
    if num_memory is not None:
        neuron["num_memory"] = num_memory
    return kind(input_size, output_size, **neuron)


def state_sizes(core: AnyLayer) -> tuple[tuple[int, ...], ...]:
    """Shapes of one sample's state."""
    parts: tuple[Tensor, ...] = core.initial_state(1)
    return tuple(tuple(part.shape[1:]) for part in parts)


def split_keywords(options: Any, kind: type[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords that are keys of the ``TypedDict`` `kind`, and the others."""
    names = kind.__annotations__
    mine = {name: value for name, value in options.items() if name in names}
    return mine, {name: value for name, value in options.items() if name not in names}
