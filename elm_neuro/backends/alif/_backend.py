"""What a backend of the ALIF's scan is."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from elm_neuro.backends._backend import Backend
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ALIFParameters, ALIFState


class ALIFBackend(Backend):
    """One way to run a layer of LIF or adaptive LIF neurons over a sequence."""

    # one step after the other in operators that everybody takes: transforms, tracers, torch.export, wrapper tensors
    steps_alone: bool = False
    # torch.compile may look into its scan: it has an operator for the pass
    traceable: bool = False
    # takes parameters as :class:`Learned` and a state as :class:`AtRest` where the layer has them so
    reads_learned: bool = False

    def refusal(self, x: Tensor | SpikeEvents, params: ALIFParameters, state: ALIFState) -> str | None:
        """Why it cannot run these inputs; None where it can."""
        return self.refusal_of(params.beta)

    @abstractmethod
    def scan(
        self,
        x: Tensor | SpikeEvents,
        weight: Tensor,
        bias: Tensor,
        params: ALIFParameters,
        state: ALIFState,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, ALIFState]:
        """Run the layer over all time steps of `x`, as :func:`elm_neuro.backends.alif.scan` explains."""
