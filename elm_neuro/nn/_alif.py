"""Layers of LIF and adaptive LIF neurons, to put before, behind and beside an ELM."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from elm_neuro import pretrained
from elm_neuro.backends import alif, untraced
from elm_neuro.backends._select import choose
from elm_neuro.backends.alif._learned import AtRest, Learned, Ranges
from elm_neuro.backends.parts._plain import may_look
from elm_neuro.backends.parts._shapes import check_operands
from elm_neuro.backends.parts._untraced import compilable
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ALIFParameters, ALIFState, FastSigmoid, Surrogate, alif_step
from elm_neuro.nn._alif_config import (
    B_RANGE,
    BETA_RANGE,
    P_RANGE,
    ALIFCellOptions,
    ALIFConfig,
    ALIFOptions,
    LIFOptions,
)
from elm_neuro.nn._checks import (
    as_frames,
    check_batch,
    check_sequence,
    check_step,
    checked_lengths,
    checked_state,
    refuse_infinite,
)
from elm_neuro.nn._config import check_config, check_generator
from elm_neuro.nn._drawn import draw_anew
from elm_neuro.nn._hanging import is_untouched, reason_to_call
from elm_neuro.nn._keywords import check_keywords, spelled_out
from elm_neuro.nn._layer import BackendName, Configured
from elm_neuro.nn._lengths import step_where_valid
from elm_neuro.nn._meaning import Meaning
from elm_neuro.nn._narrow import as_stored, state_dtype, wide

RANGES = Ranges(BETA_RANGE, P_RANGE, B_RANGE)


@pretrained.register
class ALIFCell(pretrained.Saved, Meaning, Configured, nn.Module):
    r"""One time step of a layer of adaptive LIF neurons, ``spikes, state = cell(x_t, state)``; :class:`ALIF` explains
    the arguments.

    Shapes: x_t (batch, input_size); spikes (batch, output_size); state as in :class:`ALIFState`, None for zeros;
    lengths (batch,), 1 where the sample goes on and 0 where it has ended: there no neuron spikes and the state stays.

    >>> spikes, state = ALIFCell(3, 2)(torch.zeros(5, 3))
    >>> spikes.shape
    torch.Size([5, 2])
    """

    state_type = ALIFState
    config_type = ALIFConfig
    emits_spikes = True
    is_cell = True  # forward takes one step
    without_decay = ("beta", "p", "b")  # parameters that weight decay would turn into others

    @spelled_out(ALIFCellOptions, ALIFConfig)
    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        surrogate: Surrogate | None = None,
        generator: torch.Generator | None = None,
        **config: Unpack[ALIFCellOptions],
    ) -> None:
        super().__init__()
        check_keywords(self, config, ALIFCellOptions, ALIFCell.__init__)
        check_generator(generator)
        self.surrogate = FastSigmoid() if surrogate is None else surrogate
        self._config = ALIFConfig(input_size=input_size, output_size=output_size, surrogate=self.surrogate, **config)
        decays = [math.exp(-self._config.delta_t / tau) for tau in (self._config.tau_v, self._config.tau_a)]
        bound = 1.0 / math.sqrt(input_size)
        self.weight = nn.Parameter(torch.empty(output_size, input_size).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.zeros(output_size))
        self.beta = nn.Parameter(torch.full((output_size,), decays[0]))
        adaptive, b_init = self._config.adaptive, float(self._config.b_init)
        self.p = nn.Parameter(torch.full((output_size,), decays[1])) if adaptive else None
        self.b = nn.Parameter(torch.full((output_size,), b_init)) if adaptive else None
        self.w_rec = nn.Parameter(torch.eye(output_size)) if self._config.recurrent else None

    @classmethod
    def from_config(cls, config: ALIFConfig) -> ALIFCell:
        """A cell of this configuration with new weights."""
        check_config(config, ALIFConfig)
        return cls(**vars(config))

    def reset_parameters(self) -> None:
        """Draw everything anew in place, from torch's global generator, as the constructor does."""
        draw_anew(self, lambda: ALIFCell.from_config(self.config))

    @property
    def config(self) -> ALIFConfig:
        """What was constructed, with the surrogate that is set now."""
        config = self._config
        return config if config.surrogate is self.surrogate else replace(config, surrogate=self.surrogate)

    @property
    def latency_steps(self) -> int:
        """Whole steps in which a neuron takes no input after a spike."""
        return self._config.latency_steps

    @property
    def adaptive(self) -> bool:
        """Whether the threshold rises with every spike."""
        return self._config.adaptive

    @property
    def detach_reset(self) -> bool:
        """Whether the reset passes no gradient."""
        return self._config.detach_reset

    @property
    def detach_recurrent(self) -> bool:
        """Whether the fed-back spikes pass no gradient."""
        return self._config.detach_recurrent

    @property
    def gradient(self) -> str:
        """Which gradient the spikes have, "loop" or "blocks"."""
        return self._config.gradient

    def meaning(self) -> dict[str, Any]:
        """What the numbers of the state dict are of."""
        return {"delta_t": self._config.delta_t, "latency_steps": self._config.latency_steps}

    def effective_parameters(self) -> ALIFParameters:
        """Decays and strength of the adaptation in their ranges, not narrower than float32. Differentiable. Pruning and
        old norms of ``torch.nn.utils`` are brought up to date.

        Raises:
            RuntimeError: the cell does more than its parameters say: it is another's, or has hooks.
        """
        if (reason := self.reason_to_call()) is not None:
            raise RuntimeError(f"the neurons are not their parameters alone: {reason}; call them")
        return self.parameters_as_they_are()

    def reason_to_call(self) -> str | None:
        """Why only a call of this cell does what it is meant to do; None where its parameters say all."""
        reason = None if is_untouched(self, ALIFCell) else reason_to_call(self, ALIFCell.forward)
        return None if reason is None else f"cell: {reason}"

    def parameters_as_they_are(self) -> ALIFParameters:
        """:meth:`effective_parameters` after :meth:`reason_to_call`."""
        return self.learned_parameters().effective()

    def learned_parameters(self) -> Learned:
        """What :meth:`parameters_as_they_are` brings into its ranges."""
        config, b, p, w_rec = self._config, self.b, self.p, self.w_rec
        beta = wide(self.beta)
        params = ALIFParameters(
            beta,
            beta if p is None else wide(p),
            None if b is None else wide(b),
            None if w_rec is None else wide(w_rec),
            self.surrogate,
            config.detach_reset,
            config.detach_recurrent,
            config.gradient,
        )
        return Learned(params, RANGES)

    def initial_state(self, batch: int) -> ALIFState:
        """Zeros, in the parameters' dtype but not narrower than float32, on their device."""
        check_batch(batch)
        like = self.bias
        return ALIFState(*(like.new_zeros(shape, dtype=state_dtype(like)) for shape in self.state_shapes(batch)))

    def check_state(self, state: ALIFState, batch: int) -> ALIFState:
        """`state` where it fits this layer and a batch of `batch`.

        Raises:
            TypeError: `state` is not three tensors of the parameters' dtype.
            ValueError: a tensor has the wrong shape or device.
        """
        return checked_state(ALIFState, state, self.state_shapes(batch), self.bias)

    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of the state's tensors."""
        layer = (batch, self._config.output_size)
        return layer, layer, (batch, self._config.latency_steps + 1, self._config.output_size)

    def step(self, x_t: Tensor, state: ALIFState | None = None) -> tuple[Tensor, ALIFState]:
        """The call itself: a cell is a layer of one step."""
        stepped: tuple[Tensor, ALIFState] = self(x_t, state)
        return stepped

    def forward(
        self, x: Tensor, state: ALIFState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, ALIFState]:
        check_step(x, self._config.input_size, self.bias)
        batch = x.shape[0]
        before = self.initial_state(batch) if state is None else self.check_state(state, batch)
        if lengths is not None:
            lengths = checked_lengths(lengths, batch, 1, x.device)
            x = torch.where(lengths.unsqueeze(-1) > 0, x, 0.0)
        like, params = self.bias, self.parameters_as_they_are()
        weight, bias = wide(self.weight), wide(like)
        num_input, num_neuron = self._config.input_size, self._config.output_size
        one = (num_neuron,)
        named = (
            ("weight", weight, (num_neuron, num_input)), ("bias", bias, one), ("beta", params.beta, one),
            ("p", params.p, one), ("b", params.b, one), ("w_rec", params.w_rec, (num_neuron, num_neuron)),
        )  # fmt: skip
        check_operands(named, bias)
        current = nn.functional.linear(wide(x), weight, bias).to(state_dtype(like))
        spikes, after = alif_step(current, before, params)
        if may_look(after.v):
            refuse_infinite(self, x, before, None, after, params.b)
        spikes = as_stored(spikes, like)
        return (spikes, after) if lengths is None else step_where_valid(spikes, after, before, lengths)

    def extra_repr(self) -> str:
        config = self._config
        flags = (["recurrent=True"] if config.recurrent else []) + ([] if config.adaptive else ["adaptive=False"])
        flags += [] if config.gradient == "loop" else [f"gradient={config.gradient!r}"]
        return ", ".join([str(config.input_size), str(config.output_size), f"delta_t={config.delta_t}", *flags])


