"""All of a pass that its sizes decide, found once for each: its kernels with their grids and numbers, and where what is
handed from one to the next lies in one buffer a direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.cuda import _driver, _frames, _input, _readout, _weights
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._driver import Run
from elm_neuro.backends.cuda._launch import Launch, nothing
from elm_neuro.backends.cuda._memory import Recurrence, kernel_for
from elm_neuro.backends.cuda._room import Room
from elm_neuro.backends.elm._effective import constants_of_gpu
from elm_neuro.backends.elm._learned import Timescales

MAX_OUTPUT = 8  # of a readout with a kernel of its own; beyond them cuBLAS
MAX_WORK = 2**24  # multiply-adds of a product over all steps; beyond them cuBLAS
MAX_GROUPS = 32  # of samples, whose products over their steps are computed side by side
ENOUGH_GROUPS = 132  # with the neurons of a population: as many as a large GPU has multiprocessors
UNREAD = {"grad_memory": 0, "product_y": 0}  # of a readout that has no gradient
INTEGRATED, EVENTS, FRAMES, BYTES = "integrated", "events", "frames", "bytes"  # how the input arrives


class Form(NamedTuple):
    """What a pass looks like; shapes are those of its operands."""

    dtype: torch.dtype
    device: torch.device
    arrives: str
    batch: int
    num_steps: int
    num_input: int
    own_input: bool  # each neuron of a population has frames of its own
    w_s: torch.Size | None
    routing: torch.Size | None
    w1: torch.Size
    kappa: torch.Size
    w_y: torch.Size
    deep: bool  # whether there is a hidden layer
    silu: bool
    rounds: bool  # whether torch may round the factors of float32 products, to TF32
    lowered: torch.dtype | None  # of the product with frames, under autocast
    timescales: Timescales | None  # by which what a neuron learns becomes effective; None: it is already


class Kept(NamedTuple):
    """Numbers, or addresses, of what the backward pass reads of the forward pass."""

    memory: int  # (num_neuron, batch, time, num_memory)
    total: int  # (batch, [num_neuron,] num_input): the input, discounted to the end of each sample
    w_s: int  # what is effective of what is learned, in the shapes of its operands
    kappa: int
    gain: int
    kappa_b: int
    tanhs: int  # shape of memory
    hidden: int  # (num_neuron, batch, time, first); with silu what it takes, else what relu gives

    @classmethod
    def of(
        cls,
        num_neuron: int,
        batch: int,
        num_steps: int,
        num_memory: int,
        first: int,
        num_total: int,
        num_w_s: int = 0,
        *,
        save: bool,
    ) -> Kept:
        """Without `save` there is only what the forward pass itself reads.

        Args:
            num_neuron: of the population.
            batch: number of samples.
            num_steps: of the sequence.
            num_memory: of a neuron.
            first: outputs of the first layer, 0 where there is none after it.
            num_total: entries of a sample's sum.
            num_w_s: synapses, where they are learned; 0: everything is effective already.
            save: whether there will be a backward pass.
        """
        of_memory = num_neuron * batch * num_steps * num_memory
        kappa = num_neuron * num_memory if num_w_s else 0
        tanhs, hidden = (of_memory, num_neuron * batch * num_steps * first) if save else (0, 0)
        return cls(of_memory, batch * num_total, num_w_s, kappa, kappa, min(num_w_s, 1), tanhs, hidden)


class Passing(NamedTuple):
    """Numbers, or addresses, of what nobody reads after the forward pass."""

    table: int  # what an input adds to the first layer's outputs
    v: int  # what arrives there, (batch, time, num_neuron, first)


class Flows(NamedTuple):
    """Numbers, or addresses, of what flows back through the steps, and what of it is to be added up."""

    grad_memory: int  # shape of memory
    dq: int  # of what the tanh takes, shape of memory; without hidden layers that is dz
    dz: int  # of what the first layer gives, one step later: beside the memory it came from; 0 in the last step
    post: int  # shape of dz: what silu gave
    sums: int  # (num_neuron, batch, 3 num_memory + first): over time, of kappa's, gain's, b2's and b1's gradient
    product_m: int  # (num_neuron * group, first, num_memory): of w1's memory half
    product_h: int  # (num_neuron * group, num_memory, first): of w2
    product_y: int  # (num_neuron * group, output, num_memory + 1): of w_y and b_y
    packed: int  # room for weights in the order of the threads
    dv: int  # of what arrives, (batch, time, num_neuron, first), and the table's parts: where kernels alone read them
    grad_table: int


class Runs(NamedTuple):
    """Kernels of a forward pass on a queue; those that it has no use for do nothing."""

    table: Run
    discounted_sum: Run
    product: Run
    gathering: Run
    branch_traces: Run
    recurrence: Run
    readout: Run


class BackwardRuns(NamedTuple):
    """Kernels of a backward pass on a queue; those that it has no use for do nothing."""

    readout: Run
    recurrence: Run
    outer: Run
    of_table: Run
    gradients: tuple[Run, Run]  # of a pass whose readout has no gradient, and of one whose has


class Plan:
    """The forward pass of a form, and what both directions have in common."""

    def __init__(self, form: Form) -> None:
        self.form, dtype, batch, num_steps = form, form.dtype, form.batch, form.num_steps
        self._on: dict[_driver.Queue, Runs] = {}
        self.neurons = form.kappa[:-1]
        self.sizes = sizes = _weights.Sizes.of(
            self.neurons, form.w_s, form.routing, form.w1, form.num_input, own_input=form.own_input
        )
        self.num_neuron, self.first, self.num_memory = sizes.num_neuron, sizes.first, form.kappa[-1]
        self.num_row, self.num_output = batch * num_steps, form.w_y[-2]
        num_total = (sizes.num_neuron if form.own_input else 1) * sizes.num_input
        self.strides_of_total = num_total, form.num_input if form.own_input else 0
        hidden = sizes.first if form.deep else 0
        self.learning = _weights.Learning()
        if form.timescales is not None and form.w_s is not None:
            self.learning = _weights.Learning.of(form.w_s, form.kappa, (), constants_of_gpu(form.timescales))
        extent = sizes.num_neuron, batch, num_steps, self.num_memory, hidden, num_total, self.learning.num_w_s
        self.kept = tuple([Room(Kept.of(*extent, save=save), dtype.itemsize) for save in (False, True)])
        of_bytes = form.arrives == BYTES
        self.discounted_sum = _frames.discounted_sum(dtype, batch, num_steps, num_total, of_bytes=of_bytes)
        width, num_table = (self.first, self.num_neuron) if form.own_input else (self.num_neuron * self.first, 1)
        index = form.device.index or 0
        self.sizes_of_frames = _frames.Sizes(self.num_row, form.num_input, width, num_table, of_bytes, index)
        self.product = self.product_of_frames(of_inputs=False)
        self.gathering = _input.gathering(dtype, self.num_row, width) if form.arrives == EVENTS else None
        self.arrives_by_kernels = self.product is not None or self.gathering is not None
        self.table = _weights.first_table(dtype, sizes, self.learning)
        self.branch_traces = _weights.branch_traces(dtype, sizes, batch, num_steps, self.strides_of_total)
        self.recurrence = self.recurrence_of(backward=False)
        self.own_readout = self.num_output <= MAX_OUTPUT
        self.sizes_of_readout = batch, num_steps, sizes.num_neuron, self.num_output, self.num_memory
        self.readout = _readout.readout(dtype, self.sizes_of_readout)
        own = form.own_input and sizes.num_neuron > 1
        self.shape_of_table = (
            (sizes.num_neuron, form.num_input, sizes.first) if own else (form.num_input, sizes.num_neuron * sizes.first)
        )
        rows = self.num_row * self.num_neuron * self.first
        self.passing = Room(Passing(math.prod(self.shape_of_table), rows), dtype.itemsize)
        self.shape_of_b = (0,) if form.w_s is None else (batch, *form.w_s[:-1])
        self.shape_of_m, self.shape_of_y = (batch, *form.kappa), (batch, num_steps, *form.w_y[:-1])
        parts: list[Launch | Recurrence] = [self.recurrence, self.table, self.branch_traces]
        parts += [self.readout] if self.own_readout else []
        parts += [self.discounted_sum] if form.arrives in (FRAMES, BYTES) else []
        parts += [] if self.product is None else [self.product.launch]
        arranging = []
        if self.gathering is not None:
            parts, arranging = [*parts, self.gathering], [(_input.program(dtype), "elm_arrange")]
        _expect(self, parts, arranging)

    def on(self, queue: _driver.Queue) -> Runs:
        """Its kernels on a queue."""
        found = self._on.get(queue)
        if found is None:
            takes_frames = self.form.arrives in (FRAMES, BYTES)
            found = self._on[queue] = Runs(
                self.table.on(queue),
                self.discounted_sum.on(queue) if takes_frames else nothing,
                nothing if self.product is None else self.product.launch.on(queue),
                nothing if self.gathering is None else self.gathering.on(queue),
                self.branch_traces.on(queue),
                self.recurrence.on(queue),
                self.readout.on(queue) if self.own_readout else nothing,
            )
        return found

    def product_of_frames(self, *, of_inputs: bool) -> _frames.Settled | None:
        """Of frames and the table or, `of_inputs`, the table's gradient; None where cuBLAS computes it."""
        form = self.form
        if form.arrives not in (FRAMES, BYTES):
            return None
        product = _frames.settled(form.dtype, self.sizes_of_frames, of_inputs=of_inputs)
        takes_numbers = product.pays and not form.rounds and form.lowered is None
        return product if form.arrives == BYTES or takes_numbers else None

    def recurrence_of(self, *, backward: bool) -> Recurrence:
        """The steps in one direction."""
        form, device = self.form, self.form.device.index or 0
        sizes = self.num_memory, self.first, form.deep, form.silu and form.deep, form.dtype == torch.float64
        kernel = kernel_for(*sizes, form.batch, self.num_neuron, device, backward)
        return Recurrence(kernel, form.batch, form.num_steps, self.num_neuron, form.w1[-1])

    def memory(self, kept: Tensor, *, save: bool) -> Tensor:
        """That of every step, in the buffer of a pass."""
        extent = self.num_neuron, self.form.batch, self.form.num_steps, self.num_memory
        return self.kept[save].part(kept, "memory", *extent)

    @cached_property
    def backward(self) -> BackwardPlan:
        """The other direction, for who asks."""
        return BackwardPlan(self)

    def expect_backward(self) -> None:
        """Settle the other direction now: its kernels are compiled beside this one's."""
        _ = self.backward


