"""How a module is exported, as it is asked for and as a model's metadata have it."""

from __future__ import annotations

import json
import operator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from elm_neuro.export._graph import FORMS, PRECISIONS
from elm_neuro.export._nodes import BYTE_TYPES

MIN_OPSET, MAX_OPSET = 17, 26  # older ones are not tested, newer ones onnxruntime does not load yet
MAX_UNROLLED = 10_000  # steps; runtimes take minutes to load more
HEADS = {None: ("y",), "neuronio": ("spike_probability", "soma_mv")}


@dataclass(frozen=True)
class Options:
    """How a module is exported; a model keeps them in its metadata."""

    form: str = "step"
    num_steps: int | None = None
    precision: str = "float32"
    batch_first: bool = True
    batch_size: int | None = None
    shared_input: bool = True
    head: str | None = None
    lengths: bool = False
    input_dtype: str | None = None  # one of BYTE_TYPES; None for the module's

    def to_json(self) -> str:
        return json.dumps(vars(self))

    def checked(self, opset: int) -> tuple[Options, int]:
        """Options and version of the operators, numbers as Python's own.

        Raises:
            TypeError: a number or a switch is none.
            ValueError: one is unknown, missing or out of range.
        """
        opset = integer("opset", opset)
        numbers = {name: _optional(name, getattr(self, name)) for name in ("num_steps", "batch_size")}
        switches = {name: _switch(name, getattr(self, name)) for name in ("batch_first", "shared_input", "lengths")}
        options: Options = replace(self, **numbers, **switches)  # type: ignore[arg-type]  # each has its own type
        options._check()
        known = onnx.defs.onnx_opset_version()
        if not MIN_OPSET <= opset <= min(MAX_OPSET, known):
            raise ValueError(
                f"opset must be from {MIN_OPSET} to {min(MAX_OPSET, known)} (the newest of onnx {onnx.__version__} is "
                f"{known}), got {opset}"
            )
        return options, opset

    def _check(self) -> None:
        """Refuse words that are unknown, and numbers that are missing or out of range."""
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {list(FORMS)}, got {self.form!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {self.precision!r}")
        if self.head not in [*HEADS]:
            raise ValueError(f"head must be None or one of {[name for name in HEADS if name]}, got {self.head!r}")
        if self.input_dtype not in [None, *BYTE_TYPES]:
            raise ValueError(f"input_dtype must be None or one of {[*BYTE_TYPES]}, got {self.input_dtype!r}")
        if (self.form == "unrolled") != (self.num_steps is not None):
            raise ValueError(
                'num_steps must be given for the form "unrolled", and for no other, '
                f"got {self.num_steps} for {self.form!r}"
            )
        if self.num_steps is not None and not 1 <= self.num_steps <= MAX_UNROLLED:
            raise ValueError(
                f'num_steps must be from 1 to {MAX_UNROLLED}, got {self.num_steps}: the form "sequence" takes any '
                "length"
            )
        if self.lengths and self.form == "step":
            raise ValueError('lengths must be False for the form "step", whose calls are one step each, got True')
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


def options_of(model: onnx.ModelProto, path: Path) -> tuple[Options, int]:
    """What a model was exported with, and its opset.

    Raises:
        ValueError: the metadata are not those of :func:`elm_neuro.export.to_onnx`.
    """
    words = {entry.key: entry.value for entry in model.metadata_props}
    try:
        options = Options(**json.loads(words["elm_neuro.options"]))
        return options.checked(next(entry.version for entry in model.opset_import if entry.domain == ""))
    except (KeyError, TypeError, ValueError, StopIteration, RecursionError) as error:
        raise ValueError(
            f"path must be an ONNX model of elm_neuro.export, got {path} without its metadata ({error!r})"
        ) from error


def integer(name: str, number: Any) -> int:
    """`number` as Python's own, where it is one."""
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise TypeError(f"{name} must be an integer, got {number!r}")
    return operator.index(number)


def _optional(name: str, number: Any) -> int | None:
    return None if number is None else integer(name, number)


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)
