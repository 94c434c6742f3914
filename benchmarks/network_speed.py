"""One update of a layer of ELM neurons at the published settings of SHD-Adding: its scan and its readout's, forward and
backward, with dropout's masks and both penalties, on one thread; beside the seconds that the authors' own step took.

    python benchmarks/network_speed.py [--backend native] [--density 0.08] [--repeats 5] [--device cpu]

Before anything is timed, outputs and gradients of a short sequence are held to the reference in double precision. The
floor is the time that a core takes for the multiply-adds that the equations ask for, every synapse counted whether
something arrives or not, as fast as fma_speed.cpp runs them in registers. Times are a core's, not the wall clock's.
With --device cuda they are the wall clock's up to where the GPU has done everything, of `--backend cuda` unless another
is named; there is no floor, and memory is the GPU's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from arguments import count
from fma import fma_speed
from neuron_speed import peak_above_start
from torch import Tensor

from elm_neuro.backends import network
from elm_neuro.backends.native import _library
from elm_neuro.functional import NetworkParams, NetworkRule

BATCH, NUM_STEPS, INPUT_SIZE, CLASSES, NUM_BRANCH, NUM_SYNAPSE, RECURRENT = 8, 1000, 700, 19, 30, 10, 0.25


class Row(NamedTuple):
    """A published setting and the seconds of the authors' update on one core."""

    num_neuron: int
    num_memory: int
    hidden: int
    theirs: float


ROWS = (Row(96, 5, 10, 3.9), Row(57, 9, 18, 2.6))
DEVICE = "cpu"
HIDDEN_RULE, READOUT_RULE = NetworkRule(input_scale=10.0), NetworkRule(output="identity", input_scale=10.0)


def drawn(
    num_input: int, num_neuron: int, num_memory: int, hidden: tuple[int, ...], recurrent: float, dtype: torch.dtype
) -> NetworkParams:
    """A layer as it is initialised, with the published wiring; v2's gain, time constants of 1 to 500 steps."""
    synapses = NUM_BRANCH * NUM_SYNAPSE
    outside = torch.rand(num_neuron, synapses) >= recurrent
    own = num_input + torch.randint(num_neuron, (num_neuron, synapses))
    index = torch.where(outside, torch.randint(num_input, (num_neuron, synapses)), own)
    widths = (NUM_BRANCH + num_memory, *hidden, num_memory)
    pairs = list(zip(widths, widths[1:], strict=False))

    def uniform(*shape: int, fan_in: int) -> Tensor:
        return ((2 * torch.rand(shape, dtype=dtype) - 1) / fan_in**0.5).requires_grad_()

    tau = torch.logspace(0, 2.7, num_memory, dtype=dtype).expand(num_neuron, -1)
    return NetworkParams(
        index=index,
        w_s=uniform(num_neuron, synapses, fan_in=NUM_SYNAPSE),
        mlp_weight=tuple(uniform(num_neuron, out, into, fan_in=into) for into, out in pairs),
        mlp_bias=tuple(uniform(num_neuron, out, fan_in=into) for into, out in pairs),
        w_y=uniform(num_neuron, num_memory, fan_in=num_memory),
        bias=torch.zeros(num_neuron, dtype=dtype, requires_grad=True),
        kappa_m=torch.exp(-1 / tau).contiguous(),
        gain=(1 - torch.exp(-5 / tau)).contiguous(),
        kappa_r=torch.full((num_neuron,), 0.8, dtype=dtype) if recurrent else None,
    )


