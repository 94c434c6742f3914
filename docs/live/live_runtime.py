"""onnxruntime-web, pinned and checked: from the npm registry once, from the cache afterwards."""

from __future__ import annotations

import base64
import hashlib
import http.client
import tarfile
import time
import urllib.request
from io import BytesIO
from pathlib import Path

from elm_neuro.files import cache_folder, write_whole

VERSION = "1.30.0"
# dist.integrity of the registry: npm view onnxruntime-web@1.30.0 dist.integrity
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
NUM_BYTES = 33_106_585
TIMEOUT_S = 30.0  # to connect, and without a byte
DEADLINE_S = 300.0

WASM = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
WEBGPU = ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
LICENCE = f"""onnxruntime-web {VERSION}, https://github.com/microsoft/onnxruntime

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def fetch_runtime(cache: Path | None = None, *, address: str = ADDRESS) -> Path:
    """The package's tarball in the cache, downloaded where it is not there.

    Args:
        cache: folder; ``$XDG_CACHE_HOME/elm_neuro/onnxruntime-web`` or ``~/.cache/elm_neuro/onnxruntime-web`` by
            default.
        address: of the tarball.

    Raises:
        ConnectionError: it cannot be downloaded; the message says where to put it by hand.
        ValueError: what came is not the pinned package.
    """
    path = (cache_folder("onnxruntime-web") if cache is None else cache) / f"onnxruntime-web-{VERSION}.tgz"
    if path.is_file() and _is_pinned(path.read_bytes()):
        return path
    try:
        content = _download(address)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"{address} could not be downloaded ({error}); without a network, put it at {path}"
        ) from error
    if not _is_pinned(content):
        raise ValueError(f"{address} must have the sha512 {SHA512}, got another one ({len(content)} bytes)")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole({path: content})
    return path


def unpack_runtime(tarball: Path, folder: Path) -> int:
    """Write the files that the page loads, and their licence; the number of bytes.

    Raises:
        ValueError: the tarball is not the pinned package.
    """
    content = tarball.read_bytes()
    if not _is_pinned(content):
        raise ValueError(f"{tarball} must have the sha512 {SHA512}, got another one ({len(content)} bytes)")
    files = {folder / "LICENSE": LICENCE.encode()}
    with tarfile.open(fileobj=BytesIO(content)) as archive:
        for name in (*WASM, *WEBGPU):
            member = archive.extractfile(f"package/dist/{name}")
            if member is None:
                raise ValueError(f"{tarball} must hold package/dist/{name} as a file, got none")
            files[folder / name] = member.read()
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(files)
    return sum(map(len, files.values()))


def _is_pinned(content: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(content).digest()).decode() == SHA512


def _download(address: str) -> bytes:
    start, content = time.monotonic(), bytearray()
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as response:
        while chunk := response.read1(1 << 20):  # what is there, so that the clock is looked at between
            content += chunk
            if len(content) > NUM_BYTES:
                raise ValueError(f"{address} must have {NUM_BYTES} bytes, got more")
            if time.monotonic() - start > DEADLINE_S:
                raise TimeoutError(f"only {len(content)} bytes came in {DEADLINE_S:g} s")
    return bytes(content)
