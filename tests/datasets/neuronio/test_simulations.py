"""NeuronIO's pickles are read as what they hold, and anything else is refused before it can do harm.

Longer than most: a hostile pickle a test, each written out.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_neuro.datasets import Simulations, read_simulation_file, soma_target
from elm_neuro.datasets.neuronio import _pickle as reader
from tests.datasets.neuronio.neuronio_files import made, pickled, read_slowly, write

NAME = "sim__saved_InputSpikes_made.p"


def assert_equal_to_the_slow_reader(simulations: Simulations, path: Path) -> None:
    slow = read_slowly(path)
    assert len(simulations) == len(slow)
    for i, expected in enumerate(slow):
        indptr, channel = simulations.rows(i)
        frames = np.zeros_like(expected["frames"])
        frames[np.repeat(np.arange(simulations.num_steps), np.diff(indptr)), channel] = np.where(channel < 639, 1, -1)
        np.testing.assert_array_equal(frames, expected["frames"])
        assert channel.size == np.count_nonzero(expected["frames"])
        np.testing.assert_array_equal(simulations.spikes(i), expected["spikes"])
        np.testing.assert_array_equal(simulations.soma_mv[i], expected["soma"])
        assert simulations.soma_mv.dtype == expected["soma"].dtype


@pytest.mark.parametrize("part", ["part_00", "part_03"])
def test_the_real_files_are_read_as_what_they_hold(neuronio_folder: Path, part: str) -> None:
    (path,) = neuronio_folder.glob(f"*{part}.p")
    simulations = read_simulation_file(path)
    assert_equal_to_the_slow_reader(simulations, path)
    assert (len(simulations), simulations.num_steps, simulations.num_spikes) == (
        4,
        6000,
        13 if part == "part_00" else 0,
    )


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize(("num_simulations", "num_steps"), [(1, 1), (3, 400), (2, 777)])
def test_any_number_and_length_is_read(tmp_path: Path, module: str, num_simulations: int, num_steps: int) -> None:
    content = made(num_simulations, num_steps)
    path = write(tmp_path / NAME, content, module=module)
    assert_equal_to_the_slow_reader(read_simulation_file(path), path)


@pytest.mark.parametrize("protocol", [3, 4])
def test_later_protocols_are_read(tmp_path: Path, protocol: int) -> None:
    path = write(tmp_path / NAME, pickle.dumps(made(), protocol=protocol))
    assert_equal_to_the_slow_reader(read_simulation_file(path), path)


@pytest.mark.parametrize("block", [64, 97, 1000])
def test_runs_across_the_blocks_of_a_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(reader, "BLOCK", block)
    path = write(tmp_path / NAME, made(1, 300))
    assert_equal_to_the_slow_reader(read_simulation_file(path), path)


def test_shared_numbers_lists_of_ints_and_arrays_are_read(tmp_path: Path) -> None:
    content = made(2)
    one, two = content["Results"]["listOfSingleSimulationDicts"]
    shared = [np.int64(t) for t in (3, 90, 200)]
    one["exInputSpikeTimes"][np.int64(5)] = shared
    two["inhInputSpikeTimes"][np.int64(6)] = [
        shared[1],
        np.int64(300),
        shared[0],
    ]  # the same objects: read from the memo
    two["exInputSpikeTimes"][np.int64(8)] = [1, 2, 2]  # twice in a step counts once
    two["exInputSpikeTimes"] = {int(key): value for key, value in two["exInputSpikeTimes"].items()}
    path = write(tmp_path / NAME, content)
    assert_equal_to_the_slow_reader(read_simulation_file(path), path)
    one["exInputSpikeTimes"][np.int64(5)] = np.array([3, 90, 200])
    assert_equal_to_the_slow_reader(read_simulation_file(write(tmp_path / "sim__array.p", content)), path)


@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_any_spikes_are_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    num_steps = data.draw(st.integers(1, 70))
    content = made(1, num_steps, rate=0.0)
    simulation = content["Results"]["listOfSingleSimulationDicts"][0]
    simulation["outputSpikeTimes"] = np.array(
        data.draw(st.lists(st.floats(0, num_steps, width=16), max_size=5)), dtype=np.float16
    )
    for key in ("exInputSpikeTimes", "inhInputSpikeTimes"):
        for segment in data.draw(st.sets(st.integers(0, 638), max_size=4)):
            simulation[key][np.int64(segment)] = [
                np.int64(t) for t in data.draw(st.lists(st.integers(0, num_steps - 1), max_size=6))
            ]
    simulation["somaVoltageLowRes"] = np.full(num_steps, -65, np.float16)
    path = write(tmp_path_factory.mktemp("any") / NAME, content)
    assert_equal_to_the_slow_reader(read_simulation_file(path), path)


def change(where: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        content["Results"]["listOfSingleSimulationDicts"][1][where] = value

    return apply


def without(where: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["Results"]["listOfSingleSimulationDicts"][0].pop(where)


SEGMENTS = {np.int64(i): [] for i in range(639)}
BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no results": (lambda content: content.pop("Results"), "the file must be a dict with Results, got Params"),
    "no list": (
        lambda content: content["Results"].clear(),
        "Results must be a dict with listOfSingleSimulationDicts, got nothing",
    ),
    "empty list": (
        lambda content: content["Results"]["listOfSingleSimulationDicts"].clear(),
        "at least one simulation, got an empty list",
    ),
    "no inputs": (without("inhInputSpikeTimes"), "simulation 0 must be a dict with inhInputSpikeTimes"),
    "no voltage": (without("somaVoltageLowRes"), "simulation 0 must be a dict with somaVoltageLowRes"),
    "segments": (
        change("exInputSpikeTimes", dict(list(SEGMENTS.items())[:638])),
        "must be a dict of 639 segments, 0 to 638, got 638",
    ),
    "other segments": (
        change("exInputSpikeTimes", {np.int64(i + 1): [] for i in range(639)}),
        "must be a dict of 639 segments",
    ),
    "a list of segments": (change("inhInputSpikeTimes", [1, 2]), "must be a dict of 639 segments, 0 to 638, got list"),
    "past the end": (
        change("inhInputSpikeTimes", SEGMENTS | {np.int64(9): [np.int64(400)]}),
        r"must be in \[0, 400\) ms, got 400",
    ),
    "before the start": (
        change("exInputSpikeTimes", SEGMENTS | {np.int64(9): [np.int64(-1), np.int64(3)]}),
        r"must be in \[0, 400\) ms, got -1",
    ),
    "fractions": (change("exInputSpikeTimes", SEGMENTS | {np.int64(9): [2.5]}), "must hold whole ms, got float64"),
    "words": (change("exInputSpikeTimes", SEGMENTS | {np.int64(9): ["soon"]}), "must hold numbers, got str"),
    "too many": (
        change("exInputSpikeTimes", SEGMENTS | {np.int64(9): [[7] * 10] * 99999}),
        "must hold numbers, got list",
    ),
    "more than fit": (
        change("exInputSpikeTimes", SEGMENTS | {np.int64(9): [7] * (639 * 400 + 1)}),
        "at most one spike per segment and ms, got 255601",
    ),
    "NaN": (
        change("somaVoltageLowRes", np.array([0.0] * 7 + [np.nan] + [0.0] * 392, np.float16)),
        "must be finite, got nan at 7 ms",
    ),
    "infinite": (change("somaVoltageLowRes", np.full(400, np.inf, np.float16)), "must be finite, got inf at 0 ms"),
    "mixed lengths": (
        change("somaVoltageLowRes", np.zeros(300, np.float16)),
        r"must be as long, got lengths of \[300, 400\] ms",
    ),
    "integers": (
        change("somaVoltageLowRes", np.zeros(400, np.int16)),
        "must hold at least one voltage in mV, got 400 of int16",
    ),
    "no array": (change("somaVoltageLowRes", "-70"), "must be an array of one dimension, got str"),
    "two dimensions": (change("somaVoltageLowRes", np.zeros((2, 200), np.float16)), r"got shape \(2, 200\)"),
    "late output": (change("outputSpikeTimes", np.array([401.0])), r"must be in \[0, 400\] ms, got 401"),
    "NaN output": (change("outputSpikeTimes", np.array([np.nan])), r"must be in \[0, 400\] ms, got nan"),
    "duration": (
        lambda content: content["Params"].update(totalSimDurationInSec=6),
        "a value for each of the 6 s of Params, got 400 ms",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_files_that_break_a_rule_are_refused_by_name_and_reason(tmp_path: Path, what: str) -> None:
    content = made(2)
    breaks, message = BROKEN[what]
    breaks(content)
    path = write(tmp_path / NAME, content)
    with pytest.raises(ValueError, match=message) as refused:
        read_simulation_file(path)
    assert str(path) in str(refused.value)


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile(payload: bytes) -> bytes:
    """A dict whose "Params" are made by these instructions."""
    return b"\x80\x02}(U\x06Params" + payload + b"U\x07ResultsNu."


HOSTILE: dict[str, tuple[bytes, str]] = {
    "os.system": (
        pickle.dumps({"Results": Calls(os.system, "echo harm > harm.txt")}, 2),
        "only numpy's scalar.*may be named, got (posix|nt).system",
    ),
    "eval": (pickle.dumps(Calls(eval, "1"), 4), "may be named, got builtins.eval"),
    "numpy.load": (pickle.dumps(Calls(np.load, "x"), 4), "may be named, got numpy.load"),
    "an attribute of an allowed name": (
        hostile(b"\x8c\x05numpy\x8c\x0endarray.tofile\x93"),
        "may be named, got numpy.ndarray.tofile",
    ),
    "object": (pickle.dumps(made, 2), "may be named, got tests.datasets"),
    "a name with a backslash": (hostile(b"cnum\\By\nload\n"), "may be named, got num.By.load"),
    "persistent id": (hostile(b"U\x01aQ"), "must not hold the instruction BINPERSID"),
    "instance": (hostile(b"(ios\nsystem\n"), "must not hold the instruction INST"),
    "extension": (hostile(b"\x82\x01"), "must not hold the instruction EXT1"),
    "nested lists": (hostile(b"]" * 100_000 + b"a" * 99_999), "nested at most 100 deep"),
    "nested tuples": (hostile(b")" + b"\x85" * 100_000), "nested at most 100 deep"),
    "nested marks": (hostile(b"(" * 100_000 + b"t" * 100_000), "nested at most 100 deep"),
    "huge array": (
        hostile(
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85U\x01b\x87R"
        ),
        "must be made empty",
    ),
    "huge type": (
        hostile(b"cnumpy\ndtype\nU\x0bS4000000000\x85R"),
        "plain numbers of at most 8 bytes, got 'S4000000000'",
    ),
    "object type": (hostile(b"cnumpy\ndtype\nU\x01O\x85R"), "plain numbers of at most 8 bytes, got 'O'"),
    "type with fields": (hostile(b"cnumpy\ndtype\nU\x02i8\x85R(K\x03U\x01<N}U\x01aK\x01sNtb"), "got one with fields"),
    "huge string": (hostile(b"T\xff\xff\xff\x7fabc"), "at most 67108864 bytes, got 2147483647"),
    "huge place": (hostile(b"Nr\xff\xff\xff\xff"), "Results must be a dict"),
    "unknown place": (hostile(b"h\x07"), "memo place 7 is read before"),
    "calling a number": (hostile(b"K\x01)R"), "callable"),
    "setting attributes": (hostile(b"cnumpy\nndarray\n}U\x01aK\x01sb"), "."),
    "no dict": (pickle.dumps([1, 2], 2), "the file must be a dict with Results, got list"),
    "text": (b"Results", "."),
    "empty": (b"", "the file is empty"),
    "protocol 0": (pickle.dumps({"Results": 1}, 0), "must not hold the instruction"),
    "nothing on the stack": (b"\x80\x02(((eeee.", "."),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_without_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.chdir(tmp_path)
    raw, message = HOSTILE[what]
    path = write(tmp_path / NAME, raw)
    with pytest.raises(ValueError, match=message) as refused:
        read_simulation_file(path)
    assert str(path) in str(refused.value)
    assert not (tmp_path / "harm.txt").exists()


def test_hostile_files_take_no_memory(tmp_path: Path) -> None:
    """In a process that may have 16 GB of addresses, where what is asked for takes more."""
    for number, what in enumerate(("huge array", "huge string", "huge place", "nested lists")):
        write(tmp_path / f"{number}.p", HOSTILE[what][0])
    many = b"".join(b"r" + struct.pack("<I", 2**32 - 1 - i) for i in range(1000))
    write(tmp_path / "4.p", hostile(b"N" + many))
    code = (
        "import resource, sys\nfrom elm_neuro.datasets import read_simulation_file\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))\n"
        "for i in range(5):\n"
        "    try:\n        read_simulation_file(f'{sys.argv[1]}/{i}.p')\n"
        "    except ValueError as error:\n        assert 'MemoryError' not in repr(error.__cause__), error\n"
        "    else:\n        raise SystemExit('read')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.77, 0.9999])
def test_truncated_files_are_refused(tmp_path: Path, share: float) -> None:
    raw = pickled(made(1))
    path = write(tmp_path / NAME, raw[: int(share * len(raw))])
    with pytest.raises(ValueError, match="must be a whole NeuronIO simulation file"):
        read_simulation_file(path)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_damaged_files_are_refused_or_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    raw = bytearray(pickled(made(1, 20, rate=0.02)))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.mktemp("damaged") / NAME, bytes(raw))
    with contextlib.suppress(ValueError):  # anything else is an error
        assert len(read_simulation_file(path)) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.p, which does not exist"):
        read_simulation_file(tmp_path / "nowhere.p")


def test_dendritic_voltages_are_not_held(tmp_path: Path) -> None:
    content = made(2)
    for simulation in content["Results"]["listOfSingleSimulationDicts"]:
        simulation["dendriticVoltagesLowRes"] = np.zeros((639, 6000), np.float16)
    path = write(tmp_path / NAME, content)
    with path.open("rb") as file:
        found = reader.load(file, path.stat().st_size, wanted=("somaVoltageLowRes",))
    one = found["Results"]["listOfSingleSimulationDicts"][1]
    assert one["dendriticVoltagesLowRes"].values is None
    assert one["somaVoltageLowRes"].values is None or one["somaVoltageLowRes"].values.size == 400
    assert_equal_to_the_slow_reader(read_simulation_file(path), path)


def test_soma_target_is_the_authors() -> None:
    voltage = np.array([-80.0, -67.7, -56.0, -55.0, -54.9, 30.0], np.float16)
    capped = np.where(voltage.astype(np.float32) > -55, np.float32(-55), voltage)
    np.testing.assert_array_equal(
        soma_target(voltage), (capped.astype(np.float32) + np.float32(67.7)) * np.float32(0.1)
    )


def test_steps_outside_of_a_simulation_are_refused(tmp_path: Path) -> None:
    simulations = read_simulation_file(write(tmp_path / NAME, made(1)))
    with pytest.raises(ValueError, match="start and stop must rise within the 400 steps, got 3 and 401"):
        simulations.rows(0, 3, 401)
    with pytest.raises(IndexError):
        simulations.rows(1)
    assert repr(simulations).startswith("Simulations(num_simulations=1, num_steps=400")


def nested_tuples(num: int, *, doubled: bool, between: bytes = b"") -> bytes:
    """A list of tuples, each holding the one before, taken from the memo; the last is the key of a dict. Between a
    tuple and its place in the memo stands what leaves it as it is.
    """

    def get(i: int) -> bytes:
        return b"j" + struct.pack("<I", i)

    made_of = b"".join(
        get(i - 1) + (get(i - 1) + b"\x86" if doubled else b"\x85") + between + b"r" + struct.pack("<I", i) + b"a"
        for i in range(1, num)
    )
    return b"\x80\x02]N\x85r\0\0\0\0a" + made_of + b"}" + get(num - 1) + b"K\x01s."


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(
            nested_tuples(200_000, doubled=False), id="deep"
        ),  # the hash of it is no exception but the end of the process
        pytest.param(nested_tuples(100, doubled=True), id="wide"),  # 2**100 parts to hash
    ],
)
def test_tuples_that_cannot_be_hashed_are_refused_before_they_are_made(tmp_path: Path, raw: bytes) -> None:
    path = write(tmp_path / NAME, raw)
    code = "import sys\nfrom elm_neuro.datasets import read_simulation_file\nread_simulation_file(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "ValueError" in done.stderr and "tuples must be made of at most 1000 tuples, got more" in done.stderr


@pytest.mark.timeout(60)
@pytest.mark.parametrize("between", [b"Nb", b"(e", b"(u"], ids=["a state of nothing", "nothing appended", "no items"])
def test_tuples_are_counted_through_what_leaves_them_as_they_are(tmp_path: Path, between: bytes) -> None:
    path = write(tmp_path / NAME, nested_tuples(100, doubled=True, between=between))
    with pytest.raises(ValueError, match="tuples must be made of at most 1000 tuples, got more"):
        read_simulation_file(path)


def test_a_type_that_is_no_name_is_not_written_out(tmp_path: Path) -> None:
    raw = b"\x80\x02cnumpy\ndtype\nK\x01K\x02\x86\x85R."
    with pytest.raises(ValueError, match="plain numbers of at most 8 bytes, got tuple"):
        read_simulation_file(write(tmp_path / NAME, raw))


def test_what_the_memo_repeats_is_bounded_by_the_size_of_the_file(tmp_path: Path) -> None:
    """A few bytes can name a long list again: a hostile file of 1 MB would otherwise need gigabytes."""
    content = made(1, 6000, rate=0.002)
    (one,) = content["Results"]["listOfSingleSimulationDicts"]
    content["Results"]["listOfSingleSimulationDicts"] = [dict(one) for _ in range(5000)]
    with pytest.raises(ValueError, match="must hold every voltage once, got 5000 simulations of 6000 ms"):
        read_simulation_file(write(tmp_path / NAME, content))
    shared = [np.int64(t) for t in range(6000)]
    one["exInputSpikeTimes"] = one["inhInputSpikeTimes"] = {np.int64(i): shared for i in range(639)}
    content["Results"]["listOfSingleSimulationDicts"] = [one]
    with pytest.raises(ValueError, match=r"must hold at most \d+ numbers, got 3834000"):
        read_simulation_file(write(tmp_path / NAME, content))


def test_a_message_does_not_repeat_what_a_key_holds(tmp_path: Path) -> None:
    """A key may be a tuple that holds a long string again: 13 GB for a file of 1 MB."""
    text = b"X" + struct.pack("<I", 400_000) + b"a" * 400_000 + b"q\x01"
    keys = b"(" + b"".join(b"h\x01J" + struct.pack("<i", i) + b"\x86N" for i in range(4000)) + b"u"
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="must be a dict with Results, got a tuple, a tuple"):
            read_simulation_file(write(tmp_path / NAME, b"\x80\x02" + text + b"}" + keys + b"."))
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_one_simulation_named_many_times_is_counted_before_it_is_copied(tmp_path: Path) -> None:
    content = made(1, 400)
    (one,) = content["Results"]["listOfSingleSimulationDicts"]
    one["somaVoltageLowRes"] = np.zeros(100_000, np.float16)
    content["Results"]["listOfSingleSimulationDicts"] = [one] * 9000
    raw = pickled(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="must hold every voltage once, got 9000 simulations of 100000 ms"):
            read_simulation_file(write(tmp_path / NAME, raw))
        assert tracemalloc.get_traced_memory()[1] < 40 * len(raw)
    finally:
        tracemalloc.stop()


def test_names_and_shared_numbers_are_read_in_linear_time(tmp_path: Path) -> None:
    """Each of them copied the rest of a block of 8 MB: half an hour for this file."""
    path = write(tmp_path / NAME, b"\x80\x02]" + b"cnumpy\ndtype\na" * 100_000 + b"." + b"\0" * (8 << 20))
    start = time.perf_counter()
    with pytest.raises(ValueError, match="must be a dict with Results, got list"):
        read_simulation_file(path)
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize("protocol", [2, 4])
def test_damage_anywhere_is_refused_or_harmless(tmp_path: Path, protocol: int) -> None:
    """Cut, flipped, lost and added bytes: the documented error, or another number in a spike or a voltage; nothing
    else.
    """
    content = made(1, 100, rate=0.002)
    whole, rng = (
        pickled(content) if protocol == 2 else pickle.dumps(content, protocol=4),
        np.random.default_rng(protocol),
    )
    path, refused, harmless = tmp_path / NAME, 0, 0
    for i in range(100):
        raw, at = bytearray(whole), int(rng.integers(len(whole)))
        if i % 4 == 0:
            del raw[at:]
        elif i % 4 == 1:
            for place in rng.integers(len(raw), size=int(rng.integers(1, 20))):
                raw[place] ^= 1 << int(rng.integers(8))
        elif i % 4 == 2:
            del raw[at : at + int(rng.integers(1, 100))]
        else:
            raw[at:at] = rng.bytes(int(rng.integers(1, 9)))
        path.write_bytes(raw)
        try:
            read_simulation_file(path)
        except ValueError as error:
            refused += str(error).startswith(f"{path} must be a whole NeuronIO simulation file, got: ")
        else:
            harmless += 1
    assert refused + harmless == 100
    assert refused > 40
