"""The demonstration: a spiking network with an ELM neuron learns spoken digits, beside LIF neurons alone in the same
number of parameters.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from elm_neuro.datasets import SpokenDigits
from elm_neuro.datasets.shd._pairs import NUM_SUMS
from elm_neuro.files import write_whole
from elm_neuro.nn import ELM, LIF
from elm_neuro.training import (
    Binning,
    LIFNetwork,
    SHDAddingDataModule,
    SHDDataModule,
    SpikeClassification,
    SpikingNetwork,
    SpokenDigitsDataModule,
    num_parameters,
)
from elm_neuro.training.loop._checkpoints import WholeCheckpoints
from elm_neuro.training.loop._quiet import quiet

MIXED, CONTROL = "LIF + ELM", "LIF only"
NUM_CLASSES = 20
NUM_THREADS = 1  # the layers are too small for more: two threads wait for each other longer than they compute
TAU_S = 10.0  # ms
TAU_M_INIT = (10.0, 500.0)  # ms, log-spaced
TAU_M_BOUNDS = (1.0, 2000.0)  # ms, up to twice the length of a sample


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What the grid of benchmarks/tune_demo.py chooses for one network.

    Args:
        bin_ms: width of a time step in ms.
        learning_rate: of Adam at the start.
        input_dropout: probability with which an input is dropped in training.
    """

    bin_ms: float = 10.0
    learning_rate: float = 1e-2
    input_dropout: float = 0.5


TUNED: dict[str, Tuned] = {
    MIXED: Tuned(learning_rate=3e-3, input_dropout=0.5),
    CONTROL: Tuned(learning_rate=1e-2, input_dropout=0.3),
}

TASKS = ("digits", "adding")
# Easier than the paper's SHD-Adding, so that minutes on a CPU are enough to learn something: coarse steps, pooled
# channels, larger batches. Not tuned over a grid: a handful of settings were tried with the mixed network alone, and
# the control takes over what it was given.
ADDING = Tuned(bin_ms=50.0, learning_rate=3e-3, input_dropout=0.1)
ADDING_SETTINGS: dict[str, Any] = {"task": "adding", "num_epochs": 12, "pool": 10}
ADDING_CLIP = 1.0  # norm of the gradient: without it the neuron loses again what it has learnt
ADDING_TAU_M_INIT = (50.0, 2000.0)  # ms, log-spaced, up to the length of a pair
ADDING_TAU_M_BOUNDS = (1.0, 4000.0)  # ms


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What a demonstration trains on and for how long; kept in metrics.json.

    Args:
        task: "digits" names the spoken digit, "adding" the sum of two that follow each other (SHD-Adding, fixed
            protocol v1).
        train_file: SHD-format file; None makes synthetic spoken digits.
        test_file: SHD-format file; None holds out speakers of `train_file`.
        held_out: speakers of `train_file` who only test.
        seeds: of weights, order and validation split; each is a run of both networks.
        num_epochs: passes over the training samples.
        num_train: synthetic training samples.
        num_test: synthetic test samples.
        cache_dir: folder of the synthetic samples.
        pool: this many neighbouring channels become one.
        batch_size: samples of a batch.
        valid: fraction of the training samples that only validate, for the learning curves; of "adding" the protocol's
            speakers do.
        num_pairs: of "adding": pairs of an epoch, of validation and of the test.
        num_hidden: LIF neurons of the mixed network.
        num_memory: memory units of its ELM neuron.
        tau_v: initial membrane time constant of all LIF neurons in ms.
    """

    task: str = "digits"
    train_file: str | None = None
    test_file: str | None = None
    held_out: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    num_epochs: int = 25
    num_train: int = 1440
    num_test: int = 720
    cache_dir: str | None = None
    pool: int = 5
    batch_size: int = 32
    valid: float = 0.1
    num_pairs: tuple[int, int, int] = (8192, 512, 2048)
    num_hidden: int = 128
    num_memory: int = 50
    tau_v: float = 20.0

    @property
    def data_name(self) -> str:
        """What the report calls the data."""
        adding = self.task == "adding"
        if self.train_file is None:
            return "sums of two synthetic spoken digits" if adding else "synthetic spoken digits"
        files = (
            f"{Path(self.train_file).name} and {Path(self.test_file).name}"
            if self.test_file
            else Path(self.train_file).name
        )
        return f"sums of two digits of {files}" if adding else files

    @property
    def num_classes(self) -> int:
        """Digits of two languages, or sums."""
        return NUM_SUMS if self.task == "adding" else NUM_CLASSES

    @property
    def readout(self) -> str:
        """Of the ELM neuron: a sum is known at the end only."""
        return "last" if self.task == "adding" else "mean"

    @property
    def tau_m(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Initial range and bounds of the memory's time constants in ms."""
        return (ADDING_TAU_M_INIT, ADDING_TAU_M_BOUNDS) if self.task == "adding" else (TAU_M_INIT, TAU_M_BOUNDS)

    @property
    def tuned(self) -> dict[str, Tuned]:
        """What each network is trained with."""
        return {MIXED: ADDING, CONTROL: ADDING} if self.task == "adding" else TUNED


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


