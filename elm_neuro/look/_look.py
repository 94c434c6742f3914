"""A folder of figures, numbers and one page about any module that holds a layer of neurons."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from elm_neuro import plotting
from elm_neuro.files import write_whole
from elm_neuro.look._figures import (
    Shown,
    fields_figure,
    recordings_figure,
    responses_figure,
    time_constants_figure,
)
from elm_neuro.look._input import RATE_HZ, Drive, check_seed
from elm_neuro.look._numbers import branch_fields, spike_responses, time_constants
from elm_neuro.look._page import Figured, Section, page
from elm_neuro.look._parts import Input, Part, parts_of
from elm_neuro.look._reaching import Asked, Reaching
from elm_neuro.nn._copies import copied

Progress = Callable[[str, int, int], None]  # what is done now, how much is done, how much there is
PAGE, NUMBERS = "index.html", "numbers.npz"


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
    sequence; of the module: its parameters. Files of a layer inside of a module begin with its place, ``_`` for what is
    no letter or digit, and a number where two places would read alike. ``numbers.npz`` holds the numbers behind the
    figures, by the layer's place and their names.

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
        OSError: `folder` cannot be written.
    """
    check_seed(seed)
    module = _copy(module)
    parts = parts_of(module, neuron=neuron)
    reaching = Reaching(module, parts, Asked(data, index, duration_ms, rate_hz, seed))
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"folder must be one that can be written, got {folder}: {error.strerror or error}") from error
    sections: list[Section] = []
    numbers: dict[str, Any] = {}
    total = 4 * len(parts) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of layers that spike by chance
        for place, (part, prefix) in enumerate(zip(parts, _prefixes(parts), strict=True)):
            figures = []
            for at, (what, make) in enumerate(_steps(part, *reaching.of(part), numbers)):
                if progress is not None:
                    progress(f"{part.name or type(part.layer).__name__}: {what}", 4 * place + at, total)
                if (shown := make()) is not None:
                    png, _ = plotting.save(shown.figure, folder / f"{prefix}{shown.name}")
                    figures.append(Figured(shown.title, shown.caption, png.read_bytes()))
            sections.append(Section(part, figures))
    if progress is not None:
        progress("the page", total - 1, total)
    title = name or type(module).__name__
    lead = f"{type(module).__name__}. Driven by {reaching.drive.what}.{reaching.remark}"
    content = io.BytesIO()
    np.savez_compressed(content, **numbers)
    html = page(title, lead, module, sections).encode()
    write_whole({folder / NUMBERS: content.getvalue(), folder / PAGE: html})
    if progress is not None:
        progress("done", total, total)
    return folder / PAGE


def _prefixes(parts: list[Part]) -> list[str]:
    """How the files of each layer begin, also where capitals are no other letters than small ones.

    >>> from elm_neuro import LIF
    >>> _prefixes([Part(name, LIF(2, 1)) for name in ("a.b", "a_b", "A_b", "c/d")])
    ['a_b_', 'a_b_2_', 'A_b_3_', 'c_d_']
    """
    stems: dict[str, str] = {}  # as they are, by how they read
    for part in parts:
        plain = stem = re.sub(r"[^\w-]", "_", part.name)
        number = 1
        while stem.casefold() in stems:
            number += 1
            stem = f"{plain}_{number}"
        stems[stem.casefold()] = stem
    return [f"{stem}_" if stem else "" for stem in stems.values()]


def _steps(part: Part, x: Input, drive: Drive, numbers: dict[str, Any]) -> list[tuple[str, Callable[[], Shown | None]]]:
    """What is done for a layer, in words, and how; `numbers` gets what is behind the figures."""
    prefix = f"{part.name}/" if part.name else ""

    def times() -> Shown | None:
        found = time_constants(part)
        numbers.update({f"{prefix}{name}": values for name, values in found.items()})
        return time_constants_figure(part, found)

    def fields() -> Shown | None:
        found = branch_fields(part)
        if found is not None:
            numbers[f"{prefix}{'receptive_fields' if part.has_memory else 'weights'}"] = found
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


def _copy(module: nn.Module) -> nn.Module:
    """A copy that is evaluated, on the CPU, of numbers that are at least float32, which figures are drawn of."""
    module = copied(module).cpu().eval()
    narrow = {tensor.dtype for tensor in module.state_dict().values() if isinstance(tensor, Tensor)}
    return module.float() if narrow & {torch.float16, torch.bfloat16} else module
