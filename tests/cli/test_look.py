"""elm-neuro look, models and push as a user calls them: whatever was saved is looked at, what cannot be is named."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("lightning")
pytest.importorskip("h5py")

from matplotlib.figure import Figure

from elm_neuro import ELM, LIF, pretrained
from elm_neuro.checkpoints import _by_name, save_pretrained
from elm_neuro.cli import main
from elm_neuro.cli._settings import KEY
from tests.checkpoints.upstream_files import Upstream
from tests.saved_neurons import small


@pytest.fixture(autouse=True)
def _undrawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures in no time, in a folder of our own."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: path.write_bytes(b"drawn"))
    monkeypatch.chdir(tmp_path)


def test_a_saved_neuron_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    save_pretrained(small(), "my neuron")
    assert main(["look", "my neuron", "--duration", "60", "--rate", "30", "--seed", "4"]) == 0
    out = capsys.readouterr().out
    page = Path("reports/look/my_neuron/index.html")
    assert out.startswith(f"{page}: receptive_fields, recordings, spike_responses, time_constants (.png, .pdf)")
    text = page.read_text()
    assert "<h1>my neuron</h1>" in text and "Poisson spikes of 30 Hz on each of 6 channels, 60 ms, seed 4" in text


def test_a_checkpoint_of_the_authors_is_looked_at_by_folder_and_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Upstream().write(Path("theirs"))
    assert main(["look", "theirs", "--out", "one", "--duration", "60"]) == 0
    monkeypatch.setattr(_by_name, "fetch_upstream", lambda name, **_: folder)
    assert main(["look", "num_memory_20", "--out", "two", "--duration", "60"]) == 0
    assert "<h1>num_memory_20</h1>" in Path("two/index.html").read_text()
    with_nothing_else = {path.name: path.read_bytes() for path in Path("one").glob("numbers.npz")}
    assert with_nothing_else == {"numbers.npz": Path("two/numbers.npz").read_bytes()}


def test_a_checkpoint_of_fit_is_looked_at_with_a_recording(
    train_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    neuron = {"class_path": "elm_neuro.ELM", "init_args": {"input_size": 70, "output_size": 20, "num_memory": 3}}
    neuron["init_args"]["delta_t"] = 50.0  # type: ignore[index]
    network = {"class_path": "elm_neuro.training.SequenceClassifier", "init_args": {"neuron": neuron}}
    model = {"class_path": "elm_neuro.training.SpikeClassification", "init_args": {"network": network}}
    weights = {f"network.neuron.{name}": one for name, one in ELM(70, 20, 3, delta_t=50.0).state_dict().items()}
    checkpoint: dict[str, Any] = {"state_dict": weights, KEY: json.dumps({"model": model})}
    Path("run").mkdir()
    torch.save(checkpoint, "run/best.ckpt")
    assert main(["look", "run/best.ckpt", "--data", str(train_file), "--index", "3"]) == 0
    page = Path("reports/look/run_best/index.html").read_text()
    assert "<h1>run, best</h1>" in page and "sample 3 of mine.h5" in page and "in bins of 50 ms, 10 channels" in page
    capsys.readouterr()
    assert main(["look", "run/best.ckpt", "--data", str(train_file), "--index", "80"]) == 1
    assert "index must be in [0, 80), the samples in " in capsys.readouterr().err
    assert main(["look", "run/best.ckpt", "--data", "none.h5"]) == 1
    assert "data must be a NeuronIO or SHD-format file, got none.h5, which does not exist" in capsys.readouterr().err


def test_a_layer_that_is_no_elm_is_looked_at_as_far_as_it_goes() -> None:
    save_pretrained(nn.Sequential(LIF(4, 3), nn.Linear(3, 2), nn.ReLU()), "lif")
    assert main(["look", "lif", "--duration", "60"]) == 0
    names = {path.stem for path in Path("reports/look/lif").glob("*.png")}
    assert names == {"0_time_constants", "0_weights", "0_spike_responses", "0_recordings"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "directory_or_hub_id must be a folder or a hub id"),
        (["text.ckpt"], "checkpoint must be a whole checkpoint of weights and settings, got text.ckpt"),
        (["empty"], "empty must hold config.json, got an empty folder"),
        (
            ["linear"],
            "a module that is looked at must be or hold a layer as elm_neuro.nn.Layer describes it, got Linear",
        ),
        (["neuron", "--data", "text.ckpt"], "text.ckpt must be a whole HDF5 file in the layout of SHD"),
        (["neuron", "--index", "0"], "--index goes with --data, got 0 without it"),
        (["neuron", "--data", "x.h5", "--rate", "3"], "--rate goes without --data, whose spikes are not made"),
        (["neuron", "--rate", "0"], "rate must be above 0 and at most a spike a step, 1000 Hz, got 0 Hz"),
        (["neuron", "--duration", "0"], "duration must be at least two time steps, 2 ms"),
        (["neuron", "--seed", f"{10**23}"], f"seed must be in [-2**63, 2**64), got {10**23}"),
        (["neuron", "--neuron", "1"], "neuron must be in [0, 1), got 1"),
        (["neuron", "--out", "text.ckpt"], "folder must be one that can be written, got text.ckpt: File exists"),
        (["neuron", "--out", "text.ckpt/below"], "folder must be one that can be written, got text.ckpt/below: Not a"),
    ],
)
def test_what_cannot_be_looked_at_is_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    save_pretrained(small(), "neuron")
    save_pretrained(nn.Linear(3, 2), "linear")
    Path("empty").mkdir()
    Path("text.ckpt").write_text("no checkpoint")
    assert main(["look", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not Path("reports").exists() or not list(Path("reports").rglob("*"))


def test_a_saved_folder_of_anyones_layer_is_looked_at_where_its_package_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "from elm_neuro import pretrained\nfrom tests.toy_layer import ToyLayer\n\n\n"
    Path("lent_layer.py").write_text(f"{code}@pretrained.register\nclass LentLayer(ToyLayer): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    known = pretrained._kinds._KINDS
    monkeypatch.setattr(pretrained._kinds, "_KINDS", dict(known))
    save_pretrained(import_module("lent_layer").LentLayer(6, 2), "lent")
    monkeypatch.setattr(pretrained._kinds, "_KINDS", dict(known))  # as in another process
    monkeypatch.delitem(sys.modules, "lent_layer")
    for trust, message in ([], "class must be one of "), (["--trust", "lent_lair"], "No module named 'lent_lair'"):
        assert main(["look", "lent", "--duration", "60", *trust]) == 1
        assert message in capsys.readouterr().err and "lent_layer" not in sys.modules
    assert main(["look", "lent", "--duration", "60", "--trust", "lent_layer"]) == 0
    assert "<h1>lent</h1>" in Path("reports/look/lent/index.html").read_text()


def test_published_neurons_are_listed_and_each_has_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "num_memory_20" in out and "8,002" in out and "0.9922" in out
    assert main(["models", "best_elm_neuron"]) == 0
    assert "# best_elm_neuron" in capsys.readouterr().out
    assert main(["models", "num_memory_4"]) == 1
    assert "name must be one of num_memory_1, " in capsys.readouterr().err