def data_module(
    settings: DemoSettings, *, bin_ms: float, seed: int, valid: float | list[int] | None = None
) -> SHDDataModule:
    """The data of a run, in steps of `bin_ms`; `valid` replaces the settings' validation samples."""
    binning = Binning(bin_ms=bin_ms, pool=settings.pool, output="frames")
    if settings.task == "adding":
        return _pairs(settings, binning)
    options: dict[str, Any] = {
        "valid": settings.valid if valid is None else valid,
        "binning": binning,
        "batch_size": settings.batch_size,
        "seed": seed,
    }
    if settings.train_file is None:
        return SpokenDigitsDataModule(
            num_train=settings.num_train, num_test=settings.num_test, cache_dir=settings.cache_dir, **options
        )
    return SHDDataModule(settings.train_file, settings.test_file, held_out=list(settings.held_out) or None, **options)


def _pairs(settings: DemoSettings, binning: Binning) -> SHDAddingDataModule:
    """The sums of a run: the same lists for every seed."""
    source: str | SpokenDigits = settings.train_file or SpokenDigits("train", settings.num_train, 0, settings.cache_dir)
    target = (
        settings.test_file if settings.train_file else SpokenDigits("test", settings.num_test, 0, settings.cache_dir)
    )
    held_out = list(settings.held_out) or None
    return SHDAddingDataModule(
        source, target, held_out=held_out, num_pairs=settings.num_pairs, binning=binning, batch_size=settings.batch_size
    )


def build(
    name: str, settings: DemoSettings, *, num_channels: int, seed: int, tuned: Tuned | None = None
) -> SpikeClassification:
    """A network with new weights.

    Args:
        name: `MIXED`, or `CONTROL` with as many parameters as the mixed one.
        settings: sizes and time step.
        num_channels: inputs.
        seed: of the weights and of the dropout.
        tuned: in place of the network's entry in `TUNED`.
    """
    lightning.seed_everything(seed, verbose=False)
    tuned = tuned or settings.tuned[name]
    delta_t, tau_v, num_hidden = tuned.bin_ms, settings.tau_v, settings.num_hidden
    num_classes, (tau_m_init, tau_m_bounds) = settings.num_classes, settings.tau_m
    neuron = ELM(
        num_hidden,
        num_classes,
        settings.num_memory,
        delta_t=delta_t,
        tau_s=TAU_S,
        tau_m_init=tau_m_init,
        tau_m_bounds=tau_m_bounds,
    )
    hidden = LIF(num_channels, num_hidden, delta_t=delta_t, tau_v=tau_v)
    network: SpikingNetwork | LIFNetwork = SpikingNetwork(hidden, neuron, readout=settings.readout)
    if name == CONTROL:
        count = num_parameters(network)
        network = LIFNetwork.matching(
            count, input_size=num_channels, output_size=num_classes, delta_t=delta_t, tau_v=tau_v
        )
    return SpikeClassification(
        network,
        num_classes=num_classes,
        learning_rate=tuned.learning_rate,
        input_dropout=tuned.input_dropout,
        seed=seed,
    )


