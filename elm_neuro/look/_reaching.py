"""What reaches each layer of a module while the module works; where it reads no spikes, each layer gets its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elm_neuro.events import SpikeEvents
from elm_neuro.look._input import RATE_HZ, Drive, poisson_drive, read_drive
from elm_neuro.look._parts import Input, Part, is_time_first, run
from elm_neuro.nn import is_layer

REFUSALS = (ValueError, TypeError, RuntimeError, IndexError)  # of a network that reads something else
BY_ITSELF = " The network reads something else than spikes, so that each layer was driven by itself."


@dataclass(frozen=True)
class Asked:
    """What a module is to be driven with.

    Args:
        data: a NeuronIO or SHD-format file; None makes Poisson spikes.
        index: which simulation or sample of `data`.
        duration_ms: length.
        rate_hz: of the spikes that are made.
        seed: of the spikes that are made.
    """

    data: str | os.PathLike[str] | None = None
    index: int | None = None
    duration_ms: float | None = None
    rate_hz: float = RATE_HZ
    seed: int = 0

    def __post_init__(self) -> None:
        if self.data is None and self.index is not None:
            raise ValueError(f"index must be None where spikes are made, got {self.index}")

    def made_for(self, part: Part) -> Drive:
        """Poisson spikes for one layer."""
        return poisson_drive(
            part.layer.input_size,
            part.layer.delta_t,
            num_excitatory=part.num_excitatory,
            duration_ms=self.duration_ms,
            rate_hz=self.rate_hz,
            seed=self.seed,
        )


class Reaching:
    """The input of a module and of each layer in it.

    Args:
        module: what is looked at.
        parts: the layers in it.
        asked: what it is driven with.

    Raises:
        ValueError: the data do not fit the module.
    """

    def __init__(self, module: nn.Module, parts: list[Part], asked: Asked) -> None:
        self.asked = asked
        first = _first(module, parts)
        width, delta_t = _width(module) or int(first.layer.input_size), float(first.layer.delta_t)
        if asked.data is not None:
            self.drive = read_drive(asked.data, width, delta_t, index=asked.index, duration_ms=asked.duration_ms)
        elif width == first.layer.input_size:
            self.drive = asked.made_for(first)
        else:
            self.drive = poisson_drive(
                width, delta_t, duration_ms=asked.duration_ms, rate_hz=asked.rate_hz, seed=asked.seed
            )
        self.remark, self.heard = "", dict[str, Input]()
        try:
            self.heard = _heard(module, parts, self.drive.events)
        except REFUSALS as error:
            if asked.data is not None:
                raise ValueError(f"data must be what the network reads, got {self.drive.what}: {error}") from error
            self.remark = BY_ITSELF

    def of(self, part: Part) -> tuple[Input, Drive]:
        """What a layer reads, and where it comes from."""
        if part.name not in self.heard:
            own = self.asked.made_for(part)
            return own.events, own
        x = self.heard[part.name]
        return x, self.drive if x is self.drive.events else Drive(
            self.drive.events, f"what reaches it of {self.drive.what}"
        )


def _first(module: nn.Module, parts: list[Part]) -> Part:
    """The layer that reads the input of a network, which tells its width and its steps."""
    if is_layer(module) or isinstance(module, nn.Sequential):
        return parts[0]
    for part in parts:
        nothing = torch.zeros(3, dtype=torch.int64, device="cpu")
        silence = SpikeEvents(nothing, nothing[:0], None, (1, 2, part.layer.input_size))
        try:
            if _heard(module, parts, silence).get(part.name) is silence:
                return part
        except REFUSALS:
            continue
    return parts[0]


def _width(module: nn.Module) -> int | None:
    """Inputs of a chain: of its first module that says it. None of a network that is no chain."""
    if is_layer(module):
        return int(module.input_size)
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[-1])
    children = list(module) if isinstance(module, nn.Sequential) else []
    return next((width for width in map(_width, children) if width is not None), None)


@torch.no_grad()
def _heard(module: nn.Module, parts: list[Part], events: SpikeEvents) -> dict[str, Input]:
    """Input of each layer by its place, while the module runs on these events."""
    heard: dict[str, Input] = {}
    if parts[0].layer is module:
        return {"": events}
    hooks = []
    for part in parts:

        def hear(layer: nn.Module, arguments: Any, keywords: Any, name: str = part.name) -> None:
            x = arguments[0] if arguments else keywords["x"]
            if isinstance(x, Tensor) and x.ndim < 3:  # a step of a cell
                return
            # of a layer that stands at several places, what it hears at the first
            heard.setdefault(name, x.transpose(0, 1) if isinstance(x, Tensor) and is_time_first(layer) else x)

        hooks.append(part.layer.register_forward_pre_hook(hear, with_kwargs=True))
    try:
        if isinstance(module, nn.Sequential):
            _through(module, "", events, heard)
        else:
            module(events)
    finally:
        for hook in hooks:
            hook.remove()
    return heard


def _through(chain: nn.Sequential, name: str, x: Any, heard: dict[str, Input]) -> Any:
    """Run a chain of layers, which give their state too, and of plain modules."""
    for child_name, child in chain._modules.items():  # one that stands there twice is run twice
        place = f"{name}.{child_name}" if name else child_name
        if is_layer(child):
            heard[place] = x
            x, _ = run(child, x)
        elif isinstance(child, nn.Sequential):
            x = _through(child, place, x, heard)
        else:
            like: Tensor = next(chain.parameters(), torch.zeros((), device="cpu"))
            x = child(x.to_dense(like.dtype) if isinstance(x, SpikeEvents) else x)
    return x
