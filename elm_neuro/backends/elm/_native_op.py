"""The native pass as an operator for torch.compile, which does not look into it; frames are searched for events in each
pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elm_neuro.backends.elm._native_kernels import run_backward, run_forward
from elm_neuro.backends.elm._native_operands import (
    FIRST_DIFFERENTIATED,
    NUM_FIXED,
    Incoming,
    Operands,
    Plan,
    Saved,
    Wanted,
    laid_out,
    saved_size,
    tile_for,
)
from elm_neuro.backends.elm._schemas import NATIVE_BACKWARD
from elm_neuro.backends.native._events import Events
from elm_neuro.backends.parts._operators import Implementation

FIRST_PASSED = FIRST_DIFFERENTIATED - 1  # kappa_b: what stands before it, the operator does not take


def run_as_operator(operands: Operands, *, silu: bool, sparse_input: str) -> tuple[Tensor, Tensor]:
    """Readout and last memory as :func:`elm_neuro.backends.elm._native_pass.run` gives them, without events, lengths
    and threshold; the frames get no gradient.
    """
    passed = operands[FIRST_PASSED : NUM_FIXED - 1]
    save = torch.is_grad_enabled()
    y, m_last, _, _ = torch.ops.elm_neuro.scan(*passed, list(operands.layers), silu, sparse_input, save)
    return y, m_last


def _operands(tensors: Any, layers: list[Tensor]) -> Operands:
    """Of the fields from kappa_b on."""
    return Operands._make((*(None,) * FIRST_PASSED, *tensors, None, tuple(layers)))


def _with_events(operands: Operands, sparse_input: str) -> Operands:
    """The frames replaced by their events where they are sparse."""
    frames = operands.frames
    events = None if frames is None else Events.searched_for(frames.detach(), frames.dtype, sparse_input)
    if events is None:
        return operands
    return operands._replace(
        begin=events.begin, end=events.end, channel=events.channel, value=events.value, frames=None
    )


def _sizes(operands: Operands) -> tuple[int, int]:
    """Batch and number of steps."""
    arriving = operands.dense if operands.frames is None else operands.frames
    if arriving is None:
        raise RuntimeError("nothing arrives")
    return arriving.shape[0], arriving.shape[1]


def _scan(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *tensors, layers, silu, sparse_input, save = arguments
    operands = _operands(tensors, layers)
    batch, num_steps = _sizes(operands)
    plan = Plan(batch, num_steps, silu, tile_for(batch, operands.kappa), num_steps)
    outputs, saved = run_forward(laid_out(_with_events(operands, sparse_input)), plan, save=save)
    return outputs.y.contiguous(), outputs.m_last, saved.activations, torch.tensor(plan.tile)


def _fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *tensors, layers, _, _, save = arguments
    operands = _operands(tensors, layers)
    (batch, num_steps), kappa = _sizes(operands), operands.kappa
    return (
        kappa.new_empty(batch, num_steps, *operands.b_y.shape),
        kappa.new_empty(batch, *kappa.shape),
        kappa.new_empty(saved_size(operands, batch, num_steps) if save else 0),
        kappa.new_empty((), dtype=torch.int64),
    )


@torch.library.custom_op("elm_neuro::scan_backward", mutates_args=(), schema=NATIVE_BACKWARD)
def _scan_backward(
    grad_y: Tensor | None, grad_m_last: Tensor | None, saved: Tensor, tile: Tensor, *arguments: Any
) -> list[Tensor]:
    """Gradients from `table` on; of those that are not there, nothing."""
    *tensors, layers, silu, sparse_input = arguments
    operands = _operands(tensors, layers)
    batch, num_steps = _sizes(operands)
    plan = Plan(batch, num_steps, silu, int(tile), num_steps)
    wanted = Wanted(
        frames=False,
        table=operands.table is not None,
        dense=operands.dense is not None,
        f_0=operands.f_0 is not None,
        m_0=operands.m_0 is not None,
        threshold=False,
    )
    incoming = Incoming(grad_y, None, grad_m_last)
    grads = run_backward(
        laid_out(_with_events(operands, sparse_input)), plan, Saved(saved, (), ()), incoming, wanted, readout=None
    )
    passed = grads[1 : NUM_FIXED - 1 - FIRST_DIFFERENTIATED] + grads[NUM_FIXED - FIRST_DIFFERENTIATED :]
    return [saved.new_empty(0) if grad is None else grad.contiguous() for grad in passed]


@_scan_backward.register_fake
def _(grad_y: Tensor | None, grad_m_last: Tensor | None, saved: Tensor, tile: Tensor, *arguments: Any) -> list[Tensor]:
    *tensors, layers, _, _ = arguments
    return [saved.new_empty(0 if tensor is None else tensor.shape) for tensor in (*tensors[2:], *layers)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
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
    present = [None if tensor is None else grad for grad, tensor in zip(grads, tensors[2:], strict=True)]
    return None, None, *present[: len(single) - 2], present[len(single) - 2 :], None, None, None


SCAN = Implementation(_scan, _fake, _save, _differentiate)
