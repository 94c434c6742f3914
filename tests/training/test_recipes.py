"""The recipes parse, build their networks at the stated sizes, and hold the paper's values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from elm_neuro import ELMNetworkClassifier, training
from elm_neuro.cli import recipes
from elm_neuro.demo import MIXED, TUNED, DemoSettings, build, data_module
from elm_neuro.functional import MultiGaussian
from elm_neuro.training import (
    ByteModel,
    NeuronIORegression,
    SHDAddingDataModule,
    SpikeClassification,
    SpikingNetwork,
    SpokenDigitsDataModule,
    TokenClassification,
    num_parameters,
)

RECIPES = Path(training.__file__).parent / "recipes"
SHD = {"shd_elm": 182_420, "shd_branch_elm": 65_920, "shd_lstm": 957_020, "shd_lif": 51_195}
ADDING = {
    "shd_adding_elm": 182_319,
    "shd_adding_branch_elm": 65_819,
    "shd_adding_lstm": 956_769,
    "shd_adding_lif": 51_128,
}
NEURONIO = {
    "neuronio_branch_elm": 8_022, "neuronio_branch_elm_repository": 8_002, "neuronio_elm": 52_842,
    "neuronio_lstm": 266_102, "neuronio_lif": 1_280, "neuronio_linear_elm": 1_286,
}  # fmt: skip
LRA = {path.stem for path in RECIPES.glob("lra_*.yaml")}  # tests/training/lra/test_recipes.py says which
OTHERS = {"shd_alif", "nmnist_alif", "spoken_digits_mixed", "shd_adding_elm_network", "enwik8_elm_network"}
FIGURE_5 = {"branch_elm": 67_000, "elm": 186_000, "lstm": 956_000, "lif": 51_000}  # parameters


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def load(name: str) -> LightningCLI:
        options: dict[str, Any] = {"subclass_mode_model": True, "subclass_mode_data": True, "run": False}
        return LightningCLI(
            LightningModule,
            LightningDataModule,
            auto_configure_optimizers=False,
            args=["--config", str(RECIPES / f"{name}.yaml")],
            **options,
        )

    monkeypatch.setattr("sys.argv", ["elm-neuro"])
    return load


def test_every_recipe_is_listed() -> None:
    assert (
        set(recipes())
        == {path.stem for path in RECIPES.glob("*.yaml")}
        == {
            *SHD,
            *ADDING,
            *NEURONIO,
            *LRA,
            "shd_alif",
            "nmnist_alif",
            "spoken_digits_mixed",
            "shd_adding_elm_network",
            "enwik8_elm_network",
        }
    )
    ends = "arXiv:2306.16922", "arXiv:2605.12049", "Taylor, King, Harper, NeurIPS 2023", "`elm-neuro demo`"
    assert all(line.endswith(ends) for line in recipes().values())


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_names_its_task_and_has_all_its_arguments_checked_while_parsing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    settings = yaml.safe_load(text)
    kind: type = NeuronIORegression if path.stem in NEURONIO else SpikeClassification
    kind = TokenClassification if path.stem in LRA else kind
    kind = ByteModel if path.stem == "enwik8_elm_network" else kind
    assert settings["model"]["class_path"] == f"elm_neuro.training.{kind.__name__}"
    assert set(settings["model"]) == set(settings["data"]) == {"class_path", "init_args"}
    assert "dict_kwargs" not in text  # jsonargparse hands these on unseen


@pytest.mark.parametrize("name", [*SHD, *ADDING])
def test_shd_recipes_train_as_the_paper_does(load: Any, name: str) -> None:
    cli, adding, count = load(name), name in ADDING, (SHD | ADDING)[name]
    assert num_parameters(cli.model.network) == count
    assert count == pytest.approx(FIGURE_5[name.removeprefix("shd_").removeprefix("adding_")], rel=0.025)
    lif = name.endswith("lif")
    model = (cli.model.optimizer, cli.model.learning_rate, cli.model.input_dropout, cli.model.spike_l1)
    assert model == (("adamax", 2e-3, 0.0, 0.01) if lif else ("adamax", 5e-3, 0.5, 0.0))
    data = cli.datamodule
    assert (cli.trainer.max_epochs, data.batch_size, data.binning.bin_ms, data.binning.duration_ms) == (
        70,
        8,
        10.0,
        1000.0,
    )
    assert isinstance(data, SHDAddingDataModule) == adding
    if adding:
        assert (data.num_pairs, data.pairing, data.speakers, data.seed) == ((2000 * 8, 2048, 4096), "fixed", "all", 0)
    assert cli.model.network(torch.zeros(2, 3, 700)).shape == (2, 19 if adding else 20)
    kinds = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert "TestReport" in kinds
    best, last = (callback for callback in cli.trainer.callbacks if isinstance(callback, ModelCheckpoint))
    assert (best.monitor, best.mode, best.filename, last.filename) == ("valid/accuracy", "max", "best", "last")
    assert best.dirpath == last.dirpath and Path(str(best.dirpath)).name == name
    assert cli.trainer.logger.name == name


@pytest.mark.parametrize("name", ["shd_elm", "shd_branch_elm", "shd_adding_elm", "shd_adding_branch_elm"])
def test_elm_recipes_build_the_papers_neurons(load: Any, name: str) -> None:
    cli = load(name)
    network, config = cli.model.network, cli.model.network.neuron.config
    assert (config.num_memory, config.lambda_, config.delta_t, config.tau_s) == (100, 5.0, 10.0, 5.0)
    assert (config.tau_m_init, config.tau_m_bounds, config.tau_m_spacing) == ((1.0, 150.0), (0.0, 1000.0), "linear")
    torch.testing.assert_close(network.neuron.tau_m.diff(), torch.full((99,), 149 / 99), rtol=1e-3, atol=1e-3)
    assert config.learn_w_s == ("branch" in name)
    assert network.readout == "last"


@pytest.mark.parametrize("name", ["shd_lstm", "shd_adding_lstm"])
def test_lstm_recipes_build_the_papers_lstm(load: Any, name: str) -> None:
    network = load(name).model.network
    assert (network.lstm.hidden_size, network.recurrent_dropout, network.timescales, network.delta_t) == (
        250,
        0.3,
        None,
        10.0,
    )


@pytest.mark.parametrize("name", ["shd_lif", "shd_adding_lif"])
def test_lif_recipes_train_membranes_and_fed_back_spikes(load: Any, name: str) -> None:
    cell = load(name).model.network.hidden.cell
    assert (cell.delta_t, cell.detach_recurrent, cell.adaptive) == (10.0, False, False)
    assert cell.beta.requires_grad and cell.bias.requires_grad and cell.w_rec.requires_grad


def test_the_alif_recipe_is_the_published_network(load: Any) -> None:
    cli = load("shd_alif")
    network, model, data = cli.model.network, cli.model, cli.datamodule
    wide, layer = 256 * 700 + 256 * 256, 256 + 3 * 256  # input and recurrent weights; biases, decays, strengths
    assert num_parameters(network) == wide + layer + 2 * 256 * 256 + layer + 257 * 20 + 20 == 383_016
    for part in (network.first, network.second):
        config = part.config
        assert (config.tau_v, config.tau_a, config.latency_steps, config.output_size) == (20.0, 150.0, 10, 256)
        assert config.recurrent and config.adaptive and config.surrogate == MultiGaussian()
    assert (model.optimizer, model.learning_rate, model.eps, data.batch_size) == ("adam", 1e-3, 1e-5, 64)
    assert (cli.trainer.max_epochs, data.binning.bin_ms, data.binning.duration_ms) == (40, 1.0, 1200.0)
    assert network(torch.zeros(2, 3, 700)).shape == (2, 20)


def test_the_recipe_of_the_elm_network_is_the_published_setting(load: Any) -> None:
    """The authors' times are bins of 2 ms: the same decays as with their numbers and a step of 1."""
    cli = load("shd_adding_elm_network")
    network, model, data = cli.model.network.neuron, cli.model, cli.datamodule
    assert num_parameters(network) == 77_310 and network(torch.zeros(2, 3, 700))[0].shape == (2, 3, 19)
    theirs = ELMNetworkClassifier(700, 19, 96, delta_t=1.0, tau_m_init=(1.0, 500.0), tau_high_pass=5.0)
    for ours, own in ((network.hidden, theirs.hidden), (network.readout, theirs.readout)):
        found, wanted = ours.effective_parameters(), own.effective_parameters()
        for name in ("kappa_m", "gain", "kappa_r"):
            if getattr(wanted, name) is not None:
                torch.testing.assert_close(getattr(found, name), getattr(wanted, name))
    config = network.hidden.config
    assert (config.index_shape, config.num_memory, config.input_scale) == ((96, 30, 10), 5, 10.0)
    assert (config.recurrent_fraction, config.input_dropout, config.recurrent_dropout) == (0.25, 0.2, 0.2)
    assert (config.activation, config.output, config.binarize) == ("relu_squared", "relu", True)
    assert (model.optimizer, model.learning_rate, model.warmup_steps) == ("adamax", 5e-3, 400)
    assert (model.penalties, model.label_smoothing) == ({"activity": 0.2, "mlp": 0.002}, 0.01)
    assert (cli.trainer.max_epochs, cli.trainer.gradient_clip_val, data.batch_size) == (70, 1.0, 8)
    assert (data.num_pairs[0], data.binning.bin_ms, data.binning.duration_ms) == (2000 * 8, 2.0, 1000.0)
    assert model.network.readout == "last"


