"""The build of the live page: whole, small, nothing from elsewhere, and honest where the runtime cannot be had."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import live_runtime
import live_site
import numpy as np
import pytest
import torch

LARGEST = 3_000_000  # bytes of the page without the runtime


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> live_site.Built:
    """The page as it is built without a network."""

    def fail(*_: Any, **__: Any) -> bytes:
        raise OSError("no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live_runtime, "_download", fail)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return live_site.build(tmp_path_factory.mktemp("site") / "live")


def test_without_a_network_the_page_is_built_and_says_where_the_runtime_belongs(built: live_site.Built) -> None:
    assert built.runtime is not None
    assert re.search(
        r"onnxruntime-web-1\.\d+\.0\.tgz could not be downloaded \(no network\).* put it at", built.runtime
    )
    assert not (built.folder / "runtime").exists()


def test_the_page_without_its_runtime_is_small(built: live_site.Built) -> None:
    total = sum(path.stat().st_size for path in built.folder.rglob("*") if path.is_file())
    assert built.num_bytes == total < LARGEST


def test_all_that_the_page_names_is_there_and_nothing_is_loaded_from_elsewhere(built: live_site.Built) -> None:
    named: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            named.extend(value or "" for name, value in attrs if name in ("src", "href") and tag != "a")

    page = (built.folder / "index.html").read_text()
    Reader().feed(page)
    for address in named:
        assert address == "data:," or (built.folder / address).is_file(), address
    assert "default-src 'self'" in page
    for script in (built.folder / "js").glob("*.js"):
        text = script.read_text()
        assert not re.search(r"https?://", text), script.name
        for module in re.findall(r'from "(.*?)"', text):
            assert (script.parent / module).is_file(), module


def test_every_control_has_a_name(built: live_site.Built) -> None:
    page = (built.folder / "index.html").read_text()
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    assert set(re.findall(r'\bfor="([^"]+)"', page)) <= ids
    scripts = "".join(script.read_text() for script in (built.folder / "js").glob("*.js"))
    assert set(re.findall(r'byId\("([^"]+)"\)', scripts)) <= ids


def test_the_picture_is_told_the_routing_of_the_published_file(built: live_site.Built, live: Path) -> None:
    told = json.loads((built.folder / "model" / "neuron.json").read_text())
    state = torch.load(
        live / "model" / "num_memory_20" / "neuronio_best_model_state.pt", weights_only=True, map_location="cpu"
    )
    index, valid = (state[name].numpy().reshape(45, 100) for name in ("input_to_synapse_indices", "valid_indices_mask"))
    for branch, inputs, mask in zip(told["branches"], index, valid, strict=True):
        assert branch["inputs"] == inputs[mask.astype(bool)].tolist()
    assert told["num_inputs"] == 1278 == 2 * told["num_excitatory"]
    np.testing.assert_allclose([told["tau_m"][0], told["tau_m"][-1]], [1.0, 150.0], atol=1e-3)


def test_a_published_file_that_was_changed_is_refused(
    live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(live / "model", tmp_path / "model")
    config = tmp_path / "model" / "num_memory_20" / "model_config.json"
    config.write_text(config.read_text().replace("150.0", "151.0"))
    monkeypatch.setattr(live_site, "HERE", tmp_path)
    with pytest.raises(ValueError, match=r"model_config.json must have the sha256 c12c1310"):
        live_site.published()


def test_another_tarball_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_runtime, "_download", lambda _: b"another package")
    with pytest.raises(ValueError, match=r"must have the sha512 .* got another one \(15 bytes\)"):
        live_runtime.fetch_runtime(tmp_path)
    assert not list(tmp_path.iterdir())
    other = tmp_path / "other.tgz"
    other.write_bytes(b"another package")
    with pytest.raises(ValueError, match="must have the sha512"):
        live_runtime.unpack_runtime(other, tmp_path / "runtime")


def test_a_damaged_tarball_in_the_cache_is_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"the pinned package"
    monkeypatch.setattr(live_runtime, "_is_pinned", lambda came: came == content)
    monkeypatch.setattr(live_runtime, "_download", lambda _: content)
    path = live_runtime.fetch_runtime(tmp_path)
    path.write_bytes(content[:5])
    assert live_runtime.fetch_runtime(tmp_path) == path
    assert path.read_bytes() == content


def test_mkdocs_gets_the_page_into_its_site_and_no_warning_without_a_network(
    live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = importlib.util.spec_from_file_location("live_hook", live / "hook.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    folders = []

    def build(folder: Path) -> live_site.Built:
        folders.append(folder)
        return live_site.Built(folder, 0, "no network")

    monkeypatch.setattr(hook, "build", build)
    with caplog.at_level(logging.INFO):
        hook.on_post_build({"site_dir": str(tmp_path)})
    assert folders == [tmp_path / "live"]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "live page built without its runtime: no network")
    ]
