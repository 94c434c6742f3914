"""What a scan works with fits together: kernels read memory as what they are told that it holds, and as far, and
torch's broadcasting would hide a vector of one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from elm_neuro.backends.parts._operators import LIBRARY
from elm_neuro.functional._transforms import transformed

Shape = tuple[int, ...]


def check_operands(
    named: Iterable[tuple[str, Tensor | None, Shape]],
    like: Tensor,
    *,
    dtype: torch.dtype | None = None,
    cpu: bool = False,
) -> None:
    """Refuse a tensor that does not have the shape beside it, is on another device than the parameter `like`, or has
    another dtype, where that is not `dtype`; None is anything. With `cpu` they must lie there.

    Raises:
        ValueError: the shape or the device is another; the message names the tensor, the rule and what came.
        TypeError: the dtype is.

    >>> check_operands([("beta", torch.zeros(2), (3,))], torch.zeros(3))
    Traceback (most recent call last):
    ValueError: beta must have shape (3,), got (2,)
    >>> check_operands([("beta", torch.zeros(3).double(), (3,))], torch.zeros(3))
    Traceback (most recent call last):
    TypeError: beta must be torch.float32, got torch.float64
    """
    if cpu and like.device.type != "cpu":
        raise ValueError(f"the operands must be on the CPU, got {like.device}")
    names, tensors = [], []
    for name, tensor, shape in named:
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        names.append(name)
        tensors.append(tensor)
    check_alike(tensors, like, lambda: names, dtype=dtype)


def check_alike(
    tensors: Sequence[Tensor], like: Tensor, names: Callable[[], Sequence[str]], *, dtype: torch.dtype | None = None
) -> None:
    """Refuse a tensor that is on another device than the parameter `like`, or has another dtype, where that is not
    `dtype`; `names` are asked for where there is something to say.

    Raises:
        ValueError: the device is another; the message names the tensor, the rule and what came.
        TypeError: the dtype is, or it is sparse.
    """
    wanted, device = dtype or like.dtype, like.device
    for index, tensor in enumerate(tensors):
        if tensor.layout is not torch.strided:
            raise TypeError(f"{names()[index]} must be dense, got a tensor of layout {tensor.layout}")
        if tensor.dtype is not wanted:
            raise TypeError(f"{names()[index]} must be {wanted}, got {tensor.dtype}")
        if tensor.device != device:
            raise ValueError(f"{names()[index]} must be on {device} like the other parameters, got {tensor.device}")


def check_kept(kept: Tensor, size: int) -> None:
    """Refuse what a forward pass would have left larger or smaller.

    Raises:
        ValueError: it has another number of entries.
    """
    if kept.numel() != size:
        raise ValueError(f"a pass must have kept {size} entries, got {kept.numel()}")


def check_lengths(lengths: Tensor | None, batch: int, num_steps: int, device: torch.device) -> None:
    """Refuse numbers of valid steps that are not (batch,) int64 from 0 to `num_steps` on `device`.

    Raises:
        ValueError: the shape, the device or a number is another.
        TypeError: the dtype is.

    >>> check_lengths(torch.tensor([3, 5]), 2, 4, torch.device("cpu"))
    Traceback (most recent call last):
    ValueError: lengths must be between 0 and the 4 steps of x, got 3 to 5
    """
    if lengths is None:
        return
    if lengths.shape != (batch,):
        raise ValueError(f"lengths must have shape ({batch},), got {tuple(lengths.shape)}")
    if lengths.dtype != torch.int64:
        raise TypeError(f"lengths must be torch.int64, got {lengths.dtype}")
    if lengths.device != device:
        raise ValueError(f"lengths must be on {device} like the parameters, got {lengths.device}")
    if not torch.compiler.is_compiling():  # where an operator looks at them
        check_bounds(lengths, num_steps)


def check_bounds(lengths: Tensor, num_steps: int, device: torch.device | None = None) -> Tensor:
    """Numbers of valid steps as int64 on `device`, or where they are, once none is below 0 or above `num_steps`.

    Looking at what lies on a GPU waits for it, so that each such tensor is looked at once, by the first layer that gets
    it, and again where it has changed. While a CUDA graph is captured nobody may look: there, and where a replay finds
    other numbers, the kernels take what lies outside for the nearest that does not. Nor may anybody at what one of
    torch.func's transforms has put in a tensor's place.

    Raises:
        ValueError: a number is.
    """
    if torch.compiler.is_compiling():  # which does not look: the operator does, in each call
        checked: Tensor = torch.ops.elm_neuro.lengths_within(lengths, num_steps)
        return checked.to(device=device)
    return within(lengths, num_steps, device)


def within(lengths: Tensor, num_steps: int, device: torch.device | None = None) -> Tensor:
    """As :func:`check_bounds`, by who may look: while another thread compiles too."""
    bounds = bounds_of(lengths)
    if bounds is not None and (bounds[0] < 0 or bounds[1] > num_steps):
        raise ValueError(f"lengths must be between 0 and the {num_steps} steps of x, got {bounds[0]} to {bounds[1]}")
    if device is not None and device.type != HOST and lengths.device.type == HOST and lengths.is_pinned():
        lengths = lengths.to(torch.int64, copy=True)  # the device would read it later, when it may hold others
    # from the host nothing waits: the driver has its own copy of so few numbers before it returns
    there = lengths.to(device=device, dtype=torch.int64, non_blocking=lengths.device.type == HOST)
    if there is not lengths:
        remember_bounds(there, bounds)
    return there


def bounds_of(lengths: Tensor) -> tuple[int, int] | None:
    """The lowest and the highest, 0 and 0 of none; None where nobody may look."""
    if transformed() and torch._C._functorch.is_functorch_wrapped_tensor(lengths):
        return None
    if lengths.device.type == HOST or lengths.is_inference():
        return _look(lengths)
    version, known = _bounds.get(lengths, (None, None))
    bounds: tuple[int, int] | None = known
    if bounds is None or version != lengths._version:
        if lengths.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        bounds = _look(lengths)
        remember_bounds(lengths, bounds)
    return bounds


def remember_bounds(lengths: Tensor, bounds: tuple[int, int] | None) -> None:
    """Say what :func:`bounds_of` would find in a tensor that is a copy of one that was looked at."""
    if bounds is not None and lengths.device.type != HOST and not lengths.is_inference():
        _bounds[lengths] = (lengths._version, bounds)


def _lengths_within(lengths: Tensor, num_steps: int) -> Tensor:
    checked = within(lengths, num_steps)
    return checked.clone() if checked is lengths else checked


LIBRARY.define("lengths_within(Tensor lengths, SymInt num_steps) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
LIBRARY.impl("lengths_within", _lengths_within, "CompositeExplicitAutograd")
LIBRARY.impl("lengths_within", lambda lengths, _: lengths.new_empty(lengths.shape, dtype=torch.int64), "Meta")

HOST = "cpu"  # where a look waits for nobody
_bounds = WeakIdKeyDictionary()  # of lengths elsewhere, each with the version of the tensor


def _look(lengths: Tensor) -> tuple[int, int]:
    if not lengths.numel():
        return 0, 0
    low, high = torch.stack(lengths.aminmax()).tolist()
    return low, high
