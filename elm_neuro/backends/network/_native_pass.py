"""The native pass over a sequence of a layer of ELM neurons, and its backward pass: ``native/network.h`` says what they
compute.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.native import _library
from elm_neuro.backends.native._events import Events
from elm_neuro.backends.native._rows import rows
from elm_neuro.backends.network._kernels import KERNEL_ACTIVATIONS, KERNEL_OUTPUTS
from elm_neuro.backends.parts._surrogates import in_numbers
from elm_neuro.backends.parts._twice import as_tensor, differentiable_once
from elm_neuro.functional import NetworkParams, NetworkRule, NetworkState

Tensors = tuple[Tensor | None, ...]
NO_EVENTS: Tensors = (None,) * 4


class Operands(NamedTuple):
    """The tensors of a pass but for the MLPs' layers; what arrives are events, or the frames `x`."""

    index: Tensor  # type: ignore[assignment]  # (num_neuron, num_branch * num_synapse), int64; a tuple's method
    begin: Tensor | None  # of Events
    end: Tensor | None
    channel: Tensor | None
    value: Tensor | None
    lengths: Tensor | None  # (batch,), int64
    input_mask: Tensor | None  # (batch, input_size)
    recurrent_mask: Tensor | None  # (batch, num_neuron)
    x: Tensor | None  # (batch, time, input_size); the fields from here on are differentiated
    w_s: Tensor  # (num_neuron, num_branch * num_synapse)
    w_y: Tensor  # (num_neuron, num_memory)
    bias: Tensor  # (num_neuron,)
    kappa_m: Tensor  # (num_neuron, num_memory)
    gain: Tensor  # (num_neuron, num_memory)
    kappa_b: Tensor | None  # (num_neuron, num_branch)
    kappa_r: Tensor | None  # (num_neuron,)
    a_0: Tensor  # (batch, num_neuron)
    b_0: Tensor | None  # (batch, num_neuron, num_branch), with kappa_b
    m_0: Tensor  # (batch, num_neuron, num_memory)
    r_0: Tensor | None  # (batch, num_neuron), with kappa_r

    @classmethod
    def of(
        cls,
        params: NetworkParams,
        state: NetworkState,
        *,
        x: Tensor | None,
        events: tuple[Tensor | None, ...] = NO_EVENTS,
        lengths: Tensor | None = None,
        input_mask: Tensor | None = None,
        recurrent_mask: Tensor | None = None,
    ) -> Operands:
        """Of a layer; `events`: begin, end, channel and value."""
        begin, end, channel, value = events
        return cls(
            params.index, begin, end, channel, value, lengths, input_mask, recurrent_mask,
            x=x, w_s=params.w_s, w_y=params.w_y, bias=params.bias, kappa_m=params.kappa_m, gain=params.gain,
            kappa_b=params.kappa_b, kappa_r=params.kappa_r, a_0=state.a,
            b_0=None if params.kappa_b is None else state.b, m_0=state.m,
            r_0=None if params.kappa_r is None else state.r,
        )  # fmt: skip

    def laid_out(self) -> Operands:
        """As the kernels read them: contiguous but for the rows of `x`."""
        whole = Operands._make([tensor if tensor is None else tensor.contiguous() for tensor in self._replace(x=None)])
        return whole if self.x is None else whole._replace(x=rows(self.x))


FIRST_DIFFERENTIATED = Operands._fields.index("x")
FEWEST_STEPS_OF_A_CHUNK = 8  # as native/network_layout.h cuts them, of all instruction sets


class Options(NamedTuple):
    """How a pass runs, but for its sizes."""

    num_branch: int
    widths: tuple[int, ...]  # of the MLPs' layers
    activation: int
    output: int
    surrogate: int
    settings: tuple[float, ...]
    input_scale: float

    @classmethod
    def of(cls, params: NetworkParams, rule: NetworkRule) -> Options:
        return cls(
            params.num_branch, tuple([bias.shape[1] for bias in params.mlp_bias]),
            KERNEL_ACTIVATIONS[rule.activation], KERNEL_OUTPUTS[rule.output],
            *(in_numbers(rule.surrogate) if rule.output == "spike" else (0, ())), rule.input_scale,
        )  # fmt: skip


