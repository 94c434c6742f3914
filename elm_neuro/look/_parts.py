"""The layers inside a module, whoever wrote it, and how each is run; asked for by the protocol of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elm_neuro.events import SpikeEvents
from elm_neuro.nn import is_layer, output_shape

Input = SpikeEvents | Tensor
NUM_NEURONIO_INPUTS = 1278  # 639 segments of the cell, an excitatory and an inhibitory one each


@dataclass(frozen=True)
class Part:
    """A layer inside of a module.

    Args:
        name: its place in the module, "" for the module itself.
        layer: the outermost module there that keeps the protocol of a layer.
        neuron: which neuron of a population is looked at.
    """

    name: str
    layer: Any
    neuron: int = 0

    @property
    def core(self) -> Any:
        """The layer inside of all wrappers."""
        core = self.layer
        while is_layer(inner := getattr(core, "core", None)):
            core = inner
        return core

    @property
    def config(self) -> Any:
        """Of the core."""
        return self.core.config

    @property
    def num_neuron(self) -> int | None:
        """Size of a population of ELM neurons; None for everything else."""
        number: int | None = getattr(self.config, "num_neuron", None)
        return number

    @property
    def is_elm(self) -> bool:
        """Whether it has synapses on its inputs that are summed on branches, and a memory, as an ELM neuron."""
        return self.has_memory and not self.is_network

    @property
    def is_network(self) -> bool:
        """Whether it is neurons whose synapses read inputs and each other, as an ELM Network."""
        return self.has_memory and hasattr(self.core, "wiring")

    @property
    def has_memory(self) -> bool:
        """Whether synapses are summed on branches whose traces a memory remembers, in one neuron or in many."""
        core = self.core
        return hasattr(core, "w_s") and hasattr(core, "tau_m") and {"b", "m"} <= set(core.state_type._fields)

    @property
    def cell(self) -> Any:
        """Where the core's parameters are."""
        return getattr(self.core, "cell", self.core)

    @property
    def is_neuronio(self) -> bool:
        """Whether inputs and outputs are those of NeuronIO: signed spikes in, logit of a spike and voltage out."""
        return self.is_elm and self.core.input_size == NUM_NEURONIO_INPUTS and self.core.output_size == 2

    @property
    def num_excitatory(self) -> int | None:
        """How many of the inputs, the first ones, are excitatory, the others inhibitory; None where all are alike."""
        paired = self.is_neuronio or getattr(self.config, "routing", None) == "neuronio"
        return self.core.input_size // 2 if paired else None

    @property
    def parameter(self) -> Tensor:
        """One whose dtype and device are those of the layer."""
        tensors = [*self.layer.parameters(), *self.layer.buffers()]
        return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros((), device="cpu"))

    def of_neuron(self, values: Tensor) -> Tensor:
        """What belongs to the neuron that is looked at: (batch, time, [num_neuron,] size) without the population."""
        if self.num_neuron is None:
            return values
        if values.ndim == 3:  # outputs that are flattened
            values = values.unflatten(-1, (self.num_neuron, -1))
        return values[:, :, self.neuron]


def parts_of(module: nn.Module, *, neuron: int = 0) -> list[Part]:
    """The layers in a module, the outermost ones that do not hold several others, in the order in which it holds them.

    Args:
        module: a layer, or whatever holds some.
        neuron: of a population, which one is looked at.

    Raises:
        TypeError: there is no layer in it.
        ValueError: a population has no such neuron.

    >>> from elm_neuro import ELM, LIF
    >>> [part.name for part in parts_of(nn.Sequential(LIF(4, 3), nn.Linear(3, 2), nn.Sequential(ELM(2, 1))))]
    ['0', '2.0']
    """
    parts = [Part(name, layer, neuron) for name, layer in _layers(module, "")]
    if not parts:
        raise TypeError(
            f"a module that is looked at must be or hold a layer as elm_neuro.nn.Layer describes it, got "
            f"{type(module).__name__} without one"
        )
    sizes = [part.num_neuron for part in parts if part.num_neuron is not None]
    if neuron < 0 or (neuron > 0 and neuron >= max(sizes, default=1)):
        raise ValueError(f"neuron must be in [0, {max(sizes, default=1)}), got {neuron}")
    return [Part(part.name, part.layer, min(neuron, (part.num_neuron or 1) - 1)) for part in parts]


def _layers(module: nn.Module, name: str) -> list[tuple[str, Any]]:
    inside = [
        found
        for child_name, child in module.named_children()
        for found in _layers(child, f"{name}.{child_name}" if name else child_name)
    ]
    # a layer around another one, or its cell, is looked at itself; what holds several is a network of them
    return [(name, module)] if is_layer(module) and len(inside) < 2 else inside


def is_time_first(layer: Any) -> bool:
    """Whether a layer takes (time, batch, ...)."""
    return not getattr(layer.config, "batch_first", True)


def run(layer: Any, x: Input, state: Any = None) -> tuple[Tensor, Any]:
    """Outputs (batch, time, *output_shape) and last state of a layer for a sequence, batch first.

    A cell is called step by step; a layer that is time first gets its input so.
    """
    if getattr(layer, "is_cell", False):
        outputs = []
        state = layer.initial_state(frames(layer, x).shape[0]) if state is None else state
        for x_t in frames(layer, x).unbind(1):
            y_t, state = layer.step(x_t, state)
            outputs.append(y_t)
        return torch.stack(outputs, 1), state
    time_first = is_time_first(layer)
    if time_first and isinstance(x, Tensor):
        x = x.transpose(0, 1)
    y, state = layer(x, state)
    return (y.transpose(0, 1) if time_first else y), state


def frames(layer: Any, x: Input) -> Tensor:
    """A sequence as dense frames in the dtype of the layer."""
    return x.to_dense(Part("", layer).parameter.dtype) if isinstance(x, SpikeEvents) else x


def output_names(part: Part) -> list[str]:
    """What the outputs of one neuron, or of a layer, are called."""
    if part.is_neuronio:
        return ["somatic voltage", "logit of a spike"]
    shape = output_shape(part.core)
    size = part.core.output_size if part.num_neuron is not None else int(torch.Size(shape).numel())
    return [f"output {index}" for index in range(size)]


def readout(part: Part, y: Tensor) -> Tensor:
    """Outputs in the order of :func:`output_names`; for NeuronIO the voltage in mV above rest, then the logit."""
    return torch.stack((10.0 * y[..., 1], y[..., 0]), -1) if part.is_neuronio else y
