"""The whole published network: a recurrent layer of ELM neurons, a layer of them that reads it, and a linear map."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from elm_neuro import pretrained
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import NetworkState, Surrogate
from elm_neuro.functional._spike import SurrogateStep
from elm_neuro.functional._wiring import Wiring
from elm_neuro.nn._checks import checked_lengths, checked_state
from elm_neuro.nn._config import check_config
from elm_neuro.nn._keywords import check_keywords, spelled_out
from elm_neuro.nn._network import ELMNetwork
from elm_neuro.nn._network_classifier_config import ELMNetworkClassifierConfig, ELMNetworkClassifierState
from elm_neuro.nn._network_config import ELMNetworkConfig, ELMNetworkOptions


@pretrained.register
class ELMNetworkClassifier(pretrained.Saved, nn.Module):
    """The ELM Network of arXiv:2605.12049: :class:`ELMNetwork`, read by a layer of one ELM neuron a class with 3 memory
    units each, and a linear map of their outputs: logits of every step.

    It keeps the protocol of a layer. :func:`elm_neuro.last_output` takes the logits of each sample's last valid step,
    as published; ``elm_neuro.training.SequenceClassifier`` does so in training.

    Args:
        input_size: number of inputs.
        output_size: number of classes.
        num_neuron: neurons of the hidden layer.
        num_memory: memory units of each.
        linear: whether the linear map follows.
        wiring: of the hidden layer; the readout's is random.
        surrogate: of the hidden layer, where its output is "spike".
        generator: source of wirings and initial weights; torch's global one by default.
        backend: "auto" or a name of :func:`elm_neuro.backends.available`; not saved.
        options: the other keywords of :class:`ELMNetwork`, of the hidden layer. The readout shares those of its
            branches, time constants of the memory, gain, input scale and dropout.

    Shapes: as :class:`ELMNetwork`; logits (batch, time, output_size), zero past `lengths`; state
    :class:`ELMNetworkClassifierState`.

    >>> network = ELMNetworkClassifier(700, 19, 96)  # the published network on SHD-Adding
    >>> sum(parameter.numel() for parameter in network.parameters())
    77310
    >>> network(torch.zeros(2, 10, 700))[0].shape
    torch.Size([2, 10, 19])
    """

    state_type = ELMNetworkClassifierState
    config_type = ELMNetworkClassifierConfig

    @spelled_out(ELMNetworkOptions, ELMNetworkConfig)
    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_neuron: int,
        num_memory: int = 5,
        *,
        linear: bool = True,
        wiring: str | Tensor | Wiring = "random",
        surrogate: SurrogateStep | Surrogate | None = None,
        generator: torch.Generator | None = None,
        backend: str = "auto",
        **options: Unpack[ELMNetworkOptions],
    ) -> None:
        super().__init__()
        check_keywords(self, options, ELMNetworkOptions, ELMNetworkClassifier.__init__)
        self.hidden = ELMNetwork(
            input_size,
            num_neuron,
            num_memory,
            wiring=wiring,
            surrogate=surrogate,
            generator=generator,
            backend=backend,
            **options,
        )
        config = ELMNetworkClassifierConfig(hidden=self.hidden.config, output_size=output_size, linear=linear)
        self.readout = ELMNetwork(**vars(config.readout), generator=generator, backend=backend)
        self.linear = _linear(output_size, generator) if linear else None

    @classmethod
    def from_config(
        cls, config: ELMNetworkClassifierConfig, *, wiring: Tensor | Wiring | None = None, backend: str = "auto"
    ) -> ELMNetworkClassifier:
        """A network of this configuration with new weights; `wiring` as in :meth:`ELMNetwork.from_config`."""
        check_config(config, ELMNetworkClassifierConfig)
        hidden: dict[str, Any] = dict(vars(config.hidden))
        num_neuron = hidden.pop("output_size")
        hidden |= {} if wiring is None else {"wiring": wiring}
        return cls(
            output_size=config.output_size, num_neuron=num_neuron, linear=config.linear, backend=backend, **hidden
        )

    @property
    def config(self) -> ELMNetworkClassifierConfig:
        output_size, linear = self.readout.output_size, self.linear is not None
        return ELMNetworkClassifierConfig(hidden=self.hidden.config, output_size=output_size, linear=linear)

    @property
    def input_size(self) -> int:
        return self.hidden.input_size

    @property
    def output_size(self) -> int:
        """Number of classes."""
        return self.readout.output_size

    @property
    def delta_t(self) -> float:
        """Time step in ms."""
        return self.hidden.delta_t

    @property
    def penalties(self) -> tuple[str, ...]:
        """Names of what :meth:`forward` gives ``with_penalties=True``; there is no activity to keep small where the
        hidden layer's output is "identity".
        """
        return ("mlp",) if self.hidden.config.output == "identity" else ("activity", "mlp")

    def initial_state(self, batch: int) -> ELMNetworkClassifierState:
        """Zeros, in the parameters' dtype but not narrower than float32, on their device."""
        return ELMNetworkClassifierState(*self.hidden.initial_state(batch), *self.readout.initial_state(batch))

    def check_state(self, state: ELMNetworkClassifierState, batch: int) -> ELMNetworkClassifierState:
        """`state` where it fits this network and a batch of `batch`.

        Raises:
            TypeError: `state` is not eight tensors of the parameters' dtype.
            ValueError: a tensor has the wrong shape or device.
        """
        shapes = (*self.hidden.state_shapes(batch), *self.readout.state_shapes(batch))
        return checked_state(ELMNetworkClassifierState, state, shapes, self.hidden.bias)

    def step(
        self, x_t: Tensor, state: ELMNetworkClassifierState | None = None
    ) -> tuple[Tensor, ELMNetworkClassifierState]:
        """One step on the same parameters: x_t (batch, input_size); logits (batch, output_size)."""
        before = self.initial_state(x_t.shape[0]) if state is None else self.check_state(state, x_t.shape[0])
        y_t, hidden = self.hidden.step(x_t, NetworkState(*before[:4]))
        y_t, readout = self.readout.step(y_t, NetworkState(*before[4:]))
        return (y_t if self.linear is None else self.linear(y_t)), ELMNetworkClassifierState(*hidden, *readout)

    def forward(
        self,
        x: Tensor | SpikeEvents,
        state: ELMNetworkClassifierState | None = None,
        lengths: Tensor | None = None,
        *,
        with_penalties: bool = False,
    ) -> Any:
        """Logits and the state after the sequence; `with_penalties` also a dict of :attr:`penalties`, scalars with a
        gradient: :meth:`ELMNetwork.activity_penalty` and :meth:`ELMNetwork.mlp_penalty` of the hidden layer.
        """
        before = None if state is None else self.check_state(state, x.shape[0])
        if lengths is not None:
            lengths = checked_lengths(lengths, x.shape[0], x.shape[1], self.hidden.bias.device)
        first, second = (None, None) if before is None else (NetworkState(*before[:4]), NetworkState(*before[4:]))
        y, hidden, change = self.hidden(x, first, lengths, with_change=True)
        logits, readout = self.readout(y, second, lengths)
        if self.linear is not None:
            logits = self.linear(logits)
            if lengths is not None:
                running = torch.arange(logits.shape[1], device=logits.device) < lengths.to(logits.device).unsqueeze(-1)
                logits = torch.where(running.unsqueeze(-1), logits, 0.0)
        after = ELMNetworkClassifierState(*hidden, *readout)
        if not with_penalties:
            return logits, after
        penalties = {"mlp": self.hidden.mlp_penalty(change, y.shape[1], lengths)}
        if "activity" in self.penalties:
            penalties["activity"] = self.hidden.activity_penalty(y, lengths)
        return logits, after, penalties


def _linear(size: int, generator: torch.Generator | None) -> nn.Linear:
    """A square linear map, initialised as :class:`torch.nn.Linear` but from a generator."""
    linear = nn.Linear(size, size)
    if generator is not None:
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.uniform_(-(size**-0.5), size**-0.5, generator=generator)
    return linear
