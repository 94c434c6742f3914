"""A folder of figures, numbers and one page about any module that holds a layer of neurons."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from elm_neuro import plotting
from elm_neuro.events import SpikeEvents
from elm_neuro.files import write_whole
from elm_neuro.look._figures import (
    Shown,
    fields_figure,
    recordings_figure,
    responses_figure,
    time_constants_figure,
)
from elm_neuro.look._input import RATE_HZ, Drive, poisson_drive, read_drive
from elm_neuro.look._numbers import branch_fields, spike_responses, time_constants
from elm_neuro.look._page import Figured, Section, page
from elm_neuro.look._parts import Part, parts_of
from elm_neuro.nn import is_layer

Progress = Callable[[str, int, int], None]  # what is done now, how much is done, how much there is
PAGE, NUMBERS = "index.html", "numbers.npz"
REFUSALS = (ValueError, TypeError, RuntimeError, IndexError)  # of a network that reads something else


def look(
    module: nn.Module,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    data: str | os.PathLike[str] | None = None,
    index: int | None = None,
    duration_ms: float | None = None,
    rate_hz: float = RATE_HZ,
    seed: int = 0,
    neuron: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write figures (PNG and PDF), their numbers and a page about a layer or a network of layers.

    Of each layer: time constants, what its branches or neurons read, the response to one spike, and how it works on one
    sequence; of the module: its parameters. ``numbers.npz`` holds the numbers behind the figures, by the layer's place
    and their names.

    Args:
        module: a layer, whoever wrote it, an ``nn.Sequential`` of layers, or a network that holds some.
        folder: made where it is missing; earlier files of these names are replaced.
        name: of the page; the class by default.
        data: a NeuronIO or SHD-format file; None makes Poisson spikes.
        index: which simulation or sample of `data`.
        duration_ms: length of what it is driven with.
        rate_hz: of the spikes that are made.
        seed: of the spikes that are made.
        neuron: of a population, which one is looked at.
        progress: called before each piece of work.

    Returns:
        The page.

    Raises:
        TypeError: there is no layer in `module`.
        FileNotFoundError: `data` does not exist.
        ValueError: `data` do not fit the module, or an argument is out of range.

    >>> import tempfile
    >>> from elm_neuro import ELM
    >>> with tempfile.TemporaryDirectory() as place:
    ...     look(ELM(3, 1, num_memory=2), place, duration_ms=100.0).name
    'index.html'
    """
    parts = parts_of(module, neuron=neuron)
    module = _wide(module).eval()
    drive = _drive(module, parts, data, index, duration_ms, rate_hz, seed)
    inputs, note = _inputs(module, parts, drive, from_file=data is not None)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sections: list[Section] = []
    numbers: dict[str, Any] = {}
    total = 4 * len(parts) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of layers that spike by chance
        for place, part in enumerate(parts):
            own = _own_drive(part, drive, inputs, duration_ms, rate_hz, seed)
            figures = []
            for at, (what, make) in enumerate(_steps(part, *own, numbers)):
                if progress is not None:
                    progress(f"{part.name or type(part.layer).__name__}: {what}", 4 * place + at, total)
                if (shown := make()) is not None:
                    prefix = f"{part.name.replace('.', '_')}_" if part.name else ""
                    png, _ = plotting.save(shown.figure, folder / f"{prefix}{shown.name}")
                    figures.append(Figured(shown.title, shown.caption, png.read_bytes()))
            sections.append(Section(part, figures))
    if progress is not None:
        progress("the page", total - 1, total)
    title = name or type(module).__name__
    lead = f"{type(module).__name__}. Driven by {drive.what}.{note}"
    content = io.BytesIO()
    np.savez_compressed(content, **numbers)
    html = page(title, lead, module, sections).encode()
    write_whole({folder / NUMBERS: content.getvalue(), folder / PAGE: html})
    if progress is not None:
        progress("done", total, total)
    return folder / PAGE


def _steps(
    part: Part, x: SpikeEvents | Tensor, drive: Drive, numbers: dict[str, Any]
) -> list[tuple[str, Callable[[], Shown | None]]]:
    """What is done for a layer, in words, and how; `numbers` gets what is behind the figures."""
    prefix = f"{part.name}/" if part.name else ""

    def times() -> Shown | None:
        found = time_constants(part)
        numbers.update({f"{prefix}{name}": values for name, values in found.items()})
        return time_constants_figure(part, found)

    def fields() -> Shown | None:
        found = branch_fields(part)
        if found is not None:
            numbers[f"{prefix}{'receptive_fields' if part.is_elm else 'weights'}"] = found
        return fields_figure(part, found)

    def responses() -> Shown:
        found = spike_responses(part, x)
        numbers.update(
            {
                f"{prefix}response": found.change,
                f"{prefix}response_rows": found.rows,
                f"{prefix}response_weight": found.weight,
                f"{prefix}response_moments": found.moments,
            }
        )
        return responses_figure(part, found, drive)

    return [
        ("time constants", times),
        ("receptive fields", fields),
        ("responses to one spike", responses),
        ("at work", lambda: recordings_figure(part, x, drive)),
    ]


