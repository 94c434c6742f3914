"""Letters of panels and looks of lines, however many there are."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator

from elm_neuro.plotting._style import PALETTE

MARKERS = ("", "s", "^", "D", "v", "P", "X")  # of the first six lines, of the next six
MOST_COLUMNS = 5  # of a legend below a figure


def letters() -> Iterator[str]:
    """Of the panels of a figure: a to z, then aa, ab and so on.

    >>> [*itertools.islice(letters(), 28)][24:]
    ['y', 'z', 'aa', 'ab']
    """
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))


def line_looks() -> Iterator[tuple[str, str]]:
    """Colour and marker of each line: the palette without a marker, then again with one, which tells those apart."""
    return ((colour, marker) for marker in itertools.cycle(MARKERS) for colour in PALETTE)
