"""The kernels' pass over a sequence of a layer of ELM neurons, and its backward pass with the products that follow it:
``cuda/network.cuh`` and ``cuda/network_cluster.cuh`` say what they compute.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.backends.cuda import _network, _network_cluster
from elm_neuro.backends.cuda._network import MAX_LAYERS, Block, Sizes, Wiring
from elm_neuro.backends.cuda._network_cluster import Cluster
from elm_neuro.backends.cuda._surrogates import slope_words
from elm_neuro.backends.network._kernels import KERNEL_ACTIVATIONS, KERNEL_OUTPUTS
from elm_neuro.backends.parts._surrogates import KERNEL_SURROGATES, in_numbers, of_numbers
from elm_neuro.backends.parts._twice import differentiable_once, saved_of
from elm_neuro.functional import NetworkParams, NetworkRule
from elm_neuro.functional._network import NETWORK_ACTIVATIONS


class Options(NamedTuple):
    """How a pass runs, but for its sizes."""

    num_branch: int
    widths: tuple[int, ...]  # of the MLPs' layers
    activation: str
    output: str
    surrogate: tuple[int, tuple[float, ...]] | None  # of spikes, in numbers

    @classmethod
    def of(cls, params: NetworkParams, rule: NetworkRule) -> Options:
        surrogate = in_numbers(rule.surrogate) if rule.output == "spike" else None
        widths = tuple([bias.shape[1] for bias in params.mlp_bias])
        return cls(params.num_branch, widths, rule.activation, rule.output, surrogate)


@lru_cache(maxsize=256)
def _rule(options: Options) -> NetworkRule:
    rule = NetworkRule(options.activation, options.output)
    return rule if options.surrogate is None else replace(rule, surrogate=of_numbers(*options.surrogate))


def sizes_of(
    options: Options, kappa_m: Tensor, kappa_b: Tensor | None, kappa_r: Tensor | None, *, reads_layer: bool
) -> Sizes:
    """A layer as the kernels see it."""
    kappas = kappa_b is not None, kappa_r is not None
    return Sizes(kappa_m.shape[0], options.num_branch, kappa_m.shape[1], options.widths, reads_layer, *kappas)


class Plan(NamedTuple):
    """How a pass of a size runs."""

    num_steps: int
    sizes: Sizes
    wiring: Wiring | None
    rule: NetworkRule
    forward: Block
    backward: Block
    clusters: tuple[Cluster, Cluster] | None  # forward and backward, where clusters hold the layer: in place of blocks

    @classmethod
    def of(cls, options: Options, operands: Operands, num_input: int) -> Plan:
        """Of such a layer with this many inputs."""
        wiring = _network.wiring(operands.index, num_input, options.num_branch)
        kappas = operands.kappa_m, operands.kappa_b, operands.kappa_r
        sizes = sizes_of(options, *kappas, reads_layer=wiring is not None)
        blocks, clusters = _network.blocks(sizes, operands.bias), _network_cluster.clusters(sizes, operands.bias)
        return cls(operands.from_input.shape[1], sizes, wiring, _rule(options), *blocks, clusters)


class Operands(NamedTuple):
    """The tensors of a pass but for the MLPs' layers."""

    index: Tensor  # type: ignore[assignment]  # as in NetworkParams; a tuple's method
    lengths: Tensor | None  # (batch,), int64
    recurrent_mask: Tensor | None  # (batch, num_neuron)
    w_s: Tensor  # (num_neuron, num_branch * num_synapse), with the input's scale
    from_input: Tensor  # (batch, time, num_neuron * rows); the fields from here on are differentiated
    of_neurons: Tensor | None  # (num_neuron, num_neuron * rows): stands for what the pass reads of the layer
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

    def laid_out(self) -> Operands:
        """As the kernels read them."""
        return Operands._make(_whole(self))


FIRST_DIFFERENTIATED = Operands._fields.index("from_input")


class Kept(NamedTuple):
    """What the backward pass reads of every step, (batch, time, num_neuron, ...); None where it is not needed."""

    b: Tensor | None  # (..., num_branch): traces
    sums: Tensor | None  # (..., hidden): of the hidden layers, before their activation
    tanh: Tensor | None  # (..., num_memory)
    memory: Tensor | None  # (..., num_memory)
    q: Tensor | None  # (...): what the output is of
    r: Tensor | None  # (...)

    @classmethod
    def room(cls, sizes: Sizes, output: str, record: Tensor, *, padded: bool) -> Kept:
        """Tensors to be filled; nothing is written past a sample's end, where zeros have to stand."""
        make = record.new_zeros if padded else record.new_empty

        def each(needed: bool, *size: int) -> Tensor | None:
            return make(*record.shape, *size) if needed else None

        return cls(
            each(sizes.trace, sizes.num_branch), each(sizes.hidden > 0, sizes.hidden), each(True, sizes.num_memory),
            each(True, sizes.num_memory), each(output != "identity"), each(sizes.high_pass),
        )  # fmt: skip