def test_the_recipe_of_enwik8_is_the_published_network(load: Any) -> None:
    cli = load("enwik8_elm_network")
    network, model, data = cli.model.network, cli.model, cli.datamodule
    assert num_parameters(network) == pytest.approx(3.5e6, rel=0.01)
    config = network.hidden.config
    assert (config.index_shape, config.num_memory, config.recurrent_fraction) == ((742, 50, 15), 20, 0.8)
    assert (config.delta_t, config.tau_m_init, config.tau_high_pass) == (1.0, (0.1, 100.0), 2.0)
    assert (model.optimizer, model.learning_rate, model.input_scale, data.num_steps) == ("adam", 5e-4, 3.0, 100)


def test_a_fifth_of_shd_validates(load: Any) -> None:
    assert all(math.isclose(load(name).datamodule.valid, 0.2) for name in SHD)


def test_branches_of_the_shd_recipe_draw_every_input_several_times(load: Any) -> None:
    config = load("shd_branch_elm").model.network.neuron.config
    assert 2 <= config.num_branch * config.num_synapse_per_branch / config.input_size <= 5  # advice of table S1


def test_the_mixed_recipe_is_the_demos_network(load: Any) -> None:
    cli, settings, tuned = load("spoken_digits_mixed"), DemoSettings(), TUNED[MIXED]
    demo = build(MIXED, settings, num_channels=cli.model.network.hidden.input_size, seed=0)
    assert isinstance(cli.model.network, SpikingNetwork)
    assert cli.model.network.neuron.config == demo.network.neuron.config  # type: ignore[union-attr]
    assert repr(cli.model.network) == repr(demo.network)
    for name in ("optimizer", "learning_rate", "weight_decay", "input_dropout"):
        assert getattr(cli.model, name) == getattr(demo, name)
    data = data_module(settings, bin_ms=tuned.bin_ms, seed=0)
    assert isinstance(cli.datamodule, SpokenDigitsDataModule)
    assert (cli.datamodule.binning, cli.datamodule.batch_size, cli.datamodule.valid) == (
        data.binning,
        data.batch_size,
        data.valid,
    )
    assert [len(digits) for digits in cli.datamodule.digits] == [settings.num_train, settings.num_test]
    assert cli.trainer.max_epochs == settings.num_epochs


