"""Layers of every size, kind and input for the native kernels, against the loop in double precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elm_neuro import SpikeEvents
from elm_neuro.functional import ATan, NetworkState
from tests.backends.network.cases import Call, everything, made
from tests.tolerances import assert_close


def in_dtype(part: Any, dtype: torch.dtype) -> Any:
    """Operands as leaves in `dtype`; what holds no real numbers as it is."""
    if isinstance(part, dict):
        return {name: in_dtype(one, dtype) for name, one in part.items()}
    if isinstance(part, tuple):
        parts = [in_dtype(one, dtype) for one in part]
        return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)
    if isinstance(part, SpikeEvents):
        return part.to(dtype=dtype)
    if not isinstance(part, Tensor) or not part.is_floating_point():
        return part
    return part.detach().to(dtype).requires_grad_(part.requires_grad)


def compare(call: Call, dtype: torch.dtype, backend: str = "native") -> None:
    """A backend in `dtype` equals the reference in float64 of the same numbers."""
    call = in_dtype(call, dtype)
    double = in_dtype(call, torch.float64)
    for index, (found, wanted) in enumerate(
        zip(everything(call, backend), everything(double, "reference"), strict=True)
    ):
        scale = 1.0 if dtype == torch.float64 or index < 6 else 10.0  # record and state, then gradients
        assert_close(found.double(), wanted, dtype=dtype, scale=scale)


def sizes(dtype: torch.dtype) -> None:
    """Batches of every remainder of a vector, steps around a chunk's, neurons around a vector, MLPs around what a
    product holds in registers.
    """
    generator = torch.Generator().manual_seed(0)
    for number, (batch, num_steps, layer, kind) in enumerate(
        [
            (1, 1, (3, 1, 1, 1, 1), {"hidden": ()}),
            (2, 15, (6, 5, 3, 2, 4), {"hidden": (25,), "activation": "silu"}),
            (3, 16, (70, 4, 7, 3, 13), {"hidden": (12, 13), "trace": True}),
            (5, 17, (6, 19, 13, 4, 2), {"output": "identity", "activation": "relu", "high_pass": False}),
            (8, 33, (20, 9, 30, 10, 5), {"hidden": (10,), "input_scale": 0.5}),
            (9, 31, (33, 3, 4, 5, 27), {"hidden": (1, 2, 3), "trace": True, "activation": "silu"}),
            (16, 8, (5, 6, 2, 2, 3), {"output": "spike", "surrogate": ATan(), "activation": "silu"}),
            (17, 40, (9, 2, 3, 1, 6), {"trace": True, "high_pass": False, "output": "identity"}),
            (39, 7, (4, 11, 5, 2, 9), {"hidden": (6,)}),
            (1, 67, (20, 17, 5, 3, 4), {"trace": True, "activation": "silu"}),
            (2, 65, (3, 33, 2, 4, 5), {"output": "spike", "surrogate": ATan(), "hidden": (7, 4), "activation": "silu"}),
            (1, 129, (9, 16, 3, 2, 2), {"hidden": (), "high_pass": False}),
        ]
    ):
        for sparse in (False, True):
            params, rule = made(number, sizes=layer, **kind)  # type: ignore[arg-type]
            inputs, neurons, branches, _, memory = layer
            drawn = torch.rand(batch, num_steps, inputs, generator=generator, dtype=torch.float64)
            x = (drawn < (0.1 if sparse else 0.6)) * (0.5 + drawn)
            shapes = (neurons,), (neurons, branches), (neurons, memory), (neurons,)
            parts = [torch.rand(batch, *shape, generator=generator, dtype=torch.float64) - 0.5 for shape in shapes]
            state = NetworkState(*(part.requires_grad_() for part in parts)) if number % 2 else None
            options: dict[str, Tensor | None] = {}
            if number % 3:
                options["lengths"] = torch.randint(0, num_steps + 1, (batch,), generator=generator)
            if number % 2 == sparse:
                for name, size in (("input_mask", inputs), ("recurrent_mask", neurons)):
                    options[name] = 1.25 * (torch.rand(batch, size, generator=generator) < 0.8).double()
            given: Tensor | SpikeEvents = x.requires_grad_(not sparse)
            if sparse:
                given = SpikeEvents.from_frames(x if number % 4 < 2 else (x > 0).double())
            compare(Call(given, params, state, rule, options), dtype)
