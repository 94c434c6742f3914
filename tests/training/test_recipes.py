"""The recipes parse, build their networks at the stated sizes, and hold the paper's values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.cli import LightningCLI

from elm_neuro import training
from elm_neuro.cli import recipes
from elm_neuro.training import SHDDataModule, SpikeClassification, SpikingNetwork, SpokenDigitsDataModule, num_parameters
from elm_neuro.training._demo import MIXED, TUNED, DemoSettings, build, data_module

RECIPES = Path(training.__file__).parent / "recipes"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def load(name: str) -> LightningCLI:
        options: dict[str, Any] = {"subclass_mode_data": True, "auto_configure_optimizers": False, "run": False}
        return LightningCLI(SpikeClassification, SHDDataModule, args=["--config", str(RECIPES / f"{name}.yaml")], **options)

    monkeypatch.setattr("sys.argv", ["elm-neuro"])
    return load


def test_every_recipe_is_listed() -> None:
    assert set(recipes()) == {path.stem for path in RECIPES.glob("*.yaml")} == {"shd_elm", "shd_branch_elm", "spoken_digits_mixed"}
    assert all(line.endswith(("arXiv:2306.16922", "`elm-neuro demo`")) for line in recipes().values())


@pytest.mark.parametrize(("name", "count", "published"), [("shd_elm", 182_420, 186_000), ("shd_branch_elm", 65_920, 67_000)])
def test_shd_recipes_build_the_papers_neurons(load: Any, name: str, count: int, published: int) -> None:
    cli = load(name)
    network, config = cli.model.network, cli.model.network.neuron.config
    assert num_parameters(network) == count
    assert count == pytest.approx(published, rel=0.02)  # figure 5
    assert (config.num_memory, config.lambda_, config.delta_t, config.tau_s) == (100, 5.0, 10.0, 5.0)
    assert (config.tau_m_init, config.tau_m_bounds, config.tau_m_spacing) == ((1.0, 150.0), (0.0, 1000.0), "linear")
    torch.testing.assert_close(network.neuron.tau_m.diff(), torch.full((99,), 149 / 99), rtol=1e-3, atol=1e-3)
    assert (cli.model.optimizer, cli.model.learning_rate, cli.model.input_dropout) == ("adamax", 5e-3, 0.5)
    assert (cli.trainer.max_epochs, cli.datamodule.batch_size, cli.datamodule.binning.bin_ms) == (70, 8, 10.0)
    assert network.readout == "last"
    assert math.isclose(cli.datamodule.valid, 0.2)
    assert network(torch.zeros(2, 3, 700)).shape == (2, 20)


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
    assert (cli.datamodule.binning, cli.datamodule.batch_size, cli.datamodule.valid) == (data.binning, data.batch_size, data.valid)
    assert [len(digits) for digits in cli.datamodule.digits] == [settings.num_train, settings.num_test]
    assert cli.trainer.max_epochs == settings.num_epochs