class Plan(NamedTuple):
    """How a pass of a size runs."""

    options: Options
    num_steps: int
    num_input: int
    lanes: int  # samples of a task, 1 for lanes of neurons: what is kept for the backward pass lies accordingly

    @classmethod
    def of(cls, options: Options, sizes: Sequence[int], operands: Operands, threads: int | None = None) -> Plan:
        """Of these numbers of samples, steps and inputs, for so many threads at most."""
        (batch, num_steps, num_input), like = sizes, operands.bias
        most = _threads(batch * num_steps * operands.index.numel(), threads)
        double = like.dtype == torch.float64
        lanes = _library.library().elm_network_lanes(double, batch, like.shape[0], num_steps, most)
        return cls(options, num_steps, num_input, lanes)


def run(operands: Operands, layers: tuple[Tensor, ...], options: Options, sizes: Sequence[int]) -> tuple[Any, ...]:
    """Activity, summed change, and a, b, m and r after each sample's last step, None for those that the operands have
    not; `layers`: weights, then biases.
    """
    plan = Plan.of(options, sizes, operands)
    if torch.is_grad_enabled():
        found: tuple[Any, ...] = _Pass.apply(plan, *operands, *layers)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return found
    return forward(operands.laid_out(), contiguous(layers), plan, save=False)[:-1]


class _Pass(Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor | None) -> Tensors:
        operands = Operands._make(tensors[: len(Operands._fields)]).laid_out()
        layers = contiguous(tensors[len(Operands._fields) :])
        *found, saved = forward(operands, layers, plan, save=any(ctx.needs_input_grad))
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(as_tensor(plan.lanes), found[0], saved, *operands, *layers)
        return tuple(found)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor | None) -> Tensors:
        lanes, a, saved, *tensors = ctx.saved_tensors
        # as the kernels read them, wherever they have been kept in between
        operands, a, saved = Operands._make(tensors[: len(Operands._fields)]).laid_out(), rows(a), saved.contiguous()
        needed = ctx.needs_input_grad[1 : 1 + len(Operands._fields)]
        layers = list(contiguous(tuple(tensors[len(Operands._fields) :])))
        plan = ctx.plan._replace(lanes=int(lanes))
        found = backward(operands, layers, plan, a, saved, grads, needed)
        return (None,) * (1 + FIRST_DIFFERENTIATED) + found


