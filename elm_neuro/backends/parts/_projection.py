"""Routing, weights and branch sum of all time steps at once: one matrix product, or sums over the events of sparse
input.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.parts._twice import differentiable_once
from elm_neuro.events import SpikeEvents
from elm_neuro.functional._transforms import transformed

# Measured on CPUs: a dense product costs about 4 * channels / 70 ns an entry forward and backward, finding the spikes
# about 1 ns and summing them about 0.3 * channels ns a spike, so that events win below these marks.
SPARSE_DENSITY = 0.04
SPARSE_CHANNELS = 32
# Logarithm of the discount below which a step is left out: the square of the dtype's epsilon.
LOG_FORGOTTEN = {
    dtype: 2.0 * math.log(torch.finfo(dtype).eps)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


def sparse_where_faster(x: Tensor | SpikeEvents, num_channel: int) -> Tensor | SpikeEvents:
    """Events in place of dense frames where mostly silent frames make that faster; the result of the projection is the
    same.

    Only on the CPU and only where `x` needs no gradient. The density is that of every 16th step.
    """
    if (
        isinstance(x, SpikeEvents)
        or x.requires_grad
        or x.device.type != "cpu"
        or x.ndim != 3
        or num_channel < SPARSE_CHANNELS
    ):
        return x
    sample = x[:, ::16]
    if x.shape[2] < 2 * SPARSE_CHANNELS or torch.count_nonzero(sample) > SPARSE_DENSITY * sample.numel():
        return x
    return SpikeEvents.from_frames(x)


def project(x: Tensor | SpikeEvents, weight: Tensor) -> Tensor:
    """``x @ weight.mT`` for every time step.

    Args:
        x: (batch, time, input_size), (batch, time, num_neuron, input_size), or events.
        weight: ([num_neuron,] channel, input_size).

    Returns:
        (batch, time, [num_neuron,] channel).
    """
    if isinstance(x, SpikeEvents) and transformed():
        x = x.to_dense(weight.dtype)
    if isinstance(x, SpikeEvents):
        flat = _event_projection(x, weight.flatten(0, -2))
    elif x.ndim == 4:
        return torch.einsum("btni,nci->btnc", x, weight)
    else:
        flat = F.linear(x, weight.flatten(0, -2))
    return flat.view(*flat.shape[:2], *weight.shape[:-1])


def discounted_sum(x: Tensor | SpikeEvents, kappa: Tensor, lengths: Tensor | None) -> Tensor:
    r"""Input summed over time, each step discounted to the end: :math:`\sum_t \kappa^{L-1-t} x_t`, (batch, ...,
    input_size).

    Steps whose discount is below the square of the dtype's epsilon are left out.
    """
    num_steps = x.shape[1]
    dtype = kappa.dtype if isinstance(x, SpikeEvents) else x.dtype
    start, last = 0, num_steps
    # elsewhere, and in compiled code, these reads would wait for the device
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        start = num_steps
        if lengths is not None and lengths.numel():
            start, last = int(lengths.min()), int(lengths.max())
        start = max(0, start - steps_within_reach(float(kappa.detach()), num_steps, dtype))
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    end = torch.full((x.shape[0],), num_steps, device=x.device) if lengths is None else lengths
    age = end[:, None] - 1 - torch.arange(start, last, device=x.device)  # (batch, steps)
    discount = (kappa.to(wide) ** age.clamp(min=0) * (age >= 0)).to(dtype)
    if isinstance(x, SpikeEvents):
        row = x.rows()
        sample, step = row // max(num_steps, 1), row % max(num_steps, 1)
        channel, value = x.channel, x.value
        if last - start < num_steps:
            recent = ((step >= start) & (step < last)).nonzero().squeeze(-1)
            sample, step, channel = sample[recent], step[recent], channel[recent]
            value = None if value is None else value[recent]
        weight = discount[sample, step - start]
        if value is not None:
            weight = weight * value.to(dtype)
        total = torch.zeros(x.batch * x.num_channels, dtype=dtype, device=x.device)
        return total.index_add_(0, sample * x.num_channels + channel, weight).view(x.batch, x.num_channels)
    return torch.einsum("bt,bt...->b...", discount, x[:, start:last])


def steps_within_reach(kappa: float, num_steps: int, dtype: torch.dtype) -> int:
    """Steps after which a decay has fallen below the square of the dtype's epsilon, at most `num_steps`."""
    if not 0.0 < kappa < 1.0:
        return num_steps if kappa else 1
    return math.ceil(min(LOG_FORGOTTEN[dtype] / math.log(kappa), num_steps))


def _event_projection(x: SpikeEvents, weight: Tensor) -> Tensor:
    value = None if x.value is None else x.value.to(weight.dtype)
    flat: Tensor = _EventProjection.apply(weight, x.indptr, x.channel, value)  # type: ignore[no-untyped-call]
    return flat.view(x.batch, x.num_steps, weight.shape[0])


class _EventProjection(Function):
    """Rows of the transposed weight added up per time step; the backward pass is the same sum over the transposed
    events.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, indptr: Tensor, channel: Tensor, value: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(indptr, channel, value)
        ctx.num_channels = weight.shape[1]
        return _bag(weight.t().contiguous(), indptr, channel, value)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        indptr, channel, value = ctx.saved_tensors
        order = _stable_order(channel, ctx.num_channels)
        row = torch.repeat_interleave(
            torch.arange(indptr.shape[0] - 1, device=indptr.device), indptr.diff(), output_size=channel.shape[0]
        )
        count = torch.bincount(channel, minlength=ctx.num_channels)
        transposed = F.pad(count.cumsum(0), (1, 0))
        grad_weight = _bag(grad.contiguous(), transposed, row[order], None if value is None else value[order])
        return grad_weight.t(), None, None, None


def _bag(table: Tensor, indptr: Tensor, index: Tensor, value: Tensor | None) -> Tensor:
    with torch.autocast(table.device.type, enabled=False):
        if index.shape[0] == 0 or table.shape[0] == 0:
            return table.new_zeros(indptr.shape[0] - 1, table.shape[1])
        return F.embedding_bag(index, table, indptr, mode="sum", per_sample_weights=value, include_last_offset=True)


def _stable_order(channel: Tensor, num_channels: int) -> Tensor:
    """Order of the events by channel, earlier events first; short integers take a radix sort."""
    short = channel.to(torch.int16) if num_channels <= torch.iinfo(torch.int16).max else channel
    return torch.argsort(short, stable=True)
