"""The pass on a GPU as an operator for torch.compile, which does not look into it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elm_neuro.backends.cuda._room import Room
from elm_neuro.backends.elm._cuda_operands import (
    FIRST_DIFFERENTIATED,
    KAPPA_B,
    Operands,
    Options,
    Saved,
    laid_out,
    plan_of,
)
from elm_neuro.backends.elm._cuda_pass import backward, forward
from elm_neuro.backends.elm._cuda_plan import Kept
from elm_neuro.backends.elm._schemas import CUDA_BACKWARD, NUM_SAVED
from elm_neuro.backends.parts._operators import Implementation

NUM_TENSORS = len(Operands._fields) - KAPPA_B
NUM_OPTIONS = len(Options._fields) - 1  # compiled code computes what is effective itself


def run_as_operator(operands: Operands, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`elm_neuro.backends.elm._cuda_pass.run`, without events and lengths."""
    outputs = torch.ops.elm_neuro.cuda_scan(*operands[KAPPA_B:], *options[:NUM_OPTIONS], torch.is_grad_enabled())
    return outputs[0], outputs[1], outputs[2]


def _operands(tensors: Any) -> Operands:
    return Operands._make((*(None,) * KAPPA_B, *tensors))


def _scan(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, rest = arguments[:NUM_TENSORS], arguments[NUM_TENSORS:]
    o = laid_out(_operands(tensors))
    outputs, saved = forward(o, plan_of(o, Options(*rest[:-1])), save=rest[-1])
    kept = outputs.m.new_empty(0) if not rest[-1] else saved.kept
    table = outputs.m.new_empty(0) if saved.table is None or not rest[-1] else saved.table
    return outputs.y.contiguous(), outputs.b, outputs.m, kept, table


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    o = _operands(arguments[:NUM_TENSORS])
    num_steps, num_input, _, _, save = arguments[NUM_TENSORS:]
    arriving = o.x if o.x is not None else o.v
    if arriving is None:
        raise RuntimeError("nothing arrives")
    empty, batch = o.kappa.new_empty, arriving.shape[0]
    num_neuron, first, num_memory = o.kappa.numel() // o.kappa.shape[-1], o.w1.shape[-2], o.kappa.shape[-1]
    kept, table = empty(0), empty(0)
    if save:
        own, hidden = o.x is not None and o.x.ndim == 4, 0 if o.w2 is None else first
        num_total = 0 if o.x is None else num_input * (num_neuron if own else 1)
        parts = Kept.of(num_neuron, batch, num_steps, num_memory, hidden, num_total, save=True)
        kept = empty(Room(parts, o.kappa.element_size()).numbers)
        if o.x is not None:
            table = empty((num_neuron, num_input, first) if own and num_neuron > 1 else (num_input, num_neuron * first))
    b = empty(0) if o.w_s is None else empty(batch, *o.w_s.shape[:-1])
    return empty(batch, num_steps, *o.b_y.shape), b, empty(batch, *o.kappa.shape), kept, table


@torch.library.custom_op("elm_neuro::cuda_scan_backward", mutates_args=(), schema=CUDA_BACKWARD)
def _scan_backward(
    grad_y: Tensor | None, grad_b: Tensor | None, grad_m: Tensor | None, saved: list[Tensor], *arguments: Any
) -> list[Tensor]:
    """Gradients from `x` on; of those that are not there, nothing."""
    tensors, rest = arguments[:NUM_TENSORS], arguments[NUM_TENSORS:]
    o = laid_out(_operands(tensors))
    kept, table = saved
    grads = backward(
        o, Saved(kept, table, None, None), plan_of(o, Options(*rest[:-1])), (grad_y, grad_b, grad_m), of_x=rest[-1]
    )
    return [_own(o.kappa, grad) for grad in grads]


def _own(like: Tensor, grad: Tensor | None) -> Tensor:
    """An operator's results may not share memory."""
    if grad is None:
        return like.new_empty(0)
    return grad.clone(memory_format=torch.contiguous_format) if grad._base is not None else grad.contiguous()


@_scan_backward.register_fake
def _(
    grad_y: Tensor | None, grad_b: Tensor | None, grad_m: Tensor | None, saved: list[Tensor], *arguments: Any
) -> list[Tensor]:
    o, of_x = _operands(arguments[:NUM_TENSORS]), arguments[-1]
    empty = o.kappa.new_empty
    shapes: list[Tensor] = []
    for name, tensor in zip(o._fields[FIRST_DIFFERENTIATED:], o[FIRST_DIFFERENTIATED:], strict=True):
        absent = (name == "x" and not of_x) or (name in ("w_y", "b_y") and grad_y is None)
        shapes.append(empty(0) if absent or tensor is None else empty(tensor.shape))
    return shapes


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors_and_options, _ = inputs
    ctx.options = tensors_and_options[NUM_TENSORS:]
    ctx.of_x = ctx.needs_input_grad[FIRST_DIFFERENTIATED - KAPPA_B]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[3:], *tensors_and_options[:NUM_TENSORS])


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    saved, tensors = list(ctx.saved_tensors[:NUM_SAVED]), ctx.saved_tensors[NUM_SAVED:]
    found = torch.ops.elm_neuro.cuda_scan_backward(*grads[:3], saved, *tensors, *ctx.options, ctx.of_x)
    differentiated = tensors[FIRST_DIFFERENTIATED - KAPPA_B :]
    present = [
        None if tensor is None or grad.shape != tensor.shape else grad
        for grad, tensor in zip(found, differentiated, strict=True)
    ]
    return (None,) * (FIRST_DIFFERENTIATED - KAPPA_B) + tuple(present) + (None,) * (len(ctx.options) + 1)


SCAN = Implementation(_scan, _fake, _save, _differentiate)
