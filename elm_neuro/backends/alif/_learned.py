"""Parameters as a layer learns them and the state of one that has not run: what kernels can do without."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from elm_neuro.functional import ALIFParameters, ALIFState
from elm_neuro.functional._timescales import clamped


class Ranges(NamedTuple):
    """Lowest and highest effective parameters."""

    beta: tuple[float, float]
    p: tuple[float, float]
    b: tuple[float, float]


class Learned(NamedTuple):
    """Parameters as a layer learns them: `params` has in the places of beta, p and b what :meth:`effective` brings into
    their ranges. Without adaptation p is not read.
    """

    params: ALIFParameters
    ranges: Ranges

    def effective(self) -> ALIFParameters:
        """What one step works with."""
        params, ranges = self
        beta = clamped(params.beta, *ranges.beta)
        if params.b is None:
            return params._replace(beta=beta, p=beta)
        return params._replace(beta=beta, p=clamped(params.p.abs(), *ranges.p), b=clamped(params.b.abs(), *ranges.b))


class AtRest(ALIFState):
    """A state of zeros: views of one number, that nobody need read."""

    __slots__ = ()

    @classmethod
    def of(cls, bias: Tensor, batch: int, history: int) -> AtRest:
        """Of a layer with this bias that remembers the spikes of history steps."""
        zero, num_neuron = bias.new_zeros(()), bias.shape[0]
        layer = zero.expand(batch, num_neuron)
        return cls(layer, layer, zero.expand(batch, history, num_neuron))

    def spelled_out(self) -> ALIFState:
        """The zeros, each its own."""
        return ALIFState(*[part.new_zeros(part.shape) for part in self])
