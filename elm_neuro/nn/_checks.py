"""What every layer refuses, in one place: inputs, states and lengths that do not fit its parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from elm_neuro.backends.parts._bytes import holds_bytes
from elm_neuro.backends.parts._shapes import check_bounds
from elm_neuro.events import SpikeEvents
from elm_neuro.functional import ALIFState, ELMState
from elm_neuro.nn._lengths import given_lengths
from elm_neuro.nn._narrow import state_dtype

State = TypeVar("State", bound=tuple[Tensor, ...])
OVERFLOW = "x, state and parameters must be finite and not so large that they overflow, got {} after the last step ({})"
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


def check_tensor(name: str, tensor: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> None:
    """Refuse a tensor of another device or dtype than the parameter `like`, or than `dtype` where it is given."""
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the parameters, got {tensor.device}")
    if tensor.dtype != (dtype or like.dtype) and not (
        tensor.is_floating_point() and torch.is_autocast_enabled(tensor.device.type)
    ):
        rule = f"{like.dtype} like the parameters" if dtype in (None, like.dtype) else f"{dtype}"
        raise TypeError(f"{name} must have dtype {rule}, got {tensor.dtype}")


def check_step(x: Tensor, input_size: int, like: Tensor, *, num_neuron: int | None = None) -> None:
    """Refuse an input of one step, (batch, input_size) or (batch, num_neuron, input_size), that does not fit.

    Raises:
        TypeError: `x` is no tensor, or has another dtype than the parameter `like`.
        ValueError: it has the wrong shape or device.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    check_layout("x", x)
    shape = x.shape
    ending = (input_size,) if len(shape) == 2 or num_neuron is None else (num_neuron, input_size)
    if len(shape) != 1 + len(ending) or shape[1:] != ending:
        raise ValueError(f"x must have shape ({', '.join(map(str, ('batch', *ending)))}), got {tuple(shape)}")
    check_tensor("x", x, like)


def check_layout(name: str, tensor: Tensor) -> None:
    """Refuse sparse and nested tensors.

    Raises:
        TypeError: this is one.
    """
    if tensor.is_nested:
        rule = "padded frames with their lengths" if name == "x" else "dense"
        raise TypeError(f"{name} must be {rule}, got a nested tensor: {name}.to_padded_tensor(0.0)")
    if tensor.layout != torch.strided:
        rule = "dense frames or SpikeEvents" if name == "x" else "dense"
        raise TypeError(f"{name} must be {rule}, got a tensor of layout {tensor.layout}")


def check_batch(batch: object) -> None:
    """Refuse what is no number of samples.

    Raises:
        TypeError: it is no integer.
        ValueError: it is negative.
    """
    # in traced code it is a tensor, in compiled code a symbol that counts as an int
    if isinstance(batch, bool) or not (isinstance(batch, int) or hasattr(batch, "__index__")):
        raise TypeError(f"batch must be an integer, got {batch!r:.100}")
    if isinstance(batch, int) and batch < 0:
        raise ValueError(f"batch must not be negative, got {batch}")


def check_sequence(
    x: Tensor | SpikeEvents,
    input_size: int,
    like: Tensor,
    *,
    num_neuron: int | None = None,
    batch_first: bool = True,
) -> None:
    """Refuse a sequence, (batch, time, [num_neuron,] input_size) or events, that does not fit.

    Frames may be bytes: the kernels of the backend `cuda` read them as they are, for others floats are made of them.

    Raises:
        TypeError: `x` is neither a tensor nor events, or has another dtype than the parameter `like`, uint8 and int8.
        ValueError: it has the wrong shape or device.
    """
    if isinstance(x, SpikeEvents):
        if x.num_channels != input_size:
            raise ValueError(f"x must have {input_size} channels, got {x}")
        if x.device != like.device:
            raise ValueError(f"x must be on {like.device} like the parameters, got {x.device}")
        return
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor or SpikeEvents, got {type(x).__name__}")
    check_layout("x", x)
    shape = x.shape
    ending = (input_size,) if len(shape) == 3 or num_neuron is None else (num_neuron, input_size)
    if len(shape) != 2 + len(ending) or shape[2:] != ending:
        order = ("batch", "time") if batch_first else ("time", "batch")
        raise ValueError(f"x must have shape ({', '.join(map(str, (*order, *ending)))}), got {tuple(shape)}")
    check_tensor("x", x, like, x.dtype if holds_bytes(x) else None)


def as_frames(x: Tensor | SpikeEvents, like: Tensor) -> Tensor:
    """Dense frames that torch multiplies with the parameter `like`: of events, of bytes, or `x` as it is."""
    if isinstance(x, SpikeEvents):
        return x.to_dense(like.dtype)
    return x.to(like.dtype) if holds_bytes(x) else x


def checked_state(kind: type[State], state: State, shapes: Sequence[tuple[int, ...]], like: Tensor) -> State:
    """`state` as a `kind`, where its tensors have these shapes and fit the parameter `like`.

    Raises:
        TypeError: `state` is not as many tensors as a `kind` has, or they have another dtype.
        ValueError: a tensor has the wrong shape or device.
    """
    if type(state) is kind:  # what comes back from a call, step after step
        dtype, device = state_dtype(like), like.device
        for part, shape in zip(state, shapes, strict=True):
            if not isinstance(part, Tensor) or not fits(part, shape, dtype, device):
                break
        else:
            return state
    check_parts(kind, state)
    names: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]  # every state is a named tuple
    for name, part, shape in zip(names, state, shapes, strict=True):
        check_part(f"state.{name}", part, shape, like)
    return kind(*state)


