"""Figures of spike trains, of what happens inside an ELM neuron, and of its training; in colours that colour-blind
readers tell apart.

Every function that returns a matplotlib Figure returns one that belongs to nobody else: no pyplot, no window, no global
style. Functions whose name begins with ``draw`` fill one panel of a figure of yours, which :func:`styled` gives the
same style. :func:`save` writes a figure.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401  # before our own files, so that a missing extra is named
except ImportError as error:
    raise ImportError('elm_neuro.plotting needs matplotlib: pip install "elm-neuro[train]"') from error

from elm_neuro.plotting._curves import accuracies, confusion_matrix, draw_accuracy, learning_curves
from elm_neuro.plotting._network import elm_network
from elm_neuro.plotting._rasters import by_latency, draw_raster, rasters
from elm_neuro.plotting._style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PALE,
    PALETTE,
    PURPLE,
    SKY,
    STYLE,
    VERMILION,
    label_panel,
    note,
    save,
    styled,
)
from elm_neuro.plotting._workings import draw_memory, draw_outputs, network_workings, timescales, workings

__all__ = [
    "BLUE",
    "GREEN",
    "INK",
    "ORANGE",
    "PALE",
    "PALETTE",
    "PURPLE",
    "SKY",
    "STYLE",
    "VERMILION",
    "accuracies",
    "by_latency",
    "confusion_matrix",
    "draw_accuracy",
    "draw_memory",
    "draw_outputs",
    "draw_raster",
    "elm_network",
    "label_panel",
    "learning_curves",
    "network_workings",
    "note",
    "rasters",
    "save",
    "styled",
    "timescales",
    "workings",
]
