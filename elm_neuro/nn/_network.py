"""The ELM Network: a recurrent layer of many small ELM neurons."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, SupportsIndex, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elm_neuro import backends, pretrained
from elm_neuro.backends._select import choose
from elm_neuro.backends.network import NetworkRecord
from elm_neuro.backends.parts._lengths import without_padding
from elm_neuro.backends.parts._plain import may_look
from elm_neuro.backends.parts._untraced import compilable
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import NetworkState, Surrogate, network_step
from elm_neuro.functional._spike import SurrogateStep
from elm_neuro.functional._wiring import Wiring
from elm_neuro.nn._checks import (
    OVERFLOW,
    as_frames,
    check_part,
    check_sequence,
    check_step,
    checked_lengths,
    name_culprit,
)
from elm_neuro.nn._config import check_config
from elm_neuro.nn._counts import as_binary, warn_of_counts
from elm_neuro.nn._drawn import draw_anew
from elm_neuro.nn._hanging import is_untouched, reason_to_call
from elm_neuro.nn._keywords import check_keywords, spelled_out
from elm_neuro.nn._layer import BackendName, backend_shown
from elm_neuro.nn._narrow import as_stored, state_dtype, wide
from elm_neuro.nn._network_config import ELMNetworkConfig, ELMNetworkOptions
from elm_neuro.nn._network_neurons import NetworkNeurons


class DropoutMasks(NamedTuple):
    """What dropout multiplies with in all steps of a sequence: 0, or 1 / (1 - p); None where p is 0."""

    input: Tensor | None  # (batch, input_size)
    recurrent: Tensor | None  # (batch, output_size)


@pretrained.register
class ELMNetwork(pretrained.Saved, NetworkNeurons):
    r"""Recurrent layer of ELM neurons, each with branches that read the input and the layer's activity one step before.

    :func:`elm_neuro.functional.network_step` gives the equations. Source: arXiv:2605.12049; the defaults are its
    setting for SHD-Adding, but for dropout (0.2 there). A neuron here has one output; :class:`ELM` with `num_neuron` is
    a population that does not read itself.

    Args:
        input_size: number of inputs.
        output_size: number of neurons.
        num_memory: memory units of each.
        num_branch: branches of each.
        num_synapse_per_branch: synapses on each branch.
        wiring: what the synapses read: "random", "window", "small_world" or "full"
            (:mod:`elm_neuro.functional` describes each), a function of your own
            (:class:`elm_neuro.functional.Wiring`), or an index (output_size, num_branch, num_synapse_per_branch) of
            inputs, 0 to input_size - 1, and neurons, input_size + neuron.
        recurrent_fraction: expected share of synapses that read the layer; None is output_size / (input_size +
            output_size).
        rewiring: probability with which a synapse of the wiring "small_world" reads any other source.
        delta_t: time step in ms. The published setting leaves it at 1 with bins of 2 ms: its times are steps.
        tau_m_init: lowest and highest time constant of the memory units in ms.
        tau_m_spacing: "log" or "linear", between them.
        tau_m_bounds: range in ms if they are learned; a tenth of the lowest to sqrt(10) times the highest by default.
        learn_tau_m: whether they are.
        tau_b: time constant of a branch trace in ms; None: a branch passes its sum on.
        tau_high_pass: time constant in ms of the running mean that is taken from a neuron's output; None: none is.
        variant: gain of the memory, "v2" or "v1": :func:`elm_neuro.functional.memory_gain`.
        lambda_: its factor.
        num_mlp_layers: hidden layers of a neuron's MLP.
        mlp_hidden_size: their width; twice `num_memory` by default.
        activation: their nonlinearity, "relu_squared", "relu" or "silu".
        output: nonlinearity of the neurons, "relu", "identity", or "spike": 1 above 0.
        surrogate: spikes from a distance to threshold, with the gradient to use; ``FastSigmoid(100.0)`` by default.
        input_scale: factor on what arrives at a branch.
        input_dropout: probability with which an input falls out in training, for all steps of a sample.
        recurrent_dropout: the same of the activity that the layer reads.
        binarize: True: inputs that are not 0 count as 1, as in the published code. False: they count as they are. None:
            so too, and a warning is given where spike counts are above 1 (on the CPU, where a look costs no wait).
        generator: source of the random wiring and initial weights; torch's global one by default.
        backend: "auto" or a name of :func:`elm_neuro.backends.available`; not saved.

    Shapes:
        - x (batch, time, input_size) or :class:`SpikeEvents`.
        - state :class:`NetworkState`, None for zeros; splitting a sequence and handing the state on changes nothing
          without dropout.
        - lengths (batch,): number of valid steps; past them the activity is 0 and the state keeps its value.
        - activity (batch, time, output_size).

    >>> layer = ELMNetwork(700, 96)
    >>> y, state = layer(torch.zeros(2, 50, 700))
    >>> y.shape, sum(parameter.numel() for parameter in layer.parameters())
    (torch.Size([2, 50, 96]), 69216)
    """

    state_type = NetworkState
    config_type = ELMNetworkConfig
    backend = BackendName("network")

    @spelled_out(ELMNetworkOptions, ELMNetworkConfig)
    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_memory: int = 5,
        *,
        wiring: str | Tensor | Wiring = "random",
        surrogate: SurrogateStep | Surrogate | None = None,
        generator: torch.Generator | None = None,
        backend: str = "auto",
        **config: Unpack[ELMNetworkOptions],
    ) -> None:
        check_keywords(self, config, ELMNetworkOptions, ELMNetwork.__init__)
        fields: Any = {"num_memory": num_memory, "wiring": wiring if isinstance(wiring, str) else "index"} | config
        if surrogate is not None:
            fields["surrogate"] = surrogate
        super().__init__(ELMNetworkConfig(input_size=input_size, output_size=output_size, **fields), wiring, generator)
        self.backend = backend

    @classmethod
    def from_config(
        cls, config: ELMNetworkConfig, *, wiring: Tensor | Wiring | None = None, backend: str = "auto"
    ) -> ELMNetwork:
        """A layer of this configuration with new weights.

        Args:
            config: its configuration.
            wiring: the index or function; needed where the configuration's wiring is "index".
            backend: as in the constructor.
        """
        check_config(config, ELMNetworkConfig)
        return cls(**(vars(config) if wiring is None else vars(config) | {"wiring": wiring}), backend=backend)

    def reset_parameters(self) -> None:
        """Draw everything anew in place, from torch's global generator, as the constructor does: weights, time
        constants, a wiring that is drawn. One that was given stays.

        Raises:
            ValueError: the wiring was given and is not there: nobody has filled it since ``to_empty``.
        """
        index = self.wiring.cpu() if self._config.wiring == "index" else None
        if index is not None and bool((index < 0).all()):
            raise ValueError("wiring must be loaded before weights are drawn anew, got an index nobody has filled")
        draw_anew(self, lambda: ELMNetwork.from_config(self.config, wiring=index))

    def reason_to_call(self) -> str | None:
        """Why only a call of this layer does what it is meant to do; None where its parameters say all."""
        reason = None if is_untouched(self, ELMNetwork) else reason_to_call(self, ELMNetwork.forward)
        return reason or self.reason_to_call_inside()

    def draw_masks(self, batch: int) -> DropoutMasks:
        """Dropout of a batch of sequences, from torch's global generator; nothing falls out in evaluation."""
        config = self._config

        def draw(size: int, p: float) -> Tensor | None:
            if not (self.training and p):
                return None
            return F.dropout(self.bias.new_ones(batch, size, dtype=state_dtype(self.bias)), p)

        return DropoutMasks(
            draw(config.input_size, config.input_dropout), draw(config.output_size, config.recurrent_dropout)
        )

    def _checked_masks(self, masks: DropoutMasks | None, batch: int) -> DropoutMasks:
        """Those that came, where they fit a batch of `batch`, or new ones."""
        if masks is None:
            return self.draw_masks(batch)
        if not (isinstance(masks, tuple) and len(masks) == len(DropoutMasks._fields)):
            raise TypeError(f"masks must be DropoutMasks, got {type(masks).__name__}")
        for name, mask, size in zip(DropoutMasks._fields, masks, (self.input_size, self.output_size), strict=True):
            if mask is None:
                continue
            if not isinstance(mask, Tensor):
                raise TypeError(f"masks.{name} must be a tensor or None, got {type(mask).__name__}")
            check_part(f"masks.{name}", mask, (batch, size), self.bias)
        return DropoutMasks(*masks)

    def step(
        self, x_t: Tensor, state: NetworkState | None = None, masks: DropoutMasks | None = None
    ) -> tuple[Tensor, NetworkState]:
        """One step on the same parameters: x_t (batch, input_size); activity (batch, output_size).

        In training with dropout it needs the `masks` of its sequence, from :meth:`draw_masks`.

        Raises:
            ValueError: it has none; and as the call.
        """
        check_step(x_t, self._config.input_size, self.bias)
        if masks is None and self.training and (self._config.input_dropout or self._config.recurrent_dropout):
            raise ValueError("masks must be given to a step in training with dropout: draw_masks(batch), got None")
        of_input, of_neurons = masks = self._checked_masks(masks, x_t.shape[0])
        if self.reason_to_call() is not None:
            y, after = self(x_t.unsqueeze(1), state, masks=masks)
            return y.squeeze(1), after
        before = self.initial_state(x_t.shape[0]) if state is None else self.check_state(state, x_t.shape[0])
        x_t = wide(as_binary(x_t) if self._config.binarize else x_t)  # type: ignore[arg-type]  # a tensor of a tensor
        params, rule = self.parameters_as_they_are(), self._config.rule(self.surrogate)
        x_t = x_t if of_input is None else x_t * of_input
        y_t, _, after = network_step(x_t, before, params, rule, of_neurons)
        self._refuse_nan(x_t, before, None, after)
        return as_stored(y_t, self.bias), after

    def _refuse_nan(
        self, x: Tensor | SpikeEvents, before: NetworkState, lengths: Tensor | None, after: NetworkState
    ) -> None:
        """A memory never forgets a NaN."""
        if not may_look(after.m):
            return
        from elm_neuro.backends.native._sums import sum_of  # brings the kernels

        if math.isnan(sum_of(after.m)):
            name_culprit(self, x, before, lengths)
            raise ValueError(OVERFLOW.format("a memory that is NaN", after.m.dtype))

    @compilable
    def forward(
        self,
        x: Tensor | SpikeEvents,
        state: NetworkState | None = None,
        lengths: Tensor | None = None,
        *,
        masks: DropoutMasks | None = None,
        with_change: bool = False,
    ) -> Any:
        """Activity and the state after the sequence; `with_change` also the change that :meth:`mlp_penalty` takes.

        Args:
            x: the sequences.
            state: before the first step.
            lengths: number of valid steps.
            masks: of dropout; in training new ones are drawn for each call by default.
            with_change: give (activity, state, change).
        """
        like, config = self.bias, self._config
        check_sequence(x, config.input_size, like)
        batch, num_steps = x.shape[:2]
        before = self.initial_state(batch) if state is None else self.check_state(state, batch)
        if lengths is not None:
            lengths = checked_lengths(lengths, batch, num_steps, like.device)
        if not isinstance(x, SpikeEvents):
            x = wide(as_frames(x, like))
        if config.binarize:
            x = as_binary(x)
        elif config.binarize is None and may_look(like):
            warn_of_counts(x)
        masks = self._checked_masks(masks, batch)
        reason = self.reason_to_call_inside()
        if reason is None:
            record, after = backends.network.scan(
                x,
                self.parameters_as_they_are(),
                before,
                config.rule(self.surrogate),
                lengths=lengths,
                input_mask=masks.input,
                recurrent_mask=masks.recurrent,
                backend=self.backend,
            )
        else:
            record, after = self._by_calls(x, before, lengths, masks, reason)
        self._refuse_nan(x, before, lengths, after)
        y = as_stored(record.a, like)
        return (y, after, record.change) if with_change else (y, after)

    @backends.untraced
    def _by_calls(
        self,
        x: Tensor | SpikeEvents,
        state: NetworkState,
        lengths: Tensor | None,
        masks: DropoutMasks,
        reason: str,
    ) -> tuple[NetworkRecord, NetworkState]:
        """The layer as the loop that calls the modules inside.

        Raises:
            ValueError: a backend is named that is no loop.
        """
        # for a layer that is changed inside only, so not imported with the package
        from elm_neuro.backends.network._masked import masked
        from elm_neuro.backends.network._reference import loop

        of = backends.network.OPERATOR
        choose(of, self.backend, lambda candidate: reason if candidate.name != "reference" else None)
        frames = as_frames(masked(x if lengths is None else without_padding(x, lengths), masks.input), state.m)
        layers = [_called(layer, self.bias) for layer in self.mlp]
        params, rule = self.parameters_as_they_are(layers=False), self._config.rule(self.surrogate)
        return loop(frames, params, rule, state, lengths, masks.recurrent, layers)

    def activity_penalty(self, y: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mean over samples of the mean activity over valid steps and neurons, of the positive part: a scalar with a
        gradient. The published setting takes 0.2 times it.

        Args:
            y: activity that the layer gave, (batch, time, output_size).
            lengths: number of valid steps.

        Raises:
            ValueError: the layer has an identity output, whose negative values say no activity.
        """
        if self._config.output == "identity":
            raise ValueError('activity_penalty needs neurons with output "relu" or "spike", got "identity"')
        mean: Tensor = (torch.relu(y).mean(-1).sum(1) / _steps(lengths, y.shape[1], y)).mean()
        return mean

    def mlp_penalty(self, change: Tensor, num_steps: int, lengths: Tensor | None = None) -> Tensor:
        """Mean over samples and neurons of the squared mean size, over valid steps and units, of what an MLP proposes:
        a scalar with a gradient. The published setting takes 0.002 times it.

        Args:
            change: what the call gave ``with_change=True``, (batch, output_size).
            num_steps: steps of the sequences.
            lengths: number of valid steps.
        """
        steps = _steps(lengths, num_steps, change)
        mean: Tensor = (change / (steps if lengths is None else steps.unsqueeze(-1))).square().mean()
        return mean

    def extra_repr(self) -> str:
        config = self._config
        default = ELMNetworkConfig(input_size=1, output_size=1)
        sizes = [f"{name}={getattr(config, name)}" for name in ("num_memory", "num_branch", "num_synapse_per_branch")]
        changed = [
            f"{name}={value!r}"
            for name, value in vars(config).items()
            if name not in ("input_size", "output_size", "num_memory", "num_branch", "num_synapse_per_branch")
            and value != getattr(default, name)
        ]
        chosen = backend_shown(self, wide(self.bias), "network")
        return ", ".join([str(config.input_size), str(config.output_size), *sizes, *changed, f"backend={chosen!r}"])


def _called(layer: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
    """A linear layer by its call, in the dtype of the parameter `like`."""
    return lambda x: wide(layer(as_stored(x, like)))


def _steps(lengths: Tensor | None, num_steps: int, like: Tensor) -> Any:
    """Valid steps of each sample, at least 1: a number, or (batch,)."""
    if not isinstance(num_steps, SupportsIndex) or num_steps < 0:
        raise ValueError(f"num_steps must be an integer of at least 0, got {num_steps!r}")
    if lengths is None:
        return max(num_steps, 1)
    return checked_lengths(lengths, like.shape[0], num_steps, like.device).clamp(min=1)
