"""A product with events by itself inside compiled code."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._input import Events, gather, of_projected
from elm_neuro.backends.parts._traced import Backward, Operands, Pass, Sizes


def _taken(given: Operands) -> tuple[Events, Tensor]:
    begin, channel, value, weight = given
    if begin is None or channel is None or weight is None:
        raise RuntimeError("a product without events or weight")
    value = None if value is None else value.contiguous()
    return Events(begin.contiguous(), channel.contiguous(), value), weight


def _run(given: Operands, sizes: Sizes, options: Any, save: bool) -> Operands:
    events, weight = _taken(given)
    queue = _driver.launcher().queue(weight.device)
    return [gather(queue, weight.t().contiguous(), events, sizes[0] * sizes[1])]


def _empty(given: Operands, sizes: Sizes, options: Any, save: bool) -> Operands:
    _, weight = _taken(given)
    return [weight.new_empty(sizes[0] * sizes[1], weight.shape[0])]


def _differentiate(call: Backward) -> Operands:
    given, sizes, _, _, grads, _ = call
    events, weight = _taken(given)
    (grad,), (batch, num_steps, num_input) = grads, sizes
    of_weight = None
    if grad is not None:
        of_weight = of_projected(grad, events, (batch, num_steps, num_input), weight.flatten()[:1])
    return [None, None, None, of_weight]


PASS = Pass(_run, _empty, _differentiate, kept=())
