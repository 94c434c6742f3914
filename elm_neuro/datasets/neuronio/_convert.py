"""NeuronIO's pickles turned into files that stream: in parallel, taken up again where it stopped, checked against a
manifest.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from elm_neuro.datasets._processes import end_with_parent
from elm_neuro.datasets.neuronio._simulations import read_simulation_file
from elm_neuro.datasets.neuronio._store import (
    SUFFIXES,
    Format,
    check_content,
    checksum,
    open_simulations,
    sha256,
    size,
    to_content,
    write_content,
)
from elm_neuro.files import json_object, leftovers, make_folder, remove, write_whole

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """A line of the manifest: a file of simulations and what it was made of."""

    source: str
    source_bytes: int
    source_mtime_ns: int
    source_sha256: str
    bytes: int
    sha256: str
    num_simulations: int
    num_steps: int
    num_events: int
    num_spikes: int


Progress = Callable[[str, Entry, bool], None]  # the file in the destination, its entry, whether it was there before


def simulation_files(source: str | os.PathLike[str]) -> list[Path]:
    """The simulation files at `source`: a file, or all ``*sim__*.p`` of a folder and the folders in it, in the order of
    their names.

    Raises:
        FileNotFoundError: there is no such file or folder, or none of these files in it.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*sim__*.p") if file.is_file() and not file.name.startswith("."))
    if not found:
        raise FileNotFoundError(
            f"source must be a NeuronIO simulation file or a folder with *sim__*.p files, got {path}, which has none"
        )
    return found


