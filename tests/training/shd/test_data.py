from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer

from elm_neuro import SpikeEvents
from elm_neuro.datasets import read_shd
from elm_neuro.training import Binning, SHDDataModule, SpokenDigitsDataModule


def order(data: SHDDataModule, epoch: int) -> list[int]:
    sampler = data.train_dataloader().sampler
    sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(sampler)


def test_batches_hold_every_sample_once_and_none_is_dropped(files: tuple[Path, Path]) -> None:
    data = SHDDataModule(*files, valid=0.2, batch_size=8)
    data.setup()
    for loader, part in (
        (data.train_dataloader(), "train"),
        (data.val_dataloader(), "valid"),
        (data.test_dataloader(), "test"),
    ):
        batches = list(loader)
        assert all(isinstance(x, SpikeEvents) and x.shape == (len(labels), 100, 700) for x, labels, _ in batches)
        labels = np.concatenate([labels for _, labels, _ in batches])
        assert sorted(labels) == sorted(data.part(part).labels.tolist())
    assert len(data.part("test")) == 53
    assert len(data.part("train")) + len(data.part("valid")) == 90


def test_the_fraction_of_a_split_depends_on_the_seed_and_on_each_sample_alone(files: tuple[Path, Path]) -> None:
    chosen = [SHDDataModule(*files, valid=0.3, seed=seed).part("valid").indices.tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    # the stream of Philox, which is what "counter-based" means
    expected = np.flatnonzero(np.random.Generator(np.random.Philox(key=0)).random(1000) < 0.3)
    assert chosen[0] == [i for i in expected if i < 90]


def test_speakers_held_out_validate_and_are_not_trained_on(files: tuple[Path, Path]) -> None:
    data = SHDDataModule(*files, valid=[1, 3])
    assert data.seen_speakers.tolist() == [0, 2]
    assert set(data.part("valid").speakers.tolist()) == {1, 3}


def test_one_file_with_held_out_speakers_tests_on_them_and_on_a_tenth_of_the_others(files: tuple[Path, Path]) -> None:
    data = SHDDataModule(files[0], held_out=[2], valid=0.1)
    train, test = data.part("train"), data.part("test")
    everyone = read_shd(files[0]).speakers
    speakers = test.speakers.numpy()
    assert (speakers == 2).sum() == (everyone == 2).sum()
    assert 0 < (speakers != 2).sum() < 20
    assert 2 not in train.speakers
    assert len(train) + len(data.part("valid")) + len(test) == 90


def test_the_training_order_depends_on_seed_and_epoch(files: tuple[Path, Path]) -> None:
    data, other = SHDDataModule(*files, seed=3), SHDDataModule(*files, seed=4)
    assert order(data, 5) == order(SHDDataModule(*files, seed=3), 5)
    assert order(data, 5) != order(data, 6)
    assert order(data, 5) != order(other, 5)
    assert sorted(order(data, 5)) == list(range(len(data.part("train"))))


def test_the_trainer_draws_a_new_order_every_epoch(
    files: tuple[Path, Path], make_trainer: Callable[..., Trainer]
) -> None:
    seen: list[list[int]] = []

    class Recorder(LightningModule):
        automatic_optimization = False

        def on_train_epoch_start(self) -> None:
            seen.append([])

        def training_step(self, batch: tuple[SpikeEvents, ...], batch_idx: int) -> None:
            seen[-1].extend(batch[1].tolist())

        def validation_step(self, batch: tuple[SpikeEvents, ...], batch_idx: int) -> None: ...

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

    data = SHDDataModule(*files, valid=0.0, batch_size=32)
    make_trainer(max_epochs=2).fit(Recorder(), datamodule=data)
    labels = data.part("train").labels
    assert seen == [labels[order(data, epoch)].tolist() for epoch in (0, 1)]


def test_binning_reaches_the_data_sets(files: tuple[Path, Path]) -> None:
    data = SHDDataModule(*files, binning=Binning(bin_ms=20.0, duration_ms=800.0, pool=5, output="frames"))
    assert data.part("test")[0][0].shape == (40, 140)
    assert data.num_channels == 140


def test_synthetic_digits_come_from_the_cache_with_two_unseen_speakers(tmp_path: Path) -> None:
    data = SpokenDigitsDataModule(num_train=20, num_test=20, cache_dir=tmp_path, valid=0.0)
    data.prepare_data()
    assert len(list(tmp_path.iterdir())) == 2
    assert len(data.part("train")) == 20
    assert set(data.part("test").speakers.tolist()) - set(range(12)) == set()
    assert not {4, 5} & set(data.seen_speakers.tolist())


def test_what_does_not_fit_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"held_out must name speakers exactly where there is no test_file"):
        SHDDataModule(files[0])
    with pytest.raises(ValueError, match=r"held_out must name speakers exactly where there is no test_file"):
        SHDDataModule(*files, held_out=[1])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        SHDDataModule(*files, batch_size=0)
    with pytest.raises(ValueError, match=r"valid must be a fraction in \[0, 1\) or a list of speakers, got 1.5"):
        SHDDataModule(*files, valid=1.5)
    with pytest.raises(ValueError, match="valid must leave samples to train on"):
        SHDDataModule(*files, valid=[0, 1, 2, 3]).setup()
    with pytest.raises(ValueError, match="held_out must name speakers of recordings"):
        SHDDataModule(files[0], held_out=[77]).setup()
    with pytest.raises(FileNotFoundError):
        SHDDataModule(tmp_path / "none.h5", tmp_path / "none.h5").setup()
