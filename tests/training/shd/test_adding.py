from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from elm_neuro import ELM, LIF, SpikeEvents
from elm_neuro.datasets import SHDAdding, SpokenDigits, write_shd
from elm_neuro.training import (
    Binning,
    SequenceClassifier,
    SHDAddingDataModule,
    SpikeClassification,
    SpikingNetwork,
    TestReport,
)
from tests.training.conftest import made

BINNING = Binning(bin_ms=100.0, pool=35)


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training digits by speakers 0 to 9, test digits by speakers 0 to 4, 20 and 21."""
    folder = tmp_path_factory.mktemp("sums")
    write_shd(folder / "train.h5", made(200, list(range(10)), 1))
    write_shd(folder / "test.h5", made(140, [0, 1, 2, 3, 4, 5, 7, 20, 21], 2))
    return folder / "train.h5", folder / "test.h5"


def data_module(sums: tuple[Path, Path], **options: Any) -> SHDAddingDataModule:
    return SHDAddingDataModule(*sums, **{"binning": BINNING, "num_pairs": (48, 40, 80), "batch_size": 16, **options})


def module(**options: Any) -> SpikeClassification:
    seed_everything(0, verbose=False)
    network = SpikingNetwork(LIF(20, 16, delta_t=100.0), ELM(16, 19, num_memory=6, delta_t=100.0), readout="mean")
    return SpikeClassification(network, num_classes=19, **{"learning_rate": 1e-2, "input_dropout": 0.2, **options})


class Recorder(Callback):
    """The sums of every batch that is trained on, epoch after epoch."""

    def __init__(self) -> None:
        self.epochs: list[list[int]] = []

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        self.epochs.append([])

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.epochs[-1] += batch[1].tolist()


@pytest.mark.parametrize("pairing", ["fixed", "upstream"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_epoch_trains_on_the_next_pairs_of_the_protocol(
    sums: tuple[Path, Path], make_trainer: Callable[..., Trainer], pairing: Any, num_workers: int
) -> None:
    recorder = Recorder()
    data = data_module(sums, pairing=pairing, num_workers=num_workers)
    make_trainer(max_epochs=3, callbacks=[recorder], limit_val_batches=0).fit(module(), datamodule=data)
    expected = SHDAdding(*sums, split="train", num_samples=48, pairing=pairing, bin_ms=100.0)
    for epoch, found in enumerate(recorder.epochs):
        expected.set_epoch(epoch)
        assert found == expected.labels.tolist()
    assert recorder.epochs[0] != recorder.epochs[1]


def test_batches_are_those_of_the_data_set_with_the_speakers_of_both_digits(sums: tuple[Path, Path]) -> None:
    data = data_module(sums, speakers="heldout")
    expected = SHDAdding(*sums, split="test", num_samples=80, speakers="heldout", bin_ms=100.0, pool=35)
    x, labels, speakers = next(iter(data.test_dataloader()))
    assert isinstance(x, SpikeEvents) and x.shape == (16, 20, 20)
    assert torch.equal(x.to_dense(), expected.batch(range(16))[0].to_dense())  # type: ignore[union-attr]
    assert labels.tolist() == expected.labels[:16].tolist()
    assert speakers.shape == (16, 2) and set(speakers.flatten().tolist()) == {20, 21}


def test_nobody_trains_and_validates(sums: tuple[Path, Path]) -> None:
    data = data_module(sums)
    train, valid = set(data.seen_speakers.tolist()), set(data.validation_speakers.tolist())
    assert (train | valid, train & valid, len(valid)) == (set(range(10)), set(), 2)
    assert set(data_module(sums, valid=[3, 4]).validation_speakers.tolist()) == {3, 4}
    one_file = SHDAddingDataModule(sums[0], held_out=[6], num_pairs=(8, 8, 8), binning=BINNING)
    assert set(one_file.part("test").speakers.flatten().tolist()) == {6}


def test_accuracy_counts_pairs_of_two_seen_and_of_two_unseen_speakers_apart(
    sums: tuple[Path, Path], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    data, network = data_module(sums), module()
    trainer = make_trainer(max_epochs=1, callbacks=[TestReport(tmp_path)])
    trainer.fit(network, datamodule=data)
    (found,) = trainer.test(network, datamodule=data, verbose=False)
    answers = torch.cat(trainer.predict(network, datamodule=data)).argmax(1).numpy()  # type: ignore[arg-type]
    labels, speakers = data.part("test").labels.numpy(), data.part("test").speakers.numpy()
    right = answers == labels
    seen, unseen = np.isin(speakers, data.seen_speakers).all(1), ~np.isin(speakers, np.arange(10)).any(1)
    assert seen.any() and unseen.any() and (seen | unseen).mean() < 1
    assert found["test/accuracy"] == pytest.approx(right.mean())
    assert found["test/accuracy_seen"] == pytest.approx(right[seen].mean())
    assert found["test/accuracy_unseen"] == pytest.approx(right[unseen].mean())
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["accuracy"] == pytest.approx(right.mean())
    assert report["lists"]["test"] == data.part("test").fingerprint
    for who in np.unique(speakers):
        own = (speakers == who).any(1)
        assert report["speakers"][str(who)] == {"accuracy": pytest.approx(right[own].mean()), "samples": own.sum()}
    confusion = np.zeros((19, 19), int)
    np.add.at(confusion, (labels, answers), 1)
    assert report["confusion"] == confusion.tolist()
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "confusion.pdf").exists()


def test_fingerprints_are_printed_logged_and_kept(
    sums: tuple[Path, Path], make_trainer: Callable[..., Trainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = data_module(sums)
    checkpoint = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    with caplog.at_level("INFO"):
        trainer = make_trainer(
            max_epochs=1, callbacks=[checkpoint], enable_checkpointing=True, logger=CSVLogger(tmp_path)
        )
        trainer.fit(module(), datamodule=data)
    train, valid = data.part("train").fingerprint, data.part("valid").fingerprint
    assert f"train list of 48 pairs: fingerprint {train}" in caplog.text
    assert f"validation list of 40 pairs: fingerprint {valid}" in caplog.text
    assert "test list" not in caplog.text
    assert train in Path(trainer.logger.log_dir, "hparams.yaml").read_text()  # type: ignore[union-attr,arg-type]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["SHDAddingDataModule"] == {
        "train": train,
        "valid": valid,
        "epoch": 0,
        "batches": 3,
    }


def test_the_best_checkpoint_on_validation_is_the_one_that_is_tested(
    sums: tuple[Path, Path], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """The network is spoilt after the first epoch: the last weights must not be what is tested."""

    class Spoil(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            self.before = {name: value.clone() for name, value in pl_module.network.state_dict().items()}
            if trainer.current_epoch == 1:
                self.best = self.before
                with torch.no_grad():
                    pl_module.network.neuron.cell.w_y.bias[18] = 1e4  # the rarest sum

    best = ModelCheckpoint(tmp_path, "best", monitor="valid/accuracy", mode="max", enable_version_counter=False)
    spoil, network, data = Spoil(), module(), data_module(sums, num_pairs=(320, 200, 200))
    trainer = make_trainer(max_epochs=3, callbacks=[best, spoil], enable_checkpointing=True)
    trainer.fit(network, datamodule=data)
    assert float(network.network.neuron.cell.w_y.bias[18].detach()) > 1e3  # type: ignore[union-attr,index,arg-type]
    (found,) = trainer.test(network, datamodule=data, ckpt_path="best", weights_only=True, verbose=False)
    for name, value in network.network.state_dict().items():
        torch.testing.assert_close(value, spoil.best[name], rtol=0, atol=0, msg=name)
    never = float((data.part("test").labels == 18).float().mean())
    assert found["test/accuracy"] > never


def test_a_resumed_run_trains_on_the_pairs_and_ends_with_the_weights_of_one_that_was_never_stopped(
    sums: tuple[Path, Path], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    whole, recorder = module(), Recorder()
    make_trainer(max_epochs=3, callbacks=[recorder]).fit(whole, datamodule=data_module(sums))
    checkpoint = ModelCheckpoint(tmp_path, "newest", save_on_train_epoch_end=True, enable_version_counter=False)

    class Stop(Callback):
        def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
            if trainer.current_epoch == 2:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        make_trainer(max_epochs=3, callbacks=[checkpoint, Stop()], enable_checkpointing=True).fit(
            module(), datamodule=data_module(sums)
        )
    torch.manual_seed(77)
    resumed, rest = module(), Recorder()
    checkpoint = ModelCheckpoint(tmp_path, "newest", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = make_trainer(max_epochs=3, callbacks=[rest, checkpoint], enable_checkpointing=True)
    trainer.fit(resumed, datamodule=data_module(sums), ckpt_path=tmp_path / "newest.ckpt", weights_only=True)
    assert rest.epochs == recorder.epochs[2:]
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_a_neuron_learns_sums_that_show_in_the_input(
    sums: tuple[Path, Path], make_trainer: Callable[..., Trainer]
) -> None:
    seed_everything(0, verbose=False)
    neuron = ELM(20, 19, num_memory=20, delta_t=100.0, tau_s=100.0, tau_m_init=(100.0, 2000.0))
    network = SpikeClassification(SequenceClassifier(neuron), num_classes=19, learning_rate=1e-2)
    trainer = make_trainer(max_epochs=12)
    data = data_module(sums, num_pairs=(1024, 16, 256), batch_size=32)
    trainer.fit(network, datamodule=data)
    (found,) = trainer.test(network, datamodule=data, verbose=False)
    assert found["test/accuracy"] > found["test/majority"] + 0.1


def test_synthetic_digits_are_a_source(tmp_path: Path) -> None:
    data = SHDAddingDataModule(
        SpokenDigits("train", 24, 0, tmp_path), SpokenDigits("test", 24, 0, tmp_path), num_pairs=(8, 8, 8)
    )
    data.prepare_data()
    assert len(list(tmp_path.iterdir())) == 2
    assert data.num_channels == 700 and data.num_classes == 19
    assert len(data.part("test")) == 8


def test_what_does_not_fit_is_refused(sums: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='pairing must be "fixed" or "upstream", got \'mine\''):
        data_module(sums, pairing="mine")
    with pytest.raises(ValueError, match='valid and held_out must be None with pairing="upstream"'):
        data_module(sums, pairing="upstream", valid=[1])
    with pytest.raises(ValueError, match="num_pairs must be three numbers of at least 1"):
        data_module(sums, num_pairs=(1, 0, 1))
    with pytest.raises(ValueError, match="num_samples must be a multiple of the authors' batch_size, 8, got 9"):
        data_module(sums, pairing="upstream", num_pairs=(9, 8, 8)).setup("fit")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        data_module(sums, batch_size=0)
    with pytest.raises(FileNotFoundError):
        SHDAddingDataModule(tmp_path / "none.h5").setup("fit")
