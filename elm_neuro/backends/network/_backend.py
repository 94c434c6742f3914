"""What a backend of the ELM Network's scan is."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor

from elm_neuro.backends._backend import Backend
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import NetworkParams, NetworkRule, NetworkState


class NetworkRecord(NamedTuple):
    """What a layer gives for a sequence."""

    a: Tensor  # (batch, time, num_neuron)  activity, zero past each sample's end
    change: Tensor  # (batch, num_neuron)  sum over valid steps of the mean over units of |o|, o before the tanh


class NetworkBackend(Backend):
    """One way to run a recurrent layer of ELM neurons over a sequence."""

    # one step after the other in operators that everybody takes: transforms, tracers, torch.export, wrapper tensors
    steps_alone: bool = False
    # torch.compile may look into its scan: it has an operator for the pass
    traceable: bool = False

    def refusal(self, x: Tensor | SpikeEvents, params: NetworkParams, rule: NetworkRule) -> str | None:
        """Why it cannot run these inputs; None where it can."""
        return self.refusal_of(params.bias)

    @abstractmethod
    def scan(
        self,
        x: Tensor | SpikeEvents,
        params: NetworkParams,
        rule: NetworkRule,
        state: NetworkState,
        *,
        lengths: Tensor | None = None,
        input_mask: Tensor | None = None,
        recurrent_mask: Tensor | None = None,
    ) -> tuple[NetworkRecord, NetworkState]:
        """Run the layer over all time steps of `x`, as :func:`elm_neuro.backends.network.scan` explains."""
