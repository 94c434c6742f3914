"""Spikes from a readout: a threshold and the slope that learning sees in place of the step's."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from elm_neuro.functional import Surrogate
from elm_neuro.functional._spike import spikes_of


class SpikeRule(NamedTuple):
    """When a readout y fires: ``s = surrogate(y - threshold)``."""

    threshold: Tensor  # of a shape that the readout's broadcasts with: (), (output_size,), (num_neuron, output_size)
    surrogate: Surrogate  # called on the distance to threshold, gives spikes of the same dtype

    def fire(self, y: Tensor) -> Tensor:
        """Spikes, 0 or 1, of readouts of any shape ending in the threshold's.

        Raises:
            TypeError: the surrogate gives no tensor, or another dtype.
            ValueError: it gives another shape.
        """
        return spikes_of(self.surrogate, y - self.threshold, "readout")
