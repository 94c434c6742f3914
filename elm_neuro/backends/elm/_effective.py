"""What a neuron's learned numbers become in a step: on a GPU in one launch and one back, elsewhere by torch."""

from __future__ import annotations

from functools import lru_cache
from struct import pack, unpack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from elm_neuro.backends.cuda._weights import effective_backward, effective_forward
from elm_neuro.backends.elm import _cuda
from elm_neuro.functional import bounded_tau, decay, memory_gain

CUDA = _cuda.Cuda()


class Timescales(NamedTuple):
    """Constants between a neuron's learned numbers and its effective ones."""

    bounds: tuple[float, float]  # of the memory time constants, ms
    delta_t: float  # ms
    lambda_: float
    variant: str  # "v1" or "v2"


class Effective(NamedTuple):
    """Fields of :class:`elm_neuro.functional.ELMParameters`."""

    w_s: Tensor
    kappa_m: Tensor
    gain: Tensor
    kappa_b: Tensor


def effective(proto_w_s: Tensor, proto_tau_m: Tensor, tau_s: Tensor, timescales: Timescales) -> Effective:
    """Synaptic weights, rectified, decay factors and gain; differentiable, twice too.

    Args:
        proto_w_s: synaptic weights before they are rectified.
        proto_tau_m: memory time constants, unbounded.
        tau_s: synaptic time constants in ms.
        timescales: constants.

    >>> effective(torch.tensor([-1.0, 2.0]), torch.zeros(1), torch.tensor(5.0), Timescales((1.0, 3.0), 1.0, 5.0, "v1"))
    Effective(w_s=tensor([0., 2.]), kappa_m=tensor([0.6065]), gain=tensor([1.9673]), kappa_b=tensor(0.8187))
    """
    if proto_w_s.device.type == _cuda.DEVICE and _has_kernel(proto_w_s, proto_tau_m, tau_s):
        found: tuple[Tensor, ...] = _Fused.apply(proto_w_s, proto_tau_m, tau_s, timescales)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return Effective._make(found)
    return Effective(*_by_torch(proto_w_s, proto_tau_m, timescales), decay(tau_s, timescales.delta_t))


def _by_torch(proto_w_s: Tensor, proto_tau_m: Tensor, timescales: Timescales) -> tuple[Tensor, Tensor, Tensor]:
    bounds, delta_t, lambda_, variant = timescales
    tau_m = bounded_tau(proto_tau_m, bounds)
    kappa_m = decay(tau_m, delta_t)
    gain = memory_gain(tau_m, delta_t, lambda_=lambda_, variant=variant, kappa_m=kappa_m)
    return torch.relu(proto_w_s), kappa_m, gain


def _has_kernel(proto_w_s: Tensor, *others: Tensor) -> bool:
    """Not for what looks into functions: compilers, tracers, forward mode, transforms, tensors of other classes."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or forward_ad._current_level >= 0:
        return False
    tensors = (proto_w_s, *others)
    return (
        not torch._C._are_functorch_transforms_active()
        and CUDA.missing() is None
        and CUDA.refusal_of(proto_w_s) is None
        and not others[-1].requires_grad
        and all(
            type(t) in (Tensor, torch.nn.Parameter)
            and t.device == proto_w_s.device
            and t.dtype == proto_w_s.dtype
            and t.is_contiguous()
            for t in tensors
        )
    )


class _Fused(Function):
    @staticmethod
    def forward(
        ctx: Any, proto_w_s: Tensor, proto_tau_m: Tensor, tau_s: Tensor, timescales: Timescales
    ) -> tuple[Tensor, ...]:
        ctx.timescales = timescales
        ctx.save_for_backward(proto_w_s, proto_tau_m)
        ctx.set_materialize_grads(False)
        w_s, kappa_m, gain, kappa_b = effective_forward(proto_w_s, proto_tau_m, tau_s, _constants(timescales))
        ctx.mark_non_differentiable(kappa_b)
        return w_s, kappa_m, gain, kappa_b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        proto_w_s, proto_tau_m = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a graph of this pass is asked for
            return (*_differentiable((proto_w_s, proto_tau_m), needed, ctx.timescales, grads[:3]), None, None)
        of_w_s, of_kappa, of_gain = (None if grad is None else grad.contiguous() for grad in grads[:3])
        wanted = needed[0] and of_w_s is not None, needed[1] and not (of_kappa is None and of_gain is None)
        laid_out = of_w_s, of_kappa, of_gain
        found = effective_backward(proto_w_s, proto_tau_m, laid_out, wanted, _constants(ctx.timescales))
        return (*found, None, None)


def _differentiable(
    protos: tuple[Tensor, ...], needed: tuple[bool, ...], timescales: Timescales, grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, Tensor | None]:
    pairs = [
        (result, grad)
        for result, grad in zip(_by_torch(protos[0], protos[1], timescales), grads, strict=True)
        if grad is not None and result.requires_grad
    ]
    inputs = [proto for proto, need in zip(protos, needed, strict=False) if need]
    if not pairs:
        return None, None
    results, given = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(results, inputs, given, create_graph=True, allow_unused=True))
    return next(found) if needed[0] else None, next(found) if needed[1] else None


@lru_cache(maxsize=64)
def _constants(timescales: Timescales) -> tuple[int, ...]:
    """As the kernel reads them: the bits of float64 numbers, then whether the variant is v2."""
    (low, high), delta_t, lambda_, variant = timescales
    bits = (unpack("q", pack("d", number))[0] for number in (low, high - low, delta_t, lambda_))
    return (*bits, int(variant == "v2"))
