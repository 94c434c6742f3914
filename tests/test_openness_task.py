"""A task that the package knows nothing of, two classes and a YAML file, is run by the command; and a neuron that the
package knows nothing of is trained by a recipe of ours.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("lightning")

from elm_neuro import training
from elm_neuro.cli import main
from elm_neuro.datasets import SpikeRecordings, write_shd
from elm_neuro.training.loop._quiet import without_advice

TASK = '''
"""Which of two channels spikes more often: a task in 40 lines."""

import torch
from lightning import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class CountingData(LightningDataModule):
    def __init__(self, num_samples: int = 64, num_steps: int = 12) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        labels = torch.arange(num_samples) % 2
        rate = torch.stack((0.8 - 0.6 * labels, 0.2 + 0.6 * labels), dim=1)
        spikes = torch.rand(num_samples, num_steps, 2, generator=random) < rate[:, None]
        self.dataset = TensorDataset(spikes.float(), labels)

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=16, shuffle=True)

    def test_dataloader(self):
        return DataLoader(self.dataset, batch_size=16)


class Counting(LightningModule):
    def __init__(self, network: nn.Module, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.network, self.learning_rate = network, learning_rate

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def test_step(self, batch, index):
        self.log("test/accuracy", (self.network(batch[0]).argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)
'''

RECIPE = """
# Which of two channels spikes more often, by one ELM neuron
seed_everything: 0
trainer:
  accelerator: cpu
  max_epochs: 20
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: run, filename: last, enable_version_counter: false}
data:
  class_path: counting.CountingData
model:
  class_path: counting.Counting
  init_args:
    network:
      class_path: elm_neuro.training.SequenceClassifier
      init_args:
        neuron:
          class_path: elm_neuro.nn.ELM
          init_args: {input_size: 2, output_size: 2, num_memory: 4}
"""


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGINT)
    with without_advice():
        yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module and its recipe, from where the command is run."""
    (tmp_path / "counting.py").write_text(TASK, encoding="utf-8")
    (tmp_path / "counting.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_strangers_task_is_trained_and_tested_from_its_own_yaml(
    task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", "counting.yaml"]) == 0
    assert main(["test", "--config", "counting.yaml", "--ckpt_path", "run/last.ckpt"]) == 0
    (accuracy,) = [line.split()[-2] for line in capsys.readouterr().out.splitlines() if "test/accuracy" in line]
    assert float(accuracy) > 0.9  # counting alone is right in 99 %, guessing in 50 %


def test_a_strangers_task_takes_settings_on_the_command_line_and_refuses_unknown_ones(
    task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["fit", "--config", "counting.yaml", "--trainer.max_epochs=1", "--data.num_samples=32"]
    assert main([*short, "--model.learning_rate=0.5", "--model.network.neuron.num_memory=3"]) == 0
    checkpoint = torch.load("run/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5
    assert checkpoint["state_dict"]["network.neuron.cell._proto_tau_m"].shape == (3,)
    with pytest.raises(SystemExit) as end:
        main([*short, "--model.learning_rates=0.5"])
    assert end.value.code == 2
    assert "learning_rates" in capsys.readouterr().err


def test_what_a_strangers_task_trained_is_exported_once_it_is_trusted(
    task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    assert main(["fit", "--config", "counting.yaml", "--trainer.max_epochs=1"]) == 0
    assert (task / "run" / "config.yaml").is_file()
    assert main(["export", "run/last.ckpt", "--form", "sequence"]) == 1  # a checkpoint may be a stranger's
    assert "run/last.ckpt: only classes of elm_neuro are built from the settings in it" in capsys.readouterr().err
    assert main(["export", "run/last.ckpt", "--form", "sequence", "--trust", "counting"]) == 0
    assert (task / "run" / "sequence.onnx").is_file()


@pytest.mark.parametrize("spiking", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_strangers_neuron_is_trained_and_tested_by_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spiking: bool
) -> None:
    pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    random, labels = np.random.default_rng(0), np.arange(80) % 4
    units = np.concatenate([random.integers(0, 5, 40) + 5 * label for label in labels])
    times = (random.uniform(0.0, 0.99, units.size).astype(np.float16).astype(np.float64) * 1e6).astype(np.int64)
    write_shd(tmp_path / "digits.h5", SpikeRecordings(times, units, np.arange(81) * 40, labels, np.arange(80) // 20))
    settings = yaml.safe_load(Path(training.__file__).with_name("recipes").joinpath("shd_elm.yaml").read_text())
    settings["data"]["init_args"] |= {"train_file": "digits.h5", "test_file": "digits.h5"}
    settings["trainer"] |= {"accelerator": "cpu", "max_epochs": 3, "enable_progress_bar": False}
    network = settings["model"]["init_args"]["network"]
    neuron = {"input_size": 700, "output_size": 20, "delta_t": 10.0, "tau": 200.0}
    network["init_args"]["neuron"] = {"class_path": "tests.toy_layer.ToyLayer", "init_args": neuron}
    if spiking:  # LIF neurons before it
        hidden = {"input_size": 700, "output_size": 30, "delta_t": 10.0}
        network["class_path"] = "elm_neuro.training.SpikingNetwork"
        network["init_args"]["hidden"] = {"class_path": "elm_neuro.nn.LIF", "init_args": hidden}
        network["init_args"]["neuron"]["init_args"]["input_size"] = 30
        settings["model"]["init_args"]["spike_l1"] = 0.01
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["fit", "--config", "toy.yaml"]) == 0
    assert main(["test", "--config", "toy.yaml", "--ckpt_path", "runs/shd_elm/best.ckpt"]) == 0
    evaluation = json.loads((tmp_path / "runs" / "shd_elm" / "test" / "evaluation.json").read_text())
    assert sum(map(sum, evaluation["confusion"])) == 80
    assert spiking or evaluation["accuracy"] > 0.9  # four classes in channels of their own
