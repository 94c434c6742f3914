"""What training asks of the layers of a network: their time step, and their spikes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


def check_time_steps(network: nn.Module, step_ms: float, meaning: str) -> None:
    """Refuse layers that are built for another time step than that of the data.

    A layer says its time step by `delta_t`; a network that runs at any step although it has one, or only under some
    settings does not, says so by `required_delta_t`, None or a time.

    Args:
        network: whose parts are asked.
        step_ms: the step of the data in ms.
        meaning: what this step is, for the message.

    Raises:
        ValueError: they differ.
    """
    for name, part in network.named_modules():
        delta_t = getattr(part, "required_delta_t", getattr(part, "delta_t", None))
        if isinstance(delta_t, float) and delta_t != step_ms:
            path = f"network.{name}".rstrip(".")
            raise ValueError(f"{path} must have delta_t {step_ms} ms, {meaning}, got {delta_t} ms")


def spiking_layers(network: nn.Module) -> list[nn.Module]:
    """The layers that say by ``emits_spikes = True`` that their outputs are spikes; what is inside one is part of it.

    >>> from elm_neuro import ELM, LIF
    >>> spiking_layers(nn.Sequential(LIF(3, 2), ELM(2, 1, num_memory=2)))
    [LIF(...)]
    """
    layers: dict[str, nn.Module] = {}
    for name, part in network.named_modules():
        inside = any(name.startswith(f"{outer}." if outer else "") for outer in layers)
        if getattr(part, "emits_spikes", False) and not inside:
            layers[name] = part
    return list(layers.values())


@contextmanager
def spikes_recorded(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what every spiking layer of `network` emits inside the ``with`` block: spikes (batch, time, neuron),
    layer by layer.
    """
    spikes: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: spikes.append(output[0])) for layer in spiking_layers(network)
    ]
    try:
        yield spikes
    finally:
        for hook in hooks:
            hook.remove()