NO_KEPT = Kept(*[None] * len(Kept._fields))


def run(operands: Operands, layers: tuple[Tensor, ...], options: Options, num_input: int) -> tuple[Any, ...]:
    """Activity, summed change, and a, b, m and r after each sample's last step, None for those that the operands have
    not; `layers`: weights, then biases.
    """
    plan = Plan.of(options, operands, num_input)
    if plan.wiring is None:
        operands = operands._replace(of_neurons=None)
    if torch.is_grad_enabled():
        if plan.clusters is None:
            _network.expect_backward(operands.bias)
        else:
            _network_cluster.expect_backward(plan.sizes, plan.clusters[1], operands.bias)
    found: tuple[Any, ...] = _Pass.apply(plan, *operands, *layers)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return found


def _whole(tensors: Any) -> tuple[Any, ...]:
    return tuple([None if one is None else one.detach().contiguous() for one in tensors])


class _Pass(Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        operands = Operands._make(tensors[: len(Operands._fields)]).laid_out()
        layers = _whole(tensors[len(Operands._fields) :])
        a, *outputs, kept = forward(operands, layers, plan, save=any(ctx.needs_input_grad))
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        of_neurons = None if plan.clusters is None else operands.of_neurons
        read = operands._replace(from_input=None, of_neurons=of_neurons)  # type: ignore[arg-type]
        ctx.save_for_backward(a, *kept, *read, *layers[: len(layers) // 2])
        return a, *outputs

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        a, *rest = saved_of(ctx)
        kept, rest = Kept._make(rest[: len(Kept._fields)]), rest[len(Kept._fields) :]
        operands, weights = Operands._make(rest[: len(Operands._fields)]), rest[len(Operands._fields) :]
        return (None,) * (1 + FIRST_DIFFERENTIATED) + backward(operands, weights, ctx.plan, a, kept, grads)


def forward(operands: Operands, layers: tuple[Any, ...], plan: Plan, *, save: bool) -> tuple[Any, ...]:
    """Activity, change, state and what the backward pass reads, of operands and layers that are laid out."""
    weights, biases = _in_halves(layers)
    (batch, num_steps, _), num_neuron = operands.from_input.shape, plan.sizes.num_neuron
    a, kept = operands.bias.new_empty(batch, num_steps, num_neuron), NO_KEPT
    if save:
        kept = Kept.room(plan.sizes, plan.rule.output, a, padded=operands.lengths is not None)
    starts = (operands.a_0, operands.b_0, operands.m_0, operands.r_0)
    after = [None if part is None else torch.empty_like(part) for part in starts]
    change = torch.empty_like(operands.a_0)
    if plan.clusters is not None:
        args = _network_cluster.FORWARD(
            *_cluster(plan, plan.clusters[0], operands, weights), operands.from_input,
            biases[1] if plan.sizes.hidden else None, *_without_trace(starts), a, change, *_without_trace(after),
            *kept[1:],
        )  # fmt: skip
        _network_cluster.launch("elm_network_cluster", plan.sizes, plan.clusters[0], batch, args, a)
    else:
        if not plan.sizes.trace:  # the first came with what the inputs add
            biases = (None, *biases[1:])
        layer = _layer(plan, plan.forward, operands, [weight.mT.contiguous() for weight in weights])
        args = _network.FORWARD(
            *layer, *_slices(plan), operands.from_input, *_padded(biases), *starts, a, change, *after, *kept
        )  # fmt: skip
        _network.launch("elm_network", plan.forward, batch, args, a)
    return a, change, *after, kept


def backward(
    operands: Operands, weights: Any, plan: Plan, a: Tensor, kept: Kept, grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the operands from `from_input` on, then of the layers."""
    given = [None if grad is None else grad.contiguous() for grad in grads]
    starts = (operands.a_0, operands.b_0, operands.m_0, operands.r_0)
    of_starts = [None if part is None else torch.empty_like(part) for part in starts]
    surrogate: Any = plan.rule.surrogate
    slope: tuple[int, ...] = (0,) * 6
    if plan.rule.output == "spike":
        slope = (KERNEL_SURROGATES[type(surrogate)], *slope_words(surrogate))
    told = a, kept, operands, weights, given, of_starts, slope
    if plan.clusters is None:
        rows, own, of_layers = _through_blocks(plan, *told)
    else:
        rows, own, of_layers = _through_clusters(plan, plan.clusters[1], *told)
    from_input, of_neurons = _of_sources(plan, operands, a, rows)
    return from_input, of_neurons, *own, *of_starts, *of_layers


Gradients: TypeAlias = tuple[Tensor | None, ...]


def _through_clusters(
    plan: Plan,
    how: Cluster,
    a: Tensor,
    kept: Kept,
    operands: Operands,
    weights: Any,
    given: Any,
    of_starts: Any,
    slope: Any,
) -> tuple[Tensor, Gradients, Gradients]:
    """As :func:`_through_blocks`, where clusters hold the layer."""
    sizes, batch = plan.sizes, a.shape[0]
    rows = a.new_empty(*a.shape, sizes.widths[0])
    shapes = _network_cluster.parameters(sizes)
    numbers = [prod(shape) for shape in shapes]
    grads = a.new_empty(batch, sum(numbers))
    args = _network_cluster.BACKWARD(
        *_cluster(plan, how, operands, weights), operands.m_0, operands.r_0, *kept[1:],
        *_without_trace(given, 3), rows, *_without_trace(of_starts), grads, *slope,
    )  # fmt: skip
    _network_cluster.launch("elm_network_cluster_backward", sizes, how, batch, args, a)
    parts = [part.view(shape) for part, shape in zip(grads.sum(0).split(numbers), shapes, strict=True)]
    w_y, kappa_m, gain, bias, kappa_r, of_memory, *of_last = parts
    of_first = torch.zeros_like(weights[0])
    of_first[..., sizes.num_branch :] = of_memory
    own = w_y, bias, kappa_m, gain, None, kappa_r if sizes.high_pass else None
    return rows, own, (of_first, *of_last[:1], None, *of_last[1:])


def _through_blocks(
    plan: Plan, a: Tensor, kept: Kept, operands: Operands, weights: Any, given: Any, of_starts: Any, slope: Any
) -> tuple[Tensor, Gradients, Gradients]:
    """The launch and the products after it: gradients of the sums that sources add to, (batch, time, num_neuron, ...),
    of the parameters from `w_y` to `kappa_r` as in :class:`Operands`, and of the MLPs' weights, then of their biases.
    """
    sizes, batch = plan.sizes, a.shape[0]
    grad_sums = a.new_empty(*a.shape, sizes.hidden + sizes.num_memory)
    grad_b = a.new_empty(*a.shape, sizes.num_branch) if sizes.trace else None
    own = (operands.w_y, operands.kappa_m, operands.gain, operands.bias, operands.kappa_b, operands.kappa_r)
    sums = [None if one is None else one.new_empty(batch, *one.shape) for one in own]
    starts = (operands.b_0, operands.m_0, operands.r_0)
    layer = _layer(plan, plan.backward, operands, weights)  # holds what is made for the launch
    args = _network.BACKWARD(*layer, *starts, *kept, *given, grad_sums, grad_b, *of_starts, *sums, *slope)
    _network.launch("elm_network_backward", plan.backward, batch, args, a)
    w_y, kappa_m, gain, bias, kappa_b, kappa_r = (None if one is None else one.sum(0) for one in sums)
    rows = grad_sums[..., : sizes.widths[0]] if grad_b is None else grad_b
    of_layers = _of_layers(plan, operands, kept, grad_sums, weights)
    return rows, (w_y, bias, kappa_m, gain, kappa_b, kappa_r), of_layers


def _in_halves(layers: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """Weights and biases of the MLPs."""
    return layers[: len(layers) // 2], layers[len(layers) // 2 :]


def _padded(values: Any) -> tuple[Any, ...]:
    """`values` of the layers that there are, for as many as a kernel knows."""
    return (*values, *(0,) * (MAX_LAYERS - len(values)))


def _slices(plan: Plan) -> tuple[Any, ...]:
    """Number of slices, and of each lane its branch and synapses."""
    if plan.wiring is None:
        return 0, None, None
    slices = plan.wiring.slices
    return slices.begin.shape[0] - 1, slices.branch, slices.synapses


def _layer(plan: Plan, how: Block, operands: Operands, weights: Any) -> tuple[Any, ...]:
    """What both directions are told of the layer: the fields of network.cuh's Layer."""
    sizes, wiring = plan.sizes, plan.wiring
    first = other = w_s = None
    if wiring is not None:
        first, other, place = wiring.sources
        if how is plan.forward:
            first, _, _, other, place = wiring.slices
        w_s = operands.w_s.flatten()[place]
    return (
        plan.num_steps, sizes.num_neuron, sizes.num_branch, sizes.num_memory, len(sizes.widths), sizes.hidden,
        KERNEL_ACTIVATIONS[plan.rule.activation], KERNEL_OUTPUTS[plan.rule.output], max(sizes.widths), how.lanes,
        how.tile, *_padded(how.resident), *_padded(sizes.widths), *_padded(weights), operands.lengths,
        operands.recurrent_mask, operands.w_y, operands.bias, operands.kappa_m, operands.gain, operands.kappa_b,
        operands.kappa_r, first, other, w_s,
    )  # fmt: skip


def _cluster(plan: Plan, how: Cluster, operands: Operands, weights: Any) -> tuple[Any, ...]:
    """The same for clusters: the fields of network_cluster.cuh's ClusterLayer."""
    sizes, rule = plan.sizes, plan.rule
    return (
        plan.num_steps, sizes.num_neuron, sizes.num_branch, KERNEL_ACTIVATIONS[rule.activation],
        KERNEL_OUTPUTS[rule.output], how.tile, how.ranks, operands.lengths, operands.recurrent_mask,
        operands.of_neurons, weights[0], weights[1] if sizes.hidden else None, operands.w_y, operands.bias,
        operands.kappa_m, operands.gain, operands.kappa_r,
    )  # fmt: skip


def _without_trace(parts: Any, place: int = 1) -> tuple[Any, ...]:
    """`parts` but for that of the trace, which a layer in clusters has not."""
    return (*parts[:place], *parts[place + 1 :])


def _before(start: Tensor, record: Tensor) -> Tensor:
    """What a record, (batch, time, ...), held before each step."""
    return torch.cat([start.unsqueeze(1), record[:, :-1]], 1)


def _of_sources(plan: Plan, operands: Operands, a: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradients of what the inputs add, and of the neurons' half of the map; `rows`: of the sums that sources add to,
    (batch, time, num_neuron, ...).
    """
    rows = rows.flatten(2)
    if plan.wiring is None:
        return rows, None
    read = _before(operands.a_0, a)
    if operands.recurrent_mask is not None:
        read = read * operands.recurrent_mask.unsqueeze(1)
    return rows, read.flatten(0, 1).t() @ rows.flatten(0, 1)


def _of_layers(
    plan: Plan, operands: Operands, kept: Kept, grad_sums: Tensor, weights: Any
) -> tuple[Tensor | None, ...]:
    """Gradients of the MLPs' weights, then of their biases."""
    sizes, activation = plan.sizes, NETWORK_ACTIVATIONS[plan.rule.activation]
    of_weights: list[Tensor] = []
    of_biases: list[Tensor | None] = []
    begin = read = 0
    for layer, width in enumerate(sizes.widths):
        of_layer = grad_sums[..., begin : begin + width]
        if layer:
            of_weights.append(_product(of_layer, activation(kept.sums[..., begin - read : begin])))  # type: ignore[index]
        else:  # without traces its columns of branches are in the map of the sources, and so is its bias
            of_weight = torch.zeros_like(weights[0])
            memory = _product(of_layer, _before(operands.m_0, kept.memory))  # type: ignore[arg-type]
            of_weight[..., sizes.num_branch :] = memory * operands.kappa_m.unsqueeze(1)
            if kept.b is not None:
                of_weight[..., : sizes.num_branch] = _product(of_layer, kept.b)
            of_weights.append(of_weight)
        of_biases.append(of_layer.sum((0, 1)) if layer or sizes.trace else None)
        begin, read = begin + width, width
    return *of_weights, *of_biases


def _product(grad: Tensor, x: Tensor) -> Tensor:
    """Sum over all steps of the products of each neuron's `grad`, (batch, time, num_neuron, out), with its `x`, (...,
    in): (num_neuron, out, in).
    """
    return torch.bmm(grad.flatten(0, 1).permute(1, 2, 0), x.flatten(0, 1).transpose(0, 1))
