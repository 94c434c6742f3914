"""The page put together: its own files, the neuron as ONNX with what the page draws of it, and the runtime."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from live_neuron import LiveNeuron
from live_runtime import VERSION, fetch_runtime, unpack_runtime

from elm_neuro import BranchELM
from elm_neuro.checkpoints import from_upstream
from elm_neuro.checkpoints._fetch import CONFIG_SHA256, WEIGHTS_SHA256
from elm_neuro.checkpoints._upstream import CONFIG_FILE, WEIGHTS_FILE
from elm_neuro.export import to_onnx
from elm_neuro.files import write_whole
from elm_neuro.functional._elm import TANH_SCALE

HERE = Path(__file__).resolve().parent
NAME = "num_memory_20"
PAGE = ("index.html", "style.css", "model/LICENSE")
COMMIT = "52e68a6d39523ac6613a586699b116e8e606dda3"


class Built(NamedTuple):
    """What was written."""

    folder: Path
    num_bytes: int  # of the page and its model, without the runtime
    runtime: str | None  # why the runtime is not there, None where it is


def build(folder: Path, *, tarball: Path | None = None) -> Built:
    """Write the page into a folder that any web server can show.

    Args:
        folder: is made; files of the page in it are replaced.
        tarball: of onnxruntime-web; by default the one in the cache, downloaded where it is not there. Without it the
            page is written all the same, and says to visitors what is missing.

    Raises:
        ValueError: a file of the published neuron, or the tarball, is not the one that is meant.
    """
    pages = {folder / name: (HERE / name).read_bytes() for name in PAGE}
    pages |= {folder / "js" / file.name: file.read_bytes() for file in sorted((HERE / "js").glob("*.js"))}
    for path in pages:
        path.parent.mkdir(parents=True, exist_ok=True)
    neuron = published()
    step = folder / "model" / "step.onnx"
    to_onnx(LiveNeuron(neuron), step, head="neuronio", batch_size=1, source=HERE / "model" / NAME)
    pages[folder / "model" / "neuron.json"] = json.dumps(described(neuron)).encode()
    write_whole(pages)
    try:
        unpack_runtime(fetch_runtime() if tarball is None else tarball, folder / "runtime")
        missing = None
    except ConnectionError as error:
        missing = str(error)
    return Built(folder, sum(map(len, pages.values())) + step.stat().st_size, missing)


def published() -> BranchELM:
    """The authors' neuron, from their files as published.

    Raises:
        ValueError: a file has another checksum.
    """
    folder = HERE / "model" / NAME
    for file, sha256 in ((CONFIG_FILE, CONFIG_SHA256[NAME]), (WEIGHTS_FILE, WEIGHTS_SHA256[NAME])):
        if (came := hashlib.sha256((folder / file).read_bytes()).hexdigest()) != sha256:
            raise ValueError(f"{folder / file} must have the sha256 {sha256}, got {came}")
    neuron = from_upstream(folder)
    if not isinstance(neuron, BranchELM):
        raise ValueError(f"{folder} must hold a Branch-ELM, got {type(neuron).__name__}")
    return neuron.eval()


def described(neuron: BranchELM) -> dict[str, Any]:
    """What the page draws: times in ms, and which inputs each branch reads."""
    cell, config = neuron.cell, neuron.config
    p = cell.effective_parameters()
    if p.routing is None:
        raise ValueError("neuron must have a routing, got none")
    branches = [{"inputs": [i for i in inputs if i >= 0]} for inputs in p.routing.tolist()]
    return {
        "name": NAME,
        "source": f"https://github.com/AaronSpieler/elmneuron/tree/{COMMIT}/models/{NAME}",
        "weights_sha256": WEIGHTS_SHA256[NAME],
        "licence": "MIT, Copyright (c) 2023 Aaron Spieler",
        "runtime": f"onnxruntime-web {VERSION}",
        "delta_t": config.delta_t,
        "num_inputs": config.input_size,
        "num_excitatory": config.input_size // 2,  # the first half; a spike of the others comes in as -1
        "tau_s": float(cell.tau_s),
        "tau_m": [round(tau, 4) for tau in cell.tau_m.tolist()],
        "largest_memory": config.lambda_ * TANH_SCALE,
        "branches": branches,
    }
