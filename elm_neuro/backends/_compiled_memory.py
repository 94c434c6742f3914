"""The memory recurrence with its hand-written backward pass, compiled."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from elm_neuro.backends import _library
from elm_neuro.functional import ELMParameters


def memory_scan(u: Tensor, m_0: Tensor, w_m: Tensor, params: ELMParameters) -> Tensor:
    """Memory after each step, (batch, time, [num_neuron,] num_memory); as :func:`elm_neuro.backends._memory.memory_scan`.

    Args:
        u: input half of the first MLP layer with its bias, (batch, time, [num_neuron,] hidden).
        m_0: memory before the first step, (batch, [num_neuron,] num_memory).
        w_m: the memory's half of the first layer's weight, ([num_neuron,] hidden, num_memory).
        params: the neuron's parameters.
    """
    silu = params.activation == "silu"
    layers = [tensor for layer in zip(params.mlp_weight[1:], params.mlp_bias[1:], strict=True) for tensor in layer]
    memory: Tensor
    if torch.compiler.is_compiling():
        needed = torch.is_grad_enabled()
        memory, _, _ = torch.ops.elm_neuro.memory_scan(silu, needed, u, m_0, params.kappa_m, params.gain, w_m, layers)
    else:
        memory = _MemoryScan.apply(silu, u, m_0, params.kappa_m, params.gain, w_m, *layers)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return memory


class _MemoryScan(Function):
    @staticmethod
    def forward(ctx: Any, silu: bool, u: Tensor, m_0: Tensor, kappa: Tensor, gain: Tensor, w_m: Tensor, *layers: Tensor) -> Tensor:
        memory, saved, ctx.tile = _forward(silu, any(ctx.needs_input_grad), u, m_0, kappa, gain, w_m, list(layers))
        ctx.silu = silu
        ctx.save_for_backward(m_0, kappa, gain, w_m, memory, saved, *layers)
        return memory

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_memory: Tensor) -> tuple[Tensor | None, ...]:
        m_0, kappa, gain, w_m, memory, saved, *layers = ctx.saved_tensors
        return None, *_backward(ctx.silu, ctx.tile, grad_memory, m_0, kappa, gain, w_m, memory, saved, layers)


def _forward(
    silu: bool, save: bool, u: Tensor, m_0: Tensor, kappa: Tensor, gain: Tensor, w_m: Tensor, layers: list[Tensor]
) -> tuple[Tensor, Tensor, int]:
    """Memory, what the backward pass reads (empty without `save`), and how many samples a task took."""
    u, w_m, m_0, kappa, gain = _rows(u), _rows(w_m), m_0.contiguous(), kappa.contiguous(), gain.contiguous()
    layers = [tensor.contiguous() for tensor in layers]
    memory = u.new_empty(*u.shape[:2], *kappa.shape)
    tile, tasks = _library.tile(u.dtype), kappa.numel() // kappa.shape[-1]
    while tile > 1 and tasks * -(-u.shape[0] // tile) < torch.get_num_threads():
        tile //= 2
    args = _arguments(silu, u, m_0, kappa, gain, w_m, layers, memory, tile)
    saved = u.new_empty(_saved_size(memory, u, layers) if save else 0)
    args.saved = saved.data_ptr() if save else None
    if _library.library().elm_memory_forward(u.dtype == torch.float64, _threads(args), ctypes.byref(args)):
        raise MemoryError(f"no memory for the working copy of {kappa.shape[-1]} memory units and {u.shape[-1]} hidden units")
    return memory, saved, tile


def _backward(
    silu: bool,
    tile: int,
    grad_memory: Tensor,
    m_0: Tensor,
    kappa: Tensor,
    gain: Tensor,
    w_m: Tensor,
    memory: Tensor,
    saved: Tensor,
    layers: list[Tensor],
) -> list[Tensor]:
    """Gradients of u, m_0, kappa, gain, w_m and the layers."""
    grad_memory, w_m, m_0, kappa, gain = _rows(grad_memory), _rows(w_m), m_0.contiguous(), kappa.contiguous(), gain.contiguous()
    layers = [tensor.contiguous() for tensor in layers]
    grad_u = memory.new_empty(*memory.shape[:-1], w_m.shape[-2])
    grads = [memory.new_empty(tensor.shape) for tensor in (m_0, kappa, gain, w_m, *layers)]
    args = _arguments(silu, grad_u, m_0, kappa, gain, w_m, layers, memory, tile)
    args.grad_batch, args.grad_time, args.grad_neuron = _strides(grad_memory)
    args.grad_memory, args.grad_u, args.saved = grad_memory.data_ptr(), grad_u.data_ptr(), saved.data_ptr()
    args.grad_m_0, args.grad_kappa, args.grad_gain, args.grad_w_m = (tensor.data_ptr() for tensor in grads[:4])
    args.grad_weight, args.grad_bias = _library.addresses(grads[4::2]), _library.addresses(grads[5::2])
    if _library.library().elm_memory_backward(memory.dtype == torch.float64, _threads(args), ctypes.byref(args)):
        raise MemoryError(f"no memory for the gradients of {kappa.shape[-1]} memory units and {w_m.shape[-2]} hidden units")
    return [grad_u, *grads]


# What follows is the same inside torch.compile, which does not look into an operator.


@torch.library.custom_op("elm_neuro::memory_scan", mutates_args=())
def _memory_scan_op(
    silu: bool, save: bool, u: Tensor, m_0: Tensor, kappa: Tensor, gain: Tensor, w_m: Tensor, layers: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    memory, saved, tile = _forward(silu, save, u, m_0, kappa, gain, w_m, layers)
    return memory, saved, torch.tensor(tile)


@_memory_scan_op.register_fake
def _(
    silu: bool, save: bool, u: Tensor, m_0: Tensor, kappa: Tensor, gain: Tensor, w_m: Tensor, layers: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    memory = u.new_empty(*u.shape[:2], *kappa.shape)
    return memory, u.new_empty(_saved_size(memory, u, layers) if save else 0), torch.empty((), dtype=torch.int64)


@torch.library.custom_op("elm_neuro::memory_scan_backward", mutates_args=())
def _memory_scan_backward_op(
    silu: bool,
    tile: Tensor,
    grad_memory: Tensor,
    m_0: Tensor,
    kappa: Tensor,
    gain: Tensor,
    w_m: Tensor,
    memory: Tensor,
    saved: Tensor,
    layers: list[Tensor],
) -> list[Tensor]:
    return _backward(silu, int(tile), grad_memory, m_0, kappa, gain, w_m, memory, saved, layers)


@_memory_scan_backward_op.register_fake
def _(
    silu: bool,
    tile: Tensor,
    grad_memory: Tensor,
    m_0: Tensor,
    kappa: Tensor,
    gain: Tensor,
    w_m: Tensor,
    memory: Tensor,
    saved: Tensor,
    layers: list[Tensor],
) -> list[Tensor]:
    grad_u = memory.new_empty(*memory.shape[:-1], w_m.shape[-2])
    return [grad_u, *(memory.new_empty(tensor.shape) for tensor in (m_0, kappa, gain, w_m, *layers))]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.silu, _, _, m_0, kappa, gain, w_m, layers = inputs
    memory, saved, tile = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(m_0, kappa, gain, w_m, memory, saved, tile, *layers)


def _differentiate(ctx: Any, grad_memory: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad_memory is None:
        return (None,) * 8
    m_0, kappa, gain, w_m, memory, saved, tile, *layers = ctx.saved_tensors
    call = torch.ops.elm_neuro.memory_scan_backward
    grad_u, *grads = call(ctx.silu, tile, grad_memory, m_0, kappa, gain, w_m, memory, saved, layers)
    return None, None, grad_u, *grads[:4], grads[4:]


_memory_scan_op.register_autograd(_differentiate, setup_context=_keep)


def _saved_size(memory: Tensor, u: Tensor, layers: list[Tensor]) -> int:
    hidden = len(layers) // 2 * _library.padded(u.dtype, u.shape[-1])
    return memory.numel() // memory.shape[-1] * (hidden + _library.padded(u.dtype, memory.shape[-1]))


def _rows(tensor: Tensor) -> Tensor:
    """`tensor`, its rows contiguous."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _arguments(
    silu: bool,
    u: Tensor,
    m_0: Tensor,
    kappa: Tensor,
    gain: Tensor,
    w_m: Tensor,
    layers: list[Tensor],
    memory: Tensor,
    tile: int,
) -> _library.MemoryArgs:
    batch, num_steps, num_neuron = u.shape[0], u.shape[1], kappa.shape[0] if kappa.ndim == 2 else 1
    num_task = num_neuron * (batch // tile + (batch % tile).bit_count())
    hidden = u.shape[-1] if layers else 0
    args = _library.MemoryArgs(batch, num_steps, num_neuron, kappa.shape[-1], len(layers) // 2, hidden, silu)
    args.u_batch, args.u_time, args.u_neuron = _strides(u)
    args.memory_batch, args.memory_time, args.memory_neuron = _strides(memory)
    args.w_m_neuron, args.w_m_row = w_m.stride(0), w_m.stride(-2)
    args.tile, args.num_task = tile, num_task
    args.u, args.m_0, args.kappa, args.gain, args.w_m = (tensor.data_ptr() for tensor in (u, m_0, kappa, gain, w_m))
    args.weight, args.bias, args.memory = _library.addresses(layers[::2]), _library.addresses(layers[1::2]), memory.data_ptr()
    return args


def _threads(args: _library.MemoryArgs) -> int:
    width = args.num_memory + 2 * args.hidden * max(1, args.num_layers)
    return _library.threads_for(float(args.batch * args.num_steps * args.num_neuron * args.num_memory * width))


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """Strides of batch, time and neuron."""
    stride = tensor.stride()
    return stride[0], stride[1], stride[2] if len(stride) == 4 else 0
