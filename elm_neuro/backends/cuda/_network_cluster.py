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
from elm_neuro.backends.cuda._plans import Device

CLUSTER = 8  # blocks
ARCHITECTURE = 90  # the first that has clusters
WIDTHS = (8, 16, 24, 32)  # numbers of a thread's registers that there are programs for
LANES = (4, 8, 2, 16, 1)  # of a sum, those first that divide its work best

_LAYER = (
    "num_steps num_neuron num_branch num_memory hidden activation output tile ranks lanes lengths mask map first_layer "
    "last_layer w_y bias kappa_m gain kappa_r "
)
FORWARD, _FORWARD_BYTES = structure(
    f"{_LAYER} from_input last_bias a_0 m_0 r_0 a change a_last m_last r_last sums tanh memory q r"
)
BACKWARD, _BACKWARD_BYTES = structure(
    f"{_LAYER} m_0 r_0 sums tanh memory q r grad_a grad_change grad_a_last grad_m_last grad_r_last grad_sums grad_a_0 "
    "grad_m_0 grad_r_0 grad_w_y grad_kappa_m grad_gain grad_bias grad_kappa_r surrogate scale factor side_scale "
    "side_factor mean"
)


class Cluster(NamedTuple):
    """How a direction runs."""

    blocks: int  # of a sample, whole clusters
    ranks: int  # blocks that have neurons
    threads: int
    tile: int  # neurons of a block
    lanes: int  # threads that share a sum
    terms: int  # weights of a thread for such a sum
    wide: int  # and for what is a neuron's own
    shared_bytes: int


def max_threads(dtype: torch.dtype) -> int:
    """Threads of a block at most: as many as leave each the registers that its weights need."""
    return 256 if dtype == torch.float64 else 512


@cache
def cluster(sizes: Sizes, dtype: torch.dtype, device: Device, *, backward: bool) -> Cluster | None:
    """The layout on a device, None where a cluster does not hold such a layer."""
    most, rows = max_threads(dtype), sizes.widths[0]
    if device.architecture < ARCHITECTURE or sizes.trace or len(sizes.widths) > 2:
        return None
    wide = _width(max(sizes.widths))
    tile = -(-sizes.num_neuron // CLUSTER)
    if not sizes.reads_layer:
        tile = min(tile, most // WARP)
    sums, inputs = (sizes.num_neuron, tile * rows) if backward else (tile * rows, sizes.num_neuron)
    lanes, terms = 1, WIDTHS[0]
    if sizes.reads_layer:
        fits = ((lanes, _width(-(-inputs // lanes))) for lanes in LANES if sums * lanes <= most)
        lanes, terms = next(((lanes, terms) for lanes, terms in fits if terms), (0, 0))
    threads = WARP * max(tile, -(-sums * lanes // WARP))
    if not (wide and lanes and threads <= most):
        return None
    reals = tile * wide * (2 if backward else 3)
    if sizes.reads_layer:
        reals += terms * lanes * (1 if backward else 2)
    if backward:
        reals += 2 * CLUSTER * tile
    blocks = -(-sizes.num_neuron // tile)
    return Cluster(
        -(-blocks // CLUSTER) * CLUSTER, blocks, threads, tile, lanes, terms, wide, 16 + reals * dtype.itemsize
    )


def _width(numbers: int) -> int:
    """The least that there is a program for; 0: none."""
    return next((width for width in WIDTHS if numbers <= width), 0)


def clusters(sizes: Sizes, like: Tensor) -> tuple[Cluster, Cluster] | None:
    """The layouts of the two directions on the device of `like`, in its dtype; None where one of them has none."""
    device = _driver.launcher().device(like.device.index or 0)
    forward, backward = (cluster(sizes, like.dtype, device, backward=back) for back in (False, True))
    return None if forward is None or backward is None else (forward, backward)


@cache
def program(dtype: torch.dtype, terms: int, wide: int, *, backward: bool) -> Program:
    """The source of a direction for numbers of this type."""
    double = dtype == torch.float64
    size = ("ELM_BYTES_NETWORKCLUSTERBACKWARD", _BACKWARD_BYTES) if backward else ("ELM_BYTES_NETWORKCLUSTER", _FORWARD_BYTES)
    return Program(
        "network_cluster_backward.cuh" if backward else "network_cluster_forward.cuh",
        (
            ("ELM_REAL", "double" if double else "float"),
            ("ELM_DOUBLE", int(double)),
            ("ELM_THREADS", max_threads(dtype)),
            ("ELM_TERMS", terms),
            ("ELM_WIDE", wide),
            size,
        ),
    )


def launch(kernel: str, how: Cluster, batch: int, args: Arguments, like: Tensor) -> None:
    """A cluster for each of `batch` samples, on the current stream of `like`'s device."""
    code = program(like.dtype, how.terms, how.wide, backward=kernel == "elm_network_cluster_backward")
    _driver.launcher().launch(code, kernel, (batch, how.blocks), how.threads, how.shared_bytes, args, like.device)
