"""Converted files hold what the pickles hold, whole or not at all, whatever happens on the way.

Longer than most: one kind of damage a test, on the same few files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from filelock import FileLock

from elm_neuro.datasets import (
    Simulations,
    convert_neuronio,
    open_simulations,
    read_manifest,
    read_simulation_file,
    verify_neuronio,
)
from elm_neuro.datasets.neuronio import _convert
from elm_neuro.datasets.neuronio._store import SUFFIXES, Format, to_content
from tests.datasets.neuronio.neuronio_files import made, write

NUM_FILES = 4
FORMATS: tuple[Format, ...] = ("hdf5", "npy")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files in two folders."""
    folder = tmp_path_factory.mktemp("kaggle")
    for i in range(NUM_FILES):
        write(
            folder / f"full_ergodic_train_batch_{1 + i % 2}" / f"sim__saved_InputSpikes_part_{i}.p",
            made(2, 300 + 50 * (i % 2), seed=i),
        )
    write(folder / "full_ergodic_train_batch_1" / "notes.p", b"not one of them")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def wholes(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Format, dict[str, bytes]]:
    """What an undisturbed conversion writes in each format."""
    found: dict[Format, dict[str, bytes]] = {}
    for form in FORMATS:
        folder = tmp_path_factory.mktemp(form)
        convert_neuronio([source], folder, format=form)
        found[form] = content(folder)
    return found


@pytest.fixture(scope="module")
def whole(wholes: dict[Format, dict[str, bytes]]) -> dict[str, bytes]:
    """HDF5."""
    return wholes["hdf5"]


def assert_same(one: Simulations, two: Simulations) -> None:
    for name, values in vars(one).items():
        np.testing.assert_array_equal(values, getattr(two, name))
    assert one.soma_mv.dtype == two.soma_mv.dtype


@pytest.mark.parametrize("form", FORMATS)
def test_files_hold_what_the_pickles_hold_in_folders_of_their_names(source: Path, tmp_path: Path, form: Format) -> None:
    manifest = convert_neuronio([source], tmp_path, format=form)
    assert len(manifest) == NUM_FILES
    for name, entry in manifest.items():
        original = read_simulation_file(source / Path(name).parent / entry.source)
        assert_same(open_simulations(tmp_path / name), original)
        assert entry.bytes == sum(len(raw) for path, raw in content(tmp_path).items() if path.startswith(name))
        assert (entry.num_simulations, entry.num_steps, entry.num_events) == (
            2,
            original.num_steps,
            original.num_events,
        )
    assert manifest == read_manifest(tmp_path)
    assert verify_neuronio(tmp_path) == {}


def test_npy_folders_are_what_numpy_loads(source: Path, tmp_path: Path) -> None:
    (name,) = (name for name in convert_neuronio([source], tmp_path, format="npy") if "part_2" in name)
    original = read_simulation_file(next(source.rglob("*part_2.p")))
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(
        f"{field}.npy" for field in vars(original)
    )
    for field, values in vars(original).items():
        np.testing.assert_array_equal(np.load(tmp_path / name / f"{field}.npy", mmap_mode="r"), values)


def test_one_folder_has_one_format(source: Path, tmp_path: Path) -> None:
    convert_neuronio([source], tmp_path)
    with pytest.raises(ValueError, match=r"another folder for another format, got .* with .*\.h5"):
        convert_neuronio([source], tmp_path, format="npy")
    with pytest.raises(ValueError, match='format must be "hdf5" or "npy", got \'zarr\''):
        convert_neuronio([source], tmp_path, format="zarr")  # type: ignore[arg-type]


def test_real_files_are_converted(neuronio_folder: Path, tmp_path: Path) -> None:
    for name, entry in convert_neuronio([neuronio_folder], tmp_path).items():
        assert_same(open_simulations(tmp_path / name), read_simulation_file(neuronio_folder / entry.source))
        assert entry.bytes < 0.08 * entry.source_bytes


@pytest.mark.parametrize("how", ["processes", pytest.param("executor", marks=pytest.mark.slow)])
def test_workers_and_executors_write_the_same_bytes(
    source: Path, tmp_path: Path, whole: dict[str, bytes], how: str
) -> None:
    seen: list[tuple[str, bool]] = []
    with ThreadPoolExecutor(2) as executor:
        options: dict[str, Any] = {"num_workers": 2} if how == "processes" else {"executor": executor}
        convert_neuronio([source], tmp_path, progress=lambda name, _, before: seen.append((name, before)), **options)
    assert content(tmp_path) == whole
    assert sorted(name for name, _ in seen) == sorted(set(whole) - {"manifest.json"})
    assert not any(before for _, before in seen)


