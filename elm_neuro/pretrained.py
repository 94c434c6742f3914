"""Neurons in the package's own folders: safetensors and a config."""

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

from elm_neuro.checkpoints._files import (
    FLOATS,
    INDEX,
    build,
    check_tensors,
    tensor_shapes,
)
from elm_neuro.files import json_object, read_file, write_whole
from elm_neuro.nn import ELM, BranchELM, ELMConfig

FORMAT = "elm_neuro"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save_pretrained(neuron: ELM, directory: str | os.PathLike[str]) -> None:
    """Write a neuron as ``model.safetensors`` and ``config.json``; :func:`from_pretrained` reads it back bit by bit.

    The config holds the checksum of the weights and is put in place last, so that a folder whose writing was cut off is
    not taken for a whole one. A save that fails leaves what was there before.

    Args:
        neuron: an :class:`ELM` or :class:`BranchELM`, of any dtype, on any device.
        directory: folder to write into; made where it is missing, its two files replaced where they exist.

    Raises:
        TypeError: `neuron` is something else.
        OSError: `directory` is a file, or cannot be written.

    >>> import tempfile
    >>> neuron = ELM(3, 1, num_memory=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(neuron, folder)
    ...     same = from_pretrained(folder)
    >>> same.config == neuron.config and torch.equal(same.w_s, neuron.w_s)
    True
    """
    if type(neuron) not in (ELM, BranchELM):
        hint = (
            " (a neuron lent to another library has it as .core)"
            if isinstance(getattr(neuron, "core", None), ELM)
            else ""
        )
        raise TypeError(f"neuron must be an ELM or a BranchELM, got {type(neuron).__name__}{hint}")
    directory = Path(directory)
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in neuron.state_dict().items()
    }
    check_tensors(tensors, tensor_shapes(neuron.config, len(tensors)), INDEX, "neuron")
    weights = safetensors.torch.save(tensors)
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "class": type(neuron).__name__,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "config": neuron.config.to_dict(),
    }
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"directory must be a folder, got the file {directory}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(
            {directory / WEIGHTS_FILE: weights, directory / CONFIG_FILE: json.dumps(config, indent=2).encode() + b"\n"}
        )
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
) -> ELM:
    """Read a neuron that :func:`save_pretrained` wrote, from a folder or from the Hugging Face hub.

    Args:
        directory_or_hub_id: a folder, or "owner/name" on the hub where there is no such folder (needs the extra "hub").
        device: where to put it; the CPU by default.
        dtype: floating type to convert it to; as saved by default.
        backend: as in :class:`ELM`.
        revision: branch, tag or commit on the hub.

    Returns:
        A :class:`BranchELM` where the config has branches, else an :class:`ELM`; weights, routing and time constants as
        saved.

    Raises:
        FileNotFoundError: no such folder, or a file is missing in it.
        ValueError: a file is damaged, does not fit the other, or is of another kind or a newer format.
        ImportError: an id of the hub was given and huggingface_hub is not installed.
    """
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype must be one of {[str(one) for one in FLOATS]}, got {dtype}")
    directory = _folder(directory_or_hub_id, revision)
    config_file, weights_file = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    values, weights = json_object(config_file), read_file(weights_file)
    kind, config = _config(values, config_file)
    if hashlib.sha256(weights).hexdigest() != values.get("weights_sha256"):
        raise ValueError(
            f"{weights_file} must be the file that {CONFIG_FILE} was written with (sha256): it is cut short, changed, or of another save"
        )
    try:
        tensors = safetensors.torch.load(weights)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"{weights_file} must be a whole safetensors file, got {len(weights)} bytes: {error}"
        ) from error
    check_tensors(tensors, tensor_shapes(config, len(tensors)), INDEX, str(weights_file))
    try:
        neuron = build(config, tensors, backend=backend)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{directory}: {error}") from error
    if type(neuron).__name__ != kind:
        raise ValueError(f"{config_file}: class must be {type(neuron).__name__} for this num_branch, got {kind}")
    return neuron.to(device=device, dtype=dtype)


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
            f'elm_neuro.checkpoints needs huggingface_hub for {directory_or_hub_id!r} (there is no such folder): pip install "elm-neuro[hub]"'
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


def _config(values: dict[str, Any], path: Path) -> tuple[str, ELMConfig]:
    """Class and configuration of a config file of ours."""
    if values.get("format") != FORMAT:
        raise ValueError(f"{path}: format must be {FORMAT!r}, got {values.get('format')!r}")
    version = values.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version must be at most {FORMAT_VERSION}, got {version!r}; a newer elm_neuro may read it"
        )
    if (kind := values.get("class")) not in ("ELM", "BranchELM"):
        raise ValueError(f"{path}: class must be ELM or BranchELM, got {kind!r}")
    config = values.get("config")
    if not isinstance(config, dict):
        raise ValueError(f"{path}: config must be an object, got {type(config).__name__}")
    try:
        return str(kind), ELMConfig.from_dict(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
