from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer, seed_everything

from elm_neuro import ALIF, ELM, LIF
from elm_neuro.training import (
    Binning,
    LSTMClassifier,
    RecurrentLIFClassifier,
    SequenceClassifier,
    SHDDataModule,
    SpikeClassification,
    TestReport,
    seed_interval,
)
from elm_neuro.training.loop._layers import spikes_recorded
from elm_neuro.training.shd._report import t_quantile

BINNING = Binning(bin_ms=100.0, pool=35)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("df", [1, 2, 4, 9, 30, 1000])
def test_the_t_quantile_is_scipys(level: float, df: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert t_quantile(level, df) == pytest.approx(stats.t.ppf((1 + level) / 2, df), rel=1e-9)


def test_the_interval_over_seeds_covers_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(0.7, 0.02, (2000, 3))
    covered = [abs(mean - 0.7) <= half for mean, half in map(seed_interval, draws.tolist())]
    assert np.mean(covered) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))  # four standard errors
    mean, half = seed_interval([0.5])
    assert mean == 0.5 and math.isnan(half)
    assert str(seed_interval([0.5])) == "50.0 %"


def test_intervals_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"values must be finite numbers, at least one, got \[\]"):
        seed_interval([])
    with pytest.raises(ValueError, match="values must be finite numbers"):
        seed_interval([0.5, math.nan])
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 95"):
        seed_interval([0.5, 0.6], level=95)


def test_a_report_needs_a_classifier(
    files: tuple[Path, Path], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    class Other(LightningModule):
        def test_step(self, *_: object) -> None: ...

    with pytest.raises(TypeError, match="TestReport must go with a tested SpikeClassification, got Other"):
        make_trainer(callbacks=[TestReport(tmp_path)]).test(
            Other(), datamodule=SHDDataModule(*files, binning=BINNING), verbose=False
        )


def test_each_speaker_of_single_digits_has_an_accuracy(
    files: tuple[Path, Path], make_trainer: Callable[..., Trainer]
) -> None:
    seed_everything(0, verbose=False)
    module = SpikeClassification(
        SequenceClassifier(ELM(20, 20, num_memory=10, delta_t=100.0), readout="mean"), learning_rate=2e-2
    )
    data, trainer = SHDDataModule(*files, binning=BINNING, batch_size=16), make_trainer(max_epochs=4)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    answers = torch.cat(trainer.predict(module, datamodule=data)).argmax(1)  # type: ignore[arg-type]
    right, speakers = answers == data.part("test").labels, data.part("test").speakers
    for who in (2, 3, 8):
        assert module.by_speaker[who] == (
            pytest.approx(float(right[speakers == who].float().mean())),
            int((speakers == who).sum()),
        )
    assert len(module.by_speaker) == 3
    assert module.confusion is not None and int(module.confusion.trace()) == int(right.sum())


def test_the_penalty_on_spikes_is_their_mean_over_all_spiking_layers_and_silences_them(
    files: tuple[Path, Path], make_trainer: Callable[..., Trainer]
) -> None:
    rates = []
    for weight in (1e-9, 5.0):
        seed_everything(0, verbose=False)
        network = RecurrentLIFClassifier(LIF(20, 12, delta_t=100.0, recurrent=True), output_size=20)
        module = SpikeClassification(network, learning_rate=2e-2, spike_l1=weight)
        trainer = make_trainer(max_epochs=3)
        trainer.fit(module, datamodule=SHDDataModule(*files, binning=BINNING, batch_size=16))
        rates.append(float(trainer.callback_metrics["train/spikes"]))
    assert 0 <= rates[1] < 0.5 * rates[0]


def test_spikes_are_recorded_layer_by_layer_and_only_inside_the_block() -> None:
    network = torch.nn.ModuleList([LIF(5, 4), ALIF(4, 3)])
    x = torch.ones(2, 6, 5)
    with spikes_recorded(network) as spikes:
        first, _ = network[0](x)
        second, _ = network[1](first)
    network[0](x)
    assert [layer.shape for layer in spikes] == [(2, 6, 4), (2, 6, 3)]
    assert torch.equal(spikes[0], first) and torch.equal(spikes[1], second)


def test_dropout_depends_on_the_seed_alone(files: tuple[Path, Path], make_trainer: Callable[..., Trainer]) -> None:
    def weights(seed: int, noise: int) -> torch.Tensor:
        seed_everything(0, verbose=False)
        module = SpikeClassification(LSTMClassifier(20, 20, 6, recurrent_dropout=0.5), input_dropout=0.3, seed=seed)
        torch.manual_seed(noise)  # the global generator must not matter
        make_trainer(max_epochs=1).fit(module, datamodule=SHDDataModule(*files, binning=BINNING, batch_size=16))
        return module.network.readout.weight.detach()  # type: ignore[union-attr,return-value]

    assert torch.equal(weights(1, 5), weights(1, 6))
    assert not torch.equal(
        weights(1, 5), weights(2, 5)
    )  # also on the CPU, whose generator takes 32 bits of a seed only


def test_what_does_not_fit_is_refused(files: tuple[Path, Path], make_trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match="spike_l1 must be a finite number, not negative, got -1"):
        SpikeClassification(LIF(3, 2), spike_l1=-1)
    with pytest.raises(ValueError, match=r"spike_l1 must be 0 where network has no layer that spikes, got 0.1"):
        SpikeClassification(LSTMClassifier(3, 2), spike_l1=0.1)
    chrono = SpikeClassification(LSTMClassifier(20, 20, 4, timescales=(10.0, 2000.0), delta_t=10.0))
    with pytest.raises(ValueError, match=r"network must have delta_t 100.0 ms, the bin of the data, got 10.0 ms"):
        make_trainer(max_epochs=1).fit(chrono, datamodule=SHDDataModule(*files, binning=BINNING))
