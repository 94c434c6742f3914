"""elm-neuro neuronio, elm-neuro info, and elm-neuro fit with NeuronIO's recipes, as a user calls them."""

from __future__ import annotations

import json
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("lightning")
pytest.importorskip("h5py")

from elm_neuro import ALIF, ELM, LIF, BranchELM, ELMNetwork, SpikingELM
from elm_neuro.checkpoints import save_pretrained
from elm_neuro.cli import main
from elm_neuro.datasets import verify_neuronio
from elm_neuro.training import flops_per_step
from tests.datasets.neuronio.neuronio_files import made, write


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kaggle")
    for i, name in enumerate(("full_ergodic_train_batch_2", "full_ergodic_train_batch_1", "Data_test")):
        write(folder / name / f"sim__{i}.p", made(2, 1200, seed=i, rate=0.001))
    return folder


def test_convert_verify_and_eval(kaggle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, model = tmp_path / "out", tmp_path / "neuron"
    assert (
        main(["neuronio", "convert", str(kaggle / "Data_test"), str(kaggle / "full_ergodic_train_batch_1"), str(out)])
        == 0
    )
    assert "2 files with 4 simulations in" in capsys.readouterr().out
    assert main(["neuronio", "convert", str(kaggle), str(out)]) == 0
    assert "3 files with 6 simulations in" in capsys.readouterr().out
    assert main(["neuronio", "verify", str(out)]) == 0
    assert "3 files are what the manifest says" in capsys.readouterr().out
    BranchELM(1278, 2, 3, num_branch=45, num_synapse_per_branch=100).save_pretrained(model)
    figures = tmp_path / "figures.json"
    assert (
        main(["neuronio", "eval", "--model", str(model), "--data", str(out), "--draws", "5", "--json", str(figures)])
        == 0
    )
    assert "voltage: RMSE (mV)" in capsys.readouterr().out
    one = json.loads(figures.read_text())
    assert len(one["protocol"]["files"]) == 3 and one["model"] == str(model)
    assert (
        main(["neuronio", "eval", "--model", str(model), "--data", str(kaggle), "--draws", "5", "--json", str(figures)])
        == 0
    )
    two = json.loads(figures.read_text())
    assert {k: v for k, v in one["raw"].items() if k != "intervals"}.keys() == {
        k: v for k, v in two["raw"].items() if k != "intervals"
    }.keys()
    assert two["raw"]["figures"]["soma_RMSE"] == pytest.approx(
        one["raw"]["figures"]["soma_RMSE"], rel=1e-6
    )  # pickles or converted: the same
    arrays = tmp_path / "arrays"
    assert main(["neuronio", "convert", str(kaggle), str(arrays), "--format", "npy"]) == 0
    assert main(["neuronio", "verify", str(arrays)]) == 0
    assert (
        main(["neuronio", "eval", "--model", str(model), "--data", str(arrays), "--draws", "5", "--json", str(figures)])
        == 0
    )
    assert json.loads(figures.read_text())["raw"]["figures"] == one["raw"]["figures"]
    capsys.readouterr()
    drawn = tmp_path / "drawn"
    data = next(str(path) for path in out.rglob("*.h5") if path.stem == "sim__2")
    arguments = ["--model", str(model), "--data", data, "--draws", "0", "--figures", str(drawn)]
    assert main(["neuronio", "eval", *arguments]) == 0
    assert f"workings, receptive_fields (.png, .pdf) in {drawn}; no ROC, which needs spikes" in capsys.readouterr().out
    names = {f"{name}.{kind}" for name in ("workings", "receptive_fields") for kind in ("png", "pdf")}
    assert {path.name for path in drawn.iterdir()} == names
    assert main(["info", str(model)]) == 0
    assert str(
        sum(p.numel() for p in BranchELM(1278, 2, 3, num_branch=45, num_synapse_per_branch=100).parameters())
    ) in (capsys.readouterr().out.replace(",", ""))


def test_info_gives_the_parameters_of_layers_whose_flops_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    layers = {
        "lif": LIF(5, 2),
        "alif": ALIF(5, 2),
        "spiking": SpikingELM(ELM(5, 2)),
        "recurrent": ELMNetwork(5, 6),
        "chain": nn.Sequential(ELM(5, 4), nn.Linear(4, 2)),
    }
    for name, layer in layers.items():
        save_pretrained(layer, name)
    assert main(["info", *layers]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, layer in layers.items():
        (line,) = [line for line in lines if f" {name} " in line]
        assert f"{sum(parameter.numel() for parameter in layer.parameters()):,}" in line
        assert line.count("–") == 3


def test_info_counts_the_steps_that_a_neuron_takes_in_the_time_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flops = {}
    for delta_t in (0.5, 1.0, 10.0):
        neuron = ELM(100, 20, num_memory=50, delta_t=delta_t)
        save_pretrained(neuron, f"step{delta_t}")
        assert main(["info", f"step{delta_t}"]) == 0
        flops[delta_t] = float(capsys.readouterr().out.splitlines()[3].split("│")[4])
    per_step = 1e-6 * flops_per_step(neuron)
    assert flops == {delta_t: pytest.approx(500 / delta_t * per_step, abs=0.005) for delta_t in flops}


def test_info_lists_the_papers_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("LIF", "Branch-ELM, 20 memory units", "8,022", "LSTM, 250 units", "1,286"))


def test_what_cannot_be_done_is_said_in_a_line(
    kaggle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    bad = write(tmp_path / "bad" / "sim__1.p", b"no pickle")
    for arguments, message in (
        (["convert", str(kaggle)], "convert needs at least one source and the folder"),
        (["convert", str(empty), str(tmp_path / "out")], "which has none"),
        (["convert", str(bad), str(tmp_path / "out")], f"{bad} must be a whole NeuronIO simulation file"),
        (["convert", str(bad), str(bad)], f"destination must be a folder that can be written, got {bad}: "),
        (["verify", str(empty)], "must hold manifest.json"),
        (["eval", "--model", str(empty), "--data", str(kaggle)], "must hold config.json"),
        (
            ["eval", "--model", str(empty), "--data", str(kaggle), "--burn-in", "500"],
            "burn_in_ms must be in [0, window_ms = 500), got 500",
        ),
    ):
        assert main(["neuronio", *arguments]) == 1
        said = capsys.readouterr().err
        assert said.startswith("elm-neuro: error: ") and message in said.replace("\n", " ")


def test_verify_names_what_is_wrong(kaggle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["neuronio", "convert", str(kaggle), str(tmp_path)]) == 0
    (name,) = (path for path in tmp_path.rglob("*.h5") if path.stem == "sim__2")
    name.write_bytes(b"")
    capsys.readouterr()
    assert main(["neuronio", "verify", str(tmp_path)]) == 1
    assert str(name) in capsys.readouterr().err
    assert main(["neuronio", "convert", str(kaggle), str(tmp_path)]) == 0
    assert verify_neuronio(tmp_path) == {}


def test_dask_runs_the_same_tasks(kaggle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of the client, with the one method that is called; Dask's own executor has the interface of
    concurrent.futures.
    """

    class Client:
        def __init__(self, address: str) -> None:
            assert address == "tcp://there:8786"

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def get_executor(self) -> ThreadPoolExecutor:
            return ThreadPoolExecutor(1)

    module = types.ModuleType("distributed")
    module.Client = Client  # type: ignore[attr-defined]
    module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("distributed", None)
    monkeypatch.setitem(sys.modules, "distributed", module)
    assert main(["neuronio", "convert", str(kaggle), str(tmp_path), "--dask", "tcp://there:8786"]) == 0
    assert verify_neuronio(tmp_path) == {}


@pytest.mark.slow
def test_fit_resumes_and_eval_reads_what_it_saved(
    kaggle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = [
        "--config",
        "neuronio_branch_elm",
        "--data.data",
        str(kaggle),
        "--data.num_batches",
        "[3,1,1]",
        "--trainer.accelerator",
        "cpu",
    ]
    assert main(["fit", *small, "--trainer.max_epochs", "1"]) == 0
    assert torch.load(tmp_path / "runs" / "neuronio_branch_elm" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert main(["fit", *small, "--trainer.max_epochs", "2", "--resume"]) == 0
    folder = tmp_path / "runs" / "neuronio_branch_elm"
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 6
    assert {"best.ckpt", "last.ckpt", "neuron"} <= {path.name for path in folder.iterdir()}
    assert main(["test", *small, "--ckpt_path", str(folder / "best.ckpt")]) == 0
    capsys.readouterr()
    assert (
        main(
            ["neuronio", "eval", "--model", str(folder / "neuron"), "--data", str(kaggle / "Data_test"), "--draws", "0"]
        )
        == 0
    )
    assert "published protocol" in capsys.readouterr().out