@pretrained.register
class ALIF(pretrained.Saved, Configured, nn.Module):
    r"""Layer of leaky integrate-and-fire neurons whose threshold rises with every spike, over sequences.

    :math:`i_t = W_{in} x_t + bias`, then :func:`elm_neuro.functional.alif_step`. Source: Taylor, King, Harper, NeurIPS
    2023 (Blocks).

    Args:
        input_size: number of inputs.
        output_size: number of neurons.
        backend: "auto" or a name of :func:`elm_neuro.backends.available`; not saved.
        delta_t: time step in ms.
        tau_v: initial time constant of the membrane in ms.
        tau_a: initial time constant of the threshold's adaptation in ms.
        b_init: initial strength of the adaptation.
        latency: refractory period after a spike in ms, cut to whole steps, at most a million; fed-back spikes arrive
            one step after it.
        adaptive: False leaves out the adaptation: :class:`LIF`.
        recurrent: feed the layer's spikes back, by weights that start at the identity.
        surrogate: called on the distance to threshold, gives spikes of the same dtype; :class:`FastSigmoid` by default.
        detach_reset: pass no gradient through the reset.
        detach_recurrent: pass no gradient through the fed-back spikes.
        gradient: "loop", backpropagation through the steps with the surrogate, or "blocks", that of Blocks, over blocks
            of latency + 1 steps from the first one of each call (docs/alif.md); the spikes are the same.
        generator: source of the random initial weights; torch's global one by default.

    Shapes:
        - x (batch, time, input_size) or :class:`SpikeEvents`.
        - state :class:`ALIFState`, None for zeros; splitting a sequence and handing the state on changes nothing.
        - lengths (batch,): number of valid steps; past them no neuron spikes and the state keeps its value.
        - spikes (batch, time, output_size).

    >>> spikes, state = ALIF(700, 128)(torch.zeros(2, 50, 700))
    >>> spikes.shape
    torch.Size([2, 50, 128])
    """

    state_type = ALIFState
    config_type = ALIFConfig
    emits_spikes = True
    backend = BackendName("alif")

    @spelled_out(ALIFOptions, ALIFCell)
    def __init__(
        self, input_size: int, output_size: int, *, backend: str = "auto", **options: Unpack[ALIFOptions]
    ) -> None:
        super().__init__()
        check_keywords(self, options, ALIFOptions, ALIF.__init__)
        self.backend = backend
        self.cell = ALIFCell(input_size, output_size, **options)

    @classmethod
    def from_config(cls, config: ALIFConfig, *, backend: str = "auto") -> ALIF:
        """A layer of this configuration with new weights."""
        check_config(config, ALIFConfig)
        return cls(**vars(config), backend=backend)

    def reset_parameters(self) -> None:
        """Draw everything anew, as :meth:`ALIFCell.reset_parameters`."""
        self.cell.reset_parameters()

    @property
    def config(self) -> ALIFConfig:
        return self.cell.config

    def initial_state(self, batch: int) -> ALIFState:
        """Zeros, in the parameters' dtype and on their device."""
        return self.cell.initial_state(batch)

    def check_state(self, state: ALIFState, batch: int) -> ALIFState:
        """`state` where it fits, as :meth:`ALIFCell.check_state`."""
        return self.cell.check_state(state, batch)

    def step(self, x_t: Tensor, state: ALIFState | None = None) -> tuple[Tensor, ALIFState]:
        """One step on the same parameters: the call of :class:`ALIFCell`."""
        stepped: tuple[Tensor, ALIFState] = self.cell(x_t, state)
        return stepped

    @compilable
    def forward(
        self, x: Tensor | SpikeEvents, state: ALIFState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, ALIFState]:
        cell = self.cell
        like = cell.bias
        check_sequence(x, cell.input_size, like)
        batch, num_steps = x.shape[:2]
        before = None if state is None else cell.check_state(state, batch)
        if lengths is not None:
            lengths = checked_lengths(lengths, batch, num_steps, like.device)
        reason = cell.reason_to_call() if isinstance(cell, ALIFCell) else f"cell: {type(cell).__name__} is another's"
        if reason is not None:
            return self._by_calls(x, before, lengths, reason)
        bias, learned = wide(like), cell.learned_parameters()
        if bias.shape != (cell.output_size,):
            raise ValueError(f"bias must have shape ({cell.output_size},), got {tuple(bias.shape)}")
        spikes, after = alif.scan(
            x if isinstance(x, SpikeEvents) else wide(as_frames(x, like)),
            wide(cell.weight),
            bias,
            learned,
            AtRest.of(bias, batch, cell.latency_steps + 1) if before is None else before,
            lengths=lengths,
            backend=self.backend,
        )
        if may_look(after.v):
            refuse_infinite(cell, x, before, lengths, after, learned.params.b)
        return as_stored(spikes, like), after

    @untraced
    def _by_calls(
        self, x: Tensor | SpikeEvents, before: ALIFState | None, lengths: Tensor | None, reason: str
    ) -> tuple[Tensor, ALIFState]:
        """The layer as the loop over its cell that it stands for.

        Raises:
            ValueError: a backend is named that is no loop, or the gradient is that of blocks of several steps.
        """
        self.cell.config.check_single_steps(reason)
        choose(alif.OPERATOR, self.backend, lambda candidate: reason if candidate.name != "reference" else None)
        frames = as_frames(x, self.cell.bias)
        outputs, after = [], before  # None: the cell makes its own, once its hooks have gathered what may be in shards
        for step, x_t in enumerate(frames.unbind(1)):
            spikes, after = self.cell(x_t, after, None if lengths is None else (step < lengths).long())
            outputs.append(spikes)
        if not outputs or after is None:
            return frames.new_zeros(x.shape[0], 0, self.output_size), before or self.cell.initial_state(x.shape[0])
        return torch.stack(outputs, dim=1), after


@pretrained.register
class LIF(ALIF):
    """Layer of leaky integrate-and-fire neurons with a fixed threshold of 1: :class:`ALIF` without adaptation (b = 0).

    >>> sorted(name for name, _ in LIF(3, 2).named_parameters())
    ['cell.beta', 'cell.bias', 'cell.weight']
    """

    @spelled_out(LIFOptions, ALIFCell)
    def __init__(
        self, input_size: int, output_size: int, *, backend: str = "auto", **options: Unpack[LIFOptions]
    ) -> None:
        check_keywords(self, options, LIFOptions, LIF.__init__)
        super().__init__(input_size, output_size, backend=backend, adaptive=False, **options)

    @classmethod
    def from_config(cls, config: ALIFConfig, *, backend: str = "auto") -> LIF:
        """A layer of this configuration with new weights.

        Raises:
            ValueError: the configuration is that of adaptive neurons.
        """
        check_config(config, ALIFConfig)
        if config.adaptive:
            raise ValueError("adaptive must be False in a LIF, got True")
        return cls(**{name: value for name, value in vars(config).items() if name != "adaptive"}, backend=backend)
