"""Folders of a module: its weights as safetensors, its class and configuration as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from elm_neuro.files import json_object, read_file, write_whole
from elm_neuro.pretrained._card import CARD_FILE, card_to_write
from elm_neuro.pretrained._kinds import Kind, describe, described, kind_of
from elm_neuro.pretrained._tensors import check_dtype, checked_blank, weights_of, with_tensors

FORMAT = "elm_neuro"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save_pretrained(module: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Write a module as ``model.safetensors`` and ``config.json``; :func:`from_pretrained` reads it back bit by bit.

    A model card, ``README.md``, is written beside them from the configuration; one of your own is left alone. The
    config holds the checksum of the weights and is put in place last, so that a folder whose writing was cut off is
    not taken for a whole one. A save that fails leaves what was there before.

    Args:
        module: an :class:`elm_neuro.ELM` or another layer of :mod:`elm_neuro`, an ``nn.Sequential`` of them and of
            plain layers of torch, or what else :func:`register` made known; of any dtype, on any device.
        directory: folder to write into; made where it is missing, its files replaced where they exist.

    Raises:
        TypeError: `module` is something else, or something in it cannot be saved.
        ValueError: its tensors are not those of its configuration.
        OSError: `directory` is a file, or cannot be written.

    >>> import tempfile
    >>> from elm_neuro import ELM
    >>> neuron = ELM(3, 1, num_memory=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(neuron, folder)
    ...     same = from_pretrained(folder)
    >>> same.config == neuron.config and torch.equal(same.w_s, neuron.w_s)
    True
    """
    description = describe(module)
    directory = Path(directory)
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in weights_of(module).items()
    }
    kind = kind_of(description["class"])
    checked_blank(kind, kind.read(description["config"]), tensors, "module")
    weights = safetensors.torch.save(tensors)
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "class": description["class"],
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "config": description["config"],
    }
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"directory must be a folder, got the file {directory}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        card = card_to_write(directory, module, description, tensors)
        files = {} if card is None else {directory / CARD_FILE: card}
        files |= {
            directory / WEIGHTS_FILE: weights,
            directory / CONFIG_FILE: json.dumps(config, indent=2).encode() + b"\n",
        }
        write_whole(files, through_links=False)  # those of the hub's cache lead to what others read
    except OSError as error:
        raise OSError(
            error.errno, f"directory must be a folder that can be written, got {directory}: {error.strerror or error}"
        ) from error


def from_pretrained(
    directory_or_hub_id: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    revision: str | None = None,
) -> Any:
    """Read a module that :func:`save_pretrained` wrote, from a folder or from the Hugging Face hub.

    Args:
        directory_or_hub_id: a folder, or "owner/name" on the hub where there is no such folder (needs the extra "hub").
        device: where to put it; the CPU by default.
        dtype: floating type to convert it to; as saved by default.
        backend: as in :class:`elm_neuro.ELM`, for every layer in it that has a backend of that name.
        revision: branch, tag or commit on the hub.

    Returns:
        A module of the class that was saved; weights, routing and time constants as saved.

    Raises:
        FileNotFoundError: no such folder, or a file is missing in it.
        ValueError: a file is damaged, does not fit the other, is of a newer format, or of a class that is not known:
            the message names those that are.
        ImportError: an id of the hub was given and huggingface_hub is not installed.
    """
    check_dtype(dtype)
    directory = _folder(directory_or_hub_id, revision)
    config_file, weights_file = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    values, weights = json_object(config_file), read_file(weights_file)
    kind, config = _checked_config(values, config_file)
    if hashlib.sha256(weights).hexdigest() != values.get("weights_sha256"):
        raise ValueError(
            f"{weights_file} must be the file that {CONFIG_FILE} was written with (sha256): it is cut short, "
            "changed, or of another save"
        )
    try:
        tensors = safetensors.torch.load(weights)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"{weights_file} must be a whole safetensors file, got {len(weights)} bytes: {error}"
        ) from error
    module = with_tensors(kind, config, tensors, str(directory))
    if backend != "auto":
        _choose_backend(module, backend)
    return module.to(device=device, dtype=dtype)


def _choose_backend(module: nn.Module, backend: str) -> None:
    """Set it on every layer that takes it; the first refusal is raised where none does."""
    refusals, taken = [], 0
    part: Any
    for part in module.modules():
        if hasattr(part, "backend"):
            try:
                part.backend = backend
                taken += 1
            except ValueError as error:
                refusals.append(error)
    if refusals and not taken:
        raise refusals[0]


def _folder(directory_or_hub_id: str | os.PathLike[str], revision: str | None) -> Path:
    path = Path(directory_or_hub_id)
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"revision must be None for a folder, got {revision!r}")
        return path
    if path.exists():
        raise NotADirectoryError(f"directory_or_hub_id must be a folder or a hub id, got the file {path}")
    if not (isinstance(directory_or_hub_id, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", directory_or_hub_id)):
        raise FileNotFoundError(
            f'directory_or_hub_id must be a folder or a hub id "owner/name", got {str(path)!r}, which does not exist'
        )
    if find_spec("huggingface_hub") is None:
        raise ImportError(
            f"elm_neuro.checkpoints needs huggingface_hub for {directory_or_hub_id!r} (there is no such folder): "
            'pip install "elm-neuro[hub]"'
        )
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                directory_or_hub_id, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]
            )
        )
    except OSError as error:  # all of the hub's errors but those of a malformed id
        raise FileNotFoundError(
            f"{directory_or_hub_id!r} must be a folder or on the Hugging Face hub, got neither: {error}"
        ) from error


def _checked_config(values: dict[str, Any], path: Path) -> tuple[Kind, Any]:
    """Kind and configuration of a config file of ours."""
    if values.get("format") != FORMAT:
        raise ValueError(f"{path}: format must be {FORMAT!r}, got {values.get('format')!r}")
    version = values.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version must be at most {FORMAT_VERSION}, got {version!r}; a newer elm_neuro may read it"
        )
    try:
        return described(values, "config")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