def _wide(module: nn.Module) -> nn.Module:
    """A module whose numbers are at least float32, which figures are drawn of."""
    narrow = {tensor.dtype for tensor in module.state_dict().values() if isinstance(tensor, Tensor)}
    return module.float() if narrow & {torch.float16, torch.bfloat16} else module


def _drive(
    module: nn.Module,
    parts: list[Part],
    data: str | os.PathLike[str] | None,
    index: int | None,
    duration_ms: float | None,
    rate_hz: float,
    seed: int,
) -> Drive:
    first = _first(module, parts)
    width = first.layer.input_size if _width(module) is None else _width(module)
    delta_t = first.layer.delta_t
    if data is not None:
        return read_drive(data, width, delta_t, index=index, duration_ms=duration_ms)
    if index is not None:
        raise ValueError(f"index must be None where spikes are made, got {index}")
    signed = first.num_excitatory if width == first.core.input_size else None
    return poisson_drive(width, delta_t, num_excitatory=signed, duration_ms=duration_ms, rate_hz=rate_hz, seed=seed)


def _first(module: nn.Module, parts: list[Part]) -> Part:
    """The layer that reads the input of a network: the one whose width and steps a network that is none tells of."""
    if is_layer(module) or isinstance(module, nn.Sequential):
        return parts[0]
    for part in parts:
        silence = SpikeEvents(
            torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), None, (1, 2, part.layer.input_size)
        )
        try:
            if part.name in _heard(module, parts, silence):
                return part
        except REFUSALS:
            continue
    return parts[0]


def _width(module: nn.Module) -> int | None:
    """Inputs of a network that is a chain: of its first module that says it."""
    if is_layer(module):
        return int(module.input_size)
    if not isinstance(module, nn.Sequential):
        return None
    for child in module:
        if isinstance(child, nn.Linear):
            return child.in_features
        if isinstance(child, nn.LayerNorm):
            return int(child.normalized_shape[-1])
        if (inner := _width(child)) is not None:
            return inner
    return None


def _inputs(
    module: nn.Module, parts: list[Part], drive: Drive, *, from_file: bool
) -> tuple[dict[str, SpikeEvents | Tensor], str]:
    """What each layer reads while the module runs, by its place; and a remark where they cannot be run together."""
    try:
        return _heard(module, parts, drive.events), ""
    except REFUSALS as error:
        if from_file:
            raise ValueError(f"data must be what the network reads, got {drive.what}: {error}") from error
    return {}, " The network reads something else than spikes, so that each layer was driven by itself."


@torch.no_grad()
def _heard(module: nn.Module, parts: list[Part], events: SpikeEvents) -> dict[str, SpikeEvents | Tensor]:
    heard: dict[str, SpikeEvents | Tensor] = {}
    if is_layer(module):
        return {"": events}
    if isinstance(module, nn.Sequential):
        _through(module, "", events, heard)
        return heard
    hooks = []
    for part in parts:

        def hear(_: nn.Module, arguments: Any, keywords: Any, name: str = part.name) -> None:
            heard[name] = arguments[0] if arguments else keywords["x"]

        hooks.append(part.layer.register_forward_pre_hook(hear, with_kwargs=True))
    try:
        module(events)
    finally:
        for hook in hooks:
            hook.remove()
    return heard


def _through(chain: nn.Sequential, name: str, x: Any, heard: dict[str, Any]) -> Any:
    """Run a chain of layers, which give their state too, and of plain modules."""
    for child_name, child in chain.named_children():
        place = f"{name}.{child_name}" if name else child_name
        if is_layer(child):
            heard[place] = x
            x, _ = child(x)
        elif isinstance(child, nn.Sequential):
            x = _through(child, place, x, heard)
        else:
            dtype = next((parameter.dtype for parameter in chain.parameters()), torch.float32)
            x = child(x.to_dense(dtype) if isinstance(x, SpikeEvents) else x)
    return x


def _own_drive(
    part: Part,
    drive: Drive,
    inputs: dict[str, SpikeEvents | Tensor],
    duration_ms: float | None,
    rate_hz: float,
    seed: int,
) -> tuple[SpikeEvents | Tensor, Drive]:
    """What a layer reads, and where it comes from."""
    if part.name in inputs:
        x = inputs[part.name]
        return x, drive if x is drive.events else Drive(drive.events, f"what comes before it of {drive.what}")
    own = poisson_drive(
        part.layer.input_size,
        part.layer.delta_t,
        num_excitatory=part.num_excitatory,
        duration_ms=duration_ms,
        rate_hz=min(rate_hz, 1000 / part.layer.delta_t),
        seed=seed,
    )
    return own.events, own
