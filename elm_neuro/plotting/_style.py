"""What all figures share: colours, style, labels of panels, and how a figure is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike, NDArray

from elm_neuro.files import naming, whole_files

# Okabe & Ito's palette, minus its yellow, which is too pale in print
BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
ORANGE = "#E69F00"
PURPLE = "#CC79A7"
SKY = "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
INK = "#222222"  # of text and input
PALE = "#8A8A8A"  # of what is not the point
ABOVE: Any = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.1}  # of a legend
TIMESCALE_MAP = "viridis"  # rises evenly in lightness, also in grey print
BUSIEST = 6  # traces of synapses and branches shown
DODGE = 0.06  # inches between networks measured at the same setting
SHARE_OF_MAP = 0.9  # its yellow end is too pale for thin lines

STYLE: Any = {  # matplotlib types the keys as literals
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 200,
    "xtick.color": INK,
    "xtick.labelsize": 8,
    "ytick.color": INK,
    "ytick.labelsize": 8,
}

Values: TypeAlias = ArrayLike | torch.Tensor
P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorator of a function that draws a figure: it does so in `STYLE`, which is left behind nowhere else."""

    @wraps(draw)
    def draw_in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return draw_in_style


def save(figure: Figure, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write a figure as PNG and PDF: both, each complete, or none.

    Args:
        figure: what to write.
        path: file name; its suffix, if any, is replaced by .png and .pdf. The folder must exist.

    Returns:
        The two files.

    Raises:
        OSError: they cannot be written.
    """
    png, pdf = (Path(path).with_suffix(f".{kind}") for kind in ("png", "pdf"))
    with matplotlib.rc_context(STYLE), whole_files(png, pdf) as (png_to_be, pdf_to_be):
        with naming(png):
            figure.savefig(png_to_be, format="png", metadata={"Software": None})
        with naming(pdf):
            try:
                figure.savefig(pdf_to_be, format="pdf", metadata={"CreationDate": None})
            except AttributeError as error:  # of a full disk: matplotlib trips over what the system had said
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
    return png, pdf


def note(figure: Figure, text: str) -> Figure:
    """Say in small print above a figure what it is of, that its data are synthetic for instance; returns it."""
    figure.suptitle(text, x=0.99, ha="right", fontsize=8, color=PALE)
    return figure


def as_array(values: Values) -> NDArray[np.float64]:
    """Numbers or a tensor on any device as an array."""
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)


def label_panel(axis: Axes, letter: str, title: str, unit: str | None = None) -> None:
    """Letter and title above a panel, and what its vertical axis shows."""
    axis.set_title(rf"$\mathbf{{{letter}}}$  {title}")
    if unit is not None:
        axis.set_ylabel(unit)


def span(values: NDArray[np.float64]) -> tuple[float, float]:
    """Lowest and highest value, or a range around the only one."""
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > 1.001 * low else (low / 1.5, high * 1.5)


def plain_log_ticks(axis: Axes) -> None:
    """Ticks of a log axis as plain numbers, at 1, 2, 5 where the axis is short."""
    low, high = axis.get_ylim()
    marks = [factor * 10.0**power for power in range(-3, 7) for factor in (1, 2, 5)]
    inside = [mark for mark in marks if 0.99 * low <= mark <= 1.01 * high]
    if len(inside) > 7:
        inside = [mark for mark in inside if f"{mark:e}".startswith("1")]
    axis.set_yticks(inside)
    axis.set_yticks([], minor=True)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
