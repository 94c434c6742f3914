"""Draw the diagrams of the pages, once they have changed: ``python docs/tools/diagrams.py``.

Every fence ``mermaid`` of docs/ becomes an SVG in docs/assets/diagrams, named after the hash of its source; what no
page has any more is removed. It needs playwright, a Chromium (``CHROMIUM=/usr/bin/chromium``) and npm's registry, from
which mermaid is fetched by its hash. Building the site needs none of them: the pictures are in the repository.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import sys
import tarfile
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from markup import DIAGRAMS, diagram_file

DOCS = Path(__file__).resolve().parents[1]
MERMAID = "https://registry.npmjs.org/mermaid/-/mermaid-11.4.1.tgz"
# sha512 of the archive, as the registry has it
INTEGRITY = "Mb01JT/x6CKDWaxigwfZYuYmDZ6xtrNwNlidKZwkSrDaY9n90tdrJTV5Umk+wP1fZscGptmKFXHsXMDEVZ+Q6A=="
DRAW = """async source => {
  mermaid.initialize({startOnLoad: false, theme: 'neutral', fontFamily: 'sans-serif', htmlLabels: false,
                      flowchart: {htmlLabels: false}, sequence: {wrap: true, width: 150, messageFontSize: 13}});
  return (await mermaid.render('diagram', source)).svg;
}"""


def mermaid_script() -> str:
    """Mermaid's script for browsers, if it is the one that was looked at."""
    with urllib.request.urlopen(MERMAID, timeout=120) as response:
        archive = response.read()
    came = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if came != INTEGRITY:
        raise ValueError(f"{MERMAID} must have the sha512 {INTEGRITY}, got {came}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        return files.extractfile("package/dist/mermaid.min.js").read().decode()


def main() -> None:
    """Draw what the pages have, remove what they have no more."""
    from playwright.sync_api import sync_playwright

    pages = [path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))]
    sources = [source for text in pages for source in re.findall(r"^```mermaid\n(.*?)^```", text, flags=re.M | re.S)]
    DIAGRAMS.mkdir(parents=True, exist_ok=True)
    for path in set(DIAGRAMS.glob("*.svg")) - {diagram_file(source) for source in sources}:
        path.unlink()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM"), args=["--no-sandbox"])
        page = browser.new_page()
        page.add_script_tag(content=mermaid_script())
        for number, source in enumerate(sources):
            svg = page.evaluate(DRAW, source.strip()).replace("diagram", f"diagram{number}")
            diagram_file(source).write_text(svg + "\n", encoding="utf-8")
            print(diagram_file(source).name)
        browser.close()


if __name__ == "__main__":
    main()
