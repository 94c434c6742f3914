"""What a transform computes with, hashed: two that could give other items never share a cache."""

from __future__ import annotations

import enum
import hashlib
import os
import random
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(...),
    torch.dtype,
    torch.device,
    np.dtype,
    range,
    slice,
)


def digest(value: Any, *, name: str) -> str:
    """SHA-256, in hex, of all numbers, texts, arrays and tensors that `value` holds, and of the classes that hold them.

    Args:
        value: settings and transforms, nested in any way.
        name: what the caller has called that which cannot be looked into, such as functions; "" for nothing.

    Raises:
        ValueError: there is something that cannot be looked into, and no `name`.
    """
    whole = hashlib.sha256()
    for part in _parts(value, name, {}):
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()


def _parts(value: Any, name: str, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """`value` as pieces of bytes, other ones for every other value; what was `seen` is kept alive, so that its id is
    its own.
    """
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}".encode()
    if isinstance(value, PLAIN):
        yield repr(value).encode()
        return
    if isinstance(value, enum.Enum | type | types.BuiltinFunctionType | np.ufunc):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}".encode()
        if not isinstance(getattr(value, "__self__", None), types.ModuleType | None):
            yield from _parts(value.__self__, name, seen)  # type: ignore[union-attr]  # a method of an object in C
        return
    if id(value) in seen:  # once more, or within itself
        yield b"%d" % seen[id(value)][0]
        return
    seen[id(value)] = (len(seen), value)
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        yield b"%d" % len(value)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _parts(key, name, seen)
            yield from _parts(inner, name, seen)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _parts(inner, name, seen)
    elif isinstance(value, set | frozenset):
        yield from sorted(digest(inner, name=name).encode() for inner in value)
    elif isinstance(value, torch.Tensor):
        yield from _parts((value.dtype, tuple(value.shape)), name, seen)
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind != "O":
        yield from _parts((value.dtype.str, value.dtype.descr, value.shape), name, seen)
        yield np.ascontiguousarray(value).tobytes()
    else:
        yield from _parts(_state(value, name), name, seen)


def _state(value: Any, name: str) -> Any:
    """What an object of any other kind holds."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, torch.Generator):
        return value.get_state()
    slots = [slot for kind in type(value).__mro__ for slot in _listed(kind.__dict__.get("__slots__", ()))]
    held = {slot: getattr(value, slot) for slot in slots if hasattr(value, slot) and slot != "__dict__"}
    is_code = isinstance(value, types.FunctionType | types.MethodType | types.GeneratorType)
    if not is_code and (hasattr(value, "__dict__") or held):
        return held | vars(value) if hasattr(value, "__dict__") else held
    if not name:
        raise ValueError(
            f"name must stand for functions and whatever else does not tell its settings, got name='' and {value!r}"
        )
    return getattr(value, "__qualname__", "")


def _listed(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
