"""One call that loads a neuron wherever it is: a folder, the hub, or the authors' repository by a name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from elm_neuro import pretrained
from elm_neuro.checkpoints._fetch import Progress, fetch_upstream
from elm_neuro.checkpoints._published import list_pretrained
from elm_neuro.checkpoints._upstream import CONFIG_FILE, from_upstream
from elm_neuro.pretrained._tensors import check_dtype


def from_pretrained(
    name_or_path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    revision: str | None = None,
    progress: Progress | None = None,
) -> Any:
    """Read a neuron or network from a folder, from the authors' 15 published ones by its name, or from the hub.

    Args:
        name_or_path: a folder that :func:`save_pretrained` wrote, or one in the authors' format; where there is no such
            folder, a name of :func:`list_pretrained`, downloaded once, or "owner/name" on the Hugging Face hub (needs
            the extra "hub").
        device: where to put it; the CPU by default.
        dtype: floating type to convert it to; as saved by default.
        backend: as in :class:`elm_neuro.ELM`, for every layer in it that has a backend of that name.
        revision: branch, tag or commit on the hub.
        progress: of the download of a published one, as in :func:`fetch_upstream`.

    Returns:
        A module of the class that was saved; a :class:`elm_neuro.BranchELM` for a published neuron.

    Raises:
        FileNotFoundError: no such folder or name, or a file is missing.
        ConnectionError: a published neuron could not be downloaded.
        ValueError: a file is damaged or does not fit the other, or `revision` is given without an id of the hub.
        ImportError: an id of the hub was given and huggingface_hub is not installed.
    """
    path, names = Path(name_or_path), [neuron.name for neuron in list_pretrained()]
    is_published = not path.exists() and str(name_or_path) in names
    if not is_published and not (path / CONFIG_FILE).is_file():
        try:
            return pretrained.from_pretrained(
                name_or_path, device=device, dtype=dtype, backend=backend, revision=revision
            )
        except FileNotFoundError as error:
            if path.exists() or path.name != str(name_or_path):  # it cannot have been meant as a name
                raise
            raise FileNotFoundError(f"{error}, and none of the published neurons {', '.join(names)}") from error
    if revision is not None:
        raise ValueError(f"revision must be None for {name_or_path}, which is not on the hub, got {revision!r}")
    check_dtype(dtype)
    neuron = from_upstream(fetch_upstream(str(name_or_path), progress=progress) if is_published else path)
    neuron.backend = backend
    return neuron.to(device=device, dtype=dtype)
