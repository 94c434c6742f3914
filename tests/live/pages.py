"""The built page in a browser."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without the headers that WASM threads would need."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def living(browser: Any, site: str, *, script: str = "", **context: Any) -> Iterator[Any]:
    """A page that lives, in a context of its own; an error in it fails the test, as does a request to elsewhere."""
    one = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | context))
    page = one.new_page()
    errors: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.add_init_script(script)
    page.goto(site)
    page.wait_for_selector("html[data-living=yes]", timeout=60_000)
    yield page
    one.close()
    assert not errors
    assert all(address.startswith((site, "data:")) for address in asked)