class Update:
    """Hidden layer, readout and losses of one batch."""

    def __init__(self, row: Row, num_steps: int, density: float, dtype: torch.dtype, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.hidden = drawn(INPUT_SIZE, row.num_neuron, row.num_memory, (row.hidden,), RECURRENT, dtype)
        self.readout = drawn(row.num_neuron, CLASSES, 3, (), 0.0, dtype)
        self.x = (torch.rand(BATCH, num_steps, INPUT_SIZE) < density).to(dtype)
        self.target = torch.randint(CLASSES, (BATCH,))
        self.masks = [(torch.rand(BATCH, size) < 0.8).to(dtype) * 1.25 for size in (INPUT_SIZE, *2 * [row.num_neuron])]
        self.hidden, self.readout = (on_device(layer) for layer in (self.hidden, self.readout))
        self.x, self.target, self.masks = self.x.to(DEVICE), self.target.to(DEVICE), [m.to(DEVICE) for m in self.masks]
        self.leaves = [one for layer in (self.hidden, self.readout) for one in flat(layer) if one.requires_grad]

    def run(self, backend: str) -> list[Tensor]:
        """Logits and the gradients of cross entropy and penalties."""
        of_input, of_neurons, of_readout = self.masks
        record, _ = network.scan(
            self.x, self.hidden, None, HIDDEN_RULE, input_mask=of_input, recurrent_mask=of_neurons, backend=backend
        )
        read, _ = network.scan(record.a, self.readout, None, READOUT_RULE, input_mask=of_readout, backend=backend)
        logits = read.a[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, self.target, label_smoothing=0.01)
        loss = loss + 0.002 * (record.change / self.x.shape[1]).square().mean() + 0.2 * record.a.relu().mean()
        return [logits, *torch.autograd.grad(loss, self.leaves)]


def on_device(params: NetworkParams) -> NetworkParams:
    """The layer where it is to run; what learns there are leaves."""

    def moved(one: Tensor) -> Tensor:
        return one.detach().to(DEVICE).requires_grad_(one.requires_grad)

    parts = {
        name: tuple(map(moved, part)) if isinstance(part, tuple) else part if part is None else moved(part)
        for name, part in params._asdict().items()
    }
    return NetworkParams(**parts)


def flat(params: NetworkParams) -> list[Tensor]:
    return [*params.mlp_weight, *params.mlp_bias, *(one for one in params if isinstance(one, Tensor))]


def check(row: Row, density: float, backend: str) -> None:
    """Raises AssertionError where the backend's numbers are not the reference's."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        found, wanted = (Update(row, 17, density, dtype), Update(row, 17, density, torch.float64))
        for name in ("hidden", "readout"):  # the same numbers, drawn once
            for one, other in zip(flat(getattr(found, name)), flat(getattr(wanted, name)), strict=True):
                other.data = one.data.to(other.dtype) if other.is_floating_point() else one.data
        wanted.x, wanted.masks, wanted.target = found.x.double(), [m.double() for m in found.masks], found.target
        for one, other in zip(found.run(backend), wanted.run("reference"), strict=True):
            largest = other.abs().max().clamp(min=1e-6)
            assert ((one - other).abs().max() / largest).item() < tolerance


def multiply_adds(row: Row) -> float:
    """Of one update: forward once, backward twice; kept sums are not computed again."""
    synapses = NUM_BRANCH * NUM_SYNAPSE
    hidden = (NUM_BRANCH + row.num_memory) * row.hidden + row.hidden * row.num_memory + 2 * row.num_memory
    own = row.num_neuron * (2 * synapses + RECURRENT * synapses + 3 * hidden)  # the input needs no gradient
    readout = CLASSES * 3 * (synapses + (NUM_BRANCH + 3) * 3 + 2 * 3)
    return float(BATCH * NUM_STEPS * (own + readout))


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of a core, or on a GPU of the wall clock."""
    if DEVICE == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def mebibytes_of(call: Callable[[], object]) -> float:
    """Peak memory of a call above what was there before."""
    if DEVICE == "cpu":
        return peak_above_start(call)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", help="native, or on a GPU cuda, unless another is named")
    parser.add_argument("--density", type=float, default=0.08, help="of ones in the input")
    parser.add_argument("--repeats", type=count, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    global DEVICE
    DEVICE = args.device
    if DEVICE == "cuda" and not torch.cuda.is_available():
        print("skipped: no GPU")
        return
    backend = args.backend or ("native" if DEVICE == "cpu" else "cuda")
    torch.set_num_threads(1)
    speed = fma_speed(_library.instruction_set()) if DEVICE == "cpu" else None
    print("neurons of units  update ms  authors' ms  times faster  floor ms  share of floor  peak MiB more")
    for row in ROWS:
        check(row, args.density, backend)
        update = Update(row, NUM_STEPS, args.density, torch.float32)
        memory = mebibytes_of(lambda: update.run(backend))  # noqa: B023  # called at once
        best = min(seconds_of(lambda: update.run(backend)) for _ in range(args.repeats))  # noqa: B023
        floor = 2 * multiply_adds(row) / speed if speed else float("nan")
        print(
            f"{row.num_neuron:7d} of {row.num_memory:<5d} {1e3 * best:10.1f} {1e3 * row.theirs:12.0f} "
            f"{row.theirs / best:13.1f} {1e3 * floor:9.1f} {floor / best:15.2f} {memory:13.0f}"
        )


if __name__ == "__main__":
    main()