class BackwardPlan:
    """The backward pass of a form.

    Attributes:
        takes_addresses: whether kernels alone read what arrives, if frames have no gradient.
        flows: where they do not, and where they do; each of a pass whose readout has no gradient, and of one whose has.
        gradients: the same.
    """

    def __init__(self, forward: Plan) -> None:
        form, sizes, dtype = forward.form, forward.sizes, forward.form.dtype
        num_memory, first, num_neuron = forward.num_memory, forward.first, forward.num_neuron
        num_row, num_output = forward.num_row, forward.num_output
        rows = num_neuron * num_row
        self.recurrence = forward.recurrence_of(backward=True)
        self.readout = _readout.readout_backward(dtype, forward.sizes_of_readout)
        self.of_table, self.num_part = _of_table(forward)
        self.takes_addresses = self.of_table is not None
        self.own_outer = rows * num_memory * first <= MAX_WORK
        self.outer = _weights.outer(dtype, num_neuron, num_row, num_memory, first)
        self.groups = _groups(num_neuron, form.batch)  # of a product by cuBLAS
        of_rows = _readout.num_parts(num_row)
        product = num_neuron * of_rows * first * num_memory if self.own_outer else 0
        own_readout = forward.own_readout
        flows = Flows(
            grad_memory=rows * num_memory if own_readout else 0,
            dq=rows * num_memory if form.deep else 0,
            dz=rows * first,
            post=rows * first if form.silu and form.deep else 0,
            sums=num_neuron * form.batch * (3 * num_memory + first),
            product_m=product,
            product_h=product if form.deep else 0,
            product_y=num_neuron * of_rows * num_output * (num_memory + 1) if own_readout else 0,
            packed=self.recurrence.num_packed,
            dv=0,
            grad_table=0,
        )
        of_table = {"dv": rows * first, "grad_table": self.num_part * math.prod(forward.shape_of_table)}
        self.flows = tuple(
            [
                tuple([Room(read._replace(**inside), dtype.itemsize) for read in (flows._replace(**UNREAD), flows)])
                for inside in ({}, of_table)
            ]
        )
        sums = _weights.Sums(
            self.num_part, of_rows if self.own_outer else self.groups,
            of_rows if own_readout else self.groups, num_memory, num_output, form.deep, own_readout,
        )  # fmt: skip
        unread_sums = sums._replace(num_readout=0, num_output=0)
        self.gradients = tuple(
            [
                _weights.gradients(dtype, sizes, form.batch, forward.strides_of_total, one, forward.learning)
                for one in (unread_sums, sums)
            ]
        )
        parts: list[Launch | Recurrence] = [self.recurrence, self.gradients[1]]
        parts += [self.outer] if self.own_outer else []
        parts += [self.readout] if own_readout else []
        parts += [] if self.of_table is None else [self.of_table]
        others = [(_input.program(dtype), "elm_gather_inputs")] if form.arrives == EVENTS else []
        _expect(forward, parts, others)
        self._on: dict[_driver.Queue, BackwardRuns] = {}
        self._own_readout = own_readout

    def on(self, queue: _driver.Queue) -> BackwardRuns:
        """Its kernels on a queue."""
        found = self._on.get(queue)
        if found is None:
            found = self._on[queue] = BackwardRuns(
                self.readout.on(queue) if self._own_readout else nothing,
                self.recurrence.on(queue),
                self.outer.on(queue) if self.own_outer else nothing,
                nothing if self.of_table is None else self.of_table.on(queue),
                (self.gradients[0].on(queue), self.gradients[1].on(queue)),
            )
        return found


