"""Training on N-MNIST: batches of the stand-in, the published network, and a run from the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from elm_neuro import SpikeEvents
from elm_neuro.cli import main
from elm_neuro.datasets import make_nmnist, read_nmnist
from elm_neuro.training import Binning, NMNISTDataModule

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nmnist")
    make_nmnist(folder, 40, 20)
    return folder


@pytest.mark.parametrize(("polarity", "channels"), [("fold", 1156), ("keep", 2312)])
def test_batches_are_the_recordings(stand_in: Path, polarity: str, channels: int) -> None:
    data = NMNISTDataModule(
        stand_in,
        polarity=polarity,
        batch_size=8,
        binning=Binning(bin_ms=1.0, duration_ms=400.0),  # type: ignore[arg-type]
    )
    data.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    assert len(data.part("train")) + len(data.part("valid")) == 40
    labels = []
    for x, label, speaker in data.test_dataloader():
        assert isinstance(x, SpikeEvents) and x.shape == (len(label), 400, channels)
        assert (speaker == -1).all()
        labels.append(label)
    assert torch.cat(labels).tolist() == read_nmnist(stand_in, "test").labels.tolist()
    assert data.class_names == list("0123456789") and data.tested_on == stand_in.name


@pytest.mark.slow
def test_the_recipe_trains_the_published_network(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--trainer.enable_progress_bar=false", "--trainer.max_epochs=1", "--data.batch_size=20"]
    assert main(["fit", "--config", "nmnist_alif", f"--data.folder={stand_in}", *small]) == 0
    # two layers of 256 with three numbers a neuron, bias and recurrence; a leaky readout of ten
    layers = sum(256 * (inputs + 256 + 1 + 3) for inputs in (1156, 256))
    assert f"ALIFNetwork: {layers + 10 * (256 + 2):,} parameters" in capsys.readouterr().err
    run = Path("runs/nmnist_alif")
    assert main(["test", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "best.ckpt")]) == 0
    evaluation = json.loads((run / "test" / "evaluation.json").read_text())
    assert 0.0 <= evaluation["accuracy"] <= 1.0 and evaluation["majority"] == pytest.approx(0.1)
    wrong = ["test", "--config", "nmnist_alif", f"--data.folder={stand_in}", "--data.polarity=keep"]
    assert main([*wrong, "--ckpt_path", str(run / "best.ckpt")]) == 1
    assert 'data.polarity is "fold", got "keep"' in capsys.readouterr().err


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='polarity must be "fold" or "keep", got \'both\''):
        NMNISTDataModule(tmp_path, polarity="both")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="must have the folder Train of N-MNIST"):
        NMNISTDataModule(tmp_path).setup()
