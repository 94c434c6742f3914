"""A pass again by the reference, for who differentiates its gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.elm._learned import Timescales
from elm_neuro.backends.parts._lengths import cut_at
from elm_neuro.backends.parts._spikes import SpikeRule
from elm_neuro.backends.parts._twice import answers_itself, with_second_derivative
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ELMParameters, ELMState, Surrogate


def twice_differentiable(
    y: Tensor,
    after: ELMState,
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    state: ELMState | None,
    lengths: Tensor | None,
) -> tuple[Tensor, ELMState]:
    """Readout and state that a backend gave for these inputs, differentiable as often as the reference's."""
    if not recorded(y, after) or answers_itself((y, *after)):
        return y, after
    plain = Plain.of(y, x, params, lengths, None).run
    result, b, m = with_second_derivative((y, *after), plain, _inputs(x, params, state))
    return result, ELMState(b, m)


def twice_differentiable_spikes(
    spikes: Tensor,
    y: Tensor,
    after: ELMState,
    x: Tensor | SpikeEvents,
    params: ELMParameters,
    state: ELMState | None,
    lengths: Tensor | None,
    rule: SpikeRule,
) -> tuple[Tensor, Tensor, ELMState]:
    """The same where the pass held the readout against a threshold."""
    if not recorded(y, after) or answers_itself((spikes, y, *after)):
        return spikes, y, after
    plain = Plain.of(y, x, params, lengths, rule).run
    inputs = (rule.threshold, *_inputs(x, params, state))
    fired, result, b, m = with_second_derivative((spikes, y, *after), plain, inputs)
    return fired, result, ELMState(b, m)


def recorded(y: Tensor, after: ELMState) -> bool:
    """Whether there is a graph to be differentiated."""
    return torch.is_grad_enabled() and (y.requires_grad or after.m.requires_grad or after.b.requires_grad)


class Plain(NamedTuple):
    """The pass by the reference. It holds none of the tensors that it is differentiated by: autograd keeps those, and
    sees whether they were changed.
    """

    events: SpikeEvents | None
    lengths: Tensor | None
    activation: str
    branch_activation: str | None
    surrogate: Surrogate | None
    dtype: torch.dtype  # of the readout, which autocast may lower
    timescales: Timescales | None = None  # by which w_s and kappa_m are as they are learned, and there is no gain

    @classmethod
    def of(
        cls,
        y: Tensor,
        x: Tensor | SpikeEvents,
        params: ELMParameters,
        lengths: Tensor | None,
        rule: SpikeRule | None,
        timescales: Timescales | None = None,
    ) -> Plain:
        events = x if isinstance(x, SpikeEvents) else None
        surrogate = None if rule is None else rule.surrogate
        return cls(events, lengths, params.activation, params.branch_activation, surrogate, y.dtype, timescales)

    def run(self, *inputs: Any) -> tuple[Tensor, ...]:
        """[Spikes,] readout and state."""
        # for second derivatives only, so not imported with the package
        from elm_neuro.backends.elm._effective import by_torch
        from elm_neuro.backends.elm._reference import Reference

        threshold, given = (None, inputs) if self.surrogate is None else (inputs[0], inputs[1:])
        frames, b, m, w_s, routing, kappa_b, kappa_m, gain, w_y, b_y, *layers = given
        half = len(layers) // 2
        if self.timescales is not None:
            w_s, kappa_m, gain = by_torch(w_s, kappa_m, self.timescales)
        params = ELMParameters(
            w_s, routing, kappa_b, kappa_m, gain, tuple(layers[:half]), tuple(layers[half:]), w_y, b_y,
            self.activation, self.branch_activation,
        )  # fmt: skip
        state = None if b is None or m is None else ELMState(b, m)
        x = self.events if frames is None else frames.to(params.kappa_m.dtype)
        if x is None:
            raise RuntimeError("nothing arrives")
        with torch.autocast(params.kappa_m.device.type, enabled=False):
            y, after = Reference().scan(x, params, state, lengths=self.lengths)
            if self.surrogate is None or threshold is None:
                return y.to(self.dtype), *after
            return cut_at(self.lengths, SpikeRule(threshold, self.surrogate).fire(y)), y, *after


def _inputs(x: Tensor | SpikeEvents, params: ELMParameters, state: ELMState | None) -> tuple[Tensor | None, ...]:
    """What a scan is differentiated by, as :class:`Plain` takes it; events are not."""
    w_s, routing, kappa_b, kappa_m, gain, weights, biases, w_y, b_y, *_ = params
    frames = None if isinstance(x, SpikeEvents) else x
    b, m = (None, None) if state is None else state
    return frames, b, m, w_s, routing, kappa_b, kappa_m, gain, w_y, b_y, *weights, *biases
