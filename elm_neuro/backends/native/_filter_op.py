"""The filter by itself inside compiled code."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from elm_neuro.backends.native._events import Events
from elm_neuro.backends.native._filter import Wanted, backward, forward
from elm_neuro.backends.parts._filter import decay_gradient
from elm_neuro.backends.parts._traced import Backward, Operands, Pass, Sizes


def _taken(given: Operands, sizes: Sizes) -> tuple[Events | None, Tensor | None, Tensor | None, Tensor, Tensor | None]:
    """Events, table, dense, decay and what was before."""
    indptr, channel, value, table, dense, kappa, initial = given
    if kappa is None:
        raise RuntimeError("a filter without decay")
    events = Events.inside(indptr, channel, value, sizes)
    return (None, None, dense, kappa, initial) if events is None else (events, table, None, kappa, initial)


def _run(given: Operands, sizes: Sizes, options: Any, save: bool) -> Operands:
    return [forward(*_taken(given, sizes))]


def _empty(given: Operands, sizes: Sizes, options: Any, save: bool) -> Operands:
    kappa = given[-2]
    return [None if kappa is None else kappa.new_empty(*sizes[:2], kappa.shape[0])]


def _differentiate(call: Backward) -> Operands:
    given, sizes, _, results, grads, needed = call
    events, _, _, kappa, initial = _taken(given, sizes)
    _, _, _, of_table, of_dense, of_decay, of_initial = needed
    (out,), (grad,) = results, grads
    if grad is None or out is None:
        return [None] * len(given)
    table, dense, before = backward(events, grad, kappa, Wanted(of_table, of_dense or of_decay, of_initial))
    decay = decay_gradient(dense, kappa, initial, out) if of_decay and dense is not None else None
    return [None, None, None, table, dense if of_dense else None, decay, before]


PASS = Pass(_run, _empty, _differentiate, kept=(0,))
