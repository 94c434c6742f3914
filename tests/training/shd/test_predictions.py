from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from elm_neuro import ELM
from elm_neuro.training import PredictionWriter, SequenceClassifier, SpikeClassification, TestReport


def write(path: Path, probability: torch.Tensor) -> None:
    trainer: Any = SimpleNamespace(global_rank=0)
    module: Any = None
    PredictionWriter(path).write_on_epoch_end(trainer, module, [probability], [[list(range(len(probability)))]])


def test_a_table_has_a_row_a_sample(tmp_path: Path) -> None:
    probability = torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]])
    write(tmp_path / "new" / "table.csv", probability)
    text = (tmp_path / "new" / "table.csv").read_text()
    assert text.startswith("sample,class,p0,p1\n0,1,0.25,0.75\n")
    table = np.loadtxt(text.splitlines(), delimiter=",", skiprows=1)
    np.testing.assert_array_equal(table[:, 0], [0, 1, 2])
    np.testing.assert_allclose(table[:, 2:], probability)


def test_a_table_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "table.csv", torch.eye(2))
    before = (tmp_path / "table.csv").read_bytes()
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path / "table.csv", torch.eye(3))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"table.csv": before}


def test_an_evaluation_that_cannot_be_written_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SpikeClassification(SequenceClassifier(ELM(3, 2, num_memory=2)), num_classes=2)
    module.confusion = torch.eye(2)
    trainer: Any = SimpleNamespace(callback_metrics={"test/accuracy": torch.tensor(1.0)}, ckpt_path=None)
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        TestReport(tmp_path / "test").on_test_end(trainer, module)
    assert not list((tmp_path / "test").iterdir())


def full_disk(handle: int) -> None:
    raise OSError("no space left on device")