def contiguous(layers: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return tuple(layer.contiguous() for layer in layers)


def forward(operands: Operands, layers: tuple[Tensor, ...], plan: Plan, *, save: bool) -> tuple[Any, ...]:
    """Activity, change, state and what the backward pass reads."""
    like, (batch, num_neuron) = operands.bias, operands.a_0.shape
    args = _arguments(operands, layers, plan)
    a, change = like.new_empty(batch, plan.num_steps, num_neuron), like.new_empty(batch, num_neuron)
    state = [None if part is None else torch.empty_like(part) for part in operands[-4:]]
    room = room_for_saved(operands, plan.options, plan.num_steps) if save else 0
    if save and room < (size := _saved_size(args, like)):
        raise RuntimeError(f"the room for what a pass keeps must be {size} entries, got {room}")
    saved = _library.large(like, room)
    args.a, args.a_batch, args.a_time, args.change = a.data_ptr(), *a.stride()[:2], change.data_ptr()
    args.a_last, args.b_last, args.m_last, args.r_last = map(_library.address, state)
    args.saved = saved.data_ptr() if save else None
    _call(_library.library().elm_network_forward, args, like)
    return a, change, *state, saved


def backward(
    operands: Operands,
    layers: list[Tensor],
    plan: Plan,
    a: Tensor,
    saved: Tensor,
    grads: Tensors,
    needed: tuple[bool, ...],
) -> Tensors:
    """Gradients of the operands from `x` on, then of the layers."""
    like, wanted = operands.bias, Operands(*needed)  # type: ignore[arg-type]
    if operands.channel is not None:
        _check_events(operands, plan)
    args = _arguments(operands, tuple(layers), plan)
    args.a, args.a_batch, args.a_time, args.saved = a.data_ptr(), *a.stride()[:2], saved.data_ptr()
    of_a = None if grads[0] is None else rows(grads[0])
    if of_a is not None:
        args.grad_a, args.grad_batch, args.grad_time = of_a.data_ptr(), *of_a.stride()[:2]
    rest = [None if grad is None else grad.contiguous() for grad in grads[1:]]
    args.grad_change, args.grad_a_last, args.grad_b_last, args.grad_m_last, args.grad_r_last = map(
        _library.address, rest
    )
    found = {
        name: None if tensor is None else tensor.new_empty(tensor.shape)
        for name, tensor in zip(Operands._fields[FIRST_DIFFERENTIATED:], operands[FIRST_DIFFERENTIATED:], strict=True)
        if name not in ("x", "a_0", "b_0", "m_0", "r_0") or getattr(wanted, name)
    }
    for name, grad in found.items():
        setattr(args, f"grad_{name}", _library.address(grad))
    of_layers = tuple(layer.new_empty(layer.shape) for layer in layers)
    _put_halves(of_layers, args.grad_weight, args.grad_layer_bias)
    _call(_library.library().elm_network_backward, args, like)
    return *(found.get(name) for name in Operands._fields[FIRST_DIFFERENTIATED:]), *of_layers


def room_for_saved(operands: Operands, options: Options, num_steps: int) -> int:
    """Entries in which what the backward pass reads has room, however many lanes a task takes: that hangs on the number
    of threads, which may be another where ``torch.utils.checkpoint`` runs a pass again. Of few samples most of it is
    never touched. Batch and steps may be left open by compiled code, the layer's own sizes are not.
    """
    (num_neuron, num_memory), dtype = operands.kappa_m.shape, operands.bias.dtype
    most_lanes = _library.padded(dtype, 1)  # a multiple of any number of lanes
    batch = operands.a_0.shape[0]
    samples = -(-batch // most_lanes) * most_lanes
    a_step = sum(options.widths[:-1]) + num_memory + (options.output != KERNEL_OUTPUTS["identity"])
    a_start = num_memory + (0 if operands.kappa_b is None else options.num_branch) + (operands.kappa_r is not None)
    entries = num_steps * a_step + -(-num_steps // FEWEST_STEPS_OF_A_CHUNK) * a_start
    # lanes are samples, or neurons
    rows_kept: int = torch.sym_max(samples * num_neuron, batch * _library.padded(dtype, int(num_neuron)))
    return rows_kept * entries


def _saved_size(args: _library.NetworkArgs, like: Tensor) -> int:
    return int(_library.library().elm_network_saved(like.dtype == torch.float64, ctypes.byref(args)))


def _check_events(operands: Operands, plan: Plan) -> None:
    """Refuse events that were changed since the forward pass, where autograd could not see it."""
    begin, end, channel, value = operands.begin, operands.end, operands.channel, operands.value
    if begin is None or end is None or channel is None:
        raise RuntimeError("events without rows")
    Events(begin, end, channel, value, (operands.a_0.shape[0], plan.num_steps, plan.num_input)).check()


def _put_halves(layers: tuple[Tensor, ...], weights: Any, biases: Any) -> None:
    """Write where the weights lie, and the biases."""
    half = len(layers) // 2
    _library.put_addresses(layers[:half], weights)
    _library.put_addresses(layers[half:], biases)


def _arguments(operands: Operands, layers: tuple[Tensor, ...], plan: Plan) -> _library.NetworkArgs:
    """Arguments of either pass."""
    args = _sized(operands, plan)
    args.wide = operands.channel is not None and operands.channel.dtype == torch.int64
    for name, tensor in operands._asdict().items():
        setattr(args, name, _library.address(tensor))
    if operands.x is not None:
        args.x_batch, args.x_time = operands.x.stride()[:2]
    _put_halves(layers, args.weight, args.layer_bias)
    return args


def _sized(operands: Operands, plan: Plan) -> _library.NetworkArgs:
    """Arguments without addresses, but for which of the operands there are."""
    (batch, num_neuron), (options, num_steps, num_input, lanes) = operands.a_0.shape, plan
    args = _library.NetworkArgs(
        batch, num_steps, num_neuron, num_input, options.num_branch, operands.index.shape[1] // options.num_branch,
        operands.kappa_m.shape[1], len(options.widths), options.activation, options.output, options.surrogate,
    )  # fmt: skip
    args.lanes, args.input_scale = lanes, options.input_scale
    for index, setting in enumerate(options.settings):
        args.setting[index] = setting
    for index, width in enumerate(options.widths):
        args.width[index] = width
    return args


def _threads(synapses: int, most: int | None = None) -> int:
    """Threads for a pass over so many synapses, of all samples and steps."""
    return _library.threads_for(3.0 * synapses, most)


def _call(call: _library.Call, args: _library.NetworkArgs, like: Tensor) -> None:
    synapses = args.batch * args.num_steps * args.num_neuron * args.num_branch * args.num_synapse
    status = call(like.dtype == torch.float64, _threads(synapses), ctypes.byref(args))
    if status == 2:
        sources = f"{args.num_input} inputs, then {args.num_neuron} neurons"
        raise ValueError(f"index must be from 0 to {args.num_input + args.num_neuron - 1}: {sources}")
    if status:
        raise MemoryError(f"no memory for a layer of {args.num_neuron} neurons of {args.num_memory} memory units")
