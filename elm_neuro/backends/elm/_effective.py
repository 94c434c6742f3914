"""What a neuron's learned numbers become in a step: by a kernel and one back where there is one, elsewhere by torch."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import string_at
from functools import lru_cache, partial
from struct import pack, unpack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.cuda._backend import CudaBackend
from elm_neuro.backends.elm._learned import Learned, Timescales
from elm_neuro.backends.native import _effective
from elm_neuro.backends.native._backend import NativeBackend
from elm_neuro.backends.parts._plain import PLAIN, only_operators, resolved
from elm_neuro.backends.parts._twice import asks_operators, differentiable_gradients, saved_of
from elm_neuro.functional import ELMParameters, bounded_tau, decay, memory_gain
from elm_neuro.functional._timescales import TAU_FLOOR_MS

CUDA, NATIVE = CudaBackend(), NativeBackend()


class Effective(NamedTuple):
    """Fields of :class:`elm_neuro.functional.ELMParameters`."""

    w_s: Tensor
    kappa_m: Tensor
    gain: Tensor
    kappa_b: Tensor


def parameters(learned: Learned) -> ELMParameters:
    """What one step works with."""
    params = learned.params
    w_s, kappa_m, gain, kappa_b = effective(params.w_s, params.kappa_m, params.kappa_b, learned.timescales)
    return params._replace(w_s=w_s, kappa_m=kappa_m, gain=gain, kappa_b=kappa_b)


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
    kernels = _kernels(proto_w_s, proto_tau_m, tau_s)
    if kernels is not None:
        if not (torch.is_grad_enabled() and (proto_w_s.requires_grad or proto_tau_m.requires_grad)):
            return Effective(*kernels.forward(proto_w_s, proto_tau_m, tau_s, timescales))
        found: tuple[Tensor, ...] = _Fused.apply(proto_w_s, proto_tau_m, tau_s, timescales, kernels)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return Effective(*found)
    # not by _make, which the compiler of torch 2.8 and older does not look into
    return Effective(*_all_by_torch(proto_w_s, proto_tau_m, tau_s, timescales))


def _all_by_torch(
    proto_w_s: Tensor, proto_tau_m: Tensor, tau_s: Tensor, timescales: Timescales
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *by_torch(proto_w_s, proto_tau_m, timescales), decay(tau_s, timescales.delta_t)


def by_torch(proto_w_s: Tensor, proto_tau_m: Tensor, timescales: Timescales) -> tuple[Tensor, Tensor, Tensor]:
    """w_s, kappa_m and gain, in operations of torch's."""
    bounds, delta_t, lambda_, variant = timescales
    tau_m = bounded_tau(proto_tau_m, bounds)
    kappa_m = decay(tau_m, delta_t)
    gain = memory_gain(tau_m, delta_t, lambda_=lambda_, variant=variant, kappa_m=kappa_m)
    return torch.relu(proto_w_s), kappa_m, gain


class Kernels(NamedTuple):
    """One device's."""

    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor | None, Tensor | None]]


def _kernels(proto_w_s: Tensor, *others: Tensor) -> Kernels | None:
    """None for what looks into functions: compilers, tracers, forward mode, transforms, tensors of other classes."""
    if torch.compiler.is_compiling() or only_operators(()) is not None:
        return None
    device, dtype = proto_w_s.device, proto_w_s.dtype
    kernels = GPU if device.type == CUDA.device_type else CPU if device.type == "cpu" else None
    if kernels is None or others[-1].requires_grad:
        return None
    for tensor in (proto_w_s, *others):
        if type(tensor) not in PLAIN or tensor.device != device or tensor.dtype != dtype or not tensor.is_contiguous():
            return None
        if tensor.is_neg():
            return None
    backend = CUDA if kernels is GPU else NATIVE
    return kernels if backend.missing() is None and backend.refusal_of(proto_w_s) is None else None


class _Fused(Function):
    @staticmethod
    def forward(
        ctx: Any, proto_w_s: Tensor, proto_tau_m: Tensor, tau_s: Tensor, timescales: Timescales, kernels: Kernels
    ) -> tuple[Tensor, ...]:
        ctx.timescales, ctx.kernels = timescales, kernels
        ctx.save_for_backward(proto_w_s, proto_tau_m)
        ctx.set_materialize_grads(False)
        w_s, kappa_m, gain, kappa_b = kernels.forward(proto_w_s, proto_tau_m, tau_s, timescales)
        constant = (kappa_b,) if proto_tau_m.requires_grad else (kappa_m, gain, kappa_b)
        ctx.mark_non_differentiable(*constant if proto_w_s.requires_grad else (w_s, *constant))
        return w_s, kappa_m, gain, kappa_b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        proto_w_s, proto_tau_m = saved_of(ctx)
        needed = ctx.needs_input_grad
        if asks_operators(grads[:3]):
            plain = partial(by_torch, timescales=ctx.timescales)
            protos = differentiable_gradients(plain, (proto_w_s, proto_tau_m), needed[:2], grads[:3])
            return (*protos, None, None, None)
        of_w_s, of_kappa, of_gain = (None if grad is None else resolved(grad).contiguous() for grad in grads[:3])
        wanted = needed[0] and of_w_s is not None, needed[1] and not (of_kappa is None and of_gain is None)
        kernels: Kernels = ctx.kernels
        laid_out = of_w_s, of_kappa, of_gain
        found = kernels.backward(proto_w_s, proto_tau_m, laid_out, wanted, ctx.timescales)
        return (*found, None, None, None)


