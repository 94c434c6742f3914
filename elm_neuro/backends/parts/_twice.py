"""Second derivatives of passes whose backward is written by hand: where a graph of the first is asked for, the first is
taken from a plain run of the equations, which autograd can differentiate as often as one likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.parts._plain import FUNCTORCH, resolved
from elm_neuro.functional._transforms import batched

Tensors = tuple[Tensor | None, ...]
Backward = Callable[..., tuple[Any, ...]]


def with_second_derivative(
    outputs: tuple[Tensor, ...], plain: Callable[..., tuple[Tensor, ...]], inputs: Tensors
) -> tuple[Tensor, ...]:
    """The outputs of a fast pass as they are, with a backward pass that depends on who asks: the fast one, or, under
    ``create_graph=True`` and for batched gradients, that of `plain` run again.

    Args:
        outputs: tensors that the fast pass gave.
        plain: gives the same outputs from `inputs`, in operations that torch differentiates twice.
        inputs: everything that the outputs are differentiated by; they are kept until the backward pass.
    """
    found: tuple[Tensor, ...] = _Twice.apply(plain, len(outputs), *outputs, *inputs)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return found


def asks_operators(grads: Iterable[Tensor | None]) -> bool:
    """Whether who asks for a gradient wants a graph of it too, or many of them at once: only operations of torch
    answer that.
    """
    return torch.is_grad_enabled() or batched(grads)


def answers_itself(outputs: tuple[Tensor, ...]) -> bool:
    """Whether the pass that gave these outputs is one whose backward pass, a node of its own, has an answer for who
    asks for a graph of it: its context says ``differentiates_again``.
    """
    nodes = {out.grad_fn for out in outputs if out.requires_grad}
    return len(nodes) == 1 and getattr(nodes.pop(), "differentiates_again", False)


class _Twice(Function):
    @staticmethod
    def forward(ctx: Any, plain: Callable[..., tuple[Tensor, ...]], num_output: int, *tensors: Any) -> Tensors:
        outputs, inputs = tensors[:num_output], tensors[num_output:]
        ctx.plain, ctx.num_input = plain, len(inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        # not the tensors themselves: as views they could not be changed in place; the version counter stays shared
        results = tuple([out.detach() for out in outputs])
        ctx.mark_non_differentiable(*[new for new, out in zip(results, outputs, strict=True) if not out.requires_grad])
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if not asks_operators(grads):
            return None, None, *grads, *(None,) * ctx.num_input
        needed = ctx.needs_input_grad[2 + len(grads) :]
        found = differentiable_gradients(ctx.plain, ctx.saved_tensors, needed, grads)
        return None, None, *(None,) * len(grads), *found


def differentiable_gradients(
    function: Callable[..., tuple[Tensor, ...]], inputs: Tensors, needed: tuple[bool, ...], grads: Tensors
) -> Tensors:
    """Gradients of ``function(*inputs)`` by the inputs that are needed, from those of its outputs, with a graph of
    their own where one is asked for.
    """
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # one input may be computed from another: of an alias only its own share is seen
        inputs = tuple(
            tensor.view_as(tensor) if need and tensor is not None else tensor
            for tensor, need in zip(inputs, needed, strict=True)
        )
        pairs = [
            (out, grad)
            for out, grad in zip(function(*inputs), grads, strict=True)
            if grad is not None and out.requires_grad
        ]
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need and tensor is not None]
    if not pairs or not wanted:
        return (None,) * len(inputs)
    outputs, given = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, given, create_graph=graph, allow_unused=True))
    return tuple(
        next(found) if need and tensor is not None else None for tensor, need in zip(inputs, needed, strict=True)
    )


@cache
def as_tensor(number: int) -> Tensor:
    """For autograd to keep; not made on import, which may happen where nothing is to be kept.

    How a pass lays out what it keeps may depend on the number of threads. It belongs to what is saved then: where
    ``torch.utils.checkpoint`` runs the pass again, perhaps with other threads, it is that of the second run.
    """
    with torch.inference_mode(False):
        return torch.tensor(number, device="cpu")


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """What is done inside is not narrowed by autocast on the device of `like`."""
    return torch.autocast(like.device.type, enabled=False) if in_autocast(like) else nullcontext()


def in_autocast(like: Tensor) -> bool:
    """Whether autocast is on for the device of `like`."""
    if like.is_cuda or like.is_cpu:  # its device by name takes longer than to ask
        return torch.is_autocast_enabled("cuda" if like.is_cuda else "cpu")
    device = like.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def saved_of(ctx: Any) -> tuple[Any, ...]:
    """What an autograd function saved, contiguous as the kernels read it: ``torch.autograd.graph.saved_tensors_hooks``
    may have kept it elsewhere in between, and give back what lies otherwise.
    """
    return tuple([None if tensor is None else tensor.contiguous() for tensor in ctx.saved_tensors])


def differentiable_once(backward: Backward) -> Backward:
    """A backward pass inside a fast pass: who asks for a graph of it is answered outside, by
    :func:`with_second_derivative`, and must not get constants from here. What stands for other numbers in memory, as
    the gradient behind ``torch.complex`` does, it gets as these. Autocast, where somebody calls ``backward()`` inside
    of it, would make products narrower than what the kernels read: it is off.
    """

    @wraps(backward)
    def run(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        first = None
        for grad in grads:
            if grad is not None:
                first = grad
                if grad.is_neg() or FUNCTORCH.is_dead_tensor_wrapper(grad):
                    grads = tuple(map(resolved, grads))
                    break
        if first is None:  # for functions that do not have them materialized
            return (None,) * len(ctx.needs_input_grad)
        if torch.is_grad_enabled():
            raise RuntimeError("a part of a fast pass has no second derivative by itself: differentiate the whole pass")
        if in_autocast(first):
            with torch.autocast(first.device.type, enabled=False):
                return backward(ctx, *grads)
        return backward(ctx, *grads)

    return run
