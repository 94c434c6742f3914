"""Download of the authors' 15 published checkpoints, checked and cached."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from elm_neuro.checkpoints._published import list_pretrained
from elm_neuro.checkpoints._upstream import CONFIG_FILE, WEIGHTS_FILE
from elm_neuro.files import cache_folder, write_whole

CONFIG_SHA256 = {neuron.name: neuron.config_sha256 for neuron in list_pretrained()}
WEIGHTS_SHA256 = {neuron.name: neuron.weights_sha256 for neuron in list_pretrained()}
UPSTREAM_URL = list_pretrained()[0].files_url.rpartition("/")[0]  # of the folder models in the authors' repository
MAX_BYTES = 1 << 20  # the largest published file has 278,148
TIMEOUT_S = 30.0  # to connect, and without a byte
DEADLINE_S = 120.0  # of one file, however slowly its bytes come

Progress = Callable[[str, int, int | None], None]


def fetch_upstream(
    name: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    base_url: str = UPSTREAM_URL,
    progress: Progress | None = None,
) -> Path:
    """Download one of the authors' 15 published checkpoints, or find it in the cache.

    Args:
        name: "num_memory_1", 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 75 or 100, or "best_elm_neuron":
            :func:`elm_neuro.checkpoints.list_pretrained` says more of each.
        cache_dir: where the folder `name` is kept; ``$XDG_CACHE_HOME/elm_neuro/upstream`` or
            ``~/.cache/elm_neuro/upstream`` by default.
        base_url: address of the folder ``models``, https (or http on this machine); the authors' repository at 52e68a6
            by default.
        progress: called with the file's name, the bytes that have come, and the bytes in all where the server tells
            them.

    Returns:
        The folder with both files, their checksums verified; pass it to :func:`from_upstream`.

    Raises:
        ValueError: there is no such checkpoint, or what came has another checksum.
        ConnectionError: the download failed, or took longer than two minutes a file; the message says what to put where
            by hand.
    """
    if name not in CONFIG_SHA256:
        raise ValueError(f"name must be one of {', '.join(CONFIG_SHA256)}, got {name!r}")
    url = urllib.parse.urlsplit(base_url)
    if url.scheme != "https" and not (url.scheme == "http" and url.hostname in ("localhost", "127.0.0.1", "::1")):
        raise ValueError(f"base_url must begin with https://, got {base_url!r}")
    folder = (cache_folder("upstream") if cache_dir is None else Path(cache_dir)) / name
    for file, sha256 in ((CONFIG_FILE, CONFIG_SHA256[name]), (WEIGHTS_FILE, WEIGHTS_SHA256[name])):
        path = folder / file
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            continue
        address = f"{base_url.rstrip('/')}/{name}/{file}"
        try:
            content = _download(address, file, progress)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"{address} could not be downloaded ({error}); without a network, put {CONFIG_FILE} and "
                f"{WEIGHTS_FILE} from"
                f" {UPSTREAM_URL}/{name} into {folder}"
            ) from error
        if (came := hashlib.sha256(content).hexdigest()) != sha256:
            raise ValueError(
                f"{address} must have the sha256 {sha256}, got {came} ({len(content)} bytes): it is damaged or "
                "not the published file"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_whole({path: content}, through_links=False)
    return folder


def _download(address: str, file: str, progress: Progress | None) -> bytes:
    start = time.monotonic()
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        content = bytearray()
        while chunk := response.read1(1 << 16):  # what is there, so that the clock is looked at between
            content += chunk
            if time.monotonic() - start > DEADLINE_S:
                raise TimeoutError(f"only {len(content)} bytes came in {DEADLINE_S:g} s")
            if len(content) > MAX_BYTES:
                raise ValueError(f"{address} must have at most {MAX_BYTES} bytes, got more")
            if progress is not None:
                progress(file, len(content), total)
    if total is not None and len(content) < total:
        raise ConnectionError(f"the connection closed after {len(content)} of {total} bytes")
    return bytes(content)
