"""Small networks that turn a batch of spike trains into class logits: one layer, a spiking layer before another, LIF
alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from elm_neuro.events import SpikeEvents
from elm_neuro.functional._timescales import clamped
from elm_neuro.nn import ALIF, LIF, Layer, check_layer, last_output, output_shape
from elm_neuro.nn._alif_config import BETA_RANGE, check_decay, check_time

READOUTS = ("last", "mean")
LEAKY_READOUTS = (*READOUTS, "sum")
TOLERANCE = 0.02  # by how much the parameters of a control may differ from those of the network it is compared with


def num_parameters(network: nn.Module) -> int:
    """Number of trained parameters.

    >>> num_parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def checked_layer(module: nn.Module, name: str) -> Layer[Any]:
    """`module`, where it keeps the protocol of a layer, is batch first and takes sequences.

    Raises:
        TypeError: as :func:`elm_neuro.nn.check_layer`.
        ValueError: as there, or it is a cell.
    """
    check_layer(module, name)
    if getattr(module, "is_cell", False):
        raise ValueError(f"{name} must take sequences, got {type(module).__name__}, which takes one step")
    return cast("Layer[Any]", module)


class SequenceClassifier(nn.Module):
    """Class logits from the outputs of one layer, for example of one ELM neuron, one output a class.

    Args:
        neuron: the layer, :class:`elm_neuro.nn.Layer`, batch first, whose outputs are the classes.
        readout: "last" takes the output at the last step (the paper's choice), "mean" the mean over all steps.

    Shapes: x (batch, time, input_size) or :class:`SpikeEvents`; returns logits (batch, output_size).

    Raises:
        TypeError: `neuron` is no layer.
        ValueError: `readout` is neither, or `neuron` is a population, a cell or not batch first.

    >>> from elm_neuro import ELM
    >>> SequenceClassifier(ELM(70, 20, num_memory=5))(torch.zeros(8, 10, 70)).shape
    torch.Size([8, 20])
    """

    def __init__(self, neuron: nn.Module, *, readout: str = "last") -> None:
        super().__init__()
        if readout not in READOUTS:
            raise ValueError(f"readout must be one of {list(READOUTS)}, got {readout!r}")
        layer = checked_layer(neuron, "neuron")
        if output_shape(layer) != (layer.output_size,):
            raise ValueError(f"neuron must be a single one, got outputs of shape {output_shape(layer)} for each sample")
        self.neuron, self.readout = layer, readout

    def forward(self, x: Tensor | SpikeEvents) -> Tensor:
        return self._read(self.neuron(x)[0])

    @property
    def penalties(self) -> tuple[str, ...]:
        """Names of what a loss may hold down beside the cross entropy; the layer says them by its `penalties`."""
        names: tuple[str, ...] = getattr(self.neuron, "penalties", ())
        return names

    def forward_with_penalties(self, x: Tensor | SpikeEvents) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the layer's :attr:`penalties`, scalars with a gradient."""
        y, _, penalties = self.neuron(x, with_penalties=True)  # type: ignore[call-arg, misc]  # one that has penalties
        return self._read(y), penalties

    def _read(self, y: Tensor) -> Tensor:
        """Logits of outputs (batch, time, output_size)."""
        return last_output(y) if self.readout == "last" else y.mean(1)

    def extra_repr(self) -> str:
        return f"readout={self.readout!r}"


