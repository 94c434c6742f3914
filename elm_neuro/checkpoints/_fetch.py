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

from elm_neuro.checkpoints._upstream import CONFIG_FILE, WEIGHTS_FILE
from elm_neuro.files import write_whole

UPSTREAM_URL = (
    "https://raw.githubusercontent.com/AaronSpieler/elmneuron/52e68a6d39523ac6613a586699b116e8e606dda3/models"
)
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
        name: "num_memory_1", 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 75 or 100, or "best_elm_neuron".
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
    folder = (_cache_home() if cache_dir is None else Path(cache_dir)) / name
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
        write_whole({path: content})
    return folder


def _cache_home() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "elm_neuro" / "upstream"


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


# sha256 of the files in the authors' repository at 52e68a6
CONFIG_SHA256 = {
    "num_memory_1": "23598daf7655e12fb1b60bfc29aa06d846aabc86a1f58a8dfe12d8d190d16903",
    "num_memory_2": "4a9212ba2f743d4a1e1188427fb64d292f456744a4a285f0e2ecc366902701d6",
    "num_memory_3": "1df2af706f78e3bac61cfa837a08290197deb1b91c0c1f98590e4afde15dca2a",
    "num_memory_5": "7d24ed4e11771b90b870db1bb7a643b8358ec275eaf4afb3c97069d55cd6b197",
    "num_memory_7": "e048954ec3c93b55bb7ec30899dfdb8ab6f59099c59e7443f4ef3d3347e546b3",
    "num_memory_10": "d67fe3bea4da8fca2fb0814861080a2af55f29620cb710362d9a4cccf7942fb9",
    "num_memory_15": "2536c6e31b13c5b485219bd3ef861d4b223d52d21a04bc609c3e7b9ca2be5388",
    "num_memory_20": "c12c1310ba5c77ce77918f345fcdf39c79aec1f537a748616ec8fd6a5f8446d3",
    "num_memory_25": "224fdd886d8b0ff00a5d8492a165b49b327f97be908014a0845a4486bceedfe2",
    "num_memory_30": "3849a2ce87cc6ab0bf79ca7f322c51778e0eff25684acb0ee8c6679c0550253b",
    "num_memory_40": "eb0ac4e9b357c6db93372c1e116d63579a444d2e969daf21f272181eecff14c6",
    "num_memory_50": "947c521c42668a1377533a0a2e3f87c12d8c22b07c90bee8632b8204bf3adc82",
    "num_memory_75": "9559a7c6f15786ae6f7f6120e64b8b7b3870a5413f912c50416c5f961e8347e6",
    "num_memory_100": "9da30138a9c0cc755fc26a7b59718a1f92a8b6c2b80fce031a4ff762215eaa6c",
    "best_elm_neuron": "3c54bb31199cdd4c814ffc2965827c2c7cc62802aa1330ae32806e9b5377b51a",
}
WEIGHTS_SHA256 = {
    "num_memory_1": "2fde82f06143fee92dc1e76d20a16aa69cfb0f3fed3876f6e321e643a6846a7e",
    "num_memory_2": "f484d08371267a8713d2d94e638e3e83e57c2ff37805ef2b48b0bc84efbd34bd",
    "num_memory_3": "af629ea0bc064c90082bac2f7c6fe441e736eee150a909f0b8b7e37435ffe2e4",
    "num_memory_5": "db39914f78fd96d5c67c0d3d1d1db12ab7d9fedc263d0ea06ace67b20216f8fb",
    "num_memory_7": "a77898efabc57ad3f75064c86ecc448b2992f6dd1befb37d2a53217753f60cea",
    "num_memory_10": "31fe64fc597d990d549f4f60b1eb2da410cfd85449774f8b34982a4dad87d1e8",
    "num_memory_15": "c97111e4ab732adccdd01982db5b6ddf6f3273ad7f84739ff7edc24399259832",
    "num_memory_20": "d5860dd60cb6799797818dad20b63873fb51a40c362767d73ba9bd47b5ae28f5",
    "num_memory_25": "51fcb04f20302d96e657bab45572ac4f2e866df87634e16cdf0816338814166c",
    "num_memory_30": "90e81b6a970f536d18f99abfeec8baa7b46a007b0ce06e70c118c38622937491",
    "num_memory_40": "25a34b7863c4738b4e3437f9828e52d29ba965c564c6feb06c777813d9487e4b",
    "num_memory_50": "30ef79c024a7ddeebc2ae1635a85ee547b04285a0d03524c5fca411505545f2c",
    "num_memory_75": "ea17dc3ecbe248fef79a2bfe7e014ecd5fec29bbaa8ead2d809fb95db40019aa",
    "num_memory_100": "444dd697c7f0f9ea13dd82bcd46f56b757d2ef4dfdc367e1d63520ea625303f7",
    "best_elm_neuron": "ee1252616cd2ad7dd60786e304a56e6d9d13b4f85ce9974fbef909efa9f43812",
}
