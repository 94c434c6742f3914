"""How the memory kernel is laid out on a device: threads, lanes and samples of a block, and where the weights stay.

Every layout gives the same numbers; the fastest by a count of cycles is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

REGISTERS = 65536  # of a multiprocessor, from compute capability 7.5 on
MAX_REGISTERS = 255  # of a thread
MAX_MEMORY = 1024
MAX_NEURONS = 65535  # blocks of a grid in its second direction
MAX_COLUMNS = 256 * MAX_NEURONS  # of what is filtered or summed over time, by so many threads a block
SLOTS = 16  # blocks that are counted on side by side

# Cycles of a step, fitted to 110 layouts of num_memory 8 to 256 timed on an H100 (within a tenth for most).
STEP, STEP_OF_WARP = 365.0, 7.2  # loads, barriers, what follows the sums
BACKWARD, BACKWARD_OF_WARP, BACKWARD_TIGHT = (
    132.0,
    24.0,
    194.0,
)  # more backward; where registers do not reach, more still
SAMPLE, SAMPLE_OPERAND = 150.0, 2.0  # of each sample but the first, and of a vector of a warp that it multiplies
FMA = 0.98  # of a thread, where a scheduler has two warps; fewer wait for each other
NEAR, FAR, OPERAND = 2.8, 8.3, 1.55  # of a vector of a warp: weights in shared memory, in the cache, what is multiplied
ROUND, EXCHANGED = 6.8, 10.1  # of a round of exchanges between lanes, of a value in it
BESIDE, BESIDE_FMA = 30.0, 0.5  # of a warp and its products, for the other blocks on the multiprocessor


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
    registers: int  # of a thread, estimated
    cycles: float  # of a step, estimated

    @property
    def packed_vectors(self) -> int:
        """Vectors of weights of each thread."""
        return self.up.vectors + (self.down.vectors if self.down else 0)

    @property
    def is_packed(self) -> bool:
        """Whether threads read weights from the second-level cache in each step, and so from a copy in their order."""
        halves = [half for half in (self.up, self.down) if half]
        return any(half.vectors > half.kept + half.near for half in halves)

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
    return min(found, key=lambda plan: _waves(plan, device, batch, num_neuron))


def _waves(plan: Plan, device: Device, batch: int, num_neuron: int) -> float:
    """Cycles of a step in which a multiprocessor works through its blocks, side by side as far as they fit."""
    blocks = -(-batch // plan.samples) * num_neuron
    busy = -(-blocks // device.multiprocessors)
    shared = device.shared_bytes // max(plan.shared_bytes + 1024, 1)
    beside = max(1, min(busy, SLOTS, shared, REGISTERS // (plan.threads * plan.registers)))
    halves = [half for half in (plan.up, plan.down) if half]
    products = sum(half.tile_rows * half.tile_columns for half in halves) * plan.samples
    crowd = (beside - 1) * plan.threads / 32 * (BESIDE + BESIDE_FMA * products)
    return -(-busy // beside) * (plan.cycles + crowd)


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
    shape: Shape,
    device: Device,
    threads: int,
    samples: int,
    lanes: tuple[int, int],
    *,
    backward: bool,
    reserve: int = 0,
    depth: int | None = None,
) -> Plan | None:
    """The layout with these threads, samples and lanes of the two products, or None where shared memory does not hold
    its operands.

    Args:
        shape: the neuron's sizes.
        device: for which.
        threads: of a block.
        samples: of a block.
        lanes: threads that share a row, of each product.
        backward: the direction.
        reserve: registers of a thread left free beyond those counted.
        depth: steps loaded ahead; by default as many as the registers allow.
    """
    per_vector = 2 if shape.double else 4
    words = 2 if shape.double else 1  # registers of a number
    sizes = [(shape.first, shape.num_memory, lanes[0])]
    if shape.num_layers:
        sizes.append((shape.num_memory, shape.hidden, lanes[1]))
    tiles = [(-(-rows // (threads // per_row)), -(-columns // per_row)) for rows, columns, per_row in sizes]
    weights = [rows * columns for rows, columns in tiles]
    vectors = [-(-count // per_vector) for count in weights]
    depth = depth or (4 if sum(weights) <= 100 else 2 if sum(weights) <= 150 else 1)
    owned = [_owned(samples * rows, per_row) for (rows, _), (_, _, per_row) in zip(tiles, sizes, strict=True)]
    values = max(samples * rows for rows, _ in tiles)
    # what a thread needs beside its weights: counted from compiled kernels
    per_first, per_memory = (8 + depth, 12 + 3 * depth) if backward else (8 + depth, 10)
    state = 26 + owned[0] * per_first + owned[-1] * per_memory + max(values, 4) + 4 * samples + 6 + reserve
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
    registers = min(MAX_REGISTERS, state * words + sum(kept) * per_vector * words)
    cycles = _cycles(halves, threads, samples, words, backward=backward)
    down = halves[1] if shape.num_layers else None
    return Plan(shape, backward, threads, samples, depth, halves[0], down, registers, cycles)


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


def _cycles(halves: list[Half], threads: int, samples: int, words: int, *, backward: bool) -> float:
    """Cycles of a step of one block."""
    warps = threads / 32
    products = sum(half.tile_rows * half.tile_columns for half in halves) * samples * words
    operands = sum(-(-half.tile_columns // 4) for half in halves) * words
    near = sum(half.near for half in halves)
    far = sum(half.vectors - half.kept - half.near for half in halves)
    rounds = exchanged = 0
    for half in halves:
        values, lanes = samples * half.tile_rows, half.lanes
        while lanes > 1:
            values, lanes = -(-values // 2), lanes // 2
            rounds += 1
            exchanged += values * words
    cycles = STEP + STEP_OF_WARP * warps + SAMPLE * (samples - 1)
    if backward:
        cycles += BACKWARD + BACKWARD_OF_WARP * warps + BACKWARD_TIGHT * (near + far > 0)
    cycles += FMA * products * max(warps / 4, 2.0) + warps * (NEAR * near + FAR * far + OPERAND * operands * samples)
    cycles += warps * SAMPLE_OPERAND * operands * (samples - 1)
    return cycles + ROUND * rounds + EXCHANGED * exchanged


def _shared_bytes(shape: Shape, threads: int, samples: int, up: Half, down: Half | None) -> int:
    per_vector = 2 if shape.double else 4
    widths = [half.lanes * ((-(-half.tile_columns // per_vector)) | 1) * per_vector for half in (up, down or up)]
    return (up.near + (down.near if down else 0)) * threads * 16 + samples * sum(widths) * per_vector_bytes(shape)
