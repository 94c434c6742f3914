"""What a pass on a GPU takes, gives and leaves."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.elm._cuda_plan import BYTES, EVENTS, FRAMES, INTEGRATED, Kept, Plan, plan
from elm_neuro.backends.elm._learned import Timescales
from elm_neuro.backends.parts._bytes import holds_bytes


class Operands(NamedTuple):
    """All tensors of a pass. What arrives is the filtered sum of events or frames, or `v` as it is.

    With :attr:`Options.timescales` w_s, kappa and kappa_b are what a neuron learns,
    :class:`elm_neuro.backends.elm._effective.Learned`, and there is no gain.
    """

    lengths: Tensor | None  # valid steps of each sample, (batch,), int64
    begin: Tensor | None  # of Events; one by one, because torch watches over every tensor that is kept
    channel: Tensor | None
    value: Tensor | None
    kappa_b: Tensor  # decay of what has arrived, ()
    routing: Tensor | None  # as in ELMParameters
    x: Tensor | None  # (batch, time, [num_neuron,] num_input), or bytes; the fields from here on are differentiated
    v: Tensor | None  # (batch, time, [num_neuron,] first): integrated already, with the first layer's bias
    w_s: Tensor | None  # ([num_neuron,] num_branch, num_synapse); None with `v`
    w1: Tensor  # of the first layer, ([num_neuron,] first, num_branch + num_memory); with `v` the memory's part alone
    b1: Tensor | None  # None with `v`
    kappa: Tensor  # ([num_neuron,] num_memory)
    gain: Tensor | None
    w2: Tensor | None  # of the layer after it, ([num_neuron,] num_memory, first); None without hidden layers
    b2: Tensor | None
    w_y: Tensor  # ([num_neuron,] output_size, num_memory)
    b_y: Tensor
    b_0: Tensor | None  # state before the first step; None for zeros, b_0 also with `v`
    m_0: Tensor | None


FIRST_DIFFERENTIATED = Operands._fields.index("x")
KAPPA_B = Operands._fields.index("kappa_b")
W_S, KAPPA, GAIN = map(Operands._fields.index, ("w_s", "kappa", "gain"))


class Options(NamedTuple):
    """How a pass runs."""

    num_steps: int
    num_input: int
    silu: bool
    lowered: torch.dtype | None = None  # of the product with `x`, under autocast
    timescales: Timescales | None = None  # by which what a neuron learns becomes effective; None: it is already


class Saved(NamedTuple):
    """What a forward pass leaves for the backward pass."""

    kept: Tensor  # the parts of :class:`elm_neuro.backends.elm._cuda_plan.Kept`
    table: Tensor | None  # which the gradient of frames goes through
    order: Tensor | None  # of Arranged
    ordered: Tensor | None


class Outputs(NamedTuple):
    y: Tensor  # (batch, time, [num_neuron,] output_size)
    b: Tensor  # (batch, [num_neuron,] num_branch); with `v` empty
    m: Tensor  # (batch, [num_neuron,] num_memory)


def laid_out(operands: Operands) -> Operands:
    """The operands as the kernels read them: all whole but `x`, and `v`, whose rows are."""
    tensors = [tensor if tensor is None else tensor.contiguous() for tensor in operands]
    tensors[FIRST_DIFFERENTIATED] = operands.x
    return Operands._make(tensors)


def plan_of(o: Operands, options: Options) -> Plan:
    """What the sizes of a pass decide."""
    x, w_s, routing, kappa = o.x, o.w_s, o.routing, o.kappa
    if x is not None:
        arrives, batch = BYTES if holds_bytes(x) else FRAMES, x.shape[0]
    elif o.v is not None:
        arrives, batch = INTEGRATED, o.v.shape[0]
    else:
        arrives, batch = EVENTS, (there(o.begin).shape[0] - 1) // options.num_steps
    dtype = kappa.dtype
    form = (
        dtype, kappa.device, arrives, batch, options.num_steps, options.num_input,
        x is not None and x.ndim == 4, None if w_s is None else w_s.shape,
        None if routing is None else routing.shape, o.w1.shape, kappa.shape, o.w_y.shape, o.w2 is not None,
        options.silu, arrives is FRAMES and dtype is torch.float32 and may_round(), *options[3:],
    )  # fmt: skip
    return plan(form)


def may_round() -> bool:
    """Whether torch may round the factors of float32 products on GPUs, as ``torch.set_float32_matmul_precision`` has
    it.
    """
    precision: str = torch._C._get_fp32_precision_getter("cuda", "matmul")
    return precision not in ("none", "ieee")


def addresses(operands: Operands, kept: Kept | None) -> Any:
    """:class:`Operands` of addresses, 0 for what is not there; of what is effective, which `kept` has, in place of what
    is learned.
    """
    numbers = [0 if tensor is None else tensor.data_ptr() for tensor in operands]
    if kept is not None:
        numbers[W_S], numbers[KAPPA], numbers[GAIN], numbers[KAPPA_B] = kept.w_s, kept.kappa, kept.gain, kept.kappa_b
    return Operands._make(numbers)


def with_values(o: Operands, of: Plan, kept: Tensor) -> Operands:
    """The operands with what is effective in place of what is learned, for torch to compute with."""
    room, w_s = of.kept[True], there(o.w_s)
    return o._replace(
        w_s=room.part(kept, "w_s", *w_s.shape), kappa=room.part(kept, "kappa", *o.kappa.shape),
        kappa_b=room.part(kept, "kappa_b"),
    )  # fmt: skip


def there(tensor: Tensor | None) -> Tensor:
    """A tensor that this pass has.

    Raises:
        RuntimeError: it has not.
    """
    if tensor is None:
        raise RuntimeError("a tensor of the pass is missing")
    return tensor
