"""The published neurons: what the list says is what their authors' files say, cards are read as the hub reads them."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from elm_neuro import BranchELM, checkpoints
from elm_neuro.checkpoints import _by_name, cards_page, from_pretrained, list_pretrained, model_card
from tests.checkpoints.upstream_files import Upstream

# the table in the README of the authors' repository at 52e68a6: memory units, parameters, AUC
README = """
1 2 3 5 7 10 15 20 25 30 40 50 75 100
4601 4708 4823 5077 5363 5852 6827 8002 9377 10952 14702 19252 34127 54002
0.9437 0.9582 0.9558 0.9757 0.9827 0.9878 0.9915 0.9922 0.9926 0.9929 0.9934 0.9934 0.9938 0.9935
"""


def test_the_list_is_the_authors_table() -> None:
    *series, best = list_pretrained()
    memory, parameters, auc = ([float(value) for value in line.split()] for line in README.split("\n")[1:4])
    assert [neuron.num_memory for neuron in series] == memory
    assert [neuron.num_parameters for neuron in series] == parameters
    assert [round(neuron.test.auc, 4) for neuron in series] == auc
    assert [neuron.name for neuron in series] == [f"num_memory_{number:g}" for number in memory]
    assert (best.name, best.activation, round(best.test.auc, 4)) == ("best_elm_neuron", "silu", 0.9946)
    with pytest.raises(FrozenInstanceError):
        best.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["num_memory_10", "num_memory_20"])
def test_the_list_is_what_the_files_say(shared: Path, name: str) -> None:
    folder = shared / "data/checkpoints" / name
    (listed,) = (neuron for neuron in list_pretrained() if neuron.name == name)
    neuron = from_pretrained(folder)
    assert sum(p.numel() for p in neuron.parameters() if p.requires_grad) == listed.num_parameters
    assert (neuron.config.num_memory, neuron.config.activation) == (listed.num_memory, listed.activation)
    assert (folder / "neuronio_best_model_state.pt").stat().st_size == listed.weights_bytes
    assert hashlib.sha256((folder / "model_config.json").read_bytes()).hexdigest() == listed.config_sha256
    measured, trained = (json.loads((folder / file).read_text()) for file in ("eval_results.json", "train_config.json"))
    assert listed.test.soma_rmse_mv == measured["test_results"]["soma_RMSE"]
    assert listed.test.true_positives_at_1_percent == measured["test_results"]["TP @ 0.0100 FP"]
    assert listed.test.soma_explained_variance_percent == measured["test_results"]["soma_explained_variance_percent"]
    assert vars(listed.training) == {
        "epochs": trained["num_epochs"],
        **{key: trained[key] for key in ("batches_per_epoch", "batch_size", "learning_rate")},
    }


def test_a_name_loads_a_published_neuron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, folder = [], Upstream().write(tmp_path / "cached")

    def fetch(name: str, **_: object) -> Path:
        asked.append(name)
        return folder

    monkeypatch.setattr(_by_name, "fetch_upstream", fetch)
    monkeypatch.chdir(tmp_path)
    neuron = from_pretrained("num_memory_20", dtype=torch.float64, backend="reference")
    assert asked == ["num_memory_20"] and neuron.backend == "reference" and neuron.w_s.dtype == torch.float64
    assert from_pretrained(folder).config == neuron.config  # their folder, as it is
    with pytest.raises(ValueError, match="revision must be None for num_memory_20, which is not on the hub, got 'v1'"):
        from_pretrained("num_memory_20", revision="v1")
    with pytest.raises(
        FileNotFoundError, match=r"'num_memory_21', which does not exist, and none of .* num_memory_1, "
    ):
        from_pretrained("num_memory_21")
    BranchELM(6, 2, 3, num_branch=3, num_synapse_per_branch=4).save_pretrained("num_memory_20")
    assert from_pretrained("num_memory_20").config.num_memory == 3  # a folder comes first
    assert asked == ["num_memory_20"]


@pytest.mark.parametrize("name", [neuron.name for neuron in list_pretrained()])
def test_the_hub_reads_each_card(name: str) -> None:
    hub = pytest.importorskip("huggingface_hub")
    (neuron,) = (one for one in list_pretrained() if one.name == name)
    text = model_card(name)
    card = hub.ModelCard(text)
    assert card.data.license == "mit" and card.data.library_name == "elm_neuro"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {
        "roc_auc": neuron.test.auc,
        "rmse": neuron.test.soma_rmse_mv,
        "explained_variance": neuron.test.soma_explained_variance_percent,
    }
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
    assert re.findall(r"\b[0-9a-f]{64}\b", text) == [neuron.config_sha256, neuron.weights_sha256]
    assert f'from_pretrained("{name}")' in text and neuron.copyright in text


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"name must be one of num_memory_1, .*best_elm_neuron, got 'num_memory_4'"):
        model_card("num_memory_4")


def test_the_page_of_the_site_is_made_of_the_same_data(repository: Path) -> None:
    page = (repository / "docs/reference/model_cards.md").read_text(encoding="utf-8")
    assert page == cards_page(), "run: elm-neuro models --markdown > docs/reference/model_cards.md"
    for neuron in checkpoints.list_pretrained():
        assert neuron.weights_sha256 in page and f"{neuron.test.auc:.4f}" in page
