"""The recurrence of a layer of ELM neurons in a cluster of blocks a sample: network_cluster.cuh."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.cuda import _driver
from elm_neuro.backends.cuda._arguments import Arguments, structure
from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._network import WARP, Sizes
from elm_neuro.backends.cuda._plans import MAX_REGISTERS, REGISTERS, Device

CLUSTER = 8  # blocks
ARCHITECTURE = 90  # the first that has clusters
LANES = (4, 8, 2, 16)  # threads that share two sums: those first that divide the work best
TERMS = 8  # weights that a thread has of a sum come in so many
MAX_THREADS = 512
OTHER_REGISTERS = {torch.float32: 66, torch.float64: 100}  # of a thread, than its weights, as compiled

_LAYER = (
    "num_steps num_neuron num_branch activation output tile ranks lengths mask map first_layer last_layer w_y bias "
    "kappa_m gain kappa_r "
)
FORWARD, _FORWARD_BYTES = structure(
    f"{_LAYER} from_input last_bias a_0 m_0 r_0 a change a_last m_last r_last sums tanh memory q r"
)
BACKWARD, _BACKWARD_BYTES = structure(
    f"{_LAYER} m_0 r_0 sums tanh memory q r grad_a grad_change grad_a_last grad_m_last grad_r_last grad_sums grad_a_0 "
    "grad_m_0 grad_r_0 grads surrogate scale factor side_scale side_factor mean"
)


class Cluster(NamedTuple):
    """How a direction runs."""

    blocks: int  # of a sample, whole clusters
    ranks: int  # blocks that have neurons
    threads: int
    tile: int  # neurons of a block
    lanes: int  # threads that share two sums
    terms: int  # weights of a thread for each of them
    shared_bytes: int


@cache
def cluster(sizes: Sizes, dtype: torch.dtype, device: Device, *, backward: bool) -> Cluster | None:
    """The layout on a device, None where a cluster does not hold such a layer."""
    rows, widest = sizes.widths[0], max(sizes.widths)
    small = device.multiprocessors < CLUSTER  # a slice of a GPU
    if small or device.architecture < ARCHITECTURE or sizes.trace or len(sizes.widths) > 2 or widest > WARP:
        return None
    group, vector = max(CLUSTER, 1 << (widest - 1).bit_length()), 16 // dtype.itemsize
    tile = -(-sizes.num_neuron // (2 * CLUSTER)) * 2  # even: neurons send what they did in pairs
    if not sizes.reads_layer:
        tile = min(tile, MAX_THREADS // (2 * group))
    ranks = -(-sizes.num_neuron // tile)
    sums, inputs = (sizes.num_neuron, tile * rows) if backward else (tile * rows, sizes.num_neuron)
    if not sizes.reads_layer:
        sums, inputs = tile * rows, 0
    own = -(-widest // vector) * vector
    for lanes in LANES if sizes.reads_layer else (2,):
        terms = max(1, -(-inputs // (lanes * TERMS))) * TERMS
        threads = -(-max(tile * group, -(-sums // 2) * lanes) // WARP) * WARP
        registers = 2 * (terms + (2 if backward else 1) * own) * dtype.itemsize // 4 + OTHER_REGISTERS[dtype]
        if threads <= MAX_THREADS and registers <= min(MAX_REGISTERS, REGISTERS // bounded(threads)):
            of_sums = terms * lanes
            reals = of_sums + tile * (3 * own + 2 * CLUSTER) if backward else 2 * of_sums + 3 * tile * own
            blocks = -(-ranks // CLUSTER) * CLUSTER
            return Cluster(blocks, ranks, threads, tile, lanes, terms, 16 + reals * dtype.itemsize)
    return None


def parameters(sizes: Sizes) -> list[tuple[int, ...]]:
    """Shapes of what the backward pass gives a sample's gradients of: w_y, kappa_m, gain, bias, kappa_r, the first
    layer's columns of the memory and, with a hidden layer, the last layer and its bias.
    """
    num_neuron, num_memory = sizes.num_neuron, sizes.num_memory
    shapes = [*[(num_neuron, num_memory)] * 3, *[(num_neuron,)] * 2, (num_neuron, sizes.widths[0], num_memory)]
    return shapes + [(num_neuron, num_memory, sizes.hidden), (num_neuron, num_memory)] * (sizes.hidden > 0)


def bounded(threads: int) -> int:
    """Threads that the kernel of a block of so many is compiled for."""
    return -(-threads // 128) * 128


def clusters(sizes: Sizes, like: Tensor) -> tuple[Cluster, Cluster] | None:
    """The layouts of the two directions on the device of `like`, in its dtype; None where one of them has none."""
    device = _driver.launcher().device(like.device.index or 0)
    forward, backward = (cluster(sizes, like.dtype, device, backward=back) for back in (False, True))
    return None if forward is None or backward is None else (forward, backward)


@cache
def program(sizes: Sizes, how: Cluster, dtype: torch.dtype, *, backward: bool) -> Program:
    """The source of a direction for such neurons."""
    double, direction = dtype == torch.float64, "backward" if backward else "forward"
    size = ("BACKWARD", _BACKWARD_BYTES) if backward else ("", _FORWARD_BYTES)
    return Program(
        f"network_cluster_{direction}.cuh",
        (
            ("ELM_REAL", "double" if double else "float"),
            ("ELM_DOUBLE", int(double)),
            ("ELM_THREADS", bounded(how.threads)),
            ("ELM_LANES", how.lanes),
            ("ELM_TERMS", how.terms),
            ("ELM_MEMORY", sizes.num_memory),
            ("ELM_HIDDEN", sizes.hidden),
            (f"ELM_BYTES_NETWORKCLUSTER{size[0]}", size[1]),
        ),
    )


def launch(kernel: str, sizes: Sizes, how: Cluster, batch: int, args: Arguments, like: Tensor) -> None:
    """A cluster for each of `batch` samples, on the current stream of `like`'s device."""
    code = program(sizes, how, like.dtype, backward=kernel == "elm_network_cluster_backward")
    _driver.launch(code, kernel, (batch, how.blocks), how.threads, how.shared_bytes, args, like.device)


def expect_backward(sizes: Sizes, how: Cluster, like: Tensor) -> None:
    """Have the kernel of the backward pass compiled beside the forward pass, where it is not."""
    _driver.expect(like.device, (program(sizes, how, like.dtype, backward=True), "elm_network_cluster_backward"))
