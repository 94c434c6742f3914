"""The recipes of Long Range Arena hold tables S2 and S3 of the paper and build networks of its sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from elm_neuro import training
from elm_neuro.cli import recipes
from elm_neuro.training import ResidualStack, TimeBudget, TokenClassifier, TokenLSTM, TwoTowers, num_parameters

RECIPES = Path(training.__file__).parent / "recipes"
# inputs, classes, batch, epochs, tau_s, longest tau_m, longest Chrono timescale: tables S2 and S3
TABLE = {
    "listops": (25, 10, 384, 150, 5.0, 2e3, 4e3),
    "text": (169, 2, 384, 150, 5.0, 4e3, 8e3),
    "retrieval": (105, 2, 384, 150, 5.0, 4e3, 8e3),
    "image": (16, 10, 384, 300, 5.0, 1e3, 2e3),
    "pathfinder": (16, 2, 384, 300, 5.0, 1e3, 2e3),
    "pathx": (8, 2, 768, 300, 150.0, 2e4, 2e4),
}
PARAMETERS = {  # of the ELM, the Chrono-LSTM and the stack, which is as large as the ELM
    "listops": (99_610, 107_710, 95_658),
    "text": (141_602, 192_902, 144_434),
    "retrieval": (134_027, 166_127, 133_781),
    "image": (96_910, 102_310, 95_082),
    "pathfinder": (95_702, 101_102, 94_562),
    "pathx": (93_302, 96_302, 94_050),
}
KINDS = ("", "_lstm", "_stack")
OURS = {
    "lra_digits",
    "lra_listops_10min",
    *(f"lra_{task}_reduced{kind}" for task in ("listops", "pathfinder") for kind in KINDS[:2]),
}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["elm-neuro"])

    def load(name: str) -> LightningCLI:
        return LightningCLI(
            LightningModule,
            LightningDataModule,
            auto_configure_optimizers=False,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            args=["--config", str(RECIPES / f"{name}.yaml")],
        )

    return load


def test_there_is_a_recipe_for_each_task_and_network() -> None:
    ours = {name for name in recipes() if name.startswith("lra_")}
    assert ours >= {f"lra_{task}{kind}" for task in TABLE for kind in KINDS}
    assert ours - {f"lra_{task}{kind}" for task in TABLE for kind in KINDS} >= OURS


@pytest.mark.grid(every=3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TABLE)
def test_recipes_hold_the_tables_of_the_paper(load: Any, task: str, kind: str) -> None:
    name = f"lra_{task}{kind}"
    inputs, classes, batch, epochs, tau_s, tau_m, chrono = TABLE[task]
    cli = load(name)
    model, network = cli.model, cli.model.network
    count = PARAMETERS[task][KINDS.index(kind)]
    assert num_parameters(network) == count
    assert f"{count:,} parameters" in (RECIPES / f"{name}.yaml").read_text()
    rate = {"": 2e-4, "_lstm": 1e-3, "_stack": 1e-3}[kind]
    assert (model.optimizer, model.learning_rate, model.num_classes) == ("adam", rate, classes)
    assert (cli.datamodule.batch_size, cli.trainer.max_epochs) == (batch, epochs)
    if task == "retrieval":
        assert isinstance(network, TwoTowers)
        network = network.tower
        assert network.output_size == 75
    if kind == "_lstm":
        assert isinstance(network, TokenLSTM)
        assert (network.lstm.hidden_size, network.timescales) == (150, (1.0, chrono))
        assert network.lstm.input_size == inputs
    else:
        layers = list(network.layers) if isinstance(network, ResidualStack) else [network.neuron]
        assert isinstance(network, ResidualStack if kind else TokenClassifier)
        assert len(layers) == len({id(layer) for layer in layers}) == (4 if kind else 1)
        for layer in layers:
            config = layer.config
            assert (config.tau_s, config.tau_m_init, config.tau_m_bounds) == (tau_s, (1.0, tau_m), (1.0, tau_m))
            assert (config.tau_m_spacing, config.lambda_, config.delta_t) == ("log", 5.0, 1.0)
            assert layer.recompute_every == (128 if task == "pathx" else None)
        if not kind:
            assert (config.input_size, config.num_memory, config.learn_w_s) == (inputs, 150, False)
    tokens = torch.zeros(2, 3, dtype=torch.uint8)
    logits = cli.model.network(tokens, torch.tensor([3, 2]))
    assert logits.shape == (1 if task == "retrieval" else 2, classes)
    best, last = (callback for callback in cli.trainer.callbacks if isinstance(callback, ModelCheckpoint))
    assert (best.monitor, best.mode, best.filename, last.filename) == ("valid/accuracy", "max", "best", "last")
    assert Path(str(best.dirpath)).name == cli.trainer.logger.name == name


def test_the_digits_need_no_download(load: Any) -> None:
    cli = load("lra_digits")
    assert num_parameters(cli.model.network) == 8_330
    assert "8,330 parameters" in (RECIPES / "lra_digits.yaml").read_text()
    cli.datamodule.setup()
    assert (cli.datamodule.num_tokens, cli.datamodule.num_classes) == (17, 10)


def test_ten_minutes_of_one_gpu_end_by_the_clock(load: Any) -> None:
    cli = load("lra_listops_10min")
    (budget,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, TimeBudget))
    assert budget.seconds == 540.0
    assert (num_parameters(cli.model.network), cli.datamodule.batch_size) == (99_610, 384)
    # what is expected at 30 ms an update, less 15 s to read the data, is what the recipe says
    expected = (budget.seconds - 15) / 0.030
    text = (RECIPES / "lra_listops_10min.yaml").read_text()
    assert "17,000 updates" in text.replace("\n# ", " ") and expected == pytest.approx(17_000, rel=0.05)


@pytest.mark.parametrize(("task", "sizes"), [("listops", [23_810, 23_946]), ("pathfinder", [15_074, 15_150])])
def test_reduced_recipes_compare_networks_of_one_size_and_budget(load: Any, task: str, sizes: list[int]) -> None:
    one, other = (load(name) for name in (f"lra_{task}_reduced", f"lra_{task}_reduced_lstm"))
    assert [num_parameters(cli.model.network) for cli in (one, other)] == sizes
    assert all(f"{size:,}" in (RECIPES / f"lra_{task}_reduced_lstm.yaml").read_text() for size in sizes)
    for name in ("learning_rate", "optimizer", "num_classes"):
        assert getattr(one.model, name) == getattr(other.model, name)
    assert one.trainer.max_epochs == other.trainer.max_epochs
    assert one.datamodule.batch_size == other.datamodule.batch_size
