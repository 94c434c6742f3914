"""The command elm-neuro lra: make the data of Long Range Arena's tasks that are made by a procedure."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elm_neuro.datasets.lra import ListOpsSettings


def add_parsers(commands: Any) -> None:
    """Declare the command."""
    lra = commands.add_parser(
        "lra", help="generate ListOps and Pathfinder, the tasks of Long Range Arena that are made up"
    )
    actions = lra.add_subparsers(dest="action", metavar="action", required=True)
    generate = actions.add_parser(
        "generate", help="make a data set by its published procedure; goes on where it was stopped"
    )
    kinds = generate.add_subparsers(dest="kind", metavar="kind", required=True)
    listops = kinds.add_parser("listops", help="nested operations on lists of digits, as one small file")
    listops.add_argument(
        "--out", type=Path, required=True, metavar="F", help="the file, or with --format tsv the folder"
    )
    listops.add_argument(
        "--num", type=int, default=100_000, metavar="N", help="sequences (default: 100000, the published)"
    )
    for name, default, what in (
        ("--max-depth", 10, "depth at which every node is a digit"),
        ("--max-args", 10, "largest number of arguments"),
        ("--min-length", 500, "sequences have more tokens"),
        ("--max-length", 2000, "and fewer"),
    ):
        listops.add_argument(name, type=int, default=default, metavar="N", help=f"{what} (default: {default})")
    listops.add_argument(
        "--format", choices=["trees", "tsv"], default="trees",
        help="one file that the sequences are grown from when it is read, or the three published text files, of 0.7 GB "
        "(default: trees)",
    )  # fmt: skip
    pathfinder = kinds.add_parser("pathfinder", help="two dashed curves and two discs, as folders of PNG files")
    pathfinder.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder")
    pathfinder.add_argument(
        "--num", type=int, default=200_000, metavar="N", help="images (default: 200000, the published)"
    )
    pathfinder.add_argument(
        "--size", type=int, choices=[32, 64, 128], default=32, help="pixels of a side (default: 32)"
    )
    pathfinder.add_argument(
        "--contour-length", type=int, default=14, metavar="N", help="paddles of a curve, fewer are easier (default: 14)"
    )
    pathfinder.add_argument(
        "--distractors", type=int, metavar="N", help="curves that distract (default: the published number of the size)"
    )
    for one in (listops, pathfinder):
        one.add_argument("--seed", type=int, default=0, metavar="N", help="of all random numbers (default: 0)")
        one.add_argument(
            "--workers", type=int, default=os.cpu_count() or 1, metavar="N",
            help="processes; the data do not depend on them (default: one a core)",
        )  # fmt: skip


def lra_command(options: argparse.Namespace) -> int:
    """Generate."""
    return {"listops": _listops, "pathfinder": _pathfinder}[options.kind](options)


def _listops(options: argparse.Namespace) -> int:
    from filelock import FileLock, Timeout

    from elm_neuro.datasets.lra import ListOpsSettings
    from elm_neuro.files import make_folder, remove

    settings = ListOpsSettings(
        max_depth=options.max_depth,
        max_args=options.max_args,
        min_length=options.min_length,
        max_length=options.max_length,
        seed=options.seed,
    )
    place = options.out.resolve()  # which has a name, unlike "."
    parts = place.with_name(f".{place.name}.parts")
    folder, name = (place, "--out") if options.format == "tsv" else (place.parent, "the folder of --out")
    make_folder(folder, name)
    parts.mkdir(exist_ok=True)
    try:
        with FileLock(parts / ".lock", timeout=0):
            _make_listops(options, settings, parts)
    except Timeout as error:
        raise BlockingIOError(f"--out must be free, but another process is writing {options.out}") from error
    except ValueError:
        if not any(parts.glob("[!.]*")):  # there is nothing to go on from
            remove(parts)
        raise
    remove(parts)
    return 0


def _make_listops(options: argparse.Namespace, settings: ListOpsSettings, parts: Path) -> None:
    """Make the sequences, block by block in `parts`, and write them."""
    from elm_neuro.datasets.lra import make_listops, write_listops
    from elm_neuro.datasets.lra._listops_file import FILES

    out: Path = options.out
    with _progress("sequences") as report:
        made = make_listops(options.num, settings, num_workers=options.workers, parts=parts, progress=report)
    if options.format == "tsv":
        held_back = min(2000, len(made) // 10)
        bounds = (0, len(made) - 2 * held_back, len(made) - held_back, len(made))
        for name in FILES.values():
            (out / name).unlink(missing_ok=True)  # or, stopped in between, there would be files of two data sets
        for name, first, last in zip(FILES.values(), bounds[:-1], bounds[1:], strict=True):
            write_listops(out / name, made.sequences(first, last))
    else:
        made.save(out)
    sequences = made.sequences()
    print(
        f"{len(made)} sequences of {sequences.lengths.min()} to {sequences.lengths.max()} tokens in {out}; fingerprint "
        f"{sequences.fingerprint}"
    )


def _pathfinder(options: argparse.Namespace) -> int:
    from elm_neuro.datasets.lra import make_pathfinder

    with _progress("images") as report:
        make_pathfinder(
            options.out,
            options.num,
            options.size,
            seed=options.seed,
            contour_length=options.contour_length,
            num_distractors=options.distractors,
            num_workers=options.workers,
            progress=report,
        )
    print(f"{options.num} images of {options.size} x {options.size} in {options.out}")
    return 0


class _progress:  # used as a function
    """A bar that is called with what is done and what there is to do."""

    def __init__(self, unit: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())

    def __enter__(self) -> Any:
        self.progress.start()
        self.task = self.progress.add_task("", total=None)
        return lambda done, total: self.progress.update(self.task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
