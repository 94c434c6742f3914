"""The page's build, which is no part of the package, and the published neuron by the paper's equations."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.pages import living, served

LIVE = Path(__file__).resolve().parents[2] / "docs" / "live"
sys.path.insert(0, str(LIVE))  # as mkdocs does for the hook, and Python for the command


@pytest.fixture(scope="session")
def live() -> Path:
    """The page's folder."""
    return LIVE


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the whole page."""
    import live_runtime  # from the page's folder
    import live_site

    try:
        tarball = live_runtime.fetch_runtime()
    except ConnectionError as error:
        pytest.skip(f"no onnxruntime-web: {error}")
    folder = live_site.build(tmp_path_factory.mktemp("site") / "live", tarball=tarball).folder
    with served(folder) as address:
        yield address


@pytest.fixture(scope="package")  # its event loop must not run under other tests
def browser() -> Iterator[Any]:
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("no Chromium: playwright is not installed")
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            one = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"no Chromium: {error}")
        yield one
        one.close()


@pytest.fixture
def page(browser: Any, site: str) -> Iterator[Any]:
    """The page, alive; what went wrong in it fails the test."""
    with living(browser, site) as one:
        yield one
