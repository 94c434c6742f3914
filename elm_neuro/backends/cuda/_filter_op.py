"""The filter by itself inside compiled code."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from elm_neuro.backends.cuda._input import integrate
from elm_neuro.backends.parts._traced import Backward, Operands, Pass, Sizes


def _taken(given: Operands) -> tuple[Tensor, Tensor, Tensor | None]:
    v, kappa, initial = given
    if v is None or kappa is None:
        raise RuntimeError("a filter without input or decay")
    return v, kappa, initial


def _run(given: Operands, sizes: Sizes, options: Any, save: bool) -> Operands:
    return [integrate(*_taken(given), reverse=False)]


def _empty(given: Operands, sizes: Sizes, options: Any, save: bool) -> Operands:
    v, _, _ = _taken(given)
    return [v.new_empty(v.shape)]


def _differentiate(call: Backward) -> Operands:
    given, _, _, _, grads, _ = call
    _, kappa, initial = _taken(given)
    (grad,) = grads
    if grad is None:
        return [None, None, None]
    of_v = integrate(grad, kappa, None, reverse=True)
    return [of_v, None, None if initial is None else kappa * of_v[:, 0]]


PASS = Pass(_run, _empty, _differentiate, kept=())
