"""A recurrent layer of ELM neurons: one launch a direction, a block a sample and some lanes of a warp a neuron."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import Arguments, structure
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._weights import MAX_SORTED_HERE
from elm_neuro.backends.parts._untraced import constant

MAX_LAYERS = 3  # of the MLPs
WARP = 32
TILE_THREADS = 128  # about as many threads has a block of a layer whose neurons do not read each other


def _per_layer(name: str) -> str:
    return " ".join(f"{name}_{layer}" for layer in range(MAX_LAYERS))


_LAYER = (
    "num_steps num_neuron num_branch num_memory num_layers hidden activation output widest lanes tile "
    f"{_per_layer('resident')} {_per_layer('width')} {_per_layer('weight')} "
    "lengths mask w_y bias kappa_m gain kappa_b kappa_r first other w_s "
)
FORWARD, _FORWARD_BYTES = structure(
    f"{_LAYER} slices branch count from_input {_per_layer('layer_bias')} a_0 b_0 m_0 r_0 a change a_last b_last m_last "
    "r_last b sums tanh memory q r"
)
BACKWARD, _BACKWARD_BYTES = structure(
    f"{_LAYER} b_0 m_0 r_0 b sums tanh memory q r grad_a grad_change grad_a_last grad_b_last grad_m_last grad_r_last "
    "grad_sums grad_b grad_a_0 grad_b_0 grad_m_0 grad_r_0 grad_w_y grad_kappa_m grad_gain grad_bias grad_kappa_b "
    "grad_kappa_r surrogate scale factor side_scale side_factor mean"
)


@cache
def program(dtype: torch.dtype, *, backward: bool) -> Program:
    """The source of a direction for numbers of this type."""
    double = dtype == torch.float64
    size = ("ELM_BYTES_NETWORKBACKWARD", _BACKWARD_BYTES) if backward else ("ELM_BYTES_NETWORK", _FORWARD_BYTES)
    return Program(
        "network_backward.cuh" if backward else "network_forward.cuh",
        (
            ("ELM_REAL", "double" if double else "float"),
            ("ELM_DOUBLE", int(double)),
            ("ELM_THREADS", max_threads(dtype)),
            size,
        ),
    )


def max_threads(dtype: torch.dtype) -> int:
    """Threads of a block at most: as many as leave each the registers it needs."""
    return 512 if dtype == torch.float64 else 1024


class Slices(NamedTuple):
    """Synapses that read neurons, by the branch that they are of, for a warp that adds up 32 branches at a time: in a
    slice lie the first synapses of its branches, then their second ones. Those of most come first, so that the lanes of
    a warp end together.
    """

    begin: Tensor  # (slices + 1,) int32: where its synapses begin
    branch: Tensor  # (32 * slices,) int32: of each lane; -1: none
    synapses: Tensor  # (32 * slices,) int32: how many it has
    source: Tensor  # (entries,) int32: neuron that is read, 0 where a lane has no more
    place: Tensor  # (entries,) int64: among all synapses


class Sources(NamedTuple):
    """The same synapses by the neuron that they read."""

    begin: Tensor  # (num_neuron + 1,) int32
    branch: Tensor  # (synapses,) int32: of neuron n and branch j number n * num_branch + j
    place: Tensor  # (synapses,) int64


class Wiring(NamedTuple):
    """How the neurons of a layer read one another."""

    slices: Slices
    sources: Sources


_known = WeakIdKeyDictionary()  # by the tensor that the layer keeps its index in


def wiring(index: Tensor, num_input: int, num_branch: int) -> Wiring | None:
    """How the neurons of a layer read one another, None where they do not. Computed and looked at once for an index, a
    constant of its layer: looking waits for the device.

    Args:
        index: sources, (num_neuron, num_branch * num_synapse_per_branch), as in
            :class:`elm_neuro.functional.NetworkParams`.
        num_input: number of inputs, the first of the sources.
        num_branch: branches of a neuron.

    Raises:
        ValueError: a source is not there.

    >>> found = wiring(torch.tensor([[0, 3], [2, 1]]), 2, 2)
    >>> [part.tolist() for part in found.sources]
    [[0, 1, 2], [2, 1], [2, 1]]
    >>> found.slices.branch.tolist()[:4], found.slices.synapses.tolist()[:4], found.slices.source.tolist()[:4]
    ([1, 2, 0, 3], [1, 1, 0, 0], [1, 0, 0, 0])
    """
    if index.is_inference():
        return _wiring(index, num_input, num_branch)
    kept = index if index._base is None else index._base
    key = (kept._version, index.shape, index.stride(), index.storage_offset(), num_input, num_branch)
    known: tuple[object, Wiring | None] = _known.get(kept, (None, None))
    if known[0] != key:
        known = key, _wiring(index, num_input, num_branch)
        _driver.written(index)
        _known[kept] = known
    return known[1]


def _wiring(index: Tensor, num_input: int, num_branch: int) -> Wiring | None:
    num_neuron, num_synapse = index.shape
    flat = index.flatten().cpu() if index.numel() <= MAX_SORTED_HERE else index.flatten()
    low, high = (int(end) for end in flat.aminmax()) if flat.numel() else (0, 0)
    if low < 0 or high >= num_input + num_neuron:
        rule = f"0 to {num_input + num_neuron - 1}: {num_input} inputs, then {num_neuron} neurons"
        raise ValueError(f"index must be from {rule}; got {low} to {high}")
    place = (flat >= num_input).nonzero().squeeze(-1)
    if not place.numel():
        return None
    source, branch = flat[place] - num_input, place // (num_synapse // num_branch)
    order = torch.argsort(source, stable=True)
    by_source = Sources(_begins(source[order], num_neuron).int(), branch[order].int(), place[order])
    slices = _slices(source, branch, place, num_neuron * num_branch)
    there = index.device
    return Wiring(Slices(*(part.to(there) for part in slices)), Sources(*(part.to(there) for part in by_source)))


def _begins(items: Tensor, count: int) -> Tensor:
    """Where each of `count` items begins among `items`, which are sorted; the last, where they end."""
    return torch.searchsorted(items, torch.arange(count + 1, device=items.device))


def _slices(source: Tensor, branch: Tensor, place: Tensor, num_branch: int) -> Slices:
    begin = _begins(branch, num_branch)
    count, order = begin.diff().sort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(num_branch, device=order.device))
    missing = -num_branch % WARP
    lengths = WARP * count[::WARP]  # entries of a slice: as its first branch has synapses
    ends = lengths.cumsum(0)
    nth = torch.arange(branch.shape[0], device=branch.device) - begin[branch]  # of its branch
    entry = (ends - lengths)[rank[branch] // WARP] + WARP * nth + rank[branch] % WARP
    entries = int(ends[-1])
    return Slices(
        torch.nn.functional.pad(ends, (1, 0)).int(),
        torch.nn.functional.pad(order, (0, missing), value=-1).int(),
        torch.nn.functional.pad(count, (0, missing)).int(),
        source.new_zeros(entries).scatter_(0, entry, source).int(),
        place.new_zeros(entries).scatter_(0, entry, place),
    )


class Sizes(NamedTuple):
    """A layer as the kernels see it."""

    num_neuron: int
    num_branch: int
    num_memory: int
    widths: tuple[int, ...]  # of the MLPs' layers, the last num_memory
    reads_layer: bool
    trace: bool
    high_pass: bool

    @property
    def hidden(self) -> int:
        """Units of all hidden layers."""
        return sum(self.widths[:-1])


class Block(NamedTuple):
    """How a direction runs."""

    tiles: int  # blocks of a sample
    threads: int
    lanes: int  # of a neuron
    tile: int  # neurons of a block
    resident: tuple[int, ...]  # of each layer: from a neuron's weights to the next one's where it copies them, else 0
    shared_bytes: int


@cache
def block(sizes: Sizes, dtype: torch.dtype, shared_bytes: int, *, backward: bool) -> Block:
    """The layout on a device that gives a block so many bytes of shared memory. Where the weights of the MLPs fit they
    are copied there; else they come through the caches in every step.
    """
    n, branches, d, widest = sizes.num_neuron, sizes.num_branch, sizes.num_memory, max(sizes.widths)
    branched, most = sizes.reads_layer or sizes.trace, max_threads(dtype)
    items = max(widest, branches) if branched else widest
    lanes = min(WARP, 1 << (items - 1).bit_length())
    tile = n
    if sizes.reads_layer:
        while lanes > 1 and lanes * n > most:
            lanes //= 2
    else:
        tile = min(n, max(1, TILE_THREADS // lanes))
    threads = min(most, -(-tile * lanes // WARP) * WARP)
    groups, read = threads // lanes, branches + d
    traces = branches * sizes.trace
    if backward:
        reals = 2 * n * branches * sizes.reads_layer + tile * (4 * d + 2 * traces + 2 * sizes.high_pass + 1)
        reals += 2 * groups * widest
    else:
        reals = (
            n * (2 + branches) * sizes.reads_layer
            + tile * (d + 1 + traces + sizes.high_pass)
            + groups * (read + 2 * widest)
        )
    resident = []
    for width in sizes.widths:
        tight = width * read
        # so far apart the lanes of the neurons of a warp read different banks
        apart = tight + (lanes - tight) % WARP if lanes < WARP else tight
        fits = (one for one in (apart, tight) if (reals + tile * one) * dtype.itemsize <= shared_bytes)
        resident.append(next(fits, 0))
        reals += tile * resident[-1]
        read = width
    return Block(-(-n // tile), threads, lanes, tile, tuple(resident), reals * dtype.itemsize)


def _shared_bytes(device: int) -> int:
    return _driver.launcher().device(device).shared_bytes


def blocks(sizes: Sizes, like: Tensor) -> tuple[Block, Block]:
    """The layouts of the two directions on the device of `like`, in its dtype."""
    given = _shared_bytes(like.device.index or 0)
    forward, backward = (block(sizes, like.dtype, given, backward=back) for back in (False, True))
    return forward, backward


@constant
def reason_of_size(numbers: tuple[Any, ...], dtype: torch.dtype, device: int) -> str | None:
    """Why a block of the device of this number cannot hold a layer of such :class:`Sizes`; None where one can."""
    sizes = Sizes._make(numbers)
    if len(sizes.widths) > MAX_LAYERS:
        return f"its MLPs have at most {MAX_LAYERS - 1} hidden layers, got {len(sizes.widths) - 1}"
    given = _shared_bytes(device)
    needed = max(block(sizes, dtype, given, backward=back).shared_bytes for back in (False, True))
    if needed <= given:
        return None
    kind = "neurons that read one another" if sizes.reads_layer else "neurons"
    return f"its shared memory has {given} bytes, {sizes.num_neuron} {kind} take {needed}"


def launch(kernel: str, how: Block, batch: int, args: Arguments, like: Tensor) -> None:
    """A block for each of `batch` samples and tile of neurons, on the current stream of `like`'s device."""
    code = program(like.dtype, backward=kernel == "elm_network_backward")
    _driver.launch(code, kernel, (batch, how.tiles), how.threads, how.shared_bytes, args, like.device)


def expect_backward(like: Tensor) -> None:
    """Have the kernel of the backward pass compiled beside the forward pass, where it is not."""
    _driver.expect(like.device, (program(like.dtype, backward=True), "elm_network_backward"))
