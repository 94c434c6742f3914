from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("PIL")


@pytest.fixture
def lra(shared: Path) -> Path:
    """Frozen samples of the published code, beside the repository."""
    return shared / "data" / "lra"