def mixed_network(module: SpikeClassification) -> SpikingNetwork:
    """The network of a module that :func:`build` made under the name `MIXED`.

    Raises:
        TypeError: it is the control.
    """
    if not isinstance(module.network, SpikingNetwork):
        raise TypeError(f"module must hold the network {MIXED!r}, got {type(module.network).__name__}")
    return module.network


def elm_neuron(module: SpikeClassification) -> ELM:
    """The ELM neuron in that network."""
    return cast(ELM, mixed_network(module).neuron)


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


class Bar(Callback):
    """Moves a task of a rich progress bar on with every batch."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what a resumed run has behind it."""
        self.progress.update(self.task, total=trainer.estimated_stepping_batches, completed=trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """One batch further."""
        self.progress.update(self.task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the accuracy on the validation samples."""
        accuracy = trainer.callback_metrics.get("valid/accuracy")
        if accuracy is not None:
            self.progress.update(self.task, accuracy=f"valid {float(accuracy):.0%}")


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
    _check_settings(settings, folder / "settings.json", resume=resume)
    threads = torch.get_num_threads()
    torch.set_num_threads(min(NUM_THREADS, threads))
    try:
        with quiet(), _progress(console) as progress:
            _make(data_module(settings, bin_ms=1.0, seed=0), progress)
            return [
                _train(name, settings, seed, folder, progress=progress, resume=resume)
                for seed in settings.seeds
                for name in (MIXED, CONTROL)
            ]
    finally:
        torch.set_num_threads(threads)


def _train(name: str, settings: DemoSettings, seed: int, folder: Path, *, progress: Progress, resume: bool) -> DemoRun:
    data = data_module(settings, bin_ms=settings.tuned[name].bin_ms, seed=seed)
    module = build(name, settings, num_channels=data.num_channels, seed=seed)
    stem = f"{name.lower().replace(' + ', '-').replace(' ', '-')}-seed{seed}"
    checkpoint = ModelCheckpoint(folder, stem, save_on_train_epoch_end=True, enable_version_counter=False)
    earlier = folder / f"{stem}.ckpt"
    history = History()
    task = progress.add_task(f"{name}, seed {seed}", total=None, accuracy="")
    clip = ADDING_CLIP if settings.task == "adding" else None
    trainer = quiet_trainer(settings.num_epochs, [history, Bar(progress, task), checkpoint], clip=clip)
    start = time.perf_counter()
    trainer.fit(module, datamodule=data, ckpt_path=earlier if resume and earlier.exists() else None, weights_only=True)
    seconds = time.perf_counter() - start
    progress.update(
        task, total=trainer.global_step, completed=trainer.global_step
    )  # also where nothing was left to resume
    test = trainer.test(module, datamodule=data, verbose=False)[0]
    progress.console.print(
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


def _check_settings(settings: DemoSettings, path: Path, *, resume: bool) -> None:
    """Keep the settings beside the checkpoints; a run is resumed with the same ones only."""
    current = json.loads(
        json.dumps({**asdict(settings), "tuned": {name: asdict(tuned) for name, tuned in settings.tuned.items()}})
    )
    if resume and path.exists():
        earlier: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if different := sorted(name for name in current if earlier.get(name) != current[name]):
            was, now = ({name: values.get(name) for name in different} for values in (earlier, current))
            raise ValueError(f"settings must be those of the run that is resumed, {was}, got {now}")
    write_whole({path: json.dumps(current, indent=2).encode() + b"\n"})


def _make(data: SHDDataModule, progress: Progress) -> None:
    """Make synthetic recordings where they are not cached."""
    if not data.synthetic:
        return
    task = progress.add_task("making spoken digits", total=sum(map(len, data.synthetic)), accuracy="")
    before = 0
    for digits in data.synthetic:
        digits.recordings(lambda done, _, before=before: progress.update(task, completed=before + done))  # type: ignore[misc]
        before += len(digits)
        progress.update(task, completed=before)


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[accuracy]:<10}"),
    )
    return Progress(
        *columns,
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
    )
