"""The figure of docs/index.md: runs the code of that page.

python docs/figures/start.py [--out docs/figures/start.png]
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "start.png")
    out = parser.parse_args().out.resolve()
    text = HERE.with_name("index.md").read_text(encoding="utf-8")
    session: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for code in re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S):
            exec(compile(code, "docs/index.md", "exec"), session)
        session["figure"].savefig(out, dpi=110, metadata={"Software": None})
        os.chdir("/")


if __name__ == "__main__":
    main()
