"""The layer in PyTorch, the steps of a latency at a time, with the gradient of the loop or that of Blocks.

In a chunk of latency + 1 steps no spike of the layer reaches the layer: what is fed back in all of them is one product,
and so is known which steps the spikes before the chunk leave without input.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.alif._backend import ALIFBackend
from elm_neuro.backends.parts._lengths import without_padding
from elm_neuro.backends.parts._plain import may_look
from elm_neuro.backends.parts._projection import project
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ALIFParameters, ALIFState
from elm_neuro.functional._alif import crossing
from elm_neuro.functional._spike import SurrogateStep


class Torch(ALIFBackend):
    """Plain operations of torch: what autograd gives for them is the gradient."""

    name = "torch"
    about = "plain PyTorch, any dtype, any device; for ALIF any surrogate and both gradients"
    differentiates = True

    def scan(
        self,
        x: Tensor | SpikeEvents,
        weight: Tensor,
        bias: Tensor,
        params: ALIFParameters,
        state: ALIFState,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, ALIFState]:
        """As :meth:`ALIFBackend.scan`."""
        if lengths is not None:
            x = without_padding(x, lengths)
        currents = project(x, weight).to(bias.dtype) + bias  # (batch, time, output_size)
        # a block of one step is that step, its adaptation detached
        run = _block if params.gradient == "blocks" and state.s.shape[1] > 1 else _loop
        record, start = [], 0
        for chunk in currents.split(state.s.shape[1], dim=1) if currents.shape[1] else ():
            num_steps = chunk.shape[1]
            valid = None if lengths is None else (lengths - start).clamp(0, num_steps)  # (batch,)
            spikes, v, a = run(_arriving(chunk, state.s, params, valid), state, params)
            state = ALIFState(v, a, remembered(state.s, spikes, valid))
            record.append(spikes)
            start += num_steps
        if not record:
            return currents, state
        return torch.cat(record, dim=1), state._replace(s=state.s.clone())  # no view that keeps a chunk alive


class _Arriving(NamedTuple):
    """What reaches a chunk of steps from outside of it."""

    currents: Tensor  # (batch, steps, output_size), input and fed-back spikes
    blocked: Tensor  # (batch, at most steps, output_size), 1 where a spike before the chunk leaves the step no input
    valid: Tensor | None  # (batch,), steps before each sample's end


def _arriving(currents: Tensor, past: Tensor, params: ALIFParameters, valid: Tensor | None) -> _Arriving:
    num_steps = currents.shape[1]
    if params.w_rec is not None:
        fed_back = past[:, :num_steps]
        currents = currents + (fed_back.detach() if params.detach_recurrent else fed_back) @ params.w_rec.mT
    # step k is left without input by the spikes past[k + 1:]; the last step of a whole chunk by none of them
    blocked = past[:, 1:].detach().flip(1).cummax(1).values.flip(1)[:, :num_steps]
    return _Arriving(currents, blocked, valid)


def _loop(arriving: _Arriving, state: ALIFState, params: ALIFParameters) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes (batch, steps, output_size), membrane and adaptation after a chunk, as steps one after the other."""
    v, a = state.v, state.a
    blocked, latency = arriving.blocked.unbind(1), state.s.shape[1] - 1
    record: list[Tensor] = []
    fired: Tensor | None = None  # whether the neuron has spiked in this chunk
    for step, current in enumerate(arriving.currents.unbind(1)):
        if step < latency:
            current = current * (1.0 - (blocked[step] if fired is None else torch.maximum(blocked[step], fired)))
        elif fired is not None:
            current = current * (1.0 - fired)
        v_t = params.beta * v + current
        spikes = crossing(v_t, a, params)
        constant = spikes.detach()
        v_t = v_t * (1.0 - (constant if params.detach_reset else spikes))
        a_t = a if params.b is None else params.p * a + (constant if params.gradient == "blocks" else spikes)
        if arriving.valid is not None:
            running = (step < arriving.valid).unsqueeze(-1)  # (batch, 1)
            spikes = torch.where(running, spikes, 0.0)
            v_t, a_t = torch.where(running, v_t, v), torch.where(running, a_t, a)
        v, a = v_t, a_t
        if latency:
            fired = constant if fired is None else torch.maximum(fired, constant)
        record.append(spikes)
    return torch.stack(record, dim=1), v, a


def _block(arriving: _Arriving, state: ALIFState, params: ALIFParameters) -> tuple[Tensor, Tensor, Tensor]:
    r"""The same spikes and state with the gradient of Blocks.

    From the state before the block the membrane runs on without reset and the threshold without the block's own
    spikes; with :math:`f_k` the surrogate's step at their distance,

    .. math:: z_j = \sum_{k \le j} (j - k + 1)\, f_k, \qquad s_j = [z_j = 1],

    which leaves the first crossing alone, and the gradient of s is that of z. A spike enters adaptation and reset as a
    constant.
    """
    currents, blocked, valid = arriving
    num_steps, masked = currents.shape[1], blocked.shape[1]
    currents = torch.cat([currents[:, :masked] * (1.0 - blocked), currents[:, masked:]], dim=1)
    v, a = [state.v], [state.a]
    # one step after the other: rounded as the loop rounds it, so that the spikes are the same to the last one
    for current in currents.unbind(1):
        v.append(params.beta * v[-1] + current)
    for _ in range(num_steps - 1 if params.b is not None else 0):
        a.append(params.p * a[-1])
    f = crossing(torch.stack(v[1:], dim=1), torch.stack(a, dim=1), params)
    _refuse_graded(f, params)
    z = f.cumsum(1).cumsum(1)
    spikes = (z.detach() == 1.0).to(z.dtype) + (z - z.detach())
    if valid is not None:
        steps = torch.arange(num_steps, device=z.device)
        spikes = torch.where((steps < valid.unsqueeze(-1)).unsqueeze(-1), spikes, 0.0)
    constant = spikes.detach()
    after = _after(v, valid) * (1.0 - constant.amax(1))
    if params.b is None:
        return spikes, after, state.a
    a = [state.a]
    for spike in constant.unbind(1):
        a.append(params.p * a[-1] + spike)
    return spikes, after, _after(a, valid)


def _refuse_graded(f: Tensor, params: ALIFParameters) -> None:
    """Refuse a surrogate whose step is neither 0 nor 1, of which no first crossing can be told.

    Raises:
        ValueError: this is one (looked at on the CPU only).
    """
    if isinstance(params.surrogate, SurrogateStep) or not may_look(f):
        return
    value = f.detach()
    graded = value[(value != 0.0) & (value != 1.0) & ~value.isnan()]
    if graded.numel():
        raise ValueError(f'surrogate must give 0 or 1 with gradient "blocks", got {graded[0].item()}')


def _after(record: list[Tensor], valid: Tensor | None) -> Tensor:
    """The entry after each sample's last valid step of a record that begins before the first step."""
    if valid is None:
        return record[-1]
    return torch.stack(record, dim=1)[torch.arange(valid.shape[0], device=valid.device), valid]


def remembered(past: Tensor, spikes: Tensor, valid: Tensor | None) -> Tensor:
    """The spikes of as many last steps as `past` holds, once those of a chunk have followed."""
    both, length = torch.cat([past, spikes], dim=1), past.shape[1]
    if valid is None:
        return both[:, -length:]
    valid = valid.clamp(0, spikes.shape[1])  # nobody may have looked, where a CUDA graph runs again
    steps = valid.unsqueeze(-1) + torch.arange(length, device=valid.device)  # (batch, latency + 1)
    return both[torch.arange(valid.shape[0], device=valid.device).unsqueeze(-1), steps]