@lru_cache(maxsize=256)
def plan(form: tuple[Any, ...]) -> Plan:
    """The plan of a :class:`Form`, or of its fields."""
    return Plan(Form._make(form))


def _expect(of: Plan, parts: Sequence[Launch | Recurrence], others: Sequence[tuple[Program, str]]) -> None:
    """Have the kernels of a direction compiled side by side: those of its parts, and others."""
    kernels = [kernel for part in parts for kernel in part.kernels]
    _driver.expect(of.form.device, *dict.fromkeys([*kernels, *others]))


def _of_table(of: Plan) -> tuple[Launch | None, int]:
    """The kernel that gives the table's gradient, None where torch has a part in it, and in how many parts it comes."""
    form, product = of.form, of.product_of_frames(of_inputs=True)
    if product is not None:
        return product.launch, product.num_part
    if form.arrives != EVENTS:
        return None, int(form.arrives == FRAMES)
    num_part = _input.num_parts(form.batch)
    if num_part < min(form.batch, _input.MAX_PARTS):  # they are added up by torch
        return None, num_part
    return _input.gathering_inputs(form.dtype, form.batch, form.num_input, num_part, of.num_neuron * of.first), num_part


def _groups(num_neuron: int, batch: int) -> int:
    most = MAX_GROUPS if num_neuron == 1 else max(1, min(MAX_GROUPS, ENOUGH_GROUPS // num_neuron))
    return max(group for group in range(1, min(most, batch) + 1) if batch % group == 0)