def test_what_is_there_is_not_converted_again(source: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    files = sorted((source / "full_ergodic_train_batch_1").glob("sim*"))
    convert_neuronio(files, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")}
    there: list[bool] = []
    convert_neuronio([source], tmp_path, progress=lambda *a: there.append(a[2]))
    assert there == [True, True, False, False]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert content(tmp_path) == whole


def test_a_source_that_changed_is_converted_again(source: Path, tmp_path: Path) -> None:
    own = shutil.copytree(source, tmp_path / "own")
    file = own / "full_ergodic_train_batch_1" / "sim__saved_InputSpikes_part_0.p"
    convert_neuronio([own], tmp_path / "out")
    os.utime(file, ns=(1, 1))  # the time alone
    there: list[bool] = []
    convert_neuronio([own], tmp_path / "out", progress=lambda *a: there.append(a[2]))
    assert all(there)
    write(file, made(3, 300, seed=9))
    manifest = convert_neuronio([own], tmp_path / "out")
    assert sorted(entry.num_simulations for entry in manifest.values()) == [2, 2, 2, 3]


def test_a_damaged_source_is_named_and_the_others_are_converted(source: Path, tmp_path: Path) -> None:
    own = shutil.copytree(source, tmp_path / "own")
    bad = own / "full_ergodic_train_batch_2" / "sim__saved_InputSpikes_part_1.p"
    bad.write_bytes(bad.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"part_1\.p must be a whole NeuronIO simulation file"):
        convert_neuronio([own], tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.h5"))) == NUM_FILES - 1 == len(read_manifest(tmp_path / "out"))
    assert verify_neuronio(tmp_path / "out") == {}


def test_bad_arguments_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a folder with \*sim__\*\.p files, got .*empty, which has none"):
        convert_neuronio([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="which has none"):
        convert_neuronio([tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        convert_neuronio([source], tmp_path / "out", num_workers=0)
    with pytest.raises(ValueError, match="at least one file or folder"):
        convert_neuronio([], tmp_path / "out")
    other = shutil.copytree(source, tmp_path / "other")
    with pytest.raises(ValueError, match="sources must differ in the names of file and folder"):
        convert_neuronio([source, other], tmp_path / "out")


def test_two_conversions_into_one_folder_do_not_meet(source: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(BlockingIOError, match="another process is converting"):
        convert_neuronio([source], tmp_path)


CONVERT = (
    "import sys\nfrom elm_neuro.datasets import convert_neuronio\n"
    "if __name__ == '__main__':\n"
    "    convert_neuronio([sys.argv[1]], sys.argv[2], num_workers=int(sys.argv[3]), format=sys.argv[4],"
    " progress=lambda *a: print(a[0], flush=True))\n"
)


def convert_and_kill(script: Path, source: Path, target: Path, delay: float, num_workers: int, form: Format) -> None:
    """Start a conversion, and kill it with -9 this long after its first file, or after it began to write."""
    process = subprocess.Popen(
        [sys.executable, str(script), str(source), str(target), str(num_workers), form], stdout=subprocess.DEVNULL
    )
    while process.poll() is None and not (target / ".lock").exists():
        time.sleep(0.002)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("form", "num_kills"),
    [
        ("npy", 1),
        *(pytest.param(form, 20, marks=[pytest.mark.slow, pytest.mark.timeout(900)]) for form in FORMATS),
    ],
)
def test_a_conversion_killed_at_random_moments_ends_in_the_same_bytes(
    source: Path, tmp_path: Path, wholes: dict[Format, dict[str, bytes]], num_kills: int, form: Format
) -> None:
    whole, script = wholes[form], tmp_path / "convert.py"
    script.write_text(CONVERT, encoding="utf-8")
    rng = np.random.default_rng(num_kills)
    start = time.perf_counter()
    convert_neuronio([source], tmp_path / "timed", format=form)
    lasts = time.perf_counter() - start
    for kill in range(num_kills):
        target = tmp_path / f"out{kill}"
        convert_and_kill(script, source, target, float(rng.uniform(0, 1.2 * lasts)), 1 + (kill % 4 == 3), form)
        for name, raw in content(target).items():
            assert name == "manifest.json" or ".tmp" in name or raw == whole[name]  # what has its name is whole
        for name in read_manifest(target) if (target / "manifest.json").exists() else ():
            assert (target / name).exists()
        convert_neuronio([source], target, format=form)
        assert content(target) == whole  # and no temporary file is left
        shutil.rmtree(target)


@pytest.mark.parametrize("form", [pytest.param("npy", marks=pytest.mark.slow), "hdf5"])
def test_a_full_disk_is_named_and_leaves_nothing_half_written(source: Path, tmp_path: Path, form: Format) -> None:
    """A limit on the size of files stands for a disk that is full: writing fails in the middle."""
    code = (
        "import resource, signal, sys\nfrom elm_neuro.datasets import convert_neuronio\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try:\n    convert_neuronio([sys.argv[1]], sys.argv[2], format=sys.argv[3])\n"
        "except OSError as error:\n    print(error)\nelse:\n    sys.exit(1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path), form], check=True, capture_output=True, text=True
    )
    assert f"part_0{SUFFIXES[form]} cannot be written: File too large" in done.stdout
    assert content(tmp_path) == {}
    assert [path for path in tmp_path.rglob("*") if ".tmp" in path.name] == []


def test_verify_finds_every_changed_byte(source: Path, tmp_path: Path) -> None:
    convert_neuronio([source], tmp_path)
    one, two, three = sorted(tmp_path.rglob("*.h5"))[:3]
    raw = bytearray(one.read_bytes())
    raw[len(raw) // 2] ^= 1
    one.write_bytes(raw)
    two.unlink()
    three.write_bytes(three.read_bytes()[:-1])
    wrong = verify_neuronio(tmp_path)
    assert set(wrong) == {str(path.relative_to(tmp_path)) for path in (one, two, three)}
    assert "must have the sha256" in wrong[str(one.relative_to(tmp_path))]


def test_verify_finds_every_changed_npy(source: Path, tmp_path: Path) -> None:
    names = sorted(convert_neuronio([source], tmp_path, format="npy"))
    one, two, three = (tmp_path / name for name in names[:3])
    raw = bytearray((one / "channel.npy").read_bytes())
    raw[-1] ^= 1
    (one / "channel.npy").write_bytes(raw)
    (two / "soma_mv.npy").unlink()
    (three / "soma_mv.npy").rename(three / "other")
    (three / "soma_mv.npy").symlink_to("other")
    wrong = verify_neuronio(tmp_path)
    assert set(wrong) == set(names[:3])
    assert (
        "must have the sha256" in wrong[names[0]]
        and "must have the sha256" in wrong[names[1]]
        and "must hold files only" in wrong[names[2]]
    )
    convert_neuronio([source], tmp_path, format="npy")  # all but the one whose size is as it was
    assert set(verify_neuronio(tmp_path)) == {names[0]}


def test_verify_reads_no_links_and_nothing_larger_than_the_manifest_says(source: Path, tmp_path: Path) -> None:
    convert_neuronio([source], tmp_path)
    one, two = sorted(tmp_path.rglob("*.h5"))[:2]
    for path, target in ((one, "/dev/zero"), (two, str(two.with_name("moved")))):
        if target != "/dev/zero":
            path.rename(target)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    wrong = verify_neuronio(tmp_path)
    assert set(wrong) == {str(path.relative_to(tmp_path)) for path in (one, two)}
    assert all("no link" in reason for reason in wrong.values())
    convert_neuronio([source], tmp_path)  # links are replaced by files
    assert verify_neuronio(tmp_path) == {} and not one.is_symlink()


def test_a_source_in_the_root_folder_is_written_into_the_destination(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root has no name that could be the folder's: ``/sim__x.p`` was written to ``/sim__x.h5``."""
    monkeypatch.setattr(Path, "resolve", lambda path: Path("/") / path.name)
    one = next(source.rglob("*.p"))
    assert list(_convert._tasks([one], ".h5")) == [f"{one.stem}.h5"]


def test_steps_that_wrap_into_range_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sim__one.h5"
    path.write_bytes(hdf5(read_simulation_file(write(tmp_path / "sim__one.p", made(2, 300)))))
    with h5py.File(path, "r") as file:
        num = file["output/step"].size
    for wrong in (2**31, 2**32 - 1, 2**32, 2**63):
        dtype = np.uint32 if wrong < 2**32 else np.uint64
        rewrite(path, "output/step", data=np.full(num, wrong, dtype))
        with pytest.raises(ValueError, match=rf"/output/step must be below 300, got {wrong}"):
            open_simulations(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(format_version=2),
        lambda manifest: manifest.update(files={"../outside.h5": next(iter(manifest["files"].values()))}),
        lambda manifest: manifest.update(files={"/etc/passwd": next(iter(manifest["files"].values()))}),
        lambda manifest: manifest.update(files={"a.h5": {"source": 1}}),
        lambda manifest: manifest.update(files=[1]),
        lambda manifest: manifest.pop("files"),
    ],
)
def test_damaged_manifests_are_refused(source: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    convert_neuronio([source / "full_ergodic_train_batch_1"], tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    change(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="must be a manifest of a conversion"):
        verify_neuronio(tmp_path)


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold manifest\.json"):
        verify_neuronio(tmp_path)


def hdf5(simulations: Simulations) -> bytes:
    raw = to_content(simulations, "hdf5")
    assert isinstance(raw, bytes)
    return raw


def rewrite(path: Path, key: str, **options: Any) -> None:
    with h5py.File(path, "r+") as file:
        values = file[key][()]
        del file[key]
        file.create_dataset(key, **{"data": values, **options})


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("input/indptr", {"data": np.arange(5, dtype=np.uint32)}, "must have 601 entries that rise"),
        ("input/indptr", {"data": np.zeros(601, np.float32)}, "of kind 'u'"),
        ("soma_mv", {"data": np.zeros(600, np.float16)}, "of 2 dimensions"),
        ("soma_mv", {"data": np.zeros((2, 300), np.float64)}, "float16 or float32"),
        ("soma_mv", {"chunks": (1, 300), "compression": "gzip"}, "stored in one piece"),
        ("input/channel", {"data": np.zeros(3, np.uint16)}, "without falling"),
        ("input/channel", {"data": np.zeros(3, np.uint32)}, "must be uint16"),
        ("output/step", {"data": np.array([300], np.uint32)}, "."),
    ],
)
def test_converted_files_that_break_the_layout_are_refused(
    tmp_path: Path, key: str, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "sim__one.h5"
    path.write_bytes(hdf5(read_simulation_file(write(tmp_path / "sim__one.p", made(2, 300)))))
    open_simulations(path)
    rewrite(path, key, **options)
    with pytest.raises(ValueError, match=message) as refused:
        open_simulations(path)
    assert str(path) in str(refused.value)


def test_links_and_cut_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sim__one.h5"
    raw = hdf5(read_simulation_file(write(tmp_path / "sim__one.p", made(2, 300))))
    for end in (0, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:end])
        with pytest.raises(ValueError, match="must be a whole converted NeuronIO file"):
            open_simulations(path)
    path.write_bytes(raw)
    with h5py.File(path, "r+") as file:
        del file["input/channel"]
        file["input/channel"] = h5py.ExternalLink("other.h5", "x")
    with pytest.raises(ValueError, match="must be stored in the file itself"):
        open_simulations(path)
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        open_simulations(tmp_path / "nowhere.h5")


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("indptr", np.arange(5, dtype=np.uint32), "must have 601 entries that rise"),
        ("indptr", np.zeros(601, np.float32), "of kind 'u'"),
        ("soma_mv", np.zeros(600, np.float16), "2 dimensions"),
        ("soma_mv", np.asfortranarray(np.zeros((2, 300), np.float16)), "2 dimensions"),
        ("soma_mv", np.zeros((2, 300), np.float64), "float16 or float32"),
        ("channel", np.array([None, "code"], dtype=object), "of kind 'u'"),
        ("channel", np.zeros(3, [("a", "u2")]), "of kind 'u'"),
        ("channel", b"", "version 1.0"),
        ("channel", b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "."),
        ("channel", "(1000000000000000000,)", "must lie within the file"),
        ("channel", "(-5,)", "must lie within the file"),
        ("channel", "(2.5,)", "shape is not valid"),
        ("channel", "link", "stored in the folder itself"),
        ("channel", None, "stored in the folder itself"),
    ],
)
def test_npy_folders_that_break_the_layout_are_refused(tmp_path: Path, field: str, values: Any, message: str) -> None:
    write(tmp_path / "in" / "sim__one.p", made(2, 300))
    (name,) = convert_neuronio([tmp_path / "in"], tmp_path, format="npy")
    folder = tmp_path / name
    open_simulations(folder)
    path = folder / f"{field}.npy"
    raw = path.read_bytes()
    path.unlink()
    if isinstance(values, np.ndarray):
        np.save(path, values, allow_pickle=True)
    elif isinstance(values, bytes):
        path.write_bytes(values)
    elif values == "link":
        path.symlink_to("/etc/passwd")
    elif values is not None:
        header = raw[10:128].rstrip()
        header = header[: header.index(b"(")] + values.encode() + header[header.index(b")") + 1 :]
        path.write_bytes(raw[:10] + header.ljust(117) + b"\n" + raw[128:])
    with pytest.raises(ValueError, match=message) as refused:
        open_simulations(folder)
    assert str(folder) in str(refused.value)
