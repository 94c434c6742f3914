"""Adaptive LIF neurons alone: two layers and their readout."""

from __future__ import annotations

from torch import Tensor, nn

from elm_neuro.events import SpikeEvents
from elm_neuro.nn import ALIF
from elm_neuro.training.networks._classifiers import LeakyReadout, check_time_constant


class ALIFNetwork(nn.Module):
    """Class logits from two layers of adaptive LIF neurons, read by leaky integrators that are summed over time.

    Source: Taylor, King, Harper, NeurIPS 2023 (Blocks), its network on SHD. As there biases start at zero.

    Args:
        first: the layer that reads the input, recurrent there.
        second: the layer that reads the first, input_size = the first one's output_size.
        output_size: number of classes.
        tau_readout: initial time constant of the readout in ms, trained.

    Shapes: x (batch, time, first.input_size) or :class:`SpikeEvents`; returns logits (batch, output_size).

    Raises:
        ValueError: the sizes or time steps of the layers do not fit, or `tau_readout` is out of range.

    >>> import torch
    >>> network = ALIFNetwork(ALIF(70, 16, recurrent=True), ALIF(16, 16, recurrent=True), output_size=20)
    >>> network(torch.zeros(8, 10, 70)).shape
    torch.Size([8, 20])
    """

    def __init__(self, first: ALIF, second: ALIF, *, output_size: int, tau_readout: float = 20.0) -> None:
        super().__init__()
        if first.output_size != second.input_size:
            raise ValueError(f"second must have input_size {first.output_size} to read first, got {second.input_size}")
        if first.delta_t != second.delta_t:
            raise ValueError(f"second must have the delta_t of first, {first.delta_t} ms, got {second.delta_t} ms")
        check_time_constant("tau_readout", tau_readout, second.delta_t)
        self.first, self.second = first, second
        self.readout = LeakyReadout(
            second.output_size, output_size, delta_t=second.delta_t, tau_v=tau_readout, readout="sum"
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The readout's bias as at the start; the layers draw themselves."""
        nn.init.zeros_(self.readout.linear.bias)

    def forward(self, x: Tensor | SpikeEvents) -> Tensor:
        spikes, _ = self.first(x)
        spikes, _ = self.second(spikes)
        logits: Tensor = self.readout(spikes)
        return logits
