"""``python -m elm_neuro``: the command ``elm-neuro``, where it is not on the path."""

from __future__ import annotations

import sys

from elm_neuro.cli import main

if __name__ == "__main__":
    sys.exit(main())
