"""A product with frames of bytes by itself inside compiled code."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from elm_neuro.backends.cuda._frames import multiply, multiply_inputs
from elm_neuro.backends.parts._traced import Backward, Operands, Pass, Sizes


def _taken(given: Operands) -> tuple[Tensor, Tensor]:
    x, table = given
    if x is None or table is None:
        raise RuntimeError("a product without frames or table")
    return x, table


def _run(given: Operands, sizes: Sizes, options: Any, save: bool) -> Operands:
    x, table = _taken(given)
    return [multiply(x, table.contiguous())]


def _empty(given: Operands, sizes: Sizes, options: Any, save: bool) -> Operands:
    x, table = _taken(given)
    return [table.new_empty(*x.shape[:-1], table.shape[-1])]


def _differentiate(call: Backward) -> Operands:
    given, _, _, _, grads, _ = call
    x, _ = _taken(given)
    (grad,) = grads
    return [None, None if grad is None else multiply_inputs(x, grad).sum(0)]


PASS = Pass(_run, _empty, _differentiate, kept=())
