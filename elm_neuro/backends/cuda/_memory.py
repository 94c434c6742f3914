"""The memory recurrence of a whole sequence as one kernel a direction."""

from __future__ import annotations

from functools import cache, lru_cache

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import num_bytes
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._driver import Queue, Run
from elm_neuro.backends.cuda._launch import Launch
from elm_neuro.backends.cuda._plans import Plan, Shape, choose, per_vector_bytes

_STRIDES = "up_row up_column up_neuron down_row down_column down_neuron"
_PACK_BYTES = num_bytes(f"{_STRIDES} up down packed")
_EXTENT = f"batch num_steps v_batch v_time v_neuron {_STRIDES}"
_FORWARD_BYTES = num_bytes(
    f"{_EXTENT} up down packed lengths kappa_b v f_0 m_0 bias layer_bias kappa gain memory tanhs hidden m_last"
)
_BACKWARD_BYTES = num_bytes(
    f"{_EXTENT} up down packed lengths kappa_b m_0 kappa gain memory tanhs hidden grad_memory grad_m_last dq dz "
    "dz_first dv post grad_f_0 grad_m_0 sums"
)


class Recurrence:
    """All steps in one direction, for sizes that are settled.

    Args:
        kernel: the compiled layout, of the direction.
        batch: number of samples.
        num_steps: of the sequence.
        num_neuron: of the population, 1 where there is none.
        w1_row: inputs of the first layer, of which the memory's are the last.

    Attributes:
        num_packed: numbers of the room for a copy of the weights in the order of the threads; 0 for kernels that need
            none.
        kernels: what has to be compiled for it.

    A call takes the addresses of w1, ([num_neuron,] first, w1_row), of w2, ([num_neuron,] num_memory, first), or none
    without hidden layers, and of that room; then those of ``struct Forward`` or ``struct Backward`` of memory.cuh from
    `lengths` on. What arrives, and its gradient, is (batch, time, num_neuron, first), contiguous as all else is.
    """

    def __init__(self, kernel: Kernel, batch: int, num_steps: int, num_neuron: int, w1_row: int) -> None:
        plan, shape, program = kernel.plan, kernel.plan.shape, kernel.program
        first, num_memory, self._backward = shape.first, shape.num_memory, plan.backward
        itemsize = per_vector_bytes(shape)
        self._to_memory = (w1_row - num_memory) * itemsize  # where the memory's columns begin
        of_m, of_2 = (w1_row, 1, first * w1_row), (first, 1, num_memory * first)
        self._deep = shape.num_layers == 1
        up, down = of_m, of_2 if self._deep else (0, 0, 0)
        if plan.backward:  # the transposed matrices, in the other order
            up, down = ((1, *of_2[::2]), (1, *of_m[::2])) if self._deep else ((1, *of_m[::2]), down)
        strides = (*up, *down)
        self.num_packed = num_neuron * kernel.packed_vectors * kernel.threads * (16 // itemsize)
        grid = kernel.packed_vectors, num_neuron
        self._pack = Launch(program, "elm_pack", grid, kernel.threads, _PACK_BYTES, strides)
        name, size = ("elm_backward", _BACKWARD_BYTES) if plan.backward else ("elm_forward", _FORWARD_BYTES)
        numbers = (batch, num_steps, num_steps * num_neuron * first, num_neuron * first, first, *strides)
        grid = -(-batch // kernel.samples), num_neuron
        self._run = Launch(program, name, grid, kernel.threads, size, numbers, kernel.shared_bytes)
        self.kernels = [*self._run.kernels, *self._pack.kernels]

    def on(self, queue: Queue) -> Run:
        """What runs it on a queue, by the addresses of a call."""
        pack = self._pack.on(queue) if self._pack.runs else None
        run, to_memory, exchanged = self._run.on(queue), self._to_memory, self._backward and self._deep

        def run_all(w1: int, w2: int, packed: int, *fields: int) -> None:
            up, down = (w2, w1 + to_memory) if exchanged else (w1 + to_memory, w2)
            if pack is not None:
                pack(up, down, packed)
            run(up, down, packed, *fields)

        return run_all


class Kernel:
    """A compiled layout."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.program = program(plan)
        self.threads, self.samples, self.shared_bytes = plan.threads, plan.samples, plan.shared_bytes
        self.packed_vectors = plan.packed_vectors if plan.is_packed else 0


@cache
def program(plan: Plan) -> Program:
    """The source that a layout is compiled from."""
    bytes_of = (
        ("ELM_BYTES_MATRICES", _PACK_BYTES),
        ("ELM_BYTES_FORWARD", _FORWARD_BYTES),
        ("ELM_BYTES_BACKWARD", _BACKWARD_BYTES),
    )
    return Program("memory.cuh", (*plan.macros().items(), *bytes_of))


@lru_cache(maxsize=256)
def kernel_for(
    num_memory: int,
    first: int,
    deep: bool,
    silu: bool,
    double: bool,
    batch: int,
    num_neuron: int,
    device: int,
    backward: bool,
) -> Kernel:
    """The layout that is fastest for these sizes on a device."""
    shape = Shape(num_memory, first, int(deep), silu, double)
    return Kernel(choose(shape, _driver.launcher().device(device), batch, num_neuron, backward=backward))
