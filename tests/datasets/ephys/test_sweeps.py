"""Sweeps in the layout of NWB 1: what h5py wrote is read, in pA and mV, and what does not fit is refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elm_neuro import ALIF
from elm_neuro.datasets import KnownNeuron, Sweep, cut_sweeps, make_ephys, read_sweeps, write_sweeps

h5py = pytest.importorskip("h5py")

NOT_FINITE = (np.nan, np.inf)
RANDOM = np.random.default_rng(0)
CURRENT, VOLTAGE = RANDOM.normal(100, 30, 500), RANDOM.normal(-60, 5, 500)
Change = Callable[[Any], None]


def written(path: Path, change: Change | None = None) -> Path:
    """Two sweeps, made by h5py alone, without links; current as whole numbers of 0.5 pA."""
    with h5py.File(path, "w") as file:
        for number, name in ((4, "Noise 1"), (12, "Noise 2")):
            file[f"acquisition/timeseries/Sweep_{number}/aibs_stimulus_name"] = np.bytes_(name)
            for part, values, unit, conversion in (
                ("stimulus", np.round(CURRENT * 2).astype(np.int16), "A", 0.5e-12),
                ("response", VOLTAGE.astype(np.float32), "volts", np.float32(1e-3)),
            ):
                series = file.create_group(f"epochs/Sweep_{number}/{part}/timeseries")
                series["data"] = values
                series["data"].attrs.update(unit=unit, conversion=conversion)
                series["starting_time"] = 0.0
                series["starting_time"].attrs["rate"] = 50000.0
        file.create_group("epochs/Experiment_4")
        if change is not None:
            change(file)
    return path


def test_numbers_are_in_pa_and_mv(tmp_path: Path) -> None:
    sweeps = read_sweeps(written(tmp_path / "cell.nwb"))
    assert [(sweep.number, sweep.stimulus, sweep.rate) for sweep in sweeps] == [
        (4, "Noise 1", 50000.0), (12, "Noise 2", 50000.0),
    ]  # fmt: skip
    for sweep in sweeps:
        np.testing.assert_allclose(sweep.current, np.round(CURRENT * 2) / 2, rtol=1e-12)
        np.testing.assert_allclose(sweep.voltage, VOLTAGE, rtol=1e-6)
    assert [sweep.number for sweep in read_sweeps(tmp_path / "cell.nwb", "Noise 2")] == [12]


def test_what_is_written_is_read_through_its_soft_links(tmp_path: Path) -> None:
    sweeps = [Sweep(number, f"Noise {number + 1}", CURRENT * number, VOLTAGE, 10000.0) for number in range(1, 12)]
    write_sweeps(tmp_path / "cell.nwb", sweeps)
    for found, wanted in zip(read_sweeps(tmp_path / "cell.nwb"), sweeps, strict=True):
        assert (found.number, found.stimulus, found.rate) == (wanted.number, wanted.stimulus, wanted.rate)
        np.testing.assert_allclose(found.current, wanted.current, rtol=1e-6)
        np.testing.assert_allclose(found.voltage, wanted.voltage, rtol=1e-6)
    with h5py.File(tmp_path / "cell.nwb") as file:  # as other programs see it
        np.testing.assert_allclose(file["epochs/Sweep_3/stimulus/timeseries/data"][:] * 1e12, CURRENT * 3, rtol=1e-6)


def test_relative_links_lead_from_where_they_stand(tmp_path: Path) -> None:
    def move(file: Any) -> None:
        file.move("epochs/Sweep_4/stimulus/timeseries", "epochs/Sweep_4/stimulus/kept")
        file["epochs/Sweep_4/stimulus/timeseries"] = h5py.SoftLink("kept")

    assert read_sweeps(written(tmp_path / "cell.nwb", move))[0].current.size == 500


def test_one_group_under_many_numbers_is_refused(tmp_path: Path) -> None:
    """A file of 100 kB that would fill the memory."""

    def more(file: Any) -> None:
        for number in range(100, 1100):
            file[f"epochs/Sweep_{number}"] = file["epochs/Sweep_4"]

    with pytest.raises(ValueError, match="epochs/Sweep_100 must have a response of its own, got that of Sweep_4"):
        read_sweeps(written(tmp_path / "cell.nwb", more))


def test_a_group_whose_number_is_padded_is_no_sweep(tmp_path: Path) -> None:
    def more(file: Any) -> None:
        file.copy("epochs/Sweep_4", "epochs/Sweep_04")

    assert [sweep.number for sweep in read_sweeps(written(tmp_path / "cell.nwb", more))] == [4, 12]


def test_sweeps_may_share_a_stimulus(tmp_path: Path) -> None:
    def shared(file: Any) -> None:
        del file["epochs/Sweep_12/stimulus"]
        file["epochs/Sweep_12/stimulus"] = file["epochs/Sweep_4/stimulus"]

    one, other = read_sweeps(written(tmp_path / "cell.nwb", shared))
    np.testing.assert_array_equal(one.current, other.current)


def removed(key: str) -> Change:
    return lambda file: file.__delitem__(key)


def attribute(key: str, name: str, value: Any) -> Change:
    return lambda file: file[key].attrs.__setitem__(name, value)


def replaced(key: str, values: Any) -> Change:
    def change(file: Any) -> None:
        attributes = dict(file[key].attrs)
        del file[key]
        file[key] = values
        file[key].attrs.update(attributes)

    return change


def link_to_itself(file: Any) -> None:
    del file["epochs/Sweep_4/stimulus/timeseries"]
    file["epochs/Sweep_4/stimulus/timeseries"] = h5py.SoftLink("/epochs/Sweep_4/stimulus/timeseries")


def link_elsewhere(file: Any) -> None:
    del file["epochs/Sweep_4/stimulus/timeseries"]
    file["epochs/Sweep_4/stimulus/timeseries"] = h5py.ExternalLink("other.nwb", "/stimulus")


def without_samples(file: Any) -> None:
    for part in ("stimulus", "response"):
        replaced(f"epochs/Sweep_4/{part}/timeseries/data", np.zeros(0))(file)


NAME = "acquisition/timeseries/Sweep_4/aibs_stimulus_name"
DATA = "epochs/Sweep_4/stimulus/timeseries/data"
TIME = "epochs/Sweep_4/response/timeseries/starting_time"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (removed("epochs"), "there must be sweeps, epochs/Sweep_N, got none"),
        (removed(DATA), f"/{DATA} must be there, got nothing"),
        (removed("epochs/Sweep_4/response"), "response/timeseries/data must be there, got nothing"),
        (attribute(DATA, "unit", "Volts"), f"/{DATA} must have the unit A, got 'Volts'"),
        (attribute("epochs/Sweep_12/response/timeseries/data", "unit", "mV"), "must have the unit V, got 'mV'"),
        (attribute(DATA, "unit", 3), "must have the unit A, got 3"),
        (attribute(DATA, "conversion", 0.0), "must have a conversion above 0, got 0.0"),
        (attribute(DATA, "conversion", np.nan), "must have a conversion above 0, got nan"),
        (attribute(DATA, "conversion", np.array([1e-12, 2.0])), "attribute conversion must be one number or a text"),
        (attribute(DATA, "conversion", np.zeros(0)), "attribute conversion must be one number or a text"),
        (attribute(DATA, "unit", ["A", "A"]), "attribute unit must be one number or a text"),
        (attribute(TIME, "rate", 10000.0), "must have one rate, got 50000.0 Hz of the stimulus and 10000.0 Hz"),
        (attribute(TIME, "rate", "fast"), "must have a rate above 0, got 'fast'"),
        (replaced(DATA, np.zeros(7)), "as many samples of stimulus and response, got 7 and 500"),
        (replaced(DATA, np.zeros((5, 100))), r"must be a row of numbers, got float64 of shape \(5, 100\)"),
        (replaced(DATA, np.full(500, np.inf)), "must be finite, got inf"),
        (attribute(DATA, "conversion", 1e300), "have a conversion with which its data stay finite, got 1e\\+300"),
        (replaced(DATA, np.zeros(500, bool)), f"/{DATA} must hold plain numbers or text, got another type"),
        (replaced(DATA, np.zeros(500, complex)), f"/{DATA} must hold plain numbers or text, got another type"),
        (
            replaced(DATA, np.zeros(500, [("a", "f4"), ("b", "f4")])),
            "must hold plain numbers or text, got another type",
        ),
        (without_samples, "epochs/Sweep_4 must have samples, got none"),
        (replaced(NAME, np.array([b"ab", b"cd"])), f"/{NAME} must be one text, got 2 texts"),
        (replaced(NAME, np.array(["ab", "cd"], h5py.string_dtype())), f"/{NAME} must be one text, got 2 texts"),
        (replaced(NAME, np.zeros(0, h5py.string_dtype())), f"/{NAME} must be one text, got 0 texts"),
        (replaced(NAME, 5), f"/{NAME} must be one text, got 1 of another type"),
        (link_to_itself, "must be reached by at most 8 soft links"),
        (link_elsewhere, "must be stored in the file itself, got a ExternalLink"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, change: Change, message: str) -> None:
    path = written(tmp_path / "cell.nwb", change)
    with pytest.raises(ValueError, match=message) as error:
        read_sweeps(path)
    assert str(error.value).startswith(f"{path} must hold sweeps in the layout of NWB 1: ")


def test_what_is_no_file_of_sweeps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist: those of the Allen Cell Types Database are at https"):
        read_sweeps(tmp_path / "none.nwb")
    (tmp_path / "text.nwb").write_text("no HDF5")
    with pytest.raises(ValueError, match=r"text\.nwb must hold sweeps in the layout of NWB 1"):
        read_sweeps(tmp_path / "text.nwb")
    os.mkfifo(tmp_path / "pipe.nwb")
    with pytest.raises(ValueError, match="must be a regular file"):
        read_sweeps(tmp_path / "pipe.nwb")
    with pytest.raises(ValueError, match=r"stimulus must be one of the file's, 'Noise 1', 'Noise 2', got 'Ramp'"):
        read_sweeps(written(tmp_path / "cell.nwb"), "Ramp")


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    whole = np.frombuffer(written(tmp_path / "cell.nwb").read_bytes(), np.uint8)
    random, refused = np.random.default_rng(0), 0
    for _ in range(300):
        damaged = whole.copy()
        places = random.integers(0, min(whole.size, 20000), random.integers(1, 5))
        damaged[places] = random.integers(0, 256, places.size)
        (tmp_path / "damaged.nwb").write_bytes(damaged[: random.integers(1, whole.size + 1)].tobytes())
        try:
            read_sweeps(tmp_path / "damaged.nwb")
        except ValueError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(("rate", "step_ms"), [(10000.0, 0.1), (50000.0, 0.1), (200000.0, 0.05), (20000.0, 1.0)])
def test_samples_are_those_of_a_plain_loop(rate: float, step_ms: float) -> None:
    random, factor = np.random.default_rng(1), round(rate * step_ms / 1000)
    sweeps = [Sweep(number, "", random.normal(size=6000), random.normal(-30, 20, 6000), rate) for number in range(3)]
    starts, num_steps = [0.0, 500 / rate], 1000 // factor
    trains = cut_sweeps(sweeps, starts_s=starts, duration_s=num_steps * step_ms / 1000, step_ms=step_ms)
    assert trains.spikes.shape == trains.current.shape == trains.voltage.shape == (3, 2, num_steps)
    assert trains.step_ms == step_ms
    for i, sweep in enumerate(sweeps):
        for j, start in enumerate((0, 500)):
            for k in range(num_steps):
                first = start + k * factor
                assert trains.current[i, j, k] == sweep.current[first]
                assert trains.voltage[i, j, k] == sweep.voltage[first]
                rises = [n > 0 and sweep.voltage[n] > -20 >= sweep.voltage[n - 1] for n in range(first, first + factor)]
                assert trains.spikes[i, j, k] == any(rises)


def test_samples_that_cannot_be_are_refused() -> None:
    sweep = Sweep(3, "", np.zeros(1000), np.zeros(1000), 10000.0)
    for options, message in (
        ({"starts_s": []}, "must not be empty, got 1 and 0"),
        ({"starts_s": [0.0], "step_ms": 0.15}, "must be a whole number of the sweeps' samples"),
        ({"starts_s": [0.0], "step_ms": 0.0}, "must be a whole number of the sweeps' samples"),
        ({"starts_s": [0.05], "duration_s": 0.06}, "must lie within sweep 3 of 0.1 s, got 0.05 s and 0.06 s"),
        ({"starts_s": [-0.01], "duration_s": 0.01}, "must lie within sweep 3"),
        ({"starts_s": [0.0], "step_ms": 1e300}, "must be a whole number of the sweeps' samples"),
        *(({"starts_s": [0.0], "step_ms": bad}, f"step_ms must be finite, got {bad}") for bad in NOT_FINITE),
        *(({"starts_s": [0.0], "duration_s": bad}, f"duration_s must be finite, got {bad}") for bad in NOT_FINITE),
        *(({"starts_s": [0.0, bad]}, f"starts_s must be finite, got {bad}") for bad in NOT_FINITE),
        ({"starts_s": [0.0], "spike_mv": np.nan}, "spike_mv must be finite, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            cut_sweeps([sweep], **options)  # type: ignore[arg-type]
    for rate in (0.0, -1.0, *NOT_FINITE):
        with pytest.raises(ValueError, match=f"rate of sweep 3 must be above 0 Hz and finite, got {rate}"):
            cut_sweeps([sweep._replace(rate=rate)], starts_s=[0.0], duration_s=0.01)
    with pytest.raises(ValueError, match="sweep 3 must have as many samples of current and voltage, got 1000 and 9"):
        cut_sweeps([sweep._replace(voltage=np.zeros(9))], starts_s=[0.0], duration_s=0.01)
    with pytest.raises(ValueError, match=r"must have one rate, got \[10000.0, 20000.0\] Hz"):
        cut_sweeps([sweep, sweep._replace(rate=20000.0)], starts_s=[0.0], duration_s=0.01)


def test_the_known_neuron_is_the_equations_and_our_layers_neuron() -> None:
    known, step = KnownNeuron(tau_v=12.0, tau_a=40.0, b=0.3, weight=3.0, bias=0.002, latency=1.5), 0.1
    current = np.maximum(np.random.default_rng(2).normal(0.006, 0.03, (2, 3000)), 0)
    membrane, spikes = known.run(current, step)
    assert 5 < spikes.sum() < 500
    for row in range(2):  # the equations, one number at a time
        v = a = 0.0
        rest = 0
        for t in range(3000):
            i = 0.0 if rest > 0 else known.weight * current[row, t] + known.bias
            v = v * np.exp(-step / known.tau_v) + i
            fires = v > 1 + known.b * a
            assert v == pytest.approx(membrane[row, t], rel=1e-12) and fires == spikes[row, t]
            a = a * np.exp(-step / known.tau_a) + fires
            v, rest = (0.0, 15) if fires else (v, rest - 1)
    layer = ALIF(1, 1, delta_t=step, tau_v=12.0, tau_a=40.0, b_init=0.3, latency=1.5).double()
    with torch.no_grad():
        layer.cell.weight.fill_(3.0), layer.cell.bias.fill_(0.002)
        layer.cell.beta.fill_(np.exp(-step / 12.0)), layer.cell.p.fill_(np.exp(-step / 40.0))  # type: ignore[union-attr]
        y, _ = layer(torch.from_numpy(current[..., None]))
    np.testing.assert_array_equal(y[..., 0].numpy(), spikes)


def test_the_stand_in_repeats_its_stimulus_and_depends_on_its_seed(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_repeats": 2, "starts_s": (0.1, 0.7), "duration_s": 0.5}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        make_ephys(tmp_path / name, seed=seed, **options)
    one, again, other = (read_sweeps(tmp_path / name) for name in ("one", "again", "other"))
    assert [sweep.stimulus for sweep in one] == ["Noise 1"] * 2 + ["Noise 2"] * 2
    np.testing.assert_array_equal(one[0].current, one[1].current)
    assert (one[0].voltage != one[1].voltage).any() and (one[0].current != one[2].current).any()
    np.testing.assert_array_equal(one[3].voltage, again[3].voltage)
    assert (one[0].current != other[0].current).any()
    trains = cut_sweeps(one, starts_s=(0.1, 0.7), duration_s=0.5)
    assert (trains.spikes.sum((1, 2)) > 3).all()
    bad: list[dict[str, Any]] = [{"num_repeats": 0}, {"noise": np.nan}, {"duration_s": np.inf}, {"starts_s": [np.nan]}]
    for case in bad:
        with pytest.raises(ValueError, match=r"num_repeats must be at least 1, .* all finite"):
            make_ephys(tmp_path / "none", **case)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("tau_v", 0.0, "must be a time above 0 ms"),
        ("tau_a", -3.0, "must be a time above 0 ms"),
        ("latency", -5.0, "must be a time in ms, not negative"),
        ("latency", np.inf, "must be finite"),
        ("weight", np.nan, "must be finite"),
    ],
)
def test_numbers_that_no_neuron_has_are_refused(name: str, value: float, rule: str) -> None:
    with pytest.raises(ValueError, match=f"{name} {rule}, got {value}"):
        KnownNeuron(**{name: value})


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_a_factor_that_comes_as_a_list_of_one_is_that_factor(tmp_path: Path, shape: tuple[int, ...]) -> None:
    def wrapped(file: Any) -> None:
        for key, name in ((DATA, "conversion"), (TIME, "rate")):
            file[key].attrs[name] = np.full(shape, file[key].attrs[name])

    plain, listed = (read_sweeps(written(tmp_path / f"{n}.nwb", c)) for n, c in (("a", lambda _: None), ("b", wrapped)))
    for one, other in zip(plain, listed, strict=True):
        np.testing.assert_array_equal(one.current, other.current)
