"""Hook of mkdocs: puts the live page's model and runtime into the built site.

In ``mkdocs.yml``: ``hooks: [docs/live/hook.py]`` and ``exclude_docs: live/*.py, live/model/num_memory_20/``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from live_site import build  # mkdocs puts the hook's folder on the path while it loads it

LOG = logging.getLogger("mkdocs.hooks.live")


def on_post_build(config: Any) -> None:
    """Write the page into ``live/`` of the site; without a network it is there and says that its runtime is not."""
    built = build(Path(config["site_dir"]) / "live")
    if built.runtime is not None:
        LOG.info("live page built without its runtime: %s", built.runtime)
