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
from elm_neuro.plotting._inside import spike_responses, time_constants, weight_fields
from elm_neuro.plotting._network import elm_network
from elm_neuro.plotting._rasters import by_latency, draw_raster, rasters
from elm_neuro.plotting._recordings import MOST_LINES, Record, recordings
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
    "MOST_LINES",
    "ORANGE",
    "PALE",
    "PALETTE",
    "PURPLE",
    "SKY",
    "STYLE",
    "VERMILION",
    "Record",
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
    "recordings",
    "save",
    "spike_responses",
    "styled",
    "time_constants",
    "timescales",
    "weight_fields",
    "workings",
]
