"""The code of README.md and of the pages in docs/: what is in their fences, and what keeps one from running here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

# A fence does not run where the line `<!-- not run: REASON -->` stands before it, with one of these reasons.
REASONS = (
    "installs packages",
    "needs a GPU",
    "needs several GPUs or machines",
    "needs files of SHD",
    "needs files of NeuronIO",
    "needs files of the Long Range Arena",
    "needs the authors' code",
    "needs another runtime",
    "takes minutes",
    "serves until it is stopped",
    "does what the test suite does",
    "an outline",
)
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>\n]*) -->\n\n?)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    flags=re.MULTILINE | re.DOTALL,
)
PACKAGES = {  # what a page names, and the package that it needs
    "snntorch": "snntorch",
    "norse": "norse",
    "tonic": "tonic",
    "spikingjelly": "spikingjelly",
    "adapters.nir": "nir",
    "elm_neuro.datasets": "h5py",
    "elm_neuro.export": "onnx",
    "elm_neuro.training": "lightning",
    "plotting": "matplotlib",
}


class Fence(NamedTuple):
    """A fenced block of a page."""

    language: str
    code: str
    reason: str | None  # why it does not run


def pages() -> list[Path]:
    """README.md and every page of the site that is written by hand."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fences(page: Path) -> list[Fence]:
    """The fenced blocks of a page, in their order."""
    found = []
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        found.append(Fence(match["language"], code, match["reason"]))
    return found


def commands(code: str) -> list[str]:
    """The commands of a block of shell lines, without comments, continued lines joined.

    >>> commands("# why\\nmake demo   # minutes\\nelm-neuro fit \\\\\\n  --config a\\n")
    ['make demo', 'elm-neuro fit --config a']
    """
    joined = re.sub(r"\s*\\\n\s*", " ", code)
    return [line for line in (re.sub(r"(^|\s)#.*", "", row).strip() for row in joined.splitlines()) if line]


def needed(code: str) -> list[str]:
    """Packages without which the code cannot run."""
    return sorted({package for name, package in PACKAGES.items() if name in code})
