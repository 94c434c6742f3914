"""What a backend of the ELM's scan is."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from elm_neuro.backends._backend import Backend
from elm_neuro.backends.elm._learned import Learned
from elm_neuro.backends.parts._lengths import cut_at, last_or_zeros
from elm_neuro.backends.parts._spikes import SpikeRule
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMParameters, ELMState


class ELMBackend(Backend):
    """One way to run an ELM neuron over a sequence; what it can do beyond that, its flags say."""

    recomputes: bool = False  # takes `recompute_every`; the others are run a part of the sequence at a time
    traceable: bool = False  # torch.compile may look into its scan: it has an operator for the pass

    takes_bytes: bool = False  # reads frames of uint8 and int8 as they are; for the others floats are made of them

    def refusal(self, x: Tensor | SpikeEvents, params: ELMParameters) -> str | None:
        """Why it cannot run these inputs; None where it can."""
        return self.refusal_of(params.kappa_m)

    @abstractmethod
    def scan(
        self,
        x: Tensor | SpikeEvents,
        params: ELMParameters,
        state: ELMState | None,
        *,
        lengths: Tensor | None = None,
        sparse_input: str = "auto",
        recompute_every: int | None = None,
    ) -> tuple[Tensor, ELMState]:
        """Run the neuron over all time steps of `x`, batch first, as :func:`elm_neuro.backends.scan` explains.

        `state` is None for zeros; `sparse_input` may be ignored; `recompute_every` is None unless :attr:`recomputes`.
        """

    def fires(self, params: ELMParameters, rule: SpikeRule) -> bool:
        """Whether it takes this threshold and surrogate inside its own pass: then it has its own `spiking_scan`."""
        return False

    def spiking_scan(
        self,
        x: Tensor | SpikeEvents,
        params: ELMParameters,
        state: ELMState | None,
        rule: SpikeRule,
        *,
        lengths: Tensor | None = None,
        sparse_input: str = "auto",
        recompute_every: int | None = None,
        last_readout: bool = False,
    ) -> tuple[Tensor, Tensor, ELMState]:
        """Spikes, readout and state, as :func:`elm_neuro.backends.elm.spiking_scan` explains: here by torch, after
        :meth:`scan`.
        """
        y, after = self.scan(
            x, params, state, lengths=lengths, sparse_input=sparse_input, recompute_every=recompute_every
        )
        return fired(y, after, rule, lengths, last_readout)


class LearnedBackend(ELMBackend):
    """One that can compute what is effective inside its own pass, which then answers for second derivatives too."""

    @abstractmethod
    def takes_learned(self, x: Tensor | SpikeEvents, params: ELMParameters, lengths: Tensor | None) -> bool:
        """Whether it does so here; `params` are those of :class:`elm_neuro.backends.elm._learned.Learned`. Inputs and
        they are not refused.
        """

    @abstractmethod
    def scan(
        self,
        x: Tensor | SpikeEvents,
        params: ELMParameters | Learned,
        state: ELMState | None,
        *,
        lengths: Tensor | None = None,
        sparse_input: str = "auto",
        recompute_every: int | None = None,
    ) -> tuple[Tensor, ELMState]:
        """As :meth:`ELMBackend.scan`, also of parameters as a neuron learns them, then without `recompute_every`."""

    def spiking_scan(
        self,
        x: Tensor | SpikeEvents,
        params: ELMParameters | Learned,
        state: ELMState | None,
        rule: SpikeRule,
        *,
        lengths: Tensor | None = None,
        sparse_input: str = "auto",
        recompute_every: int | None = None,
        last_readout: bool = False,
    ) -> tuple[Tensor, Tensor, ELMState]:
        """As :meth:`ELMBackend.spiking_scan`, of what :meth:`scan` takes."""
        y, after = self.scan(
            x, params, state, lengths=lengths, sparse_input=sparse_input, recompute_every=recompute_every
        )
        return fired(y, after, rule, lengths, last_readout)


def fired(
    y: Tensor, after: ELMState, rule: SpikeRule, lengths: Tensor | None, last_readout: bool
) -> tuple[Tensor, Tensor, ELMState]:
    """The readout of a scan against a threshold."""
    y = y.to(after.m.dtype)  # autocast narrows the readout, not the state
    return cut_at(lengths, rule.fire(y)), last_or_zeros(y, lengths) if last_readout else y, after
