"""Build the live page: ``python docs/live/build.py OUT_FOLDER``, then serve the folder with any web server."""

import argparse
import sys
from pathlib import Path

from live_site import build


def main() -> int:
    """0 where the page is whole, 1 where it was built without its runtime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tarball", type=Path, help="onnxruntime-web as npm packs it, in place of a download")
    arguments = parser.parse_args()
    built = build(arguments.folder, tarball=arguments.tarball)
    sys.stdout.write(f"{built.folder}: {built.num_bytes:,} bytes without the runtime\n")
    if built.runtime is not None:
        sys.stderr.write(f"the page has no runtime and says so: {built.runtime}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
