"""The compiled pass as an operator for torch.compile, which does not look into it; frames are searched for events in each pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elm_neuro.backends.elm._native_pass import (
    NUM_CONSTANT,
    NUM_SINGLE,
    Kept,
    Operands,
    Way,
    run_backward,
    run_forward,
    saved_size,
)
from elm_neuro.backends.native._events import Events

# The fields of Operands from kappa_b on.
TENSORS = (
    "Tensor? kappa_b, Tensor? x, Tensor? table, Tensor? dense, Tensor? start, Tensor? bias, Tensor? m_0, "
    "Tensor kappa, Tensor gain, Tensor w_m, Tensor w_y, Tensor b_y, Tensor[] layers"
)
FORWARD = f"({TENSORS}, bool silu, str sparse_input, bool save) -> (Tensor, Tensor, Tensor, Tensor)"
BACKWARD = f"(Tensor? grad_y, Tensor? grad_m_last, Tensor saved, Tensor tile, {TENSORS}, bool silu, str sparse_input) -> Tensor[]"


def run_compiled(given: Operands, *, silu: bool, sparse_input: str) -> tuple[Tensor, Tensor]:
    """As :func:`elm_neuro.backends.elm._native_pass.run`, without events and lengths; `x` gets no gradient."""
    single = given[NUM_CONSTANT - 1 : NUM_SINGLE]
    y, m_last, _, _ = torch.ops.elm_neuro.scan(*single, list(given.layers), silu, sparse_input, torch.is_grad_enabled())
    return y, m_last


def _operands(tensors: Any, layers: list[Tensor]) -> Operands:
    """Of the fields from kappa_b on."""
    return Operands._make([*(None,) * (NUM_CONSTANT - 1), *tensors, tuple(layers)])


def _with_events(given: Operands, sparse_input: str) -> Operands:
    """`x` replaced by its events where it is sparse."""
    found = None if given.x is None else Events.of(given.x.detach(), given.x.dtype, sparse_input)
    return (
        given
        if found is None
        else given._replace(begin=found.begin, end=found.end, channel=found.channel, value=found.value, x=None)
    )


def _shape(given: Operands) -> tuple[int, int]:
    arriving = given.dense if given.x is None else given.x
    if arriving is None:
        raise RuntimeError("nothing arrives")
    return arriving.shape[0], arriving.shape[1]


@torch.library.custom_op("elm_neuro::scan", mutates_args=(), schema=FORWARD)
def _scan(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *tensors, layers, silu, sparse_input, save = arguments
    given = _operands(tensors, layers)
    way = Way.of(*_shape(given), given.kappa, silu=silu)
    y, m_last, kept = run_forward(_with_events(given, sparse_input), way, save=save)
    return y.contiguous(), m_last, kept.saved, torch.tensor(way.tile)


@_scan.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *tensors, layers, _, _, save = arguments
    given = _operands(tensors, layers)
    (batch, num_steps), kappa = _shape(given), given.kappa
    saved = kappa.new_empty(saved_size(given, batch, num_steps) if save else 0)
    return (
        kappa.new_empty(batch, num_steps, *given.b_y.shape),
        kappa.new_empty(batch, *kappa.shape),
        saved,
        torch.empty((), dtype=torch.int64),
    )


@torch.library.custom_op("elm_neuro::scan_backward", mutates_args=(), schema=BACKWARD)
def _scan_backward(
    grad_y: Tensor | None, grad_m_last: Tensor | None, saved: Tensor, tile: Tensor, *arguments: Any
) -> list[Tensor]:
    """Gradients from `table` on; of those that are not there, nothing."""
    *tensors, layers, silu, sparse_input = arguments
    given = _operands(tensors, layers)
    batch, num_steps = _shape(given)
    way = Way(batch, num_steps, silu, int(tile), num_steps)
    wanted = (False, *(tensor is not None for tensor in tensors[2:]))
    _, *grads = run_backward(_with_events(given, sparse_input), way, Kept(saved, (), ()), grad_y, grad_m_last, wanted)
    return [saved.new_empty(0) if grad is None else grad.contiguous() for grad in grads]


@_scan_backward.register_fake
def _(grad_y: Tensor | None, grad_m_last: Tensor | None, saved: Tensor, tile: Tensor, *arguments: Any) -> list[Tensor]:
    *tensors, layers, _, _ = arguments
    return [saved.new_empty(0 if tensor is None else tensor.shape) for tensor in (*tensors[2:], *layers)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, layers, ctx.silu, ctx.sparse_input, _ = inputs
    ctx.num_layers = len(layers)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[2:], *tensors, *layers)


def _differentiate(ctx: Any, grad_y: Tensor | None, grad_m_last: Tensor | None, *_: None) -> tuple[Any, ...]:
    saved, tile, *tensors = ctx.saved_tensors
    single, layers = tensors[: len(tensors) - ctx.num_layers], tensors[len(tensors) - ctx.num_layers :]
    if grad_y is None and grad_m_last is None:
        return (None,) * (len(single) + 4)
    grads = torch.ops.elm_neuro.scan_backward(
        grad_y, grad_m_last, saved, tile, *single, layers, ctx.silu, ctx.sparse_input
    )
    found = [None if tensor is None else grad for grad, tensor in zip(grads, tensors[2:], strict=True)]
    return None, None, *found[: len(single) - 2], found[len(single) - 2 :], None, None, None


_scan.register_autograd(_differentiate, setup_context=_keep)