def fits(part: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a part of a state is dense and all this; :func:`check_part` says what it is not."""
    if part.is_nested or part.layout is not torch.strided:
        return False
    return part.shape == shape and part.dtype is dtype and part.device == device


def check_parts(kind: type[tuple[Tensor, ...]], state: object) -> None:
    """Refuse a state that is not as many tensors as a `kind` has."""
    number = len(kind._fields)  # type: ignore[attr-defined]
    if isinstance(state, tuple) and len(state) == number and all(isinstance(part, Tensor) for part in state):
        return
    article = "an" if kind.__name__[0] in "AEIO" else "a"
    count = f"{NUMBERS[number] if number < len(NUMBERS) else number} tensor{'s' * (number != 1)}"
    raise TypeError(f"state must be {article} {kind.__name__} of {count}, got {type(state).__name__}")


def check_part(name: str, part: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Refuse one tensor of a state that has the wrong layout, shape, dtype or device."""
    check_layout(name, part)
    if part.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(part.shape)}")
    check_tensor(name, part, like, state_dtype(like))


def checked_lengths(lengths: Tensor, batch: int, num_steps: int, device: torch.device) -> Tensor:
    """Numbers of valid steps as int64 on `device`.

    Raises:
        ValueError: they are not (batch,) integers from 0 to `num_steps`.
    """
    lengths = given_lengths(lengths)
    if lengths.is_floating_point() or lengths.dtype == torch.bool or tuple(lengths.shape) != (batch,):
        raise ValueError(
            f"lengths must be integers of shape ({batch},), got {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    return check_bounds(lengths, num_steps, device)


def refuse_nan(
    neuron: nn.Module,
    x: Tensor | SpikeEvents,
    before: ELMState | None,
    lengths: Tensor | None,
    total: float,
    dtype: torch.dtype,
) -> None:
    """Refuse a pass or a step that ended in NaN, and name the input, state or parameter that it came from, or say that
    numbers grew too large.

    The memory never forgets a NaN, so a look at the sum of its last state and of what reads it suffices, which is
    far less than the outputs; only then is the culprit sought.
    """
    if math.isnan(total):
        name_culprit(neuron, x, before, lengths)
        raise ValueError(OVERFLOW.format("a readout that is NaN", dtype))


def refuse_infinite(
    layer: nn.Module,
    x: Tensor | SpikeEvents,
    before: ALIFState | None,
    lengths: Tensor | None,
    after: ALIFState,
    b: Tensor | None,
) -> None:
    """Refuse a pass of LIF neurons that did not end in numbers, and name the input, state or parameter to blame.

    NaN and minus infinity never cross the threshold, but membrane and adaptation keep them; b is in neither.

    Raises:
        ValueError: this is one.
    """
    from elm_neuro.backends.native._sums import sum_of  # brings the kernels

    total = sum_of(after.v)
    if b is not None:
        total += sum_of(after.a) + sum_of(b)
    if math.isfinite(total):
        return
    name_culprit(layer, x, before, lengths)
    for name, part in (("a membrane", after.v), ("an adaptation", after.a)):
        if (part is after.v or b is not None) and not bool(torch.isfinite(part.detach()).all()):
            raise ValueError(OVERFLOW.format(f"{name} that is not finite", part.dtype))


def name_culprit(
    layer: nn.Module, x: Tensor | SpikeEvents, before: tuple[Tensor, ...] | None, lengths: Tensor | None
) -> None:
    """Of a pass that did not end in numbers, name the state, input or parameter that it came from, if there is one.

    Raises:
        ValueError: this is it.
    """
    names: tuple[str, ...] = () if before is None else before._fields  # type: ignore[attr-defined]
    for name, part in zip(names, before or (), strict=True):
        if bool(torch.isnan(part).any()):
            raise ValueError(f"state.{name} must not hold NaN, got {int(torch.isnan(part).sum())} of {part.numel()}")
        if bool(torch.isinf(part).any()):
            raise ValueError(
                f"state.{name} must be finite, got {int(torch.isinf(part).sum())} of {part.numel()} that are not"
            )
    values = x.value if isinstance(x, SpikeEvents) else x
    if lengths is not None and isinstance(x, Tensor):
        padding = torch.arange(x.shape[1], device=lengths.device) >= lengths[:, None]
        values = x.masked_fill(padding.view(*padding.shape, *[1] * (x.ndim - 2)), 0.0)
    if values is not None and bool((~torch.isfinite(values)).any()):
        where = (~torch.isfinite(values)).nonzero()[0].tolist()
        raise ValueError(f"x must be finite, got {values[tuple(where)].item()} at index {where} (batch first)")
    for name, parameter in layer.named_parameters():
        if bool(torch.isnan(parameter).any()):
            count = f"{int(torch.isnan(parameter).sum())} of {parameter.numel()}"
            raise ValueError(f"parameter {name} must not hold NaN, got {count}: training has diverged")