@pytest.mark.parametrize("name", NEURONIO)
def test_neuronio_recipes_train_as_the_paper_or_the_repository_does(load: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "neuronio").mkdir()
    cli, repository = load(name), name.endswith("repository")
    assert num_parameters(cli.model.network) == NEURONIO[name]
    model, data = cli.model, cli.datamodule
    assert (model.optimizer, model.learning_rate, model.burn_in_ms) == ("adam", 5e-4, 0 if repository else 150)
    assert (cli.trainer.max_epochs, data.num_batches[0]) == ((35, 10_000) if repository else (30, 11_400))
    assert (data.batch_size, data.window_ms, data.skip_ms, data.output) == (8, 500, 500, "events")
    assert cli.trainer.logger.name == name
    best, *last = (callback for callback in cli.trainer.callbacks if isinstance(callback, ModelCheckpoint))
    assert (best.monitor, best.mode, best.filename, *(one.filename for one in last)) == (
        "valid/loss",
        "min",
        "best",
        "last",
        "last",
    )


def test_the_papers_and_the_repositorys_branch_elm_differ_in_their_time_constants(load: Any, tmp_path: Path) -> None:
    (tmp_path / "neuronio").mkdir()
    paper, repository = (load(name).model.network for name in ("neuronio_branch_elm", "neuronio_branch_elm_repository"))
    assert (paper.config.lambda_, repository.config.lambda_) == (10.0, 5.0)
    assert (paper.config.learn_tau_m, repository.config.learn_tau_m) == (True, False)
    torch.testing.assert_close(paper.tau_m, torch.linspace(1, 100, 20), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(repository.tau_m, torch.logspace(0, math.log10(150), 20), rtol=1e-3, atol=1e-3)
