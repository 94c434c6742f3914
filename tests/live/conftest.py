"""The page's build, which is no part of the package, and the published neuron by the paper's equations."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

LIVE = Path(__file__).resolve().parents[2] / "docs" / "live"
sys.path.insert(0, str(LIVE))  # as mkdocs does for the hook, and Python for the command


@pytest.fixture(scope="session")
def live() -> Path:
    """The page's folder."""
    return LIVE