def convert_neuronio(
    sources: Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    *,
    format: Format = "hdf5",
    num_workers: int = 1,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> dict[str, Entry]:
    """Turn NeuronIO's pickles into files of a fifteenth of their size that stream, one for each, and a manifest.

    Every file goes into a folder of the name of the one it came from, so that ``full_ergodic_train_batch_1`` stays what
    it is. A file is written under a temporary name and renamed when it is whole. Called again after it was stopped, at
    any moment and by whatever means, it goes on with what is missing, and the outcome is the same bytes. Sources that
    have changed are converted again.

    Each file is one task that reads one file, writes one file and holds one in memory, so tasks can run on other
    machines as well that see the same folders: pass the executor of an engine, for instance Dask's
    ``Client(address).get_executor()``.

    Args:
        sources: files, or folders in which all ``*sim__*.p`` are taken.
        destination: folder to write into; made where it is missing.
        format: "hdf5" writes HDF5 files (.h5), "npy" folders of .npy files (.arrays) that NumPy alone can map; of the
            same size.
        num_workers: processes on this machine, which import the main module of a script, so that it needs its
            ``if __name__ == "__main__"``; 1 converts in this process.
        executor: where to run the tasks instead; it stays open.
        progress: called in this process for each file that is there.

    Returns:
        The manifest: an entry for each file, by its path in `destination`.

    Raises:
        FileNotFoundError: a source does not exist or holds no simulation file.
        ValueError: a source breaks the format; the others are converted first. Or two sources have one name,
            `num_workers` is below 1, there is no such format, or `destination` holds files of the other one.
        BlockingIOError: another process is converting into `destination`.
        OSError: `destination` cannot be written, for instance because the disk is full.
        RuntimeError: a worker was killed.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    if format not in SUFFIXES:
        raise ValueError(f'format must be "hdf5" or "npy", got {format!r}')
    folder, tasks = Path(destination), _tasks(sources, SUFFIXES[format])
    make_folder(folder, "destination")
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _convert(folder, tasks, num_workers, executor, progress)
    except Timeout as error:
        raise BlockingIOError(f"destination must be free, but another process is converting into {folder}") from error
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker was killed, perhaps for want of memory: the files so far are kept; try again with fewer workers"
        ) from error


def converted_names(sources: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Where :func:`convert_neuronio` puts the HDF5 files that it makes of these sources, as paths in its destination.

    Raises:
        FileNotFoundError: a source does not exist or holds no simulation file.
        ValueError: two sources have one name.
    """
    return list(_tasks(sources, SUFFIXES["hdf5"]))


def _tasks(sources: Sequence[str | os.PathLike[str]], suffix: str) -> dict[str, Path]:
    """Source of each file in the destination."""
    tasks: dict[str, Path] = {}
    for source in sources:
        for path in simulation_files(source):
            name = os.path.join(path.resolve().parent.name, path.stem + suffix)  # the root has no name
            if tasks.setdefault(name, path.resolve()) != path.resolve():
                raise ValueError(
                    f"sources must differ in the names of file and folder, got {tasks[name]} and {path.resolve()}"
                )
    if not tasks:
        raise ValueError("sources must name at least one file or folder, got none")
    return tasks


def _convert(
    folder: Path, tasks: dict[str, Path], num_workers: int, executor: Executor | None, progress: Progress | None
) -> dict[str, Entry]:
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    others = [name for name in manifest if Path(name).suffix != Path(next(iter(tasks))).suffix]
    if others:
        raise ValueError(f"destination must be another folder for another format, got {folder} with {others[0]}")
    for part in {folder, *((folder / name).parent for name in tasks)}:
        part.mkdir(exist_ok=True)
        for leftover in leftovers(part):  # of a conversion that was killed: the lock is ours
            remove(leftover)
    todo = []
    for name, source in tasks.items():
        entry = manifest.get(name)
        if entry is not None and _there(folder / name, source, entry):
            if progress is not None:
                progress(name, entry, True)
        else:
            todo.append(name)
    failures: list[Exception] = []
    for name, outcome in _run(folder, tasks, todo, num_workers, executor):
        try:
            entry = Entry(**outcome())
        except ValueError as error:  # a file that breaks the format does not keep the others from being converted
            failures.append(error)
            continue
        manifest[name] = entry
        _write_manifest(folder, manifest)
        if progress is not None:
            progress(name, entry, False)
    if failures:
        raise ValueError("\n".join(map(str, failures)))
    return {name: manifest[name] for name in tasks}


def _there(path: Path, source: Path, entry: Entry) -> bool:
    """Whether a file stands that was made of this source, by size and time, and by checksum where the time differs."""
    status = source.stat()
    if size(path) != entry.bytes or status.st_size != entry.source_bytes:
        return False
    return status.st_mtime_ns == entry.source_mtime_ns or sha256(source) == entry.source_sha256


def _run(
    folder: Path, tasks: dict[str, Path], todo: list[str], num_workers: int, executor: Executor | None
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    if executor is None and (num_workers == 1 or len(todo) < 2):
        for name in todo:
            yield name, lambda name=name: convert_file(str(tasks[name]), str(folder / name))  # type: ignore[misc]
        return
    own = (
        ProcessPoolExecutor(min(num_workers, len(todo)), multiprocessing.get_context("spawn"), end_with_parent)
        if executor is None
        else None
    )
    with contextlib.ExitStack() as stack:
        if own is not None:
            stack.callback(own.shutdown, cancel_futures=True)
        running: dict[Future[dict[str, Any]], str] = {}
        waiting = list(reversed(todo))
        while waiting or running:
            while waiting and len(running) < (4 * num_workers if executor is None else 1024):
                name = waiting.pop()
                running[(own or executor).submit(convert_file, str(tasks[name]), str(folder / name))] = name  # type: ignore[union-attr]
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(done), done.result


def convert_file(source: str, target: str) -> dict[str, Any]:
    """Convert one file, and return its line of the manifest: the task that workers run."""
    path, status = Path(source), os.stat(source)
    simulations = read_simulation_file(path)
    source_sha256 = sha256(path)
    if (os.stat(source).st_size, os.stat(source).st_mtime_ns) != (status.st_size, status.st_mtime_ns):
        raise ValueError(f"{source} must not change while it is read")
    form: Format = next(form for form, suffix in SUFFIXES.items() if target.endswith(suffix))
    content = to_content(simulations, form)
    write_content(Path(target), content)
    sizes = (len(simulations), simulations.num_steps, simulations.num_events, simulations.num_spikes)
    written = (size(Path(target)), checksum(content))
    return asdict(Entry(path.name, status.st_size, status.st_mtime_ns, source_sha256, *written, *sizes))


def _write_manifest(folder: Path, manifest: dict[str, Entry]) -> None:
    lines = {name: asdict(manifest[name]) for name in sorted(manifest)}
    content = {"format": "elm_neuro NeuronIO manifest", "format_version": FORMAT_VERSION, "files": lines}
    write_whole({folder / MANIFEST: json.dumps(content, indent=1).encode() + b"\n"}, through_links=False)


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Entry]:
    """The manifest of a folder of converted files, by their paths in it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged or names files outside of the folder.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} must hold {MANIFEST} of a conversion, got none")
    try:
        content = json_object(path)
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version must be {FORMAT_VERSION}, got {content['format_version']}")
        entries = {str(name): Entry(**line) for name, line in content["files"].items()}
        for name, entry in entries.items():
            if not all(
                type(value) is (str if key in ("source", "source_sha256", "sha256") else int)
                for key, value in vars(entry).items()
            ):
                raise ValueError(f"the entry of {name} must hold names, checksums and numbers")
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"files must lie in the folder, got {name}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} must be a manifest of a conversion, got: {error}") from error
    return entries


def verify_neuronio(destination: str | os.PathLike[str], *, progress: Progress | None = None) -> dict[str, str]:
    """Read every converted file whole, and compare it with the manifest.

    Args:
        destination: folder of :func:`convert_neuronio`.
        progress: called for each file that is as it should be.

    Returns:
        What is wrong, by the file's path in `destination`; empty where nothing is.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: the manifest is damaged.
    """
    folder, wrong = Path(destination), {}
    for name, entry in read_manifest(folder).items():
        try:
            path = folder / name
            if path.is_symlink() or (path.is_file() and path.stat().st_size != entry.bytes):
                raise ValueError(f"{path} must be a file of {entry.bytes} bytes and no link")
            if (came := sha256(path)) != entry.sha256:
                raise ValueError(f"{path} must have the sha256 {entry.sha256}, got {came}")
            check_content(open_simulations(path))
        except (OSError, ValueError) as error:
            wrong[name] = str(error)
            continue
        if progress is not None:
            progress(name, entry, True)
    return wrong
