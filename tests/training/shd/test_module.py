from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from elm_neuro import ELM, LIF, ELMNetworkClassifier, SpikeEvents
from elm_neuro.datasets import splitmix64
from elm_neuro.training import (
    Binning,
    SequenceClassifier,
    SHDDataModule,
    SpikeClassification,
    SpikingNetwork,
    drop_input,
)
from elm_neuro.training.loop._seeds import seeded

BINNING = Binning(bin_ms=50.0, pool=35)  # 20 steps of 20 channels, one a class


def module(**options: Any) -> SpikeClassification:
    seed_everything(0, verbose=False)
    network = SpikingNetwork(LIF(20, 16, delta_t=50.0), ELM(16, 20, num_memory=6, delta_t=50.0), readout="mean")
    return SpikeClassification(network, **{"learning_rate": 1e-2, "input_dropout": 0.2, **options})


class PowerCut(RuntimeError):
    pass


class Cut(Callback):
    """Breaks off in the middle of an epoch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise PowerCut


class LearningRates(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self.values.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("kind", ["adam", "adamax", "adamw"])
def test_the_learning_rate_follows_half_a_cosine_over_the_whole_run(
    files: tuple[Path, Path], make_trainer: Callable[..., Trainer], kind: str
) -> None:
    rates = LearningRates()
    trainer = make_trainer(max_epochs=3, callbacks=[rates])
    trainer.fit(
        module(optimizer=kind, learning_rate=0.02),
        datamodule=SHDDataModule(*files, binning=BINNING, valid=0.0, batch_size=32),
    )
    assert type(trainer.optimizers[0]).__name__.lower() == kind
    steps = 3 * math.ceil(90 / 32)
    expected = [0.01 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    np.testing.assert_allclose(rates.values, expected, rtol=1e-12)


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_never_stopped(
    files: tuple[Path, Path], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def data() -> SHDDataModule:
        return SHDDataModule(*files, binning=BINNING, batch_size=16)

    whole = module()
    make_trainer(max_epochs=4).fit(whole, datamodule=data())

    checkpoint = ModelCheckpoint(tmp_path, "newest", save_on_train_epoch_end=True, enable_version_counter=False)
    steps_per_epoch = len(data().train_dataloader())
    with pytest.raises(PowerCut):
        make_trainer(max_epochs=4, callbacks=[Cut(2 * steps_per_epoch + 2), checkpoint], enable_checkpointing=True).fit(
            module(), datamodule=data()
        )
    torch.manual_seed(99)  # a new process has other random numbers
    resumed = module(learning_rate=0.5)  # the checkpoint's optimizer replaces this one
    checkpoint = ModelCheckpoint(tmp_path, "newest", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = make_trainer(max_epochs=4, callbacks=[checkpoint], enable_checkpointing=True)
    trainer.fit(resumed, datamodule=data(), ckpt_path=tmp_path / "newest.ckpt", weights_only=True)
    assert resumed.trainer.global_step == 4 * steps_per_epoch
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], value, rtol=0, atol=0, msg=name)
    assert any(
        (value != module().network.state_dict()[name]).any() for name, value in whole.network.state_dict().items()
    )


@pytest.mark.parametrize("output", ["events", "frames"])
def test_accuracies_are_those_of_numpy_over_seen_and_unseen_speakers(
    files: tuple[Path, Path], make_trainer: Callable[..., Trainer], output: Any
) -> None:
    data = SHDDataModule(*files, binning=Binning(bin_ms=50.0, pool=35, output=output), batch_size=16, valid=0.2)
    seed_everything(0, verbose=False)
    neuron = ELM(20, 20, num_memory=10, delta_t=50.0, tau_s=50.0, tau_m_bounds=(1.0, 1000.0))
    network = SpikeClassification(SequenceClassifier(neuron, readout="mean"), learning_rate=2e-2)
    trainer = make_trainer(max_epochs=8)
    trainer.fit(network, datamodule=data)
    (found,) = trainer.test(network, datamodule=data, verbose=False)
    answers = torch.cat(trainer.predict(network, datamodule=data)).argmax(1).numpy()  # type: ignore[arg-type]
    labels, speakers = data.part("test").labels.numpy(), data.part("test").speakers.numpy()
    right = answers == labels
    assert found["test/accuracy"] == pytest.approx(right.mean())
    assert found["test/accuracy_seen"] == pytest.approx(right[speakers != 8].mean())
    assert found["test/accuracy_unseen"] == pytest.approx(right[speakers == 8].mean())
    assert found["test/majority"] == pytest.approx(np.bincount(labels).max() / labels.size)
    assert found["test/accuracy"] > 0.5  # 0.21 is the majority
    network.eval()
    with torch.no_grad():
        logits = network(data.part("test").batch(range(53))[0]).double().numpy()
    shifted = logits - logits.max(1, keepdims=True)
    loss = (np.log(np.exp(shifted).sum(1)) - shifted[np.arange(53), labels]).mean()
    assert found["test/loss"] == pytest.approx(loss, rel=1e-5)


def test_validation_on_held_out_speakers_counts_them_as_unseen(
    files: tuple[Path, Path], make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module(), datamodule=SHDDataModule(*files, binning=BINNING, valid=[1]))
    assert trainer.callback_metrics["valid/accuracy_unseen"] == trainer.callback_metrics["valid/accuracy"]
    assert "valid/accuracy_seen" not in trainer.callback_metrics
    assert {"train/loss", "train/accuracy", "valid/loss", "valid/majority"} <= set(trainer.callback_metrics)


def test_training_figures_are_means_over_the_samples_of_their_own_epoch(
    files: tuple[Path, Path], make_trainer: Callable[..., Trainer]
) -> None:
    batches: list[tuple[float, float, int]] = []  # loss, right answers and size of each
    logged: list[tuple[float, float]] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            x, labels, _ = batch
            with torch.no_grad():
                logits = pl_module.network(x).double()
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            batches.append((loss.item(), (logits.argmax(1) == labels).sum().item(), len(labels)))

        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            metrics = trainer.callback_metrics
            logged.append((float(metrics["train/loss"]), float(metrics["train/accuracy"])))

    trainer = make_trainer(max_epochs=3, callbacks=[Watch()])
    data = SHDDataModule(*files, binning=BINNING, valid=0.2, batch_size=13)
    trainer.fit(module(input_dropout=0.0), datamodule=data)
    steps = len(batches) // 3
    assert len(logged) == 3 and batches[0][2] == 13 != batches[-1][2]
    for epoch, (loss, accuracy) in enumerate(logged):
        losses, right, sizes = np.array(batches[epoch * steps : (epoch + 1) * steps]).sum(0)
        assert loss == pytest.approx(losses / sizes, rel=1e-5)
        assert accuracy == pytest.approx(right / sizes)


def test_inputs_are_dropped_in_training_only(files: tuple[Path, Path], make_trainer: Callable[..., Trainer]) -> None:
    data = SHDDataModule(*files, binning=BINNING, valid=0.2, batch_size=90)
    received: list[float] = []

    class Count(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(20, 20)

        def forward(self, x: SpikeEvents) -> torch.Tensor:
            received.append(float(x.to_dense().sum()))
            return self.linear(x.to_dense().mean(1))

    trainer = make_trainer(max_epochs=1)
    trainer.fit(SpikeClassification(Count(), input_dropout=0.5), datamodule=data)
    spikes = {
        part: float(data.part(part).batch(range(len(data.part(part))))[0].num_events) for part in ("train", "valid")
    }
    trained, validated = received
    assert validated == spikes["valid"]
    assert trained != spikes["train"]
    assert trained == pytest.approx(spikes["train"], rel=0.1)  # half of the inputs, doubled


@pytest.mark.parametrize("kind", ["events", "frames"])
def test_dropped_inputs_keep_their_mean_and_depend_on_the_generator_alone(kind: str) -> None:
    frames = torch.ones(40, 25, 20)
    x = SpikeEvents.from_frames(frames) if kind == "events" else frames
    first, again = (drop_input(x, 0.25, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    first, again = (part.to_dense() if isinstance(part, SpikeEvents) else part for part in (first, again))
    assert torch.equal(first, again)
    torch.testing.assert_close(first.unique(), torch.tensor([0.0, 4 / 3]))
    assert first.mean().item() == pytest.approx(1.0, abs=4 * math.sqrt(1 / 3 / 20_000))  # four standard errors


def test_events_are_moved_with_their_batch(files: tuple[Path, Path]) -> None:
    batch = SHDDataModule(*files, binning=BINNING).part("test").batch([0, 1])
    x, labels, _ = module().transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert (x.device.type, labels.device.type) == ("meta", "meta")


def test_what_does_not_fit_is_refused(files: tuple[Path, Path], make_trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match="optimizer must be one of"):
        module(optimizer="sgd")
    with pytest.raises(ValueError, match="learning_rate must be a finite number above 0, got 0"):
        module(learning_rate=0)
    with pytest.raises(ValueError, match=r"input_dropout must be in \[0, 1\), got 1.0"):
        module(input_dropout=1.0)
    wrong = SpikeClassification(SequenceClassifier(ELM(20, 20, delta_t=10.0)))
    with pytest.raises(ValueError, match=r"network.neuron must have delta_t 50.0 ms, the bin of the data, got 10.0 ms"):
        make_trainer(max_epochs=1).fit(wrong, datamodule=SHDDataModule(*files, binning=BINNING))


def test_a_plain_module_of_another_library_trains_too(
    files: tuple[Path, Path], make_trainer: Callable[..., Trainer]
) -> None:
    class Counts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(20, 20)

        def forward(self, x: SpikeEvents) -> torch.Tensor:
            return self.linear(x.to_dense().sum(1))

    data = SHDDataModule(*files, binning=BINNING, batch_size=8)
    trainer: Trainer = make_trainer(max_epochs=12)
    plain: LightningModule = SpikeClassification(Counts(), learning_rate=0.02)
    trainer.fit(plain, datamodule=data)
    assert (
        trainer.test(plain, datamodule=data, verbose=False)[0]["test/accuracy"] > 0.95
    )  # the class shows in the counts


def network_module(**options: Any) -> SpikeClassification:
    seed_everything(0, verbose=False)
    settings: dict[str, Any] = {
        "num_branch": 4,
        "num_synapse_per_branch": 3,
        "delta_t": 50.0,
        "tau_m_init": (50.0, 900.0),
    }
    settings |= {"input_dropout": 0.2, "recurrent_dropout": 0.2, "binarize": True}
    network = SequenceClassifier(ELMNetworkClassifier(20, 20, 8, 3, **settings))
    return SpikeClassification(
        network, **{"learning_rate": 1e-2, "penalties": {"activity": 0.2, "mlp": 0.002}, **options}
    )


def test_penalties_are_added_to_the_smoothed_loss_of_training_alone(
    files: tuple[Path, Path], make_trainer: Callable[..., Trainer]
) -> None:
    """Against the loss written out, of the same network with the same dropout."""

    class Kept(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            self.before, self.batch = copy.deepcopy(module.network), batch

        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *args: Any) -> None:
            self.loss = float(outputs["loss"])

    kept = Kept()
    trainer = make_trainer(max_steps=1, callbacks=[kept])
    fitted = network_module(label_smoothing=0.01)
    trainer.fit(fitted, datamodule=SHDDataModule(*files, binning=BINNING, batch_size=16))
    x, labels, _ = kept.batch
    seed = int(splitmix64(int(splitmix64(0, 1)), 0))
    with seeded(seed, labels.device):
        logits, _, penalties = kept.before.neuron(x, with_penalties=True)
    wanted = torch.nn.functional.cross_entropy(logits[:, -1], labels, label_smoothing=0.01)
    wanted = wanted + 0.2 * penalties["activity"] + 0.002 * penalties["mlp"]
    assert kept.loss == pytest.approx(wanted.item(), rel=1e-5)
    metrics = trainer.callback_metrics
    assert float(metrics["train/activity"]) == pytest.approx(penalties["activity"].item(), rel=1e-5)
    assert float(metrics["train/mlp"]) == pytest.approx(penalties["mlp"].item(), rel=1e-5)
    assert float(metrics["train/loss"]) < kept.loss
    assert float(metrics["train/activity"]) > 0 and float(metrics["train/mlp"]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalties": {"spikes": 0.1}}, r"penalties must name some of \['activity', 'mlp'\], which network has"),
        ({"penalties": {"mlp": -1.0}}, r"penalties must have finite weights, not negative, got mlp -1\.0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1\.0"),
        ({"warmup_steps": -1}, "warmup_steps must not be negative, got -1"),
    ],
)
def test_impossible_penalties_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network_module(**options)


def test_a_penalty_that_the_network_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"penalties must name some of \[\], which network has, got 'activity'"):
        module(penalties={"activity": 0.2})
    signed = SpikingNetwork(LIF(20, 8), ELMNetworkClassifier(8, 20, 4, output="identity"))
    with pytest.raises(ValueError, match=r"penalties must name some of \['mlp'\], which network has, got 'activity'"):
        SpikeClassification(signed, penalties={"activity": 0.2})


def test_the_activity_of_a_spiking_layer_is_its_rate_of_spikes(
    files: tuple[Path, Path], make_trainer: Callable[..., Trainer]
) -> None:
    """Both penalties see the same spikes: one from the hook on the layer, the other from the layer itself."""
    seed_everything(0, verbose=False)
    options: dict[str, Any] = {"num_branch": 4, "num_synapse_per_branch": 3, "delta_t": 50.0, "binarize": True}
    network = SequenceClassifier(ELMNetworkClassifier(20, 20, 8, 3, output="spike", **options))
    fitted = SpikeClassification(network, spike_l1=0.01, penalties={"activity": 0.2})
    trainer = make_trainer(max_steps=1)
    trainer.fit(fitted, datamodule=SHDDataModule(*files, binning=BINNING, batch_size=16))
    metrics = trainer.callback_metrics
    assert float(metrics["train/spikes"]) == pytest.approx(float(metrics["train/activity"]), rel=1e-5)
    assert 0 < float(metrics["train/spikes"]) < 1
