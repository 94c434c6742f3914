"""Checkpoints are written whole, and a disk that is full is named with the file."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from elm_neuro.training.loop._checkpoints import WholeCheckpoints
from tests.full_disk import full_disk


def test_a_full_disk_is_named_with_the_checkpoint_and_the_one_before_stays(tmp_path: Path) -> None:
    path, before = tmp_path / "run" / "best.ckpt", {"weight": torch.arange(3.0)}
    WholeCheckpoints().save_checkpoint(before, path)
    with full_disk(), pytest.raises(OSError, match=r"best\.ckpt cannot be written: File too large") as raised:
        WholeCheckpoints().save_checkpoint({"weight": torch.zeros(100_000)}, path)
    assert raised.value.errno == errno.EFBIG
    assert [entry.name for entry in path.parent.iterdir()] == ["best.ckpt"]
    assert torch.equal(WholeCheckpoints().load_checkpoint(path)["weight"], before["weight"])
