"""Every layer, cell, population and face, beside torch's own: what the rows of the conformance suite are run on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.layers import BATCH, BRANCHES, CELLS, INPUTS, LAYERS, SMALL, STEPS, Make

TORCHS: dict[str, Make] = {"nn.LSTM": lambda: nn.LSTM(INPUTS, 4, batch_first=True)}


def _faces() -> dict[str, Make]:
    snn = pytest.importorskip("elm_neuro.adapters.snntorch", exc_type=ImportError)
    norse = pytest.importorskip("elm_neuro.adapters.norse", exc_type=ImportError)
    jelly = pytest.importorskip("elm_neuro.adapters.spikingjelly", exc_type=ImportError)
    return {
        "snnTorch ELM": lambda: snn.ELM(INPUTS, 2, threshold=0.1, init_hidden=True, **SMALL),
        "snnTorch BranchELM": lambda: snn.BranchELM(INPUTS, 2, threshold=0.1, **BRANCHES),
        "snnTorch ELMSequence": lambda: snn.ELMSequence(INPUTS, 2, threshold=0.1, **SMALL),
        "snnTorch ALIF": lambda: snn.ALIF(INPUTS, 4, recurrent=True),
        "norse ELM": lambda: norse.ELM(INPUTS, 2, threshold=0.1, **SMALL),
        "norse readout": lambda: norse.ELM(INPUTS, 2, spiking=False, **SMALL),
        "norse ELMCell": lambda: norse.ELMCell(INPUTS, 2, threshold=0.1, **SMALL),
        "norse BranchELM": lambda: norse.BranchELM(INPUTS, 2, threshold=0.1, **BRANCHES),
        "norse ALIF": lambda: norse.ALIF(INPUTS, 4, recurrent=True),
        "norse ALIFCell": lambda: norse.ALIFCell(INPUTS, 4),
        "spikingjelly step": lambda: jelly.ELM(INPUTS, 2, v_threshold=0.1, reset="subtract", **SMALL),
        "spikingjelly ELM": lambda: jelly.ELM(INPUTS, 2, v_threshold=0.1, step_mode="m", **SMALL),
        "spikingjelly readout": lambda: jelly.ELM(INPUTS, 2, spiking=False, step_mode="m", **SMALL),
        "spikingjelly BranchELM": lambda: jelly.BranchELM(INPUTS, 2, v_threshold=0.1, step_mode="m", **BRANCHES),
        "spikingjelly ALIF": lambda: jelly.ALIF(INPUTS, 4, recurrent=True, step_mode="m"),
    }


FACES = _faces()
OURS = LAYERS | CELLS | FACES
EVERY = TORCHS | OURS
STEPPING = {
    *CELLS, "snnTorch ELM", "snnTorch BranchELM", "snnTorch ALIF", "norse ELMCell", "norse ALIFCell",
    "spikingjelly step",
}  # fmt: skip
TIME_FIRST = {
    "snnTorch ELMSequence", "norse ELM", "norse readout", "norse BranchELM", "norse ALIF",
    "spikingjelly ELM", "spikingjelly readout", "spikingjelly BranchELM", "spikingjelly ALIF",
}  # fmt: skip


def made(name: str) -> nn.Module:
    """That module with weights that a seed says, strong enough to spike."""
    torch.manual_seed(0)
    module = EVERY[name]()
    with torch.no_grad():
        for part in module.modules():
            if is_ours(part, "ALIFCell", "Affine"):
                part.get_parameter("weight").mul_(2.0)
    return module


def is_ours(part: nn.Module, *names: str) -> bool:
    """Whether it is of one of these classes of ``elm_neuro.nn``, and no face of the same name."""
    return type(part).__name__ in names and type(part).__module__.startswith("elm_neuro.nn")


def frames(dtype: torch.dtype = torch.float32) -> Tensor:
    """Spikes in, (batch, time, input)."""
    rates = torch.full((BATCH, STEPS, INPUTS), 0.8)
    return torch.poisson(rates, generator=torch.Generator().manual_seed(1)).to(dtype)


def run(name: str, module: Any, x: Tensor | None = None) -> Tensor:
    """Output for a sequence, (batch, time, ...), its states handed on by hand where the module takes steps."""
    x = frames(next(module.parameters()).dtype) if x is None else x
    inner = getattr(module, "module", module)  # of a wrapper
    forget(inner)
    if name not in STEPPING:
        out = module(x.transpose(0, 1) if name in TIME_FIRST else x)
        y: Tensor = out[0] if isinstance(out, tuple) else out
        return y.transpose(0, 1) if name in TIME_FIRST else y
    outputs, state = [], None
    for x_t in x.unbind(1):
        if getattr(inner, "init_hidden", False) or name.startswith("spikingjelly"):
            outputs.append(module(x_t))
        elif name.startswith("snnTorch"):
            y_t, *state = module(x_t, *(state or ()))
            outputs.append(y_t)
        else:
            y_t, state = module(x_t, state)
            outputs.append(y_t)
    return torch.stack(outputs, 1)


def forget(module: Any) -> None:
    """Reset the states that a host's face keeps."""
    for name in ("reset_mem", "reset"):
        if callable(reset := getattr(module, name, None)):
            reset()


class Called:
    """A module with other tensors in the place of its own, by ``torch.func.functional_call``."""

    def __init__(self, module: Any, tensors: dict[str, Tensor]) -> None:
        self.own, self.tensors = module, tensors
        self.init_hidden = getattr(module, "init_hidden", False)

    def parameters(self) -> Iterator[Tensor]:
        return iter(self.own.parameters())

    def reset(self) -> None:
        forget(self.own)

    def __call__(self, *args: Any) -> Any:
        return torch.func.functional_call(self.own, self.tensors, args)


def tensors_of(module: nn.Module, *, matrices: bool = False) -> Iterator[tuple[str, str]]:
    """(path of a module inside, name of a parameter of its own) of all parameters, or of those that are matrices."""
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.ndim >= (2 if matrices else 1) and parameter.numel() > 1:
                yield path, name


def of_kinds(kinds: dict[str, Make]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", list(kinds))
