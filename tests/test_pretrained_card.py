"""The card beside saved weights, and what is sent to a hub: one commit, read whole before, never a surprise."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from elm_neuro import ALIF, ELM, LIF, SpikingELM, checkpoints
from elm_neuro.checkpoints import from_pretrained, push_to_hub, save_pretrained
from elm_neuro.cli import main
from tests.saved_neurons import assert_same, small

MODULES = {
    "BranchELM": lambda: small(tau_s=(1.0, 2.0, 3.3)),
    "LIF": lambda: LIF(4, 3),
    "SpikingELM": lambda: SpikingELM(ELM(4, 2, num_memory=3, num_neuron=9), threshold=torch.rand(9, 2)),
    "Sequential": lambda: nn.Sequential(ALIF(4, 3), nn.Linear(3, 2), nn.Identity()),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_card_says_what_the_configuration_says(tmp_path: Path, name: str) -> None:
    yaml = pytest.importorskip("yaml")
    module = MODULES[name]()
    save_pretrained(module, tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---")[1])
    assert head == {
        "license": "unknown",
        "library_name": "elm_neuro",
        "tags": ["elm-neuro", "spiking-neural-network", name],
    }
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    assert f"{trained:,} trained numbers" in text
    assert "not known" in text and "sha256" not in text
    if name == "BranchELM":
        assert "| num_synapse_per_branch | `4` |" in text and "| tau_s | `[1.0, 2.0, 3.3]` |" in text
    if name == "SpikingELM":
        assert "| core | `ELM` |" in text and "| core.num_neuron | `9` |" in text and "9 values" not in text
    if name == "Sequential":
        assert "| modules.0 | `ALIF` |" in text and "| modules.1.out_features | `2` |" in text


def test_a_card_of_ones_own_is_left_alone(tmp_path: Path) -> None:
    save_pretrained(small(), tmp_path)
    first = (tmp_path / "README.md").read_text(encoding="utf-8")
    save_pretrained(LIF(4, 3), tmp_path)
    second = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "# BranchELM" in first and "# LIF" in second  # ours follows the weights
    own = second.replace("unknown", "mit").replace("<!-- Written by elm_neuro", "<!-- Edited")
    (tmp_path / "README.md").write_text(own, encoding="utf-8")
    save_pretrained(small(), tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == own
    assert_same(from_pretrained(tmp_path), small())


def test_a_folder_by_the_name_of_the_card_does_not_stop_a_save(tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    save_pretrained(small(), tmp_path)
    assert_same(from_pretrained(tmp_path), small())


# pushing


class FakeHub:
    """The hub's answers to what a push asks, at the level of the client that huggingface_hub sends with."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.status = 200

    def answer(self, http: Any, request: Any) -> Any:
        path = request.url.path
        body = request.read()
        self.requests.append((request.method, path, body))
        assert request.headers["authorization"] == "Bearer hf_secret"
        if self.status != 200:
            return http.Response(self.status, json={"error": "no"}, request=request)
        if path == "/api/repos/create":
            return http.Response(200, json={"url": "https://huggingface.co/me/mine", "id": "1"}, request=request)
        if path.endswith("/preupload/main"):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return http.Response(200, json={"files": files}, request=request)
        if path == "/api/models/me/mine/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": "https://huggingface.co/me/mine/commit/1", "commitOid": "1", "pullRequestUrl": None}
            return http.Response(200, json=answer, request=request)
        return http.Response(200, json={}, request=request)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """huggingface_hub with its network taken away: what it sends is answered here."""
    library = pytest.importorskip("huggingface_hub")
    set_client = library.set_client_factory  # brings the client in that this version of the library uses
    client = sys.modules.get("httpx2") or pytest.importorskip("httpx")
    fake = FakeHub()
    transport = client.MockTransport(lambda request: fake.answer(client, request))
    set_client(lambda: client.Client(transport=transport, follow_redirects=True))
    monkeypatch.setattr(library, "get_token", lambda: "hf_secret")
    yield fake
    from huggingface_hub.utils._http import default_client_factory

    set_client(default_client_factory)


def test_a_push_sends_the_card_the_configuration_and_the_weights(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pretrained(small(), tmp_path)
    (tmp_path / "private_notes.txt").write_text("not to be sent")
    assert main(["push", str(tmp_path), "me/mine", "--private", "--message", "first"]) == 0
    assert "https://huggingface.co/me/mine: checkpoints.from_pretrained('me/mine')" in capsys.readouterr().out
    assert hub.files == {
        name: (tmp_path / name).read_bytes() for name in ("README.md", "config.json", "model.safetensors")
    }
    created = next(json.loads(body) for _, path, body in hub.requests if path == "/api/repos/create")
    assert created["name"] == "mine" and (created.get("private") is True or created.get("visibility") == "private")
    (commit,) = [body for _, path, body in hub.requests if path.endswith("/commit/main")]
    assert json.loads(commit.splitlines()[0])["value"]["summary"] == "first"
    other = tmp_path / "from_hub"
    other.mkdir()
    for name, content in hub.files.items():
        (other / name).write_bytes(content)
    assert_same(from_pretrained(other), small())


def test_a_folder_without_a_card_gets_one_on_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    save_pretrained(small(), tmp_path)
    expected = (tmp_path / "README.md").read_bytes()
    (tmp_path / "README.md").unlink()
    assert push_to_hub(tmp_path, "me/mine") == "https://huggingface.co/me/mine"
    assert hub.files["README.md"] == expected
    assert not (tmp_path / "README.md").exists()


def test_nothing_is_sent_of_a_damaged_folder(hub: FakeHub, tmp_path: Path) -> None:
    save_pretrained(small(), tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors must be the file that config\.json was written with"):
        push_to_hub(tmp_path, "me/mine")
    assert not hub.requests


def test_a_refusal_of_the_hub_is_said(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_pretrained(small(), tmp_path)
    hub.status = 403
    assert main(["push", str(tmp_path), "me/mine"]) == 1
    assert "elm-neuro: error: me/mine could not be pushed: " in capsys.readouterr().err
    assert not hub.files


def test_what_is_missing_for_a_push_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "neuron"
    save_pretrained(small(), folder)
    with pytest.raises(FileNotFoundError, match=r"directory must be a folder that save_pretrained wrote, got .*none"):
        push_to_hub(tmp_path / "none", "me/mine")
    for bad in ("mine", "me/mine/other", "me/", "https://huggingface.co/me/mine"):
        with pytest.raises(ValueError, match='repo_id must be "owner/name" on the hub, got '):
            push_to_hub(folder, bad)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model_config.json").write_text("{}")
    assert main(["push", str(tmp_path / "theirs"), "me/mine"]) == 1
    assert "FOLDER must be what save_pretrained wrote" in capsys.readouterr().err
    library = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(library, "get_token", lambda: None)
    with pytest.raises(PermissionError, match="a token of the hub is needed to push, got none: run hf auth login"):
        push_to_hub(folder, "me/mine")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'push_to_hub needs huggingface_hub: pip install "elm-neuro\[hub\]"'):
        checkpoints.push_to_hub(folder, "me/mine")
