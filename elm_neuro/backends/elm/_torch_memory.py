"""The memory recurrence, the only part that must run step by step: in preallocated buffers, with a hand-written
backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.parts._twice import differentiable_once
from elm_neuro.functional import ELMParameters
from elm_neuro.functional._elm import TANH_SCALE, TANH_SLOPE


def memory_scan(u: Tensor, m_0: Tensor, params: ELMParameters) -> Tensor:
    """Memory after each step of ``m = kappa_m * m + gain * 1.7159 * tanh(2/3 * MLP(u_t + W kappa_m m))``.

    Args:
        u: input half of the first MLP layer with its bias, (batch, time, [num_neuron,] hidden).
        m_0: memory before the first step, (batch, [num_neuron,] num_memory).
        params: the neuron's parameters; W is the memory's half of the first layer's weight.

    Returns:
        (time, batch, [num_neuron,] num_memory).
    """
    w_m = params.mlp_weight[0][..., params.w_s.shape[-2] :]
    layers = [tensor for layer in zip(params.mlp_weight[1:], params.mlp_bias[1:], strict=True) for tensor in layer]
    memory: Tensor = _MemoryScan.apply(params.activation, u, m_0, params.kappa_m, params.gain, w_m, *layers)  # type: ignore[no-untyped-call]
    return memory


class _MemoryScan(Function):
    """Memory of all time steps, (time, batch, [num_neuron,] num_memory), from the first layer's input half `u`.

    Inside, the memory is divided by ``ratio = 1.7159 * gain / (1 - kappa_m)``, so that a step ends in one
    interpolation, ``n_t = tanh + kappa_m * (n_{t-1} - tanh)``, and all constants sit in the weights. Time comes first,
    then the neuron axis if any.
    """

    @staticmethod
    def forward(
        ctx: Any, activation: str, u: Tensor, m_0: Tensor, kappa: Tensor, gain: Tensor, w_m: Tensor, *layers: Tensor
    ) -> Tensor:
        population = kappa.ndim == 2
        # for time constants so long that the decay rounds to 1 or the gain to 0 the ratio stays finite and above 0
        eps = torch.finfo(kappa.dtype).eps
        kappa = kappa.clamp(max=1.0 - eps / 2)
        ratio = TANH_SCALE * gain.clamp(min=eps**2) / (1.0 - kappa)
        fold = kappa * ratio
        pre = [_time_major(u, population)]
        num_steps = pre[0].shape[0]
        weights, biases = _transposed(layers, population)
        recurrent = (w_m * fold.unsqueeze(-2)).mT.contiguous()
        decay = kappa.unsqueeze(1) if population else kappa

        for bias in biases:  # buffers of the further layers start at their bias; the last one becomes the proposal
            pre.append(bias.expand(*pre[0].shape[:-1], bias.shape[-1]).clone(memory_format=torch.contiguous_format))
        proposal = pre.pop() if weights else pre[0].mul_(TANH_SLOPE)
        memory = u.new_empty(num_steps + 1, *pre[0].shape[1:-1], kappa.shape[-1])
        memory[0] = (m_0 / ratio).transpose(0, 1) if population else m_0 / ratio
        silu = activation == "silu"
        post = [torch.empty_like(z) for z in pre] if silu else pre
        if not weights:
            recurrent = recurrent * TANH_SLOPE
        _run_forward(memory, pre, post, proposal, recurrent, weights, decay, silu=silu)

        ctx.set_materialize_grads(False)
        ctx.silu, ctx.population, ctx.num_layers = silu, population, len(weights)
        ctx.save_for_backward(kappa, w_m, ratio, memory, proposal, *layers, *pre, *(post if silu else []))
        return (memory[1:].transpose(1, 2) if population else memory[1:]) * ratio

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_memory: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grad_memory)


def _gradients(ctx: Any, grad_memory: Tensor) -> tuple[Tensor | None, ...]:
    kappa, w_m, ratio, memory, proposal, *rest = ctx.saved_tensors
    population, num_layers = ctx.population, ctx.num_layers
    layers, pre = rest[: 2 * num_layers], rest[2 * num_layers : 3 * num_layers + (num_layers == 0)]
    post = rest[2 * num_layers + len(pre) :] if ctx.silu else pre
    grad_n = grad_memory * ratio
    grad_n = grad_n.transpose(1, 2).contiguous() if population else grad_n.contiguous()

    fold = kappa * ratio
    decay = kappa.unsqueeze(1) if population else kappa
    recurrent = w_m * fold.unsqueeze(-2)
    weights = [weight * (TANH_SLOPE if index == num_layers - 1 else 1.0) for index, weight in enumerate(layers[::2])]
    slope = (
        TANH_SLOPE if num_layers == 0 else 1.0
    )  # with no layer the first one is the last: its slope has no weight to hide in
    dq = torch.mul(proposal, proposal).neg_().add_(1.0).mul_((1.0 - decay) * slope)
    derivative = [_derivative(z, silu=ctx.silu) for z in pre] if num_layers else []
    dz = [torch.empty_like(z) for z in pre] if num_layers else [dq]
    grad_m0 = _run_backward(grad_n, dq, dz, derivative, recurrent, weights, decay)

    # the division by `ratio` is only a change of variables: gradients are those of m = kappa * m + 1.7159 * gain *
    # tanh(...)
    grad_recurrent, *grads = _weight_gradients(population, dq, dz, post, memory, num_layers)
    steps = (0, 2) if population else (0, 1)
    grad_kappa = (grad_n * memory[:-1]).sum(steps) + (grad_recurrent * w_m).sum(-2) * ratio
    grad_gain = (grad_n * proposal).sum(steps) * (TANH_SCALE / ratio)
    if population:
        grad_m0, grad_u = grad_m0.transpose(0, 1), dz[0].permute(2, 0, 1, 3)
    else:
        grad_u = dz[0].transpose(0, 1)
    return None, grad_u, grad_m0 / ratio, grad_kappa, grad_gain, grad_recurrent * fold.unsqueeze(-2), *grads


def _time_major(u: Tensor, population: bool) -> Tensor:
    """A copy with time first, then the neuron axis, then the batch: the loop works in it in place."""
    turned = u.permute(1, 2, 0, 3) if population else u.transpose(0, 1)
    return turned.clone(memory_format=torch.contiguous_format)


def _transposed(layers: tuple[Tensor, ...], population: bool) -> tuple[list[Tensor], list[Tensor]]:
    weights = [weight.mT.contiguous() for weight in layers[::2]]
    biases = [bias.unsqueeze(1) if population else bias for bias in layers[1::2]]
    if weights:
        weights[-1], biases[-1] = weights[-1] * TANH_SLOPE, biases[-1] * TANH_SLOPE
    return weights, biases


def _run_forward(
    memory: Tensor,
    pre: list[Tensor],
    post: list[Tensor],
    proposal: Tensor,
    recurrent: Tensor,
    weights: list[Tensor],
    decay: Tensor,
    *,
    silu: bool,
) -> None:
    """Fill `memory` from its first entry on; `pre`, `post` and `proposal` become what the layers held before and
    after their nonlinearity.
    """
    add_product: Any = Tensor.baddbmm_ if memory.ndim == 4 else Tensor.addmm_
    lerp, silu_out = torch.lerp, torch.ops.aten.silu.out
    layers = [z.unbind(0) for z in (*pre, proposal)] if weights else [proposal.unbind(0)]
    activated = [h.unbind(0) for h in post]
    n, *n_steps = memory.unbind(0)
    for step, n_next in enumerate(n_steps):
        z = add_product(layers[0][step], n, recurrent)
        for index, weight in enumerate(weights):
            h = silu_out(z, out=activated[index][step]) if silu else z.relu_()
            z = add_product(layers[index + 1][step], h, weight)
        n = lerp(z.tanh_(), n, decay, out=n_next)


def _run_backward(
    grad_n: Tensor,
    dq: Tensor,
    dz: list[Tensor],
    derivative: list[Tensor],
    recurrent: Tensor,
    weights: list[Tensor],
    decay: Tensor,
) -> Tensor:
    """Fill `dq` and `dz` in place from the last step to the first and add up `grad_n`; returns the gradient before
    the first step.
    """
    mm: Any = torch.bmm if grad_n.ndim == 4 else torch.mm
    add_product: Any = Tensor.baddbmm_ if grad_n.ndim == 4 else Tensor.addmm_
    g_steps, q_steps = grad_n.unbind(0), dq.unbind(0)
    z_steps, d_steps = [z.unbind(0) for z in dz], [d.unbind(0) for d in derivative]
    num_layers = len(weights)
    before_first = torch.zeros_like(g_steps[0])
    for step in range(len(g_steps) - 1, -1, -1):
        g = g_steps[step]
        flow = q_steps[step].mul_(g)
        for index in range(num_layers - 1, -1, -1):
            flow = mm(flow, weights[index], out=z_steps[index][step]).mul_(d_steps[index][step])
        earlier = g_steps[step - 1] if step else before_first
        add_product(earlier.addcmul_(g, decay), flow, recurrent)
    return before_first


def _derivative(z: Tensor, *, silu: bool) -> Tensor:
    """Derivative of the activation; for relu `z` already holds its output."""
    if not silu:
        return (z > 0).to(z.dtype)
    sigmoid = torch.sigmoid(z)
    return (1.0 - sigmoid).mul_(z).add_(1.0).mul_(sigmoid)


def _weight_gradients(
    population: bool, dq: Tensor, dz: list[Tensor], post: list[Tensor], memory: Tensor, num_layers: int
) -> list[Tensor]:
    """Gradients of the recurrent half of the first layer, then of each further layer's weight and bias, as sums over
    all steps.
    """

    def outer(out: Tensor, inp: Tensor) -> Tensor:
        if population:
            return torch.matmul(out.permute(1, 3, 0, 2).flatten(2), inp.permute(1, 0, 2, 3).flatten(1, 2))
        return out.flatten(0, 1).mT @ inp.flatten(0, 1)

    grads = [outer(dz[0], memory[:-1])]
    for index in range(num_layers):
        last = index == num_layers - 1
        out = dq if last else dz[index + 1]
        weight, bias = outer(out, post[index]), out.sum((0, 2) if population else (0, 1))
        grads += [weight * TANH_SLOPE, bias * TANH_SLOPE] if last else [weight, bias]
    return grads