class SpikingNetwork(SequenceClassifier):
    """A layer of spiking neurons, for example LIF neurons, read by another layer, for example one ELM neuron, whose
    real-valued outputs are the logits.

    Args:
        hidden: the spiking layer.
        neuron: the layer that reads it, input_size = the number of outputs of `hidden`.
        readout: as in :class:`SequenceClassifier`.

    Shapes: x (batch, time, hidden.input_size) or :class:`SpikeEvents`; returns logits (batch, neuron's output_size).

    Raises:
        TypeError: one of them is no layer.
        ValueError: the sizes or time steps of the two do not fit; and as :class:`SequenceClassifier`.

    >>> from elm_neuro import ELM
    >>> network = SpikingNetwork(LIF(70, 16, delta_t=10.0), ELM(16, 20, num_memory=5, delta_t=10.0))
    >>> network(torch.zeros(8, 10, 70)).shape
    torch.Size([8, 20])
    """

    def __init__(self, hidden: nn.Module, neuron: nn.Module, *, readout: str = "last") -> None:
        super().__init__(neuron, readout=readout)
        first, second = checked_layer(hidden, "hidden"), self.neuron
        if output_shape(first) != (second.input_size,):
            read = ", ".join(map(str, output_shape(first)))
            raise ValueError(f"neuron must have input_size {read} to read hidden, got {second.input_size}")
        if first.delta_t != second.delta_t:
            raise ValueError(f"neuron must have the delta_t of hidden, {first.delta_t} ms, got {second.delta_t} ms")
        self.hidden = first

    def forward(self, x: Tensor | SpikeEvents) -> Tensor:
        return super().forward(self.hidden(x)[0])

    def forward_with_penalties(self, x: Tensor | SpikeEvents) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the :attr:`penalties` of the layer that reads."""
        return super().forward_with_penalties(self.hidden(x)[0])


def check_sizes(**sizes: int) -> None:
    """Refuse sizes below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_time_constant(name: str, time: float, delta_t: float) -> None:
    """Refuse a time constant in ms of a membrane whose steps last `delta_t`."""
    check_time(name, time)
    check_decay(name, time, delta_t, BETA_RANGE[1])


class LeakyReadout(nn.Module):
    r"""Leaky integrators without spikes whose membranes are averaged or summed over time, or read at its end: the
    readout of a LIF-only network.

    :math:`v_t = \beta v_{t-1} + (1 - \beta)(W s_t + bias)` and :math:`y = \frac1T \sum_t v_t` or :math:`y = v_{T-1}`.
    Blocks (Taylor, King, Harper, NeurIPS 2023) leaves out the factors :math:`1 - \beta` and :math:`1/T`, which keep the
    logits near one: :math:`y = \sum_t v_t` is its readout, "sum". A closed form replaces the loop: from 0, step t
    counts :math:`(1 - \beta^{T-t}) / T`, :math:`(1 - \beta) \beta^{T-1-t}`, or :math:`(1 - \beta^{T-t}) / (1 - \beta)`.

    Args:
        input_size: number of inputs.
        output_size: number of integrators.
        delta_t: time step in ms.
        tau_v: initial time constant in ms, trained.
        readout: "mean", "last" or "sum".

    Shapes: spikes (batch, time, input_size); returns (batch, output_size).

    Raises:
        ValueError: `readout` is none of them, a size is below 1, or a time is out of range.

    >>> LeakyReadout(3, 2, delta_t=10.0, tau_v=20.0)(torch.zeros(4, 5, 3)).shape
    torch.Size([4, 2])
    """

    without_decay = ("beta",)  # a parameter that weight decay would turn into another

    def __init__(
        self, input_size: int, output_size: int, *, delta_t: float, tau_v: float, readout: str = "mean"
    ) -> None:
        super().__init__()
        if readout not in LEAKY_READOUTS:
            raise ValueError(f"readout must be one of {list(LEAKY_READOUTS)}, got {readout!r}")
        check_sizes(input_size=input_size, output_size=output_size)
        check_time("delta_t", delta_t)
        check_time_constant("tau_v", tau_v, delta_t)
        self.readout = readout
        self.linear = nn.Linear(input_size, output_size)
        self.beta_init = math.exp(-delta_t / tau_v)
        self.beta = nn.Parameter(torch.full((output_size,), self.beta_init))

    def reset_parameters(self) -> None:
        """The decay as at the start; the linear part draws itself."""
        nn.init.constant_(self.beta, self.beta_init)

    def forward(self, spikes: Tensor) -> Tensor:
        num_steps = spikes.shape[1]
        left = torch.arange(num_steps, 0, -1, device=spikes.device)[:, None]
        beta = clamped(self.beta, *BETA_RANGE)
        if self.readout == "last":
            share = (1.0 - beta) * beta ** (left - 1)  # (time, output_size)
        else:
            share = (1.0 - beta**left) / (num_steps if self.readout == "mean" else 1.0 - beta)
        logits: Tensor = (self.linear(spikes) * share).sum(1)
        return logits


