"""The demonstration: a spiking network with an ELM neuron learns spoken digits, beside LIF neurons alone in the same
number of parameters.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from elm_neuro.demo._networks import build, data_module
from elm_neuro.demo._progress import Shown, shown
from elm_neuro.demo._settings import ADDING_CLIP, CONTROL, MIXED, DemoSettings, keep_settings
from elm_neuro.training import SHDDataModule, SpikeClassification
from elm_neuro.training.loop._checkpoints import WholeCheckpoints
from elm_neuro.training.loop._quiet import quiet

NUM_THREADS = 1  # the layers are too small for more: two threads wait for each other longer than they compute


@dataclass(frozen=True, eq=False)
class DemoRun:
    """One trained network.

    Args:
        name: of the network.
        seed: of the run.
        module: the trained network in its LightningModule.
        data: what it was trained on.
        test: accuracies on the test set.
        history: "train/loss", "train/accuracy", "valid/loss" and "valid/accuracy", one value an epoch.
        seconds: wall time of the training, since it was last resumed.
    """

    name: str
    seed: int
    module: SpikeClassification
    data: SHDDataModule
    test: dict[str, float]
    history: dict[str, list[float]]
    seconds: float


class History(Callback):
    """Loss and accuracy of every epoch; saved with the checkpoint, so that a resumed run has them from the start."""

    NAMES = ("train/loss", "train/accuracy", "valid/loss", "valid/accuracy")

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {name: [] for name in self.NAMES}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch's values."""
        for name, values in self.values.items():
            if name in trainer.callback_metrics:
                values.append(float(trainer.callback_metrics[name]))

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps."""
        return self.values

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where a checkpoint was."""
        self.values = {name: list(values) for name, values in state_dict.items()}


def run_demo(settings: DemoSettings, report: Path, *, console: Console, resume: bool = False) -> list[DemoRun]:
    """Train and test both networks for every seed; checkpoints go to ``report/checkpoints``.

    Args:
        settings: what to train on and for how long.
        report: folder, which exists and can be written.
        console: where progress is shown.
        resume: go on from the checkpoints of an earlier demonstration with the same settings.

    Raises:
        ValueError: the settings differ from those of the checkpoints to resume.
    """
    folder = report / "checkpoints"
    folder.mkdir(exist_ok=True)
    keep_settings(settings, folder / "settings.json", resume=resume)
    threads = torch.get_num_threads()
    torch.set_num_threads(min(NUM_THREADS, threads))
    try:
        with quiet(), shown(console) as progress:
            progress.making(data_module(settings, bin_ms=1.0, seed=0))
            return [
                _train(name, settings, seed, folder, progress, console, resume=resume)
                for seed in settings.seeds
                for name in (MIXED, CONTROL)
            ]
    finally:
        torch.set_num_threads(threads)


def _train(
    name: str, settings: DemoSettings, seed: int, folder: Path, progress: Shown, console: Console, *, resume: bool
) -> DemoRun:
    data = data_module(settings, bin_ms=settings.tuned[name].bin_ms, seed=seed)
    module = build(name, settings, num_channels=data.num_channels, seed=seed)
    stem = f"{name.lower().replace(' + ', '-').replace(' ', '-')}-seed{seed}"
    checkpoint = ModelCheckpoint(folder, stem, save_on_train_epoch_end=True, enable_version_counter=False)
    earlier = folder / f"{stem}.ckpt"
    history = History()
    clip = ADDING_CLIP if settings.task == "adding" else None
    trainer = quiet_trainer(
        settings.num_epochs, [history, *progress.training(f"{name}, seed {seed}"), checkpoint], clip=clip
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=data, ckpt_path=earlier if resume and earlier.exists() else None, weights_only=True)
    seconds = time.perf_counter() - start
    test = trainer.test(module, datamodule=data, verbose=False)[0]
    console.print(
        f"{name}, seed {seed}: test accuracy {test['test/accuracy']:.1%}, trained in {seconds:.0f} s", highlight=False
    )
    return DemoRun(
        name,
        seed,
        module,
        data,
        {key.removeprefix("test/"): value for key, value in test.items()},
        history.values,
        seconds,
    )


def quiet_trainer(num_epochs: int, callbacks: list[Callback], *, clip: float | None = None) -> Trainer:
    """A Trainer on the CPU that shows nothing by itself; `clip` is the largest norm of the gradient."""
    has_checkpoint = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=num_epochs,
        gradient_clip_val=clip,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=has_checkpoint,
        plugins=[WholeCheckpoints()],
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
