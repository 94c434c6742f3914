"""How the memory kernel is laid out on a device: threads, lanes and samples of a block, and where the weights stay.

Every layout gives the same numbers; the fastest by a count of cycles is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

REGISTERS = 65536  # of a multiprocessor, from compute capability 7.5 on
MAX_REGISTERS = 255  # of a thread
MAX_MEMORY = 1024
LATENCY_OF_STEP = 140.0  # cycles of a product that do not depend on its size: loads, barrier, what follows the sums
LATENCY_OF_EXCHANGE = 27.0  # of a round of exchanges between lanes
LATENCY_OF_FMA = 4.0


@dataclass(frozen=True)
class Device:
    """What a layout depends on."""

    multiprocessors: int
    shared_bytes: int  # that one block may have
    architecture: int  # 90 for compute capability 9.0


@dataclass(frozen=True)
class Shape:
    """The sizes of a neuron that a kernel is compiled for."""

    num_memory: int
    hidden: int  # width of the hidden layer; without one, num_memory
    num_layers: int  # hidden layers, 0 or 1
    silu: bool
    double: bool

    @property
    def first(self) -> int:
        """Outputs of the first layer."""
        return self.hidden if self.num_layers else self.num_memory


@dataclass(frozen=True)
class Half:
    """One of the two products of a step: (rows x columns) times a vector a sample."""

    rows: int
    columns: int
    lanes: int  # threads that share a row
    tile_rows: int  # of a thread
    tile_columns: int
    kept: int  # vectors of 16 bytes of a thread's weights in registers
    near: int  # in shared memory
    vectors: int  # of all its weights


@dataclass(frozen=True)
class Plan:
    """A layout of the kernel of one direction."""

    shape: Shape
    backward: bool
    threads: int
    samples: int
    depth: int  # steps that are loaded ahead
    up: Half
    down: Half | None  # None without hidden layers
    cycles: float  # of a step, estimated

    @property
    def packed_vectors(self) -> int:
        """Vectors of weights of each thread."""
        return self.up.vectors + (self.down.vectors if self.down else 0)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return _shared_bytes(self.shape, self.threads, self.samples, self.up, self.down)

    def macros(self) -> dict[str, str | int]:
        """What memory.cuh is compiled with."""
        down = self.down or Half(1, 1, 1, 1, 1, 0, 0, 0)
        shape = self.shape
        return {
            "ELM_REAL": "double" if shape.double else "float",
            "ELM_DOUBLE": int(shape.double),
            "ELM_BACKWARD": int(self.backward),
            "ELM_MEMORY": shape.num_memory,
            "ELM_HIDDEN": shape.hidden,
            "ELM_LAYERS": shape.num_layers,
            "ELM_SILU": int(shape.silu),
            "ELM_THREADS": self.threads,
            "ELM_SAMPLES": self.samples,
            "ELM_DEPTH": self.depth,
            "ELM_BLOCKS": 1,
            "ELM_LANES_UP": self.up.lanes,
            "ELM_KEPT_UP": self.up.kept,
            "ELM_NEAR_UP": self.up.near,
            "ELM_LANES_DOWN": down.lanes if self.down else self.up.lanes,
            "ELM_KEPT_DOWN": down.kept,
            "ELM_NEAR_DOWN": down.near,
        }


@lru_cache(maxsize=256)
def choose(shape: Shape, device: Device, batch: int, num_neuron: int, *, backward: bool) -> Plan:
    """The layout with the fewest estimated cycles for so many samples and neurons."""
    found = [
        plan
        for samples in (1, 2, 3, 4)
        if samples == 1 or (samples <= batch and batch * num_neuron > device.multiprocessors)
        for threads in (32, 64, 128, 256, 512)
        for plan in _layouts(shape, device, threads, samples, backward)
    ]
    return min(found, key=lambda plan: plan.cycles * _waves(plan, device, batch, num_neuron))


def _waves(plan: Plan, device: Device, batch: int, num_neuron: int) -> float:
    """How many blocks one multiprocessor works through, one after the other or side by side."""
    blocks = -(-batch // plan.samples) * num_neuron
    busy = -(-blocks // device.multiprocessors)
    warps = plan.threads // 32
    work = _work(plan) * warps / 4.0  # cycles for which one block needs the multiprocessor for itself
    side_by_side = max(
        1, min(busy, 16, 2 * device.shared_bytes // max(plan.shared_bytes, 1), 48 // warps if warps < 8 else 1)
    )
    return -(-busy // side_by_side) * max(1.0, work * side_by_side / plan.cycles)


def _work(plan: Plan) -> float:
    halves = [half for half in (plan.up, plan.down) if half]
    return sum(half.tile_rows * half.tile_columns * plan.samples * (2 if plan.shape.double else 1) for half in halves)


def _layouts(shape: Shape, device: Device, threads: int, samples: int, backward: bool) -> list[Plan]:
    plans = []
    for lanes_up in (1, 2, 4, 8, 16, 32):
        for lanes_down in (lanes_up, 2 * lanes_up) if shape.num_layers else (lanes_up,):
            if lanes_down > 32:
                continue
            plan = layout(shape, device, threads, samples, (lanes_up, lanes_down), backward=backward)
            if plan is not None:
                plans.append(plan)
    return plans


def layout(
    shape: Shape, device: Device, threads: int, samples: int, lanes: tuple[int, int], *, backward: bool
) -> Plan | None:
    """The layout with these threads, samples and lanes of the two products, or None where it would waste too much."""
    per_vector = 2 if shape.double else 4
    words = 2 if shape.double else 1  # registers of a number
    sizes = [(shape.first, shape.num_memory, lanes[0])]
    if shape.num_layers:
        sizes.append((shape.num_memory, shape.hidden, lanes[1]))
    tiles = [(-(-rows // (threads // per_row)), -(-columns // per_row)) for rows, columns, per_row in sizes]
    weights = [rows * columns for rows, columns in tiles]
    vectors = [-(-count // per_vector) for count in weights]
    depth = 4 if sum(weights) <= 100 else 2 if sum(weights) <= 150 else 1
    owned = [_owned(samples * rows, per_row) for (rows, _), (_, _, per_row) in zip(tiles, sizes, strict=True)]
    values = max(samples * rows for rows, _ in tiles)
    # what a thread needs beside its weights: counted from compiled kernels
    per_first, per_memory = (8 + depth, 12 + 3 * depth) if backward else (8 + depth, 10)
    state = 26 + owned[0] * per_first + owned[-1] * per_memory + max(values, 4) + 4 * samples + 6
    room = min(MAX_REGISTERS, REGISTERS // threads) - state * words
    kept = _split(vectors, max(0, room // (per_vector * words)))
    left = [count - own for count, own in zip(vectors, kept, strict=True)]
    operands = sum(
        samples * per_row * ((-(-columns // per_vector)) | 1) * per_vector
        for (_, columns), (_, _, per_row) in zip(tiles, sizes, strict=True)
    )
    if not shape.num_layers:
        operands *= 2
    spare = device.shared_bytes - 1024 - operands * per_vector_bytes(shape)
    if spare < 0:
        return None
    near = _split(left, spare // (16 * threads))
    halves = [
        Half(rows, columns, per_row, tile[0], tile[1], own, close, count)
        for (rows, columns, per_row), tile, own, close, count in zip(sizes, tiles, kept, near, vectors, strict=True)
    ]
    cycles = sum(_cycles(half, threads, samples, words) for half in halves)
    return Plan(shape, backward, threads, samples, depth, halves[0], halves[1] if shape.num_layers else None, cycles)


def per_vector_bytes(shape: Shape) -> int:
    """Bytes of a number."""
    return 8 if shape.double else 4


def _split(wanted: list[int], room: int) -> list[int]:
    """`room` shared out among those who want something, in proportion."""
    total = sum(wanted)
    if total <= room:
        return list(wanted)
    shares = [room * count // total for count in wanted]
    return shares


def _owned(values: int, lanes: int) -> int:
    while lanes > 1:
        values, lanes = -(-values // 2), lanes // 2
    return values


def _cycles(half: Half, threads: int, samples: int, words: int) -> float:
    """Cycles of one product: what the multiprocessor's units need, and what nothing can hide."""
    warps = threads / 32
    weights = half.tile_rows * half.tile_columns
    far = half.vectors - half.kept - half.near
    operands = -(-half.tile_columns // 4) * samples * words
    adds = weights * samples * words * max(warps / 4.0, 1.0)
    # few warps cannot keep enough loads on their way
    shared = max(4.0 * half.near * warps, 8.0 * half.near) + 2.0 * operands * warps
    cache = max(8.0 * far * warps, 60.0 * far)
    values, rounds, exchanged = samples * half.tile_rows, 0, 0
    lanes = half.lanes
    while lanes > 1:
        values, lanes = -(-values // 2), lanes // 2
        rounds += 1
        exchanged += values
    chain = (
        LATENCY_OF_FMA
        * weights
        / max(1, half.tile_rows * (4 if samples * half.tile_rows == 1 else 2 if samples * half.tile_rows <= 3 else 1))
    )
    return (
        LATENCY_OF_STEP
        + (20.0 if threads > 32 else 0.0)
        + max(adds + operands, shared, cache, chain)
        + LATENCY_OF_EXCHANGE * rounds
        + exchanged * words * warps
    )


def _shared_bytes(shape: Shape, threads: int, samples: int, up: Half, down: Half | None) -> int:
    per_vector = 2 if shape.double else 4
    widths = [half.lanes * ((-(-half.tile_columns // per_vector)) | 1) * per_vector for half in (up, down or up)]
    return (up.near + (down.near if down else 0)) * threads * 16 + samples * sum(widths) * per_vector_bytes(shape)
