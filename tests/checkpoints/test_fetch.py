"""The authors' checkpoints are downloaded once, whole, and only as they were published."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elm_neuro.checkpoints import _fetch, fetch_upstream, from_upstream
from tests.checkpoints.upstream_files import Upstream


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(folder))) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()
        thread.join()


@pytest.fixture
def published(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A made-up checkpoint in the place of num_memory_10, and its checksums in the table."""
    folder = Upstream().write(server[0] / "num_memory_10")
    for table, file in (
        (_fetch.CONFIG_SHA256, "model_config.json"),
        (_fetch.WEIGHTS_SHA256, "neuronio_best_model_state.pt"),
    ):
        monkeypatch.setitem(table, "num_memory_10", hashlib.sha256((folder / file).read_bytes()).hexdigest())
    return folder, server[1]


def test_the_table_names_fifteen_checkpoints_of_the_authors(shared: Path) -> None:
    assert len(_fetch.CONFIG_SHA256) == len(_fetch.WEIGHTS_SHA256) == 15
    assert list(_fetch.CONFIG_SHA256) == list(_fetch.WEIGHTS_SHA256)
    for name in ("num_memory_10", "num_memory_20"):
        folder = shared / "data/checkpoints" / name
        assert hashlib.sha256((folder / "model_config.json").read_bytes()).hexdigest() == _fetch.CONFIG_SHA256[name]
        assert (
            hashlib.sha256((folder / "neuronio_best_model_state.pt").read_bytes()).hexdigest()
            == _fetch.WEIGHTS_SHA256[name]
        )


def test_a_checkpoint_is_downloaded_once(published: tuple[Path, str], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    folder = fetch_upstream(
        "num_memory_10", cache_dir=tmp_path / "cache", base_url=published[1], progress=lambda *event: seen.append(event)
    )
    assert folder == tmp_path / "cache" / "num_memory_10"
    assert sorted(path.name for path in folder.iterdir()) == ["model_config.json", "neuronio_best_model_state.pt"]
    assert from_upstream(folder).config.num_memory == 5
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {name: (done, total) for name, done, total in seen} == {name: (size, size) for name, size in sizes.items()}
    seen.clear()
    (published[0] / "model_config.json").unlink()
    assert (
        fetch_upstream(
            "num_memory_10",
            cache_dir=tmp_path / "cache",
            base_url=published[1],
            progress=lambda *event: seen.append(event),
        )
        == folder
    )
    assert not seen


def test_only_what_is_missing_or_damaged_is_fetched_again(published: tuple[Path, str], tmp_path: Path) -> None:
    fetch = functools.partial(fetch_upstream, "num_memory_10", cache_dir=tmp_path / "cache", base_url=published[1])
    folder = fetch()
    for damage in (b"", b"half", None):
        path = folder / "neuronio_best_model_state.pt"
        path.unlink() if damage is None else path.write_bytes(damage)
        names: list[str] = []
        fetch(progress=lambda name, *_: names.append(name))  # noqa: B023
        assert set(names) == {"neuronio_best_model_state.pt"}
        assert path.read_bytes() == (published[0] / path.name).read_bytes()


def test_an_interrupted_download_leaves_nothing_and_is_taken_up(published: tuple[Path, str], tmp_path: Path) -> None:
    def interrupt(name: str, *_: object) -> None:
        if name.endswith(".pt"):
            raise KeyboardInterrupt

    fetch = functools.partial(fetch_upstream, "num_memory_10", cache_dir=tmp_path / "cache", base_url=published[1])
    with pytest.raises(KeyboardInterrupt):
        fetch(progress=interrupt)
    assert [path.name for path in (tmp_path / "cache" / "num_memory_10").iterdir()] == ["model_config.json"]
    assert from_upstream(fetch()).config.num_memory == 5


def test_a_changed_file_is_refused(published: tuple[Path, str], tmp_path: Path) -> None:
    (published[0] / "neuronio_best_model_state.pt").write_bytes(b"other")
    with pytest.raises(
        ValueError,
        match=r"_best_model_state\.pt must have the sha256 \w{64}, got \w{64} \(5 bytes\): it is damaged or not",
    ):
        fetch_upstream("num_memory_10", cache_dir=tmp_path / "cache", base_url=published[1])
    assert not (tmp_path / "cache" / "num_memory_10" / "neuronio_best_model_state.pt").exists()


def test_an_endless_file_is_cut_off(published: tuple[Path, str], tmp_path: Path) -> None:
    (published[0] / "model_config.json").write_bytes(bytes(_fetch.MAX_BYTES + 1))
    with pytest.raises(ValueError, match=r"model_config\.json must have at most 1048576 bytes, got more"):
        fetch_upstream("num_memory_10", cache_dir=tmp_path / "cache", base_url=published[1])


def test_without_a_network_the_message_says_what_to_put_where(server: tuple[Path, str], tmp_path: Path) -> None:
    told = r"/num_memory_7/model_config\.json could not be downloaded \(HTTP Error 404.*\); without a network, "
    told += r"put model_config\.json and .*\.pt"
    message = told + r" from https://raw\..*/num_memory_7 into .*cache.num_memory_7"
    with pytest.raises(ConnectionError, match=message):
        fetch_upstream("num_memory_7", cache_dir=tmp_path / "cache", base_url=server[1])
    with pytest.raises(ConnectionError, match=r"could not be downloaded .*; without a network"):
        fetch_upstream("num_memory_7", cache_dir=tmp_path / "cache", base_url="http://127.0.0.1:9")


def test_a_connection_that_closes_early_is_told(
    published: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(handler: Server, source: Any, output: Any) -> None:
        output.write(source.read()[:10])

    monkeypatch.setattr(Server, "copyfile", short)
    with pytest.raises(ConnectionError, match=r"closed after 10 of \d+ bytes|IncompleteRead|10 bytes read"):
        fetch_upstream("num_memory_10", cache_dir=tmp_path / "cache", base_url=published[1])


@pytest.mark.parametrize("base_url", ["http://example.org/models", "file:///etc", "ftp://127.0.0.1"])
def test_only_https_is_asked(base_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", None)
    with pytest.raises(ValueError, match="base_url must begin with https://, got "):
        fetch_upstream("num_memory_10", cache_dir=tmp_path, base_url=base_url)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"name must be one of num_memory_1, .*, best_elm_neuron, got '\.\./\.\./etc'"):
        fetch_upstream("../../etc")


def test_the_cache_follows_the_environment(
    published: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert (
        fetch_upstream("num_memory_10", base_url=published[1])
        == tmp_path / "xdg" / "elm_neuro" / "upstream" / "num_memory_10"
    )
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
        assert (
            fetch_upstream("num_memory_10", base_url=published[1])
            == tmp_path / "home" / ".cache" / "elm_neuro" / "upstream" / "num_memory_10"
        )


def test_a_download_that_trickles_is_given_up(
    published: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte again and again never runs into a time-out between two bytes."""

    def trickle(handler: Server, source: Any, output: Any) -> None:
        for _ in range(200):
            output.write(b" ")
            time.sleep(0.02)

    monkeypatch.setattr(Server, "copyfile", trickle)
    monkeypatch.setattr(_fetch, "DEADLINE_S", 0.2)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"only \d+ bytes came in 0\.2 s"):
        fetch_upstream("num_memory_10", cache_dir=tmp_path / "cache", base_url=published[1])
    assert time.monotonic() - start < 2.0
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
