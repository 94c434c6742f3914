"""Sequences that were read once, kept as arrays mapped into memory: keyed by what they were read from and how."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets.lra._sequences import TokenSequences
from elm_neuro.files import (
    cache_folder,
    is_temporary,
    is_there,
    json_object,
    open_regular,
    remove_old_leftovers,
    write_whole_folder,
)

VERSION = 1  # raise it when the same files and settings give other sequences
MANIFEST = "manifest.json"
DAMAGES = (OSError, ValueError, KeyError, TypeError, EOFError)
Parts = dict[str, TokenSequences]


def content_key(files: Iterable[Path], settings: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of the names and contents of files and of what is done with them.

    Args:
        files: in any order; folders stand for all files in them, less those that are being written.
        settings: plain values.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256(json.dumps([VERSION, dict(settings)], sort_keys=True).encode())
    for top in sorted(files):
        for path in sorted(path for path in top.rglob("*") if path.is_file()) if top.is_dir() else [top]:
            if is_temporary(path):
                continue
            with open_regular(path) as file:
                content = hashlib.file_digest(file, "sha256").digest()
            digest.update(os.fsencode(path.relative_to(top.parent)) + b"\0" + content)
    return digest.hexdigest()


def cached(task: str, key: str, make: Callable[[], Parts], folder: str | os.PathLike[str] | None = None) -> Parts:
    """The sequences of `key`, mapped into memory, from the cache where they are whole there, else made and put there.

    A cache of another version, or a damaged one, is made again, with a warning; a folder that cannot be written costs a
    warning, too.

    Args:
        task: first part of the name in the cache.
        key: of :func:`content_key`.
        make: gives the parts by their names.
        folder: of the cache; None is ``elm_neuro/lra`` in ``$XDG_CACHE_HOME`` or else ``~/.cache``.
    """
    try:
        place = (cache_folder("lra") if folder is None else Path(folder)) / f"{task}-{key[:24]}"
    except RuntimeError as error:
        warnings.warn(f"nothing is kept, so the sequences are read again next time: {error}", stacklevel=2)
        return make()
    if is_there(place):
        try:
            return _read(place, key)
        except DAMAGES as error:
            warnings.warn(f"{place} is no whole cache of these sequences and is made again: {error}", stacklevel=2)
    parts = make()
    if (made_meanwhile := _whole(place, key)) is not None:
        return made_meanwhile
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_old_leftovers(place.parent)
        write_whole_folder(place, _files(parts, key))
    except OSError as error:
        warnings.warn(f"{place} cannot be written, so the sequences are read again next time: {error}", stacklevel=2)
        return parts
    return _whole(place, key) or parts  # another process may be putting its own there this moment


def _whole(place: Path, key: str) -> Parts | None:
    """What is in the cache; None where it is not there, or not whole."""
    try:
        return _read(place, key)
    except DAMAGES:
        return None


def _arrays(sequences: TokenSequences) -> dict[str, NDArray[Any]]:
    arrays = {"tokens": sequences.tokens, "indptr": sequences.indptr, "labels": sequences.labels}
    return arrays if sequences.groups is None else arrays | {"groups": sequences.groups}


def _files(parts: Parts, key: str) -> dict[str, bytes]:
    files, described = {}, {}
    for name, sequences in parts.items():
        for kind, array in _arrays(sequences).items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            files[f"{name}.{kind}.npy"] = content.getvalue()
        described[name] = {
            "num_tokens": sequences.num_tokens,
            "num_classes": sequences.num_classes,
            "group_names": list(sequences.group_names),
            "per_item": sequences.per_item,
            "fingerprint": sequences.fingerprint,
            "arrays": {kind: [array.dtype.str, array.size] for kind, array in _arrays(sequences).items()},
        }
    manifest = {"version": VERSION, "key": key, "parts": described}
    return files | {MANIFEST: json.dumps(manifest, indent=1).encode()}


def _read(place: Path, key: str) -> Parts:
    manifest = json_object(place / MANIFEST)
    if manifest["version"] != VERSION or manifest["key"] != key:
        raise ValueError(f"it must be of version {VERSION} and key {key[:24]}, got version {manifest['version']!r}")
    parts: Parts = {}
    for name, described in manifest["parts"].items():
        arrays: dict[str, NDArray[Any]] = {}
        for kind, (dtype, size) in described["arrays"].items():
            path = place / f"{name}.{kind}.npy"
            if not size:
                arrays[kind] = np.empty(0, dtype=np.dtype(dtype))
                continue
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.dtype.str != dtype or array.shape != (size,):
                raise ValueError(f"{path.name} must hold {size} of {dtype}, got {array.shape} of {array.dtype.str}")
            arrays[kind] = array
        parts[name] = TokenSequences(
            arrays["tokens"],
            np.asarray(arrays["indptr"]),
            np.asarray(arrays["labels"]),
            described["num_tokens"],
            described["num_classes"],
            np.asarray(arrays["groups"]) if "groups" in arrays else None,
            tuple(described["group_names"]),
            described["per_item"],
        )
        if parts[name].fingerprint != described["fingerprint"]:
            raise ValueError(f"part {name} must have the fingerprint {described['fingerprint'][:12]}...")
    return parts
