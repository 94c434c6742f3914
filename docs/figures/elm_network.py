"""How an ELM Network and one ELM learn sums of two synthetic digits: the figure of docs/reference/elm_network.md.

    python docs/figures/elm_network.py STUDY...
    python docs/figures/elm_network.py [--out docs/figures/elm_network]

STUDY: folders of examples/shd_study.py. Written are elm_network.csv beside this file, every point of their curves
(updates, seconds of the processor, accuracy in training and on validation) with the test accuracy of each run, and
OUT.png, drawn from it; without a folder the figure alone is drawn again.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from elm_neuro import plotting
from elm_neuro.files import write_whole

NAMES = {"elm_network": "ELM Network", "elm_equal": "one ELM"}
DASHED = (0, (3, 1.5))
Rows = list[dict[str, str]]


def gathered(studies: list[Path]) -> Rows:
    """The points of all curves, each with what its run came to."""
    rows: Rows = []
    for study in studies:
        runs = {(run["model"], run["seed"]): run for run in _table(study / "bins.csv")}
        curves: dict[tuple[str, str], Rows] = defaultdict(list)
        for point in _table(study / "curves.csv"):
            curves[point["model"], point["seed"]].append(point)
        for key, points in curves.items():
            budget = points[-1]["updates"]
            ends = {part: runs[key][part] for part in ("parameters", "test", "seen", "unseen", "majority")}
            rows += [{"budget": budget} | point | ends for point in points]
    return rows


def _table(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@plotting.styled
def drawn(rows: Rows) -> Figure:
    """Validation (lines) and training (dashes) over updates and over the processor's time, a line a seed."""
    budgets = list(dict.fromkeys((row["model"], int(row["budget"])) for row in rows))
    figure = Figure(figsize=(6.8, 3.4))
    axes = figure.subplots(1, 2, sharey=True)
    for (model, budget), colour in zip(budgets, plotting.PALETTE, strict=False):
        runs: dict[str, Rows] = defaultdict(list)
        for row in rows:
            if (row["model"], int(row["budget"])) == (model, budget):
                runs[row["seed"]].append(row)
        for points in runs.values():
            over = ([int(point["updates"]) / 1000 for point in points],)
            over += ([float(point["processor_seconds"]) / 60 for point in points],)
            for axis, x in zip(axes, over, strict=True):
                for part, line, width in (("train", DASHED, 0.8), ("valid", "-", 1.5)):
                    axis.plot(
                        x, [float(point[part]) for point in points], color=colour, linestyle=line, linewidth=width
                    )
    for axis, letter, title, xlabel in zip(
        axes, "ab", ("over updates", "over time"), ("thousand updates of 32", "processor minutes"), strict=True
    ):
        axis.axhline(float(rows[0]["majority"]), color=plotting.INK, linewidth=0.9, linestyle=":")
        axis.set_xlabel(xlabel)
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        plotting.label_panel(axis, letter, title)
    axes[0].set_ylabel("accuracy")
    axes[0].set_xscale("log")
    axes[0].set_xticks([1, 3, 10, 30, 60], ["1", "3", "10", "30", "60"])
    axes[0].set_xticks([], minor=True)
    axes[1].set_xlim(left=0)
    handles = [Line2D([], [], color=colour) for colour, _ in zip(plotting.PALETTE, budgets, strict=False)]
    handles += [Line2D([], [], color=plotting.INK), Line2D([], [], color=plotting.INK, linestyle=DASHED, linewidth=0.8)]
    handles += [Line2D([], [], color=plotting.INK, linestyle=":", linewidth=0.9)]
    labels = [f"{NAMES[model]}, {budget:,} updates" for model, budget in budgets]
    labels += ["validation", "training", "majority class"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, columnspacing=1.4)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", type=Path, metavar="STUDY")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    args = parser.parse_args()
    table = Path(__file__).with_suffix(".csv")
    if args.studies:
        rows = gathered(args.studies)
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        write_whole({table: ("\n".join(lines) + "\n").encode()})
    figure = plotting.note(drawn(_table(table)), "synthetic digits, which say nothing about SHD")
    figure.savefig(args.out.with_suffix(".png"), dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