def timescales_in_place(proto_tau_m: Tensor, timescales: Timescales) -> tuple[Tensor, Tensor]:
    """kappa_m and gain as :func:`by_torch` gives them to the last bit, by few operations in place, without a graph."""
    low, width, floor, one, lambda_, minus_delta_t, minus_lambda_delta_t = _constants(timescales, proto_tau_m.dtype)
    rate = torch.sigmoid(proto_tau_m).mul_(width).add_(low).clamp_(floor).reciprocal_()
    if timescales.variant == "v2":
        gain = one - (rate * minus_lambda_delta_t).exp_()
        return rate.mul_(minus_delta_t).exp_(), gain
    kappa_m = rate.mul_(minus_delta_t).exp_()
    return kappa_m, (one - kappa_m).mul_(lambda_)


def decay_in_place(tau_s: Tensor, timescales: Timescales) -> Tensor:
    """kappa_b likewise."""
    constants = _constants(timescales, tau_s.dtype)
    return tau_s.clamp(constants.floor).reciprocal_().mul_(constants.minus_delta_t).exp_()


def remembered_timescales(proto_tau_m: Tensor, timescales: Timescales) -> tuple[Tensor, Tensor]:
    """:func:`timescales_in_place`; of few numbers that came before, what they gave then, which nobody may write to."""
    if proto_tau_m.numel() > MOST_REMEMBERED:
        return timescales_in_place(proto_tau_m, timescales)
    return _timescales_of(_bytes_of(proto_tau_m), proto_tau_m.shape, proto_tau_m.dtype, timescales)


def remembered_decay(tau_s: Tensor, timescales: Timescales) -> Tensor:
    """:func:`decay_in_place`, of one number likewise."""
    if tau_s.ndim:
        return decay_in_place(tau_s, timescales)
    return _decay_of(tau_s.item(), tau_s.dtype, timescales)


MOST_REMEMBERED = 1024  # numbers; of more, the numbers take the time and not the calls


@lru_cache(maxsize=64)
def _timescales_of(
    numbers: bytes, shape: torch.Size, dtype: torch.dtype, timescales: Timescales
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.no_grad():
        return timescales_in_place(torch.frombuffer(bytearray(numbers), dtype=dtype).view(shape), timescales)


@lru_cache(maxsize=64)
def _decay_of(number: float, dtype: torch.dtype, timescales: Timescales) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return decay_in_place(torch.tensor(number, dtype=dtype, device="cpu"), timescales)


def _bytes_of(tensor: Tensor) -> bytes:
    """The numbers of a contiguous tensor on the CPU as they lie in memory."""
    return string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


class _Constants(NamedTuple):
    """As tensors: torch makes one of every number that it is given, each time."""

    low: Tensor
    width: Tensor
    floor: Tensor
    one: Tensor
    lambda_: Tensor
    minus_delta_t: Tensor
    minus_lambda_delta_t: Tensor


@lru_cache(maxsize=64)
def _constants(timescales: Timescales, dtype: torch.dtype) -> _Constants:
    (low, high), delta_t, lambda_, _ = timescales
    numbers = low, high - low, TAU_FLOOR_MS, 1.0, lambda_, -delta_t, -(lambda_ * delta_t)
    with torch.inference_mode(False):
        return _Constants(*[torch.tensor(number, dtype=dtype, device="cpu") for number in numbers])


def _forward_on_cpu(
    proto_w_s: Tensor, proto_tau_m: Tensor, tau_s: Tensor, timescales: Timescales
) -> tuple[Tensor, ...]:
    kappa_m, gain = timescales_in_place(proto_tau_m, timescales)
    return torch.relu(proto_w_s), kappa_m, gain, decay_in_place(tau_s, timescales)


@lru_cache(maxsize=64)
def constants_of_gpu(timescales: Timescales) -> tuple[int, ...]:
    """As the kernel reads them: the bits of float64 numbers, then whether the variant is v2."""
    (low, high), delta_t, lambda_, variant = timescales
    bits = (unpack("q", pack("d", number))[0] for number in (low, high - low, delta_t, lambda_))
    return (*bits, int(variant == "v2"))


def _forward_on_gpu(
    proto_w_s: Tensor, proto_tau_m: Tensor, tau_s: Tensor, timescales: Timescales
) -> tuple[Tensor, ...]:
    from elm_neuro.backends.cuda._weights import effective_forward

    return effective_forward(proto_w_s, proto_tau_m, tau_s, constants_of_gpu(timescales))


def _backward_on_gpu(
    proto_w_s: Tensor,
    proto_tau_m: Tensor,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    wanted: tuple[bool, bool],
    timescales: Timescales,
) -> tuple[Tensor | None, Tensor | None]:
    from elm_neuro.backends.cuda._weights import effective_backward

    return effective_backward(proto_w_s, proto_tau_m, grads, wanted, constants_of_gpu(timescales))


GPU = Kernels(_forward_on_gpu, _backward_on_gpu)
CPU = Kernels(_forward_on_cpu, _effective.backward)