class LIFNetwork(nn.Module):
    """Control without an ELM: a layer of LIF neurons, a recurrent layer of LIF neurons, leaky integrators that do not
    spike.

    The recurrent weights start at zero, not at the identity of :class:`elm_neuro.nn.LIF`, with which a neuron excites
    itself over its threshold after every spike.

    Args:
        hidden: the first spiking layer.
        recurrent: the second one, built with ``recurrent=True``, input_size = the first one's output_size.
        output_size: number of classes.
        tau_readout: initial time constant of the readout in ms.

    Shapes: x (batch, time, hidden.input_size) or :class:`SpikeEvents`; returns logits (batch, output_size).

    Raises:
        ValueError: the sizes do not fit, `recurrent` has no recurrent weights, or `tau_readout` is out of range.
    """

    def __init__(self, hidden: ALIF, recurrent: ALIF, *, output_size: int, tau_readout: float = 100.0) -> None:
        super().__init__()
        if hidden.output_size != recurrent.input_size:
            raise ValueError(
                f"recurrent must have input_size {hidden.output_size} to read hidden, got {recurrent.input_size}"
            )
        if recurrent.cell.w_rec is None:
            raise ValueError("recurrent must be a layer with recurrent=True, got one without recurrent weights")
        check_time_constant("tau_readout", tau_readout, recurrent.delta_t)
        self.hidden, self.recurrent = hidden, recurrent
        self.readout = LeakyReadout(recurrent.output_size, output_size, delta_t=recurrent.delta_t, tau_v=tau_readout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The recurrent weights as at the start; the layers draw themselves."""
        nn.init.zeros_(self.recurrent.cell.w_rec)  # type: ignore[arg-type]  # it has them

    @classmethod
    def matching(
        cls, target: int, *, input_size: int, output_size: int, delta_t: float, tau_v: float, tau_readout: float = 100.0
    ) -> LIFNetwork:
        """The control whose number of parameters is nearest to `target`, its two layers as equal as that allows.

        Args:
            target: number of parameters to meet within 2 %.
            input_size: number of inputs.
            output_size: number of classes.
            delta_t: time step in ms.
            tau_v: initial time constant of the membranes in ms.
            tau_readout: as in the constructor.

        Raises:
            ValueError: no network comes within 2 % of `target`.

        >>> num_parameters(LIFNetwork.matching(43_000, input_size=140, output_size=20, delta_t=10.0, tau_v=20.0))
        42988
        """
        nearest = min(_sizes(target, input_size, output_size), default=None)
        if nearest is None or nearest[0] > TOLERANCE * target:
            raise ValueError(
                f"target must be a number of parameters that two LIF layers meet within {TOLERANCE:.0%}, got {target}"
            )
        _, _, first, second = nearest
        hidden = LIF(input_size, first, delta_t=delta_t, tau_v=tau_v)
        recurrent = LIF(first, second, delta_t=delta_t, tau_v=tau_v, recurrent=True)
        return cls(hidden, recurrent, output_size=output_size, tau_readout=tau_readout)

    def forward(self, x: Tensor | SpikeEvents) -> Tensor:
        spikes, _ = self.hidden(x)
        spikes, _ = self.recurrent(spikes)
        logits: Tensor = self.readout(spikes)
        return logits


def _sizes(target: int, input_size: int, output_size: int) -> Iterator[tuple[int, int, int, int]]:
    """(distance to the target, difference of the layers, first layer, second layer) of layers that differ by at most
    a tenth.
    """
    for first in range(1, math.isqrt(target) + 1):
        for second in range(math.ceil(0.9 * first), math.floor(1.1 * first) + 1):
            # weights, biases and decays of both layers, recurrent weights, readout
            count = first * (input_size + 2) + second * (first + 2) + second * second + output_size * (second + 2)
            yield abs(count - target), abs(first - second), first, second
